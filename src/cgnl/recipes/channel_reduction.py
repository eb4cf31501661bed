"""The text beside Table 2d: adding groups gains more than reducing the inner channels.

"The improvements brought in by adding groups are larger than those by reducing the channel reduction ratio."
The paper says this of Mini-Kinetics and prints no number for the ratio. Two recipes train with inner channels C and
C/4; C/2 are recipes of Table 2d. Three more ask the same of images, on CUB-200-2011.
"""

from cgnl.recipes.image import CUB
from cgnl.recipes.rows import again, row, table
from cgnl.recipes.video import MINI_KINETICS

_FULL, _QUARTER = ({"block.groups": 1, "block.channel_reduction": reduction} for reduction in (1, 4))

ON_VIDEOS = table(
    "2d (text)",
    MINI_KINETICS,
    row("mini-kinetics-resnet50-cgnl-g1-full", "inner channels C, 1 group", "cgnl", changes=_FULL),
    again("mini-kinetics-resnet50-cgnl-g1", "inner channels C/2, 1 group"),
    again("mini-kinetics-resnet50-cgnl", "inner channels C/2, 8 groups"),
    row("mini-kinetics-resnet50-cgnl-g1-quarter", "inner channels C/4, 1 group", "cgnl", changes=_QUARTER),
)

ON_IMAGES = table(
    "2d (text, on images)",
    CUB,
    row("cub-resnet50-cgnl-g1-full", "inner channels C, 1 group", "cgnl", changes=_FULL),
    row("cub-resnet50-cgnl-g1", "inner channels C/2, 1 group", "cgnl", groups=1),
    again("cub-resnet50-cgnl", "inner channels C/2, 8 groups", printed=False),
    row("cub-resnet50-cgnl-g1-quarter", "inner channels C/4, 1 group", "cgnl", changes=_QUARTER),
)
