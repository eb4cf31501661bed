"""Table 4b by the paper's own protocol: the 1000-way ImageNet classifier kept, crops of 0.08 to 1.0 of the image.

The other recipes on CUB-200-2011 start a new classifier, as the released code does. Any of them becomes one of these
with ``--data.num-outputs 1000 --data.crop-area 0.08 1.0``.
"""

from cgnl.recipes.image import CUB_1000_WAY
from cgnl.recipes.rows import row, table

TABLE_4B_1000_WAY = table(
    "4b (1000-way)",
    CUB_1000_WAY,
    row("cub-1000-way-resnet50", "R-50", "none", "cub-resnet50"),
    row("cub-1000-way-resnet50-nl", "R-50 + 1 NL block", "nl", "cub-resnet50-nl"),
    row("cub-1000-way-resnet50-cgnl", "R-50 + 1 CGNL block", "cgnl", "cub-resnet50-cgnl"),
    row("cub-1000-way-resnet101", "R-101", "none", "cub-resnet101"),
    row("cub-1000-way-resnet101-nl", "R-101 + 1 NL block", "nl", "cub-resnet101-nl"),
    row("cub-1000-way-resnet101-cgnl", "R-101 + 1 CGNL block", "cgnl", "cub-resnet101-cgnl"),
)
