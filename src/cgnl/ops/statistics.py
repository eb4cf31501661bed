"""The number that relates phi and g of a group, for the dot product: their sum of products, covariance or correlation.

All three come from the moments of the group's elements: the sums of phi g, phi^2 and g^2 around the means, and the
means. A covariance and a correlation do not see a constant that is added to phi or g, and a correlation s does not see
their size: -1 <= s <= 1, whatever the input's resolution and the weights' scale. docs/blocks.md derives them.

Legend: B batch, C' inner channels, N positions, G groups, M = (C'/G)·N elements of one group.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from cgnl.kernel_functions import DotProduct, KernelFunction
from cgnl.ops.parallel import ProcessGroup, over_processes
from cgnl.settings.checks import check_choice

Statistic = Literal["sum", "covariance", "correlation"]

# The share of the mean square that is added to a variance: where phi or g is as good as constant, their rounding is
# not taken for a correlation.
EPS = 1e-5


def moments_of(
    phi: Tensor, g: Tensor, groups: int, process_group: ProcessGroup | None, *, is_padding: bool = False
) -> Tensor:
    """Return the moments of features [B, C', N], in the type of the sums, over all processes.

    They are [B, G, 6]: the sums of (phi - its mean)(g - its mean) and of the squares of both, both means, and M.
    ``is_padding`` says that the features stand for an empty part of the input, see `cgnl.ops.shapes.with_zeros`.
    """
    count = group_sums(torch.ones_like(g), groups)
    means = [group_sums(features, groups) / count for features in (phi, g)]
    phi, g = (around(features, mean) for features, mean in zip((phi, g), means, strict=True))
    products = [group_sums(product, groups) for product in (phi * g, phi * phi, g * g)]
    moments = torch.stack([*products, *means, count], dim=-1)
    if is_padding:
        moments = 0 * moments
    return moments if process_group is None else joined(moments, partial(over_processes, process_group=process_group))


def joined(moments: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the moments [..., 6] of a whole from those of its parts; ``total`` sums over the parts.

    What comes out has the axes that ``total`` leaves, which have to broadcast with the parts' own.
    """
    *products, phi_mean, g_mean, count = moments.unbind(-1)
    sums = total(torch.stack([count * phi_mean, count * g_mean, count], dim=-1))
    whole_count = sums[..., 2].clamp_min(1)
    phi_whole, g_whole = sums[..., 0] / whole_count, sums[..., 1] / whole_count
    phi_off, g_off = phi_mean - phi_whole, g_mean - g_whole
    offsets = (phi_off * g_off, phi_off * phi_off, g_off * g_off)
    centred = [own + count * offset for own, offset in zip(products, offsets, strict=True)]
    whole = total(torch.stack(centred, dim=-1))
    return torch.cat([whole, torch.stack([phi_whole, g_whole, whole_count], dim=-1)], dim=-1)


def statistic_of(moments: Tensor, statistic: Statistic) -> Tensor:
    """Return s [B, G]: the first moment, for a correlation divided by the square roots of the next two."""
    products, phi_squares, g_squares, phi_mean, g_mean, count = moments.unbind(-1)
    if statistic == "covariance":
        return products
    return products / (_size(phi_squares, phi_mean, count) * _size(g_squares, g_mean, count))


def terms_of(phi: Tensor, g: Tensor, groups: int, statistic: Statistic) -> tuple[Tensor, Tensor]:
    """Return phi and g, [B, C', N], around their means and divided by their sizes: their products sum to s."""
    moments = moments_of(phi, g, groups, None)
    _, phi_squares, g_squares, phi_mean, g_mean, count = moments.unbind(-1)
    phi, g = around(phi, phi_mean), around(g, g_mean)
    if statistic == "correlation":
        phi = phi / at_each_channel(_size(phi_squares, phi_mean, count), phi.shape[1])
        g = g / at_each_channel(_size(g_squares, g_mean, count), g.shape[1])
    return phi, g


def _size(squares: Tensor, mean: Tensor, count: Tensor) -> Tensor:
    """Return the square root of the squares around the mean and of EPS times all squares; 1 where these are 0."""
    square = squares + EPS * (squares + count * mean.square())
    return torch.where(square > 0, square, 1.0).sqrt()


def moments_gradient(d_s: Tensor, moments: Tensor, statistic: Statistic) -> Tensor:
    """Return the gradient of the moments from that of s."""
    with torch.enable_grad():
        moments = moments.detach().requires_grad_()
        return torch.autograd.grad(statistic_of(moments, statistic), moments, d_s)[0]


def gradients(
    d_s: Tensor, moments: Tensor, statistic: Statistic, phi: Tensor, g: Tensor, out: tuple[Tensor, Tensor]
) -> None:
    """Write the gradients of phi and g, [B, C', N], into ``out``, from that of s and what `moments_of` returned."""
    d_moments, means, channels = moments_gradient(d_s, moments, statistic), moments[..., 3:], phi.shape[1]
    phi, g = around(phi, means[..., 0]), around(g, means[..., 1])
    d_product, *of_one = (at_each_channel(d, channels) for d in d_moments.unbind(-1))
    count = at_each_channel(means[..., 2], channels)
    for own, other, d_squares, d_mean, to in (
        (phi, g, of_one[0], of_one[2], out[0]),
        (g, phi, of_one[1], of_one[3], out[1]),
    ):
        torch.mul(other, d_product, out=to)
        to.addcmul_(own, 2 * d_squares).add_(d_mean / count)


def check_statistic(statistic: str, kernel: KernelFunction, scale: object) -> None:
    """Raise ValueError where there is no such statistic, or it does not go with a kernel function or scale."""
    check_choice("statistic", statistic, ("sum", "covariance", "correlation"))
    if statistic != "sum" and type(kernel) is not DotProduct:
        raise ValueError(f"statistic ({statistic!r}) must be 'sum' with the kernel {kernel}: the others need 'dot'")
    if statistic == "correlation" and scale is not None:
        raise ValueError(f"scale ({scale!r}) must be None with statistic 'correlation', which is between -1 and 1")


def group_sums(values: Tensor, groups: int) -> Tensor:
    """Return sums over the elements of each group of a map, [B, G].

    Axis by axis: over both at once PyTorch sums a map that has the channels last one number after the other, which
    costs digits.
    """
    return values.sum(-1).unflatten(1, (groups, -1)).sum(-1)


def at_each_channel(values: Tensor, channels: int) -> Tensor:
    """Expand [B, G] to [B, C', 1]: maps meet one number a channel in long vectors, whatever their memory format."""
    return values[..., None].expand(-1, -1, channels // values.shape[1]).flatten(1)[..., None]


def around(features: Tensor, mean: Tensor) -> Tensor:
    """Return features [B, C', N] less the means [B, G] of their groups."""
    return features - at_each_channel(mean, features.shape[1])
