"""The Gram form of the dot product's sums: phi^T g from K = X X^T, without phi and g.

phi^T g of a group is <K, A> with A = W_phi^T W_g of that group, and K also gives the gradients of both weights. What
depends on the sample is never multiplied with a weight: A is made once for the batch, K is summed over the batch with
the sums' gradients before it meets a weight.

Two things keep the digits of <K, A>: K is made of x less its mean, whose share is added back at the end (a large mean
that the weights cancel would cost K its digits), and the C^2 products are summed by rows first and then pairwise (one
matrix product over all of them loses up to a hundred rounding units).

Legend: B batch, C channels, C' inner channels, c = C'/G, N positions, G groups; weights are [C', C].
"""

import torch
from torch import Tensor

# Bands of rows in which K is made: from each its part right of the diagonal.
_BANDS = 4
# Elements that the matrices [C, C] of some groups may have together: 16 MB in float32, and at most half as many as x.
_ELEMENTS_OF_MATRICES = 2**22


def pays(channels: int, positions: int, *, training: bool) -> bool:
    """Whether the Gram form takes less time than phi and g; measured, see docs/speed.md."""
    return positions >= (1.25 if training else 3) * channels


def second_moments(x_flat: Tensor, mean: Tensor) -> Tensor:
    """K of each sample, [B, C, C], from x, [B, C, N], and its mean over the positions, [B, C]."""
    batch, channels, _ = x_flat.shape
    moments = x_flat.new_empty(batch, channels, channels)
    edges = [channels * band // _BANDS for band in range(_BANDS + 1)]
    for sample, own_mean, out in zip(x_flat, mean, moments, strict=True):
        centred = sample - own_mean[:, None]
        for start, stop in zip(edges, edges[1:], strict=False):
            torch.mm(centred[start:stop], centred[start:].transpose(0, 1), out=out[start:stop, start:])
        mirrored = out.t().contiguous()
        for start, stop in zip(edges, edges[1:], strict=False):
            out[stop:, start:stop] = mirrored[stop:, start:stop]
    return moments


def sums(moments: Tensor, mean: Tensor, phi_weight: Tensor, g_weight: Tensor, groups: int, positions: int) -> Tensor:
    """phi^T g of each sample and group, [B, G]."""
    of_mean = (mean @ phi_weight.transpose(0, 1)) * (mean @ g_weight.transpose(0, 1))
    parts = []
    for part in _parts_of_groups(groups, mean.shape[1], mean.shape[0], positions):
        matrices = torch.bmm(_by_group(phi_weight, groups)[part].transpose(1, 2), _by_group(g_weight, groups)[part])
        # rows lead, so that each is a product of its own: [C, B, C] times [C, C, G]
        parts.append(torch.bmm(moments.transpose(0, 1), matrices.permute(1, 2, 0)).sum(0))
    return torch.cat(parts, dim=1) + positions * of_mean.unflatten(1, (groups, -1)).sum(-1)


def weight_gradients(
    d_sums: Tensor, moments: Tensor, mean: Tensor, phi_weight: Tensor, g_weight: Tensor, positions: int
) -> tuple[Tensor, Tensor]:
    """The gradients of W_phi and W_g from those of the sums, [B, G].

    d W_phi of a group is W_g times the sum over the batch of d_sums K, and d W_g is W_phi times the same.
    """
    groups, channels = d_sums.shape[1], mean.shape[1]
    gradients = [torch.empty_like(weight) for weight in (phi_weight, g_weight)]
    pairs = list(zip(gradients, (g_weight, phi_weight), strict=True))
    for part in _parts_of_groups(groups, channels, mean.shape[0], positions):
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
    out = d_sums.new_empty(d_sums.shape[0], channels * channels)
    for part in _parts_of_groups(groups, channels, d_sums.shape[0], positions):
        matrices = torch.bmm(_by_group(phi_weight, groups)[part].transpose(1, 2), _by_group(g_weight, groups)[part])
        out.addmm_(d_sums[:, part], matrices.flatten(1), beta=1 if part.start else 0)
    out = out.unflatten(1, (channels, channels))
    for matrix in out:
        matrix.add_(matrix.t().contiguous())
    return out


def _by_group(weight: Tensor, groups: int) -> Tensor:
    return weight.unflatten(0, (groups, -1))


def _parts_of_groups(groups: int, channels: int, batch: int, positions: int) -> list[slice]:
    """Slices of the groups that are worked on together, so that their matrices [C, C] stay small."""
    step = max(1, min(_ELEMENTS_OF_MATRICES, batch * positions * channels // 2) // channels**2)
    return [slice(start, start + step) for start in range(0, groups, step)]
