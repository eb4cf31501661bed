"""Operators of pass one for a covariance or correlation: the moments of phi and g, made from x and never written.

Each tile has moments of its own around its own means, for every feature; those of a group are joined from them. So a
large mean costs no digits, and any number of groups takes the same kernel.

Legend: B batch, C channels, C' inner channels, S spatial or space-time axes, N positions, G groups.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from cgnl.ops.fused.launching import arguments, launch, num_tiles, product_precision, sums_sizes
from cgnl.ops.fused.sums import fake_gradients, num_programs, refuse_second_derivatives, through_convolutions
from cgnl.ops.maps import as_map, empty_map, kernel_layout
from cgnl.ops.precision import gradient_dtype
from cgnl.ops.statistics import joined


@torch.library.custom_op("cgnl::moments", mutates_args=())
def moments(x: Tensor, phi_weight: Tensor, g_weight: Tensor, groups: int) -> Tensor:
    """Return the moments of `cgnl.ops.statistics.moments_of`, [B, G, 6] in float32.

    x is [B, C, *S], the weights [C', C, 1, ...] in its type.
    """
    from cgnl.ops.fused import kernels

    flat = as_map(x)
    batch, channels, positions = flat.shape
    inner = phi_weight.shape[0]
    sizes = sums_sizes(channels, inner, positions, x.dtype)
    tiles = num_tiles(positions, sizes["BLOCK_N"])
    of_tiles = flat.new_empty(batch, inner, tiles, 6, dtype=torch.float32)
    launch(
        kernels.moments_kernel,
        num_programs(batch, 1, inner, positions, sizes),
        *arguments(
            (flat, phi_weight.contiguous(), g_weight.contiguous(), of_tiles), (flat,), (channels, positions, inner)
        ),
        **kernel_layout(flat),
        PRECISION=product_precision(x.dtype),
        **sizes,
    )
    return joined(of_tiles.reshape(batch, groups, -1, 6), partial(torch.sum, dim=2, keepdim=True)).squeeze(2)


@moments.register_fake
def _(x: Tensor, phi_weight: Tensor, g_weight: Tensor, groups: int) -> Tensor:
    return x.new_empty(x.shape[0], groups, 6, dtype=torch.float32)


@torch.library.custom_op("cgnl::moments_backward", mutates_args=())
def moments_backward(
    d_moments: Tensor,
    x: Tensor,
    phi_weight: Tensor,
    g_weight: Tensor,
    found: Tensor,
    wants_x: bool,
    wants_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x and both weights, empty where not wanted; ``found`` are the moments."""
    from cgnl.ops.fused import kernels

    flat = as_map(x)
    batch, channels, positions = flat.shape
    inner, groups = phi_weight.shape[0], found.shape[1]
    *_, phi_mean, g_mean, count = found.unbind(-1)
    d_product, d_phi_squares, d_g_squares, d_phi_mean, d_g_mean, _ = d_moments.unbind(-1)
    numbers = (phi_mean, g_mean, d_product, 2 * d_phi_squares, 2 * d_g_squares, d_phi_mean / count, d_g_mean / count)
    of_features = torch.stack(numbers, dim=-1).repeat_interleave(inner // groups, dim=1).contiguous()
    sizes = sums_sizes(channels, inner, positions, x.dtype)
    d_features = empty_map(flat, 2 * inner, gradient_dtype(x.dtype))
    launch(
        kernels.moments_backward_kernel,
        num_programs(batch, 1, inner, positions, sizes),
        *arguments(
            (flat, phi_weight.contiguous(), g_weight.contiguous(), of_features, d_features),
            (flat, d_features),
            (channels, positions, inner),
        ),
        **kernel_layout(flat, d_features),
        PRECISION=product_precision(x.dtype),
        **sizes,
    )
    return through_convolutions(d_features, x, phi_weight, g_weight, wants_x, wants_weights)


moments_backward.register_fake(fake_gradients)


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3], output)


def _gradients(ctx: Any, d_moments: Tensor) -> tuple[Any, ...]:
    wanted = ctx.needs_input_grad[:3]
    gradients = moments_backward(d_moments, *ctx.saved_tensors, wanted[0], wanted[1] or wanted[2])
    return (*(d if w else None for d, w in zip(gradients, wanted, strict=True)), None)


moments.register_autograd(_gradients, setup_context=_context)
refuse_second_derivatives(moments_backward)
