"""Table 4a: one and five NL and CGNL blocks, ResNet-50 and ResNet-101 on Mini-Kinetics-200.

The baselines and the rows with one CGNL block are recipes of Table 2d.
"""

from cgnl.recipes.registry import PaperRow, register
from cgnl.recipes.video import mini_kinetics
from cgnl.settings.video import VideoNetworkConfig, VideoRecipe


@register(
    PaperRow("4a", "R-50 + 1 NL block", top1=76.53, top5=92.90),
)
def mini_kinetics_resnet50_nl() -> VideoRecipe:
    """Table 4a, "R-50 + 1 NL block".

    Paper: 76.53 / 92.90 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and Mini-Kinetics).
    Command: ``cgnl train mini-kinetics-resnet50-nl --data.root kinetics``
    Cost: 26.0 M parameters, 22.2 G multiplications a clip, 110 epochs of 78,265 videos.
    """
    return mini_kinetics(VideoNetworkConfig(arch="resnet50", block="nl"))


@register(
    PaperRow("4a", "R-50 + 5 NL block", top1=77.53, top5=94.00),
)
def mini_kinetics_resnet50_nl5() -> VideoRecipe:
    """Table 4a, "R-50 + 5 NL block".

    Paper: 77.53 / 94.00 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and Mini-Kinetics).
    Command: ``cgnl train mini-kinetics-resnet50-nl5 --data.root kinetics``
    Cost: 31.3 M parameters, 31.6 G multiplications a clip, 110 epochs of 78,265 videos.
    """
    return mini_kinetics(VideoNetworkConfig(arch="resnet50", block="nl", num_blocks=5))


@register(
    PaperRow("4a", "R-50 + 5 CGNL block", top1=78.79, top5=94.37),
)
def mini_kinetics_resnet50_cgnl5() -> VideoRecipe:
    """Table 4a, "R-50 + 5 CGNL block".

    Paper: 78.79 / 94.37 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and Mini-Kinetics).
    Command: ``cgnl train mini-kinetics-resnet50-cgnl5 --data.root kinetics``
    Cost: 29.7 M parameters, 26.9 G multiplications a clip, 110 epochs of 78,265 videos.
    """
    return mini_kinetics(VideoNetworkConfig(arch="resnet50", block="cgnl", num_blocks=5), groups=8)


@register(
    PaperRow("4a", "R-101 + 1 NL block", top1=78.02, top5=93.86),
)
def mini_kinetics_resnet101_nl() -> VideoRecipe:
    """Table 4a, "R-101 + 1 NL block".

    Paper: 78.02 / 93.86 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and Mini-Kinetics).
    Command: ``cgnl train mini-kinetics-resnet101-nl --data.root kinetics``
    Cost: 45.0 M parameters, 37.1 G multiplications a clip, 110 epochs of 78,265 videos.
    """
    return mini_kinetics(VideoNetworkConfig(arch="resnet101", block="nl"))


@register(
    PaperRow("4a", "R-101 + 5 NL block", top1=79.21, top5=93.21),
)
def mini_kinetics_resnet101_nl5() -> VideoRecipe:
    """Table 4a, "R-101 + 5 NL block".

    Paper: 79.21 / 93.21 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and Mini-Kinetics).
    Command: ``cgnl train mini-kinetics-resnet101-nl5 --data.root kinetics``
    Cost: 50.3 M parameters, 46.5 G multiplications a clip, 110 epochs of 78,265 videos.
    """
    return mini_kinetics(VideoNetworkConfig(arch="resnet101", block="nl", num_blocks=5))


@register(
    PaperRow("4a", "R-101 + 5 CGNL block", top1=79.88, top5=93.37),
)
def mini_kinetics_resnet101_cgnl5() -> VideoRecipe:
    """Table 4a, "R-101 + 5 CGNL block".

    Paper: 79.88 / 93.37 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and Mini-Kinetics).
    Command: ``cgnl train mini-kinetics-resnet101-cgnl5 --data.root kinetics``
    Cost: 48.7 M parameters, 41.7 G multiplications a clip, 110 epochs of 78,265 videos.
    """
    return mini_kinetics(VideoNetworkConfig(arch="resnet101", block="cgnl", num_blocks=5), groups=8)
