"""Table 2a: one CGNL block with each kernel function, ResNet-50 on CUB-200-2011."""

from cgnl.recipes.image import CUB
from cgnl.recipes.rows import row, table

TABLE_2A = table(
    "2a",
    CUB,
    row("cub-resnet50", "R-50.", "none", (84.05, 96.00), (86.45, 97.00)),
    row("cub-resnet50-cgnl", "Dot Production", "cgnl", (85.14, 96.88), (87.06, 96.91)),
    row("cub-resnet50-cgnlx", "Gaussian RBF", "cgnlx", (84.10, 95.78), (86.56, 96.63)),
    row("cub-resnet50-cgnl-embedded-gaussian", "Embedded Gaussian", "cgnl", (84.01, 96.08), kernel="embedded_gaussian"),
)
