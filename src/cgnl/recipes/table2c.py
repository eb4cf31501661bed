"""Table 2c: one and five CGNL blocks by the number of channel groups, ResNet-101 on CUB-200-2011."""

from cgnl.recipes.image import CUB
from cgnl.recipes.rows import row, table

TABLE_2C = table(
    "2c",
    CUB,
    row("cub-resnet101", "R-101", "none", (85.05, 96.70), (86.76, 96.91)),
    row("cub-resnet101-cgnl-g1", "R-101 + 1 CGNL block, 1 group", "cgnl", (86.17, 97.82), groups=1),
    row("cub-resnet101-cgnl-g4", "R-101 + 1 CGNL block, 4 groups", "cgnl", (86.24, 97.05), groups=4),
    row("cub-resnet101-cgnl", "R-101 + 1 CGNL block, 8 groups", "cgnl", (86.35, 97.86), (87.28, 97.20)),
    row("cub-resnet101-cgnl-g16", "R-101 + 1 CGNL block, 16 groups", "cgnl", (86.13, 96.75), groups=16),
    row("cub-resnet101-cgnl-g32", "R-101 + 1 CGNL block, 32 groups", "cgnl", (86.04, 96.69), groups=32),
    row("cub-resnet101-cgnl5-g1", "R-101 + 5 CGNL block, 1 group", "cgnl", (86.01, 95.97), blocks=5, groups=1),
    row("cub-resnet101-cgnl5-g4", "R-101 + 5 CGNL block, 4 groups", "cgnl", (86.19, 96.07), blocks=5, groups=4),
    row("cub-resnet101-cgnl5", "R-101 + 5 CGNL block, 8 groups", "cgnl", (86.24, 97.23), blocks=5),
    row("cub-resnet101-cgnl5-g16", "R-101 + 5 CGNL block, 16 groups", "cgnl", (86.43, 98.89), blocks=5, groups=16),
    row("cub-resnet101-cgnl5-g32", "R-101 + 5 CGNL block, 32 groups", "cgnl", (86.10, 97.13), blocks=5, groups=32),
)
