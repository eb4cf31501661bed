"""The pictures of a comparison's report. A kind of block has the same colour and marker in all of them."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cgnl.compare.statistics import PLAIN, Difference, Group
from cgnl.explain.report import COLOURS, MARKERS

_INTERVENTIONS = {
    "top1": ("as trained", "o"),
    "mean_s": ("s set to its mean", "|"),
    "shuffled_s": ("s shuffled between samples", "x"),
    "removed": ("block removed", "s"),
}
"""Words and marker of each top-1 accuracy in the picture of what the sums do."""
# darker than the others, for those who see no hues; with six markers they make 24 styles
_MORE_COLOURS = ("#882255", "#8A8A00")
_GREY = "#555555"
_ROW = 0.52  # inches


class Style(NamedTuple):
    """Colour and marker of a kind of block."""

    colour: str
    marker: str


def styles(blocks: Sequence[str]) -> dict[str, Style]:
    """Return a style for each kind of block; the plain network is black."""
    *colours, black = COLOURS
    colours += _MORE_COLOURS
    circle, *markers = MARKERS
    others = [block for block in blocks if block != PLAIN]
    found = {block: Style(colours[k % len(colours)], markers[k % len(markers)]) for k, block in enumerate(others)}
    return {PLAIN: Style(black, circle), **found}


def accuracy(groups: Sequence[Group], style: Mapping[str, Style]) -> Figure:
    """Draw the top-1 accuracy of each run, and the differences from the plain network with their intervals."""
    drawn = Figure(figsize=(9.5, 1.2 + _ROW * len(groups)), layout="constrained")
    runs, differences = drawn.subplots(1, 2, sharey=True, width_ratios=(5, 4))
    with_control = any(group.control for group in groups)
    for row, group in enumerate(groups):
        colour, marker = style[group.block]
        values = list(group.values("top1").values())
        heights = [row + 0.36 * ((k + 0.5) / len(values) - 0.5) for k in range(len(values))]
        runs.scatter(values, heights, s=20, color=colour, marker=marker, alpha=0.45, linewidths=0)
        mean = statistics.fmean(values)
        runs.plot([mean, mean], [row - 0.32, row + 0.32], color=colour, linewidth=2.5)
        if group.plain and group.plain.seeds:
            both = bool(group.control and group.control.seeds)
            _interval(differences, group.plain, row - 0.14 * both, style[group.block], hollow=False)
            if group.control and both:
                _interval(differences, group.control, row + 0.18, style[group.block], hollow=True)
        if group.plain:
            _beside(differences, row, f"{group.plain}, n = {len(group.plain.seeds)}\n{group.plain.outcome}")
    runs.set_yticks(range(len(groups)), [group.name for group in groups])
    runs.set_ylim(len(groups) - 0.5, -0.5)
    runs.set_xlabel("top-1 (%): seeds and their mean")
    differences.axvline(0, color="#000000", linewidth=1)
    differences.set_xlim(*(min(max(end, -100), 100) for end in differences.get_xlim()))
    differences.set_xlabel("top-1 minus the plain network's (points)")
    for axes in (runs, differences):
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    if with_control:
        handles = [
            Line2D([], [], color=_GREY, marker="o", label="against plain"),
            Line2D([], [], color=_GREY, marker="o", mfc="white", linewidth=1, label="against plain, twice as long"),
        ]
        drawn.legend(handles=handles, loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    return drawn


def _interval(axes: Axes, difference: Difference, height: float, style: Style, *, hollow: bool) -> None:
    axes.errorbar(
        difference.mean,
        height,
        xerr=difference.half_width,
        color=style.colour,
        marker=style.marker,
        markersize=5 if hollow else 7,
        markerfacecolor="white" if hollow else style.colour,
        linewidth=1 if hollow else 2,
        capsize=2 if hollow else 4,
    )


def _beside(axes: Axes, row: int, text: str) -> None:
    """Write a text to the right of a row."""
    axes.annotate(
        text, (1.02, row), xycoords=axes.get_yaxis_transform(), va="center", fontsize=8, annotation_clip=False
    )


def curves(groups: Sequence[Group], style: Mapping[str, Style]) -> Figure | None:
    """Draw losses and top-1 over the epochs, with the mean of the seeds thick; None where no run has a curve."""
    lines = [(group, key, _curve(group, key)) for group in groups for key in ("train_loss", "test_loss", "top1")]
    if not any(mean for _, _, (_, mean) in lines):
        return None
    drawn = Figure(figsize=(9.5, 3.9), layout="constrained")
    panels = dict(zip(("train_loss", "test_loss", "top1"), drawn.subplots(1, 3), strict=True))
    for group, key, (singles, mean) in lines:
        colour, marker = style[group.block]
        axes, dashes = panels[key], ":" if group.length == "twice" else "-"
        for single in singles if len(singles) > 1 else ():
            axes.plot(*zip(*single, strict=True), color=colour, linestyle=dashes, linewidth=0.7, alpha=0.25)
        if mean:
            every = max(1, len(mean) // 6)
            shape = {"marker": marker, "markersize": 4.5, "markevery": (every - 1, every), "linestyle": dashes}
            axes.plot(*zip(*mean, strict=True), color=colour, linewidth=1.8, label=group.name, **shape)
    for key, label in (("train_loss", "training loss"), ("test_loss", "test loss"), ("top1", "test top-1 (%)")):
        panels[key].set(xlabel="epoch", title=label)
        panels[key].xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[key].spines[["top", "right"]].set_visible(False)
        panels[key].grid(alpha=0.3)
        if key != "top1":
            panels[key].set_ylim(bottom=0)
    handles, labels = max((axes.get_legend_handles_labels() for axes in panels.values()), key=lambda both: len(both[1]))
    drawn.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return drawn


def _curve(group: Group, key: str) -> tuple[list[list[tuple[int, float]]], list[tuple[int, float]]]:
    """Return the points (epoch, value) of each seed and of their mean, at the epochs that all seeds have."""
    singles: list[list[tuple[int, float]]] = []
    at: dict[int, list[float]] = {}
    for run in group.runs.values():
        points = [(point["epoch"], point[key]) for point in run.get("curve") or () if point.get(key) is not None]
        if points:
            singles.append(points)
        for epoch, value in points:
            at.setdefault(epoch, []).append(value)
    mean = [(epoch, statistics.fmean(values)) for epoch, values in sorted(at.items()) if len(values) == len(singles)]
    return singles, mean


def diagnoses(group: Group) -> dict[str, list[float]]:
    """Return the numbers of all seeds' diagnoses by their names, with "top1" as trained."""
    found: dict[str, list[float]] = {}
    for run in group.runs.values():
        if run.get("diagnosis"):
            for key, value in {**run["diagnosis"], "top1": run["top1"]}.items():
                if value is not None:
                    found.setdefault(key, []).append(value)
    return found


def sums(groups: Sequence[Group], style: Mapping[str, Style]) -> Figure | None:
    """Draw top-1 as trained and with each change to the block or its sums; None where no run has a diagnosis."""
    known = [(group, found) for group in groups if (found := diagnoses(group))]
    if not known:
        return None
    drawn = Figure(figsize=(9.5, 1.3 + _ROW * len(known)), layout="constrained")
    axes = drawn.subplots()
    for row, (group, found) in enumerate(known):
        colour = style[group.block].colour
        means = {key: statistics.fmean(values) for key, values in found.items()}
        shown = [means[key] for key in _INTERVENTIONS if key in means]
        axes.plot([min(shown), max(shown)], [row, row], color=colour, linewidth=1, alpha=0.5)
        for key, (_, marker) in _INTERVENTIONS.items():
            if values := found.get(key):
                axes.scatter(
                    values, [row + 0.28] * len(values), s=14, color=colour, marker=marker, alpha=0.4, linewidths=1
                )
                axes.plot(means[key], row, **_marker(marker, colour))
        if "s_cv" in means and "s_positive" in means:
            _beside(axes, row, f"s: cv {means['s_cv']:.2f},\n{100 * means['s_positive']:.0f} % positive")
    axes.set_yticks(range(len(known)), [group.name for group, _ in known])
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.set_xlabel("top-1 (%): mean, and seeds below it")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [
        Line2D([], [], linestyle="", label=words, **_marker(marker, _GREY)) for words, marker in _INTERVENTIONS.values()
    ]
    drawn.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return drawn


def _marker(marker: str, colour: str) -> dict[str, Any]:
    hollow = marker == "s"
    return {
        "marker": marker,
        "color": colour,
        "markersize": 15 if marker == "|" else 8,
        "markerfacecolor": "white" if hollow else colour,
        "markeredgewidth": 2.5 if marker in "|x" else 1.5,
    }
