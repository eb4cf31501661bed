"""Table 4c: Mask R-CNN on COCO 2017 with one NL or CGNL block in its backbone.

The rows are those of the C4 network with ResNet-50. The feature pyramid and ResNet-101 are ours, as neither the paper
nor the released code has them; CGNLx, with a longer schedule, is a row of the released code alone.
"""

from cgnl.recipes.detection import COCO
from cgnl.recipes.rows import row, table

_LONGER = {
    "schedule.warmup": 20_000,
    "schedule.milestones": (140_000, 180_000),
    "trainer.max_steps": 200_000,
    "trainer.max_epochs": 200_000,
}
_FPN = {"network.neck": "fpn"}

TABLE_4C = table(
    "4c",
    COCO,
    row("coco-maskrcnn-resnet50", "Baseline", "none", (34.47, 54.87, 36.58, 30.44, 51.55, 31.95), (35.6, 31.5)),
    row("coco-maskrcnn-resnet50-nl", "+ 1 NL block", "nl", (35.02, 55.79, 37.54, 30.23, 52.40, 32.77)),
    row(
        "coco-maskrcnn-resnet50-cgnl",
        "+ 1 CGNL block",
        "cgnl",
        (35.70, 56.07, 38.69, 31.22, 52.44, 32.67),
        (36.3, 32.1),
    ),
    row("coco-maskrcnn-resnet50-cgnlx", "+ 1 CGNLx block (released code)", "cgnlx", (), (36.2, 31.9), changes=_LONGER),
)

OURS = table(
    None,
    COCO,
    row("coco-maskrcnn-resnet50-fpn", "The baseline of Table 4c with a feature pyramid", "none", changes=_FPN),
    row("coco-maskrcnn-resnet50-fpn-nl", "The NL row of Table 4c with a feature pyramid", "nl", changes=_FPN),
    row("coco-maskrcnn-resnet50-fpn-cgnl", "The CGNL row of Table 4c with a feature pyramid", "cgnl", changes=_FPN),
    row("coco-maskrcnn-resnet101", "The baseline of Table 4c with ResNet-101", "none"),
    row("coco-maskrcnn-resnet101-cgnl", "The CGNL row of Table 4c with ResNet-101", "cgnl"),
)
