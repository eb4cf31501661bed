"""The operations with explicit matrices, as the equations are written: ground truth for tests.

Every pair has its own entry here, so memory grows with the square of the input. No network runs this.

Legend: B batch, C' inner channels, S spatial or space-time axes, N positions, G groups, M = (C'/G)·N elements
of one group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cgnl.kernel_functions import KernelFunction
from cgnl.ops.statistics import EPS, Statistic


def compact_generalized_non_local(
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    *,
    groups: int,
    kernel: KernelFunction,
    factor: float,
    statistic: Statistic = "sum",
) -> Tensor:
    """Run Eq. 9 and 12 with the series' [M, M] matrix. Arguments as in `cgnl.ops`; ``factor`` is the scale."""
    theta_vec, phi_vec, g_vec = _prepared_vectors(theta, phi, g, groups, kernel)
    if statistic != "sum":
        # around their means, and for a correlation divided by their lengths (with a share of the uncentred ones)
        vectors = [(v - v.mean(-1, keepdim=True), v) for v in (phi_vec, g_vec)]
        lengths = [((v.square() + EPS * whole.square()).sum(-1, keepdim=True)).sqrt() for v, whole in vectors]
        phi_vec, g_vec = (
            v / length.clamp_min(torch.finfo(v.dtype).tiny) if statistic == "correlation" else v
            for (v, _), length in zip(vectors, lengths, strict=True)
        )
    products = theta_vec[..., :, None] * phi_vec[..., None, :]
    pairs = torch.zeros_like(products)
    for p, a2 in enumerate(kernel.coefficients):
        pairs = pairs + a2 * products**p
    theta_envelope, phi_envelope = kernel.envelope(theta_vec), kernel.envelope(phi_vec)
    if theta_envelope is not None and phi_envelope is not None:
        pairs = theta_envelope[..., :, None] * pairs * phi_envelope[..., None, :]
    return _apply(pairs * factor, g_vec, like=theta)


def generalized_non_local(
    theta: Tensor, phi: Tensor, g: Tensor, *, groups: int, kernel: KernelFunction, factor: float
) -> Tensor:
    """Run Eq. 8 with the [M, M] matrix of the exact kernel function."""
    theta_vec, phi_vec, g_vec = _prepared_vectors(theta, phi, g, groups, kernel)
    return _apply(kernel.exact(theta_vec[..., :, None], phi_vec[..., None, :]) * factor, g_vec, like=theta)


def non_local(
    theta: Tensor, phi: Tensor, g: Tensor, *, pairwise: str, scale: bool, concat_weight: Tensor | None
) -> Tensor:
    """Run Eq. 1 with the [N, N_phi] matrix of all pairs of positions."""
    rows, columns, values = (t.flatten(2).transpose(1, 2) for t in (theta, phi, g))
    if pairwise == "concatenation":
        assert concat_weight is not None
        pairs = torch.cat(
            [
                rows[:, :, None, :].expand(-1, -1, columns.shape[1], -1),
                columns[:, None, :, :].expand(-1, rows.shape[1], -1, -1),
            ],
            dim=-1,
        )
        affinity = F.relu(pairs @ concat_weight.flatten()) / columns.shape[1]
    else:
        affinity = rows @ columns.transpose(1, 2)
        if pairwise == "dot_product":
            affinity = affinity / columns.shape[1]
        elif pairwise != "dot_product_sum":
            affinity = torch.softmax(affinity / rows.shape[2] ** 0.5 if scale else affinity, dim=-1)
    return (affinity @ values).transpose(1, 2).unflatten(2, theta.shape[2:])


def cgnl_block(
    x: Tensor,
    theta_weight: Tensor,
    phi_weight: Tensor,
    g_weight: Tensor,
    z_weight: Tensor,
    *,
    groups: int,
    kernel: KernelFunction,
    factor: float,
    statistic: Statistic = "sum",
) -> Tensor:
    """Run Fig. 2 from x to conv_z's output, one matrix product a group."""
    positions = x.flatten(2)
    theta, phi, g = (weight.flatten(1) @ positions for weight in (theta_weight, phi_weight, g_weight))
    y = compact_generalized_non_local(theta, phi, g, groups=groups, kernel=kernel, factor=factor, statistic=statistic)
    z_groups = theta.shape[1] // z_weight.shape[1]
    weights = z_weight.flatten(1).chunk(z_groups)
    out = [weight @ part for weight, part in zip(weights, y.chunk(z_groups, dim=1), strict=True)]
    return torch.cat(out, dim=1).unflatten(2, x.shape[2:])


def _prepared_vectors(
    theta: Tensor, phi: Tensor, g: Tensor, groups: int, kernel: KernelFunction
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the [B, G, M] vectors of Eq. 7."""
    theta, phi, g = (t.flatten(2).unflatten(1, (groups, -1)).flatten(2) for t in (theta, phi, g))
    if kernel.normalizes_features:
        theta, phi = F.normalize(theta, dim=-1), F.normalize(phi, dim=-1)
    return theta, phi, g


def _apply(pairs: Tensor, g_vec: Tensor, like: Tensor) -> Tensor:
    return (pairs @ g_vec[..., None]).squeeze(-1).reshape(like.shape)
