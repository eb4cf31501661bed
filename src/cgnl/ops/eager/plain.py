"""The CGNL block as ordinary differentiable operations: for tracers, transforms, gradients of gradients.

Legend: B batch, C channels, C' inner channels, S spatial or space-time axes, N positions, G groups.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cgnl.kernel_functions import KernelFunction
from cgnl.ops.eager.ending import Ending, Kind
from cgnl.ops.eager.maps import by_group, parts_of_batch
from cgnl.ops.eager.series import series_in_parts, sum_dtype, without_autocast
from cgnl.ops.parallel import ProcessGroup

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


@dataclass(frozen=True)
class Settings:
    """What a block is told besides tensors; `ending` says what the norm's weight and bias are for."""

    groups: int
    kernel: KernelFunction
    coefficients: tuple[float, ...]
    feature_dtype: torch.dtype
    kind: Kind = "branch"
    eps: float = 0.0
    momentum: float = 0.0
    training: bool = True
    memory_efficient: bool = False
    process_group: ProcessGroup | None = None

    @property
    def is_dot_product(self) -> bool:
        return len(self.coefficients) == 2 and not self.coefficients[0]

    def parts(self, flat: Tensor) -> list[slice]:
        """The parts of the batch; one where processes add their sums, which they have to do equally often."""
        return [slice(None)] if self.process_group is not None else parts_of_batch(flat)

    def ending(self, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Ending:
        weight, bias = (None if t is None else t.to(dtype) for t in (weight, bias))
        return Ending(self.kind, weight, bias, self.eps, self.momentum)


def block_in_plain_operations(
    x: Tensor,
    theta_weight: Tensor,
    phi_weight: Tensor,
    g_weight: Tensor,
    z_weight: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, ...]:
    """The block as ordinary differentiable operations.

    Returns:
        The output; for ``"parts"`` also the part that all positions share, [B, C]; for ``"batch_norm"`` also the mean
        and the variance of the batch, [C] each.
    """
    convolve = _CONVOLUTIONS[x.dim()]
    dtype = sum_dtype(x.dtype)
    with without_autocast(x):
        theta, phi, g = (
            convolve(x.to(settings.feature_dtype), weight.to(settings.feature_dtype)).flatten(2)
            for weight in (theta_weight, phi_weight, g_weight)
        )
        varying, shared = series_in_parts(
            theta, phi, g, settings.groups, settings.kernel, settings.coefficients, settings.process_group
        )
        z_weight = z_weight.to(dtype)
        branch = convolve(varying.to(dtype).unflatten(2, x.shape[2:]), z_weight, groups=settings.groups)
        if shared is not None:
            z_matrices = z_weight.flatten(1).unflatten(0, (settings.groups, -1))
            shared = by_group(z_matrices, shared[..., 0])
        ending = settings.ending(weight, bias, dtype)
        if ending.kind == "parts":
            assert shared is not None
            return branch, shared
        more: tuple[Tensor, ...] = ()
        if ending.kind == "batch_norm":
            branch, shared, *statistics = norm_of_parts(branch, shared, None, ending.weight, ending.bias, ending.eps)
            more = tuple(statistics)
        elif ending.kind == "affine":
            if ending.weight is not None:
                branch = branch * _at_each_position(ending.weight, x.dim())
                shared = None if shared is None else shared * ending.weight
            if ending.bias is not None:
                shared = ending.bias[None] if shared is None else shared + ending.bias
        out = branch if shared is None else branch + _at_each_position(shared, x.dim())
        return (out if ending.kind == "branch" else (x.to(dtype) + out).to(x.dtype), *more)


def norm_of_parts(
    varying: Tensor,
    shared: Tensor | None,
    groups: int | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """BatchNorm over this batch, or GroupNorm, of a map that comes as two parts; the results come as two parts again.

    Args:
        varying: [B, C, *S].
        shared: what all positions of a sample and channel share, [B, C]; None for 0.
        groups: of GroupNorm; None for BatchNorm.
        weight: [C], or None for 1.
        bias: [C], or None for 0.
        eps: is added to the variance.

    Returns:
        The part that varies over the positions, [B, C, *S]; the one that they share, [B, C]; mean and variance, [C] for
        BatchNorm and [B, C] for GroupNorm.
    """
    axes = tuple(range(2, varying.dim()))
    means = varying.mean(axes)
    centred = varying - _at_each_position(means, varying.dim())
    offset = means if shared is None else shared + means

    def over_members(values: Tensor) -> Tensor:
        """The mean over all that share statistics, of numbers [B, C]."""
        if groups is None:
            return values.mean(0)
        of_groups = values.unflatten(1, (groups, -1))
        return of_groups.mean(2, keepdim=True).expand(of_groups.shape).flatten(1)

    mean = over_members(offset)
    variance = over_members(centred.square().mean(axes) + (offset - mean).square())
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    offset = (offset - mean) * scale
    return (
        centred * _at_each_position(scale, varying.dim()),
        offset if bias is None else offset + bias,
        mean,
        variance,
    )


def _at_each_position(values: Tensor, num_axes: int) -> Tensor:
    """[..., C] as [..., C, 1, ...] to meet a map of that many axes."""
    return values[(..., *(None,) * (num_axes - 2))]
