"""Table 2a: one CGNL block with each kernel function, ResNet-50 on CUB-200-2011."""

from cgnl.recipes.image import cub
from cgnl.recipes.registry import PaperRow, register
from cgnl.settings.image import NetworkConfig, Recipe


@register(
    PaperRow("2a", "R-50.", top1=84.05, top5=96.00, released_top1=86.45, released_top5=97.00),
    PaperRow("3", "R-50", top1=84.05, top5=96.00, released_top1=86.45, released_top5=97.00),
    PaperRow("4b", "R-50", top1=84.05, top5=96.00, released_top1=86.45, released_top5=97.00),
)
def cub_resnet50() -> Recipe:
    """Table 2a, "R-50."; Tables 3 and 4b, "R-50".

    Paper: 84.05 / 96.00 (top-1 / top-5), released code 86.45 / 97.00.
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet50 --data.root CUB_200_2011``
    Cost: 23.9 M parameters, 16.3 G multiplications an image, 100 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet50", block="none"))


@register(
    PaperRow("2a", "Dot Production", top1=85.14, top5=96.88, released_top1=87.06, released_top5=96.91),
    PaperRow("3", "R-50 + 1 CGNL block", top1=85.14, top5=96.88, released_top1=87.06, released_top5=96.91),
    PaperRow("4b", "R-50 + 1 CGNL block", top1=85.14, top5=96.88, released_top1=87.06, released_top5=96.91),
    PaperRow("2d (text, on images)", "inner channels C/2, 8 groups"),
)
def cub_resnet50_cgnl() -> Recipe:
    """Table 2a, "Dot Production"; Tables 3 and 4b, "R-50 + 1 CGNL block"; text of 2d, on images.

    Paper: 85.14 / 96.88 (top-1 / top-5), released code 87.06 / 96.91.
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet50-cgnl --data.root CUB_200_2011``
    Cost: 25.6 M parameters, 17.6 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet50", block="cgnl"), groups=8)


@register(
    PaperRow("2a", "Gaussian RBF", top1=84.10, top5=95.78, released_top1=86.56, released_top5=96.63),
)
def cub_resnet50_cgnlx() -> Recipe:
    """Table 2a, "Gaussian RBF".

    Paper: 84.10 / 95.78 (top-1 / top-5), released code 86.56 / 96.63.
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet50-cgnlx --data.root CUB_200_2011``
    Cost: 25.6 M parameters, 17.6 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet50", block="cgnlx"), groups=8)


@register(
    PaperRow("2a", "Embedded Gaussian", top1=84.01, top5=96.08),
)
def cub_resnet50_cgnl_embedded_gaussian() -> Recipe:
    """Table 2a, "Embedded Gaussian".

    Paper: 84.01 / 96.08 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet50-cgnl-embedded-gaussian --data.root CUB_200_2011``
    Cost: 25.6 M parameters, 17.6 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet50", block="cgnl"), kernel="embedded_gaussian", groups=8)
