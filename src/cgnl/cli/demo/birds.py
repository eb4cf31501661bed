"""The demo's drawn birds."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from cgnl.cli.demo import Question, Subject, run_demo
from cgnl.recipes import RECIPES
from cgnl.toy.birds import contact_sheet, draw_birds, draw_parts

_SIZE, _SIDE = 94, 40


def run(out: Path, *, seed: int = 0, smallest: bool = False) -> Path:
    """Run the demo; arguments as of :func:`cgnl.cli.demo.run_demo`."""
    return run_demo(birds(smallest=smallest), out, seed=seed, smallest=smallest)


def birds(*, smallest: bool = False) -> Subject:
    """Return the drawn birds: species that differ in the relation of two parts, and species that differ in one.

    The base learns to name single parts in close-ups, as a network pretrained on photographs brings features of what
    there is to see. It has seen no two parts together.
    """
    epochs, batch = (1, 4) if smallest else (25, 32)
    cgnl: Any = RECIPES["birds-resnet18-cgnl"].make()
    return Subject(
        title="CGNL blocks on drawn birds",
        drawing="birds, and close-ups of their parts",
        draw=partial(_draw, smallest),
        folders=("close-ups", "relations", "parts"),
        base=partial(_base, smallest, batch),
        base_learns="a ResNet-18, which learns from scratch to name single parts of birds in close-ups",
        recipe=replace(cgnl, data=replace(cgnl.data, size=80, resize=92, batch_size=batch)),
        questions=(
            Question(
                "relations",
                "species that differ only in whether two distant parts have the same colour",
                seeds=1 if smallest else 3,
                epochs=epochs,
            ),
            Question("parts", "species that differ in one part", seeds=1, epochs=epochs),
        ),
        rate=0.4,
        about="Where species differ in the relation of two parts, no single part tells them apart, only both together.",
        sheet=_sheet,
    )


def _base(smallest: bool, batch: int, out: Path) -> Any:
    plain: Any = RECIPES["birds-resnet18"].make()
    data = {"format": "folders", "size": _SIDE, "resize": _SIDE, "crop_area": (0.6, 1.0), "batch_size": batch}
    return replace(
        plain,
        data=replace(plain.data, root=out / "close-ups", **data),
        trainer=replace(plain.trainer, max_epochs=1 if smallest else 5, test_every_n_epochs=5),
    )


def _draw(smallest: bool, out: Path, seed: int) -> None:
    """Draw close-ups of other birds than those that are compared, and the two sets."""
    sets: dict[Any, tuple[int, int]] = {"close-ups": (8, 2), "relation": (6, 4), "part": (6, 4)}
    if not smallest:
        sets = {"close-ups": (50, 10), "relation": (200, 80), "part": (40, 20)}
    for number, (name, (train, test)) in enumerate(sets.items()):
        options: dict[str, Any] = {
            "num_species": 4 if smallest else 20, "train_images": train, "test_images": test, "size": _SIZE,
            "seed": 3 * seed + number,
        }  # fmt: skip
        if name == "close-ups":
            draw_parts(out / name, side=_SIDE, **options)
        else:
            draw_birds(out / f"{name}s", told_by=name, **options)


def _sheet(root: Path) -> tuple[Image.Image, str]:
    return contact_sheet(root), "Some training images of each species."
