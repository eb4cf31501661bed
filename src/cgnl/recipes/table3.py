"""Table 3: a simple residual block in the place of the CGNL block, ResNet-50 on CUB-200-2011."""

from cgnl.recipes.image import CUB
from cgnl.recipes.rows import again, row, table

TABLE_3 = table(
    "3",
    CUB,
    again("cub-resnet50", "R-50"),
    row("cub-resnet50-residual", "R-50 + 1 Residual Block", "residual", (84.11, 96.23)),
    again("cub-resnet50-cgnl", "R-50 + 1 CGNL block"),
)
