"""Squeeze-and-excitation blocks: a factor for each channel, computed from the averages over all positions.

Legend: B batch, C channels, C' inner channels, S spatial or space-time axes.
"""

import torch
from torch import Tensor, nn

from cgnl.blocks.shell import check_input, check_positive


class _SqueezeExcitation(nn.Module):
    num_axes: int
    groups = 1

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive("channels", channels)
        inner_channels = max(1, channels // 16) if inner_channels is None else inner_channels
        check_positive("inner_channels", inner_channels)
        self.channels = channels
        self.squeeze = nn.Linear(channels, inner_channels, device=device, dtype=dtype)
        self.excite = nn.Linear(inner_channels, channels, device=device, dtype=dtype)
        nn.init.zeros_(self.excite.weight)
        nn.init.zeros_(self.excite.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output [B, C, *S] for ``x`` [B, C, *S]."""
        check_input(self, x, self.num_axes, self.channels)
        factors = 2 * self.excite(self.squeeze(x.flatten(2).mean(2)).relu()).sigmoid()
        return x * factors.to(x.dtype).reshape(*factors.shape, *(1,) * self.num_axes)

    def extra_repr(self) -> str:
        return f"channels={self.channels}"


class SqueezeExcitation1d(_SqueezeExcitation):
    """Squeeze-and-excitation block for sequences; see `SqueezeExcitation2d`."""

    num_axes = 1


class SqueezeExcitation2d(_SqueezeExcitation):
    """Squeeze-and-excitation block for images: Z = 2 sigmoid(W2 ReLU(W1 mean_m x_m)) X, for each channel.

    It starts as the identity: W2 is zero, and the factor 2, which the paper does not have, turns its sigmoid into 1.
    ``inner_channels=None`` means C // 16. Arguments outside their range raise ValueError.

    Source: Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018.

    Example:
        >>> x = torch.randn(2, 64, 14, 14)
        >>> torch.equal(SqueezeExcitation2d(64)(x), x)
        True
    """

    num_axes = 2


class SqueezeExcitation3d(_SqueezeExcitation):
    """Squeeze-and-excitation block for videos, over space and time; see `SqueezeExcitation2d`."""

    num_axes = 3
