"""Table 2b: one NL and one CGNL block without groups, ResNet-50 on UCF101 (split 1)."""

from cgnl.recipes.registry import PaperRow, register
from cgnl.recipes.video import ucf101
from cgnl.settings.video import VideoNetworkConfig, VideoRecipe


@register(
    PaperRow("2b", "R-50.", top1=81.62, top5=94.62),
)
def ucf101_resnet50() -> VideoRecipe:
    """Table 2b, "R-50.".

    Paper: 81.62 / 94.62 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and UCF101).
    Command: ``cgnl train ucf101-resnet50 --data.root UCF-101``
    Cost: 23.7 M parameters, 20.4 G multiplications a clip, 110 epochs of 9,537 videos.
    """
    return ucf101(VideoNetworkConfig(arch="resnet50", block="none"))


@register(
    PaperRow("2b", "R-50 + 1 NL block", top1=82.88, top5=95.74),
)
def ucf101_resnet50_nl() -> VideoRecipe:
    """Table 2b, "R-50 + 1 NL block".

    Paper: 82.88 / 95.74 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and UCF101).
    Command: ``cgnl train ucf101-resnet50-nl --data.root UCF-101``
    Cost: 25.8 M parameters, 22.2 G multiplications a clip, 110 epochs of 9,537 videos.
    """
    return ucf101(VideoNetworkConfig(arch="resnet50", block="nl"))


@register(
    PaperRow("2b", "R-50 + 1 CGNL block", top1=83.38, top5=95.42),
)
def ucf101_resnet50_cgnl() -> VideoRecipe:
    """Table 2b, "R-50 + 1 CGNL block".

    Paper: 83.38 / 95.42 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and UCF101).
    Command: ``cgnl train ucf101-resnet50-cgnl --data.root UCF-101``
    Cost: 25.8 M parameters, 22.1 G multiplications a clip, 110 epochs of 9,537 videos.
    """
    return ucf101(VideoNetworkConfig(arch="resnet50", block="cgnl"), groups=1)
