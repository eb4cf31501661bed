"""Table 2b: one NL and one CGNL block without groups, ResNet-50 on UCF101 (split 1)."""

from cgnl.recipes.rows import row, table
from cgnl.recipes.video import UCF101

TABLE_2B = table(
    "2b",
    UCF101,
    row("ucf101-resnet50", "R-50.", "none", (81.62, 94.62)),
    row("ucf101-resnet50-nl", "R-50 + 1 NL block", "nl", (82.88, 95.74)),
    row("ucf101-resnet50-cgnl", "R-50 + 1 CGNL block", "cgnl", (83.38, 95.42), groups=1),
)
