"""Draws the figures of docs/blocks.md: `python docs/draw_blocks.py` writes docs/figures/*.svg.

The same matplotlib gives the same bytes. Text is drawn as paths, and the background is white, so that the figures
look the same on light and dark pages. Colours are Okabe and Ito's, which colour-blind readers tell apart.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle

GROUP_NORM_RESULTS = Path(__file__).parents[1] / "studies" / "results" / "group_norm.json"

Point = tuple[float, float]

INK, GREY = "#222222", "#666666"
WHITE, PALE_GREY = "#ffffff", "#ececec"
BLUE, PALE_BLUE = "#0072b2", "#d6e9f5"
GREEN, PALE_GREEN = "#009e73", "#d5efe6"
ORANGE, PALE_ORANGE = "#e69f00", "#fbe9c6"
PALE_PURPLE = "#f3dfea"


@dataclass(frozen=True)
class Box:
    """A rectangle by its centre, with the points where arrows meet it."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> Point:
        return self.x - self.width / 2, self.y

    @property
    def right(self) -> Point:
        return self.x + self.width / 2, self.y

    @property
    def top(self) -> Point:
        return self.x, self.y + self.height / 2

    @property
    def bottom(self) -> Point:
        return self.x, self.y - self.height / 2


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Draw a white page with round corners, in units of 1/100 inch, y upwards."""
    figure = plt.figure(figsize=(width / 100, height / 100), facecolor="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    page = FancyBboxPatch((2, 2), width - 4, height - 4, boxstyle="round,pad=0,rounding_size=12", fc=WHITE, ec="none")
    axes.add_patch(page)
    return figure, axes


def text(
    axes: Axes, x: float, y: float, words: str, *, size: float = 11, color: str = INK, align: str = "center"
) -> None:
    axes.text(x, y, words, size=size, color=color, ha=align, va="center", linespacing=1.35)


def box(axes: Axes, x: float, y: float, width: float, height: float, words: str, fill: str, size: float = 11) -> Box:
    style = "round,pad=0,rounding_size=6"
    axes.add_patch(
        FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle=style, fc=fill, ec=INK, lw=1)
    )
    text(axes, x, y, words, size=size)
    return Box(x, y, width, height)


def formula_box(axes: Axes, x: float, y: float, width: float, words: str, formula: str) -> Box:
    """Draw a box with words above a formula, which may be taller than a line."""
    result = box(axes, x, y, width, 78, "", PALE_ORANGE)
    text(axes, x, y + 24, words)
    text(axes, x, y - 10, formula, size=12)
    return result


def operator(axes: Axes, x: float, y: float, sign: str) -> Box:
    radius = 13
    axes.add_patch(Circle((x, y), radius, fc=WHITE, ec=INK, lw=1.2))
    text(axes, x, y, sign, size=15)
    return Box(x, y, 2 * radius, 2 * radius)


def arrow(axes: Axes, *points: Point, color: str = INK) -> None:
    """Draw a line through the points with its head at the last one."""
    xs, ys = zip(*points[:-1], strict=True)
    axes.plot(xs, ys, color=color, lw=1.3, solid_joinstyle="round", solid_capstyle="butt")
    axes.add_patch(
        FancyArrowPatch(*points[-2:], arrowstyle="-|>", mutation_scale=11, lw=1.3, color=color, shrinkA=0, shrinkB=0)
    )


def draw_grouped_block() -> Figure:
    """Draw the CGNL block with groups and the shapes of its tensors (after Fig. 2)."""
    figure, axes = canvas(900, 470)
    x = box(axes, 50, 235, 64, 48, "$X$\n[C, N]", PALE_BLUE)
    for offset in (16, 8, 0):
        axes.add_patch(
            FancyBboxPatch(
                (274 + offset, 62 + offset), 380, 350,
                boxstyle="round,pad=0,rounding_size=8", fc="#f7f7f7", ec=GREY, lw=1,
            )
        )  # fmt: skip
    text(axes, 288, 387, "each of the G groups:\nc = C′/G channels, M = c N elements", size=10, align="left")

    rows = {"\\theta": 325, "\\phi": 235, "g": 125}
    parts = {}
    for name, y in rows.items():
        convolution = box(axes, 163, y, 96, 48, f"${name}$\n$1 \\times 1$ conv", PALE_GREEN)
        if y == x.y:
            arrow(axes, x.right, convolution.left)
        else:
            arrow(axes, x.right, (98, x.y), (98, y), convolution.left)
        parts[name] = box(axes, 325, y, 62, 48, f"${name}$\n[M]", PALE_BLUE)
        arrow(axes, convolution.right, parts[name].left)
        text(axes, 242, y + 12, "[C′, N]", size=10)

    sums = formula_box(axes, 478, 175, 156, "P + 1 sums", "$z_p = \\alpha_p^2 \\, \\sum_j \\phi_j^p \\, g_j$")
    for name, y in (("\\phi", 192), ("g", 158)):
        source = parts[name].right
        arrow(axes, source, (376, source[1]), (376, y), (sums.left[0], y))
    polynomial = formula_box(axes, 554, 325, 150, "polynomial in $\\theta$", "$y_i = \\sum_p z_p \\, \\theta_i^p$")
    arrow(axes, parts["\\theta"].right, polynomial.left)
    arrow(axes, sums.right, (595, sums.y), (595, polynomial.bottom[1]))
    text(axes, 588, 235, "[P + 1]", size=10, align="right")

    joined = box(axes, 775, 325, 150, 48, "concatenate\nthe groups", PALE_GREY)
    arrow(axes, polynomial.right, joined.left)
    text(axes, 684, 337, "[M]", size=10)
    z = box(axes, 775, 240, 150, 48, "$z$: $1 \\times 1$ conv\nwith G groups", PALE_GREEN)
    norm = box(axes, 775, 160, 150, 42, "norm", PALE_PURPLE)
    plus = operator(axes, 775, 98, "+")
    out = box(axes, 854, 98, 60, 48, "$Z$\n[C, N]", PALE_BLUE)
    arrow(axes, joined.bottom, z.top)
    text(axes, 782, 282, "$Y$ [C′, N]", size=10, align="left")
    arrow(axes, z.bottom, norm.top)
    text(axes, 782, 198, "[C, N]", size=10, align="left")
    arrow(axes, norm.bottom, plus.top)
    text(axes, 768, 126, "[C, N]", size=10, align="right")
    arrow(axes, plus.right, out.left)
    arrow(axes, x.bottom, (x.x, 34), (plus.x, 34), plus.bottom, color=BLUE)
    text(axes, 412, 46, "residual connection", size=10, color=BLUE)
    return figure


def draw_workflow() -> Figure:
    """Draw the CGNL block with the dot product, and its formula (after Fig. 3)."""
    figure, axes = canvas(900, 385)
    x = box(axes, 50, 300, 50, 48, "$X$", PALE_BLUE)
    theta, phi, g = (
        box(axes, 165, y, 96, 48, f"${name}$\n$1 \\times 1$ conv", PALE_GREEN)
        for name, y in (("\\theta", 300), ("\\phi", 225), ("g", 150))
    )
    arrow(axes, x.right, theta.left)
    for convolution in (phi, g):
        arrow(axes, x.right, (92, x.y), (92, convolution.y), convolution.left)
    scalar = box(axes, 345, 188, 160, 62, "$s = \\phi^{\\top} g$\none number a group", PALE_ORANGE, size=10)
    for convolution, y in ((phi, 202), (g, 174)):
        arrow(axes, convolution.right, (240, convolution.y), (240, y), (scalar.left[0], y))
    times = operator(axes, 345, 300, "×")
    arrow(axes, theta.right, times.left)
    arrow(axes, scalar.top, times.bottom)
    _finish_workflow(axes, times, x, "$s\\,\\theta$")
    _formula(
        axes, "$Z \\;=\\; \\mathrm{norm}(\\,\\mathrm{conv}_z(\\,s\\,\\theta\\,)\\,) + X , \\qquad s = \\phi^{\\top} g$"
    )
    return figure


def draw_residual_block() -> Figure:
    """Draw the simple residual block, and its formula (after Fig. 4)."""
    figure, axes = canvas(900, 265)
    x = box(axes, 50, 180, 50, 48, "$X$", PALE_BLUE)
    theta = box(axes, 165, 180, 96, 48, "$\\theta$\n$1 \\times 1$ conv", PALE_GREEN)
    arrow(axes, x.right, theta.left)
    _finish_workflow(axes, theta, x, "$\\theta$")
    _formula(axes, "$Z \\;=\\; \\mathrm{norm}(\\,\\mathrm{conv}_z(\\,\\theta\\,)\\,) + X$")
    return figure


def _finish_workflow(axes: Axes, last: Box, x: Box, product: str) -> None:
    """Draw conv_z, norm and residual after ``last``, on the same height."""
    y = last.y
    z = box(axes, 530, y, 120, 48, "$z$: $1 \\times 1$ conv\nwith G groups", PALE_GREEN)
    norm = box(axes, 680, y, 90, 48, "norm", PALE_PURPLE)
    plus = operator(axes, 776, y, "+")
    out = box(axes, 850, y, 50, 48, "$Z$", PALE_BLUE)
    for start, end in ((last, z), (z, norm), (norm, plus), (plus, out)):
        arrow(axes, start.right, end.left)
    text(axes, (last.right[0] + z.left[0]) / 2, y + 13, product)
    arrow(axes, x.top, (x.x, y + 56), (plus.x, y + 56), plus.top, color=BLUE)


def _formula(axes: Axes, words: str) -> None:
    box(axes, 450, 60, 620, 60, words, "#eaf3fa", size=15)


def draw_relations() -> Figure:
    """Draw what NL relates (positions) and what GNL relates (elements of a group)."""
    figure, axes = canvas(900, 370)
    axes.plot([450, 450], [30, 340], color=PALE_GREY, lw=1.5)
    num_channels, num_positions, group_channels, cell = 4, 6, 2, 30

    _title(axes, 225, "Non-local (NL)", "each position with each position")
    left, bottom = 60, 140
    for channel in range(num_channels):
        for position in range(num_positions):
            fill = ORANGE if position == 1 else PALE_BLUE
            _cell(axes, left + position * cell, bottom + channel * cell, cell, fill)
    for position in (0, 2, 3, 4, 5):
        _arc(axes, (left + 1.5 * cell, bottom - 4), (left + (position + 0.5) * cell, bottom - 4), 0.45)
    _axis_words(axes, left, bottom, num_channels * cell, num_positions * cell)
    _matrix(axes, (320, 160), 90, num_positions, 1)
    text(axes, 365, 142, "$N \\times N$", size=11)
    text(axes, 365, 123, "one for all channels", size=10)
    text(axes, 225, 50, "$y_n = \\sum_m f(\\theta_n, \\phi_m) \\, g_m$", size=13)

    _title(axes, 675, "Generalized non-local (GNL)", "each element with each element of its group")
    left = 510
    here = (1, 3)
    for channel in range(num_channels):
        for position in range(num_positions):
            in_group = channel >= num_channels - group_channels
            fill = PALE_BLUE if in_group else PALE_GREY
            if (position, channel) == here:
                fill = ORANGE
            _cell(axes, left + position * cell, bottom + channel * cell, cell, fill)
    start = _middle(left, bottom, cell, *here)
    for channel in range(num_channels - group_channels, num_channels):
        for position in range(num_positions):
            end = _middle(left, bottom, cell, position, channel)
            if (position, channel) != here:
                _arc(axes, start, end, 0.25 if channel == here[1] else 0.0)
    for first in (0, group_channels):
        corner = (left, bottom + first * cell)
        size = (num_positions * cell, group_channels * cell)
        axes.add_patch(Rectangle(corner, *size, fc="none", ec=INK, lw=2))
    _axis_words(axes, left, bottom, num_channels * cell, num_positions * cell)
    for offset in (14, 0):
        _matrix(axes, (752 + offset, 160 + offset), 100, group_channels * num_positions, here[0])
    text(axes, 802, 142, "$M \\times M$", size=11)
    text(axes, 802, 123, "one for each group", size=10)
    text(axes, 675, 50, "$y_i = \\sum_j f(\\theta_i, \\phi_j) \\, g_j$", size=13)
    return figure


def _title(axes: Axes, x: float, name: str, relation: str) -> None:
    axes.text(x, 340, name, size=13, color=INK, ha="center", va="center", weight="bold")
    text(axes, x, 316, relation, size=11)


def _middle(left: float, bottom: float, cell: float, position: int, channel: int) -> Point:
    return left + (position + 0.5) * cell, bottom + (channel + 0.5) * cell


def _cell(axes: Axes, x: float, y: float, size: float, fill: str) -> None:
    axes.add_patch(Rectangle((x, y), size, size, fc=fill, ec=GREY, lw=0.8))


def _arc(axes: Axes, start: Point, end: Point, bend: float) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            connectionstyle=f"arc3,rad={bend if end[0] > start[0] else -bend}",
            arrowstyle="-|>",
            mutation_scale=8,
            color=BLUE,
            shrinkA=0,
            shrinkB=2,
        )
    )


def _axis_words(axes: Axes, left: float, bottom: float, height: float, width: float) -> None:
    axes.text(left - 16, bottom + height / 2, "C′ channels", size=10, color=INK, ha="center", va="center", rotation=90)
    text(axes, left + width / 2, bottom + height + 14, "N positions", size=10)


def _matrix(axes: Axes, corner: Point, size: float, count: int, marked_row: int) -> None:
    """Draw a square of all pairs, with the row of one element marked."""
    left, bottom = corner
    cell = size / count
    for row in range(count):
        for column in range(count):
            fill = ORANGE if row == marked_row else PALE_BLUE
            _cell(axes, left + column * cell, bottom + size - (row + 1) * cell, cell, fill)


def draw_norms() -> Figure:
    """Draw what is left of the attention behind three norms, from studies/results/group_norm.json."""
    rows = json.loads(GROUP_NORM_RESULTS.read_text())["rows"]
    figure, _ = canvas(900, 330)
    panels = {
        "branch_change": "change of the branch, s replaced by its sign",
        "phi_gradient_over_theta": "gradient of $\\phi$'s weight over $\\theta$'s",
    }
    styles = {
        "batch": ("BatchNorm", BLUE, "o"),
        "batch, 1 sample": ("BatchNorm, one sample", ORANGE, "^"),
        "group": ("GroupNorm", INK, "s"),
    }
    for left, (quantity, words) in zip((0.085, 0.565), panels.items(), strict=True):
        axes = figure.add_axes((left, 0.27, 0.4, 0.6))
        for norm, (label, color, marker) in styles.items():
            chosen = [row for row in rows if row["norm"] == norm]
            lows, medians, highs = zip(*(row[quantity] for row in chosen), strict=True)
            scales = [row["weight_scale"] for row in chosen]
            axes.fill_between(scales, lows, highs, color=color, alpha=0.15, lw=0)
            axes.plot(scales, medians, color=color, marker=marker, label=label)
        axes.set(xscale="log", yscale="log", ylim=(1e-7, 20), xlabel="standard deviation of the convolutions' weights")
        axes.set_title(words, size=11)
        axes.grid(color=PALE_GREY)
    figure.legend(*axes.get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False)
    return figure


FIGURES = {
    "cgnl_block_with_groups": draw_grouped_block,
    "cgnl_block_workflow": draw_workflow,
    "residual_block_workflow": draw_residual_block,
    "what_is_related": draw_relations,
    "norms": draw_norms,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the figures of docs/blocks.md.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures", help="folder for the figures")
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"svg.hashsalt": "cgnl", "svg.fonttype": "path", "mathtext.fontset": "dejavusans"})
    metadata = {"Date": None, "Creator": None} if arguments.format == "svg" else None
    for name, draw in FIGURES.items():
        figure = draw()
        figure.savefig(arguments.out / f"{name}.{arguments.format}", metadata=metadata, dpi=89)
        plt.close(figure)


if __name__ == "__main__":
    main()
