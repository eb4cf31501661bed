"""Operations over pairs: the non-local operation in its forms, and the exact generalized one.

Legend: B batch, C' inner channels, S spatial or space-time axes, N positions (N_phi of phi and g), G groups,
M = (C'/G)·N elements of one group.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from cgnl.kernel_functions import KernelFunction
from cgnl.ops.eager.series import nothing_of
from cgnl.ops.precision import is_transforming, sum_dtype, without_autocast

# Pairs that a chunk of rows of the exact form may hold: 2^22 float32 numbers are 16 MiB.
MAX_PAIRS_IN_CHUNK = 2**22


def generalized_non_local(
    theta: Tensor, phi: Tensor, g: Tensor, *, groups: int, kernel: KernelFunction, factor: float
) -> Tensor:
    """Run Eq. 8 in chunks of rows of the [M, M] matrix, each made again in the backward pass."""
    dtype = sum_dtype(theta.dtype)
    theta_vec, phi_vec, g_vec = (t.flatten(2).unflatten(1, (groups, -1)).flatten(2).to(dtype) for t in (theta, phi, g))
    if kernel.normalizes_features:
        theta_vec, phi_vec = F.normalize(theta_vec, dim=-1), F.normalize(phi_vec, dim=-1)
    g_vec = g_vec * factor

    def rows_of_y(theta_rows: Tensor, phi_vec: Tensor, g_vec: Tensor) -> Tensor:
        pairs = kernel.exact(theta_rows[..., :, None], phi_vec[..., None, :])
        # also where the function leaves one of its arguments out: its gradient is zero then
        rest = nothing_of(theta_rows[..., None])[..., 0] + nothing_of(phi_vec)
        return (pairs * g_vec[..., None, :]).sum(-1) + rest

    batch, num_groups, elements = theta_vec.shape
    rows_in_chunk = max(1, MAX_PAIRS_IN_CHUNK // max(1, batch * num_groups * elements))
    if rows_in_chunk >= elements:
        y = rows_of_y(theta_vec, phi_vec, g_vec)
    else:
        y = torch.cat(
            [
                checkpoint(rows_of_y, rows, phi_vec, g_vec, use_reentrant=False, preserve_rng_state=False)
                for rows in theta_vec.split(rows_in_chunk, dim=-1)
            ],
            dim=-1,
        )
    return y.reshape(theta.shape)


def non_local(
    theta: Tensor, phi: Tensor, g: Tensor, *, pairwise: str, scale: bool, concat_weight: Tensor | None
) -> Tensor:
    """Run Eq. 1, with the map of all pairs of positions only where that is cheaper."""
    rows, columns, values = (t.flatten(2).transpose(1, 2) for t in (theta, phi, g))
    if pairwise in ("embedded_gaussian", "gaussian"):
        # PyTorch's fast forms have no second derivatives and no forward mode
        with sdpa_kernel(SDPBackend.MATH) if is_transforming() else nullcontext():
            y = F.scaled_dot_product_attention(
                rows[:, None], columns[:, None], values[:, None], scale=None if scale else 1.0
            )[:, 0]
    else:
        dtype = sum_dtype(theta.dtype)
        rows, columns, values = rows.to(dtype), columns.to(dtype), values.to(dtype)
        with without_autocast(theta):
            if pairwise == "concatenation":
                assert concat_weight is not None
                y = _concatenation(rows, columns, values, concat_weight.flatten().to(dtype))
            else:
                # before the sums, which are then smaller
                y = _dot_product(rows, columns / columns.shape[1] if pairwise == "dot_product" else columns, values)
    return y.transpose(1, 2).unflatten(2, theta.shape[2:])


def _dot_product(rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """Return theta phi^T g in the cheaper order.

    Rows are [B, N, C'], columns [B, N_phi, C'], values [B, N_phi, C_g].
    """
    num_rows, features = rows.shape[1:]
    num_columns, num_values = values.shape[1:]
    cost_by_features = (num_rows + num_columns) * features * num_values
    if cost_by_features <= num_rows * num_columns * (features + num_values):
        return rows @ (columns.transpose(1, 2) @ values)
    return (rows @ columns.transpose(1, 2)) @ values


def _concatenation(rows: Tensor, columns: Tensor, values: Tensor, weight: Tensor) -> Tensor:
    """Sum over m of ReLU(a_n + b_m) g_m / N_phi at cost N log N.

    With b in falling order the pairs that pass the ReLU are a prefix, so sums over prefixes of g and of b g
    give every y_n. float64 holds these long sums.
    """
    features = rows.shape[2]
    a, b = (rows @ weight[:features]).double(), (columns @ weight[features:]).double()
    b, order = b.sort(dim=1, descending=True)
    g = values.double().gather(1, order[:, :, None].expand_as(values))
    sums_of_g, sums_of_bg = (F.pad(t.cumsum(1), (0, 0, 1, 0)) for t in (g, b[:, :, None] * g))
    num_passing = torch.searchsorted(-b.detach(), a.detach().contiguous())
    last = num_passing[:, :, None].expand(-1, -1, g.shape[2])
    y = a[:, :, None] * sums_of_g.gather(1, last) + sums_of_bg.gather(1, last)
    return (y / columns.shape[1]).to(values.dtype)
