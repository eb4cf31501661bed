"""The operations put together from the operators: on given features, and on x with or without norm and residual.

Legend: B batch, C channels, C' inner channels, S one to three spatial or space-time axes, N positions, G groups,
P order of the series.
"""

import math
from functools import partial

import torch
from torch import Tensor

from cgnl.kernel_functions import KernelFunction
from cgnl.ops.eager.series import scaled_coefficients
from cgnl.ops.fused.branches import branch, branch_batch_norm
from cgnl.ops.fused.limits import envelope_width
from cgnl.ops.fused.moments import moments
from cgnl.ops.fused.polynomials import polynomial
from cgnl.ops.fused.series import Series, powers_of
from cgnl.ops.fused.sums import feature_sums, power_sums
from cgnl.ops.parallel import ProcessGroup, over_processes
from cgnl.ops.statistics import Statistic, joined, moments_of, statistic_of


def compact_generalized_non_local(
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    *,
    groups: int,
    kernel: KernelFunction,
    factor: float,
    out_dtype: torch.dtype,
    statistic: Statistic = "sum",
    is_padding: bool = False,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Run Eq. 12 on given features. Arguments as in `cgnl.ops`; ``factor`` is the scale, over all processes."""
    coefficients = scaled_coefficients(kernel, factor)
    if statistic == "sum":
        sums = over_processes(feature_sums(phi, g, groups, coefficients, envelope_width(kernel)), process_group)
    else:
        phi, g = phi.flatten(2).float(), g.flatten(2).float()
        found = moments_of(phi, g, groups, process_group, is_padding=is_padding)
        sums = _linear(statistic_of(found, statistic), factor)
    return polynomial(theta, sums, powers_of(coefficients), envelope_width(kernel), out_dtype)


def cgnl_block(
    x: Tensor,
    theta_weight: Tensor,
    phi_weight: Tensor,
    g_weight: Tensor,
    z_weight: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    groups: int,
    kernel: KernelFunction,
    factor: float,
    out_dtype: torch.dtype | None = None,
    statistic: Statistic = "sum",
    is_padding: bool = False,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Run Fig. 2 from x to conv_z's output; with a scale and a shift [C], x + scale · that + shift, written once.

    Arguments as in `cgnl.ops`, weights in x's type; ``factor`` is the scale of the sums, over all processes.
    """
    sums = _block_sums(x, phi_weight, g_weight, groups, kernel, factor, statistic, is_padding, process_group)
    powers = powers_of(scaled_coefficients(kernel, factor))
    return branch(x, theta_weight, z_weight, sums, scale, shift, powers, envelope_width(kernel), out_dtype or x.dtype)


# a block whose norm has fixed statistics
cgnl_block_affine = cgnl_block


def cgnl_block_batch_norm(
    x: Tensor,
    theta_weight: Tensor,
    phi_weight: Tensor,
    g_weight: Tensor,
    z_weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    groups: int,
    kernel: KernelFunction,
    factor: float,
    eps: float,
    momentum: float,
    statistic: Statistic = "sum",
) -> Tensor:
    """Run Eq. 13 in training: BatchNorm of `cgnl_block` over this batch, plus x, in x's type.

    Weight, bias and running statistics are [C] or None; the latter are updated in place, with the unbiased variance.
    """
    sums = _block_sums(x, phi_weight, g_weight, groups, kernel, factor, statistic)
    powers = powers_of(scaled_coefficients(kernel, factor))
    out, mean, variance = branch_batch_norm(
        x, theta_weight, z_weight, sums, norm_weight, norm_bias, powers, envelope_width(kernel), eps
    )
    count = x.shape[0] * math.prod(x.shape[2:])
    with torch.no_grad():
        shared = Series(theta_weight, z_weight, sums, powers, envelope_width(kernel)).shared()
        if shared is not None:
            mean = mean + shared.mean(0)
        for running, batch in ((running_mean, mean), (running_var, variance * (count / (count - 1)))):
            if running is not None:
                running.copy_(torch.lerp(running.float(), batch, momentum))
    return out


def _block_sums(
    x: Tensor,
    phi_weight: Tensor,
    g_weight: Tensor,
    groups: int,
    kernel: KernelFunction,
    factor: float,
    statistic: Statistic,
    is_padding: bool = False,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Return z_p of Eq. 12 for the block, [B, G, P + 1]."""
    if statistic != "sum":
        found = moments(x, phi_weight, g_weight, groups)
        if process_group is not None:
            found = joined(0 * found if is_padding else found, partial(over_processes, process_group=process_group))
        return _linear(statistic_of(found, statistic), factor)
    sums = power_sums(x, phi_weight, g_weight, groups, scaled_coefficients(kernel, factor), envelope_width(kernel))
    return over_processes(sums, process_group)


def _linear(s: Tensor, factor: float) -> Tensor:
    """Return the coefficients [B, G, 2] of the polynomial factor s theta."""
    return torch.stack([torch.zeros_like(s), factor * s], dim=-1)
