"""The operations over pairs: the non-local one, and the exact generalized one.

Legend: B batch, C' inner channels, S one to three spatial or space-time axes, N = prod(S) positions, G groups,
M = (C'/G)·N elements of one group.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from cgnl.kernel_functions import KernelFunction, resolve_kernel_function
from cgnl.ops import naive
from cgnl.ops.backends import PairsBackend, chosen_form_of_pairs
from cgnl.ops.precision import in_sum_dtype
from cgnl.ops.scale import Scale, scale_factor
from cgnl.ops.shapes import check_features, check_num_axes, shape_of
from cgnl.settings.checks import check_choice

Pairwise = Literal["embedded_gaussian", "gaussian", "dot_product", "dot_product_sum", "concatenation"]


def generalized_non_local(
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    *,
    groups: int,
    kernel: str | KernelFunction,
    scale: Scale | None = None,
    backend: PairsBackend = "auto",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Relate all elements of a group with each other through the exact kernel function (Eq. 7-8).

    Arguments, result and errors are those of `compact_generalized_non_local`; the backend is ``"auto"``, ``"eager"`` or
    ``"naive"``. Time grows with M^2. Memory does not: rows of the [M, M] matrix are made, used and dropped in chunks,
    in the backward pass too.
    """
    check_features(theta, phi, g, groups)
    form = chosen_form_of_pairs(backend)
    y = form.generalized_non_local(
        *(in_sum_dtype(theta, phi, g) if form is naive else (theta, phi, g)),
        groups=groups,
        kernel=resolve_kernel_function(kernel),
        factor=scale_factor(scale, math.prod(theta.shape[1:]) // groups),
    )
    return y.to(out_dtype or theta.dtype)


def non_local(
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    *,
    pairwise: Pairwise,
    scale: bool = True,
    concat_weight: Tensor | None = None,
    backend: PairsBackend = "auto",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Relate all positions with each other (Eq. 1-4).

    ``"embedded_gaussian"`` and ``"gaussian"`` are the softmax of theta_n · phi_m over m; ``"dot_product"`` is
    theta_n · phi_m / N_phi, as Wang et al. have it, and ``"dot_product_sum"`` is theta_n · phi_m, as Eq. 4 is
    printed; ``"concatenation"`` is ReLU(w · [theta_n, phi_m]) / N_phi. The last three never make the map of all
    pairs of positions unless that is cheaper. Where gradients are wanted, the softmax forms copy their result,
    because the backward pass needs it as it was.

    Args:
        theta: [B, C', *S].
        phi: [B, C', *S_phi]; S_phi is smaller than S where phi and g were sub-sampled.
        g: [B, C_g, *S_phi].
        pairwise: One of the five functions.
        scale: Whether softmax forms divide theta_n · phi_m by sqrt(C').
        concat_weight: w of ``"concatenation"``, 2·C' numbers in any shape; theta's come first.
        backend: ``"auto"``, ``"eager"`` or ``"naive"``.
        out_dtype: Type of the result; None for theta's.

    Returns:
        y: [B, C_g, *S].

    Raises:
        ValueError: An argument is outside its range, or the shapes do not fit.

    Source: Wang et al., "Non-local Neural Networks", CVPR 2018.
    """
    y = read_only_non_local(
        theta, phi, g, pairwise=pairwise, scale=scale, concat_weight=concat_weight, backend=backend, out_dtype=out_dtype
    )
    is_kept = pairwise in ("embedded_gaussian", "gaussian") and backend != "naive" and y.requires_grad
    return y.clone() if is_kept else y


def read_only_non_local(
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    *,
    pairwise: Pairwise,
    scale: bool = True,
    concat_weight: Tensor | None = None,
    backend: PairsBackend = "auto",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Do as `non_local`, without the copy: the result must not be changed in place."""
    _check_non_local(theta, phi, g, pairwise, concat_weight)
    form = chosen_form_of_pairs(backend)
    y = form.non_local(
        *(in_sum_dtype(theta, phi, g) if form is naive else (theta, phi, g)),
        pairwise=pairwise,
        scale=scale,
        concat_weight=concat_weight,
    )
    return y.to(out_dtype or theta.dtype)


def _check_non_local(theta: Tensor, phi: Tensor, g: Tensor, pairwise: str, concat_weight: Tensor | None) -> None:
    check_choice("pairwise", pairwise, get_args(Pairwise))
    check_num_axes("theta", theta)
    if phi.shape[:2] != theta.shape[:2] or phi.dim() != theta.dim():
        raise ValueError(f"phi {shape_of(phi)} must have theta's batch, channels and number of axes {shape_of(theta)}")
    if (g.shape[0], *g.shape[2:]) != (phi.shape[0], *phi.shape[2:]):
        raise ValueError(f"g {shape_of(g)} must have phi's batch and positions {shape_of(phi)}")
    if (concat_weight is not None) != (pairwise == "concatenation"):
        needed = "is needed by" if pairwise == "concatenation" else "has no meaning for"
        raise ValueError(f"concat_weight {needed} pairwise {pairwise!r}")
    if concat_weight is not None and concat_weight.numel() != 2 * theta.shape[1]:
        raise ValueError(
            f"concat_weight has {concat_weight.numel()} numbers, but must have "
            f"twice theta's channels ({2 * theta.shape[1]})"
        )
