"""Table 2d: channel groups of one CGNL block, ResNet-50 and ResNet-101 on Mini-Kinetics-200.

Rows without a group count are the baselines; those with 8 groups are rows of Table 4a too.
"""

from cgnl.recipes.registry import PaperRow, register
from cgnl.recipes.video import mini_kinetics
from cgnl.settings.video import VideoNetworkConfig, VideoRecipe


@register(
    PaperRow("2d", "R-50", top1=75.54, top5=92.16),
    PaperRow("4a", "R-50", top1=75.54, top5=92.16),
)
def mini_kinetics_resnet50() -> VideoRecipe:
    """Table 2d, "R-50"; Table 4a, "R-50".

    Paper: 75.54 / 92.16 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and Mini-Kinetics).
    Command: ``cgnl train mini-kinetics-resnet50 --data.root kinetics``
    Cost: 23.9 M parameters, 20.4 G multiplications a clip, 110 epochs of 78,265 videos.
    """
    return mini_kinetics(VideoNetworkConfig(arch="resnet50", block="none"))


@register(
    PaperRow("2d", "R-50 + 1 CGNL block, 1 group", top1=77.16, top5=93.56),
    PaperRow("2d (text)", "inner channels C/2, 1 group", top1=77.16, top5=93.56),
)
def mini_kinetics_resnet50_cgnl_g1() -> VideoRecipe:
    """Table 2d, "R-50 + 1 CGNL block, 1 group"; text of 2d, C/2 and 1 group.

    Paper: 77.16 / 93.56 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and Mini-Kinetics).
    Command: ``cgnl train mini-kinetics-resnet50-cgnl-g1 --data.root kinetics``
    Cost: 26.0 M parameters, 22.1 G multiplications a clip, 110 epochs of 78,265 videos.
    """
    return mini_kinetics(VideoNetworkConfig(arch="resnet50", block="cgnl"), groups=1)


@register(
    PaperRow("2d", "R-50 + 1 CGNL block, 4 groups", top1=77.56, top5=93.00),
)
def mini_kinetics_resnet50_cgnl_g4() -> VideoRecipe:
    """Table 2d, "R-50 + 1 CGNL block, 4 groups".

    Paper: 77.56 / 93.00 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and Mini-Kinetics).
    Command: ``cgnl train mini-kinetics-resnet50-cgnl-g4 --data.root kinetics``
    Cost: 25.6 M parameters, 21.8 G multiplications a clip, 110 epochs of 78,265 videos.
    """
    return mini_kinetics(VideoNetworkConfig(arch="resnet50", block="cgnl"), groups=4)


@register(
    PaperRow("2d", "R-50 + 1 CGNL block, 8 groups", top1=77.76, top5=93.18),
    PaperRow("4a", "R-50 + 1 CGNL block", top1=77.76, top5=93.18),
    PaperRow("2d (text)", "inner channels C/2, 8 groups", top1=77.76, top5=93.18),
)
def mini_kinetics_resnet50_cgnl() -> VideoRecipe:
    """Table 2d, "R-50 + 1 CGNL block, 8 groups"; Table 4a, "R-50 + 1 CGNL block"; text of 2d, C/2 and 8 groups.

    Paper: 77.76 / 93.18 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and Mini-Kinetics).
    Command: ``cgnl train mini-kinetics-resnet50-cgnl --data.root kinetics``
    Cost: 25.6 M parameters, 21.7 G multiplications a clip, 110 epochs of 78,265 videos.
    """
    return mini_kinetics(VideoNetworkConfig(arch="resnet50", block="cgnl"), groups=8)


@register(
    PaperRow("2d", "R-101", top1=77.44, top5=93.18),
    PaperRow("4a", "R-101", top1=77.44, top5=93.18),
)
def mini_kinetics_resnet101() -> VideoRecipe:
    """Table 2d, "R-101"; Table 4a, "R-101".

    Paper: 77.44 / 93.18 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and Mini-Kinetics).
    Command: ``cgnl train mini-kinetics-resnet101 --data.root kinetics``
    Cost: 42.9 M parameters, 35.3 G multiplications a clip, 110 epochs of 78,265 videos.
    """
    return mini_kinetics(VideoNetworkConfig(arch="resnet101", block="none"))


@register(
    PaperRow("2d", "R-101 + 1 CGNL block, 1 group", top1=78.79, top5=93.64),
)
def mini_kinetics_resnet101_cgnl_g1() -> VideoRecipe:
    """Table 2d, "R-101 + 1 CGNL block, 1 group".

    Paper: 78.79 / 93.64 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and Mini-Kinetics).
    Command: ``cgnl train mini-kinetics-resnet101-cgnl-g1 --data.root kinetics``
    Cost: 45.0 M parameters, 36.9 G multiplications a clip, 110 epochs of 78,265 videos.
    """
    return mini_kinetics(VideoNetworkConfig(arch="resnet101", block="cgnl"), groups=1)


@register(
    PaperRow("2d", "R-101 + 1 CGNL block, 4 groups", top1=79.06, top5=93.54),
)
def mini_kinetics_resnet101_cgnl_g4() -> VideoRecipe:
    """Table 2d, "R-101 + 1 CGNL block, 4 groups".

    Paper: 79.06 / 93.54 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and Mini-Kinetics).
    Command: ``cgnl train mini-kinetics-resnet101-cgnl-g4 --data.root kinetics``
    Cost: 44.6 M parameters, 36.6 G multiplications a clip, 110 epochs of 78,265 videos.
    """
    return mini_kinetics(VideoNetworkConfig(arch="resnet101", block="cgnl"), groups=4)


@register(
    PaperRow("2d", "R-101 + 1 CGNL block, 8 groups", top1=79.54, top5=93.84),
    PaperRow("4a", "R-101 + 1 CGNL block", top1=79.54, top5=93.84),
)
def mini_kinetics_resnet101_cgnl() -> VideoRecipe:
    """Table 2d, "R-101 + 1 CGNL block, 8 groups"; Table 4a, "R-101 + 1 CGNL block".

    Paper: 79.54 / 93.84 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and Mini-Kinetics).
    Command: ``cgnl train mini-kinetics-resnet101-cgnl --data.root kinetics``
    Cost: 44.6 M parameters, 36.6 G multiplications a clip, 110 epochs of 78,265 videos.
    """
    return mini_kinetics(VideoNetworkConfig(arch="resnet101", block="cgnl"), groups=8)
