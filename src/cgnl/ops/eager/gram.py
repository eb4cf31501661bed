"""The Gram form of the dot product's sums: phi^T g from K = X X^T, without phi and g.

phi^T g of a group is <W_phi K, W_g>, and K also gives the gradients of both weights. K is made of x less its mean,
which is added back by what it adds to each sum: a large mean that the weights cancel would cost K its digits.

Legend: B batch, C channels, C' inner channels, c = C'/G, N positions, G groups; weights are [C', C].
"""

import torch
from torch import Tensor

# Bands of rows in which K is made: from each its part above the diagonal.
_BANDS = 4


def pays(channels: int, positions: int, *, training: bool) -> bool:
    """Whether the Gram form takes less time than phi and g; measured, see docs/speed.md."""
    return positions >= (1.25 if training else 3) * channels


def second_moments(centred: Tensor) -> Tensor:
    """K of each sample, [B, C, C], from x less its mean over the positions, [B, C, N]."""
    batch, channels, _ = centred.shape
    moments = centred.new_empty(batch, channels, channels)
    edges = [channels * band // _BANDS for band in range(_BANDS + 1)]
    for sample, out in zip(centred, moments, strict=True):
        for start, stop in zip(edges, edges[1:], strict=False):
            torch.mm(sample[start:stop], sample[start:].transpose(0, 1), out=out[start:stop, start:])
            out[stop:, start:stop] = out[start:stop, stop:].transpose(0, 1)
    return moments


def sums(moments: Tensor, mean: Tensor, phi_weight: Tensor, g_weight: Tensor, groups: int, positions: int) -> Tensor:
    """phi^T g of each sample and group, [B, G]."""
    by_channel = (torch.matmul(phi_weight, moments) * g_weight).sum(-1)
    by_channel += positions * (mean @ phi_weight.transpose(0, 1)) * (mean @ g_weight.transpose(0, 1))
    return by_channel.unflatten(1, (groups, -1)).sum(-1)


def weight_gradients(
    d_sums: Tensor, moments: Tensor, mean: Tensor, phi_weight: Tensor, g_weight: Tensor, positions: int
) -> tuple[Tensor, Tensor]:
    """The gradients of W_phi and W_g from those of the sums, [B, G].

    d W_phi = sum over b of d_s (W_g K) of each group: K is summed over the batch first.
    """
    groups, channels = d_sums.shape[1], mean.shape[1]
    gradients = [torch.empty_like(weight) for weight in (phi_weight, g_weight)]
    pairs = list(zip(gradients, (g_weight, phi_weight), strict=True))
    for part in _parts_of_groups(d_sums, positions, channels):
        summed = (d_sums[:, part].transpose(0, 1) @ moments.flatten(1)).unflatten(1, (channels, channels))
        for gradient, other in pairs:
            torch.bmm(_by_group(other, groups)[part], summed, out=_by_group(gradient, groups)[part])
    for gradient, other in pairs:
        means = (mean @ other.transpose(0, 1)).unflatten(1, (groups, -1)) * d_sums[..., None]
        gradient.addmm_(means.flatten(1).transpose(0, 1), mean, alpha=positions)
    return gradients[0], gradients[1]


def input_matrices(d_sums: Tensor, phi_weight: Tensor, g_weight: Tensor, positions: int) -> Tensor:
    """The symmetric matrices [B, C, C] that make of x what the sums add to its gradient."""
    groups, channels = d_sums.shape[1], phi_weight.shape[1]
    out = d_sums.new_zeros(d_sums.shape[0], channels * channels)
    for part in _parts_of_groups(d_sums, positions, channels):
        products = torch.bmm(_by_group(phi_weight, groups)[part].transpose(1, 2), _by_group(g_weight, groups)[part])
        out.addmm_(d_sums[:, part], (products + products.transpose(1, 2)).flatten(1))
    return out.unflatten(1, (channels, channels))


def _by_group(weight: Tensor, groups: int) -> Tensor:
    return weight.unflatten(0, (groups, -1))


def _parts_of_groups(d_sums: Tensor, positions: int, channels: int) -> list[slice]:
    """Slices of the groups whose matrices [C, C] take no more memory together than x does."""
    batch, groups = d_sums.shape
    step = max(1, batch * positions // channels)
    return [slice(start, start + step) for start in range(0, groups, step)]
