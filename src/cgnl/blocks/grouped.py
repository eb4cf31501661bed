"""The base of the exact and the compact generalized non-local blocks, and the exact blocks.

Legend: B batch, C channels, C' inner channels, S spatial or space-time axes, N positions, G groups.
"""

import math
import warnings
from functools import cache
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn

from cgnl.blocks.shell import BATCH_NORMS, Block, Factory, Groups, Norm
from cgnl.kernel_functions import DotProduct, KernelFunction, resolve_kernel_function
from cgnl.ops import PairsBackend, Scale, generalized_non_local
from cgnl.settings.checks import check_choice

# Symbolic tracing records an operation as one call, because its code depends on shapes and types.
fx.wrap("generalized_non_local")

# A scale makes the branch of a new block so small that the norm's eps outweighs its variance, and the block hardly
# learns. y is linear in g, so a larger g makes up for the scale, whatever the kernel function; theta, phi and z stay
# small and learn as fast as without a scale (studies/start.py). The numbers make up for an M of some hundreds.
_G_STD = {None: 0.01, "sqrt": 0.2, "mean": 2.0}


class SingleSampleWarning(UserWarning):
    """BatchNorm sees only one sample, which cancels the attention of a CGNL block."""


class GroupNormWarning(UserWarning):
    """GroupNorm cancels the attention of a CGNL block with the dot product."""


class GroupedBlock(Block):
    """Base class of the exact and the compact generalized non-local blocks."""

    backends: tuple[str, ...] = get_args(PairsBackend)

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        groups: Groups = "auto",
        z_groups: int | None = None,
        kernel: str | KernelFunction = "dot",
        norm: Norm = "batch",
        scale: Scale | None = None,
        g_std: float | None = None,
        backend: str = "auto",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, inner_channels, groups, z_groups)
        self.kernel = resolve_kernel_function(kernel)
        check_choice("scale", scale, (None, *get_args(Scale)))
        check_choice("backend", backend, self.backends)
        self.scale = scale
        self.backend: Any = backend
        if g_std is None:
            g_std = _G_STD[scale]
        elif isinstance(g_std, bool) or not isinstance(g_std, int | float) or not 0 < g_std < math.inf:
            raise ValueError(f"g_std ({g_std!r}) must be a finite number above 0")
        factory: Factory = {"device": device, "dtype": dtype}
        self.theta = self._convolution(self.channels, self.inner_channels, factory)
        self.phi = self._convolution(self.channels, self.inner_channels, factory)
        self.g = self._convolution(self.channels, self.inner_channels, factory, std=g_std)
        self._finish(norm, factory)

    def _check_input(self, x: Tensor) -> None:
        super()._check_input(x)
        if (
            not torch.compiler.is_compiling()
            and x.shape[0] == 1
            and isinstance(self.norm, nn.Module)
            and self.norm.training
            and is_over_this_process(self.norm)
        ):
            _warn_of_single_sample()
        if (
            not torch.compiler.is_compiling()
            and isinstance(self.norm, nn.GroupNorm)
            and self.norm.training
            and isinstance(self.kernel, DotProduct)
            and self.groups == self.z_groups
            and self.norm.num_groups % self.groups == 0
        ):
            _warn_of_group_norm()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kernel={self.kernel}, scale={self.scale!r}, backend={self.backend!r}"


class _ExactBlock(GroupedBlock):
    def _operation(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        return generalized_non_local(
            self.theta(x),
            self.phi(x),
            self.g(x),
            groups=self.groups,
            kernel=self.kernel,
            scale=self.scale,
            backend=self.backend,
            out_dtype=out_dtype,
        )


class GeneralizedNonLocal1d(_ExactBlock):
    """Generalized non-local block for sequences; see `GeneralizedNonLocal2d`."""

    num_axes = 1


class GeneralizedNonLocal2d(_ExactBlock):
    """Generalized non-local block for images: the exact kernel function over all pairs (Eq. 7-8, 13).

    It is the exact form of `CGNL2d`, with the same arguments, errors and state dict. Its time grows with the square of
    the input; its memory stays bounded. It uses the exact form of ``kernel``; the backend is ``"auto"``, ``"eager"`` or
    ``"naive"``.

    Source: Yue et al., NeurIPS 2018.

    Example:
        >>> from cgnl import CGNL2d
        >>> block = GeneralizedNonLocal2d(16, groups=2)
        >>> block.load_state_dict(CGNL2d(16, groups=2).state_dict())
        <All keys matched successfully>
    """

    num_axes = 2


class GeneralizedNonLocal3d(_ExactBlock):
    """Generalized non-local block for videos; see `GeneralizedNonLocal2d`."""

    num_axes = 3


def is_over_this_process(norm: nn.Module) -> bool:
    """Tell whether the norm in training takes its statistics only over the samples of this process."""
    if type(norm) is nn.SyncBatchNorm:
        distributed = torch.distributed
        return not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1)
    return type(norm) in BATCH_NORMS.values()


@cache
def _warn_of_single_sample() -> None:
    warnings.warn(
        "A CGNL block with BatchNorm is training on one sample per process, so its norm divides out "
        'the scalars that the block computes. Use a larger batch, norm="sync_batch" over several processes, or '
        "frozen statistics.",
        SingleSampleWarning,
        stacklevel=2,
    )


@cache
def _warn_of_group_norm() -> None:
    warnings.warn(
        "A CGNL block with GroupNorm and the dot product is training, so its norm divides out the scalars that the "
        'block computes, and leaves their signs. Use norm="batch" or "sync_batch"; GroupNorm is for the authors\' '
        "released checkpoints.",
        GroupNormWarning,
        stacklevel=2,
    )
