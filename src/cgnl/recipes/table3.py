"""Table 3: a simple residual block in the place of the CGNL block, ResNet-50 on CUB-200-2011.

The rows "R-50" and "+ 1 CGNL block" are the recipes ``cub-resnet50`` and ``cub-resnet50-cgnl`` of Table 2a.
"""

from cgnl.recipes.image import cub
from cgnl.recipes.registry import PaperRow, register
from cgnl.settings.image import NetworkConfig, Recipe


@register(
    PaperRow("3", "R-50 + 1 Residual Block", top1=84.11, top5=96.23),
)
def cub_resnet50_residual() -> Recipe:
    """Table 3, "R-50 + 1 Residual Block".

    Paper: 84.11 / 96.23 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet50-residual --data.root CUB_200_2011``
    Cost: 24.5 M parameters, 16.8 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet50", block="residual"))
