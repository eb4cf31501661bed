"""What the kernels share: where a program works, loads and stores of tiles, 1x1 convolutions, the polynomial.

A tile is [channels, positions]. A map [B, C, N] has strides (of the batch, of the slower of the two other axes): with
CHANNELS_LAST the channels lie next to each other in memory, else the positions do. ALIGN divides N and the stride of
channels where positions are next to each other: the compiler must know that to load several numbers at once. Numbers
of channels and groups are constants of a compilation; N and the batch are not.

Legend: B batch, C channels, C' inner channels, c = C'/G, N positions, G groups, P order of the series.
"""

# mypy: disallow-untyped-defs=False
# the arguments of a kernel have types that triton finds out

import triton
import triton.language as tl

# The interpreter keeps bfloat16 as integers and would multiply those: there every tile becomes float32 once loaded.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def place(
    N, CHANNELS: tl.constexpr, GROUPS: tl.constexpr, ALIGN: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Return a program's sample, group, channels and their mask, positions and their mask, and row of partial sums.

    It has one tile of positions and one of a group's channels. Programs that read the same positions are neighbours, so
    that they find x in the cache. The sums are [B, G, tiles of a group's channels, tiles of positions].
    """
    known_N = N // ALIGN * ALIGN
    tiles_in_group = (CHANNELS + BLOCK_F - 1) // BLOCK_F
    num_channel_tiles = GROUPS * tiles_in_group
    num_position_tiles = (N + BLOCK_N - 1) // BLOCK_N
    channel_tile = tl.program_id(0) % num_channel_tiles
    rest = tl.program_id(0) // num_channel_tiles
    position_tile = rest % num_position_tiles
    sample = (rest // num_position_tiles).to(tl.int64)
    group = channel_tile // tiles_in_group
    in_group = (channel_tile % tiles_in_group) * BLOCK_F + tl.arange(0, BLOCK_F)
    n = position_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    row = (sample * num_channel_tiles + channel_tile) * num_position_tiles + position_tile
    return sample, group, group * CHANNELS + in_group, in_group < CHANNELS, n, n < known_N, row


@triton.jit
def map_offsets(strides, sample, channels, n, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr):
    # 64 bits: a map may have more than 2^31 elements
    if CHANNELS_LAST:
        offsets = n.to(tl.int64)[None, :] * strides[1] + channels[:, None]
    else:
        offsets = channels.to(tl.int64)[:, None] * (strides[1] // ALIGN * ALIGN) + n[None, :]
    return sample * strides[0] + offsets


@triton.jit
def load_map(
    pointer, strides, sample, channels, channel_mask, n, n_mask, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr
):
    offsets = map_offsets(strides, sample, channels, n, CHANNELS_LAST, ALIGN)
    tile = tl.load(pointer + offsets, mask=channel_mask[:, None] & n_mask[None, :], other=0.0)
    if INTERPRETED:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def store_map(
    pointer, strides, tile, sample, channels, channel_mask, n, n_mask, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr
):
    offsets = map_offsets(strides, sample, channels, n, CHANNELS_LAST, ALIGN)
    tl.store(pointer + offsets, tile.to(pointer.dtype.element_ty), mask=channel_mask[:, None] & n_mask[None, :])


@triton.jit
def load_matrix(pointer, num_columns, rows, row_mask, columns, column_mask):
    """Load entries of a contiguous matrix."""
    offsets = rows[:, None] * num_columns + columns[None, :]
    tile = tl.load(pointer + offsets, mask=row_mask[:, None] & column_mask[None, :], other=0.0)
    if INTERPRETED:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def load_by_channel(pointer, channels, channel_mask):
    """Load one number a channel, as a column."""
    return tl.load(pointer + channels, mask=channel_mask, other=0.0).to(tl.float32)[:, None]


@triton.jit
def sum_over_positions(tile):
    # tl.sum is jitted itself: the interpreter cannot call it where triton was imported before it was switched on
    return tl.reduce(tile, 1, tl.standard._sum_combine)


@triton.jit
def sum_over_tile(tile):
    return tl.reduce(sum_over_positions(tile), 0, tl.standard._sum_combine)


@triton.jit
def convolve(
    x, x_strides, weight, sample, f, f_mask, n, n_mask, C: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Multiply rows f of weight [C', C] with x: a tile [BLOCK_F, BLOCK_N] in float32."""
    result = tl.full([BLOCK_F, BLOCK_N], 0.0, tl.float32)
    for start in range(0, C, BLOCK_C):
        k = start + tl.arange(0, BLOCK_C)
        x_tile = load_map(x, x_strides, sample, k, k < C, n, n_mask, CHANNELS_LAST, ALIGN)
        rows = load_matrix(weight, C, f, f_mask, k, k < C)
        result = tl.dot(rows, x_tile, acc=result, input_precision=PRECISION)
    return result


@triton.jit
def convolve_twice(
    x, x_strides, first_weight, second_weight, sample, f, f_mask, n, n_mask, C: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Do as `convolve` with two weights, reading x once."""
    first = tl.full([BLOCK_F, BLOCK_N], 0.0, tl.float32)
    second = tl.full([BLOCK_F, BLOCK_N], 0.0, tl.float32)
    for start in range(0, C, BLOCK_C):
        k = start + tl.arange(0, BLOCK_C)
        x_tile = load_map(x, x_strides, sample, k, k < C, n, n_mask, CHANNELS_LAST, ALIGN)
        first_rows = load_matrix(first_weight, C, f, f_mask, k, k < C)
        second_rows = load_matrix(second_weight, C, f, f_mask, k, k < C)
        first = tl.dot(first_rows, x_tile, acc=first, input_precision=PRECISION)
        second = tl.dot(second_rows, x_tile, acc=second, input_precision=PRECISION)
    return first, second


@triton.jit
def coefficient(pointer, scales, POWER: tl.constexpr):
    """Return the coefficient of one power, times its scale where there are scales."""
    value = tl.load(pointer + POWER)
    if scales is not None:
        value = value * scales[POWER]
    return value


@triton.jit
def exp_less_one(exponent):
    """Return exp(exponent) - 1 with all its digits, for exponents of at most 0."""
    series = 1 + exponent * (1 / 5) * (1 + exponent * (1 / 6))
    series = 1 + exponent * (1 / 2) * (1 + exponent * (1 / 3) * (1 + exponent * (1 / 4) * series))
    return tl.where(exponent > -0.25, exponent * series, tl.exp(exponent) - 1)


@triton.jit
def polynomial(
    base, pointer, scales, gamma, POWERS: tl.constexpr, ORDER: tl.constexpr, ENVELOPE: tl.constexpr,
    VARYING: tl.constexpr = False,
):  # fmt: skip
    """Return the polynomial in base times its envelope exp(-gamma base^2) if it has one, and its derivative.

    By Horner's rule; bit p of POWERS says whether power p is there. VARYING takes z_0, which does not vary with base,
    away from the value, so that the rest keeps its digits.
    """
    slope = tl.full(base.shape, 0.0, tl.float32)
    value = slope
    if ORDER >= VARYING:  # taken as a number: the lowest power
        value += coefficient(pointer, scales, ORDER)
    for i in tl.static_range(1, ORDER + 1):
        slope = slope * base + value
        value = value * base
        if (POWERS >> VARYING << VARYING >> (ORDER - i)) & 1:
            value += coefficient(pointer, scales, ORDER - i)
    if ENVELOPE:
        exponent = -gamma * base * base
        envelope = tl.exp(exponent)
        if VARYING:
            z_0 = coefficient(pointer, scales, 0)
            slope = envelope * (slope - 2 * gamma * base * (value + z_0))
            value = envelope * value + z_0 * exp_less_one(exponent)
        else:
            slope = envelope * (slope - 2 * gamma * base * value)
            value = envelope * value
    return value, slope


@triton.jit
def store_power_sums(
    pointer, base, weight, scales, gamma, POWERS: tl.constexpr, ORDER: tl.constexpr, ENVELOPE: tl.constexpr,
    VARYING: tl.constexpr = False,
):  # fmt: skip
    """Write the tile's sum of base^p weight times the envelope for each power p that is there, and zero for others.

    VARYING takes the sum of the weight away from that of power 0.
    """
    product = weight
    if ENVELOPE:
        product = product * tl.exp(-gamma * base * base)
    for p in tl.static_range(ORDER + 1):
        if p > 0:
            product = product * base
        total = 0.0
        if (POWERS >> p) & 1:
            if p > 0 or not VARYING:
                total = sum_over_tile(product)
            elif ENVELOPE:
                total = sum_over_tile(weight * exp_less_one(-gamma * base * base))
            if scales is not None:
                total = total * scales[p]
        tl.store(pointer + p, total)
