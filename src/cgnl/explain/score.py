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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from torch import Tensor

from cgnl.blocks.kinds import phrase_of, relates_positions
from cgnl.data.decoding import BadFileError, DataError
from cgnl.data.images import read_cub_boxes, read_cub_parts, read_images
from cgnl.explain.coverage import COVERERS, SeenParts, measure, seen_parts
from cgnl.explain.geometry import unpool
from cgnl.explain.inputs import SeenInput, trace_seen
from cgnl.explain.maps import affinity, strongest_channels
from cgnl.explain.trace import BlockTrace, blocks_of, check_drawable
from cgnl.settings.checks import within
from cgnl.settings.words import counted
from cgnl.training.trained import TrainedNetwork

CHANNELS = 5
"""Channel maps of a block that are looked at together, as in Figure 5."""
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
    """How much one kind of map covers, or a baseline with regions of the same size.

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


def score_parts(
    trained: TrainedNetwork,
    root: str | os.PathLike[str],
    see: Callable[[TrainedNetwork, Path], SeenInput],
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
        see: Reads an image as the network sees it.
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
        ValueError: The network has no such block, or a number is out of range.
    """
    path = scored_block(trained, path)
    for name, number in (("threshold", threshold), ("radius", radius)):
        if not 0 < number <= 1:
            raise ValueError(f"{name} ({number}) must be above 0 and at most 1")
    within("seed", seed, 0)
    within("limit", limit, 1)
    tally = _Tally()
    unreadable, kind = 0, ""
    images = _annotated(Path(root).expanduser(), limit)
    for file, parts, size in track(images, "scoring images", console=Console(stderr=True), disable=not progress):
        try:
            block, seen = _look(trained, see(trained, file), parts, radius * size, path)
            kind = block.kind
        except BadFileError:
            unreadable += 1
            continue
        tally.add(seen, block, threshold)
    if not tally.images:
        raise DataError(f"{root} has no test image that can be read with two parts at different positions.")
    return PartScores(
        path, kind, threshold, radius, len(tally.images), tally.parts, unreadable, tuple(tally.rows(seed))
    )


def scored_block(trained: TrainedNetwork, path: str | None = None) -> str:
    """Return the path of the block whose maps are scored, by default the last one; ValueError where there is none."""
    blocks = blocks_of(trained.network)
    if not blocks:
        raise ValueError(f"parts need the maps of a block, and {trained.name} has none")
    paths = list(blocks)
    path = paths[-1] if path is None else path
    if path not in paths:
        raise ValueError(f"path ({path!r}) must be where a block is: {', '.join(paths)}")
    if not relates_positions(blocks[path]):
        phrase = phrase_of(blocks[path])
        raise ValueError(f"parts need the maps of a block, and {trained.name} has a {phrase} at {path}")
    return path


def _annotated(root: Path, limit: int | None) -> list[tuple[Path, dict[str, tuple[float, float]], float]]:
    """Return file, parts and the bounding box's diagonal (pixels) of test images with at least two parts."""
    needed = ("classes.txt", "images.txt", "bounding_boxes.txt", "parts/parts.txt", "parts/part_locs.txt")
    if lacking := next((root / name for name in needed if not (root / name).exists()), None):
        raise DataError(
            f"{lacking} does not exist: a score needs annotated parts and boxes, as CUB-200-2011 and the drawn birds "
            "have them."
        )
    samples = read_images(root, "test", format="cub").samples
    boxes, (_, locations) = read_cub_boxes(root), read_cub_parts(root)
    files = [sample.path for sample in samples if len(locations[sample.path]) > 1]
    if unboxed := next((file for file in files if file not in boxes), None):
        raise DataError(f"{root / 'bounding_boxes.txt'} has no line for {unboxed}.")
    if limit is not None and limit < len(files):
        files = [files[k * len(files) // limit] for k in range(limit)]
    return [(file, locations[file], math.hypot(*boxes[file][2:])) for file in files]


def _look(
    trained: TrainedNetwork, seen: SeenInput, parts: Mapping[str, tuple[float, float]], radius: float, path: str
) -> tuple[BlockTrace, SeenParts]:
    """Run the network on an image; return what its block saw, and the parts that it saw."""
    block = trace_seen({"": trained}, {"": seen})[1][""].blocks[path]
    check_drawable(block, f"path ({path!r})")
    return block, seen_parts(parts, radius, seen.view)


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
    """Return the scores of several networks, by name, as a table of text, in %, with 95 % intervals."""
    header = ["network", "maps", "covered by", "pointing", "coverage", "over random", "area"]
    lines, notes = [header], []
    for name, score in scores:
        for row in score.rows:
            numbers = [_percent(mean) for mean in (row.pointing, row.coverage, row.gain)]
            lines.append([name, row.maps, _TITLES[row.by], *numbers, f"{100 * row.area.mean:.1f}"])
        unreadable = f", {counted(score.unreadable, 'image')} unreadable" if score.unreadable else ""
        seen = f"{counted(score.images, 'image')}, {counted(score.parts, 'part')}{unreadable}"
        notes.append(f"{name}: block at {score.path}, {seen}")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*table, "%, with 95 % intervals over images", *notes])


def _percent(mean: Mean) -> str:
    # a rounded zero has no sign
    value, low, high = (round(100 * share, 1) + 0.0 for share in (mean.mean, mean.low, mean.high))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def scores_figure(scores: Sequence[tuple[str, PartScores]]) -> Figure:
    """Return a plot of several networks' scores: bars with 95 % intervals, baselines as lines across them."""
    if not scores:
        raise ValueError("scores must hold at least one network")
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
