"""Table 5: one CGNL and one CGNLx block, ResNet-50 and ResNet-152 on ImageNet.

The baselines of the paper are the pretrained weights themselves, which every row here goes on from. Their
recipes train those weights on as the other rows do, which makes them the control. All rows keep the pretrained
classifier; the released code starts a new one for ImageNet too, which ``--network.new-classifier`` does.
"""

from cgnl.recipes.image import IMAGENET
from cgnl.recipes.rows import row, table

TABLE_5 = table(
    "5",
    IMAGENET,
    row("imagenet-resnet50", "R-50", "none", (76.15, 92.87)),
    row("imagenet-resnet50-cgnl", "R-50 + 1 CGNL block", "cgnl", (77.69, 93.64), (77.69, 93.63)),
    row("imagenet-resnet50-cgnlx", "R-50 + 1 CGNLx block", "cgnlx", (77.32, 93.46), (77.32, 93.40)),
    row("imagenet-resnet152", "R-152", "none", (78.31, 94.06)),
    row("imagenet-resnet152-cgnl", "R-152 + 1 CGNL block", "cgnl", (79.53, 94.59), (79.53, 94.52)),
    row("imagenet-resnet152-cgnlx", "R-152 + 1 CGNLx block", "cgnlx", (79.37, 94.47), (79.37, 94.47)),
)
