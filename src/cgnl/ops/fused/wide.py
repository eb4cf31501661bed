"""The branch of groups of more than `WIDEST_GROUP` features, or of other groups than conv_z's.

Theta and y are written, and the products are PyTorch's.

Legend: B batch, C channels, C' inner channels, c = C'/G, N positions, G groups, P order of the series.
"""

import torch
from torch import Tensor

from cgnl.ops.fused.polynomials import write_polynomial, write_polynomial_gradient
from cgnl.ops.fused.series import Series, Statistics
from cgnl.ops.maps import convolve, empty_map
from cgnl.ops.precision import gradient_dtype, without_autocast


def make_branch(flat: Tensor, series: Series) -> Tensor:
    """Return the part of conv_z's output that varies, [B, C, N]."""
    return _steps(flat, series)[-1]


def scale_gradients(
    flat: Tensor, d_flat: Tensor, series: Series, statistics: Statistics | None
) -> tuple[Tensor, Tensor]:
    """Do as `narrow.scale_gradients`."""
    value = make_branch(flat, series).float()
    offset, inverse_deviation = statistics or (series.shared(), None)
    if offset is not None:
        value = value + offset[..., None]
    if inverse_deviation is not None:
        value = value * inverse_deviation[:, None]
    return d_flat.sum((0, 2), dtype=torch.float32), (d_flat * value).sum((0, 2), dtype=torch.float32)


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
    """Do as `narrow.branch_gradients`."""
    theta, y, value = _steps(flat, series)
    d_branch = empty_map(flat, flat.shape[1], y.dtype)
    d = d_flat.float()
    if statistics is not None:
        count = flat.shape[0] * flat.shape[2]
        inverse_deviation = statistics.inverse_deviation[:, None]
        normed = (value.float() + statistics.offset[..., None]) * inverse_deviation
        d = (d - (d_shift / count)[:, None] - normed * (d_scale / count)[:, None]) * inverse_deviation
    d = d if scale is None else d * scale[:, None]
    d_branch.copy_(d)
    d_y = convolve(_z_matrices(series, y.dtype).transpose(1, 2), d_branch)
    d_theta = empty_map(flat, theta.shape[1], y.dtype)
    d_coefficients = write_polynomial_gradient(
        d_y, theta, series.coefficients, series.powers, series.gamma, d_theta, varying=True
    )
    return d_theta, d_branch, y, d.sum(2) if series.powers & 1 else None, d_coefficients


def _steps(flat: Tensor, series: Series) -> tuple[Tensor, Tensor, Tensor]:
    """Return theta, y less z_0 and conv_z of that, [B, C' or C, N]."""
    with without_autocast(flat):
        theta = convolve(series.theta_weight.flatten(1)[None], flat)
        y = empty_map(flat, theta.shape[1], gradient_dtype(flat.dtype))
        write_polynomial(theta, series.coefficients, series.powers, series.gamma, y, varying=True)
        return theta, y, convolve(_z_matrices(series, y.dtype), y)


def _z_matrices(series: Series, dtype: torch.dtype) -> Tensor:
    """Return conv_z's weight as one matrix a group, [G, C/G, c]."""
    return series.z_weight.flatten(1).unflatten(0, (series.z_groups, -1)).to(dtype)
