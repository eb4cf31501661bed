"""Table 4b by the paper's own protocol: the 1000-way ImageNet classifier kept, crops of 0.08 to 1.0 of the image.

The other recipes on CUB-200-2011 start a new classifier, as the released code does. Any of them becomes one of these
with ``--data.num-outputs 1000 --data.crop-area 0.08 1.0``.
"""

from cgnl.recipes.image import cub_of_the_paper
from cgnl.recipes.registry import PaperRow, register
from cgnl.settings.image import NetworkConfig, Recipe


@register(
    PaperRow("4b (1000-way)", "R-50", top1=84.05, top5=96.00),
)
def cub_1000_way_resnet50() -> Recipe:
    """Table 4b (1000-way), "R-50".

    Paper: 84.05 / 96.00 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-1000-way-resnet50 --data.root CUB_200_2011``
    Cost: 25.6 M parameters, 16.4 G multiplications an image, 100 epochs of 5,994 images.
    """
    return cub_of_the_paper(NetworkConfig(arch="resnet50", block="none"))


@register(
    PaperRow("4b (1000-way)", "R-50 + 1 NL block", top1=84.79, top5=96.76),
)
def cub_1000_way_resnet50_nl() -> Recipe:
    """Table 4b (1000-way), "R-50 + 1 NL block".

    Paper: 84.79 / 96.76 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-1000-way-resnet50-nl --data.root CUB_200_2011``
    Cost: 27.7 M parameters, 18.6 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub_of_the_paper(NetworkConfig(arch="resnet50", block="nl"))


@register(
    PaperRow("4b (1000-way)", "R-50 + 1 CGNL block", top1=85.14, top5=96.88),
)
def cub_1000_way_resnet50_cgnl() -> Recipe:
    """Table 4b (1000-way), "R-50 + 1 CGNL block".

    Paper: 85.14 / 96.88 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-1000-way-resnet50-cgnl --data.root CUB_200_2011``
    Cost: 27.2 M parameters, 17.6 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub_of_the_paper(NetworkConfig(arch="resnet50", block="cgnl"), groups=8)


@register(
    PaperRow("4b (1000-way)", "R-101", top1=85.05, top5=96.70),
)
def cub_1000_way_resnet101() -> Recipe:
    """Table 4b (1000-way), "R-101".

    Paper: 85.05 / 96.70 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-1000-way-resnet101 --data.root CUB_200_2011``
    Cost: 44.5 M parameters, 31.2 G multiplications an image, 100 epochs of 5,994 images.
    """
    return cub_of_the_paper(NetworkConfig(arch="resnet101", block="none"))


@register(
    PaperRow("4b (1000-way)", "R-101 + 1 NL block", top1=85.49, top5=97.04),
)
def cub_1000_way_resnet101_nl() -> Recipe:
    """Table 4b (1000-way), "R-101 + 1 NL block".

    Paper: 85.49 / 97.04 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-1000-way-resnet101-nl --data.root CUB_200_2011``
    Cost: 46.6 M parameters, 33.5 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub_of_the_paper(NetworkConfig(arch="resnet101", block="nl"))


@register(
    PaperRow("4b (1000-way)", "R-101 + 1 CGNL block", top1=86.35, top5=97.86),
)
def cub_1000_way_resnet101_cgnl() -> Recipe:
    """Table 4b (1000-way), "R-101 + 1 CGNL block".

    Paper: 86.35 / 97.86 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-1000-way-resnet101-cgnl --data.root CUB_200_2011``
    Cost: 46.2 M parameters, 32.5 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub_of_the_paper(NetworkConfig(arch="resnet101", block="cgnl"), groups=8)
