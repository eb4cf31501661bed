"""Blocks to put into a network.

The non-local, generalized non-local, compact and simple residual blocks are Z = norm(conv_z(Y)) + X (Eq. 13), each with
its own operation Y. They start as the exact identity: the norm's weight and bias are zero at first, or conv_z's weight
if the norm has none. Global context and squeeze-and-excitation blocks have other forms and start as the identity too.

Legend: B batch, C channels, C' inner channels, S spatial or space-time axes, N positions, G groups.

State dict of a CGNL block: ``theta.weight``, ``phi.weight``, ``g.weight``, ``z.weight``, ``norm.*``.

Source: Yue et al., "Compact Generalized Non-local Network", NeurIPS 2018.
"""

from cgnl.blocks import kinds
from cgnl.blocks.grouped import GroupNormWarning, SingleSampleWarning
from cgnl.blocks.kinds import *  # noqa: F403 (the classes of every kind)
from cgnl.blocks.shell import Groups, Norm, fuse_blocks
from cgnl.blocks.stream import CGNLStream3d

__all__ = ["CGNLStream3d", "GroupNormWarning", "Groups", "Norm", "SingleSampleWarning", "fuse_blocks"]
__all__ += kinds.__all__
