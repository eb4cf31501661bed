"""The scripts of studies/ fit the package: each prints its help, and a fresh process finds its functions."""

import runpy
import sys
from pathlib import Path

import pytest

from cgnl.measure.memory import output_of_a_fresh_process

STUDIES = Path(__file__).parents[2] / "studies"
SCRIPTS = sorted(path for path in STUDIES.glob("*.py") if path.stem not in ("script", "conv3d_network"))
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
