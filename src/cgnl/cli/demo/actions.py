"""The video demo's drawn actions."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from cgnl.cli.demo import Question, Subject, run_demo
from cgnl.recipes import RECIPES
from cgnl.toy.actions import Play, catalogue, contact_strip, draw_actions, play_of

_NUM_CLASSES = 4


def run(out: Path, *, seed: int = 0, smallest: bool = False) -> Path:
    """Run the demo; arguments as of :func:`cgnl.cli.demo.run_demo`."""
    return run_demo(actions(smallest=smallest), out, seed=seed, smallest=smallest)


def actions(*, smallest: bool = False) -> Subject:
    """Return the drawn actions: four classes, which are two pairs.

    The base learns to name the two events of a video, as a network pretrained on images brings features of what there
    is to see. Classes alone do not teach them: within a pair nothing but the product of two events does.
    """
    groups, clips = (3, 2) if smallest else (36, 4)
    cgnl: Any = RECIPES["actions-resnet18-cgnl"].make()
    data = replace(cgnl.data, test_clips=1, **({"batch_size": 4} if smallest else {}))
    return Subject(
        title="CGNL blocks on drawn actions",
        drawing=f"{_NUM_CLASSES} classes of actions, {groups} groups of {clips} videos each",
        draw=partial(_draw, groups, clips),
        folders=("actions",),
        base=partial(_base, smallest),
        base_learns=(
            "a C2D-ResNet-18, which learns from scratch which of "
            f"{2 * _NUM_CLASSES} combinations of a body event and a ball event a video shows"
        ),
        recipe=replace(cgnl, data=data),
        questions=(
            Question(
                "actions",
                "classes that differ only in which two events go together",
                seeds=1 if smallest else 3,
                epochs=1 if smallest else 30,
            ),
        ),
        rate=0.4,
        about=(
            "In each video the body does one thing, and a second later a ball does one. Classes come in pairs with "
            "the same events: they differ only in which of them go together, so that no single frame, and no sum over "
            "frames, tells the two apart."
        ),
        sheet=_sheet,
    )


def _base(smallest: bool, out: Path) -> Any:
    plain: Any = RECIPES["actions-resnet18"].make()
    root = out / "actions"
    data = replace(plain.data, root=root, **_plays(root), **({"batch_size": 4} if smallest else {}))
    trainer = replace(plain.trainer, max_epochs=1 if smallest else 10, test_every_n_epochs=2)
    return replace(plain, data=data, trainer=trainer)


def _draw(groups: int, clips: int, out: Path, seed: int) -> None:
    draw_actions(
        out / "actions", num_classes=_NUM_CLASSES, groups=groups, clips_per_group=clips, size=(128, 96), seed=seed
    )


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


def _sheet(root: Path) -> tuple[Image.Image, str]:
    return contact_strip(root), "Two videos of each class, frames from left to right; pairs stand side by side."
