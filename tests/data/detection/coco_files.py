"""Small data sets in COCO's form for the tests of this folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 30, 20
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}]


def make_image(path: Path, width: int = WIDTH, height: int = HEIGHT, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def image_row(id: int, name: str, width: int = WIDTH, height: int = HEIGHT) -> dict[str, Any]:
    return {"id": id, "file_name": name, "width": width, "height": height}


def annotation(id: int, image_id: int = 1, box: tuple[float, ...] = (2, 3, 10, 8), **changes: Any) -> dict[str, Any]:
    """A rectangle whose mask is its box; a change to None takes the field away."""
    x, y, w, h = box
    row = {
        "id": id,
        "image_id": image_id,
        "category_id": 18,
        "bbox": list(box),
        "area": w * h,
        "iscrowd": 0,
        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        **changes,
    }
    return {name: value for name, value in row.items() if value is not None}


def write_json(
    path: Path, images: list[Any], annotations: list[Any], categories: list[Any] | None = None, **others: Any
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    categories = CATEGORIES if categories is None else categories
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories, **others}))
    return path


def make_coco(root: Path, annotations: list[Any], split: str = "train2017", images: int = 1) -> Path:
    """A folder in COCO's layout with images ``0001.png``, ``0002.png`` and so on, which have the ids 1, 2, ..."""
    rows = [image_row(id, make_image(root / split / f"{id:04d}.png").name) for id in range(1, images + 1)]
    write_json(root / "annotations" / f"instances_{split}.json", rows, annotations)
    return root
