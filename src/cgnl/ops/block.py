"""The CGNL block on x and weights: to conv_z's output, or with norm and residual to the block's output.

Legend: B batch, C channels, C' inner channels, S one to three spatial or space-time axes, N = prod(S) positions,
G groups.
"""

import math
from typing import Any

import torch
from torch import Tensor

from cgnl.kernel_functions import KernelFunction, resolve_kernel_function
from cgnl.ops import eager, fused, naive
from cgnl.ops.backends import Backend, chosen_form, refuse_process_group
from cgnl.ops.norm import BatchNorm
from cgnl.ops.parallel import ProcessGroup
from cgnl.ops.precision import (
    autocast_is_on,
    autograd_function_can_run,
    feature_dtype,
    in_feature_dtype,
    in_sum_dtype,
    is_empty,
    sum_dtype,
    without_autocast,
)
from cgnl.ops.scale import Scale, sums_factor
from cgnl.ops.shapes import check_weights, with_zeros, without_zeros
from cgnl.ops.statistics import Statistic, check_statistic


def cgnl_block(
    x: Tensor,
    theta_weight: Tensor,
    phi_weight: Tensor,
    g_weight: Tensor,
    z_weight: Tensor,
    *,
    groups: int,
    kernel: str | KernelFunction,
    scale: Scale | None = None,
    statistic: Statistic = "sum",
    z_groups: int | None = None,
    backend: Backend = "auto",
    out_dtype: torch.dtype | None = None,
    memory_efficient: bool = False,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Run the CGNL block from x to conv_z's output, without norm and residual (Fig. 2).

    Under autocast, and for half-precision x, theta, phi and g are in the half type and everything after them
    is in float32 until the result is cast.

    Args:
        x: [B, C, *S].
        theta_weight: [C', C, 1, ...], as `torch.nn.Conv2d` holds it.
        phi_weight: [C', C, 1, ...].
        g_weight: [C', C, 1, ...].
        z_weight: [C, C'/G, 1, ...]: a convolution with G groups, or with ``z_groups``.
        groups: G, must divide C', and C without ``z_groups``.
        kernel: ``"dot"``, ``"embedded_gaussian"``, ``"rbf"`` or a kernel function.
        scale: As in `compact_generalized_non_local`.
        statistic: As in `compact_generalized_non_local`.
        z_groups: Groups of conv_z, must divide C' and C; None for G.
        backend: ``"auto"``, ``"eager"``, ``"fused"`` or ``"naive"``.
        out_dtype: Type of the result; None for x's.
        memory_efficient: Whether the eager form keeps less for the backward pass (x, theta and phi) and makes the rest
            again. It changes nothing where the dot product takes the Gram form, which keeps x, theta and half of X X^T
            instead. The fused form never keeps more than x, and compilers decide for themselves.
        process_group: As in `compact_generalized_non_local`.

    Returns:
        [B, C, *S].

    Raises:
        ValueError: An argument is outside its range, the shapes do not fit, or ``"fused"`` cannot run here.
    """
    weights = (theta_weight, phi_weight, g_weight, z_weight)
    z_groups = z_groups or groups
    check_weights(x, *weights, groups, z_groups)
    kernel = resolve_kernel_function(kernel)
    check_statistic(statistic, kernel, scale)
    factor = _factor(scale, x, theta_weight, groups, process_group)
    options: dict[str, Any] = {"groups": groups, "kernel": kernel, "factor": factor, "statistic": statistic}
    empty, sizes = is_empty(x), x.shape[2:]
    if empty:
        x = with_zeros(x)
    form = chosen_form(backend, x, *weights, kernel=kernel, statistic=statistic, z_groups_apart=z_groups != groups)
    out_dtype = out_dtype or x.dtype
    if form is not naive:
        options |= {"is_padding": empty, "process_group": process_group}
    if form is fused:
        inputs = in_feature_dtype(x, *weights)
        with without_autocast(x):
            y = fused.cgnl_block(*inputs, out_dtype=out_dtype, **options)
    elif form is naive:
        refuse_process_group(process_group)
        y = naive.cgnl_block(*in_sum_dtype(x, *weights), **options)
    else:
        y = eager.cgnl_block(x, *weights, memory_efficient=memory_efficient, **options)
    return (without_zeros(y, sizes) if empty else y).to(out_dtype)


def cgnl_block_with_norm(
    x: Tensor,
    theta_weight: Tensor,
    phi_weight: Tensor,
    g_weight: Tensor,
    z_weight: Tensor,
    z_bias: Tensor | None,
    norm: BatchNorm | None,
    *,
    groups: int,
    kernel: KernelFunction,
    scale: Scale | None,
    statistic: Statistic,
    z_groups: int,
    backend: Backend,
    memory_efficient: bool,
    process_group: ProcessGroup | None,
) -> Tensor | None:
    """Run the whole CGNL block, norm(conv_z(Y)) + x (Eq. 13), where a form has the norm and the residual inside.

    Returns [B, C, *S] in x's type. Where the norm has to follow `cgnl_block` as a step of its own, it returns None and
    does nothing. ``z_bias`` [C] may be given only if the norm's statistics are given, or there is no norm. The norm's
    running statistics move as those of `torch.nn.BatchNorm2d` do. The other arguments and the errors are as in
    `cgnl_block`; a norm that would take its statistics over a single value is also a ValueError.
    """
    weights = (theta_weight, phi_weight, g_weight, z_weight)
    if is_empty(x) or (x.dtype != theta_weight.dtype and not autocast_is_on(x)):
        return None
    over_batch = norm is not None and norm.is_over_batch
    operation: Any = "batch_norm" if over_batch else "affine"
    apart = z_groups != groups
    form = chosen_form(
        backend, x, *weights, kernel=kernel, operation=operation, statistic=statistic, z_groups_apart=apart
    )
    if form is naive:
        return None
    if form is fused and (x.dtype != feature_dtype(x) or (norm is not None and norm.training and norm.is_synchronized)):
        return None
    if over_batch:
        in_one_go = form is fused or autograd_function_can_run(x, *weights)
        if process_group is not None or not (in_one_go or kernel.has_constant_term):
            return None
    options: dict[str, Any] = {
        "groups": groups,
        "kernel": kernel,
        "factor": _factor(scale, x, theta_weight, groups, process_group),
        "statistic": statistic,
    }
    if form is eager:
        options |= {"memory_efficient": memory_efficient}
    if norm is not None and over_batch:
        return _with_batch_norm(form, x, weights, norm, options)
    return _with_affine(form, x, weights, z_bias, norm, {"process_group": process_group, **options})


def _with_batch_norm(
    form: Any, x: Tensor, weights: tuple[Tensor, Tensor, Tensor, Tensor], norm: BatchNorm, options: dict[str, Any]
) -> Tensor:
    """Run the block with a norm over this batch."""
    if x.shape[0] * math.prod(x.shape[2:]) == 1:
        raise ValueError(f"x {tuple(x.shape)} must have more than 1 value per channel for the norm of a batch")
    momentum = norm.count_batch()
    of_norm = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    if form is eager:
        return eager.cgnl_block_batch_norm(x, *weights, *of_norm, eps=norm.eps, momentum=momentum, **options)
    with without_autocast(x):
        x, theta, phi, g, z = in_feature_dtype(x, *weights)
        return fused.cgnl_block_batch_norm(x, theta, phi, g, z, *of_norm, eps=norm.eps, momentum=momentum, **options)


def _with_affine(
    form: Any,
    x: Tensor,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    z_bias: Tensor | None,
    norm: BatchNorm | None,
    options: dict[str, Any],
) -> Tensor:
    """Run the block with a norm whose statistics are given, or none."""
    dtype = sum_dtype(x.dtype)
    scale, shift = (None, None) if norm is None else norm.as_affine(dtype)
    if z_bias is not None:
        bias = z_bias.to(dtype)
        shift = bias if shift is None else shift + bias
    if form is eager:
        return eager.cgnl_block_affine(x, *weights, scale, shift, **options)
    with without_autocast(x):
        channels = x.shape[1]
        scale = torch.ones(channels, device=x.device) if scale is None else scale
        shift = torch.zeros(channels, device=x.device) if shift is None else shift
        x, theta, phi, g, z = in_feature_dtype(x, *weights)
        return fused.cgnl_block_affine(x, theta, phi, g, z, scale, shift, **options)


def _factor(
    scale: Scale | None, x: Tensor, theta_weight: Tensor, groups: int, process_group: ProcessGroup | None
) -> float:
    """Return the factor on the sums over a group's elements of all processes."""
    return sums_factor(scale, theta_weight.shape[0] // groups * math.prod(x.shape[2:]), x, process_group)
