"""Figures 1, 5 and 6 of the paper for any network: what its block relates one spot of an image or video to.

A map is divided by its largest affinity, so that the threshold is a part of it. Affinities may have a sign, and the
largest is that of the largest absolute value: what is far below zero is as related as what is far above.

Source: Yue et al., "Compact Generalized Non-local Network", NeurIPS 2018.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image
from torch import Tensor

from cgnl.explain.geometry import Box, View, regions, time_step, token_grid, unpool
from cgnl.explain.maps import affinity, affinity_group, normalised, reference_channel, strongest_channels
from cgnl.explain.trace import BlockTrace, Trace, check_drawable
from cgnl.explain.wording import kind_in_words, statement
from cgnl.files import whole_file
from cgnl.settings.checks import within

SUFFIXES = (".png", ".svg", ".pdf")

Part = tuple[float, float] | Box
"""A part of an object: a point x, y or a box x0, y0, x1, y1 (pixels of the image)."""

_REFERENCE = "#00C44F"
_PANEL = 1.9  # inches
_LETTERS = 26  # of 8 points in the title of a panel
_LONGEST = 640  # pixels of a drawn image's longer side, more than a panel shows
_POSITIVE, _SIGNED = "cividis", "RdBu_r"  # both told apart without colour vision
_OPACITY = 0.65


def figure5(
    image: Image.Image | np.ndarray,
    networks: Mapping[str, tuple[Trace, str]],
    at: tuple[float, float] | Sequence[tuple[float, float]],
    view: View,
    *,
    threshold: float = 0.7,
    num_maps: int = 5,
    channel: int | None = None,
    parts: Mapping[str, Part] | None = None,
    caption: str | None = None,
) -> Figure:
    """Draw what blocks relate a spot of an image to (Fig. 5).

    From left to right: the image with the reference, the map of each NL block, the strongest channel maps of each GNL
    or CGNL block, those with the largest affinity first, and the parts of the object where they are known. White
    boxes stand around the connected regions of at least ``threshold`` of a map's largest affinity; where that is the
    whole map, the caption says so in their place. Each reference has a row, or several where the maps of all networks
    do not fit into one.

    Args:
        image: As the file has it, upright.
        networks: For each network, by its name, its trace on this image and the path of one of its blocks.
        at: x, y of the reference (pixels of the image), or of several.
        view: What the networks saw of the image.
        threshold: Part of a map's largest affinity, above 0 and at most 1.
        num_maps: Maps of a GNL or CGNL block.
        channel: Reference channel of GNL and CGNL blocks; None for the one with the strongest g at the reference.
        parts: Where the parts of the object are, by their names.
        caption: Text below; None for a few words on what is shown.

    Returns:
        The figure.

    Raises:
        ValueError: An argument is outside its range, the network did not see the reference, or a block has no maps.
    """
    references = [(float(x), float(y)) for x, y in np.reshape(at, (-1, 2))]
    picture = _picture(image, view)
    _check(networks, threshold)
    within("num_maps", num_maps, 1)
    lines: list[tuple[tuple[float, float], list[_Panel]]] = []
    for x, y in references:
        line: list[_Panel] = []
        for name, (trace, path) in networks.items():
            block = trace.blocks[path]
            panels = _strongest(name, block, *_related(name, block, (x, y, 0), view, 1, channel), num_maps)
            if line and len(line) + len(panels) > 1 + num_maps:
                lines.append(((x, y), line))
                line = []
            line += panels
        lines.append(((x, y), line))

    columns = 1 + max(len(panels) for _, panels in lines) + (parts is not None)
    figure, axes = _grid(len(lines), columns, view)
    even: list[str] = []
    for (reference, panels), row in zip(lines, axes, strict=True):
        _show(row[0], picture, view)
        for shape in {panel.values.shape for panel in panels}:
            _mark(row[0], reference, shape, view)
        row[0].set_title(f"reference\nx {reference[0]:.4g}, y {reference[1]:.4g}", fontsize=8)
        for panel, ax in zip(panels, row[1:], strict=False):
            _show(ax, _faded(picture), view)
            _heat(ax, panel.values, view, signed=panel.signed)
            if panel.all_reach(threshold):
                even.append(" ".join(panel.title.split("\n")))
            else:
                _frame(ax, panel.values.abs() >= threshold, view)
            ax.set_title(panel.title, fontsize=8)
        if parts is not None:
            _show(row[-1], picture, view)
            _name_parts(row[-1], parts, legend=row[-1] is axes[0, -1])
            row[-1].set_title("parts\nground truth", fontsize=8)
    shown = [panel for _, panels in lines for panel in panels]
    _colour_bars(figure, axes, shown)
    boxes = f"Green: the reference. White: |affinity| of at least {threshold:g} of the map's largest."
    _write(figure, caption if caption is not None else " ".join([boxes, *_unframed(even), *_notes(networks)]))
    return figure


def figure1(
    frames: Sequence[Image.Image | np.ndarray] | np.ndarray,
    networks: Mapping[str, tuple[Trace, str]],
    at: tuple[float, ...],
    view: View,
    *,
    threshold: float | None = 0.7,
    num_frames: int = 6,
    channel: int | None = None,
    caption: str | None = None,
) -> Figure:
    """Draw the regions of a video that blocks relate a spot in one frame to (Fig. 1).

    A row for each network. In each frame the regions of at least ``threshold`` of the largest affinity in the whole
    clip are framed, and the rest is darkened; of a map that reaches it everywhere, the caption says so. Of GNL and CGNL
    blocks every position has the largest affinity over the channels of the group. ``frames`` are all that the network
    saw, in order, as the file has them (one for an image), of which at most ``num_frames`` are drawn, evenly spread and
    that of the reference among them; ``at`` is x, y (pixels of the frame) and the number of the frame, from 0. Without
    a threshold it is Fig. 6: heat maps, divided by the largest affinity in the whole clip. The rest is as in
    :func:`figure5`.
    """
    _check(networks, threshold)
    within("num_frames", num_frames, 1)
    reference = int(at[2]) if len(at) > 2 else 0
    panels: list[_Panel] = []
    for name, (trace, path) in networks.items():
        block = trace.blocks[path]
        maps, channels = _related(name, block, (at[0], at[1], reference), view, len(frames), channel)
        which = "all channels"
        if block.kind != "nl":
            maps, which = maps.abs(), f"group {channels[0] // len(channels)},\nlargest of channels"
        values = maps.amax(0)
        panels.append(_Panel(_title(name, values, which), _spread(normalised(values), block), bool((maps < 0).any())))
    chosen = _chosen_frames(len(frames), max(len(panel.values) for panel in panels), reference, num_frames)
    figure, axes = _grid(len(networks), len(chosen), view)
    even = [name for name, panel in zip(networks, panels, strict=True) if threshold and panel.all_reach(threshold)]
    for panel, row in zip(panels, axes, strict=True):
        for frame, ax in zip(chosen, row, strict=True):
            values = panel.values[time_step(frame, len(frames), len(panel.values))]
            picture = _picture(frames[frame], view)
            if threshold is None:
                _show(ax, _faded(picture), view)
                _heat(ax, values, view, signed=panel.signed)
            else:
                _show(ax, picture, view)
                _darken(ax, ~(values.abs() >= threshold), view)
                if not panel.all_reach(threshold):
                    _frame(ax, values.abs() >= threshold, view)
            if frame == reference:
                _mark(ax, at[:2], values.shape, view)
            if ax in axes[0]:
                ax.set_title(f"frame {frame}" + (", reference" if frame == reference else ""), fontsize=8)
        row[0].set_ylabel(panel.title, fontsize=8)
    if threshold is None:
        _colour_bars(figure, axes, panels)
        boxes = "Green: the reference."
    else:
        boxes = f"Green: the reference. White: |affinity| of at least {threshold:g} of the largest in the clip."
    _write(figure, caption if caption is not None else " ".join([boxes, *_unframed(even), *_notes(networks)]))
    return figure


figure6 = partial(figure1, threshold=None)
"""Draw heat maps of what blocks relate a spot in one frame of a video to (Fig. 6), divided by the largest affinity."""


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as .png, .svg or .pdf, whole or not at all, and return the path.

    The same figure gives the same file.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"path ({path}) must end in one of {', '.join(SUFFIXES)}")
    metadata: dict[str, Any] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[suffix]
    # letters of an SVG file become outlines, the same on every machine
    with matplotlib.rc_context({"svg.hashsalt": "cgnl", "svg.fonttype": "path"}), whole_file(path, "wb") as file:
        figure.savefig(file, format=suffix[1:], dpi=160, metadata=metadata, bbox_inches="tight")
    return path


@dataclass(frozen=True)
class _Panel:
    """A map [h, w], or its steps [T', h, w], divided by its largest affinity."""

    title: str
    values: Tensor
    signed: bool  # whether any map of the network has negative affinities: all of them get the same colours

    def all_reach(self, threshold: float) -> bool:
        """Tell whether no position is below a threshold, so that a frame around all of them would show nothing."""
        return bool((self.values.abs() >= threshold).all())


def _unframed(names: Sequence[str]) -> list[str]:
    """Return the sentence on maps, by name, that have no frames since all of their positions reach the threshold."""
    if not names:
        return []
    return [f"Not framed, as the whole map reaches the threshold and nothing stands out: {', '.join(names)}."]


def _related(
    name: str, block: BlockTrace, at: tuple[float, float, int], view: View, num_frames: int, channel: int | None
) -> tuple[Tensor, range]:
    """Return what a block relates a reference to, maps [K, *S'], and their channels; one map for all of an NL block."""
    check_drawable(block, f"networks[{name!r}]")
    steps, rows, columns = _axes_of(block)
    if steps > num_frames:
        raise ValueError(
            f"networks[{name!r}]: a block of {steps} time steps has seen more than the frames ({num_frames}) given"
        )
    x, y, frame = at
    row, column = view.position(x, y, (rows, columns))
    position: tuple[int, ...] = (time_step(frame, num_frames, steps), row, column)[-len(block.shape) :]
    first = 0
    if len(block.shape) == 1:
        if block.phi is None or block.phi.shape[1:] != block.shape:
            raise ValueError(f"networks[{name!r}]: sub-sampled tokens have no place in the image")
        first = token_grid(block.shape[0])[2]
        position = (first + row * columns + column,)
    if block.kind == "nl":
        return affinity(block, position)[None, first:], range(1)
    channel = reference_channel(block, position) if channel is None else channel
    return affinity(block, position, channel)[:, first:], affinity_group(block, channel)


def _axes_of(block: BlockTrace) -> tuple[int, int, int]:
    """Return the time steps, rows and columns of a block's feature map."""
    shape = block.shape
    if len(shape) == 1:
        return (1, *token_grid(shape[0])[:2])
    return (shape[0] if len(shape) == 3 else 1, shape[-2], shape[-1])


def _spread(values: Tensor, block: BlockTrace) -> Tensor:
    """Return a map over the positions of phi as [T', h, w]."""
    shape = _axes_of(block)
    if len(block.shape) == 1:
        return values.view(shape)
    return unpool(values.view(shape[0], *values.shape[-2:]), shape)


def _strongest(name: str, block: BlockTrace, maps: Tensor, channels: range, num_maps: int) -> list[_Panel]:
    panels = []
    for k in strongest_channels(maps, num_maps):
        which = "all channels"
        if block.kind != "nl":
            which = f"channel {channels[k]}, group {channels[k] // len(channels)}"
        values = _spread(normalised(maps[k]), block)[0]
        panels.append(_Panel(_title(name, maps[k], which), values, bool((maps < 0).any())))
    return panels


def _title(name: str, values: Tensor, which: str) -> str:
    """Return the title of a map: its network and range, which tells a uniform map from one with peaks."""
    return "\n".join([*textwrap.wrap(f"{name}: {values.min():.3g} to {values.max():.3g}", _LETTERS), which])


def _chosen_frames(num_frames: int, num_steps: int, reference: int, count: int) -> list[int]:
    """Return frames of different time steps, evenly spread, the reference in the place of the nearest."""
    count = min(count, num_steps)
    middles = ((np.arange(num_steps) + 0.5) * num_frames / num_steps).astype(int)
    chosen = middles[((np.arange(count) + 0.5) * num_steps / count).astype(int)]
    own = [time_step(int(frame), num_frames, num_steps) for frame in chosen]
    target = time_step(reference, num_frames, num_steps)
    chosen[np.argmin([abs(step - target) for step in own])] = reference
    return [int(frame) for frame in chosen]


def _check(networks: Mapping[str, tuple[Trace, str]], threshold: float | None) -> None:
    if not networks:
        raise ValueError("networks must hold at least one network")
    for name, (trace, path) in networks.items():
        if path not in trace.blocks:
            raise ValueError(f"networks[{name!r}]: {path!r} must be one of {', '.join(trace.blocks) or 'no blocks'}")
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"threshold ({threshold}) must be above 0 and at most 1")


def _notes(networks: Mapping[str, tuple[Trace, str]]) -> list[str]:
    """Return what the maps are, and what is true of them, once for the networks of which the same is."""
    notes: list[str] = []
    names: dict[str, list[str]] = {}
    for name, (trace, path) in networks.items():
        block = trace.blocks[path]
        notes.append(f"{name}: block after {path} ({kind_in_words(block)}).")
        names.setdefault(statement(block), []).append(name)
    return notes + [f"{', '.join(of)}: {words}" if len(networks) > 1 else words for words, of in names.items()]


def _picture(image: Image.Image | np.ndarray, view: View) -> Image.Image:
    """Return an image, checked, in RGB, no larger than can be seen."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    if picture.size != (view.width, view.height):
        raise ValueError(
            f"image ({picture.width} x {picture.height}) must have the view's {view.width} x {view.height} pixels"
        )
    picture = picture.convert("RGB")
    picture.thumbnail((_LONGEST, _LONGEST))
    return picture


def _faded(picture: Image.Image) -> Image.Image:
    """Return a picture in grey."""
    return picture.convert("L").convert("RGB")


def _grid(rows: int, columns: int, view: View) -> tuple[Figure, np.ndarray]:
    tall = min(max(_PANEL * view.height / view.width, 0.8), 1.6 * _PANEL)
    figure = Figure(figsize=(max(columns * _PANEL, 4.0), rows * (tall + 0.4) + 0.2), layout="compressed")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    return figure, axes


def _show(ax: Axes, picture: Image.Image, view: View) -> None:
    """Draw an image in the coordinates of the file's pixels, and what the network did not see of it paler."""
    ax.set_axis_on()
    ax.set(xticks=[], yticks=[])
    ax.imshow(picture, extent=(0, view.width, view.height, 0), interpolation="antialiased")
    x0, y0, x1, y1 = view.area
    for x, y, width, height in (
        (0, 0, x0, view.height),
        (x1, 0, view.width - x1, view.height),
        (x0, 0, x1 - x0, y0),
        (x0, y1, x1 - x0, view.height - y1),
    ):
        if width > 0 and height > 0:
            ax.add_patch(Rectangle((x, y), width, height, facecolor="white", alpha=0.7, linewidth=0))
    ax.set(xlim=(0, view.width), ylim=(view.height, 0))


def _lay(ax: Axes, values: Tensor | np.ndarray, view: View, **options: Any) -> None:
    """Draw a map [h, w] over the part of the image that the network saw."""
    x0, y0, x1, y1 = view.area
    ax.imshow(values, extent=(x0, x1, y1, y0), interpolation="nearest", **options)
    ax.set(xlim=(0, view.width), ylim=(view.height, 0))


def _heat(ax: Axes, values: Tensor, view: View, *, signed: bool) -> None:
    if signed:
        _lay(ax, values.numpy(), view, cmap=_SIGNED, vmin=-1, vmax=1, alpha=_OPACITY)
    else:
        _lay(ax, values.numpy(), view, cmap=_POSITIVE, vmin=0, vmax=1, alpha=_OPACITY)


def _darken(ax: Axes, mask: Tensor, view: View) -> None:
    shade = np.zeros((*mask.shape, 4))
    shade[..., 3] = 0.55 * mask.numpy()
    _lay(ax, shade, view)


def _frame(ax: Axes, mask: Tensor, view: View) -> None:
    shape = (mask.shape[0], mask.shape[1])
    for y0, x0, y1, x1 in regions(mask):
        left, upper, _, _ = view.box(y0, x0, shape)
        _, _, right, lower = view.box(y1 - 1, x1 - 1, shape)
        _draw_box(ax, (left, upper, right, lower), "white")


def _mark(ax: Axes, at: tuple[float, ...], shape: Sequence[int], view: View) -> None:
    """Draw the reference: the part of the image that its position stands for."""
    rows, columns = shape
    row, column = view.position(at[0], at[1], (rows, columns))
    _draw_box(ax, view.box(row, column, (rows, columns)), _REFERENCE)


def _draw_box(ax: Axes, box: Box, colour: str) -> None:
    x0, y0, x1, y1 = box
    # a dark rim keeps it visible on bright ground
    rim = [withStroke(linewidth=2.2, foreground="black")]
    ax.add_patch(
        Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.2, path_effects=rim, zorder=3)
    )


def _name_parts(ax: Axes, parts: Mapping[str, Part], *, legend: bool) -> None:
    """Draw numbered points and boxes, and their names beside."""
    for number, part in enumerate(parts.values(), start=1):
        if len(part) == 4:
            _draw_box(ax, part, "white")
        x, y = part[0], part[1]
        disc = {"boxstyle": "circle,pad=0.15", "facecolor": "black", "edgecolor": "white", "linewidth": 0.6}
        ax.text(x, y, str(number), color="white", fontsize=5, ha="center", va="center", bbox=disc, clip_on=True)
    if legend:
        names = "\n".join(f"{number} {name}" for number, name in enumerate(parts, start=1))
        ax.text(1.05, 1, names, transform=ax.transAxes, fontsize=6, va="top")


def _colour_bars(figure: Figure, axes: np.ndarray, panels: Sequence[_Panel]) -> None:
    """Draw one bar for the maps with negative affinities and one for those without."""
    for signed, colours, low in ((False, _POSITIVE, 0), (True, _SIGNED, -1)):
        if any(panel.signed == signed for panel in panels):
            colour = ScalarMappable(Normalize(low, 1), colours)
            bar = figure.colorbar(colour, ax=axes, location="bottom", shrink=0.4, aspect=40, pad=0.02, alpha=_OPACITY)
            bar.set_label("affinity / largest |affinity|" if signed else "|affinity| / largest", fontsize=8)
            bar.ax.tick_params(labelsize=7)
            figure.set_figheight(figure.get_figheight() + 0.55)


def _write(figure: Figure, caption: str) -> None:
    letters = int(14.5 * figure.get_figwidth())  # of 8 points
    lines = textwrap.wrap(caption, letters)
    figure.set_figheight(figure.get_figheight() + 0.16 * len(lines))
    figure.supxlabel("\n".join(lines), fontsize=8)
