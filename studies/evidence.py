"""When does a block help? Each table of docs/evidence.md is one of the sets below, and one command:

    python studies/evidence.py outfits --source /usr/share/datasets/fashion-mnist --lite0 lite0.pth --jobs 2

It draws the samples into a folder, runs `cgnl compare` there, and writes the record. The same command again continues a
run that was killed or that --minutes ended. --first-seed 100 repeats a table with seeds that no table has used.

Every set of images has the ImageNet features of EfficientNet-Lite0 (`studies/outfits.py --lite0` writes its weights),
frozen up to blocks.4.1 at 128 pixels: maps of 112 channels and 8 x 8 positions. The sets of actions first train a
C2D-ResNet on drawn videos. `solar-cells` reads the photographs of the package elpv-dataset: --source is the folder of
its labels.csv.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from cgnl.cli.demo.actions import actions as actions_of_demo
from cgnl.measure.record import write_result
from cgnl.tasks import train
from cgnl.toy.birds import Told, draw_birds
from outfits import draw as draw_outfits
from outfits import read_idx
from script import RESULTS

MAIN = (
    "none", "residual", "se", "gc", "nl", "cgnl:groups=8", "cgnl:groups=8,norm=group", "cgnl-correlation",
)  # fmt: skip
LITE0 = (
    "--network.arch timm:tf_efficientnet_lite0 --network.new-classifier --network.places blocks.4.1 --data.size 128 "
    "--data.resize 128 --freeze below-block"
).split()
TUNED = "--width 128 --rate 0.4 --tune 0.1 1 4".split()
# one question on outfits: what the table of outfits has chosen for CGNL
CHOSEN = "--width 128 --rate 0.04 --block-rate-factor 4 --epochs 40".split()
TAIL = "--head network --rate 0.05 --block-rate-factor 4 --epochs 12".split()
IN_TAIL = ("none", "nl", "cgnl:groups=8", "cgnl-correlation")
ACTIONS = "--network.new-classifier --data.test-clips 1".split()
TRAIN, TRAIN_TAIL, TEST = 1500, 5000, 1000


@dataclass(frozen=True)
class Set:
    """One table: how its samples are drawn, and what is compared on them."""

    draw: Callable[[Path, Path], None]
    blocks: tuple[str, ...]
    options: tuple[str, ...]
    seeds: int
    data: str
    recipe: str = "image"
    first_seed: int = 0

    def places(self, root: Path, lite0: Path | None) -> list[str]:
        """Return the options for samples and weights."""
        if self.recipe == "image":
            return ["--data.root", str(root), "--network.weights", str(lite0)]
        return ["--data.root", str(root / "actions"), "--network.weights", str(root / "base" / "last.ckpt")]


def outfits(train: int, root: Path, source: Path) -> None:
    """Draw outfits, see studies/outfits.py."""
    generator = np.random.default_rng(0)
    for split, name, count in (("train", "train", train), ("val", "t10k", TEST)):
        draw_outfits(*_fashion(source, name), root / split, count // 3, generator)


def fashion(root: Path, source: Path) -> None:
    """Write some pictures of Fashion-MNIST as they are: classes, not relations."""
    generator = np.random.default_rng(0)
    for split, name, count in (("train", "train", TRAIN), ("val", "t10k", TEST)):
        images, labels = _fashion(source, name)
        for label in range(10):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for number in generator.choice(np.flatnonzero(labels == label), count // 10, replace=False):
                Image.fromarray(images[number]).convert("RGB").save(folder / f"{number:05}.png")


def _fashion(source: Path, name: str) -> list[np.ndarray]:
    return [read_idx(source / f"{name}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1")]


def birds(told_by: Told, num_species: int, train: int, root: Path, source: Path) -> None:
    """Draw species that differ in one part, or in the relation of two."""
    draw_birds(root, told_by=told_by, train_images=train // num_species, test_images=TEST // num_species)


def solar_cells(root: Path, source: Path) -> None:
    """Copy the photographs into a folder for each of the four probabilities of a defect; a third are test images."""
    with (source / "labels.csv").open(encoding="utf-8") as file:
        rows = [line.split() for line in file]
    generator = np.random.default_rng(0)
    for label in sorted({row[1] for row in rows}):
        own = [row[0] for row in rows if row[1] == label]
        for place, number in enumerate(generator.permutation(len(own))):
            folder = root / ("val" if place < len(own) // 3 else "train") / f"probability_{float(label):.2f}"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / own[number], folder)


def actions(arch: str, taught: Literal["events", "classes"], root: Path, source: Path) -> None:
    """Draw the videos of `cgnl demo --video`, and train a plain network on them: to name events, or the classes."""
    demo = actions_of_demo()
    demo.draw(root, 0)
    base: Any = demo.base(root)
    if taught == "classes":
        drawn = demo.recipe.data
        base = replace(base, data=replace(drawn, root=root / "actions"))
    base = replace(base, network=replace(base.network, arch=arch), trainer=replace(base.trainer, seed=0, devices=1))
    train(base, root / "base", name="base")


def _tuned(draw: Callable[[Path, Path], None], data: str, epochs: int, seeds: int, blocks: Sequence[str] = MAIN) -> Set:
    return Set(draw, tuple(blocks), (*LITE0, *TUNED, "--epochs", str(epochs)), seeds, data)


def _on_outfits(*blocks: str) -> Set:
    return Set(partial(outfits, TRAIN), ("none", *blocks), (*LITE0, *CHOSEN), 10, "outfits", first_seed=10)


def _on_actions(taught: Literal["events", "classes"]) -> Set:
    options = (*ACTIONS, "--freeze", "below-block", *TUNED, "--epochs", "20")
    return Set(
        partial(actions, "resnet18", taught), MAIN, options, 8, f"actions-{taught}", recipe="actions-resnet18-cgnl"
    )


SETS = {
    "outfits": _tuned(partial(outfits, TRAIN), "outfits", 40, 10),
    "fashion": _tuned(fashion, "fashion", 20, 8),
    "bird-parts": _tuned(partial(birds, "part", 14, TRAIN), "bird-parts", 20, 8),
    "bird-relations": _tuned(partial(birds, "relation", 6, TRAIN), "bird-relations", 20, 8),
    # 64 inner channels, which all these numbers of groups divide; conv_z stays the same
    "outfits-groups": _on_outfits(
        *(f"cgnl:inner_channels=64,z_groups=8,groups={groups}" for groups in (1, 4, 8, 16, 32, "channels"))
    ),
    # exact generalized forms take (N C' / G)^2 G numbers a sample: with 16 inner channels and 64 positions, 131,072
    "outfits-kernels": _on_outfits(
        *(
            f"{kind}:inner_channels=16,groups=8,kernel={kernel}"
            for kind, kernel in (
                ("cgnl", "dot"),
                ("cgnl", "embedded_gaussian"),
                ("cgnl", "rbf"),
                ("cgnl", "rbf,gamma=1"),
                ("gnl", "embedded_gaussian"),
                ("gnl", "rbf,gamma=1"),
            )
        )
    ),
    "outfits-widths": _on_outfits(*(f"cgnl:groups=4,channel_reduction={ratio}" for ratio in (1, 2, 4))),
    "outfits-matrix": _on_outfits(
        "cgnl:groups=8", "cgnl-correlation", "matrix_block.CovarianceMatrix2d", "matrix_block.CorrelationMatrix2d"
    ),
    "outfits-tail": Set(partial(outfits, TRAIN_TAIL), IN_TAIL, (*LITE0, *TAIL), 5, "outfits-5000"),
    "bird-relations-tail": Set(
        partial(birds, "relation", 6, TRAIN_TAIL), IN_TAIL, (*LITE0, *TAIL), 5, "bird-relations-5000"
    ),
    "actions-events": _on_actions("events"),
    "actions-classes": _on_actions("classes"),
    # whole networks: the places of five blocks need a ResNet-34
    "actions-five": Set(
        partial(actions, "resnet34", "events"),
        ("none", "cgnl", "cgnl:num_blocks=5"),
        (*ACTIONS, "--network.arch", "resnet34", "--epochs", "8"),
        5,
        "actions-resnet34",
        recipe="actions-resnet18-cgnl",
    ),
    "solar-cells": _tuned(solar_cells, "solar-cells", 30, 8),
}


def record(name: str, folder: Path, out: Path, seed: int, command: str) -> None:
    """Write the runs of a folder as a record, without their curves, and without the folders' own paths."""
    protocol = json.loads((folder / "protocol.json").read_text(encoding="utf-8"))
    recipe = protocol["recipe"]
    for part, key in (("data", "root"), ("network", "weights")):
        recipe[part][key] = Path(recipe[part][key]).name
    del protocol["command"]
    lines = (folder / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{key: value for key, value in json.loads(line).items() if key != "curve"} for line in lines]
    write_result(out, seed=seed, settings={"set": name, **protocol}, rows=rows, command=command)


def main() -> int:
    """Run the command line; return 3 if runs are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--source", type=Path, help="folder of Fashion-MNIST's four files, or of elpv-dataset's labels")
    parser.add_argument("--lite0", type=Path, help="weights of EfficientNet-Lite0")
    parser.add_argument("--work", type=Path, default=Path("evidence"), help="folder for samples and runs")
    parser.add_argument("--first-seed", type=int, help="first seed; by default the table's")
    parser.add_argument("--seeds", type=int, help="seeds; by default the table's")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--out", type=Path, help="record; by default results/evidence/SET.json")
    arguments = parser.parse_args()
    chosen = SETS[arguments.set]
    root = arguments.work / chosen.data
    if not root.exists():
        drawn = root.with_name(f"{root.name}.part")
        shutil.rmtree(drawn, ignore_errors=True)
        chosen.draw(drawn, arguments.source)
        drawn.rename(root)
    seeds = arguments.seeds or chosen.seeds
    first_seed = chosen.first_seed if arguments.first_seed is None else arguments.first_seed
    folder = arguments.work / f"{arguments.set}-from-{first_seed}"
    command = [
        "compare", chosen.recipe, *chosen.places(root, arguments.lite0), *chosen.options, "--blocks", *chosen.blocks,
        "--seeds", str(seeds), "--first-seed", str(first_seed),
        "--out", str(folder), "--jobs", str(arguments.jobs),
    ]  # fmt: skip
    if arguments.minutes:
        command += ["--minutes", str(arguments.minutes)]
    paths = filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))  # for matrix_block
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    code = subprocess.call([sys.executable, "-m", "cgnl", *command], env=environment)
    if code in (0, 3):
        out = arguments.out or RESULTS / "evidence" / f"{arguments.set}.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        record(arguments.set, folder, out, first_seed, f"python studies/evidence.py {arguments.set}")
    return code


if __name__ == "__main__":
    sys.exit(main())
