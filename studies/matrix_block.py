"""The matrix per group, a rival of `cgnl-correlation` that the table `outfits-matrix` of docs/evidence.md tests.

Legend: B batch, C channels, C' inner channels, G groups, c = C' / G, H W spatial axes, N = H W positions.
"""

from typing import Literal

import torch
from torch import Tensor, nn


class _MatrixBlock2d(nn.Module):
    """Z = BatchNorm(conv_z(Y)) + X with Y = M^T theta in each group; conv_z mixes all groups, as in cgnl-correlation.

    M [c, c] holds a statistic of each channel of phi with each of g over the positions, where CGNL has one number for
    the group. Without the centring this is linear attention (Katharopoulos et al., ICML 2020) with the identity as
    feature.

    Args:
        channels: Channels of the input [B, C, H, W].
    """

    statistic: Literal["covariance", "correlation"]

    def __init__(self, channels: int, groups: int = 8) -> None:
        super().__init__()
        self.groups = groups
        inner = channels // 2
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1, bias=False) for _ in range(3))
        self.z = nn.Conv2d(inner, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        for convolution in (self.theta, self.phi, self.g, self.z):
            nn.init.normal_(convolution.weight, std=0.01)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output [B, C, H, W] for x [B, C, H, W]."""
        theta, phi, g = (
            convolution(x).flatten(2).unflatten(1, (self.groups, -1)) for convolution in (self.theta, self.phi, self.g)
        )
        phi, g = (values - values.mean(-1, keepdim=True) for values in (phi, g))
        matrix = phi @ g.transpose(-1, -2)
        if self.statistic == "correlation":
            variances = phi.square().sum(-1)[..., None] * g.square().sum(-1)[..., None, :]
            matrix = matrix / torch.sqrt(variances + 1e-6 * variances.mean((-1, -2), keepdim=True) + 1e-30)
        y = (matrix.transpose(-1, -2) @ theta).flatten(1, 2).unflatten(2, x.shape[2:])
        return x + self.norm(self.z(y))


class CovarianceMatrix2d(_MatrixBlock2d):
    """With sums of products of deviations: the covariances of phi and g times N, as CGNL's sums are."""

    statistic = "covariance"


class CorrelationMatrix2d(_MatrixBlock2d):
    """With the correlations of phi and g."""

    statistic = "correlation"
