"""Blocks to put into a network: (compact generalized) non-local ones and the simple residual one.

Every block is Z = norm(conv_z(Y)) + X (Eq. 13) with its own operation Y. It starts as the exact identity: the
weight and bias of its norm are zero at first, or conv_z's weight where the norm has none.

Legend: B batch, C channels, C' inner channels, S spatial or space-time axes, N positions, G groups.

State dict: ``theta.weight``, ``phi.weight``, ``g.weight``, ``z.weight``, ``norm.*``, and biases where asked
for.

Source: Yue et al., "Compact Generalized Non-local Network", NeurIPS 2018.
"""

from cgnl.blocks.compact import CGNL1d, CGNL2d, CGNL3d
from cgnl.blocks.grouped import (
    GeneralizedNonLocal1d,
    GeneralizedNonLocal2d,
    GeneralizedNonLocal3d,
    SingleSampleWarning,
)
from cgnl.blocks.non_local import NonLocal1d, NonLocal2d, NonLocal3d
from cgnl.blocks.residual import ResidualBlock1d, ResidualBlock2d, ResidualBlock3d
from cgnl.blocks.shell import Groups, Norm, fuse_blocks
from cgnl.blocks.stream import CGNLStream3d

__all__ = [
    "CGNL1d",
    "CGNL2d",
    "CGNL3d",
    "CGNLStream3d",
    "GeneralizedNonLocal1d",
    "GeneralizedNonLocal2d",
    "GeneralizedNonLocal3d",
    "Groups",
    "NonLocal1d",
    "NonLocal2d",
    "NonLocal3d",
    "Norm",
    "ResidualBlock1d",
    "ResidualBlock2d",
    "ResidualBlock3d",
    "SingleSampleWarning",
    "fuse_blocks",
]
