"""Operators of pass two on x: theta, the polynomial and conv_z; with a norm and the residual if asked for.

Legend: B batch, C channels, C' inner channels, c = C'/G, S spatial or space-time axes, N positions, G groups,
P order of the series.
"""

from typing import Any

import torch
from torch import Tensor

from cgnl.ops.fused import narrow, wide
from cgnl.ops.fused.launching import arguments, elementwise_sizes, launch
from cgnl.ops.fused.series import Series, Statistics
from cgnl.ops.fused.sums import num_programs, refuse_second_derivatives
from cgnl.ops.maps import as_map, as_result, convolve, empty_map, kernel_layout, weight_gradient
from cgnl.ops.precision import gradient_dtype, without_autocast


@torch.library.custom_op("cgnl::branch", mutates_args=())
def branch(
    x: Tensor,
    theta_weight: Tensor,
    z_weight: Tensor,
    coefficients: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    powers: int,
    gamma: float,
    out_dtype: torch.dtype,
) -> Tensor:
    """Return conv_z of the polynomial in theta, [B, C, *S]; with ``scale`` and ``shift``, x + scale · that + shift.

    Args:
        x: [B, C, *S].
        theta_weight: [C', C, 1, ...], and z_weight [C, C'/G, 1, ...], in x's type.
        coefficients: z_p of Eq. 12, [B, G, P + 1], float32.
        scale: [C] or None, as shift.
        powers: Bit p says whether power p has coefficients other than zero.
        gamma: Above 0, the polynomial is multiplied by exp(-gamma theta^2).
    """
    flat = as_map(x)
    series = Series(theta_weight, z_weight, coefficients, powers, gamma)
    offset = series.shared()
    if scale is not None and shift is not None:
        shift = shift.float()
        offset = shift.repeat(flat.shape[0], 1) if offset is None else offset * scale + shift
    if not series.is_wide:
        out = empty_map(flat, flat.shape[1], out_dtype)
        narrow.write_branch(flat, series, out, scale, offset, None)
    else:
        out = wide.make_branch(flat, series)
        if scale is not None and offset is not None:
            out = _finish(flat, out, scale, offset, out_dtype)
        elif offset is not None:
            out = out + offset[..., None]
    return as_result(x, out.to(out_dtype))


@branch.register_fake
def _(x: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(x, dtype=others[-1])


@torch.library.custom_op("cgnl::branch_batch_norm", mutates_args=())
def branch_batch_norm(
    x: Tensor,
    theta_weight: Tensor,
    z_weight: Tensor,
    coefficients: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    powers: int,
    gamma: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x plus the branch's BatchNorm over this batch, the mean of its varying part, and the biased variance.

    Arguments as in `branch`, and the norm's weight and bias [C]; None for 1 and 0. The last two are [C], float32.
    """
    flat = as_map(x)
    series = Series(theta_weight, z_weight, coefficients, powers, gamma)
    if not series.is_wide:
        value = empty_map(flat, flat.shape[1], torch.float32)
        mean, variance = narrow.write_branch_with_statistics(flat, series, value)
    else:
        value = wide.make_branch(flat, series)
        variances, means = torch.var_mean(value.float(), dim=2, correction=0)
        mean = means.mean(0)
        variance = (variances + (means - mean + series.shared_around_mean()).square()).mean(0)
    scale = (variance + eps).rsqrt()
    if norm_weight is not None:
        scale = scale * norm_weight
    shift = (series.shared_around_mean() - mean) * scale
    out = _finish(flat, value, scale, shift if norm_bias is None else shift + norm_bias, x.dtype)
    return as_result(x, out), mean, variance


@branch_batch_norm.register_fake
def _(x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance = (x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x), mean, variance


@torch.library.custom_op("cgnl::branch_backward", mutates_args=())
def branch_backward(
    d_out: Tensor,
    x: Tensor,
    theta_weight: Tensor,
    z_weight: Tensor,
    coefficients: Tensor,
    scale: Tensor | None,
    mean: Tensor | None,
    inverse_deviation: Tensor | None,
    powers: int,
    gamma: float,
    has_residual: bool,
    wants_x: bool,
    wants_theta_weight: bool,
    wants_z_weight: bool,
    wants_scale: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `branch`, or with statistics of `branch_batch_norm`; empty where they are not wanted.

    They are those of x, theta_weight, z_weight, coefficients, scale [C] and shift [C]. ``mean`` is that of the part
    that varies, and ``scale`` the norm's weight where there are statistics.
    """
    flat = as_map(x)
    d_flat = as_map(d_out, flat)
    series = Series(theta_weight, z_weight, coefficients, powers, gamma)
    statistics = None
    if mean is not None and inverse_deviation is not None:
        statistics = Statistics(series.shared_around_mean() - mean, inverse_deviation)
    d_x, d_theta_weight, d_z_weight, d_scale, d_shift = (x.new_empty(0) for _ in range(5))
    dtype = gradient_dtype(x.dtype)
    form = wide if series.is_wide else narrow
    with without_autocast(x):
        if wants_scale or statistics is not None:
            d_shift, d_scale = form.scale_gradients(flat, d_flat, series, statistics)
        d_theta, d_branch, y, d_sums, d_coefficients = form.branch_gradients(
            flat, d_flat, series, scale, statistics, d_scale, d_shift, wants_z_weight
        )
        if d_sums is not None:
            d_row_sums, d_z_0 = series.shared_gradients(d_sums, statistics is not None)
            d_coefficients[:, :, 0] += d_z_0
        if wants_z_weight:
            d_z_weight = weight_gradient(d_branch.to(dtype), y, series.z_groups)
            if d_sums is not None:
                d_z_weight = d_z_weight + d_row_sums[..., None]
            d_z_weight = d_z_weight.to(z_weight.dtype, copy=True).view(z_weight.shape)
        if wants_theta_weight:
            d_theta_weight = weight_gradient(d_theta, flat.to(dtype), 1)
            d_theta_weight = d_theta_weight.to(theta_weight.dtype, copy=True).view(theta_weight.shape)
        if wants_x:
            d_x_flat = convolve(theta_weight.flatten(1).to(dtype).T[None], d_theta)
            if has_residual:
                d_x_flat = d_x_flat + d_flat
            d_x = as_result(x, d_x_flat.to(x.dtype))
    if not wants_scale:
        d_scale, d_shift = x.new_empty(0), x.new_empty(0)
    return d_x, d_theta_weight, d_z_weight, d_coefficients, d_scale, d_shift


@branch_backward.register_fake
def _(d_out: Tensor, x: Tensor, theta_weight: Tensor, z_weight: Tensor, coefficients: Tensor, *others: Any) -> Any:
    wants_x, wants_theta_weight, wants_z_weight, wants_scale = others[-4:]
    d_scale, d_shift = (
        x.new_empty(x.shape[1], dtype=torch.float32) if wants_scale else x.new_empty(0) for _ in range(2)
    )
    return (
        torch.empty_like(x) if wants_x else x.new_empty(0),
        theta_weight.new_empty(theta_weight.shape) if wants_theta_weight else x.new_empty(0),
        z_weight.new_empty(z_weight.shape) if wants_z_weight else x.new_empty(0),
        coefficients.new_empty(coefficients.shape),
        d_scale,
        d_shift,
    )


def _branch_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, theta_weight, z_weight, coefficients, scale, shift, ctx.powers, ctx.gamma, _ = inputs
    ctx.save_for_backward(x, theta_weight, z_weight, coefficients, scale, shift)


def _branch_gradients(ctx: Any, d_out: Tensor) -> tuple[Any, ...]:
    *inputs, scale, shift = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:6]
    gradients = branch_backward(
        d_out, *inputs, scale, None, None, ctx.powers, ctx.gamma,
        scale is not None, wanted[0], wanted[1], wanted[2], wanted[4] or wanted[5],
    )  # fmt: skip
    return (*_only_wanted(gradients, wanted, scale, shift), None, None, None)


branch.register_autograd(_branch_gradients, setup_context=_branch_context)


def _branch_batch_norm_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, theta_weight, z_weight, coefficients, norm_weight, norm_bias, ctx.powers, ctx.gamma, ctx.eps = inputs
    _, mean, variance = output
    ctx.save_for_backward(x, theta_weight, z_weight, coefficients, norm_weight, norm_bias, mean, variance)


def _branch_batch_norm_gradients(ctx: Any, d_out: Tensor, d_mean: Tensor, d_variance: Tensor) -> tuple[Any, ...]:
    *inputs, norm_weight, norm_bias, mean, variance = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:6]
    gradients = branch_backward(
        d_out, *inputs, norm_weight, mean, (variance + ctx.eps).rsqrt(), ctx.powers, ctx.gamma,
        True, wanted[0], wanted[1], wanted[2], wanted[4] or wanted[5],
    )  # fmt: skip
    return (*_only_wanted(gradients, wanted, norm_weight, norm_bias), None, None, None)


branch_batch_norm.register_autograd(_branch_batch_norm_gradients, setup_context=_branch_batch_norm_context)
refuse_second_derivatives(branch_backward)


def _only_wanted(
    gradients: tuple[Tensor, ...], wanted: tuple[bool, ...], scale: Tensor | None, shift: Tensor | None
) -> list[Tensor | None]:
    """Return the gradients in the order of the inputs, those of scale and shift in their types."""
    *maps, d_scale, d_shift = gradients
    typed = (*maps, *(d if t is None else d.to(t.dtype) for d, t in ((d_scale, scale), (d_shift, shift))))
    return [d if is_wanted else None for d, is_wanted in zip(typed, wanted, strict=True)]


def _finish(flat: Tensor, value: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x + value · scale + shift, [B, C, N]; the scale is [C], the shift [B, C]."""
    from cgnl.ops.fused import kernels

    batch, channels, positions = flat.shape
    sizes = elementwise_sizes(channels, positions)
    out = empty_map(flat, channels, dtype)
    launch(
        kernels.finish_kernel,
        num_programs(batch, 1, channels, positions, sizes),
        *arguments((flat, value, out, scale, shift), (flat, value, out), (channels, positions)),
        **kernel_layout(flat, value, out),
        **sizes,
    )
    return out
