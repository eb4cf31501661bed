"""The Gram form of the dot product's sums: phi^T g from K = X X^T, without phi and g.

phi^T g of a group is <K, A> with A = W_phi^T W_g of that group, and K also gives the gradients of both weights. What
depends on the sample is never multiplied with a weight: A is made for the whole batch, K is summed over the batch with
the sums' gradients before it meets a weight.

K is symmetric, so that A may be replaced by (A + A^T) / 2: of both only bands of rows, from the diagonal to the right,
are made, and K is kept as these bands, one after the other.

Two things keep the digits of <K, A>: K is made of x less its mean, whose share is added back at the end (a large mean
that the weights cancel would cost K its digits), and the C^2 products are summed by rows first and then pairwise (one
matrix product over all of them loses tens of rounding units).

Legend: B batch, C channels, C' inner channels, c = C'/G, N positions, G groups; weights are [C', C].
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS_OF_A_BAND = 128
# Elements of x from which K is made at a time: 4 MB in float32.
_ELEMENTS_OF_A_CHUNK = 2**20
# Elements that a band of the matrices of some groups may have together: 8 MB in float32.
_ELEMENTS_OF_MATRICES = 2**21


def pays(batch: int, channels: int, inner: int, positions: int, groups: int, *, training: bool) -> bool:
    """Tell whether the Gram form takes about as little time as phi and g, or less, for B, C, C', N and G.

    What grows with the positions has to save more than what does not grow with them: the handling of K, the products of
    weights alone, which the batch shares, and the matrices of the groups. The many calls need something to do, too. The
    numbers are multiplications that count, fitted to what was measured: see docs/speed.md.
    """
    features, moments, of_k, of_weights = (6, 1.6, 0.54, 3.9) if training else (2, 0.56, 0.35, 2.0)
    saved = positions * (features * inner - moments * channels)
    lost = of_k * channels**2 + of_weights * channels * inner / batch + 3 * groups * channels
    return positions * channels**2 >= 5e7 and saved >= lost


@dataclass(frozen=True)
class _Band:
    """Rows of a symmetric matrix [C, C], start to stop, from the diagonal to the right.

    Attributes:
        place: Where the band begins among the elements of all bands.
    """

    start: int
    stop: int
    channels: int
    place: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def columns(self) -> slice:
        return slice(self.start, self.channels)

    @property
    def later(self) -> slice:
        """The columns right of the square on the diagonal: in the mirror image the rows below it."""
        return slice(self.stop, self.channels)

    @property
    def shape(self) -> tuple[int, int]:
        return self.stop - self.start, self.channels - self.start

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def of(self, elements: Tensor) -> Tensor:
        """View [..., elements of all bands] as [..., rows, columns]."""
        return elements[..., self.place : self.place + self.size].unflatten(-1, self.shape)

    def mirrored(self, matrices: Tensor) -> Tensor:
        """Return the part of [..., rows, columns] right of the square, transposed: [..., later, rows]."""
        return matrices[..., self.stop - self.start :].transpose(-2, -1)


def second_moments(x_flat: Tensor, mean: Tensor) -> Tensor:
    """Return K of each sample of x [B, C, N] with mean [B, C], as the elements of its bands, [B, about C^2 / 2]."""
    batch, channels, _ = x_flat.shape
    bands = _bands(channels)
    moments = x_flat.new_empty(batch, bands[-1].place + bands[-1].size)
    for sample, own_mean, out in zip(x_flat, mean, moments, strict=True):
        for number, chunk in enumerate(sample.split(max(1, _ELEMENTS_OF_A_CHUNK // channels), dim=1)):
            centred = chunk - own_mean[:, None]
            for band in bands:
                left, right = centred[band.rows], centred[band.columns].transpose(0, 1)
                band.of(out).addmm_(left, right, beta=1 if number else 0)
    return moments


def sums(moments: Tensor, mean: Tensor, phi_weight: Tensor, g_weight: Tensor, groups: int, positions: int) -> Tensor:
    """Return phi^T g of each sample and group, [B, G]."""
    of_mean = (mean @ phi_weight.transpose(0, 1)) * (mean @ g_weight.transpose(0, 1))
    out = positions * of_mean.unflatten(1, (groups, -1)).sum(-1)
    for band, part, matrices in _bands_of_weights(phi_weight, g_weight, groups):
        # K's half is multiplied with all of A + A^T, and the squares on the diagonal, which are whole, with half of it
        matrices[..., : band.shape[0]].mul_(0.5)
        # rows lead, so that each is a product of its own: [rows, B, columns] times [rows, columns, groups]
        out[:, part] += torch.bmm(band.of(moments).transpose(0, 1), matrices.permute(1, 2, 0)).sum(0)
    return out


def weight_gradients(
    d_sums: Tensor, moments: Tensor, mean: Tensor, phi_weight: Tensor, g_weight: Tensor, positions: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of W_phi and W_g from those of the sums, [B, G].

    d W_phi of a group is W_g times the sum over the batch of d_sums K, and d W_g is W_phi times the same.
    """
    groups, channels = d_sums.shape[1], mean.shape[1]
    # both weights of a group below each other, [G, 2c, C]
    others = torch.cat([weight.unflatten(0, (groups, -1)) for weight in (g_weight, phi_weight)], dim=1)
    gradients = torch.zeros_like(others)
    for band in _bands(channels):
        kept = band.of(moments).flatten(1)
        for part in _parts_of_groups(groups, band):
            summed = (d_sums[:, part].transpose(0, 1) @ kept).unflatten(1, band.shape)
            to, other = gradients[part], others[part]
            to[..., band.columns].baddbmm_(other[..., band.rows], summed)
            to[..., band.rows].baddbmm_(other[..., band.later], band.mirrored(summed))
    rows = others.flatten(0, 1)
    of_mean = (mean @ rows.transpose(0, 1)).unflatten(1, (groups, -1)) * d_sums[..., None]
    gradients.view_as(rows).addmm_(of_mean.flatten(1).transpose(0, 1), mean, alpha=positions)
    d_phi_weight, d_g_weight = gradients.chunk(2, dim=1)
    # of one channel a group, flatten alone would return views with gaps, which processes cannot exchange
    return d_phi_weight.flatten(0, 1).contiguous(), d_g_weight.flatten(0, 1).contiguous()


def add_input_gradients(d_sums: Tensor, phi_weight: Tensor, g_weight: Tensor, x_flat: Tensor, d_x_flat: Tensor) -> None:
    """Add the sums' part of x's gradient: the sum over the groups of d_sums (A + A^T) times x, for each sample."""
    groups, channels = d_sums.shape[1], x_flat.shape[1]
    bands = _bands(channels)
    halves = d_sums.new_empty(d_sums.shape[0], bands[-1].place + bands[-1].size)
    for band, part, matrices in _bands_of_weights(phi_weight, g_weight, groups):
        own = band.of(halves).flatten(1)
        own.addmm_(d_sums[:, part], matrices.flatten(1), beta=1 if part.start else 0)
    matrix = d_sums.new_empty(channels, channels)
    for half, sample, to in zip(halves, x_flat, d_x_flat, strict=True):
        for band in bands:
            matrix[band.rows, band.columns] = band.of(half)
            matrix[band.later, band.rows] = band.mirrored(band.of(half))
        to.addmm_(matrix, sample)


def _bands_of_weights(phi_weight: Tensor, g_weight: Tensor, groups: int) -> Iterator[tuple[_Band, slice, Tensor]]:
    """Yield A + A^T band by band and some groups at a time, [groups, rows, columns].

    Each overwrites the one before, and may be written to.
    """
    phi, g = (weight.unflatten(0, (groups, -1)) for weight in (phi_weight, g_weight))
    steps = [(band, part) for band in _bands(phi_weight.shape[1]) for part in _parts_of_groups(groups, band)]
    memory = phi.new_empty(max((part.stop - part.start) * band.size for band, part in steps))
    for band, part in steps:
        out = memory[: (part.stop - part.start) * band.size].view(-1, *band.shape)
        torch.bmm(phi[part, :, band.rows].transpose(1, 2), g[part, :, band.columns], out=out)
        out.baddbmm_(g[part, :, band.rows].transpose(1, 2), phi[part, :, band.columns])
        yield band, part, out


def _bands(channels: int) -> list[_Band]:
    bands, place = [], 0
    for start in range(0, channels, _ROWS_OF_A_BAND):
        bands.append(_Band(start, min(start + _ROWS_OF_A_BAND, channels), channels, place))
        place += bands[-1].size
    return bands


def _parts_of_groups(groups: int, band: _Band) -> list[slice]:
    """Return slices of the groups that are worked on together, so that their matrices stay small."""
    step = max(1, _ELEMENTS_OF_MATRICES // band.size)
    return [slice(start, min(start + step, groups)) for start in range(0, groups, step)]
