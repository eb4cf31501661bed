"""Table 4c: Mask R-CNN on COCO 2017 with one NL or CGNL block in its backbone.

The rows are those of the C4 network with ResNet-50. The feature pyramid and ResNet-101 are ours, as neither the paper
nor the released code has them; CGNLx is a row of the released code alone.
"""

from cgnl.recipes.detection import coco
from cgnl.recipes.registry import PaperRow, register
from cgnl.settings.detection import DetectionNetworkConfig, DetectionRecipe


@register(
    PaperRow(
        "4c",
        "Baseline",
        box_ap=34.47,
        box_ap50=54.87,
        box_ap75=36.58,
        mask_ap=30.44,
        mask_ap50=51.55,
        mask_ap75=31.95,
        released_box_ap=35.6,
        released_mask_ap=31.5,
    ),
)
def coco_maskrcnn_resnet50() -> DetectionRecipe:
    """Table 4c, "Baseline".

    Paper: box AP 34.47 (54.87 / 36.58 at IoU 0.5 / 0.75), mask AP 30.44 (51.55 / 31.95), released code 35.6 / 31.5.
    Ours: not run (needs 8 GPUs and COCO).
    Command: ``cgnl train coco-maskrcnn-resnet50 --data.root coco``
    Cost: 35.9 M parameters, 56.9 G multiplications of the backbone for 800 x 1088 pixels,
    180,000 steps of 8 images.
    """
    return coco(DetectionNetworkConfig(arch="resnet50", neck="c4", block="none"))


@register(
    PaperRow(
        "4c",
        "+ 1 NL block",
        box_ap=35.02,
        box_ap50=55.79,
        box_ap75=37.54,
        mask_ap=30.23,
        mask_ap50=52.40,
        mask_ap75=32.77,
    ),
)
def coco_maskrcnn_resnet50_nl() -> DetectionRecipe:
    """Table 4c, "+ 1 NL block".

    Paper: box AP 35.02 (55.79 / 37.54 at IoU 0.5 / 0.75), mask AP 30.23 (52.40 / 32.77).
    Ours: not run (needs 8 GPUs and COCO).
    Command: ``cgnl train coco-maskrcnn-resnet50-nl --data.root coco``
    Cost: 38.0 M parameters, 75.8 G multiplications of the backbone for 800 x 1088 pixels,
    180,000 steps of 8 images.
    """
    return coco(DetectionNetworkConfig(arch="resnet50", neck="c4", block="nl"))


@register(
    PaperRow(
        "4c",
        "+ 1 CGNL block",
        box_ap=35.70,
        box_ap50=56.07,
        box_ap75=38.69,
        mask_ap=31.22,
        mask_ap50=52.44,
        mask_ap75=32.67,
        released_box_ap=36.3,
        released_mask_ap=32.1,
    ),
)
def coco_maskrcnn_resnet50_cgnl() -> DetectionRecipe:
    """Table 4c, "+ 1 CGNL block".

    Paper: box AP 35.70 (56.07 / 38.69 at IoU 0.5 / 0.75), mask AP 31.22 (52.44 / 32.67), released code 36.3 / 32.1.
    Ours: not run (needs 8 GPUs and COCO).
    Command: ``cgnl train coco-maskrcnn-resnet50-cgnl --data.root coco``
    Cost: 37.6 M parameters, 62.4 G multiplications of the backbone for 800 x 1088 pixels,
    180,000 steps of 8 images.
    """
    return coco(DetectionNetworkConfig(arch="resnet50", neck="c4", block="cgnl"), groups=8)


@register(
    PaperRow("4c", "+ 1 CGNLx block (released code)", released_box_ap=36.2, released_mask_ap=31.9),
)
def coco_maskrcnn_resnet50_cgnlx() -> DetectionRecipe:
    """Table 4c, a row of the released code alone: "+ 1 CGNLx block (released code)", its longer schedule.

    Paper: no such row, released code 36.2 / 31.9.
    Ours: not run (needs 8 GPUs and COCO).
    Command: ``cgnl train coco-maskrcnn-resnet50-cgnlx --data.root coco``
    Cost: 37.6 M parameters, 62.4 G multiplications of the backbone for 800 x 1088 pixels,
    200,000 steps of 8 images.
    """
    return coco(
        DetectionNetworkConfig(arch="resnet50", neck="c4", block="cgnlx"),
        groups=8,
        steps=200_000,
        milestones=(140_000, 180_000),
        warmup=20_000,
    )


@register()
def coco_maskrcnn_resnet50_fpn() -> DetectionRecipe:
    """The baseline of Table 4c with a feature pyramid in the place of the C4 neck.

    Paper: no such row.
    Ours: not run (needs 8 GPUs and COCO).
    Command: ``cgnl train coco-maskrcnn-resnet50-fpn --data.root coco``
    Cost: 44.3 M parameters, 120.2 G multiplications of the backbone for 800 x 1088 pixels,
    180,000 steps of 8 images.
    """
    return coco(DetectionNetworkConfig(arch="resnet50", neck="fpn", block="none"))


@register()
def coco_maskrcnn_resnet50_fpn_nl() -> DetectionRecipe:
    """The NL row of Table 4c with a feature pyramid in the place of the C4 neck.

    Paper: no such row.
    Ours: not run (needs 8 GPUs and COCO).
    Command: ``cgnl train coco-maskrcnn-resnet50-fpn-nl --data.root coco``
    Cost: 46.4 M parameters, 139.2 G multiplications of the backbone for 800 x 1088 pixels,
    180,000 steps of 8 images.
    """
    return coco(DetectionNetworkConfig(arch="resnet50", neck="fpn", block="nl"))


@register()
def coco_maskrcnn_resnet50_fpn_cgnl() -> DetectionRecipe:
    """The CGNL row of Table 4c with a feature pyramid in the place of the C4 neck.

    Paper: no such row.
    Ours: not run (needs 8 GPUs and COCO).
    Command: ``cgnl train coco-maskrcnn-resnet50-fpn-cgnl --data.root coco``
    Cost: 46.0 M parameters, 125.8 G multiplications of the backbone for 800 x 1088 pixels,
    180,000 steps of 8 images.
    """
    return coco(DetectionNetworkConfig(arch="resnet50", neck="fpn", block="cgnl"), groups=8)


@register()
def coco_maskrcnn_resnet101() -> DetectionRecipe:
    """The baseline of Table 4c with ResNet-101.

    Paper: no such row.
    Ours: not run (needs 8 GPUs and COCO).
    Command: ``cgnl train coco-maskrcnn-resnet101 --data.root coco``
    Cost: 54.9 M parameters, 121.3 G multiplications of the backbone for 800 x 1088 pixels,
    180,000 steps of 8 images.
    """
    return coco(DetectionNetworkConfig(arch="resnet101", neck="c4", block="none"))


@register()
def coco_maskrcnn_resnet101_cgnl() -> DetectionRecipe:
    """The CGNL row of Table 4c with ResNet-101.

    Paper: no such row.
    Ours: not run (needs 8 GPUs and COCO).
    Command: ``cgnl train coco-maskrcnn-resnet101-cgnl --data.root coco``
    Cost: 56.5 M parameters, 126.8 G multiplications of the backbone for 800 x 1088 pixels,
    180,000 steps of 8 images.
    """
    return coco(DetectionNetworkConfig(arch="resnet101", neck="c4", block="cgnl"), groups=8)
