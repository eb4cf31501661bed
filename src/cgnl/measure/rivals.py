"""What the CGNL block is measured against, each written from its paper and sharing no code with the package.

Legend: B batch, C channels, C' = C / 2 inner channels, S one to three spatial or space-time axes, N positions,
G groups, M = (C'/G)·N elements of one group, P order of the series.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

NonLocalForm = Literal["attention", "map", "dot_product"]


class BareConvolutions(nn.Module):
    """The CGNL block's four convolutions, the fourth with G groups, and nothing else."""

    def __init__(self, channels: int, num_axes: int, *, groups: int) -> None:
        super().__init__()
        convolution, inner = _CONVOLUTIONS[num_axes], channels // 2
        self.three = nn.ModuleList(convolution(channels, inner, 1, bias=False) for _ in range(3))
        self.z = convolution(inner, channels, 1, groups=groups, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the fourth convolution of the first one's output, and the outputs of the other two; x: [B, C, *S]."""
        theta, phi, g = (convolution(x) for convolution in self.three)
        return self.z(theta), phi, g


class PublishedCGNL(nn.Module):
    """The CGNL block as the published formulation computes it, with BatchNorm: Eq. 11-13 and Fig. 2 literally.

    Three separate convolutions, a loop over groups, batched products of a 1 x M row and an M x 1 column, and for the
    RBF kernel function of ``order`` P (None for the dot product) the powers of theta and phi stacked to [P + 1, M] (Eq.
    11).

    Source: Yue et al., "Compact Generalized Non-local Network", NeurIPS 2018.
    """

    def __init__(
        self, channels: int, num_axes: int = 2, *, groups: int, order: int | None = None, gamma: float = 1e-4
    ) -> None:
        super().__init__()
        convolution, inner = _CONVOLUTIONS[num_axes], channels // 2
        self.groups = groups
        self.alphas: list[float] | None = None
        if order is not None:
            beta = math.exp(-2 * gamma)
            self.alphas = [math.sqrt(beta * (2 * gamma) ** p / math.factorial(p)) for p in range(order + 1)]
        self.theta = convolution(channels, inner, 1, bias=False)
        self.phi = convolution(channels, inner, 1, bias=False)
        self.g = convolution(channels, inner, 1, bias=False)
        self.z = convolution(inner, channels, 1, groups=groups, bias=False)
        self.norm = _BATCH_NORMS[num_axes](channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return Z of x, [B, C, *S]."""
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


class NonLocal(nn.Module):
    """The non-local block with BatchNorm.

    ``form`` says how y is computed. ``"attention"``: softmax(theta_n · phi_m / sqrt(C')) over m, through PyTorch's
    fused attention on contiguous [B, 1, N, C'], which never stores the N x N map. ``"map"``: the same with the map, as
    Eq. 2 of Wang et al. is printed. ``"dot_product"``: theta_n · phi_m / N as theta (phi^T g), the order that is
    cheaper where N is larger than C'.

    Source: Wang et al., "Non-local Neural Networks", CVPR 2018.
    """

    def __init__(self, channels: int, num_axes: int = 2, *, form: NonLocalForm) -> None:
        super().__init__()
        convolution, inner = _CONVOLUTIONS[num_axes], channels // 2
        self.form = form
        self.theta = convolution(channels, inner, 1, bias=False)
        self.phi = convolution(channels, inner, 1, bias=False)
        self.g = convolution(channels, inner, 1, bias=False)
        self.z = convolution(inner, channels, 1, bias=False)
        self.norm = _BATCH_NORMS[num_axes](channels)

    def _rows(self, x: Tensor) -> list[Tensor]:
        """Return theta, phi and g as contiguous [B, 1, N, C'], the only order that fused attention takes."""
        maps = (convolution(x) for convolution in (self.theta, self.phi, self.g))
        return [t.flatten(2).transpose(1, 2).contiguous()[:, None] for t in maps]

    def forward(self, x: Tensor) -> Tensor:
        """Return Z of x, [B, C, *S]."""
        theta, phi, g = self._rows(x)
        if self.form == "attention":
            y = F.scaled_dot_product_attention(theta, phi, g)
        elif self.form == "map":
            y = torch.softmax(theta @ phi.transpose(2, 3) / theta.shape[3] ** 0.5, dim=-1) @ g
        else:
            y = theta @ (phi.transpose(2, 3) @ g / theta.shape[2])
        y = y[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])
        return self.norm(self.z(y)) + x

    def attention_in_use(self, x: Tensor) -> str:
        """Return the name of the attention that PyTorch chooses for x, such as FLASH_ATTENTION."""
        theta, phi, g = self._rows(x)
        return SDPBackend(torch._fused_sdp_choice(theta, phi, g)).name
