"""Table 2d: channel groups of one CGNL block, ResNet-50 and ResNet-101 on Mini-Kinetics-200."""

from cgnl.recipes.rows import row, table
from cgnl.recipes.video import MINI_KINETICS

TABLE_2D = table(
    "2d",
    MINI_KINETICS,
    row("mini-kinetics-resnet50", "R-50", "none", (75.54, 92.16)),
    row("mini-kinetics-resnet50-cgnl-g1", "R-50 + 1 CGNL block, 1 group", "cgnl", (77.16, 93.56), groups=1),
    row("mini-kinetics-resnet50-cgnl-g4", "R-50 + 1 CGNL block, 4 groups", "cgnl", (77.56, 93.00), groups=4),
    row("mini-kinetics-resnet50-cgnl", "R-50 + 1 CGNL block, 8 groups", "cgnl", (77.76, 93.18)),
    row("mini-kinetics-resnet101", "R-101", "none", (77.44, 93.18)),
    row("mini-kinetics-resnet101-cgnl-g1", "R-101 + 1 CGNL block, 1 group", "cgnl", (78.79, 93.64), groups=1),
    row("mini-kinetics-resnet101-cgnl-g4", "R-101 + 1 CGNL block, 4 groups", "cgnl", (79.06, 93.54), groups=4),
    row("mini-kinetics-resnet101-cgnl", "R-101 + 1 CGNL block, 8 groups", "cgnl", (79.54, 93.84)),
)
