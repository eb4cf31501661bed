"""Pass one: the sums over a group's elements of phi^p g, and their gradients.

Legend: B batch, C channels, C' inner channels, c = C'/G, N positions, G groups, P order of the series.
"""

# mypy: disallow-untyped-defs=False
# the arguments of a kernel have types that triton finds out

import triton
import triton.language as tl

from cgnl.ops.fused.kernels.tiles import (
    convolve_twice,
    load_by_channel,
    load_map,
    place,
    polynomial,
    store_map,
    store_power_sums,
    sum_over_positions,
)


@triton.jit
def power_sums_kernel(
    x, phi_weight, g_weight, partial_sums, x_strides,
    C: tl.constexpr, N, FEATURES: tl.constexpr, GROUPS: tl.constexpr, gamma, scales,
    POWERS: tl.constexpr, ORDER: tl.constexpr, ENVELOPE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the sums of phi and g that are made from x and never reach memory."""
    sample, _, f, f_mask, n, n_mask, row = place(N, FEATURES, GROUPS, ALIGN, BLOCK_F, BLOCK_N)
    phi, g = convolve_twice(
        x, x_strides, phi_weight, g_weight, sample, f, f_mask, n, n_mask, C,
        CHANNELS_LAST, ALIGN, PRECISION, BLOCK_F, BLOCK_N, BLOCK_C,
    )  # fmt: skip
    store_power_sums(partial_sums + row * (ORDER + 1), phi, g, scales, gamma, POWERS, ORDER, ENVELOPE)


@triton.jit
def power_sums_backward_kernel(
    x, phi_weight, g_weight, d_sums, d_features, x_strides, d_strides,
    C: tl.constexpr, N, FEATURES: tl.constexpr, GROUPS: tl.constexpr, gamma, scales,
    POWERS: tl.constexpr, ORDER: tl.constexpr, ENVELOPE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Make phi and g again and writes the gradients of both, [B, 2C', N].

    With q = sum over p of d_sums_p phi^p they are g q'(phi) and q(phi).
    """
    sample, group, f, f_mask, n, n_mask, _ = place(N, FEATURES, GROUPS, ALIGN, BLOCK_F, BLOCK_N)
    phi, g = convolve_twice(
        x, x_strides, phi_weight, g_weight, sample, f, f_mask, n, n_mask, C,
        CHANNELS_LAST, ALIGN, PRECISION, BLOCK_F, BLOCK_N, BLOCK_C,
    )  # fmt: skip
    own_d_sums = d_sums + (sample * GROUPS + group) * (ORDER + 1)
    d_g, slope = polynomial(phi, own_d_sums, scales, gamma, POWERS, ORDER, ENVELOPE)
    store_map(d_features, d_strides, g * slope, sample, f, f_mask, n, n_mask, CHANNELS_LAST, ALIGN)
    d_g_channels = GROUPS * FEATURES + f
    store_map(d_features, d_strides, d_g, sample, d_g_channels, f_mask, n, n_mask, CHANNELS_LAST, ALIGN)


@triton.jit
def feature_sums_kernel(
    phi, g, partial_sums, phi_strides, g_strides, N, FEATURES: tl.constexpr, GROUPS: tl.constexpr, gamma, scales,
    POWERS: tl.constexpr, ORDER: tl.constexpr, ENVELOPE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write the sums of given phi and g."""
    sample, _, f, f_mask, n, n_mask, row = place(N, FEATURES, GROUPS, ALIGN, BLOCK_F, BLOCK_N)
    base = load_map(phi, phi_strides, sample, f, f_mask, n, n_mask, CHANNELS_LAST, ALIGN).to(tl.float32)
    weight = load_map(g, g_strides, sample, f, f_mask, n, n_mask, CHANNELS_LAST, ALIGN).to(tl.float32)
    store_power_sums(partial_sums + row * (ORDER + 1), base, weight, scales, gamma, POWERS, ORDER, ENVELOPE)


@triton.jit
def feature_sums_backward_kernel(
    phi, g, d_sums, d_phi, d_g, phi_strides, g_strides, d_phi_strides, d_g_strides,
    N, FEATURES: tl.constexpr, GROUPS: tl.constexpr, gamma, scales,
    POWERS: tl.constexpr, ORDER: tl.constexpr, ENVELOPE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write the gradients of given phi and g."""
    sample, group, f, f_mask, n, n_mask, _ = place(N, FEATURES, GROUPS, ALIGN, BLOCK_F, BLOCK_N)
    base = load_map(phi, phi_strides, sample, f, f_mask, n, n_mask, CHANNELS_LAST, ALIGN).to(tl.float32)
    weight = load_map(g, g_strides, sample, f, f_mask, n, n_mask, CHANNELS_LAST, ALIGN).to(tl.float32)
    own_d_sums = d_sums + (sample * GROUPS + group) * (ORDER + 1)
    value, slope = polynomial(base, own_d_sums, scales, gamma, POWERS, ORDER, ENVELOPE)
    store_map(d_phi, d_phi_strides, weight * slope, sample, f, f_mask, n, n_mask, CHANNELS_LAST, ALIGN)
    store_map(d_g, d_g_strides, value, sample, f, f_mask, n, n_mask, CHANNELS_LAST, ALIGN)


@triton.jit
def moments_kernel(
    x, phi_weight, g_weight, moments, x_strides,
    C: tl.constexpr, N, FEATURES: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the moments of phi and g in each tile, a set for each feature, [B, C', tiles of positions, 6].

    They are the sums of products and squares around the tile's own means, the means, and the number of positions.
    """
    sample, _, f, f_mask, n, n_mask, _ = place(N, FEATURES, 1, ALIGN, BLOCK_F, BLOCK_N)
    phi, g = convolve_twice(
        x, x_strides, phi_weight, g_weight, sample, f, f_mask, n, n_mask, C,
        CHANNELS_LAST, ALIGN, PRECISION, BLOCK_F, BLOCK_N, BLOCK_C,
    )  # fmt: skip
    here = n_mask[None, :].to(tl.float32)
    count = sum_over_positions(tl.full([BLOCK_F, BLOCK_N], 1.0, tl.float32) * here)
    phi_mean = sum_over_positions(phi) / count
    g_mean = sum_over_positions(g) / count
    phi = (phi - phi_mean[:, None]) * here
    g = (g - g_mean[:, None]) * here
    tiles = (N + BLOCK_N - 1) // BLOCK_N
    tile = (tl.program_id(0) // ((FEATURES + BLOCK_F - 1) // BLOCK_F)) % tiles
    out = moments + ((sample * FEATURES + f) * tiles + tile) * 6
    tl.store(out, sum_over_positions(phi * g), mask=f_mask)
    tl.store(out + 1, sum_over_positions(phi * phi), mask=f_mask)
    tl.store(out + 2, sum_over_positions(g * g), mask=f_mask)
    tl.store(out + 3, phi_mean, mask=f_mask)
    tl.store(out + 4, g_mean, mask=f_mask)
    tl.store(out + 5, count, mask=f_mask)


@triton.jit
def moments_backward_kernel(
    x, phi_weight, g_weight, numbers, d_features, x_strides, d_strides,
    C: tl.constexpr, N, FEATURES: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Make phi and g again and write the gradients of both, [B, 2C', N].

    They are linear in both; ``numbers`` [B, C', 7] holds the means, the factors of the product and of both squares, and
    what both means add.
    """
    sample, _, f, f_mask, n, n_mask, _ = place(N, FEATURES, 1, ALIGN, BLOCK_F, BLOCK_N)
    phi, g = convolve_twice(
        x, x_strides, phi_weight, g_weight, sample, f, f_mask, n, n_mask, C,
        CHANNELS_LAST, ALIGN, PRECISION, BLOCK_F, BLOCK_N, BLOCK_C,
    )  # fmt: skip
    own = numbers + sample * FEATURES * 7
    phi -= load_by_channel(own, 7 * f, f_mask)
    g -= load_by_channel(own + 1, 7 * f, f_mask)
    of_product = load_by_channel(own + 2, 7 * f, f_mask)
    d_phi = of_product * g + load_by_channel(own + 3, 7 * f, f_mask) * phi + load_by_channel(own + 5, 7 * f, f_mask)
    d_g = of_product * phi + load_by_channel(own + 4, 7 * f, f_mask) * g + load_by_channel(own + 6, 7 * f, f_mask)
    store_map(d_features, d_strides, d_phi, sample, f, f_mask, n, n_mask, CHANNELS_LAST, ALIGN)
    store_map(d_features, d_strides, d_g, sample, FEATURES + f, f_mask, n, n_mask, CHANNELS_LAST, ALIGN)
