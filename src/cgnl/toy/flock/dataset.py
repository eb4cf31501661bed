"""The drawn flock as files, in the layout of COCO."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from cgnl.data.scanning import count_workers
from cgnl.settings.checks import within
from cgnl.toy.flock.masks import segmentation
from cgnl.toy.flock.scene import FlockScene, draw_scene
from cgnl.toy.flock.species import catalogue
from cgnl.toy.folder import in_processes, replacing, tiled

# With gaps, as COCO's own: a label is not an id.
CATEGORY_IDS = (1, 3, 4, 7, 11, 18, 29, 47)
# Written last: a folder that has it is a whole set.
_SETTINGS_FILE = "toy_flock.json"
# So many masks of birds are written as plain run lengths that all forms are common.
_COUNTS_EVERY = 4
_SPLITS = ("train", "val")
_OVERLAYS = ((255, 64, 64), (64, 160, 255), (255, 220, 40), (200, 90, 255), (80, 230, 120), (255, 140, 30))


@dataclass(frozen=True)
class _Settings:
    num_species: int
    train_images: int
    test_images: int
    size: tuple[int, int]
    seed: int

    def __post_init__(self) -> None:
        for name in ("train_images", "test_images", "seed"):
            within(name, getattr(self, name), 0)
        if self.train_images + self.test_images == 0:
            raise ValueError("train_images (0) or test_images (0) must be at least 1")
        if len(self.size) != 2 or min(self.size) < 64:
            raise ValueError(f"size ({tuple(self.size)}) must be two numbers of at least 64, width and height")


def draw_flock(
    root: str | Path,
    *,
    num_species: int = 4,
    train_images: int = 200,
    test_images: int = 50,
    size: tuple[int, int] = (192, 144),
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Draw a set of scenes with several birds each and write it in the layout of COCO.

    A scene holds one to six birds of any of the 1 to 8 species that hide each other and stand behind leaves, and about
    every fifth a distant swarm as well, which is one annotation with ``iscrowd`` 1. A mask holds the pixels of which
    the bird makes up more than half. Masks are polygons along the borders of pixels, compressed run lengths where they
    have a hole, and for swarms and some birds run lengths as a list. Images (``size`` is width and height in pixels)
    are ``train`` and ``val``, their truth ``annotations/instances_train.json`` and ``instances_val.json``; the ids of
    the categories have gaps.

    Every scene is drawn from the seed and its image id alone: the same arguments give the same bytes, with any number
    of processes. ``workers`` and errors are those of :func:`cgnl.toy.birds.draw_birds`, as is what happens to an
    earlier set.
    """
    settings = _Settings(num_species, train_images, test_images, size, seed)
    catalogue(num_species)
    workers = count_workers(workers)
    # Odd ids train, even ids test: neither set depends on how large the other is.
    ids = {"train": range(1, 2 * train_images, 2), "val": range(2, 2 * test_images + 1, 2)}
    with replacing(Path(root), "flocks", _SETTINGS_FILE, {"annotations", *_SPLITS, _SETTINGS_FILE}) as folder:
        (folder / "annotations").mkdir()
        for split in _SPLITS:
            (folder / split).mkdir()
            annotations = in_processes(partial(_draw_item, folder / split, settings), ids[split], workers)
            truth = _truth(settings, ids[split], annotations)
            (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(truth) + "\n")
        (folder / _SETTINGS_FILE).write_text(json.dumps(asdict(settings), indent=2) + "\n")


def render(image_id: int, *, num_species: int = 4, size: tuple[int, int] = (192, 144), seed: int = 0) -> FlockScene:
    """Return one scene of a set, drawn in memory.

    >>> render(1, size=(96, 64)).image.shape
    (64, 96, 3)
    """
    return draw_scene(catalogue(num_species), size, np.random.default_rng([seed, image_id]))


def file_name(image_id: int) -> str:
    """Return the name of an image's file, as COCO has it.

    >>> file_name(42)
    '000000000042.jpg'
    """
    return f"{image_id:012d}.jpg"


def contact_sheet(root: str | Path, *, split: str = "val", images: int = 8, columns: int = 2) -> Image.Image:
    """Return a picture of a set: its first scenes, each beside a copy with the true boxes and masks over it.

    ``split`` is "train" or "val". The masks are read with faster-coco-eval (ImportError where it is missing).
    """
    root = Path(root)
    truth = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
    names = {category["id"]: category["name"] for category in truth["categories"]}
    pairs = []
    for image in truth["images"][:images]:
        with Image.open(root / split / image["file_name"]) as file:
            plain = file.convert("RGB")
        objects = [each for each in truth["annotations"] if each["image_id"] == image["id"]]
        pairs.append(tiled([plain, _with_truth(plain, objects, names)], 2, (0, 0)))
    return tiled(pairs, columns, (6, 6))


def _with_truth(image: Image.Image, objects: Sequence[dict[str, Any]], names: dict[int, str]) -> Image.Image:
    from cgnl.data.detection.masks import decode

    pixels = np.array(image, dtype=np.float32)
    masks = decode([each["segmentation"] for each in objects], *image.size).astype(bool)
    for number, mask in enumerate(masks):
        pixels[mask] = 0.45 * pixels[mask] + 0.55 * np.array(_overlay(number))
    marked = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(marked)
    for number, each in enumerate(objects):
        x, y, width, height = each["bbox"]
        draw.rectangle((x, y, x + width - 1, y + height - 1), outline=_overlay(number))
        caption = names[each["category_id"]] + (" (crowd)" if each["iscrowd"] else "")
        draw.text((x + 2, y), caption, fill="white", font_size=9, stroke_width=1, stroke_fill="black")
    return marked


def _overlay(number: int) -> tuple[int, int, int]:
    return _OVERLAYS[number % len(_OVERLAYS)]


def _draw_item(folder: Path, settings: _Settings, image_id: int) -> list[dict[str, Any]]:
    """Write one image; return its annotations."""
    scene = render(image_id, num_species=settings.num_species, size=settings.size, seed=settings.seed)
    Image.fromarray(scene.image).save(folder / file_name(image_id), quality=92, subsampling=0)
    annotations = []
    for number, each in enumerate(scene.objects):
        annotations.append(
            {
                "id": image_id * 100 + number,
                "image_id": image_id,
                "category_id": CATEGORY_IDS[each.species],
                "bbox": list(each.bounding_box),
                "area": int(each.mask.sum()),
                "iscrowd": int(each.crowd),
                "segmentation": segmentation(
                    each.mask, as_counts=each.crowd or (image_id // 2 + number) % _COUNTS_EVERY == 0
                ),
            }
        )
    return annotations


def _truth(settings: _Settings, ids: Sequence[int], annotations: Sequence[list[dict[str, Any]]]) -> dict[str, Any]:
    width, height = settings.size
    return {
        "info": {"description": "Drawn flock of birds", "version": "1.0"},
        "licenses": [],
        "images": [{"id": i, "file_name": file_name(i), "width": width, "height": height} for i in ids],
        "annotations": [annotation for scene in annotations for annotation in scene],
        "categories": [
            {"id": category_id, "name": kind.name, "supercategory": "bird"}
            for category_id, kind in zip(CATEGORY_IDS, catalogue(settings.num_species), strict=False)
        ],
    }
