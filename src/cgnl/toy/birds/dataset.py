"""The drawn birds as files, in the exact layout of CUB-200-2011."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw

from cgnl.data.scanning import count_workers
from cgnl.settings.checks import check_choice, within
from cgnl.toy.birds.scene import Scene, draw_scene
from cgnl.toy.birds.skeleton import PART_NAMES
from cgnl.toy.birds.species import Species, catalogue
from cgnl.toy.folder import in_processes, replacing, tiled, write_lines

# Written last: a folder that has it is a whole set.
_SETTINGS_FILE = "toy_birds.json"
Told = Literal["all", "part", "relation"]
_CONTENTS = {
    "images", "parts", "bounding_boxes.txt", "classes.txt", "image_class_labels.txt", "images.txt",
    "train_test_split.txt", _SETTINGS_FILE,
}  # fmt: skip


@dataclass(frozen=True)
class _Settings:
    num_species: int
    train_images: int
    test_images: int
    size: int
    seed: int
    told_by: Told

    def __post_init__(self) -> None:
        check_choice("told_by", self.told_by, get_args(Told))
        for name, least in (("train_images", 0), ("test_images", 0), ("size", 32), ("seed", 0)):
            within(name, getattr(self, name), least)
        if self.train_images + self.test_images == 0:
            raise ValueError("train_images (0) or test_images (0) must be at least 1")

    @property
    def species(self) -> list[Species]:
        found = catalogue(self.num_species)
        if self.told_by != "all":
            found = [species for species in found if (species.relation is not None) == (self.told_by == "relation")]
        if not found:
            raise ValueError(f"of {self.num_species} species, none differs from its sibling only in a {self.told_by}")
        return found


@dataclass(frozen=True)
class _Item:
    """One image of the set; ids, classes and numbers count from 1 as in CUB's files."""

    image_id: int
    class_id: int
    number: int
    is_train: bool
    path: str


@dataclass(frozen=True)
class _Annotation:
    bounding_box: tuple[int, int, int, int]
    parts: dict[str, tuple[float, float]]


def draw_birds(
    root: str | Path,
    *,
    num_species: int = 20,
    train_images: int = 40,
    test_images: int = 20,
    size: int = 160,
    seed: int = 0,
    told_by: Told = "all",
    workers: int | None = None,
) -> int:
    """Draw a set of bird images, write it in the layout of CUB-200-2011, and return its number of species.

    The species come in sibling groups of two or three that differ in one small part only (the mark around the eye, the
    number of wing bars, the beak, the colours of the legs, the stripe on the throat, the pattern of the belly), and in
    pairs that differ only in whether two distant parts have the same colour (crown and tail, throat and tail, beak and
    belly). A set of any size holds whole groups, of both kinds if it has 4 species or more (but not 5): 2 species are
    the eye pair, 3 the wing bars, 4 eye and crown/tail; 8 are eye, crown/tail, throat/tail and legs; 10 are eye,
    crown/tail, wing bars and beaks; 20 have everything; beyond, up to 200, the groups come again in other colours.
    Numbers of images are for each species. ``told_by`` keeps only the species that differ in one ``part``, or in the
    ``relation`` of two.

    Every image, square and of ``size`` pixels, is drawn from the seed, its class and its number alone: the same
    arguments give the same bytes, with any number of processes (``workers``, None for the usable cores). Bounding boxes
    and part locations are true; a part that the bird itself or a leaf hides is written as CUB does, ``0.0 0.0 0``. An
    earlier set is replaced once the new one is whole. Raises DataError if root is a file or a folder that holds
    anything else, and ValueError if a number is out of range.
    """
    settings = _Settings(num_species, train_images, test_images, size, seed, told_by)
    species = settings.species
    workers = count_workers(workers)
    items = _list_items(species, settings)
    with replacing(Path(root), "birds", _SETTINGS_FILE, _CONTENTS) as folder:
        for directory in sorted({Path(item.path).parent for item in items}):
            (folder / "images" / directory).mkdir(parents=True)
        annotations = in_processes(partial(_draw_item, folder, settings), items, workers)
        _write_lists(folder, species, items, annotations)
        (folder / _SETTINGS_FILE).write_text(json.dumps(asdict(settings), indent=2) + "\n")
    return len(species)


def render(species: Species, class_id: int, number: int, *, size: int = 160, seed: int = 0) -> Scene:
    """Return one image of a set, drawn in memory; class_id and number count from 1, as in file names."""
    return draw_scene(species, size, np.random.default_rng([seed, class_id, number]))


def contact_sheet(root: str | Path, *, images_per_species: int = 4, columns: int = 2, size: int = 112) -> Image.Image:
    """Return a picture of a set in CUB's layout: the first images (``size`` pixels) of each species, under its name."""
    root = Path(root)
    class_names = [line.split(maxsplit=1)[1] for line in (root / "classes.txt").read_text().splitlines()]
    paths: dict[str, list[str]] = {name: [] for name in class_names}
    for line in (root / "images.txt").read_text().splitlines():
        path = line.split(maxsplit=1)[1]
        paths[path.split("/")[0]].append(path)

    caption = 16
    rows = []
    for name in class_names:
        row = Image.new("RGB", (images_per_species * size, size + caption), "white")
        ImageDraw.Draw(row).text((2, 1), name.replace("_", " "), fill="black", font_size=12)
        for j, path in enumerate(paths[name][:images_per_species]):
            with Image.open(root / "images" / path) as image:
                row.paste(image.convert("RGB").resize((size, size)), (j * size, caption))
        rows.append(row)
    return tiled(rows, columns, (size // 8, 0))


def _list_items(species: list[Species], settings: _Settings) -> list[_Item]:
    items: list[_Item] = []
    for class_id, kind in enumerate(species, start=1):
        for number in range(1, settings.train_images + settings.test_images + 1):
            image_id = len(items) + 1
            path = f"{class_id:03d}.{kind.name}/{kind.name}_{number:04d}_{image_id:06d}.jpg"
            items.append(_Item(image_id, class_id, number, number <= settings.train_images, path))
    return items


def _draw_item(folder: Path, settings: _Settings, item: _Item) -> _Annotation:
    species = settings.species[item.class_id - 1]
    scene = render(species, item.class_id, item.number, size=settings.size, seed=settings.seed)
    Image.fromarray(scene.image).save(folder / "images" / item.path, quality=92, subsampling=0)
    return _Annotation(scene.bounding_box, dict(scene.parts))


def _write_lists(folder: Path, species: list[Species], items: list[_Item], annotations: list[_Annotation]) -> None:
    def part_lines() -> Iterator[str]:
        for item, annotation in zip(items, annotations, strict=True):
            for part_id, name in enumerate(PART_NAMES, start=1):
                x, y = annotation.parts.get(name, (0.0, 0.0))
                yield f"{item.image_id} {part_id} {x:.1f} {y:.1f} {int(name in annotation.parts)}"

    (folder / "parts").mkdir()
    write_lines(folder / "classes.txt", (f"{i} {i:03d}.{kind.name}" for i, kind in enumerate(species, start=1)))
    write_lines(folder / "images.txt", (f"{item.image_id} {item.path}" for item in items))
    write_lines(folder / "image_class_labels.txt", (f"{item.image_id} {item.class_id}" for item in items))
    write_lines(folder / "train_test_split.txt", (f"{item.image_id} {int(item.is_train)}" for item in items))
    boxes = (" ".join(f"{value:.1f}" for value in annotation.bounding_box) for annotation in annotations)
    write_lines(
        folder / "bounding_boxes.txt", (f"{item.image_id} {box}" for item, box in zip(items, boxes, strict=True))
    )
    write_lines(folder / "parts/parts.txt", (f"{i} {name}" for i, name in enumerate(PART_NAMES, start=1)))
    write_lines(folder / "parts/part_locs.txt", part_lines())
