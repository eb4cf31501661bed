"""Non-local blocks (Eq. 1-4, 13).

Legend: B batch, C channels, C' inner channels, S spatial or space-time axes, N positions, G groups.
"""

from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from cgnl.blocks.shell import Block, Factory, Norm
from cgnl.ops import PairsBackend, Pairwise
from cgnl.ops import read_only_non_local as non_local  # needs no copy: conv_z only reads the result
from cgnl.settings.checks import check_choice

# Symbolic tracing records an operation as one call, because its code depends on shapes and types.
fx.wrap("non_local")
fx.wrap("sub_sampled")

_POOL: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class _NonLocalBlock(Block):
    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        pairwise: Pairwise = "embedded_gaussian",
        scale: bool = True,
        subsample: bool = False,
        norm: Norm = "batch",
        bias: bool = False,
        backend: PairsBackend = "auto",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, inner_channels, 1)
        check_choice("pairwise", pairwise, get_args(Pairwise))
        check_choice("backend", backend, get_args(PairsBackend))
        for name, value in (("scale", scale), ("subsample", subsample), ("bias", bias)):
            check_choice(name, value, (True, False))
        self.pairwise = pairwise
        self.scale = scale
        self.subsample = subsample
        self.backend = backend
        factory: Factory = {"device": device, "dtype": dtype}
        if pairwise != "gaussian":
            self.theta = self._convolution(self.channels, self.inner_channels, factory, bias=bias)
            self.phi = self._convolution(self.channels, self.inner_channels, factory, bias=bias)
        self.g = self._convolution(self.channels, self.inner_channels, factory, bias=bias)
        if pairwise == "concatenation":
            self.concat = self._convolution(2 * self.inner_channels, 1, factory)
        self._finish(norm, factory)

    def _operation(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        gaussian = self.pairwise == "gaussian"
        theta, phi = (x, x) if gaussian else (self.theta(x), self.phi(x))
        g = self.g(x)
        if self.subsample:
            phi, g = sub_sampled(phi), sub_sampled(g)
        return non_local(
            theta,
            phi,
            g,
            pairwise=self.pairwise,
            scale=self.scale,
            concat_weight=self.concat.weight if self.pairwise == "concatenation" else None,
            backend=self.backend,
            out_dtype=out_dtype,
        )

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, inner_channels={self.inner_channels}, pairwise={self.pairwise!r}, "
            f"scale={self.scale}, subsample={self.subsample}"
        )


def sub_sampled(features: Tensor) -> Tensor:
    """Max-pool [B, C', *S] by 2 along the spatial axes that have more than one position."""
    sizes = features.shape[2:]
    return _POOL[len(sizes)](
        features, [2 if size > 1 and not (axis == 0 and len(sizes) == 3) else 1 for axis, size in enumerate(sizes)]
    )


class NonLocal1d(_NonLocalBlock):
    """Non-local block for sequences; see `NonLocal2d`."""

    num_axes = 1


class NonLocal2d(_NonLocalBlock):
    """Non-local block for images: Z = norm(conv_z(Y)) + X with Y over all pairs of positions (Eq. 1-4).

    conv_z is not grouped. Neither conv_z nor the concatenation's projection has a bias.

    Args:
        channels: C.
        inner_channels: C'; None for C // 2.
        pairwise: ``"embedded_gaussian"``, ``"gaussian"`` (theta = phi = x), ``"dot_product"`` (divided by N_phi),
            ``"dot_product_sum"`` (not divided, as Eq. 4 is printed) or ``"concatenation"``.
        scale: Whether softmax forms divide their logits by the square root of theta's channels.
        subsample: Whether phi and g are max-pooled by 2 along the spatial axes (an axis of one position stays as it
            is), and never along time.
        norm: ``"batch"``, ``"sync_batch"``, ``"group"`` (one group), None, or a function of C that makes a module.
        bias: Whether theta, phi and g have biases.
        backend: ``"auto"``, ``"eager"`` or ``"naive"``.
        device: Device of the parameters and buffers; None for PyTorch's default.
        dtype: Their type; None for PyTorch's default.

    Raises:
        ValueError: An argument is outside its range.

    Source: Wang et al., "Non-local Neural Networks", CVPR 2018.

    Example:
        >>> NonLocal2d(64, pairwise="dot_product")(torch.randn(2, 64, 14, 14)).shape
        torch.Size([2, 64, 14, 14])
    """

    num_axes = 2


class NonLocal3d(_NonLocalBlock):
    """Non-local block for videos, over space and time; see `NonLocal2d`."""

    num_axes = 3
