"""The plots that ``cgnl benchmark`` draws, from its records alone."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from cgnl.explain.report import COLOURS, MARKERS
from cgnl.files import whole_file
from cgnl.measure.tables import CANDIDATES, METHODS, NETWORKS, Record, Spread


def draw(kind: str, record: Record, path: Path) -> bool:
    """Draw a record's plot into a PNG file, whole or not at all, and return True if the record holds something to draw.

    Where it does not, there is no file: one from an earlier run goes. ``kind`` is "table1", "block", "networks" or
    "accuracy".
    """
    figure = _PLOTS[kind](record)
    if figure is None:
        path.unlink(missing_ok=True)
        return False
    with whole_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)
    return True


def _table1(record: Record) -> Figure | None:
    """Time and memory against N, a column for each C, with guides of slopes 1 and 2."""
    rows = [row for row in record["rows"] if "seconds" in row]
    if not rows:
        return None
    all_channels = sorted({row["channels"] for row in rows})
    figure = Figure(figsize=(3.6 * len(all_channels) + 0.6, 6.6), layout="constrained")
    axes = figure.subplots(2, len(all_channels), sharex=True, sharey="row", squeeze=False)
    for column, channels in enumerate(all_channels):
        for line, (method, (label, *_)) in enumerate(METHODS.items()):
            points = [row for row in rows if (row["method"], row["channels"]) == (method, channels)]
            positions = [row["positions"] for row in points]
            style = {"color": COLOURS[line], "marker": MARKERS[line], "markersize": 5, "label": label}
            axes[0, column].plot(positions, [row["seconds"]["median"] for row in points], **style)
            axes[1, column].plot(positions, [max(1, row["bytes"]) for row in points], **style)
        axes[0, column].set_title(f"C = {channels}")
        axes[1, column].set_xlabel("positions N")
    for row_of_axes, what in zip(axes, ("seconds per training step", "bytes that grow with N"), strict=True):
        row_of_axes[0].set_ylabel(what)
        for panel in row_of_axes:
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.grid(alpha=0.3, linewidth=0.6)
        for panel in row_of_axes:
            _guides(panel, rows)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def _guides(panel: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw dashed lines of slopes 1 and 2 in the lower right corner, below the data."""
    low, high = panel.get_ylim()
    last = max(row["positions"] for row in rows)
    positions = np.array([last / 16, last / 2])
    for slope, style in ((1, "--"), (2, ":")):
        values = low * (positions / positions[0]) ** slope
        panel.plot(positions, values, color="#777777", linestyle=style, linewidth=1, label="_guide")
        panel.annotate(
            f"N$^{slope}$" if slope > 1 else "N",
            (positions[1], values[1]),
            xytext=(3, -3),
            textcoords="offset points",
            color="#555555",
            fontsize=8,
        )
    panel.set_ylim(low, high)


def _block(record: Record) -> Figure | None:
    """Draw training time over the floor, with a panel for each shape, type and memory format."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in record["rows"]:
        if "training" in row:
            layout = row["memory_format"].replace("_", " ")
            groups.setdefault(f"{row['shape']}\n{row['dtype']}, {layout}", []).append(row)
    return _bars(
        {
            title: {
                CANDIDATES[row["candidate"]]: (row["forward"]["over_floor"], row["training"]["over_floor"])
                for row in rows
            }
            for title, rows in groups.items()
        },
        ("forward", "forward and backward"),
        "times the floor",
        columns=len({(row["dtype"], row["memory_format"]) for row in record["rows"]}),
    )


def _networks(record: Record) -> Figure | None:
    """Time and peak memory over the plain network's, a row for each network."""
    quartiles = ("median", "lower_quartile", "upper_quartile")
    groups: dict[str, dict[str, tuple[Spread, ...]]] = {}
    rows = {(row["network"], row["num_blocks"], row["mode"]): row for row in record["rows"] if row["num_blocks"]}
    for network, num_blocks in dict.fromkeys(key[:2] for key in rows):
        for what, of in (("time", "time_over_plain"), ("peak memory", "peak_over_plain")):
            both = [rows[network, num_blocks, mode].get(of) for mode in ("inference", "training")]
            spreads = tuple(
                value if isinstance(value, dict) else dict.fromkeys(quartiles, value) for value in both if value
            )
            if len(spreads) == 2:
                blocks = f"{num_blocks} CGNL block{'s' * (num_blocks > 1)}"
                groups.setdefault(f"{NETWORKS[network]}: {what}", {})[blocks] = spreads
    return _bars(groups, ("inference", "training"), "times the plain network", columns=2)


def _accuracy(record: Record) -> Figure | None:
    """Draw the largest errors of every backend and type, with a point for each tensor and case."""
    rows = [row for row in record["rows"] if row.get("errors")]
    if not rows:
        return None
    labels = list(dict.fromkeys((row["backend"], row["dtype"]) for row in rows))
    kernels = list(dict.fromkeys(row["kernel"] for row in rows))
    figure = Figure(figsize=(8, 1.2 + 0.75 * len(labels)), layout="constrained")
    panel = figure.subplots()
    for line, kernel in enumerate(kernels):
        points = [
            (error, labels.index((row["backend"], row["dtype"])) + 0.12 * (line - (len(kernels) - 1) / 2))
            for row in rows
            if row["kernel"] == kernel
            for error in row["errors"].values()
        ]
        errors, heights = zip(*points, strict=True)
        panel.scatter(errors, heights, s=18, color=COLOURS[line], marker=MARKERS[line], label=kernel, alpha=0.8)
    panel.set_xscale("log")
    low, high = panel.get_xlim()
    panel.set_xlim(min(low, 0.09), max(high, 11))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_yticks(range(len(labels)), [f"{backend}\n{dtype}" for backend, dtype in labels])
    panel.invert_yaxis()
    panel.set_xlabel("largest error of an output or a gradient, in units of the type's rounding")
    panel.grid(alpha=0.3, linewidth=0.6)
    figure.legend(loc="outside upper center", ncols=len(kernels), frameon=False, fontsize=9)
    return figure


def _bars(
    groups: Mapping[str, Mapping[str, tuple[Spread, ...]]], series: tuple[str, str], what: str, *, columns: int
) -> Figure | None:
    """Draw bars of medians with quartiles, with a panel for each group and two bars for each of its members."""
    if not groups:
        return None
    count = -(-len(groups) // columns)
    most = max(len(members) for members in groups.values())
    figure = Figure(figsize=(4.4 * columns, (1.1 + 0.3 * most) * count + 0.6), layout="constrained")
    panels = figure.subplots(count, columns, squeeze=False).flat
    for (title, members), panel in zip(groups.items(), panels, strict=False):
        for line, label in enumerate(series):
            values = [spreads[line] for spreads in members.values()]
            medians = np.array([value["median"] for value in values])
            below = medians - [value["lower_quartile"] for value in values]
            above = [value["upper_quartile"] for value in values] - medians
            panel.barh(
                np.arange(len(members)) + 0.38 * (line - 0.5),
                medians,
                height=0.36,
                xerr=(below, above),
                color=COLOURS[2 * line],
                error_kw={"linewidth": 1, "ecolor": "#333333"},
                label=label,
            )
        panel.set_yticks(range(len(members)), list(members), fontsize=8)
        panel.invert_yaxis()
        panel.axvline(1, color="#333333", linewidth=1)
        panel.set_title(title, fontsize=9)
        panel.set_xlabel(what, fontsize=8)
        panel.grid(axis="x", alpha=0.3, linewidth=0.6)
    for panel in panels:
        panel.set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


_PLOTS: dict[str, Callable[[Record], Figure | None]] = {
    "table1": _table1,
    "block": _block,
    "networks": _networks,
    "accuracy": _accuracy,
}
