"""Segmentations of COCO's json: polygons and run-length encodings, checked before they are decoded.

The decoders are written in C and take what they are given: a run-length encoding that does not add up would read
and write beyond its memory, and a polygon that reaches far out would fill it.

Shapes: N objects, H height, W width (pixels).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as mask_api

# Six groups of 5 bits: more than the 100 megapixels that an image may have.
_MAX_GROUPS = 6

_NO_PIXEL = "has a mask that covers no pixel of the image"


def why_bad_mask(segmentation: Any, width: int, height: int) -> str | None:
    """Return the fault of a segmentation, as the rest of a sentence about the annotation; None if it has none.

    It is as the json holds it, of an image of ``width`` x ``height`` pixels: polygons ``[[x0, y0, x1, y1, ...], ...]``
    or a run-length encoding ``{"size": [height, width], "counts": ...}`` with a list of counts or a compressed string.

    >>> why_bad_mask([[1, 1, 5, 1, 5, 5]], 10, 10)
    >>> why_bad_mask([[1, 1, 5, 1]], 10, 10)
    'has a polygon of 4 numbers, but needs x and y of 3 points or more'
    >>> why_bad_mask({"size": [10, 10], "counts": [40, 5]}, 10, 10)
    'has a run-length encoding of 45 pixels, but the image has 100'
    """
    if not segmentation:
        return "has no mask"
    if isinstance(segmentation, list):
        return _why_bad_polygons(segmentation, width, height)
    if isinstance(segmentation, dict):
        return _why_bad_runs(segmentation, width, height)
    return "has a mask that is neither a list of polygons nor a run-length encoding"


def _why_bad_polygons(polygons: list[Any], width: int, height: int) -> str | None:
    surely_covers = False
    for polygon in polygons:
        if not isinstance(polygon, list):
            return "has a mask that is not a list of polygons, each a list of numbers"
        if len(polygon) < 6 or len(polygon) % 2:
            return f"has a polygon of {len(polygon)} numbers, but needs x and y of 3 points or more"
        try:
            finite = math.isfinite(sum(polygon))
        except (TypeError, OverflowError):
            finite = False
        if not finite:
            return "has a polygon with a value that is not a finite number"
        left, right, top, bottom = (pick(polygon[axis::2]) for axis in (0, 1) for pick in (min, max))
        if left < -width or right > 2 * width or top < -height or bottom > 2 * height:
            return "has a polygon that reaches more than an image's size beyond the image"
        # To draw them all would take ten times as long. One that is 2 pixels thick on average covers some.
        in_image = left >= 0 and right <= width and top >= 0 and bottom <= height
        surely_covers = surely_covers or (in_image and _enclosed(polygon) > 2 * max(right - left, bottom - top))
    return None if surely_covers or area(polygons, width, height) else _NO_PIXEL


def _enclosed(polygon: list[float]) -> float:
    """Return the area that a polygon encloses (pixels), by the shoelace formula."""
    x, y = polygon[::2], polygon[1::2]
    ends = zip(x, y, x[1:] + x[:1], y[1:] + y[:1], strict=True)
    return abs(sum(x0 * y1 - x1 * y0 for x0, y0, x1, y1 in ends)) / 2


def _why_bad_runs(encoding: dict[str, Any], width: int, height: int) -> str | None:
    size = encoding.get("size")
    if size != [height, width]:
        return f"has a run-length encoding of size {size!r:.80}, but the image has [{height}, {width}]"
    counts = _runs(encoding.get("counts"))
    if counts is None:
        return "has a run-length encoding that is broken"
    total = int(counts.sum())
    if total != height * width:
        return f"has a run-length encoding of {total} pixels, but the image has {height * width}"
    return None if counts[1::2].any() else _NO_PIXEL


def _runs(counts: Any) -> np.ndarray | None:
    """Return the lengths of the runs, or None if they are none."""
    if isinstance(counts, str):
        runs = _decompressed(counts)
    elif isinstance(counts, list) and all(type(count) is int and 0 <= count < 2**31 for count in counts):
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
    """Return a segmentation that :func:`why_bad_mask` accepts, as one compressed run-length encoding."""
    if isinstance(segmentation, list):
        return mask_api.merge(mask_api.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_api.frPyObjects(segmentation, height, width)
    return segmentation


def area(segmentation: Any, width: int, height: int) -> float:
    """Return the number of pixels of a segmentation; arguments as for :func:`encode`."""
    return float(mask_api.area(encode(segmentation, width, height)))


def decode(segmentations: Sequence[Any], width: int, height: int) -> np.ndarray:
    """Return N segmentations that :func:`why_bad_mask` accepts, as masks [N, H, W] of 0 and 1 (uint8).

    >>> decode([[[1, 0, 3, 0, 3, 2, 1, 2]]], 4, 3)[0].tolist()
    [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    if not segmentations:
        return np.zeros((0, height, width), dtype=np.uint8)
    masks = mask_api.decode([encode(segmentation, width, height) for segmentation in segmentations])
    return np.ascontiguousarray(masks.transpose(2, 0, 1))
