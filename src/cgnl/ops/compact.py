"""The compact generalized non-local operation on theta, phi and g.

Legend: B batch, C' inner channels, S one to three spatial or space-time axes, N = prod(S) positions, G groups,
M = (C'/G)·N elements of one group, P order of the series.
"""

import math
from typing import Any

import torch
from torch import Tensor

from cgnl.kernel_functions import KernelFunction, resolve_kernel_function
from cgnl.ops import eager, fused, naive
from cgnl.ops.backends import Backend, chosen_form, refuse_process_group
from cgnl.ops.parallel import ProcessGroup
from cgnl.ops.precision import in_sum_dtype, is_empty
from cgnl.ops.scale import Scale, sums_factor
from cgnl.ops.shapes import check_features, with_zeros, without_zeros
from cgnl.ops.statistics import Statistic, check_statistic


def compact_generalized_non_local(
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    *,
    groups: int,
    kernel: str | KernelFunction,
    scale: Scale | None = None,
    statistic: Statistic = "sum",
    backend: Backend = "auto",
    out_dtype: torch.dtype | None = None,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Relate all elements of a group with each other through a series, at linear cost (Eq. 9-12).

    y_i = sum over p of z_p theta_i^p with z_p = a2_p · sum over j of phi_j^p g_j: P + 1 numbers for each sample and
    group. Sums run in float32 or float64.

    Args:
        theta: [B, C', *S].
        phi: [B, C', *S].
        g: [B, C', *S].
        groups: G, must divide C'.
        kernel: ``"dot"``, ``"embedded_gaussian"``, ``"rbf"`` or a kernel function.
        scale: Factor on the sums: None (1, the paper's), ``"sqrt"`` (1 / sqrt(M)) or ``"mean"`` (1 / M).
        statistic: Of the dot product: ``"sum"`` of phi g (the paper's), ``"covariance"``, which is that sum around the
            means of phi and g over the group, or ``"correlation"``, which is between -1 and 1 and takes no scale.
        backend: ``"auto"``, ``"eager"``, ``"fused"`` or ``"naive"``.
        out_dtype: Type of the result; None for theta's.
        process_group: Processes that each hold a part of the positions of every sample; None where this process
            holds all of them. The sums are then those of the whole input, M counts all its elements, and gradients
            are those of the sum of all processes' losses.

    Returns:
        y: [B, C', *S].

    Raises:
        ValueError: An argument is outside its range, the shapes do not fit, or ``"fused"`` cannot run here.

    Example:
        >>> theta, phi, g = torch.ones(3, 2, 8, 5, 5).unbind()
        >>> compact_generalized_non_local(theta, phi, g, groups=2, kernel="dot")[0, 0, 0, 0]
        tensor(100.)
    """
    check_features(theta, phi, g, groups)
    kernel = resolve_kernel_function(kernel)
    factor = sums_factor(scale, math.prod(theta.shape[1:]) // groups, theta, process_group)
    check_statistic(statistic, kernel, scale)
    options: dict[str, Any] = {"groups": groups, "kernel": kernel, "factor": factor, "statistic": statistic}
    empty, sizes = is_empty(theta), theta.shape[2:]
    if empty:
        theta, phi, g = (with_zeros(t) for t in (theta, phi, g))
    form = chosen_form(backend, theta, phi, g, kernel=kernel, operation="features", statistic=statistic)
    out_dtype = out_dtype or theta.dtype
    if form is not naive:
        options |= {"is_padding": empty, "process_group": process_group}
    if form is fused:
        y = fused.compact_generalized_non_local(theta, phi, g, out_dtype=out_dtype, **options)
    elif form is naive:
        refuse_process_group(process_group)
        y = naive.compact_generalized_non_local(*in_sum_dtype(theta, phi, g), **options)
    else:
        y = eager.compact_generalized_non_local(theta, phi, g, **options)
    return (without_zeros(y, sizes) if empty else y).to(out_dtype)
