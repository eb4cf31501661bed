"""Table 5: one CGNL and one CGNLx block, ResNet-50 and ResNet-152 on ImageNet.

The baselines of the paper are the pretrained weights themselves, which every row here goes on from. Their
recipes train those weights on as the other rows do, which makes them the control. All rows keep the pretrained
classifier; the released code starts a new one for ImageNet too, which ``--network.new-classifier`` does.
"""

from cgnl.recipes.image import imagenet
from cgnl.recipes.registry import PaperRow, register
from cgnl.settings.image import NetworkConfig, Recipe


@register(
    PaperRow("5", "R-50", top1=76.15, top5=92.87),
)
def imagenet_resnet50() -> Recipe:
    """Table 5, "R-50".

    Paper: 76.15 / 92.87 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and ImageNet).
    Command: ``cgnl train imagenet-resnet50 --data.root imagenet``
    Cost: 25.6 M parameters, 4.1 G multiplications an image, 100 epochs of 1,281,167 images.
    """
    return imagenet(NetworkConfig(arch="resnet50", block="none"))


@register(
    PaperRow("5", "R-50 + 1 CGNL block", top1=77.69, top5=93.64, released_top1=77.69, released_top5=93.63),
)
def imagenet_resnet50_cgnl() -> Recipe:
    """Table 5, "R-50 + 1 CGNL block".

    Paper: 77.69 / 93.64 (top-1 / top-5), released code 77.69 / 93.63.
    Ours: not run (needs 8 GPUs and ImageNet).
    Command: ``cgnl train imagenet-resnet50-cgnl --data.root imagenet``
    Cost: 27.2 M parameters, 4.4 G multiplications an image, 110 epochs of 1,281,167 images.
    """
    return imagenet(NetworkConfig(arch="resnet50", block="cgnl"), groups=8)


@register(
    PaperRow("5", "R-50 + 1 CGNLx block", top1=77.32, top5=93.46, released_top1=77.32, released_top5=93.40),
)
def imagenet_resnet50_cgnlx() -> Recipe:
    """Table 5, "R-50 + 1 CGNLx block".

    Paper: 77.32 / 93.46 (top-1 / top-5), released code 77.32 / 93.40.
    Ours: not run (needs 8 GPUs and ImageNet).
    Command: ``cgnl train imagenet-resnet50-cgnlx --data.root imagenet``
    Cost: 27.2 M parameters, 4.4 G multiplications an image, 110 epochs of 1,281,167 images.
    """
    return imagenet(NetworkConfig(arch="resnet50", block="cgnlx"), groups=8)


@register(
    PaperRow("5", "R-152", top1=78.31, top5=94.06),
)
def imagenet_resnet152() -> Recipe:
    """Table 5, "R-152".

    Paper: 78.31 / 94.06 (top-1 / top-5).
    Ours: not run (needs 8 GPUs and ImageNet).
    Command: ``cgnl train imagenet-resnet152 --data.root imagenet``
    Cost: 60.2 M parameters, 11.5 G multiplications an image, 100 epochs of 1,281,167 images.
    """
    return imagenet(NetworkConfig(arch="resnet152", block="none"))


@register(
    PaperRow("5", "R-152 + 1 CGNL block", top1=79.53, top5=94.59, released_top1=79.53, released_top5=94.52),
)
def imagenet_resnet152_cgnl() -> Recipe:
    """Table 5, "R-152 + 1 CGNL block".

    Paper: 79.53 / 94.59 (top-1 / top-5), released code 79.53 / 94.52.
    Ours: not run (needs 8 GPUs and ImageNet).
    Command: ``cgnl train imagenet-resnet152-cgnl --data.root imagenet``
    Cost: 61.8 M parameters, 11.8 G multiplications an image, 110 epochs of 1,281,167 images.
    """
    return imagenet(NetworkConfig(arch="resnet152", block="cgnl"), groups=8)


@register(
    PaperRow("5", "R-152 + 1 CGNLx block", top1=79.37, top5=94.47, released_top1=79.37, released_top5=94.47),
)
def imagenet_resnet152_cgnlx() -> Recipe:
    """Table 5, "R-152 + 1 CGNLx block".

    Paper: 79.37 / 94.47 (top-1 / top-5), released code 79.37 / 94.47.
    Ours: not run (needs 8 GPUs and ImageNet).
    Command: ``cgnl train imagenet-resnet152-cgnlx --data.root imagenet``
    Cost: 61.8 M parameters, 11.8 G multiplications an image, 110 epochs of 1,281,167 images.
    """
    return imagenet(NetworkConfig(arch="resnet152", block="cgnlx"), groups=8)
