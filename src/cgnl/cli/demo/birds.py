"""The demo's drawn birds."""

from functools import partial
from pathlib import Path

from PIL import Image

from cgnl.cli.demo import Subject, run_demo
from cgnl.data.decoding import open_image
from cgnl.toy.birds import contact_sheet, draw_birds


def run(out: Path, *, seed: int = 0, smallest: bool = False) -> Path:
    """Run the demo; arguments as of :func:`cgnl.cli.demo.run_demo`."""
    return run_demo(birds(smallest=smallest), out, seed=seed, smallest=smallest)


def birds(*, smallest: bool = False) -> Subject:
    """Return the drawn birds, ten species or in the smallest form four."""
    species, train_images, test_images = (4, 6, 4) if smallest else (10, 60, 40)
    size = 64 if smallest else 96
    return Subject(
        title="A CGNL block among drawn birds",
        folder="birds",
        plain="birds-resnet18",
        cgnl="birds-resnet18-cgnl",
        network="ResNet-18",
        data={"size": size, "resize": round(size * 128 / 112), "batch_size": 8 if smallest else 32},
        base="it learns the species",
        base_epochs=1 if smallest else 12,
        fork_epochs=1 if smallest else 8,
        fork_lr=0.5,
        drawing=f"{species} species of birds, {train_images} images each to train and {test_images} to test",
        draw=partial(_draw, species, train_images, test_images),
        about=("Species come in groups that differ in one small part, or only in the relation of two distant parts."),
        class_noun="species",
        noun="images",
        sheet=_sheet,
        thumbnail=open_image,
    )


def _draw(num_species: int, train_images: int, test_images: int, root: Path, seed: int) -> None:
    draw_birds(root, num_species=num_species, train_images=train_images, test_images=test_images, seed=seed)


def _sheet(root: Path) -> tuple[Image.Image, str]:
    return contact_sheet(root), "Some training images of each species."
