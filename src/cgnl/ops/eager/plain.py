"""The CGNL block as ordinary differentiable operations: for tracers, transforms, gradients of gradients.

Legend: B batch, C channels, C' inner channels, S spatial or space-time axes, N positions, G groups.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cgnl.kernel_functions import KernelFunction
from cgnl.ops.eager.ending import Ending, Kind
from cgnl.ops.eager.series import scaled_by_statistic, series_in_parts
from cgnl.ops.maps import by_group, parts_of_batch
from cgnl.ops.parallel import ProcessGroup
from cgnl.ops.precision import sum_dtype, without_autocast
from cgnl.ops.statistics import Statistic

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


@dataclass(frozen=True)
class Settings:
    """What a block is told besides tensors; `ending` says what the norm's weight and bias are for."""

    groups: int
    z_groups: int
    kernel: KernelFunction
    coefficients: tuple[float, ...]
    feature_dtype: torch.dtype
    kind: Kind = "branch"
    eps: float = 0.0
    momentum: float = 0.0
    training: bool = True
    memory_efficient: bool = False
    process_group: ProcessGroup | None = None
    statistic: Statistic = "sum"
    is_padding: bool = False

    @property
    def is_dot_product(self) -> bool:
        return len(self.coefficients) == 2 and not self.coefficients[0]

    @property
    def has_factor(self) -> bool:
        """Whether y is one number for each group of conv_z times theta, so that conv_z may run on theta itself."""
        return self.is_dot_product and self.z_groups == self.groups

    def parts(self, flat: Tensor) -> list[slice]:
        """Return the parts of the batch; one where processes add their sums, which they have to do equally often."""
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
    """Return the output, and for ``"batch_norm"`` the mean and the variance of the batch, [C] each."""
    convolve = _CONVOLUTIONS[x.dim()]
    dtype = sum_dtype(x.dtype)
    with without_autocast(x):
        theta, phi, g = (
            convolve(x.to(settings.feature_dtype), weight.to(settings.feature_dtype)).flatten(2)
            for weight in (theta_weight, phi_weight, g_weight)
        )
        groups, coefficients, process_group = settings.groups, settings.coefficients, settings.process_group
        if settings.statistic == "sum":
            varying, shared = series_in_parts(theta, phi, g, groups, settings.kernel, coefficients, process_group)
        else:
            varying = scaled_by_statistic(
                theta,
                phi,
                g,
                groups,
                settings.statistic,
                coefficients[1],
                process_group,
                is_padding=settings.is_padding,
            )
            shared = None
        z_weight, z_groups = z_weight.to(dtype), settings.z_groups
        branch = convolve(varying.to(dtype).unflatten(2, x.shape[2:]), z_weight, groups=z_groups)
        if shared is not None:
            z_matrices = z_weight.flatten(1).unflatten(0, (z_groups, -1))
            shared = by_group(z_matrices, shared[..., 0])
        ending = settings.ending(weight, bias, dtype)
        scale, shift = ending.weight, ending.bias
        statistics: tuple[Tensor, ...] = ()
        if ending.kind == "batch_norm":
            branch, shared, mean, variance = _centred(branch, shared)
            inverse_deviation = (variance + ending.eps).rsqrt()
            scale = inverse_deviation if scale is None else inverse_deviation * scale
            statistics = (mean, variance)
        if scale is not None:
            branch = branch * _at_each_position(scale, x.dim())
            shared = None if shared is None else shared * scale
        if shift is not None:
            shared = shift if shared is None else shared + shift
        out = branch if shared is None else branch + _at_each_position(shared, x.dim())
        return (out if ending.kind == "branch" else (x.to(dtype) + out).to(x.dtype), *statistics)


def _centred(varying: Tensor, shared: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a map less its mean over the batch, as two parts again, with that mean and the variance, [C] each.

    ``varying`` [B, C, *S] varies over the positions, and ``shared`` [B, C], None for 0, does not.
    """
    axes = tuple(range(2, varying.dim()))
    means = varying.mean(axes)
    varying = varying - _at_each_position(means, varying.dim())
    shared = means if shared is None else shared + means
    mean = shared.mean(0)
    shared = shared - mean
    variance = (varying.square().mean(axes) + shared.square()).mean(0)
    return varying, shared, mean, variance


def _at_each_position(values: Tensor, num_axes: int) -> Tensor:
    """View [..., C] as [..., C, 1, ...] to meet a map of that many axes."""
    return values[(..., *(None,) * (num_axes - 2))]
