"""Pass two on x: theta, the polynomial and conv_z in one, and their gradients.

A program has all features of a group, so that the group's block of conv_z takes y from registers. In backward it makes
theta again.

Legend: B batch, C channels, C' inner channels, c = C'/G, N positions, G groups, P order of the series.
"""

# mypy: disallow-untyped-defs=False
# the arguments of a kernel have types that triton finds out

import triton
import triton.language as tl

from cgnl.ops.fused.kernels.tiles import (
    convolve,
    load_by_channel,
    load_map,
    load_matrix,
    place,
    polynomial,
    store_map,
    store_power_sums,
    sum_over_positions,
)


@triton.jit
def make_y(
    x, x_strides, theta_weight, coefficients, sample, group, f, f_mask, n, n_mask, C: tl.constexpr,
    GROUPS: tl.constexpr, gamma,
    POWERS: tl.constexpr, ORDER: tl.constexpr, ENVELOPE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Return theta, y less z_0 and the derivative of y by theta, in float32."""
    theta = convolve(
        x, x_strides, theta_weight, sample, f, f_mask, n, n_mask, C,
        CHANNELS_LAST, ALIGN, PRECISION, BLOCK_F, BLOCK_N, BLOCK_C,
    )  # fmt: skip
    own_coefficients = coefficients + (sample * GROUPS + group) * (ORDER + 1)
    y, slope = polynomial(theta, own_coefficients, None, gamma, POWERS, ORDER, ENVELOPE, True)
    # outside the map no number may count in the statistics
    return theta, tl.where(f_mask[:, None] & n_mask[None, :], y, 0.0), slope


@triton.jit
def convolve_z(
    z_weight, y, channels, channel_mask, FEATURES: tl.constexpr, PRECISION: tl.constexpr, BLOCK_F: tl.constexpr
):
    """Multiply rows of conv_z's weight [C, c] with y, which stays in float32: it may be too large for a half type."""
    in_group = tl.arange(0, BLOCK_F)
    rows = load_matrix(z_weight, FEATURES, channels, channel_mask, in_group, in_group < FEATURES)
    return tl.dot(rows.to(tl.float32), y, input_precision=PRECISION)


@triton.jit
def branch_kernel(
    x, theta_weight, z_weight, coefficients, out, scale, shift, means, squares, x_strides, out_strides,
    C: tl.constexpr, N, FEATURES: tl.constexpr, GROUPS: tl.constexpr, gamma,
    POWERS: tl.constexpr, ORDER: tl.constexpr, ENVELOPE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Write conv_z of y less z_0, plus the shift [B, C] if there is one; with a scale, x plus that times the scale.

    The scale comes before the shift. For a norm it also writes, for each tile of positions and channel, the mean and
    the sum of squared distances from that mean.
    """
    sample, group, f, f_mask, n, n_mask, row = place(N, FEATURES, GROUPS, ALIGN, BLOCK_F, BLOCK_N)
    _, y, _ = make_y(
        x, x_strides, theta_weight, coefficients, sample, group, f, f_mask, n, n_mask, C, GROUPS, gamma,
        POWERS, ORDER, ENVELOPE, CHANNELS_LAST, ALIGN, PRECISION, BLOCK_F, BLOCK_N, BLOCK_C,
    )  # fmt: skip
    num_position_tiles = (N + BLOCK_N - 1) // BLOCK_N
    position_tile = row % num_position_tiles
    for start in range(0, C // GROUPS, BLOCK_O):
        in_group = start + tl.arange(0, BLOCK_O)
        channel_mask = in_group < C // GROUPS
        channels = group * (C // GROUPS) + in_group
        branch = convolve_z(z_weight, y, channels, channel_mask, FEATURES, PRECISION, BLOCK_F)
        if means is not None:
            mean = sum_over_positions(branch) / tl.minimum(N - position_tile * BLOCK_N, BLOCK_N).to(tl.float32)
            distance = tl.where(n_mask[None, :], branch - mean[:, None], 0.0)
            statistics_row = (sample * num_position_tiles + position_tile) * C
            tl.store(means + statistics_row + channels, mean, mask=channel_mask)
            tl.store(squares + statistics_row + channels, sum_over_positions(distance * distance), mask=channel_mask)
        if scale is not None:
            branch = branch * load_by_channel(scale, channels, channel_mask)
        if shift is not None:
            branch = branch + load_by_channel(shift + sample * C, channels, channel_mask)
        if scale is not None:
            residual = load_map(x, x_strides, sample, channels, channel_mask, n, n_mask, CHANNELS_LAST, ALIGN)
            branch = residual.to(tl.float32) + branch
        store_map(out, out_strides, branch, sample, channels, channel_mask, n, n_mask, CHANNELS_LAST, ALIGN)


@triton.jit
def branch_gradient_sums_kernel(
    x, theta_weight, z_weight, coefficients, d_out, offset, inverse_deviation, sums, products, x_strides, d_out_strides,
    C: tl.constexpr, N, FEATURES: tl.constexpr, GROUPS: tl.constexpr, gamma,
    POWERS: tl.constexpr, ORDER: tl.constexpr, ENVELOPE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Write, for each tile of positions and channel, the sums of d_out and of d_out times the normalised branch.

    The branch is conv_z of y less z_0, plus the offset [B, C], times the inverse deviation, each where it is given.
    """
    sample, group, f, f_mask, n, n_mask, row = place(N, FEATURES, GROUPS, ALIGN, BLOCK_F, BLOCK_N)
    _, y, _ = make_y(
        x, x_strides, theta_weight, coefficients, sample, group, f, f_mask, n, n_mask, C, GROUPS, gamma,
        POWERS, ORDER, ENVELOPE, CHANNELS_LAST, ALIGN, PRECISION, BLOCK_F, BLOCK_N, BLOCK_C,
    )  # fmt: skip
    num_position_tiles = (N + BLOCK_N - 1) // BLOCK_N
    sums_row = (sample * num_position_tiles + row % num_position_tiles) * C
    for start in range(0, C // GROUPS, BLOCK_O):
        in_group = start + tl.arange(0, BLOCK_O)
        channel_mask = in_group < C // GROUPS
        channels = group * (C // GROUPS) + in_group
        branch = convolve_z(z_weight, y, channels, channel_mask, FEATURES, PRECISION, BLOCK_F)
        if offset is not None:
            branch = branch + load_by_channel(offset + sample * C, channels, channel_mask)
        if inverse_deviation is not None:
            branch = branch * load_by_channel(inverse_deviation, channels, channel_mask)
        d = load_map(d_out, d_out_strides, sample, channels, channel_mask, n, n_mask, CHANNELS_LAST, ALIGN)
        d = d.to(tl.float32)
        tl.store(sums + sums_row + channels, sum_over_positions(d), mask=channel_mask)
        tl.store(products + sums_row + channels, sum_over_positions(d * branch), mask=channel_mask)


@triton.jit
def branch_backward_kernel(
    x, theta_weight, z_weight, coefficients, d_out, scale, offset, inverse_deviation, mean_d, mean_product,
    d_theta, y_out, d_branch, d_sums, partial_sums,
    x_strides, d_out_strides, d_theta_strides, y_strides, d_branch_strides,
    C: tl.constexpr, N, FEATURES: tl.constexpr, GROUPS: tl.constexpr, gamma,
    POWERS: tl.constexpr, ORDER: tl.constexpr, ENVELOPE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Write theta's gradient and, for each power, the tile's part of the coefficient's gradient, z_0's share aside.

    Where their pointers are given, also y less z_0 and the gradient of conv_z's output, whose product is the gradient
    of conv_z's weight without z_0's share; and the sum of the latter for each tile of positions and channel, for that
    share. With statistics, d_out goes back through BatchNorm first: conv_z of y less z_0, plus the offset [B, C], is
    the branch less its mean.
    """
    sample, group, f, f_mask, n, n_mask, row = place(N, FEATURES, GROUPS, ALIGN, BLOCK_F, BLOCK_N)
    theta, y, slope = make_y(
        x, x_strides, theta_weight, coefficients, sample, group, f, f_mask, n, n_mask, C, GROUPS, gamma,
        POWERS, ORDER, ENVELOPE, CHANNELS_LAST, ALIGN, PRECISION, BLOCK_F, BLOCK_N, BLOCK_C,
    )  # fmt: skip
    if y_out is not None:
        store_map(y_out, y_strides, y, sample, f, f_mask, n, n_mask, CHANNELS_LAST, ALIGN)
    num_position_tiles = (N + BLOCK_N - 1) // BLOCK_N
    sums_row = (sample * num_position_tiles + row % num_position_tiles) * C
    d_y = tl.full([BLOCK_F, BLOCK_N], 0.0, tl.float32)
    features = tl.arange(0, BLOCK_F)
    for start in range(0, C // GROUPS, BLOCK_O):
        in_group = start + tl.arange(0, BLOCK_O)
        channel_mask = in_group < C // GROUPS
        channels = group * (C // GROUPS) + in_group
        z_rows = load_matrix(z_weight, FEATURES, channels, channel_mask, features, features < FEATURES)
        z_rows = z_rows.to(tl.float32)
        d = load_map(d_out, d_out_strides, sample, channels, channel_mask, n, n_mask, CHANNELS_LAST, ALIGN)
        d = d.to(tl.float32)
        if offset is not None:
            own_inverse = load_by_channel(inverse_deviation, channels, channel_mask)
            branch = tl.dot(z_rows, y, input_precision=PRECISION)
            normed = (branch + load_by_channel(offset + sample * C, channels, channel_mask)) * own_inverse
            d = d - normed * load_by_channel(mean_product, channels, channel_mask)
            d = (d - load_by_channel(mean_d, channels, channel_mask)) * own_inverse
            d = tl.where(n_mask[None, :], d, 0.0)
        if scale is not None:
            d = d * load_by_channel(scale, channels, channel_mask)
        if d_branch is not None:
            store_map(d_branch, d_branch_strides, d, sample, channels, channel_mask, n, n_mask, CHANNELS_LAST, ALIGN)
        if d_sums is not None:
            tl.store(d_sums + sums_row + channels, sum_over_positions(d), mask=channel_mask)
        d_y = tl.dot(tl.trans(z_rows), d, acc=d_y, input_precision=PRECISION)
    store_power_sums(partial_sums + row * (ORDER + 1), theta, d_y, None, gamma, POWERS, ORDER, ENVELOPE, True)
    store_map(d_theta, d_theta_strides, d_y * slope, sample, f, f_mask, n, n_mask, CHANNELS_LAST, ALIGN)


@triton.jit
def finish_kernel(
    x, branch, out, scale, shift, x_strides, branch_strides, out_strides, C: tl.constexpr, N,
    CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write x + branch · scale + shift, which is [B, C]: the third pass of training."""
    sample, _, channels, channel_mask, n, n_mask, _ = place(N, C, 1, ALIGN, BLOCK_F, BLOCK_N)
    value = load_map(branch, branch_strides, sample, channels, channel_mask, n, n_mask, CHANNELS_LAST, ALIGN)
    value = value.to(tl.float32)
    value = value * load_by_channel(scale, channels, channel_mask)
    value = value + load_by_channel(shift + sample * C, channels, channel_mask)
    residual = load_map(x, x_strides, sample, channels, channel_mask, n, n_mask, CHANNELS_LAST, ALIGN)
    value = residual.to(tl.float32) + value
    store_map(out, out_strides, value, sample, channels, channel_mask, n, n_mask, CHANNELS_LAST, ALIGN)
