"""Pass two on a given theta: the polynomial in theta, and its gradients.

Legend: B batch, C' inner channels, c = C'/G, N positions, G groups, P order of the series.
"""

# mypy: disallow-untyped-defs=False
# the arguments of a kernel have types that triton finds out

import triton
import triton.language as tl

from cgnl.ops.fused.kernels.tiles import load_map, place, polynomial, store_map, store_power_sums


@triton.jit
def polynomial_kernel(
    theta, coefficients, y, theta_strides, y_strides, N, FEATURES: tl.constexpr, GROUPS: tl.constexpr, gamma,
    POWERS: tl.constexpr, ORDER: tl.constexpr, ENVELOPE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr, VARYING: tl.constexpr,
):  # fmt: skip
    sample, group, f, f_mask, n, n_mask, _ = place(N, FEATURES, GROUPS, ALIGN, BLOCK_F, BLOCK_N)
    base = load_map(theta, theta_strides, sample, f, f_mask, n, n_mask, CHANNELS_LAST, ALIGN).to(tl.float32)
    own_coefficients = coefficients + (sample * GROUPS + group) * (ORDER + 1)
    value, _ = polynomial(base, own_coefficients, None, gamma, POWERS, ORDER, ENVELOPE, VARYING)
    store_map(y, y_strides, value, sample, f, f_mask, n, n_mask, CHANNELS_LAST, ALIGN)


@triton.jit
def polynomial_backward_kernel(
    theta, coefficients, d_y, d_theta, partial_sums, theta_strides, d_y_strides, d_theta_strides,
    N, FEATURES: tl.constexpr, GROUPS: tl.constexpr, gamma,
    POWERS: tl.constexpr, ORDER: tl.constexpr, ENVELOPE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr, VARYING: tl.constexpr,
):  # fmt: skip
    """Write theta's gradient, and for each power the tile's part of the coefficient's gradient."""
    sample, group, f, f_mask, n, n_mask, row = place(N, FEATURES, GROUPS, ALIGN, BLOCK_F, BLOCK_N)
    base = load_map(theta, theta_strides, sample, f, f_mask, n, n_mask, CHANNELS_LAST, ALIGN).to(tl.float32)
    d_value = load_map(d_y, d_y_strides, sample, f, f_mask, n, n_mask, CHANNELS_LAST, ALIGN).to(tl.float32)
    store_power_sums(partial_sums + row * (ORDER + 1), base, d_value, None, gamma, POWERS, ORDER, ENVELOPE, VARYING)
    own_coefficients = coefficients + (sample * GROUPS + group) * (ORDER + 1)
    _, slope = polynomial(base, own_coefficients, None, gamma, POWERS, ORDER, ENVELOPE)
    store_map(d_theta, d_theta_strides, d_value * slope, sample, f, f_mask, n, n_mask, CHANNELS_LAST, ALIGN)
