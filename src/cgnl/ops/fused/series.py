"""What the operators are told of a series and of what follows it.

Legend: B batch, C channels, C' inner channels, c = C'/G, G groups, P order of the series.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Features of a group that fit into one tile, beside its block of conv_z.
WIDEST_GROUP = 128


class Series(NamedTuple):
    """What makes a branch of x.

    Attributes:
        theta_weight: [C', C, 1, ...].
        z_weight: [C, c, 1, ...].
        coefficients: z_p of Eq. 12, [B, G, P + 1], float32.
        powers: Bit p says whether power p has coefficients other than zero.
        gamma: Above 0, the polynomial is multiplied by exp(-gamma theta^2).
    """

    theta_weight: Tensor
    z_weight: Tensor
    coefficients: Tensor
    powers: int
    gamma: float

    @property
    def groups(self) -> int:
        return self.coefficients.shape[1]

    @property
    def in_group(self) -> int:
        """The number c of features of a group."""
        return self.theta_weight.shape[0] // self.groups

    @property
    def z_groups(self) -> int:
        return self.theta_weight.shape[0] // self.z_weight.shape[1]

    @property
    def is_wide(self) -> bool:
        """Whether theta and y are written: a group does not fit into a tile, or is no group of conv_z."""
        return self.in_group > WIDEST_GROUP or self.z_groups != self.groups

    def shared(self) -> Tensor | None:
        """Return conv_z of z_0: the part of the branch that all positions share, [B, C] in float32.

        It may be some thousand times the part that varies, which in one number with it would lose its digits.
        """
        if not self.powers & 1:
            return None
        return (self.coefficients[:, :, :1] * self._row_sums()).flatten(1)

    def shared_around_mean(self) -> Tensor:
        """Return the same less its mean over the batch."""
        shared = self.shared()
        if shared is None:
            return self.coefficients.new_zeros(self.coefficients.shape[0], self.z_weight.shape[0])
        return _around_mean(shared)

    def shared_gradients(self, d_sums: Tensor, around_mean: bool) -> tuple[Tensor, Tensor]:
        """Return the gradients of the row sums of conv_z's matrices, [G, C/G], and of z_0, [B, G], in float32.

        Goes back through `shared` or, where a norm took the mean away, `shared_around_mean`; ``d_sums`` [B, C] is the
        branch's gradient summed over positions in float32. In half types, products of maps would lose it: it is z_0,
        perhaps some thousand times the part of y that varies, times a sum over positions that comes near zero where a
        norm follows.
        """
        z_0 = self.coefficients[:, :, 0]
        if around_mean:
            d_sums, z_0 = d_sums - d_sums.mean(0), _around_mean(z_0)
        d_groups = d_sums.unflatten(1, (self.groups, -1))
        return (z_0[:, :, None] * d_groups).sum(0), (d_groups * self._row_sums()).sum(2)

    def _row_sums(self) -> Tensor:
        """Sum the rows of conv_z's matrices, [G, C/G] in float32."""
        return self.z_weight.flatten(1).sum(1, dtype=torch.float32).unflatten(0, (self.groups, -1))


class Statistics(NamedTuple):
    """What BatchNorm made of the branch.

    Attributes:
        offset: What makes of the part of the branch that varies the branch less its mean, [B, C].
        inverse_deviation: [C].
    """

    offset: Tensor
    inverse_deviation: Tensor


def _around_mean(of_samples: Tensor) -> Tensor:
    # from the first sample on: where samples are alike, nothing of the large numbers stays
    distances = of_samples - of_samples[:1]
    return distances - distances.mean(0)


def powers_of(coefficients: Sequence[float]) -> int:
    """Return the powers of a series as a number whose bit p says whether a2_p is other than 0."""
    return sum(1 << p for p, a2 in enumerate(coefficients) if a2)


def series_settings(powers: int, num_powers: int, gamma: float) -> dict[str, Any]:
    """Return the constants of a series that kernels are compiled with."""
    return {"POWERS": powers, "ORDER": num_powers - 1, "ENVELOPE": gamma > 0}
