"""Table 2c: one and five CGNL blocks by the number of channel groups, ResNet-101 on CUB-200-2011."""

from cgnl.recipes.image import cub
from cgnl.recipes.registry import PaperRow, register
from cgnl.settings.image import NetworkConfig, Recipe


@register(
    PaperRow("2c", "R-101", top1=85.05, top5=96.70, released_top1=86.76, released_top5=96.91),
    PaperRow("4b", "R-101", top1=85.05, top5=96.70, released_top1=86.76, released_top5=96.91),
)
def cub_resnet101() -> Recipe:
    """Table 2c, "R-101"; Table 4b, "R-101".

    Paper: 85.05 / 96.70 (top-1 / top-5), released code 86.76 / 96.91.
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet101 --data.root CUB_200_2011``
    Cost: 42.9 M parameters, 31.2 G multiplications an image, 100 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet101", block="none"))


@register(
    PaperRow("2c", "R-101 + 1 CGNL block, 1 group", top1=86.17, top5=97.82),
)
def cub_resnet101_cgnl_g1() -> Recipe:
    """Table 2c, "R-101 + 1 CGNL block, 1 group".

    Paper: 86.17 / 97.82 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet101-cgnl-g1 --data.root CUB_200_2011``
    Cost: 45.0 M parameters, 32.8 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet101", block="cgnl"), groups=1)


@register(
    PaperRow("2c", "R-101 + 1 CGNL block, 4 groups", top1=86.24, top5=97.05),
)
def cub_resnet101_cgnl_g4() -> Recipe:
    """Table 2c, "R-101 + 1 CGNL block, 4 groups".

    Paper: 86.24 / 97.05 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet101-cgnl-g4 --data.root CUB_200_2011``
    Cost: 44.6 M parameters, 32.5 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet101", block="cgnl"), groups=4)


@register(
    PaperRow("2c", "R-101 + 1 CGNL block, 8 groups", top1=86.35, top5=97.86, released_top1=87.28, released_top5=97.20),
    PaperRow("4b", "R-101 + 1 CGNL block", top1=86.35, top5=97.86, released_top1=87.28, released_top5=97.20),
)
def cub_resnet101_cgnl() -> Recipe:
    """Table 2c, "R-101 + 1 CGNL block, 8 groups"; Table 4b, "R-101 + 1 CGNL block".

    Paper: 86.35 / 97.86 (top-1 / top-5), released code 87.28 / 97.20.
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet101-cgnl --data.root CUB_200_2011``
    Cost: 44.6 M parameters, 32.5 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet101", block="cgnl"), groups=8)


@register(
    PaperRow("2c", "R-101 + 1 CGNL block, 16 groups", top1=86.13, top5=96.75),
)
def cub_resnet101_cgnl_g16() -> Recipe:
    """Table 2c, "R-101 + 1 CGNL block, 16 groups".

    Paper: 86.13 / 96.75 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet101-cgnl-g16 --data.root CUB_200_2011``
    Cost: 44.5 M parameters, 32.5 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet101", block="cgnl"), groups=16)


@register(
    PaperRow("2c", "R-101 + 1 CGNL block, 32 groups", top1=86.04, top5=96.69),
)
def cub_resnet101_cgnl_g32() -> Recipe:
    """Table 2c, "R-101 + 1 CGNL block, 32 groups".

    Paper: 86.04 / 96.69 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet101-cgnl-g32 --data.root CUB_200_2011``
    Cost: 44.5 M parameters, 32.4 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet101", block="cgnl"), groups=32)


@register(
    PaperRow("2c", "R-101 + 5 CGNL block, 1 group", top1=86.01, top5=95.97),
)
def cub_resnet101_cgnl5_g1() -> Recipe:
    """Table 2c, "R-101 + 5 CGNL block, 1 group".

    Paper: 86.01 / 95.97 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet101-cgnl5-g1 --data.root CUB_200_2011``
    Cost: 50.3 M parameters, 39.4 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet101", block="cgnl", num_blocks=5), groups=1)


@register(
    PaperRow("2c", "R-101 + 5 CGNL block, 4 groups", top1=86.19, top5=96.07),
)
def cub_resnet101_cgnl5_g4() -> Recipe:
    """Table 2c, "R-101 + 5 CGNL block, 4 groups".

    Paper: 86.19 / 96.07 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet101-cgnl5-g4 --data.root CUB_200_2011``
    Cost: 48.9 M parameters, 37.9 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet101", block="cgnl", num_blocks=5), groups=4)


@register(
    PaperRow("2c", "R-101 + 5 CGNL block, 8 groups", top1=86.24, top5=97.23),
    PaperRow("4b", "R-101 + 5 CGNL block", top1=86.24, top5=97.23),
)
def cub_resnet101_cgnl5() -> Recipe:
    """Table 2c, "R-101 + 5 CGNL block, 8 groups"; Table 4b, "R-101 + 5 CGNL block".

    Paper: 86.24 / 97.23 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet101-cgnl5 --data.root CUB_200_2011``
    Cost: 48.7 M parameters, 37.6 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet101", block="cgnl", num_blocks=5), groups=8)


@register(
    PaperRow("2c", "R-101 + 5 CGNL block, 16 groups", top1=86.43, top5=98.89),
)
def cub_resnet101_cgnl5_g16() -> Recipe:
    """Table 2c, "R-101 + 5 CGNL block, 16 groups".

    Paper: 86.43 / 98.89 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet101-cgnl5-g16 --data.root CUB_200_2011``
    Cost: 48.5 M parameters, 37.5 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet101", block="cgnl", num_blocks=5), groups=16)


@register(
    PaperRow("2c", "R-101 + 5 CGNL block, 32 groups", top1=86.10, top5=97.13),
)
def cub_resnet101_cgnl5_g32() -> Recipe:
    """Table 2c, "R-101 + 5 CGNL block, 32 groups".

    Paper: 86.10 / 97.13 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet101-cgnl5-g32 --data.root CUB_200_2011``
    Cost: 48.5 M parameters, 37.4 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet101", block="cgnl", num_blocks=5), groups=32)
