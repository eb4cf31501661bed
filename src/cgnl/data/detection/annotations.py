"""The annotations of a COCO json one by one: which can be used, and why the others cannot."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any

from cgnl.data.detection.masks import all_finite, area, usable_mask
from cgnl.data.detection.samples import BadAnnotation, Place, Rows, whole

# In float32 at 1000 pixels a box of less than 1e-4 pixels has none, and torchvision's networks refuse such boxes.
_LEAST_SIDE = 0.01


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image as a json describes it: file name, width and height in pixels, and whether the file can be used."""

    name: str
    width: int
    height: int
    exists: bool


def clipped_box(bbox: Sequence[float], width: int, height: int) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom (pixels) of the part of a box (x, y, width, height) that lies in the image.

    Of a box outside, right or bottom are not beyond left or top.

    >>> clipped_box([-5, 2, 10, 3], 100, 4)
    (0, 2, 5, 4)
    """
    x, y, w, h = bbox
    return max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)


@dataclass(frozen=True, slots=True)
class SortedAnnotations:
    """The annotations of a json.

    Attributes:
        used: Places of the rows that can be used, by the id of their image.
        bad: The others.
        partial: Those of ``used`` that lack some of their polygons.
        num_crowds: Number of used crowds by the id of their image.
    """

    used: dict[int, list[Place]] = field(default_factory=dict)
    bad: list[BadAnnotation] = field(default_factory=list)
    partial: list[BadAnnotation] = field(default_factory=list)
    num_crowds: Counter[int] = field(default_factory=Counter)


def sort_annotations(
    listed: Sequence[Any], rows: Rows, images: Mapping[int, ImageEntry], category_ids: Collection[int]
) -> SortedAnnotations:
    """Sort the json's ``annotations``, listed by their places in ``rows`` or as they are.

    A used row has the fields that :meth:`cgnl.data.detection.samples.DetectionList.objects` names; where the json has
    others, a new row is added.
    """
    found = SortedAnnotations()
    known: set[int] = set()
    for number, place in enumerate(listed, 1):
        row = rows[place] if isinstance(place, Place) else place
        fields: dict[str, Any] = row if isinstance(row, dict) else {}
        given: Any = fields.get("id")
        id, image_id = whole(given), whole(fields.get("image_id"))
        image = None if image_id is None else images.get(image_id)
        segmentation, lost = None, None
        if id is None:
            reason: str | None = f"has the id {given!r:.80}, expected a whole number"
        elif id in known:
            reason = "has the same id as an earlier annotation"
        else:
            known.add(id)
            reason = _why_bad(fields, image, category_ids)
            if reason is None and image is not None:
                segmentation, lost = usable_mask(fields.get("segmentation"), image.width, image.height)
                reason = lost if segmentation is None else None
        shown = f"number {number} of the list" if id is None else id
        if reason is not None or image is None or image_id is None:
            name = f"image id {fields.get('image_id')!r:.80}" if image is None else image.name
            found.bad.append(BadAnnotation(shown, name, reason or ""))
            continue
        if lost is not None:
            found.partial.append(BadAnnotation(shown, image.name, f"{lost}: only its other polygons are used"))
        size = image.width, image.height
        used = {
            "id": id,
            "image_id": image_id,
            "category_id": whole(fields["category_id"]),
            "bbox": fields["bbox"],
            "area": fields["area"] if "area" in fields else area(segmentation, *size),
            "iscrowd": int(fields.get("iscrowd", 0)),
            "segmentation": segmentation,
        }
        kept = isinstance(place, Place) and all(map(is_, map(fields.get, used), used.values()))
        found.used.setdefault(image_id, []).append(place if kept else rows.add(used))
        if used["iscrowd"]:
            found.num_crowds[image_id] += 1
    return found


def _why_bad(fields: Mapping[str, Any], image: ImageEntry | None, category_ids: Collection[int]) -> str | None:
    """Return the fault of an annotation apart from its id and its mask."""
    if image is None:
        return "belongs to an image that the file does not name"
    if not image.exists:
        return "belongs to an image that is missing"
    category = fields.get("category_id")
    if whole(category) not in category_ids:
        return f"has the unknown category {category!r:.80}"
    bad_box = _why_bad_box(fields.get("bbox"), image)
    if bad_box is not None:
        return bad_box
    if fields.get("iscrowd", 0) not in (0, 1):
        return f"has the iscrowd {fields['iscrowd']!r:.80}, expected 0 or 1"
    if "area" in fields and not (all_finite([fields["area"]]) and fields["area"] >= 0):
        return f"has the area {fields['area']!r:.80}, expected a number from 0"
    return None


def _why_bad_box(bbox: Any, image: ImageEntry) -> str | None:
    if bbox is None or bbox == []:
        return "has no box"
    if not isinstance(bbox, list) or len(bbox) != 4 or not all_finite(bbox):
        return f"has the box {bbox!r:.80}, expected 4 finite numbers: x, y, width, height"
    if min(bbox[2:]) < _LEAST_SIDE:
        return f"has a box of {bbox[2]:g} x {bbox[3]:g} pixels, which has no area"
    left, top, right, bottom = clipped_box(bbox, image.width, image.height)
    if right <= left or bottom <= top:
        return f"has the box {bbox!r:.80} outside the image of {image.width} x {image.height} pixels"
    if min(right - left, bottom - top) < _LEAST_SIDE:
        return "has a box with no area inside the image"
    return None
