"""The video demo's drawn actions."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from cgnl.cli.demo import Subject, read_predictions, run_demo
from cgnl.data.videos import probe, read_frames
from cgnl.explain import report
from cgnl.tasks import load_trained
from cgnl.toy.actions import Play, catalogue, contact_strip, draw_actions, play_of
from cgnl.training.evaluation import wilson_interval

_NUM_CLASSES = 4


def run(out: Path, *, seed: int = 0, smallest: bool = False) -> Path:
    """Run the demo; arguments as of :func:`cgnl.cli.demo.run_demo`."""
    return run_demo(actions(smallest=smallest), out, seed=seed, smallest=smallest)


def actions(*, smallest: bool = False) -> Subject:
    """Return the drawn actions: four classes, which are two pairs.

    The base learns to name the two events of a video, as a network pretrained on images brings features of what there
    is to see; the stages that make those features stay as they are afterwards. Classes alone do not teach them: within
    a pair nothing but the product of two events does, and it takes features of both.
    """
    groups, clips = (3, 2) if smallest else (36, 4)
    num_plays = 2 * _NUM_CLASSES
    return Subject(
        title="A CGNL block among drawn actions",
        folder="actions",
        plain="actions-resnet18",
        cgnl="actions-resnet18-cgnl",
        network="C2D-ResNet-18",
        data={"batch_size": 4} if smallest else {},
        base=f"it learns which of {num_plays} combinations of a body event and a ball event a video shows",
        base_name=f"base (names the events, {num_plays} combinations)",
        base_data=_plays,
        start=_with_new_classifier,
        # up to the residual block that the CGNL block follows
        freeze=(
            *("conv1", "bn1", "layer1", "layer2"),
            *(f"layer3.0.{name}" for name in ("conv1", "bn1", "conv2", "bn2", "downsample")),
        ),
        base_epochs=1 if smallest else 10,
        fork_epochs=1 if smallest else 8,
        fork_lr=0.5,
        drawing=f"{_NUM_CLASSES} classes of actions, {groups} groups of {clips} videos each",
        draw=partial(_draw, groups, clips),
        about=(
            "In each video the body does one thing, and a second later a ball does one. Classes come in pairs with "
            "the same events: they differ only in which of them go together, so that no single frame, and no sum over "
            "frames, tells the two apart. All stages up to the place of the block are the base's in both networks."
        ),
        class_noun="classes",
        noun="videos",
        sheet=_sheet,
        thumbnail=_strip,
        more=_pairs,
    )


def _draw(groups: int, clips: int, root: Path, seed: int) -> None:
    draw_actions(root, num_classes=_NUM_CLASSES, groups=groups, clips_per_group=clips, size=(128, 96), seed=seed)


def _plays(root: Path) -> dict[str, Any]:
    """Write lists that label each video with its two events, and return the data settings that read them."""
    names = [action.name for action in catalogue(_NUM_CLASSES)]
    plays = [play for action in catalogue(_NUM_CLASSES) for play in action.plays]
    lists = {}
    for split in ("train", "test"):
        paths = [line.split()[0] for line in (root / f"{split}list01.txt").read_text().splitlines()]
        lines = [f"{path} {plays.index(_play(path, names))}\n" for path in paths]
        file = root / f"{split}_plays.txt"
        file.write_text("".join(lines))
        lists[f"{split}_list"] = file
    return {"format": "list", "num_classes": len(plays), **lists}


def _play(path: str, names: list[str]) -> Play:
    name, group, clip = Path(path).stem.removeprefix("v_").split("_")
    return play_of(names.index(name) + 1, int(group[1:]), int(clip[1:]))


def _with_new_classifier(run: Path) -> Path:
    """Return the base's weights with a classifier for the classes, the same for both continuations."""
    trained = load_trained(run / "last.ckpt")
    torch.manual_seed(trained.recipe.trainer.seed)
    state = trained.network.state_dict()
    classifier = nn.Linear(state["fc.weight"].shape[1], _NUM_CLASSES)
    state |= {"fc.weight": classifier.weight.detach(), "fc.bias": classifier.bias.detach()}
    path = run / "start.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def _sheet(root: Path) -> tuple[Image.Image, str]:
    return contact_strip(root), "Two videos of each class, frames from left to right; pairs stand side by side."


def _strip(path: Path, count: int = 6) -> Image.Image:
    """Return frames of a video in rows of three."""
    numbers = (np.arange(count) + 0.5) * probe(path).frames / count
    frames, _ = read_frames(path, numbers.astype(int).tolist())
    rows = [np.concatenate(list(frames[begin : begin + 3]), axis=1) for begin in range(0, count, 3)]
    return Image.fromarray(np.concatenate(rows))


def _pairs(runs: dict[str, Path]) -> list[tuple[str, str]]:
    """Return how often each network finds the pair, and within the right pair the class."""
    pairs = {action.name: action.pair for action in catalogue(_NUM_CLASSES)}
    rows = []
    for name, run in runs.items():
        predictions = read_predictions(run)
        in_pair = [row for row in predictions if pairs[row["label"]] == pairs[row["class1"]]]
        right = sum(row["label"] == row["class1"] for row in in_pair)
        within = f"{100 * right / len(in_pair):.1f} %" if in_pair else ""
        interval = "{:.1f} to {:.1f} %".format(*wilson_interval(right, len(in_pair)))
        rows.append((name, f"{100 * len(in_pair) / len(predictions):.1f} %", within, interval))
    header = ("network", "right pair", "right class within it", "95 % interval")
    about = (
        "Within a pair, chance is 50 %. To do better, a network must relate the action of the body to that of the ball."
    )
    return [("Pairs", report.table(header, rows, numbers=(1, 2, 3)) + report.paragraph(about))]
