"""A number for Figure 5: how well the maps of a block cover the parts of the birds.

Every part that the network sees is the reference in turn, and the other parts are what the maps are to find:

- pointing game: does the strongest position of a map touch another part;
- coverage: how much of each other part lies in the map's region, the positions from ``threshold`` times its maximum on.

Strong is what has a large absolute value: an affinity of the dot product may be negative. A part is a disc around its
point, and parts at the reference's own position are not asked for.

Three baselines cover as much of the input as the map's region: positions drawn at random (their exact expectation), a
square in the middle of the input, and one around the reference. The last one is the hardest: parts lie close together,
and a map that shows no more than where the reference is would score as much.

Shapes: K parts, Q points of each, L maps, H and W rows and columns of the positions.

Source: the pointing game is that of Zhang et al., "Top-down Neural Attention by Excitation Backprop", 2016; the regions
and the five channels are those of Figure 5 of the paper, which gives no number.
"""

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from torch import Tensor

from cgnl.data.decoding import BadFileError, DataError, open_image
from cgnl.data.images import read_cub_boxes, read_cub_parts, read_images
from cgnl.data.transforms import test_transform
from cgnl.explain.geometry import View, unpool, view_of
from cgnl.explain.maps import affinity, strongest_channels
from cgnl.explain.trace import BlockTrace, blocks_of, check_drawable, kind_of, trace_blocks
from cgnl.settings.detection import DetectionRecipe
from cgnl.settings.video import VideoRecipe
from cgnl.training.checkpoint import TrainedNetwork
from cgnl.training.evaluation import default_device

CHANNELS = 5
"""Channel maps of a block that are looked at together, as in Figure 5."""
COVERERS = ("block", "random", "centre", "reference")
"""The block's map and its baselines, in the order of the rows."""
_POINTS = 200  # of a part's disc
_RESAMPLES = 1000  # of the bootstrap
_TITLES = {
    "block": "block",
    "random": "random positions",
    "centre": "in the middle",
    "reference": "around the reference",
}


@dataclass(frozen=True)
class Mean:
    """A mean over images with the 95 % interval of a bootstrap over them; shares from 0 to 1."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ScoreRow:
    """What one kind of map covers, or a baseline with regions as large.

    Attributes:
        maps: Which maps: "map" (a non-local block has one), "strongest channel" or "5 strongest channels".
        by: Who covers: "block", "random", "centre" or "reference".
        pointing: How often the strongest position touches another part; of several maps, their mean.
        coverage: Share of the other parts in the region; of several maps, in the union of their regions.
        gain: Coverage less that of random positions, image by image.
        area: Share of the input that the region covers.
        parts: Coverage of each part by name.
    """

    maps: str
    by: str
    pointing: Mean
    coverage: Mean
    gain: Mean
    area: Mean
    parts: Mapping[str, float]


@dataclass(frozen=True)
class PartScores:
    """How well the maps of one block cover the parts.

    Attributes:
        path: Where the block is.
        kind: Which block it is: "nl", "gnl" or "cgnl".
        threshold: Of a map's maximum, from which on a position is in its region.
        radius: Of a part, in diagonals of the bird's bounding box.
        images: Images in which the network saw parts at different positions.
        parts: Parts that the network saw in them, each of which was the reference once.
        unreadable: Images that could not be read.
        rows: The scores, for each kind of maps those of the block and of its baselines.
    """

    path: str
    kind: str
    threshold: float
    radius: float
    images: int
    parts: int
    unreadable: int
    rows: tuple[ScoreRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return dataclasses.asdict(self)


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

        Args:
            middle: [2], x and y of its middle; it is moved so far that it lies in the input as a whole.
            area: Its share of the input.
        """
        half = math.sqrt(area) / 2
        inside = (np.abs(self.discs - np.clip(middle, half, 1 - half)) < half).all(-1)
        return inside.sum(1) / (~np.isnan(self.discs[..., 0])).sum(1)


def _positions(points: np.ndarray, rows: int, columns: int) -> np.ndarray:
    x, y = np.moveaxis(points, -1, 0)
    return np.minimum((y * rows).astype(int), rows - 1) * columns + np.minimum((x * columns).astype(int), columns - 1)


def seen_parts(parts: Mapping[str, tuple[float, float]], radius: float, view: View) -> SeenParts:
    """Return the parts whose centres a network saw.

    Args:
        parts: Name, and x and y in pixels of the image from its corner. (Whether CUB's clicks were counted from 0 or
            from 1 is not documented; a pixel is little beside the radius.)
        radius: Of every part (pixels of the image).
        view: What the network saw of the image.
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
    """Measure how well maps cover the parts other than the reference.

    Args:
        maps: [L, H, W], how much each position is related with the reference, of any number of channels; NaN where the
            block leaves a position out.
        parts: The K parts.
        reference: Which of them is the reference.
        threshold: Share of a map's largest absolute value, from which on a position is in its region. Zeros never are.

    Returns:
        What is covered by the union of the regions; None where no part lies at another position.

    Example:
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
    coverage = [
        shares @ region,
        np.full(len(others), area),
        parts.in_square(middle, area),
        parts.in_square(here, area),
    ]
    pointing = [
        hits.mean(),
        touching.mean(),
        (parts.in_square(middle, position)[others] > 0).any(),
        # around the reference lies its own position
        touching[positions[reference]],
    ]
    return Covered(others, np.array(pointing, dtype=np.float64), np.array(coverage), area)


def score_parts(
    trained: TrainedNetwork,
    root: str | os.PathLike[str],
    *,
    path: str | None = None,
    limit: int | None = None,
    threshold: float = 0.7,
    radius: float = 0.05,
    seed: int = 0,
    progress: bool = True,
) -> PartScores:
    """Score the maps of a block against the parts of a data set's test images.

    The map of a reference is the block's affinity at the reference's position, of the channel that is strongest in g
    there: one map of a non-local block; of a compact generalized one, a map for each channel of the group, of which
    the one with the highest value is scored, and the five highest together.

    Args:
        trained: An image network with a block; it is moved to the GPU where there is one.
        root: A data set in the layout of CUB-200-2011 with part locations and bounding boxes, as the drawn birds are.
        path: Where the block is; by default the last one.
        limit: Number of test images, evenly spread over them; all by default.
        threshold: Share of a map's maximum, from which on a position is in its region.
        radius: Of a part, in diagonals of the bird's bounding box.
        seed: Of the bootstrap.
        progress: Whether a progress bar is shown on the standard error output of a terminal.

    Returns:
        Scores of the block and of its baselines.

    Raises:
        DataError: The data set lacks something, or no image has two parts to relate.
        ValueError: The network is a detector or of videos, it has no such block, or a number is out of range.
    """
    path = scored_block(trained, path)
    for name, number in (("threshold", threshold), ("radius", radius)):
        if not 0 < number <= 1:
            raise ValueError(f"{name} ({number}) must lie above 0 and be at most 1")
    if seed < 0:
        raise ValueError(f"seed ({seed}) must be at least 0")
    if limit is not None and limit < 1:
        raise ValueError(f"limit ({limit}) must be at least 1")
    tally = _Tally()
    unreadable, kind = 0, ""
    images = _annotated(Path(root).expanduser(), limit)
    for file, parts, size in track(images, "scoring images", console=Console(stderr=True), disable=not progress):
        try:
            block, seen = _look(trained, file, parts, radius * size, path)
            kind = block.kind
        except BadFileError:
            unreadable += 1
            continue
        tally.add(seen, block, threshold)
    if not tally.images:
        raise DataError(f"{root} has no test image that can be read with two parts at different positions.")
    return PartScores(
        path,
        kind,
        threshold,
        radius,
        len(tally.images),
        tally.parts,
        unreadable,
        tuple(tally.rows(seed)),
    )


def scored_block(trained: TrainedNetwork, path: str | None = None) -> str:
    """Return the path of the block whose maps are scored.

    Args:
        trained: A network.
        path: Where the block is; by default the last one.

    Raises:
        ValueError: The network is a detector or of videos, or it has no such block.
    """
    if isinstance(trained.recipe, DetectionRecipe | VideoRecipe):
        kind = "a detector" if isinstance(trained.recipe, DetectionRecipe) else "a network of videos"
        raise ValueError(f"parts are scored for networks that classify images, and {trained.name} is {kind}")
    blocks = blocks_of(trained.network)
    if not blocks:
        raise ValueError(f"parts are scored by the maps of a block, and {trained.name} has none")
    paths = list(blocks)
    path = paths[-1] if path is None else path
    if path not in paths:
        raise ValueError(f"path ({path!r}) must be where a block is: {', '.join(paths)}")
    if kind_of(blocks[path]) == "residual":
        raise ValueError(f"parts are scored by the maps of a block, and {trained.name} has a residual block at {path}")
    return path


def _annotated(root: Path, limit: int | None) -> list[tuple[Path, dict[str, tuple[float, float]], float]]:
    """Return file, parts and the bounding box's diagonal (pixels) of test images with at least two parts."""
    samples = read_images(root, "test", format="cub").samples
    boxes, (_, locations) = read_cub_boxes(root), read_cub_parts(root)
    files = [sample.path for sample in samples if len(locations[sample.path]) > 1]
    if lacking := next((file for file in files if file not in boxes), None):
        raise DataError(f"{root / 'bounding_boxes.txt'} has no line for {lacking}.")
    if limit is not None and limit < len(files):
        files = [files[k * len(files) // limit] for k in range(limit)]
    return [(file, locations[file], math.hypot(*boxes[file][2:])) for file in files]


def _look(
    trained: TrainedNetwork, file: Path, parts: Mapping[str, tuple[float, float]], radius: float, path: str
) -> tuple[BlockTrace, SeenParts]:
    """Run the network on an image; return what its block saw, and the parts that it saw."""
    config = trained.recipe.data
    image = open_image(file)
    x = test_transform(config.size, config.resize, mean=trained.mean, std=trained.std)(image)[None]
    device = default_device()
    block = trace_blocks(trained.network.to(device), x.to(device)).blocks[path]
    check_drawable(block, f"path ({path!r})")
    view = view_of(image.width, image.height, size=config.size, resize=config.resize)
    return block, seen_parts(parts, radius, view)


class _Tally:
    """Adds up what is covered, image by image."""

    def __init__(self) -> None:
        self.images: list[dict[str, np.ndarray]] = []
        self.found: dict[str, dict[str, list[np.ndarray]]] = {}
        self.parts = 0

    def add(self, seen: SeenParts, block: BlockTrace, threshold: float) -> None:
        """Score one image."""
        measured: dict[str, list[np.ndarray]] = {}
        parts: dict[str, dict[str, list[np.ndarray]]] = {}
        for reference in range(len(seen.names)):
            for name, maps in _maps(block, seen, reference).items():
                covered = measure(maps, seen, reference, threshold=threshold)
                if covered is None:
                    continue
                coverage = covered.coverage[:, covered.others]
                columns = covered.pointing, coverage.mean(1), np.full(len(COVERERS), covered.area)
                measured.setdefault(name, []).append(np.stack(columns))
                for part in np.nonzero(covered.others)[0]:
                    of_part = parts.setdefault(name, {}).setdefault(seen.names[part], [])
                    of_part.append(covered.coverage[:, part])
        if not measured:
            return
        self.images.append({name: np.mean(values, axis=0) for name, values in measured.items()})
        self.parts += len(seen.names)
        for name, of_name in parts.items():
            for part_name, of_part in of_name.items():
                self.found.setdefault(name, {}).setdefault(part_name, []).append(np.mean(of_part, axis=0))

    def rows(self, seed: int) -> Iterator[ScoreRow]:
        """Give the scores of all images."""
        count = len(self.images)
        draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
        for name in self.images[0]:
            values = np.stack([image[name] for image in self.images])  # [images, 3, 4]
            gain = values[:, 1] - values[:, 1, [COVERERS.index("random")]]
            values = np.concatenate([values, gain[:, None]], axis=1)
            means = values.mean(0)
            low, high = np.quantile(np.tensordot(draws, values, 1) / count, [0.025, 0.975], axis=0)
            for k, by in enumerate(COVERERS):
                pointing, coverage, area, gained = (
                    Mean(*(float(array[row, k]) for array in (means, low, high))) for row in range(4)
                )
                of_parts = {part: float(np.mean(found, axis=0)[k]) for part, found in self.found[name].items()}
                yield ScoreRow(name, by, pointing, coverage, gained, area, of_parts)


def _maps(block: BlockTrace, seen: SeenParts, reference: int) -> dict[str, Tensor]:
    """Return the maps of a reference by what they are called, [L, H, W] each."""
    rows, columns = block.shape
    row, column = divmod(int(seen.positions(rows, columns)[reference]), columns)
    related = affinity(block, (row, column))
    if block.kind == "nl":
        return {"map": unpool(related, (rows, columns))[None]}
    strongest = related[strongest_channels(related, CHANNELS)]
    return {"strongest channel": strongest[:1], f"{CHANNELS} strongest channels": strongest}


def scores_table(scores: Iterable[tuple[str, PartScores]]) -> str:
    """Return the scores of several networks as a table of text, in %, with 95 % intervals.

    Args:
        scores: Name and scores of each network.
    """
    header = ["network", "maps", "covered by", "pointing", "coverage", "over random", "area"]
    lines, notes = [header], []
    for name, score in scores:
        for row in score.rows:
            numbers = [_percent(mean) for mean in (row.pointing, row.coverage, row.gain)]
            lines.append([name, row.maps, _TITLES[row.by], *numbers, f"{100 * row.area.mean:.1f}"])
        unreadable = f", {score.unreadable} images unreadable" if score.unreadable else ""
        notes.append(f"{name}: block at {score.path}, {score.images} images, {score.parts} parts{unreadable}")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*table, "%, with 95 % intervals over images", *notes])


def _percent(mean: Mean) -> str:
    # a rounded zero has no sign
    value, low, high = (round(100 * share, 1) + 0.0 for share in (mean.mean, mean.low, mean.high))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def scores_figure(scores: Sequence[tuple[str, PartScores]]) -> Figure:
    """Return a plot of the scores of several networks: bars with 95 % intervals, baselines as lines across them.

    Args:
        scores: Name and scores of each network.

    Raises:
        ValueError: There are no scores.
    """
    if not scores:
        raise ValueError("scores must be of at least one network")
    bars = [
        (f"{name}\n{row.maps}", {other.by: other for other in score.rows if other.maps == row.maps})
        for name, score in scores
        for row in score.rows
        if row.by == "block"
    ]
    drawn = Figure(figsize=(max(7.0, 2.4 + 2.6 * len(bars)), 3.8), layout="constrained")
    # Okabe and Ito's colours, and different strokes, are told apart without colour vision too
    strokes = {"random": ("#000000", "-"), "centre": ("#D55E00", "--"), "reference": ("#009E73", ":")}
    for axes, measure_name in zip(drawn.subplots(1, 2, sharey=True), ("pointing", "coverage"), strict=True):
        for place, (_, rows) in enumerate(bars):
            mean = getattr(rows["block"], measure_name)
            axes.bar(
                place,
                100 * mean.mean,
                yerr=[[100 * (mean.mean - mean.low)], [100 * (mean.high - mean.mean)]],
                width=0.6,
                color="#56B4E9",
                capsize=4,
                label=_TITLES["block"] if place == 0 else None,
            )
            for by, (colour, stroke) in strokes.items():
                height = 100 * getattr(rows[by], measure_name).mean
                label = _TITLES[by] if place == 0 else None
                axes.hlines(height, place - 0.38, place + 0.38, colors=colour, linestyles=stroke, lw=2, label=label)
        axes.set_xticks(range(len(bars)), [label for label, _ in bars], fontsize=8)
        axes.set_xlim(-0.6, len(bars) - 0.4)
        axes.set_ylim(0, 100)
        axes.spines[["top", "right"]].set_visible(False)
    pointing, coverage = drawn.axes
    pointing.set_title("strongest position touches another part", fontsize=10)
    coverage.set_title("other parts inside the region", fontsize=10)
    pointing.set_ylabel("% (mean over images)")
    drawn.legend(*pointing.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return drawn
