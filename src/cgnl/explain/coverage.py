"""How much of a bird's parts the maps of a block cover, and baselines that cover as much of the input.

Shapes: K parts, Q points of each, L maps, H and W rows and columns of the positions.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cgnl.explain.geometry import View

COVERERS = ("block", "random", "centre", "reference")
"""The block's map and its baselines, in the order of the rows."""
_POINTS = 200  # of a part's disc


@dataclass(frozen=True)
class SeenParts:
    """The parts of an image that a network saw, in shares of its input.

    Attributes:
        names: Their names.
        centres: [K, 2], x and y of the parts, from 0 at the left and upper edge of the input to 1.
        discs: [K, Q, 2], points that fill the parts evenly; NaN where the network did not see them.
    """

    names: tuple[str, ...]
    centres: np.ndarray
    discs: np.ndarray

    def positions(self, rows: int, columns: int) -> np.ndarray:
        """Return the number of the position (row by row) that each part's centre falls into, [K]."""
        return _positions(self.centres, rows, columns)

    def shares(self, rows: int, columns: int) -> np.ndarray:
        """Return how much of each part lies in each position, [K, rows * columns]; each part's shares add up to 1."""
        count = rows * columns
        seen = ~np.isnan(self.discs[..., 0])
        part, _ = np.nonzero(seen)
        flat = np.bincount(
            part * count + _positions(self.discs[seen], rows, columns), minlength=len(self.names) * count
        )
        return flat.reshape(-1, count) / seen.sum(1)[:, None]

    def in_square(self, middle: np.ndarray, area: float) -> np.ndarray:
        """Return how much of each part lies in a square, [K].

        ``middle`` is its x and y, moved so that all of it lies in the input; ``area`` is its share of the input.
        """
        half = math.sqrt(area) / 2
        inside = (np.abs(self.discs - np.clip(middle, half, 1 - half)) < half).all(-1)
        return inside.sum(1) / (~np.isnan(self.discs[..., 0])).sum(1)


def _positions(points: np.ndarray, rows: int, columns: int) -> np.ndarray:
    x, y = np.moveaxis(points, -1, 0)
    return np.minimum((y * rows).astype(int), rows - 1) * columns + np.minimum((x * columns).astype(int), columns - 1)


def seen_parts(parts: Mapping[str, tuple[float, float]], radius: float, view: View) -> SeenParts:
    """Return the parts whose centres a network saw.

    ``parts`` maps names to x and y, and ``radius`` is every part's, in pixels of the image. (Whether CUB's clicks were
    counted from 0 or from 1 is not documented; a pixel is little beside the radius.)
    """
    size = np.array([view.input_width, view.input_height])
    centres = np.array([view.to_input(x, y) for x, y in parts.values()]).reshape(-1, 2) / size
    # a spiral that turns by the golden angle fills the disc evenly
    number = np.arange(_POINTS) + 0.5
    turn = np.pi * (1 + math.sqrt(5)) * number
    disc = np.sqrt(number / _POINTS)[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    discs = centres[:, None] + disc * radius * np.array([view.scale_x, view.scale_y]) / size
    discs[((discs < 0) | (discs >= 1)).any(-1)] = np.nan
    seen = ((centres >= 0) & (centres < 1)).all(1) & ~np.isnan(discs[..., 0]).all(1)
    return SeenParts(tuple(name for name, here in zip(parts, seen, strict=True) if here), centres[seen], discs[seen])


@dataclass(frozen=True)
class Covered:
    """What the maps of one reference cover, and what the baselines do.

    Attributes:
        others: [K], which parts are to be found.
        pointing: [4], chance that the strongest position touches one of them; in the order of ``COVERERS``.
        coverage: [4, K], share of each part that is covered, of the others and the rest.
        area: Share of the input that is covered.
    """

    others: np.ndarray
    pointing: np.ndarray
    coverage: np.ndarray
    area: float


def measure(maps: Tensor | np.ndarray, parts: SeenParts, reference: int, *, threshold: float = 0.7) -> Covered | None:
    """Measure how well the regions of maps, together, cover the parts other than the reference.

    ``maps`` [L, H, W] hold how much each position is related with part number ``reference`` (NaN where the block leaves
    a position out). A region holds the values from the share ``threshold`` of the map's largest on; zeros never. The
    result is None where no part lies at another position.

    Example:
        >>> from cgnl.explain.geometry import view_of
        >>> seen = seen_parts({"beak": (1, 1), "tail": (7, 7), "back": (3, 3)}, 0.5, view_of(8, 8))
        >>> found = measure(np.eye(4)[None], seen, reference=0)
        >>> found.coverage[0], found.coverage[1]  # all parts, and as much as its area
        (array([1., 1., 1.]), array([0.25, 0.25, 0.25]))
    """
    rows, columns = maps.shape[-2:]
    positions = parts.positions(rows, columns)
    others = positions != positions[reference]
    if not others.any():
        return None
    values = np.nan_to_num(np.abs(np.asarray(maps, dtype=np.float64).reshape(len(maps), -1)))
    peaks = values.max(1, keepdims=True)
    related = values > 0
    region = (related & (values >= threshold * peaks)).any(0)
    # equal maxima are equally likely
    strongest = related & (values == peaks)
    shares = parts.shares(rows, columns)
    touching = (shares[others] > 0).any(0)
    hits = (strongest & touching).sum(1) / np.maximum(strongest.sum(1), 1)

    area, middle, here = float(region.mean()), np.full(2, 0.5), parts.centres[reference]
    position = 1 / len(touching)
    coverage = [shares @ region, np.full(len(others), area), parts.in_square(middle, area), parts.in_square(here, area)]
    pointing = [
        hits.mean(),
        touching.mean(),
        (parts.in_square(middle, position)[others] > 0).any(),
        # around the reference lies its own position
        touching[positions[reference]],
    ]
    return Covered(others, np.array(pointing, dtype=np.float64), np.array(coverage), area)
