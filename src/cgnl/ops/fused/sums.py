"""Operators of pass one: the polynomial's coefficients z_p of Eq. 12, from x and weights or from given features.

Legend: B batch, C channels, C' inner channels, c = C'/G, S spatial or space-time axes, N positions, G groups,
P order of the series.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cgnl.ops.fused.launching import arguments, elementwise_sizes, launch, num_tiles, product_precision, sums_sizes
from cgnl.ops.fused.series import powers_of, series_settings
from cgnl.ops.maps import as_map, as_result, convolve, empty_map, kernel_layout, weight_gradient
from cgnl.ops.precision import gradient_dtype, without_autocast


@torch.library.custom_op("cgnl::power_sums", mutates_args=())
def power_sums(
    x: Tensor, phi_weight: Tensor, g_weight: Tensor, groups: int, coefficients: Sequence[float], gamma: float
) -> Tensor:
    """Return a2_p · sum over a group's elements of phi^p g, with phi and g made from x and never written.

    ``coefficients`` are a2_0 .. a2_P, the last not 0. Above 0, ``gamma`` multiplies each g by exp(-gamma phi^2) first.
    x is [B, C, *S], the weights [C', C, 1, ...] in its type, the sums [B, G, P + 1] in float32; 0 where a2_p is 0.
    """
    from cgnl.ops.fused import kernels

    flat = as_map(x)
    batch, channels, positions = flat.shape
    in_group = phi_weight.shape[0] // groups
    sizes = sums_sizes(channels, in_group, positions, x.dtype)
    partial = partial_sums(flat, groups, in_group, len(coefficients), sizes)
    launch(
        kernels.power_sums_kernel,
        num_programs(batch, groups, in_group, positions, sizes),
        *arguments(
            (flat, phi_weight.contiguous(), g_weight.contiguous(), partial),
            (flat,),
            (channels, positions, in_group, groups, gamma, tuple(coefficients)),
        ),
        **kernel_layout(flat),
        PRECISION=product_precision(x.dtype),
        **series_settings(powers_of(coefficients), len(coefficients), gamma),
        **sizes,
    )
    return partial.sum(2)


@power_sums.register_fake
def _(x: Tensor, phi_weight: Tensor, g_weight: Tensor, groups: int, coefficients: Sequence[float], _: float) -> Tensor:
    return x.new_empty(x.shape[0], groups, len(coefficients), dtype=torch.float32)


@torch.library.custom_op("cgnl::power_sums_backward", mutates_args=())
def power_sums_backward(
    d_sums: Tensor,
    x: Tensor,
    phi_weight: Tensor,
    g_weight: Tensor,
    groups: int,
    coefficients: Sequence[float],
    gamma: float,
    wants_x: bool,
    wants_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, phi_weight and g_weight; empty where they are not wanted."""
    from cgnl.ops.fused import kernels

    flat = as_map(x)
    batch, channels, positions = flat.shape
    inner = phi_weight.shape[0]
    sizes = sums_sizes(channels, inner // groups, positions, x.dtype)
    d_features = empty_map(flat, 2 * inner, gradient_dtype(x.dtype))
    launch(
        kernels.power_sums_backward_kernel,
        num_programs(batch, groups, inner // groups, positions, sizes),
        *arguments(
            (flat, phi_weight.contiguous(), g_weight.contiguous(), d_sums.contiguous(), d_features),
            (flat, d_features),
            (channels, positions, inner // groups, groups, gamma, tuple(coefficients)),
        ),
        **kernel_layout(flat, d_features),
        PRECISION=product_precision(x.dtype),
        **series_settings(powers_of(coefficients), len(coefficients), gamma),
        **sizes,
    )
    return through_convolutions(d_features, x, phi_weight, g_weight, wants_x, wants_weights)


def through_convolutions(
    d_features: Tensor, x: Tensor, phi_weight: Tensor, g_weight: Tensor, wants_x: bool, wants_weights: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x and both weights, empty where not wanted, from that of phi and g, [B, 2C', N]."""
    flat = as_map(x)
    d_x, d_phi_weight, d_g_weight = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    with without_autocast(x):
        if wants_weights:
            d_weights = weight_gradient(d_features, flat.to(d_features.dtype), 1)[0]
            d_phi_weight, d_g_weight = (
                d.to(weight.dtype, copy=True).view(weight.shape)
                for d, weight in zip(d_weights.chunk(2), (phi_weight, g_weight), strict=True)
            )
        if wants_x:
            weights = torch.cat([phi_weight, g_weight]).flatten(1).to(d_features.dtype)
            d_x = as_result(x, convolve(weights.T[None], d_features).to(x.dtype))
    return d_x, d_phi_weight, d_g_weight


@power_sums_backward.register_fake
def fake_gradients(
    d_sums: Tensor, x: Tensor, phi_weight: Tensor, g_weight: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return empty tensors in the shapes of `through_convolutions`."""
    wants_x, wants_weights = others[-2:]
    return (
        torch.empty_like(x) if wants_x else x.new_empty(0),
        phi_weight.new_empty(phi_weight.shape) if wants_weights else x.new_empty(0),
        g_weight.new_empty(g_weight.shape) if wants_weights else x.new_empty(0),
    )


def _power_sums_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, phi_weight, g_weight, *ctx.settings = inputs
    ctx.save_for_backward(x, phi_weight, g_weight)


def _power_sums_gradients(ctx: Any, d_sums: Tensor) -> tuple[Any, ...]:
    wanted = ctx.needs_input_grad[:3]
    gradients = power_sums_backward(d_sums, *ctx.saved_tensors, *ctx.settings, wanted[0], wanted[1] or wanted[2])
    return (*(d if w else None for d, w in zip(gradients, wanted, strict=True)), None, None, None)


power_sums.register_autograd(_power_sums_gradients, setup_context=_power_sums_context)


@torch.library.custom_op("cgnl::feature_sums", mutates_args=())
def feature_sums(phi: Tensor, g: Tensor, groups: int, coefficients: Sequence[float], gamma: float) -> Tensor:
    """Return `power_sums` of given features [B, C', *S]."""
    from cgnl.ops.fused import kernels

    phi_flat = as_map(phi)
    g_flat = as_map(g, phi_flat)
    batch, inner, positions = phi_flat.shape
    sizes = elementwise_sizes(inner // groups, positions)
    partial = partial_sums(phi_flat, groups, inner // groups, len(coefficients), sizes)
    launch(
        kernels.feature_sums_kernel,
        num_programs(batch, groups, inner // groups, positions, sizes),
        *arguments(
            (phi_flat, g_flat, partial),
            (phi_flat, g_flat),
            (positions, inner // groups, groups, gamma, tuple(coefficients)),
        ),
        **kernel_layout(phi_flat, g_flat),
        **series_settings(powers_of(coefficients), len(coefficients), gamma),
        **sizes,
    )
    return partial.sum(2)


@feature_sums.register_fake
def _(phi: Tensor, g: Tensor, groups: int, coefficients: Sequence[float], gamma: float) -> Tensor:
    return phi.new_empty(phi.shape[0], groups, len(coefficients), dtype=torch.float32)


@torch.library.custom_op("cgnl::feature_sums_backward", mutates_args=())
def feature_sums_backward(
    d_sums: Tensor, phi: Tensor, g: Tensor, groups: int, coefficients: Sequence[float], gamma: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of phi and g."""
    from cgnl.ops.fused import kernels

    phi_flat = as_map(phi)
    g_flat = as_map(g, phi_flat)
    batch, inner, positions = phi_flat.shape
    sizes = elementwise_sizes(inner // groups, positions)
    d_phi, d_g = (empty_map(phi_flat, inner, t.dtype) for t in (phi, g))
    launch(
        kernels.feature_sums_backward_kernel,
        num_programs(batch, groups, inner // groups, positions, sizes),
        *arguments(
            (phi_flat, g_flat, d_sums.contiguous(), d_phi, d_g),
            (phi_flat, g_flat, d_phi, d_g),
            (positions, inner // groups, groups, gamma, tuple(coefficients)),
        ),
        **kernel_layout(phi_flat, g_flat, d_phi, d_g),
        **series_settings(powers_of(coefficients), len(coefficients), gamma),
        **sizes,
    )
    return as_result(phi, d_phi), as_result(g, d_g)


@feature_sums_backward.register_fake
def _(d_sums: Tensor, phi: Tensor, g: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(phi), torch.empty_like(g)


def _feature_sums_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    phi, g, *ctx.settings = inputs
    ctx.save_for_backward(phi, g)


def _feature_sums_gradients(ctx: Any, d_sums: Tensor) -> tuple[Any, ...]:
    return (*feature_sums_backward(d_sums, *ctx.saved_tensors, *ctx.settings), None, None, None)


feature_sums.register_autograd(_feature_sums_gradients, setup_context=_feature_sums_context)


def refuse_second_derivatives(*operators: Any) -> None:
    """Make the gradients of these operators, which are gradients themselves, an error."""

    def refuse(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        raise RuntimeError('The fused form has no second derivatives; use backend="eager" for them.')

    for operator in operators:
        operator.register_autograd(refuse)


refuse_second_derivatives(power_sums_backward, feature_sums_backward)


def num_programs(batch: int, groups: int, in_group: int, positions: int, sizes: dict[str, int]) -> int:
    return batch * groups * num_tiles(in_group, sizes["BLOCK_F"]) * num_tiles(positions, sizes["BLOCK_N"])


def partial_sums(flat: Tensor, groups: int, in_group: int, num_powers: int, sizes: dict[str, int]) -> Tensor:
    """Make room for a number for each program and power, to be summed in a fixed order.

    Its shape is [B, G, programs of a group, P + 1].
    """
    of_group = num_programs(1, 1, in_group, flat.shape[2], sizes)
    return flat.new_empty(flat.shape[0], groups, of_group, num_powers, dtype=torch.float32)
