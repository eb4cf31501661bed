"""The text beside Table 2d: adding groups gains more than reducing the inner channels.

"The improvements brought in by adding groups are larger than those by reducing the channel reduction ratio."
The paper says this of Mini-Kinetics and prints no number for the ratio. Two recipes train with inner channels C and
C/4; C/2 is ``mini-kinetics-resnet50-cgnl-g1`` with 1 group and ``mini-kinetics-resnet50-cgnl`` with 8. Three more ask
the same of images, on CUB-200-2011: inner channels C/2, C and C/4 with 1 group, beside ``cub-resnet50-cgnl`` with 8.
"""

from cgnl.recipes.image import cub
from cgnl.recipes.registry import PaperRow, register
from cgnl.recipes.video import mini_kinetics
from cgnl.settings.image import NetworkConfig, Recipe
from cgnl.settings.video import VideoNetworkConfig, VideoRecipe


@register(
    PaperRow("2d (text)", "inner channels C, 1 group"),
)
def mini_kinetics_resnet50_cgnl_g1_full() -> VideoRecipe:
    """Text of 2d, inner channels C, 1 group.

    Paper: no number printed.
    Ours: not run (needs 8 GPUs and Mini-Kinetics).
    Command: ``cgnl train mini-kinetics-resnet50-cgnl-g1-full --data.root kinetics``
    Cost: 28.1 M parameters, 23.7 G multiplications a clip, 110 epochs of 78,265 videos.
    """
    return mini_kinetics(VideoNetworkConfig(arch="resnet50", block="cgnl"), groups=1, channel_reduction=1)


@register(
    PaperRow("2d (text)", "inner channels C/4, 1 group"),
)
def mini_kinetics_resnet50_cgnl_g1_quarter() -> VideoRecipe:
    """Text of 2d, inner channels C/4, 1 group.

    Paper: no number printed.
    Ours: not run (needs 8 GPUs and Mini-Kinetics).
    Command: ``cgnl train mini-kinetics-resnet50-cgnl-g1-quarter --data.root kinetics``
    Cost: 25.0 M parameters, 21.3 G multiplications a clip, 110 epochs of 78,265 videos.
    """
    return mini_kinetics(VideoNetworkConfig(arch="resnet50", block="cgnl"), groups=1, channel_reduction=4)


@register(
    PaperRow("2d (text, on images)", "inner channels C/2, 1 group"),
)
def cub_resnet50_cgnl_g1() -> Recipe:
    """Text of 2d, on images: inner channels C/2, 1 group.

    Paper: no number printed.
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet50-cgnl-g1 --data.root CUB_200_2011``
    Cost: 26.0 M parameters, 18.0 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet50", block="cgnl"), groups=1, channel_reduction=2)


@register(
    PaperRow("2d (text, on images)", "inner channels C, 1 group"),
)
def cub_resnet50_cgnl_g1_full() -> Recipe:
    """Text of 2d, on images: inner channels C, 1 group.

    Paper: no number printed.
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet50-cgnl-g1-full --data.root CUB_200_2011``
    Cost: 28.1 M parameters, 19.6 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet50", block="cgnl"), groups=1, channel_reduction=1)


@register(
    PaperRow("2d (text, on images)", "inner channels C/4, 1 group"),
)
def cub_resnet50_cgnl_g1_quarter() -> Recipe:
    """Text of 2d, on images: inner channels C/4, 1 group.

    Paper: no number printed.
    Ours: not run (needs 8 GPUs and CUB-200-2011).
    Command: ``cgnl train cub-resnet50-cgnl-g1-quarter --data.root CUB_200_2011``
    Cost: 25.0 M parameters, 17.2 G multiplications an image, 110 epochs of 5,994 images.
    """
    return cub(NetworkConfig(arch="resnet50", block="cgnl"), groups=1, channel_reduction=4)
