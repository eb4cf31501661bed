"""Segmentations of COCO's json: polygons and run-length encodings, checked before they are decoded.

The decoders are written in C and take what they are given: a run-length encoding that does not add up would read
and write beyond its memory, and a polygon that reaches far out would fill it.

Shapes: N objects, H height, W width (pixels).
"""

import math
from collections.abc import Iterable, Sequence
from operator import mul
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as mask_api

from cgnl.data.detection.samples import whole

# Six groups of 5 bits: more than the 100 megapixels that an image may have.
_MAX_GROUPS = 6

_NO_PIXEL = "has a mask that covers no pixel of the image"


def usable_mask(segmentation: Any, width: int, height: int) -> tuple[Any, str | None]:
    """Return the part of a segmentation that can be used, None if there is none, and the fault of the rest.

    A fault is the rest of a sentence about the annotation, None where all is used. The segmentation is as the json has
    it, of an image of ``width`` x ``height`` pixels: polygons ``[[x0, y0, x1, y1, ...], ...]`` or a run-length encoding
    ``{"size": [height, width], "counts": ...}`` with a list of counts or a compressed string. An object keeps its good
    polygons beside bad ones, as in COCO's own tools.

    >>> usable_mask([[1, 1, 5, 1, 5, 5]], 10, 10)
    ([[1, 1, 5, 1, 5, 5]], None)
    >>> usable_mask([[1, 1, 5, 1], [1, 1, 5, 1, 5, 5]], 10, 10)
    ([[1, 1, 5, 1, 5, 5]], 'has a polygon of 4 numbers, but needs x and y of 3 points or more')
    >>> usable_mask({"size": [10, 10], "counts": [40, 5]}, 10, 10)
    (None, 'has a run-length encoding of 45 pixels, but the image has 100')
    """
    if not segmentation:
        return None, "has no mask"
    if isinstance(segmentation, list):
        return _usable_polygons(segmentation, width, height)
    if isinstance(segmentation, dict):
        return _usable_runs(segmentation, width, height)
    return None, "has a mask that is neither a list of polygons nor a run-length encoding"


def _usable_polygons(polygons: list[Any], width: int, height: int) -> tuple[list[Any] | None, str | None]:
    usable, fault, surely_covers = [], None, False
    for polygon in polygons:
        bad, covers = _looked_at(polygon, width, height)
        fault, surely_covers = fault or bad, surely_covers or covers
        if bad is None:
            usable.append(polygon)
    if usable and (surely_covers or area(usable, width, height)):
        return (polygons if fault is None else usable), fault
    return None, fault or _NO_PIXEL


def _looked_at(polygon: Any, width: int, height: int) -> tuple[str | None, bool]:
    """Return the fault of a polygon, and whether it surely covers a pixel: to draw them all would take long."""
    if not isinstance(polygon, list):
        return "has a mask that is not a list of polygons, each a list of numbers", False
    if len(polygon) < 6 or len(polygon) % 2:
        return f"has a polygon of {len(polygon)} numbers, but needs x and y of 3 points or more", False
    if not all_finite(polygon):
        return "has a polygon with a value that is not a finite number", False
    x, y = polygon[::2], polygon[1::2]
    left, right, top, bottom = min(x), max(x), min(y), max(y)
    if left < -width or right > 2 * width or top < -height or bottom > 2 * height:
        return "has a polygon that reaches more than an image's size beyond the image", False
    # one in the image that is 2 pixels thick on average
    in_image = left >= 0 and right <= width and top >= 0 and bottom <= height
    return None, in_image and _enclosed(x, y) > 2 * max(right - left, bottom - top)


def all_finite(values: Iterable[Any]) -> bool:
    """Tell whether values of a json are finite numbers, whose sum is one too."""
    try:
        return math.isfinite(sum(values))
    except (TypeError, OverflowError):  # no number, or a whole one beyond any float
        return False


def _enclosed(x: list[float], y: list[float]) -> float:
    """Return the area that a polygon encloses (pixels), by the shoelace formula."""
    return abs(sum(map(mul, x, y[1:] + y[:1])) - sum(map(mul, x[1:] + x[:1], y))) / 2


def _usable_runs(encoding: dict[str, Any], width: int, height: int) -> tuple[dict[str, Any] | None, str | None]:
    size, counts = encoding.get("size"), encoding.get("counts")
    if size != [height, width]:
        return None, f"has a run-length encoding of size {size!r:.80}, but the image has [{height}, {width}]"
    if isinstance(counts, list):
        counts = [whole(count) for count in counts]
    runs = _runs(counts)
    if runs is None:
        return None, "has a run-length encoding that is broken"
    total = int(runs.sum())
    if total != height * width:
        return None, f"has a run-length encoding of {total} pixels, but the image has {height * width}"
    if not runs[1::2].any():
        return None, _NO_PIXEL
    return {"size": [height, width], "counts": counts}, None


def _runs(counts: Any) -> np.ndarray | None:
    """Return the lengths of the runs, or None if they are none."""
    if isinstance(counts, str):
        runs = _decompressed(counts)
    elif isinstance(counts, list) and all(count is not None and 0 <= count < 2**31 for count in counts):
        runs = np.array(counts, dtype=np.int64)
    else:
        return None
    return None if runs is None or not len(runs) or (runs < 0).any() else runs


def _decompressed(text: str) -> np.ndarray | None:
    """Decode COCO's strings.

    A run is groups of 5 bits, the lowest first; from the fourth on it is the difference to the last run but one.
    """
    if not text.isascii():
        return None
    groups = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(groups & 32 == 0)
    if not len(ends) or ends[-1] != len(groups) - 1 or groups.min() < 0 or groups.max() > 63:
        return None
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > _MAX_GROUPS:
        return None
    places = np.arange(len(groups)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((groups & 31) << (5 * places), starts)
    negative = groups[ends] & 16 != 0
    runs[negative] -= 1 << (5 * lengths[negative])
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs


def encode(segmentation: Any, width: int, height: int) -> dict[str, Any]:
    """Return a segmentation that :func:`usable_mask` returns, as one compressed run-length encoding."""
    if isinstance(segmentation, list):
        return mask_api.merge(mask_api.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_api.frPyObjects(segmentation, height, width)
    return segmentation


def area(segmentation: Any, width: int, height: int) -> float:
    """Return the number of pixels of a segmentation; arguments as for :func:`encode`."""
    return float(mask_api.area(encode(segmentation, width, height)))


def decode(segmentations: Sequence[Any], width: int, height: int) -> np.ndarray:
    """Return N segmentations that :func:`usable_mask` returns, as masks [N, H, W] of 0 and 1 (uint8).

    >>> decode([[[1, 0, 3, 0, 3, 2, 1, 2]]], 4, 3)[0].tolist()
    [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    if not segmentations:
        return np.zeros((0, height, width), dtype=np.uint8)
    masks = mask_api.decode([encode(segmentation, width, height) for segmentation in segmentations])
    return np.ascontiguousarray(masks.transpose(2, 0, 1))
