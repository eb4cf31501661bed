"""Global context blocks (GCNet), in which all positions share one attention map.

Legend: B batch, C channels, C' inner channels, S spatial or space-time axes, N positions.
"""

import torch
from torch import Tensor, nn

from cgnl.blocks.shell import check_input, check_positive


class _GlobalContext(nn.Module):
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
        self.key = nn.Linear(channels, 1, device=device, dtype=dtype)
        self.squeeze = nn.Linear(channels, inner_channels, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(inner_channels, device=device, dtype=dtype)
        self.expand = nn.Linear(inner_channels, channels, device=device, dtype=dtype)
        nn.init.zeros_(self.expand.weight)
        nn.init.zeros_(self.expand.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output [B, C, *S] for ``x`` [B, C, *S]."""
        check_input(self, x, self.num_axes, self.channels)
        positions = x.flatten(2)
        weights = self.logits(x).flatten(1).softmax(1).to(x.dtype)
        context = (positions @ weights[..., None]).squeeze(2)
        added = self.expand(self.norm(self.squeeze(context)).relu())
        return x + added.to(x.dtype).reshape(*added.shape, *(1,) * self.num_axes)

    def logits(self, x: Tensor) -> Tensor:
        """Return the attention's logits [B, *S] for ``x`` [B, C, *S]."""
        return self.key(x.movedim(1, -1)).squeeze(-1)

    def extra_repr(self) -> str:
        return f"channels={self.channels}"


class GlobalContext1d(_GlobalContext):
    """Global context block for sequences; see `GlobalContext2d`."""

    num_axes = 1


class GlobalContext2d(_GlobalContext):
    """Global context block for images: Z = X + W2 ReLU(LayerNorm(W1 sum_m softmax_m(k · x_m) x_m)).

    It is a non-local block whose positions all share one attention map. It starts as the identity: W2 is zero.
    ``inner_channels=None`` means C // 16. Arguments outside their range raise ValueError.

    Source: Cao et al., "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", ICCV workshops 2019.

    Example:
        >>> x = torch.randn(2, 64, 14, 14)
        >>> torch.equal(GlobalContext2d(64)(x), x)
        True
    """

    num_axes = 2


class GlobalContext3d(_GlobalContext):
    """Global context block for videos, over space and time; see `GlobalContext2d`."""

    num_axes = 3
