"""The video demo's drawn actions."""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from cgnl.cli.demo import Subject, read_predictions
from cgnl.data.toy.actions import catalogue, contact_strip, draw_actions
from cgnl.data.videos import probe, read_frames
from cgnl.explain import report
from cgnl.training.evaluation import wilson_interval


def actions(*, smallest: bool = False) -> Subject:
    """Return the drawn actions, ten classes or in the smallest form four."""
    num_classes, groups, clips = (4, 3, 2) if smallest else (10, 14, 4)
    return Subject(
        title="A CGNL block among drawn actions",
        folder="actions",
        plain="actions-resnet18",
        cgnl="actions-resnet18-cgnl",
        network="C2D-ResNet-18",
        data={"size": 48, "resize": 54, "batch_size": 4} if smallest else {},
        base_epochs=1 if smallest else 10,
        fork_epochs=1 if smallest else 8,
        fork_lr=0.4,
        drawing=f"{num_classes} classes of actions, {groups} groups of {clips} videos each",
        draw=partial(_draw, num_classes, groups, clips),
        about=(
            "In each video the body does one thing, and a second later a ball does one. Classes come in pairs with "
            "the same events: they differ only in which of them go together, so that no single frame, and no sum over "
            "frames, tells the two apart."
        ),
        class_noun="classes",
        noun="videos",
        sheet=_sheet,
        thumbnail=_strip,
        more=partial(_pairs, num_classes),
    )


def _draw(num_classes: int, groups: int, clips: int, root: Path, seed: int) -> None:
    size = (128, 96)
    draw_actions(root, num_classes=num_classes, groups=groups, clips_per_group=clips, size=size, seed=seed)


def _sheet(root: Path) -> tuple[Image.Image, str]:
    return contact_strip(root), "Two videos of each class, frames from left to right; pairs stand side by side."


def _strip(path: Path, count: int = 6) -> Image.Image:
    """Return frames of a video in rows of three."""
    numbers = (np.arange(count) + 0.5) * probe(path).frames / count
    frames, _ = read_frames(path, numbers.astype(int).tolist())
    rows = [np.concatenate(list(frames[begin : begin + 3]), axis=1) for begin in range(0, count, 3)]
    return Image.fromarray(np.concatenate(rows))


def _pairs(num_classes: int, runs: dict[str, Path]) -> list[tuple[str, str]]:
    """Return how often each network finds the pair, and within the right pair the class."""
    pairs = {action.name: action.pair for action in catalogue(num_classes)}
    rows = []
    for name, run in runs.items():
        predictions = read_predictions(run)
        in_pair = [row for row in predictions if pairs[row["label"]] == pairs[row["class1"]]]
        right = sum(row["label"] == row["class1"] for row in in_pair)
        within = 100 * right / len(in_pair) if in_pair else float("nan")
        rows.append(
            (
                name,
                f"{100 * len(in_pair) / len(predictions):.1f} %",
                f"{within:.1f} %",
                "{:.1f} to {:.1f} %".format(*wilson_interval(right, len(in_pair))),
            )
        )
    header = ("network", "right pair", "right class within it", "95 % interval")
    about = "Within a pair chance is 50 %. What the body does and what the ball does must be related to be better."
    return [("Pairs", report.table(header, rows, numbers=(1, 2, 3)) + report.paragraph(about))]
