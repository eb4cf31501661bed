"""Masks in COCO's forms: polygons along the borders of pixels, and run lengths."""

from typing import Any

import numpy as np

# Steps along the borders of pixels, each a right turn from the one before (y points down): right, down, left, up.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def border_polygons(mask: np.ndarray) -> list[list[int]] | None:
    """Return the outlines of a mask bool [H, W] as COCO's polygons, which its rasteriser turns into exactly this mask.

    Corners lie on the borders of pixels; pixels that touch at a corner only belong to different polygons. There is one
    list x1, y1, x2, y2, ... for each connected piece; None if a piece has a hole, which polygons cannot express.

    >>> border_polygons(np.array([[False, True, True], [False, True, False]]))
    [[3, 0, 3, 1, 2, 1, 2, 2, 1, 2, 1, 0]]
    """
    padded = np.pad(mask, 1)
    above, right = padded[:-2, 1:-1], padded[1:-1, 2:]
    below, left = padded[2:, 1:-1], padded[1:-1, :-2]
    # Edges as (y, x, step) of their start, clockwise around each pixel.
    edges: set[tuple[int, int, int]] = set()
    for step, (neighbour, (dy, dx)) in enumerate(
        zip((above, right, below, left), ((0, 0), (0, 1), (1, 1), (1, 0)), strict=True)
    ):
        edges |= {(y + dy, x + dx, step) for y, x in np.argwhere(mask & ~neighbour).tolist()}
    polygons = []
    left_over = set(edges)
    for first in sorted(edges):
        if first not in left_over:
            continue
        polygon: list[int] = []
        turns = 0
        edge = first
        while edge in left_over:
            left_over.remove(edge)
            edge, turn = _following(edge, edges)
            turns += turn
            if turn:
                polygon += [edge[1], edge[0]]
        if turns < 0:
            return None
        polygons.append(polygon)
    return polygons


def _following(edge: tuple[int, int, int], edges: set[tuple[int, int, int]]) -> tuple[tuple[int, int, int], int]:
    """Return the next edge of a loop and the turn to it: 1 right, 0 none, -1 left."""
    y, x, step = edge
    x, y = x + _STEPS[step][0], y + _STEPS[step][1]
    # Where two pixels touch at a corner, a right turn stays with the pixel that the loop goes around.
    for turn in (1, 0):
        candidate = (y, x, (step + turn) % 4)
        if candidate in edges:
            return candidate, turn
    return (y, x, (step - 1) % 4), -1


def run_counts(mask: np.ndarray) -> list[int]:
    """Return the lengths of the runs of a mask bool [H, W], column by column; the first run is of pixels outside.

    >>> run_counts(np.array([[True, True], [False, True]]))
    [0, 1, 1, 2]
    """
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff(changes, prepend=0, append=flat.size).tolist()


def compressed(counts: list[int]) -> str:
    """Return run lengths as COCO's string: each from the fourth on as difference from the one two before.

    A number is written in groups of 5 bits, the lowest first, each as the character 48 + bits, + 32 if more follow.
    """
    text = []
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text.append(chr(48 + bits + 32 * more))
    return "".join(text)


def segmentation(mask: np.ndarray, *, as_counts: bool = False) -> list[list[int]] | dict[str, Any]:
    """Return a mask bool [H, W] as COCO's "segmentation".

    These are polygons, or compressed run lengths if the mask has a hole, or run lengths as a list (``as_counts``).
    """
    polygons = None if as_counts else border_polygons(mask)
    if polygons is not None:
        return polygons
    counts = run_counts(mask)
    return {"size": list(mask.shape), "counts": counts if as_counts else compressed(counts)}
