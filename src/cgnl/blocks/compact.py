"""Compact generalized non-local blocks (Eq. 12-13, Fig. 2).

Legend: B batch, C channels, C' inner channels, S spatial or space-time axes, N positions, G groups.
"""

import math

import torch
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm

from cgnl.blocks.grouped import GroupedBlock
from cgnl.blocks.shell import is_plain
from cgnl.ops import cgnl_block, compact_generalized_non_local, scale_factor
from cgnl.ops.eager import autocast_is_on, autograd_function_can_run, cgnl_block_batch_norm, sum_dtype

# Symbolic tracing records an operation as one call: inside it looks at shapes and types.
fx.wrap("compact_generalized_non_local")


class _CompactBlock(GroupedBlock):
    def _operation(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        return compact_generalized_non_local(
            self.theta(x),
            self.phi(x),
            self.g(x),
            groups=self.groups,
            kernel=self.kernel,
            scale=self.scale,
            backend=self.backend,
            out_dtype=out_dtype,
        )

    def _weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.theta.weight, self.phi.weight, self.g.weight, self.z.weight

    def _branch(self, x: Tensor) -> Tensor:
        return cgnl_block(
            x,
            *self._weights(),
            groups=self.groups,
            kernel=self.kernel,
            scale=self.scale,
            backend=self.backend,
            out_dtype=sum_dtype(x.dtype),
        )

    def _through_operations(self, x: Tensor) -> Tensor:
        norm = self.norm
        if (
            self.backend == "naive"
            or not self.kernel.is_plain_series
            or not isinstance(norm, _BatchNorm)
            or not (norm.training or norm.running_mean is None)
            or not is_plain(norm)
            or not autograd_function_can_run(x, *self._weights())
            or (x.dtype != self.theta.weight.dtype and not autocast_is_on(x))
        ):
            return super()._through_operations(x)
        if x.shape[0] * math.prod(x.shape[2:]) == 1:
            raise ValueError(f"x {tuple(x.shape)} must have more than 1 value per channel in training")
        momentum, running_mean, running_var = 0.0, None, None
        if norm.training and norm.track_running_stats:
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.add_(1)
            momentum = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            running_mean, running_var = norm.running_mean, norm.running_var
        return cgnl_block_batch_norm(
            x,
            *self._weights(),
            norm.weight,
            norm.bias,
            running_mean,
            running_var,
            groups=self.groups,
            kernel=self.kernel,
            factor=scale_factor(self.scale, self.inner_channels // self.groups * math.prod(x.shape[2:])),
            eps=norm.eps,
            momentum=momentum,
        )


class CGNL1d(_CompactBlock):
    """Compact generalized non-local block for sequences; see `CGNL2d`.

    Example:
        >>> CGNL1d(64)(torch.randn(2, 64, 20)).shape
        torch.Size([2, 64, 20])
    """

    num_axes = 1


class CGNL2d(_CompactBlock):
    """Compact generalized non-local block for images: Z = norm(conv_z(Y)) + X (Eq. 12-13, Fig. 2).

    Relates every element (position and channel) of a group with every other at a cost linear in their number.

    The paper's norm is BatchNorm. The released code has GroupNorm with the same groups as conv_z: it
    normalises each sample and group on its own and so, with the dot product, divides out the scalar phi^T g
    again except for its sign. BatchNorm in training with one sample per process does the same, hence the
    warning; use ``"sync_batch"`` in several processes then, or frozen statistics. ``"group"`` is for loading
    the released checkpoints.

    Eq. 2 prints C' = C; the default of C/2 is the released code's.

    Args:
        channels: C.
        inner_channels: C'; None for C // 2.
        groups: G, must divide C and C'.
        kernel: ``"dot"``, ``"embedded_gaussian"``, ``"rbf"`` or a kernel function.
        norm: ``"batch"``, ``"sync_batch"``, ``"group"``, None, or a function of C that makes a module.
        scale: factor on the sums: None (1, the paper's), ``"sqrt"`` (1 / sqrt(M)) or ``"mean"`` (1 / M),
            where M counts the elements of one group.
        backend: ``"auto"``, ``"eager"`` or ``"naive"``.

    Raises:
        ValueError: an argument is outside its range.

    Source: Yue et al., NeurIPS 2018.

    Example:
        >>> block = CGNL2d(64)
        >>> x = torch.randn(2, 64, 14, 14)
        >>> torch.equal(block(x), x)  # exactly the identity until it is trained
        True
    """

    num_axes = 2


class CGNL3d(_CompactBlock):
    """Compact generalized non-local block for videos, over space and time; see `CGNL2d`."""

    num_axes = 3
