"""The operations as functions on tensors: non-local, generalized non-local, and its compact form.

Legend: B batch, C channels, C' inner channels, S one to three spatial or space-time axes, N = prod(S)
positions, G groups of consecutive channels, M = (C'/G)·N elements of one group, P order of the series.

Every operation takes theta, phi and g as [B, C', *S], the outputs of the three 1x1 convolutions, and gives
[B, C', *S]. ``backend`` chooses the form that runs: ``"eager"`` (PyTorch at the least cost), ``"naive"``
(explicit matrices, for checking) or ``"auto"``.

Source: Yue et al., "Compact Generalized Non-local Network", NeurIPS 2018.
"""

import math
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

from cgnl.kernel_functions import KernelFunction, resolve_kernel_function
from cgnl.ops import eager, naive

Backend = Literal["auto", "eager", "naive"]
Scale = Literal["sqrt", "mean"]
Pairwise = Literal["embedded_gaussian", "gaussian", "dot_product", "concatenation"]

__all__ = ["cgnl_block", "compact_generalized_non_local", "generalized_non_local", "non_local"]


def compact_generalized_non_local(
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    *,
    groups: int,
    kernel: str | KernelFunction,
    scale: Scale | None = None,
    backend: Backend = "auto",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Relates all elements of a group with each other through a series, at linear cost (Eq. 9-12).

    y_i = sum over p of z_p theta_i^p with z_p = a2_p · sum over j of phi_j^p g_j: P + 1 numbers for each sample and
    group. Sums run in float32 at least.

    Args:
        theta: [B, C', *S].
        phi: [B, C', *S].
        g: [B, C', *S].
        groups: G, must divide C'.
        kernel: ``"dot"``, ``"embedded_gaussian"``, ``"rbf"`` or a kernel function.
        scale: factor on the sums: None (1, the paper's), ``"sqrt"`` (1 / sqrt(M)) or ``"mean"`` (1 / M).
        backend: ``"auto"``, ``"eager"`` or ``"naive"``.
        out_dtype: type of the result; None for theta's.

    Returns:
        y: [B, C', *S].

    Raises:
        ValueError: an argument is outside its range, or the shapes do not fit.

    Example:
        >>> theta, phi, g = torch.ones(3, 2, 8, 5, 5).unbind()
        >>> compact_generalized_non_local(theta, phi, g, groups=2, kernel="dot")[0, 0, 0, 0]
        tensor(100.)
    """
    _check_features(theta, phi, g, groups)
    y = _form(backend).compact_generalized_non_local(
        *_for_backend(backend, theta, phi, g),
        groups=groups,
        kernel=resolve_kernel_function(kernel),
        factor=scale_factor(scale, math.prod(theta.shape[1:]) // groups),
    )
    return y.to(out_dtype or theta.dtype)


def generalized_non_local(
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    *,
    groups: int,
    kernel: str | KernelFunction,
    scale: Scale | None = None,
    backend: Backend = "auto",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Relates all elements of a group with each other through the exact kernel function (Eq. 7-8).

    Time grows with M^2. Memory does not: rows of the [M, M] matrix are made, used and dropped in chunks, in
    the backward pass too.

    Args:
        theta: [B, C', *S].
        phi: [B, C', *S].
        g: [B, C', *S].
        groups: G, must divide C'.
        kernel: ``"dot"``, ``"embedded_gaussian"``, ``"rbf"`` or a kernel function, whose exact form is taken.
        scale: as in `compact_generalized_non_local`.
        backend: ``"auto"``, ``"eager"`` or ``"naive"``.
        out_dtype: type of the result; None for theta's.

    Returns:
        y: [B, C', *S].

    Raises:
        ValueError: an argument is outside its range, or the shapes do not fit.
    """
    _check_features(theta, phi, g, groups)
    y = _form(backend).generalized_non_local(
        *_for_backend(backend, theta, phi, g),
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
    backend: Backend = "auto",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Relates all positions with each other (Eq. 1-4).

    ``"embedded_gaussian"`` and ``"gaussian"`` are the softmax of theta_n · phi_m over m; ``"dot_product"`` is
    theta_n · phi_m / N_phi; ``"concatenation"`` is ReLU(w · [theta_n, phi_m]) / N_phi. The last two never
    make the map of all pairs of positions unless it is the cheaper way.

    Args:
        theta: [B, C', *S].
        phi: [B, C', *S_phi]; S_phi is smaller than S where phi and g were sub-sampled.
        g: [B, C_g, *S_phi].
        pairwise: which of the four functions.
        scale: whether softmax forms divide theta_n · phi_m by sqrt(C').
        concat_weight: w of ``"concatenation"``, 2·C' numbers in any shape; theta's come first.
        backend: ``"auto"``, ``"eager"`` or ``"naive"``.
        out_dtype: type of the result; None for theta's.

    Returns:
        y: [B, C_g, *S].

    Raises:
        ValueError: an argument is outside its range, or the shapes do not fit.

    Source: Wang et al., "Non-local Neural Networks", CVPR 2018.
    """
    if pairwise not in get_args(Pairwise):
        raise ValueError(f"pairwise ({pairwise!r}) must be one of {', '.join(map(repr, get_args(Pairwise)))}")
    _check_num_axes("theta", theta)
    if phi.shape[:2] != theta.shape[:2] or phi.dim() != theta.dim():
        raise ValueError(f"phi {_shape(phi)} must have theta's batch, channels and number of axes {_shape(theta)}")
    if (g.shape[0], *g.shape[2:]) != (phi.shape[0], *phi.shape[2:]):
        raise ValueError(f"g {_shape(g)} must have phi's batch and positions {_shape(phi)}")
    if (concat_weight is not None) != (pairwise == "concatenation"):
        needed = "is needed by" if pairwise == "concatenation" else "has no meaning for"
        raise ValueError(f"concat_weight {needed} pairwise {pairwise!r}")
    if concat_weight is not None and concat_weight.numel() != 2 * theta.shape[1]:
        raise ValueError(
            f"concat_weight has {concat_weight.numel()} numbers, but must have "
            f"twice theta's channels ({2 * theta.shape[1]})"
        )
    form = _form(backend)
    theta_, phi_, g_ = _for_backend(backend, theta, phi, g)
    y = form.non_local(theta_, phi_, g_, pairwise=pairwise, scale=scale, concat_weight=concat_weight)
    return y.to(out_dtype or theta.dtype)


def cgnl_block(
    x: Tensor,
    theta_weight: Tensor,
    phi_weight: Tensor,
    g_weight: Tensor,
    z_weight: Tensor,
    *,
    groups: int,
    kernel: str | KernelFunction,
    scale: Scale | None = None,
    backend: Backend = "auto",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The CGNL block from x to conv_z's output, without norm and residual (Fig. 2).

    Under autocast, and for half-precision x, theta, phi and g are in the half type and everything after them
    is in float32 until the result is cast.

    Args:
        x: [B, C, *S].
        theta_weight: [C', C, 1, ...], as `torch.nn.Conv2d` holds it.
        phi_weight: [C', C, 1, ...].
        g_weight: [C', C, 1, ...].
        z_weight: [C, C'/G, 1, ...]: a convolution with G groups.
        groups: G, must divide C' and C.
        kernel: ``"dot"``, ``"embedded_gaussian"``, ``"rbf"`` or a kernel function.
        scale: as in `compact_generalized_non_local`.
        backend: ``"auto"``, ``"eager"`` or ``"naive"``.
        out_dtype: type of the result; None for x's.

    Returns:
        [B, C, *S].

    Raises:
        ValueError: an argument is outside its range, or the shapes do not fit.
    """
    _check_block(x, theta_weight, phi_weight, g_weight, z_weight, groups)
    y = _form(backend).cgnl_block(
        *_for_backend(backend, x, theta_weight, phi_weight, g_weight, z_weight),
        groups=groups,
        kernel=resolve_kernel_function(kernel),
        factor=scale_factor(scale, theta_weight.shape[0] // groups * math.prod(x.shape[2:])),
    )
    return y.to(out_dtype or x.dtype)


def _form(backend: str) -> ModuleType:
    if backend not in get_args(Backend):
        raise ValueError(f"backend ({backend!r}) must be one of {', '.join(map(repr, get_args(Backend)))}")
    return naive if backend == "naive" else eager


def _for_backend(backend: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The naive form knows nothing of half types: it gets float32."""
    if backend != "naive":
        return tensors
    return tuple(tensor.to(eager.sum_dtype(tensor.dtype)) for tensor in tensors)


def scale_factor(scale: Scale | None, elements: int) -> float:
    """The factor on the sums that a ``scale`` argument means.

    Args:
        scale: None, ``"sqrt"`` or ``"mean"``.
        elements: M, the number of elements of one group.

    Returns:
        1, 1 / sqrt(M) or 1 / M.

    Raises:
        ValueError: the name is unknown.
    """
    if scale is None:
        return 1.0
    if scale not in get_args(Scale):
        raise ValueError(f"scale ({scale!r}) must be None, {' or '.join(map(repr, get_args(Scale)))}")
    return elements**-0.5 if scale == "sqrt" else 1.0 / elements


def _check_features(theta: Tensor, phi: Tensor, g: Tensor, groups: int) -> None:
    _check_num_axes("theta", theta)
    for name, tensor in (("phi", phi), ("g", g)):
        if tensor.shape != theta.shape:
            raise ValueError(f"{name} {_shape(tensor)} must have theta's shape {_shape(theta)}")
    _check_groups("channels", theta.shape[1], groups)


def _check_block(
    x: Tensor, theta_weight: Tensor, phi_weight: Tensor, g_weight: Tensor, z_weight: Tensor, groups: int
) -> None:
    _check_num_axes("x", x)
    inner = theta_weight.shape[0]
    _check_groups("inner channels", inner, groups)
    _check_groups("channels", x.shape[1], groups)
    ones = (1,) * (x.dim() - 2)
    for name, weight, expected in (
        ("theta_weight", theta_weight, (inner, x.shape[1], *ones)),
        ("phi_weight", phi_weight, (inner, x.shape[1], *ones)),
        ("g_weight", g_weight, (inner, x.shape[1], *ones)),
        ("z_weight", z_weight, (x.shape[1], inner // groups, *ones)),
    ):
        if weight.shape != expected:
            raise ValueError(f"{name} {_shape(weight)} must have shape {expected} for x {_shape(x)}")
        if weight.dtype != x.dtype and not eager.autocast_is_on(x):
            raise ValueError(f"x is {x.dtype}, but {name} is {weight.dtype}")


def _check_num_axes(name: str, tensor: Tensor) -> None:
    if not 3 <= tensor.dim() <= 5:
        raise ValueError(f"{name} {_shape(tensor)} must be [batch, channels, 1 to 3 spatial or space-time axes]")


def _check_groups(name: str, channels: int, groups: int) -> None:
    if groups < 1 or channels % groups:
        raise ValueError(f"{name} ({channels}) must be divisible by groups ({groups})")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
