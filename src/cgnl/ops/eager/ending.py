"""From y to the block's output: conv_z, a norm or a scale and shift, the residual; and the gradients of all that.

y is held as a map less its mean over the positions, the mean, and for the dot product a factor: y = f (y_c + mean).
conv_z of y_c then has the mean zero, which is what a norm's statistics and gradients need to keep their digits. The
gradients come from products of y_c and the gradient of the output: conv_z's own output is not needed for them.

Legend: B batch, C channels, C' inner channels, c = C'/G, N positions, G groups; conv_z's matrices are [G, C/G, c].
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cgnl.ops.eager.maps import (
    by_group,
    mean_of_squares,
    multiply,
    products_by_group,
)

Kind = Literal["branch", "affine", "batch_norm"]


@dataclass(frozen=True)
class Centred:
    """y = factor · (map + mean).

    Attributes:
        map: [B, C', N], with the mean zero over the positions.
        mean: [B, C'].
        factor: [B, G], or None for 1.
    """

    map: Tensor
    mean: Tensor
    factor: Tensor | None


@dataclass(frozen=True)
class Ending:
    """What becomes of conv_z's output, the branch.

    Attributes:
        kind: ``"branch"``: the branch itself; ``"affine"``: x + weight · branch + bias; ``"batch_norm"``: x + the
            branch normalised over this batch.
        weight: [C], or None for 1.
        bias: [C], or None for 0.
        eps: of the norm.
        momentum: of the running statistics.
    """

    kind: Kind
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 0.0
    momentum: float = 0.0


@dataclass(frozen=True)
class Statistics:
    """Of the branch over the batch.

    Attributes:
        mean: [C].
        inverse_deviation: [C].
        mean_squares: [B, C], of conv_z of the centred map over the positions of a sample.
    """

    mean: Tensor
    inverse_deviation: Tensor
    mean_squares: Tensor


def centred(y: Tensor) -> tuple[Tensor, Tensor]:
    """The map less its mean over the positions, in place, and the mean."""
    mean = y.mean(-1)
    return y.sub_(mean[..., None]), mean


def finish(
    y: Centred,
    z_matrices: Tensor,
    x_flat: Tensor,
    ending: Ending,
    running_mean: Tensor | None,
    running_var: Tensor | None,
) -> tuple[Tensor, Statistics | None]:
    """The output [B, C, N] in x's format, in x's type where x is added, and the statistics of a norm.

    Running statistics, where given, are updated in place.
    """
    out = multiply(z_matrices, y.map, model=x_flat)
    factor = _factor_of_channels(y, z_matrices)
    offset = by_group(z_matrices, y.mean)
    if factor is not None:
        offset = offset * factor
    scale, shift, statistics = ending.weight, ending.bias, None
    if ending.kind == "batch_norm":
        mean_squares = mean_of_squares(out)
        variances = mean_squares if factor is None else mean_squares * factor.square()
        mean = offset.mean(0)
        variance = (variances + (offset - mean).square()).mean(0)
        inverse_deviation = (variance + ending.eps).rsqrt()
        _update(running_mean, mean, ending.momentum)
        count = x_flat.shape[0] * x_flat.shape[2]
        _update(running_var, variance * (count / (count - 1)), ending.momentum)
        scale = inverse_deviation if scale is None else inverse_deviation * scale
        offset = offset - mean
        statistics = Statistics(mean, inverse_deviation, mean_squares)
    if scale is not None:
        factor = scale.expand_as(offset) if factor is None else factor * scale
        offset = offset * scale
    if shift is not None:
        offset = offset + shift
    if factor is None:
        out.add_(offset[..., None])
    else:
        torch.addcmul(offset[..., None], out, factor[..., None], out=out)
    return (out if ending.kind == "branch" else out.add_(x_flat).to(x_flat.dtype)), statistics


@dataclass
class EndingGradients:
    """What `finish_gradients` found; None where it was not asked for, or there is none.

    Attributes:
        factor: [B, G].
        z_matrices: [G, C/G, c].
        weight: [C].
        bias: [C].
    """

    factor: Tensor | None = None
    z_matrices: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None


def finish_gradients(
    d_out: Tensor,
    y: Centred,
    z_matrices: Tensor,
    ending: Ending,
    statistics: Statistics | None,
    *,
    d_y_out: Tensor | None,
    wants_z: bool,
    wants_ending: bool,
) -> EndingGradients:
    """The gradients from that of the output, [B, C, N] in the map's type; y's map's is written into ``d_y_out``.

    The gradient of the branch is a d_out + b + e (branch - its mean) with numbers a, e for each channel and b for each
    sample and channel, so every gradient is a sum of products with d_out and with y_c.
    """
    gradients = EndingGradients()
    groups, positions = z_matrices.shape[0], d_out.shape[2]
    factor = _factor_of_channels(y, z_matrices)
    d_sum = d_out.sum(-1)
    products = products_by_group(d_out, y.map, groups)
    # the sum over the positions of d_out times conv_z of the centred map
    d_products = (products * z_matrices).sum(-1).flatten(1)
    offset = by_group(z_matrices, y.mean)
    scaled = d_products if factor is None else d_products * factor
    shifts = offset if factor is None else offset * factor
    slope: Tensor | None = ending.weight
    bend, constant = None, None
    if statistics is not None:
        shifts = shifts - statistics.mean
        d_norm = (scaled + d_sum * shifts).sum(0)
        inverse = statistics.inverse_deviation
        slope = inverse if slope is None else slope * inverse
        count = d_out.shape[0] * positions
        bend = -slope * inverse.square() * d_norm / count
        constant = bend * shifts - slope * d_sum.sum(0) / count
        if wants_ending:
            gradients.weight, gradients.bias = inverse * d_norm, d_sum.sum(0)
    elif wants_ending:
        gradients.weight, gradients.bias = (scaled + d_sum * shifts).sum(0), d_sum.sum(0)

    # the sums over the positions of the branch's gradient, alone and times conv_z of the centred map
    d_branch_sum = d_sum if slope is None else slope * d_sum
    if constant is not None:
        d_branch_sum = d_branch_sum + positions * constant
    if y.factor is not None:
        by_channel = d_products if slope is None else slope * d_products
        if bend is not None and statistics is not None:
            by_channel = by_channel + bend * factor * positions * statistics.mean_squares
        by_channel = by_channel + d_branch_sum * offset
        gradients.factor = by_channel.unflatten(1, (groups, -1)).sum(-1)
    if wants_z:
        gradients.z_matrices = _z_gradient(products, y, z_matrices, factor, slope, bend, d_branch_sum)
    if d_y_out is not None:
        _write_y_gradient(d_out, y, z_matrices, slope, bend, constant, d_y_out)
    return gradients


def _z_gradient(
    products: Tensor,
    y: Centred,
    z_matrices: Tensor,
    factor: Tensor | None,
    slope: Tensor | None,
    bend: Tensor | None,
    d_branch_sum: Tensor,
) -> Tensor:
    groups = z_matrices.shape[0]
    d_branch_y = products if slope is None else products * _rows(slope, groups)
    if bend is not None:
        curve = torch.matmul(_rows(bend, groups) * z_matrices, products_by_group(y.map, y.map, groups))
        d_branch_y = d_branch_y + (curve if factor is None else curve * factor.unflatten(1, (groups, -1))[..., None])
    d_branch_y = (
        d_branch_y
        + d_branch_sum.unflatten(1, (groups, -1))[..., None] * (y.mean.unflatten(1, (groups, -1))[..., None, :])
    )
    return (d_branch_y if y.factor is None else d_branch_y * y.factor[..., None, None]).sum(0)


def _write_y_gradient(
    d_out: Tensor,
    y: Centred,
    z_matrices: Tensor,
    slope: Tensor | None,
    bend: Tensor | None,
    constant: Tensor | None,
    out: Tensor,
) -> None:
    groups, width = z_matrices.shape[0], z_matrices.shape[2]
    transposed = z_matrices.transpose(1, 2)
    weighted = transposed if slope is None else transposed * slope.unflatten(0, (groups, 1, -1))
    d_y = multiply(weighted, d_out, model=y.map)
    factor = torch.ones((), dtype=d_y.dtype, device=d_y.device)
    if y.factor is not None:
        factor = y.factor.repeat_interleave(width, dim=1)[..., None]
    if bend is not None and constant is not None:
        curve = multiply((transposed * bend.unflatten(0, (groups, 1, -1))) @ z_matrices, y.map)
        d_y.addcmul_(curve, factor)
        torch.addcmul(by_group(transposed, constant)[..., None] * factor, d_y, factor, out=out)
    else:
        torch.mul(d_y, factor, out=out)


def _rows(vector: Tensor, groups: int) -> Tensor:
    """[C] as one column for each group, [G, C/G, 1]."""
    return vector.unflatten(0, (groups, -1))[..., None]


def _factor_of_channels(y: Centred, z_matrices: Tensor) -> Tensor | None:
    """The factor at each channel of the output, [B, C]."""
    return None if y.factor is None else y.factor.repeat_interleave(z_matrices.shape[1], dim=1)


def _update(running: Tensor | None, value: Tensor, momentum: float) -> None:
    if running is not None:
        running.lerp_(value.to(running.dtype), momentum)
