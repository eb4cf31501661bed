"""The number that relates phi and g of a group, for the dot product: their sum of products, covariance or correlation.

All three come from the moments of the group's elements: the sums of phi g, phi^2 and g^2 around the means, and the
means. A covariance and a correlation do not see a constant that is added to phi or g, and a correlation s does not see
their size: -1 <= s <= 1, whatever the input's resolution and the weights' scale. docs/blocks.md derives them.

Legend: B batch, C' inner channels, N positions, G groups, M = (C'/G)·N elements of one group.
"""

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
    ones = torch.full_like(g, float(not is_padding))
    sums = torch.stack([group_sums(features, groups) for features in (phi, g, ones)], dim=-1)
    phi_sum, g_sum, count = over_processes(sums, process_group).unbind(-1)
    count = count.clamp_min(1)
    phi_mean, g_mean = phi_sum / count, g_sum / count
    phi, g = around(phi, phi_mean), around(g, g_mean)
    if is_padding:
        phi, g = 0 * phi, 0 * g
    products = torch.stack([group_sums(product, groups) for product in (phi * g, phi * phi, g * g)], dim=-1)
    return torch.cat([over_processes(products, process_group), torch.stack([phi_mean, g_mean, count], dim=-1)], dim=-1)


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


def gradients(
    d_s: Tensor, moments: Tensor, statistic: Statistic, phi: Tensor, g: Tensor, out: tuple[Tensor, Tensor]
) -> None:
    """Write the gradients of phi and g, [B, C', N], into ``out``, from that of s and what `moments_of` returned."""
    with torch.enable_grad():
        moments = moments.detach().requires_grad_()
        (d_moments,) = torch.autograd.grad(statistic_of(moments, statistic), moments, d_s)
    means, channels = moments.detach()[..., 3:], phi.shape[1]
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
