"""The scripts of studies/ fit the package: each prints its help, and a fresh process finds its functions."""

import dataclasses
import gzip
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cgnl.cli.arguments import parse_fields, parts_of, take_recipe
from cgnl.cli.comparison import CompareOptions
from cgnl.compare.plan import with_block
from cgnl.measure.memory import output_of_a_fresh_process
from cgnl.settings.trust import trusting
from cgnl.tasks.registry import task_of

STUDIES = Path(__file__).parents[2] / "studies"
OTHERS = ("script", "conv3d_network", "outfits", "evidence", "matrix_block")
SCRIPTS = sorted(path for path in STUDIES.glob("*.py") if path.stem not in OTHERS)
NEEDS = {"video_reading": ("cv2", "decord")}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_study_prints_its_help(script, monkeypatch, capsys):
    for module in NEEDS.get(script.stem, ()):
        pytest.importorskip(module)
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(STUDIES)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "--repeats" in printed
    assert f"results/{script.stem}.json" in printed


def test_a_script_calls_its_own_functions_in_a_fresh_process(tmp_path):
    script = tmp_path / "twice.py"
    script.write_text(
        "from cgnl.measure.memory import call_in_a_fresh_process\n"
        "def twice(number): return 2 * number\n"
        "if __name__ == '__main__': print(call_in_a_fresh_process(twice, number=21))\n"
    )
    assert output_of_a_fresh_process([str(script)]) == "42\n"


def test_every_table_of_the_evidence_can_be_made(monkeypatch, tmp_path):
    """Its options are those of `cgnl compare`, and its blocks fit the map that they get."""
    monkeypatch.syspath_prepend(STUDIES)
    sets = runpy.run_path(str(STUDIES / "evidence.py"))["SETS"]
    for name, chosen in sets.items():
        _, recipe, rest = take_recipe("compare", [chosen.recipe, "--data.root", str(tmp_path), *chosen.options])
        options = parse_fields(f"compare {chosen.recipe}", CompareOptions, recipe, [*rest, "--blocks", *chosen.blocks])
        recipe = dataclasses.replace(recipe, **parts_of(options))
        assert chosen.blocks[0] == "none", name
        shape = (112, 8, 8) if chosen.recipe == "image" else (256, 4, 3, 3)
        for label in chosen.blocks[1:]:
            with trusting("matrix_block"):
                own = with_block(recipe, label)
                block = task_of(own).blocks(own)(len(shape) - 1)(shape[0]).eval()
            assert block(torch.ones(1, *shape)).shape == (1, *shape)


def test_an_outfit_is_a_relation_of_its_two_pictures(tmp_path, monkeypatch):
    """Each half holds one picture, and either alone leaves the class open."""
    monkeypatch.syspath_prepend(STUDIES)
    outfits = runpy.run_path(str(STUDIES / "outfits.py"))
    labels = np.repeat(np.arange(10, dtype=np.uint8), 2)
    # each picture is its label's shade
    images = np.broadcast_to(20 * (labels[:, None, None] + 1), (20, 28, 28)).astype(np.uint8)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    read = [outfits["read_idx"](tmp_path / f"train-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1")]
    assert np.array_equal(read[0], images)
    assert np.array_equal(read[1], labels)
    outfits["draw"](*read, tmp_path / "train", 12, np.random.default_rng(0))
    seen = set()
    for label in range(3):
        for path in (tmp_path / "train" / f"class_{label}").iterdir():
            pixels = np.asarray(Image.open(path).convert("L"))
            left, right = (int(half.max()) // 20 - 1 for half in (pixels[:, :64], pixels[:, 64:]))
            garment, accessory = (left, right) if left in outfits["GARMENTS"] else (right, left)
            g, a = outfits["GARMENTS"].index(garment), outfits["ACCESSORIES"].index(accessory)
            assert (g + a) % 3 == label
            seen.add((label, g))
    assert len(seen) == 9
