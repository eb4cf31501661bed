"""Pass one: the sums over a group's elements of phi^p g, and their gradients.

Legend: B batch, C channels, C' inner channels, c = C'/G, N positions, G groups, P order of the series.
"""

# mypy: disallow-untyped-defs=False
# the arguments of a kernel have types that triton finds out

import triton
import triton.language as tl

from cgnl.ops.fused.kernels.tiles import convolve_twice, load_map, place, polynomial, store_map, store_power_sums


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
