"""Table 4b: one and five NL and CGNL blocks, ResNet-50 and ResNet-101 on CUB-200-2011.

ResNet-101 with CGNLx is a row of the released code alone.
"""

from cgnl.recipes.image import CUB
from cgnl.recipes.rows import again, row, table

TABLE_4B = table(
    "4b",
    CUB,
    again("cub-resnet50", "R-50"),
    row("cub-resnet50-nl", "R-50 + 1 NL block", "nl", (84.79, 96.76), (86.69, 96.95)),
    again("cub-resnet50-cgnl", "R-50 + 1 CGNL block"),
    row("cub-resnet50-nl5", "R-50 + 5 NL block", "nl", (85.10, 96.18), blocks=5),
    row("cub-resnet50-cgnl5", "R-50 + 5 CGNL block", "cgnl", (85.68, 96.69), blocks=5),
    again("cub-resnet101", "R-101"),
    row("cub-resnet101-nl", "R-101 + 1 NL block", "nl", (85.49, 97.04), (87.04, 97.01)),
    again("cub-resnet101-cgnl", "R-101 + 1 CGNL block"),
    row("cub-resnet101-nl5", "R-101 + 5 NL block", "nl", (86.10, 96.35), blocks=5),
    again("cub-resnet101-cgnl5", "R-101 + 5 CGNL block"),
    row("cub-resnet101-cgnlx", "R-101 + 1 CGNLx block (released code)", "cgnlx", (), (87.18, 97.03)),
)
