"""The branch of groups of up to `WIDEST_GROUP` features: theta and y stay in registers.

Legend: B batch, C channels, C' inner channels, c = C'/G, N positions, G groups, P order of the series.
"""

from typing import Any

import torch
from torch import Tensor

from cgnl.ops.fused.launching import arguments, branch_sizes, launch, num_tiles, product_precision
from cgnl.ops.fused.series import Series, Statistics, series_settings
from cgnl.ops.fused.sums import partial_sums
from cgnl.ops.maps import empty_map, kernel_layout
from cgnl.ops.precision import gradient_dtype


def write_branch(
    flat: Tensor,
    series: Series,
    out: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    statistics: tuple[Tensor, Tensor] | None,
) -> None:
    """Write the part of the branch that varies, with a scale [C] and a shift [B, C] as `branch_kernel` takes them."""
    from cgnl.ops.fused import kernels

    batch, _, positions = flat.shape
    settings = _settings(flat, series, backward=False)
    means, squares = statistics or (None, None)
    launch(
        kernels.branch_kernel,
        batch * series.groups * num_tiles(positions, settings["BLOCK_N"]),
        *arguments((flat, *_tensors(series), out, scale, shift, means, squares), (flat, out), _numbers(flat, series)),
        **kernel_layout(flat, out),
        **settings,
    )


def write_branch_with_statistics(flat: Tensor, series: Series, out: Tensor) -> tuple[Tensor, Tensor]:
    """Write the part of the branch that varies; return its mean and the biased variance of the whole branch.

    Those of the tiles are joined by the formula of Chan et al., which does not subtract squares of large means.
    """
    batch, channels, positions = flat.shape
    block = _settings(flat, series, backward=False)["BLOCK_N"]
    means, squares = (
        flat.new_empty(batch, num_tiles(positions, block), channels, dtype=torch.float32) for _ in range(2)
    )
    write_branch(flat, series, out, None, None, (means, squares))
    starts = torch.arange(0, positions, block, device=flat.device)
    counts = (positions - starts).clamp_max(block).to(torch.float32)[:, None]
    total = batch * positions
    mean = (means * (counts / total)).sum((0, 1))
    distances = (means - mean) + series.shared_around_mean()[:, None]
    variance = (squares + counts * distances.square()).sum((0, 1)) / total
    return mean, variance


def scale_gradients(
    flat: Tensor, d_flat: Tensor, series: Series, statistics: Statistics | None
) -> tuple[Tensor, Tensor]:
    """Sum d_out, and d_out times the (normalised) branch, over samples and positions."""
    from cgnl.ops.fused import kernels

    offset, inverse_deviation = statistics or (series.shared(), None)
    batch, channels, positions = flat.shape
    settings = _settings(flat, series, backward=False)
    position_tiles = num_tiles(positions, settings["BLOCK_N"])
    sums, products = (flat.new_empty(batch, position_tiles, channels, dtype=torch.float32) for _ in range(2))
    launch(
        kernels.branch_gradient_sums_kernel,
        batch * series.groups * position_tiles,
        *arguments(
            (flat, *_tensors(series), d_flat, offset, inverse_deviation, sums, products),
            (flat, d_flat),
            _numbers(flat, series),
        ),
        **kernel_layout(flat, d_flat),
        **settings,
    )
    return sums.sum((0, 1)), products.sum((0, 1))


def branch_gradients(
    flat: Tensor,
    d_flat: Tensor,
    series: Series,
    scale: Tensor | None,
    statistics: Statistics | None,
    d_scale: Tensor,
    d_shift: Tensor,
    wants_z_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Return the gradients of theta and of the branch, y less z_0, the branch's gradient summed, and the rest.

    The second and third are meaningless where the gradient of conv_z's weight is not wanted. The sums, [B, C], are for
    the part that goes through `Series.shared`, and None where there is no z_0. The rest is the gradient of the
    coefficients without that part.
    """
    from cgnl.ops.fused import kernels

    batch, channels, positions = flat.shape
    dtype = gradient_dtype(flat.dtype)
    settings = _settings(flat, series, backward=True)
    inner = series.theta_weight.shape[0]
    d_theta = empty_map(flat, inner, dtype)
    y = empty_map(flat, inner, dtype) if wants_z_weight else None
    d_branch = empty_map(flat, channels, dtype) if wants_z_weight and (scale, statistics) != (None, None) else None
    partial = partial_sums(flat, series.groups, series.in_group, series.coefficients.shape[2], settings)
    position_tiles = num_tiles(positions, settings["BLOCK_N"])
    d_sums = flat.new_empty(batch, position_tiles, channels, dtype=torch.float32) if series.powers & 1 else None
    offset, inverse_deviation = statistics or (None, None)
    count = batch * positions
    mean_d, mean_product = (None, None) if statistics is None else (d_shift / count, d_scale / count)
    of_norm = (scale, offset, inverse_deviation, mean_d, mean_product)
    launch(
        kernels.branch_backward_kernel,
        batch * series.groups * position_tiles,
        *arguments(
            (flat, *_tensors(series), d_flat, *of_norm, d_theta, y, d_branch, d_sums, partial),
            (flat, d_flat, d_theta, y, d_branch),
            _numbers(flat, series),
        ),
        **kernel_layout(flat, d_flat, d_theta),
        **settings,
    )
    return (
        d_theta,
        d_flat if d_branch is None else d_branch,
        d_theta if y is None else y,
        None if d_sums is None else d_sums.sum(1),
        partial.sum(2),
    )


def _tensors(series: Series) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tensors of a series as kernels take them."""
    return series.theta_weight.contiguous(), series.z_weight.contiguous(), series.coefficients.contiguous()


def _numbers(flat: Tensor, series: Series) -> tuple[float, ...]:
    """Return the numbers that kernels take after the strides."""
    return flat.shape[1], flat.shape[2], series.in_group, series.groups, series.gamma


def _settings(flat: Tensor, series: Series, backward: bool) -> dict[str, Any]:
    """Return the constants that the kernels that make y are compiled with, the memory format aside."""
    _, channels, positions = flat.shape
    return {
        **branch_sizes(channels, series.in_group, series.groups, positions, flat.dtype, backward),
        **series_settings(series.powers, series.coefficients.shape[2], series.gamma),
        "PRECISION": product_precision(flat.dtype),
    }
