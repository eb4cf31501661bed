"""The annotations of a COCO json one by one: which can be used, and why the others cannot."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cgnl.data.detection.masks import area, why_bad_mask
from cgnl.data.detection.samples import BadAnnotation

# In float32 at 1000 pixels a box of less than 1e-4 pixels has none, and torchvision's networks refuse such boxes.
_LEAST_SIDE = 0.01


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image as a json describes it: file name, width and height in pixels, and whether the file can be used."""

    name: str
    width: int
    height: int
    exists: bool


def is_id(value: Any) -> bool:
    """Tell whether a value of a json is a whole number that tensors can hold."""
    return type(value) is int and -(2**63) <= value < 2**63


def clipped_box(bbox: Sequence[float], width: int, height: int) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom (pixels) of the part of a box (x, y, width, height) that lies in the image.

    Of a box outside, right or bottom are not beyond left or top.

    >>> clipped_box([-5, 2, 10, 3], 100, 4)
    (0, 2, 5, 4)
    """
    x, y, w, h = bbox
    return max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)


def sort_annotations(
    rows: Sequence[Any], images: Mapping[int, ImageEntry], category_ids: Collection[int]
) -> tuple[dict[int, list[dict[str, Any]]], list[BadAnnotation]]:
    """Return the usable rows of the json's ``annotations`` by their image's id, and the others.

    Each has the fields that :meth:`cgnl.data.detection.samples.DetectionList.objects` names.
    """
    used: dict[int, list[dict[str, Any]]] = {}
    bad = []
    known: set[int] = set()
    for number, row in enumerate(rows, 1):
        fields: dict[str, Any] = row if isinstance(row, dict) else {}
        id: Any = fields.get("id")
        image_id: Any = fields.get("image_id")
        image = images.get(image_id) if is_id(image_id) else None
        if not is_id(id):
            reason: str | None = f"has the id {id!r:.80}, expected a whole number"
            id = f"number {number} of the list"
        elif id in known:
            reason = "has the same id as an earlier annotation"
        else:
            known.add(id)
            reason = _why_bad(fields, image, category_ids)
        if reason is not None or image is None:
            name = f"image id {image_id!r:.80}" if image is None else image.name
            bad.append(BadAnnotation(id, name, reason or ""))
            continue
        size = image.width, image.height
        used.setdefault(image_id, []).append(
            {
                "id": id,
                "image_id": image_id,
                "category_id": fields["category_id"],
                "bbox": fields["bbox"],
                "area": fields["area"] if "area" in fields else area(fields["segmentation"], *size),
                "iscrowd": int(fields.get("iscrowd", 0)),
                "segmentation": fields["segmentation"],
            }
        )
    return used, bad


def _why_bad(fields: Mapping[str, Any], image: ImageEntry | None, category_ids: Collection[int]) -> str | None:
    if image is None:
        return "belongs to an image that the file does not name"
    if not image.exists:
        return "belongs to an image that is missing"
    category = fields.get("category_id")
    if not is_id(category) or category not in category_ids:
        return f"has the unknown category {category!r:.80}"
    bad_box = _why_bad_box(fields.get("bbox"), image)
    if bad_box is not None:
        return bad_box
    if fields.get("iscrowd", 0) not in (0, 1):
        return f"has the iscrowd {fields['iscrowd']!r:.80}, expected 0 or 1"
    if "area" in fields and not (_finite(fields["area"]) and fields["area"] >= 0):
        return f"has the area {fields['area']!r:.80}, expected a number from 0"
    return why_bad_mask(fields.get("segmentation"), image.width, image.height)


def _why_bad_box(bbox: Any, image: ImageEntry) -> str | None:
    if bbox is None or bbox == []:
        return "has no box"
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_finite, bbox)):
        return f"has the box {bbox!r:.80}, expected 4 finite numbers: x, y, width, height"
    if min(bbox[2:]) < _LEAST_SIDE:
        return f"has a box of {bbox[2]:g} x {bbox[3]:g} pixels, which has no area"
    left, top, right, bottom = clipped_box(bbox, image.width, image.height)
    if right <= left or bottom <= top:
        return f"has the box {bbox!r:.80} outside the image of {image.width} x {image.height} pixels"
    if min(right - left, bottom - top) < _LEAST_SIDE:
        return "has a box with no area inside the image"
    return None


def _finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False
