"""From y to the block's output: conv_z, a norm or a scale and shift, the residual; and the gradients of all that.

y is held as a map, a part that all positions share, and for the dot product a factor: y = f (map + mean). The shared
part goes through conv_z and the norm as [B, C] numbers and meets the map at the very end. It may be thousands of times
as large as what varies over the positions (z_0 of the Gaussian RBF is), which would then lose its digits. With a norm
over the batch the map also has the mean zero, which is what statistics and gradients need to keep theirs. The gradients
come from products of the map and the gradient of the output: conv_z's own output is not needed for them.

Legend: B batch, C channels, C' inner channels, c = C'/G, N positions, G groups; conv_z's matrices are [G, C/G, c].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cgnl.ops.maps import by_group, mean_of_squares, multiply, products_by_group

Kind = Literal["branch", "affine", "batch_norm"]


@dataclass(frozen=True)
class Split:
    """y = factor · (map + mean).

    Attributes:
        map: A function that gives the map of a part of the batch, [B_part, C', N]; its mean over the positions is zero
            for a norm over the batch.
        mean: [B, C'], the part that all positions share; filled in by the function, if it is not yet known. None for 0.
        factor: [B, G], or None for 1.
    """

    map: Callable[[slice], Tensor]
    mean: Tensor | None
    factor: Tensor | None


@dataclass(frozen=True)
class Ending:
    """What becomes of conv_z's output, the branch.

    Attributes:
        kind: ``"branch"``: the branch itself; ``"affine"``: x + weight · branch + bias; ``"batch_norm"``: x + the
            branch normalised over this batch.
        weight: [C], or None for 1.
        bias: [C], or None for 0.
        eps: Of the norm.
        momentum: Of the running statistics.
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
        mean_squares: [B, C], of conv_z of the map over the positions of a sample.
    """

    mean: Tensor
    inverse_deviation: Tensor
    mean_squares: Tensor


def finish(
    y: Split,
    z_matrices: Tensor,
    x_flat: Tensor,
    parts: Sequence[slice],
    ending: Ending,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    out: Tensor,
) -> Statistics | None:
    """Write the output into ``out``, [B, C, N] in x's format and the type of the sums; return a norm's statistics.

    Running statistics, where given, are updated in place.
    """
    for part in parts:
        multiply(z_matrices, y.map(part), out=out[part])
    factor = _factor_of_channels(y, z_matrices)
    offset = _offset(y, z_matrices)
    if offset is not None and factor is not None:
        offset = offset * factor
    scale, shift, statistics = ending.weight, ending.bias, None
    if ending.kind == "batch_norm":
        assert offset is not None
        mean_squares = mean_of_squares(out)
        variances = mean_squares if factor is None else mean_squares * factor.square()
        mean = offset.mean(0)
        variance = (variances + (offset - mean).square()).mean(0)
        inverse_deviation = (variance + ending.eps).rsqrt()
        update_running_statistics(
            running_mean, running_var, mean, variance, x_flat.shape[0] * x_flat.shape[2], ending.momentum
        )
        scale = inverse_deviation if scale is None else inverse_deviation * scale
        offset = offset - mean
        statistics = Statistics(mean, inverse_deviation, mean_squares)
    if scale is not None:
        factor = scale.expand(out.shape[:2]) if factor is None else factor * scale
        offset = None if offset is None else offset * scale
    if shift is not None:
        offset = shift.expand(out.shape[:2]) if offset is None else offset + shift
    if factor is not None and offset is not None:
        torch.addcmul(offset[..., None], out, factor[..., None], out=out)
    elif factor is not None:
        out.mul_(factor[..., None])
    elif offset is not None:
        out.add_(offset[..., None])
    if ending.kind != "branch":
        out.add_(x_flat)
    return statistics


@dataclass(frozen=True)
class EndingGradients:
    """The gradients at the start of an ending; None where one was not asked for, or there is none.

    Attributes:
        write_y: A function that takes a part of the batch, the gradient of the output there and the map, and writes
            the gradient of the map (and so also of the map with its mean), [B_part, C', N].
        factor: [B, G].
        z_matrices: [G, C/G, c].
        weight: [C].
        bias: [C].
    """

    write_y: Callable[[slice, Tensor, Tensor, Tensor], None]
    factor: Tensor | None
    z_matrices: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def finish_gradients(
    d_out: Tensor,
    y: Split,
    z_matrices: Tensor,
    parts: Sequence[slice],
    ending: Ending,
    statistics: Statistics | None,
    *,
    wants_z: bool,
) -> EndingGradients:
    """Return the gradients from that of the output, [B, C, N] in the type and format of y's map.

    The gradient of the branch is a d_out + b + e (branch - its mean) with numbers a, e for each channel and b for each
    sample and channel, so every gradient is a sum of products with d_out and with the map.
    """
    groups, positions = z_matrices.shape[0], d_out.shape[2]
    # without a factor nothing asks for the products of a single sample, whose C C' numbers would cost more than the map
    summed = y.factor is None
    products, squares = [], []
    for part in parts:
        y_map = y.map(part)
        products.append(products_by_group(d_out[part], y_map, groups, summed=summed))
        if statistics is not None and wants_z:
            squares.append(products_by_group(y_map, y_map, groups, summed=summed))
    d_out_y, y_y = (
        torch.stack(found).sum(0) if summed and found else torch.cat(found) if found else None
        for found in (products, squares)
    )
    assert d_out_y is not None
    d_sum = d_out.sum(-1)
    # the sum over the positions of d_out times conv_z of the map
    d_out_z = (d_out_y * z_matrices).sum(-1).flatten(1)
    factor = _factor_of_channels(y, z_matrices)
    offset = _offset(y, z_matrices)
    d_weight = (d_out_z if factor is None else d_out_z * factor).sum(0)
    d_bias = d_sum.sum(0)
    shift = offset if offset is None or factor is None else offset * factor
    if statistics is not None:
        assert shift is not None
        shift = shift - statistics.mean
    if shift is not None:
        d_weight = d_weight + (d_sum * shift).sum(0)

    slope, bend, constant = ending.weight, None, None
    if statistics is not None:
        assert shift is not None
        inverse = statistics.inverse_deviation
        d_weight = inverse * d_weight
        slope = inverse if slope is None else slope * inverse
        count = d_out.shape[0] * positions
        bend = -slope * inverse * d_weight / count
        constant = bend * shift - slope * d_bias / count

    # the sums over the positions of the branch's gradient, alone and times conv_z of the map
    d_branch, d_branch_z, d_branch_y = d_sum, d_out_z, d_out_y
    if slope is not None:
        d_branch, d_branch_z, d_branch_y = slope * d_sum, slope * d_out_z, _rows(slope, groups) * d_out_y
    if bend is not None and constant is not None and statistics is not None:
        d_branch = d_branch + positions * constant
        if factor is not None:
            d_branch_z = d_branch_z + bend * factor * positions * statistics.mean_squares
        if y_y is not None:
            bent = torch.matmul(_rows(bend, groups) * z_matrices, y_y)
            d_branch_y = d_branch_y + (bent if y.factor is None else bent * y.factor[..., None, None])
    d_factor, d_z = None, None
    if y.factor is not None:
        by_channel = d_branch_z if offset is None else d_branch_z + d_branch * offset
        d_factor = by_channel.unflatten(1, (groups, -1)).sum(-1)
    if wants_z:
        d_z = (d_branch_y if y.factor is None else d_branch_y * y.factor[..., None, None]).sum(0)
        if y.mean is not None:
            mean = y.mean.unflatten(1, (groups, -1))
            mean = mean if y.factor is None else mean * y.factor[..., None]
            d_z = d_z + torch.matmul(d_branch.unflatten(1, (groups, -1)).permute(1, 2, 0), mean.transpose(0, 1))

    return EndingGradients(_writer(y, z_matrices, slope, bend, constant), d_factor, d_z, d_weight, d_bias)


def _writer(
    y: Split, z_matrices: Tensor, slope: Tensor | None, bend: Tensor | None, constant: Tensor | None
) -> Callable[[slice, Tensor, Tensor, Tensor], None]:
    """Return `EndingGradients.write_y` for a branch with the gradient slope · d_out + bend · map + constant."""
    groups, _, width = z_matrices.shape
    transposed = z_matrices.transpose(1, 2)
    weighted = transposed if slope is None else transposed * slope.unflatten(0, (groups, 1, -1))
    factor_of_y = None if y.factor is None else y.factor.repeat_interleave(width, dim=1)[..., None]
    bending = None if bend is None else (transposed * bend.unflatten(0, (groups, 1, -1))) @ z_matrices
    constant_of_y = None if constant is None else by_group(transposed, constant)[..., None]

    def write_y(part: slice, d_part: Tensor, y_map: Tensor, out: Tensor) -> None:
        d_y = multiply(weighted, d_part)
        own = None if factor_of_y is None else factor_of_y[part]
        if bending is not None and constant_of_y is not None:
            bent = multiply(bending, y_map)
            d_y.add_(bent if own is None else bent.mul_(own)).add_(constant_of_y[part])
        if own is None:
            out.copy_(d_y)
        else:
            torch.mul(d_y, own, out=out)

    return write_y


def _rows(vector: Tensor, groups: int) -> Tensor:
    """View [C] as one column for each group, [G, C/G, 1]."""
    return vector.unflatten(0, (groups, -1))[..., None]


def _offset(y: Split, z_matrices: Tensor) -> Tensor | None:
    """Return conv_z of the mean, [B, C]."""
    return None if y.mean is None else by_group(z_matrices, y.mean)


def _factor_of_channels(y: Split, z_matrices: Tensor) -> Tensor | None:
    """Return the factor at each channel of the output, [B, C]."""
    return None if y.factor is None else y.factor.repeat_interleave(z_matrices.shape[1], dim=1)


@torch.no_grad()
def update_running_statistics(
    running_mean: Tensor | None, running_var: Tensor | None, mean: Tensor, variance: Tensor, count: int, momentum: float
) -> None:
    """Move running statistics, where given, towards those of a batch of ``count`` values a channel."""
    for running, value in ((running_mean, mean), (running_var, variance * (count / max(1, count - 1)))):
        if running is not None:
            # torch.jit records no_grad only as this
            running.lerp_(value.detach().to(running.dtype), momentum)
