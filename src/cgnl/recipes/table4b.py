"""Table 4b: one and five NL and CGNL blocks, ResNet-50 and ResNet-101 on CUB-200-2011.

The baselines, the rows with one CGNL block and ResNet-101 with five are recipes of Tables 2a and 2c. ResNet-101 with
CGNLx is a row of the released code alone.
"""

from cgnl.recipes.image import cub
from cgnl.recipes.registry import PaperRow, register
from cgnl.settings.image import NetworkConfig, Recipe


@register(
    PaperRow("4b", "R-50 + 1 NL block", top1=84.79, top5=96.76, released_top1=86.69, released_top5=96.95),
)
def cub_resnet50_nl() -> Recipe:
    """Table 4b, "R-50 + 1 NL block".

    Paper: 84.79 / 96.76 (top-1 / top-5), released code 86.69 / 96.95.
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet50-nl --data.root CUB_200_2011``
    Cost: 26.0 M parameters, 18.6 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet50", block="nl"))


@register(
    PaperRow("4b", "R-50 + 5 NL block", top1=85.10, top5=96.18),
)
def cub_resnet50_nl5() -> Recipe:
    """Table 4b, "R-50 + 5 NL block".

    Paper: 85.10 / 96.18 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet50-nl5 --data.root CUB_200_2011``
    Cost: 31.3 M parameters, 36.5 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet50", block="nl", num_blocks=5))


@register(
    PaperRow("4b", "R-50 + 5 CGNL block", top1=85.68, top5=96.69),
)
def cub_resnet50_cgnl5() -> Recipe:
    """Table 4b, "R-50 + 5 CGNL block".

    Paper: 85.68 / 96.69 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet50-cgnl5 --data.root CUB_200_2011``
    Cost: 29.7 M parameters, 22.8 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet50", block="cgnl", num_blocks=5), groups=8)


@register(
    PaperRow("4b", "R-101 + 1 NL block", top1=85.49, top5=97.04, released_top1=87.04, released_top5=97.01),
)
def cub_resnet101_nl() -> Recipe:
    """Table 4b, "R-101 + 1 NL block".

    Paper: 85.49 / 97.04 (top-1 / top-5), released code 87.04 / 97.01.
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet101-nl --data.root CUB_200_2011``
    Cost: 45.0 M parameters, 33.5 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet101", block="nl"))


@register(
    PaperRow("4b", "R-101 + 5 NL block", top1=86.10, top5=96.35),
)
def cub_resnet101_nl5() -> Recipe:
    """Table 4b, "R-101 + 5 NL block".

    Paper: 86.10 / 96.35 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet101-nl5 --data.root CUB_200_2011``
    Cost: 50.3 M parameters, 51.4 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet101", block="nl", num_blocks=5))


@register(
    PaperRow("4b", "R-101 + 1 CGNLx block (released code)", released_top1=87.18, released_top5=97.03),
)
def cub_resnet101_cgnlx() -> Recipe:
    """Table 4b, a row of the released code alone: "R-101 + 1 CGNLx block (released code)".

    Paper: no such row, released code 87.18 / 97.03.
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet101-cgnlx --data.root CUB_200_2011``
    Cost: 44.6 M parameters, 32.5 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet101", block="cgnlx"), groups=8)
