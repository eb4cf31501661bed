"""The CGNL block as the published formulation computes it: the baseline of the benchmarks.

Three separate convolutions, a loop over groups, batched products of a 1 x M row and an M x 1 column, and for the RBF
kernel function the powers of theta and phi stacked to [P + 1, M] (Eq. 11). Written from the paper, on its own: it
shares no code with the package.
"""

import math

import torch
from torch import Tensor, nn


class PublishedCGNL(nn.Module):
    """Eq. 11-13 and Fig. 2 literally, with BatchNorm.

    Args:
        channels: C; C' is C / 2.
        groups: G.
        order: P of the RBF series, or None for the dot product.
        gamma: the RBF's width parameter.
    """

    def __init__(self, channels: int, *, groups: int, order: int | None = None, gamma: float = 1e-4) -> None:
        super().__init__()
        inner = channels // 2
        self.groups = groups
        self.alphas: list[float] | None = None
        if order is not None:
            beta = math.exp(-2 * gamma)
            self.alphas = [math.sqrt(beta * (2 * gamma) ** p / math.factorial(p)) for p in range(order + 1)]
        self.theta = nn.Conv2d(channels, inner, 1, bias=False)
        self.phi = nn.Conv2d(channels, inner, 1, bias=False)
        self.g = nn.Conv2d(channels, inner, 1, bias=False)
        self.z = nn.Conv2d(inner, channels, 1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Z of x, [B, C, H, W]."""
        chunks = (convolution(x).chunk(self.groups, dim=1) for convolution in (self.theta, self.phi, self.g))
        y = torch.cat([self._group(t, p, g) for t, p, g in zip(*chunks, strict=True)], dim=1)
        return self.norm(self.z(y)) + x

    def _group(self, theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
        batch = theta.shape[0]
        theta_rows, phi_rows = theta.reshape(batch, 1, -1), phi.reshape(batch, 1, -1)
        if self.alphas is not None:
            theta_rows = torch.cat([alpha * theta_rows**p for p, alpha in enumerate(self.alphas)], dim=1)
            phi_rows = torch.cat([alpha * phi_rows**p for p, alpha in enumerate(self.alphas)], dim=1)
        sums = torch.bmm(phi_rows, g.reshape(batch, -1, 1))
        return torch.bmm(sums.transpose(1, 2), theta_rows).view_as(theta)
