"""Close-ups of single parts: a base that learns to name them has seen no two parts together."""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from cgnl.data.scanning import count_workers
from cgnl.toy.birds.dataset import render
from cgnl.toy.birds.scene import Scene
from cgnl.toy.birds.species import Species, catalogue
from cgnl.toy.folder import in_processes

_SIDES = ("", "left ", "right ")


def draw_parts(
    root: Path, *, train_images: int, test_images: int, num_species: int = 20, size: int = 112, side: int = 48,
    seed: int = 0, workers: int | None = None,
) -> None:  # fmt: skip
    """Draw birds, and write squares around the parts that tell species apart into ``train`` and ``val``.

    A class is a part with its look: the belly of one species, or a crown of one of the two colours that both species of
    a pair have. A part that is hidden is skipped.

    Args:
        root: New folder with a folder of PNG files for each class in ``train`` and ``val``.
        train_images: Birds of each species in ``train``.
        test_images: Birds of each species in ``val``.
        num_species: Species, see :func:`cgnl.toy.birds.species.catalogue`.
        size: Height and width of a drawn bird's image (pixels).
        side: Height and width of a square (pixels).
        seed: Random state of the whole set.
        workers: Processes; as many as there are usable cores if None.
    """
    jobs = [
        (split, species, class_id, number)
        for class_id, species in enumerate(catalogue(num_species), start=1)
        for split, numbers in (
            ("train", range(1, train_images + 1)),
            ("val", range(train_images + 1, train_images + test_images + 1)),
        )
        for number in numbers
    ]
    for split, species, _, _ in jobs:
        for name in _names(species):
            (root / split / name).mkdir(parents=True, exist_ok=True)
    in_processes(partial(_write, root, size, side, seed), jobs, count_workers(workers))


def _names(species: Species) -> list[str]:
    """Return the classes of the squares around a species' parts."""
    if species.relation is None:
        return [species.name]
    noun = species.name.rpartition("_")[2]
    return [f"{noun}_{part}_{k}" for part in species.part.split("/") for k in (1, 2)]


def _write(root: Path, size: int, side: int, seed: int, job: tuple[str, Species, int, int]) -> None:
    split, species, class_id, number = job
    scene = render(species, class_id, number, size=size, seed=seed)
    regions = species.part.replace(" bars", "").split("/")
    for region in regions:
        sides = [f"{side_of}{region}" for side_of in _SIDES]
        at = next((scene.parts[name] for name in sides if name in scene.parts), None)
        if at is None:
            continue
        name = species.name
        if species.relation is not None:
            colour = next(scene.look.colours[name] for name in sides if name in scene.look.colours)
            number_of = 1 + species.relation.palette.index(colour)
            name = f"{species.name.rpartition('_')[2]}_{region}_{number_of}"
        path = root / split / name / f"{class_id:03}_{number:05}.png"
        Image.fromarray(_square(scene, at, side)).save(path)


def _square(scene: Scene, at: tuple[float, float], side: int) -> np.ndarray:
    """Return the square around a point, uint8 [side, side, 3]; one at the border is moved inside."""
    left, top = (int(min(max(round(value) - side // 2, 0), scene.image.shape[0] - side)) for value in at)
    return scene.image[top : top + side, left : left + side]
