"""The operations put together from the operators: on given features, and on x with or without norm and residual.

Legend: B batch, C channels, C' inner channels, S one to three spatial or space-time axes, N positions, G groups,
P order of the series.
"""

import math

import torch
from torch import Tensor

from cgnl.kernel_functions import KernelFunction
from cgnl.ops.eager.series import scaled_coefficients
from cgnl.ops.fused.branches import branch, branch_batch_norm
from cgnl.ops.fused.limits import envelope_width
from cgnl.ops.fused.polynomials import polynomial
from cgnl.ops.fused.series import Series, powers_of
from cgnl.ops.fused.sums import feature_sums, power_sums
from cgnl.ops.parallel import ProcessGroup, over_processes


def compact_generalized_non_local(
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    *,
    groups: int,
    kernel: KernelFunction,
    factor: float,
    out_dtype: torch.dtype,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Run Eq. 12 on given features.

    Args:
        theta: [B, C', *S].
        phi: [B, C', *S].
        g: [B, C', *S].
        groups: G.
        kernel: The kernel function.
        factor: The scale of the sums.
        out_dtype: Type of the result.
        process_group: Processes that each hold a part of every sample's positions; ``factor`` counts all of them.

    Returns:
        y: [B, C', *S].
    """
    coefficients = scaled_coefficients(kernel, factor)
    sums = feature_sums(phi, g, groups, coefficients, envelope_width(kernel))
    sums = over_processes(sums, process_group)
    return polynomial(theta, sums, powers_of(coefficients), envelope_width(kernel), out_dtype)


def cgnl_block(
    x: Tensor,
    theta_weight: Tensor,
    phi_weight: Tensor,
    g_weight: Tensor,
    z_weight: Tensor,
    *,
    groups: int,
    kernel: KernelFunction,
    factor: float,
    out_dtype: torch.dtype,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Run Fig. 2 from x to conv_z's output.

    Args:
        x: [B, C, *S].
        theta_weight: [C', C, 1, ...], in x's type, as all weights.
        phi_weight: [C', C, 1, ...].
        g_weight: [C', C, 1, ...].
        z_weight: [C, C'/G, 1, ...].
        groups: G.
        kernel: The kernel function.
        factor: The scale of the sums.
        out_dtype: Type of the result.
        process_group: Processes that each hold a part of every sample's positions; ``factor`` counts all of them.

    Returns:
        [B, C, *S].
    """
    sums = _block_sums(x, phi_weight, g_weight, groups, kernel, factor, process_group)
    powers = powers_of(scaled_coefficients(kernel, factor))
    return branch(x, theta_weight, z_weight, sums, None, None, powers, envelope_width(kernel), out_dtype)


def cgnl_block_affine(
    x: Tensor,
    theta_weight: Tensor,
    phi_weight: Tensor,
    g_weight: Tensor,
    z_weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    groups: int,
    kernel: KernelFunction,
    factor: float,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Return x + scale · `cgnl_block` + shift, written once: a block whose norm has fixed statistics.

    Args:
        scale: [C].
        shift: [C].

    The others are as in `cgnl_block`.

    Returns:
        [B, C, *S], in x's type.
    """
    sums = _block_sums(x, phi_weight, g_weight, groups, kernel, factor, process_group)
    powers = powers_of(scaled_coefficients(kernel, factor))
    return branch(x, theta_weight, z_weight, sums, scale, shift, powers, envelope_width(kernel), x.dtype)


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
) -> Tensor:
    """Run Eq. 13 in training: BatchNorm of `cgnl_block` over this batch, plus x.

    Args:
        norm_weight: [C], or None for 1.
        norm_bias: [C], or None for 0.
        running_mean: [C], updated in place, or None.
        running_var: [C], updated in place with the unbiased variance, or None.
        eps: Is added to the variance.
        momentum: The part of this batch in the running statistics.

    The others are as in `cgnl_block`.

    Returns:
        [B, C, *S], in x's type.
    """
    sums = _block_sums(x, phi_weight, g_weight, groups, kernel, factor, None)
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
    process_group: ProcessGroup | None,
) -> Tensor:
    """Return z_p of Eq. 12 for the block, [B, G, P + 1]."""
    sums = power_sums(x, phi_weight, g_weight, groups, scaled_coefficients(kernel, factor), envelope_width(kernel))
    return over_processes(sums, process_group)
