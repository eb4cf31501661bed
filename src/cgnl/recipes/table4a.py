"""Table 4a: one and five NL and CGNL blocks, ResNet-50 and ResNet-101 on Mini-Kinetics-200."""

from cgnl.recipes.rows import again, row, table
from cgnl.recipes.video import MINI_KINETICS

TABLE_4A = table(
    "4a",
    MINI_KINETICS,
    again("mini-kinetics-resnet50", "R-50"),
    row("mini-kinetics-resnet50-nl", "R-50 + 1 NL block", "nl", (76.53, 92.90)),
    again("mini-kinetics-resnet50-cgnl", "R-50 + 1 CGNL block"),
    row("mini-kinetics-resnet50-nl5", "R-50 + 5 NL block", "nl", (77.53, 94.00), blocks=5),
    row("mini-kinetics-resnet50-cgnl5", "R-50 + 5 CGNL block", "cgnl", (78.79, 94.37), blocks=5),
    again("mini-kinetics-resnet101", "R-101"),
    row("mini-kinetics-resnet101-nl", "R-101 + 1 NL block", "nl", (78.02, 93.86)),
    again("mini-kinetics-resnet101-cgnl", "R-101 + 1 CGNL block"),
    row("mini-kinetics-resnet101-nl5", "R-101 + 5 NL block", "nl", (79.21, 93.21), blocks=5),
    row("mini-kinetics-resnet101-cgnl5", "R-101 + 5 CGNL block", "cgnl", (79.88, 93.37), blocks=5),
)
