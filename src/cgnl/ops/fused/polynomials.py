"""Operator of pass two on a given theta: y = sum over p of z_p theta^p (Eq. 12).

Legend: B batch, C' inner channels, S spatial or space-time axes, G groups, P order of the series.
"""

from typing import Any

import torch
from torch import Tensor

from cgnl.ops.fused.launching import arguments, elementwise_sizes, launch
from cgnl.ops.fused.series import series_settings
from cgnl.ops.fused.sums import num_programs, partial_sums, refuse_second_derivatives
from cgnl.ops.maps import as_map, as_result, empty_map, kernel_layout


@torch.library.custom_op("cgnl::polynomial", mutates_args=())
def polynomial(theta: Tensor, coefficients: Tensor, powers: int, gamma: float, out_dtype: torch.dtype) -> Tensor:
    """Evaluate the polynomial in theta [B, C', *S]; coefficients [B, G, P + 1], powers and gamma are as in `branch`."""
    flat = as_map(theta)
    y = empty_map(flat, flat.shape[1], out_dtype)
    write_polynomial(flat, coefficients, powers, gamma, y)
    return as_result(theta, y)


@polynomial.register_fake
def _(theta: Tensor, coefficients: Tensor, powers: int, gamma: float, out_dtype: torch.dtype) -> Tensor:
    return torch.empty_like(theta, dtype=out_dtype)


def write_polynomial(
    theta: Tensor, coefficients: Tensor, powers: int, gamma: float, y: Tensor, *, varying: bool = False
) -> None:
    """Write the polynomial of a map [B, C', N] into ``y``; ``varying`` leaves z_0 out, which all positions share."""
    from cgnl.ops.fused import kernels

    batch, inner, positions = theta.shape
    groups = coefficients.shape[1]
    sizes = elementwise_sizes(inner // groups, positions)
    launch(
        kernels.polynomial_kernel,
        num_programs(batch, groups, inner // groups, positions, sizes),
        *arguments((theta, coefficients.contiguous(), y), (theta, y), (positions, inner // groups, groups, gamma)),
        **kernel_layout(theta, y),
        VARYING=varying,
        **series_settings(powers, coefficients.shape[2], gamma),
        **sizes,
    )


@torch.library.custom_op("cgnl::polynomial_backward", mutates_args=())
def polynomial_backward(
    d_y: Tensor, theta: Tensor, coefficients: Tensor, powers: int, gamma: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of theta and of the coefficients."""
    flat = as_map(theta)
    d_theta = empty_map(flat, flat.shape[1], theta.dtype)
    d_coefficients = write_polynomial_gradient(as_map(d_y, flat), flat, coefficients, powers, gamma, d_theta)
    return as_result(theta, d_theta), d_coefficients


@polynomial_backward.register_fake
def _(d_y: Tensor, theta: Tensor, coefficients: Tensor, powers: int, gamma: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(theta), coefficients.new_empty(coefficients.shape)


def write_polynomial_gradient(
    d_y: Tensor,
    theta: Tensor,
    coefficients: Tensor,
    powers: int,
    gamma: float,
    d_theta: Tensor,
    *,
    varying: bool = False,
) -> Tensor:
    """Write theta's gradient, [B, C', N], into ``d_theta``; return the coefficients', as of `write_polynomial`."""
    from cgnl.ops.fused import kernels

    batch, inner, positions = theta.shape
    groups, num_powers = coefficients.shape[1:]
    sizes = elementwise_sizes(inner // groups, positions)
    partial = partial_sums(theta, groups, inner // groups, num_powers, sizes)
    launch(
        kernels.polynomial_backward_kernel,
        num_programs(batch, groups, inner // groups, positions, sizes),
        *arguments(
            (theta, coefficients.contiguous(), d_y, d_theta, partial),
            (theta, d_y, d_theta),
            (positions, inner // groups, groups, gamma),
        ),
        **kernel_layout(theta, d_y, d_theta),
        VARYING=varying,
        **series_settings(powers, num_powers, gamma),
        **sizes,
    )
    return partial.sum(2)


def _polynomial_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    theta, coefficients, ctx.powers, ctx.gamma, _ = inputs
    ctx.save_for_backward(theta, coefficients)


def _polynomial_gradients(ctx: Any, d_y: Tensor) -> tuple[Any, ...]:
    return (*polynomial_backward(d_y, *ctx.saved_tensors, ctx.powers, ctx.gamma), None, None, None)


polynomial.register_autograd(_polynomial_gradients, setup_context=_polynomial_context)
refuse_second_derivatives(polynomial_backward)
