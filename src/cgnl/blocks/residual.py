"""The simple residual block of Table 3 and Fig. 4: a block without attention.

Legend: B batch, C channels, C' inner channels, S spatial or space-time axes, N positions, G groups.
"""

import torch
from torch import Tensor

from cgnl.blocks.shell import Block, Factory, Groups, Norm


class _ResidualBlock(Block):
    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        groups: Groups = "auto",
        norm: Norm = "batch",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, inner_channels, groups)
        factory: Factory = {"device": device, "dtype": dtype}
        self.theta = self._convolution(self.channels, self.inner_channels, factory)
        self._finish(norm, factory)

    def _operation(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        return self.theta(x)


class ResidualBlock1d(_ResidualBlock):
    """Simple residual block for sequences; see `ResidualBlock2d`."""

    num_axes = 1


class ResidualBlock2d(_ResidualBlock):
    """Simple residual block for images: Z = norm(conv_z(conv_theta(X))) + X (Fig. 4).

    This is the control of Table 3, a CGNL block without attention: it has the CGNL block's conv_theta and conv_z, but
    neither phi nor g. The paper does not say whether its conv_z is grouped. Here it is, as in the CGNL block, so that
    the two differ only by the attention. Arguments and errors are those of `CGNL2d`.

    Source: Yue et al., NeurIPS 2018.

    Example:
        >>> ResidualBlock2d(64)(torch.randn(2, 64, 14, 14)).shape
        torch.Size([2, 64, 14, 14])
    """

    num_axes = 2


class ResidualBlock3d(_ResidualBlock):
    """Simple residual block for videos; see `ResidualBlock2d`."""

    num_axes = 3
