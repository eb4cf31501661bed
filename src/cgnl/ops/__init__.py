"""The operations as functions on tensors: non-local, generalized non-local, and its compact form.

Legend: B batch, C channels, C' inner channels, S one to three spatial or space-time axes, N = prod(S)
positions, G groups of consecutive channels, M = (C'/G)·N elements of one group, P order of the series.

Every operation takes theta, phi and g as [B, C', *S], the outputs of the three 1x1 convolutions, and gives
[B, C', *S]. ``backend`` chooses the form that runs: ``"eager"`` (PyTorch at the least cost), ``"fused"`` (Triton
kernels on a CUDA device, of the compact operation alone), ``"naive"`` (explicit matrices, for checking) or ``"auto"``:
fused where that can run and has shown on the device that it does what eager does, else eager.

Source: Yue et al., "Compact Generalized Non-local Network", NeurIPS 2018.
"""

import math
from types import ModuleType
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from cgnl.kernel_functions import KernelFunction, resolve_kernel_function
from cgnl.ops import eager, fused, naive
from cgnl.ops.fused import self_test
from cgnl.ops.parallel import ProcessGroup, count_over_processes

Backend = Literal["auto", "eager", "fused", "naive"]
PairsBackend = Literal["auto", "eager", "naive"]
Scale = Literal["sqrt", "mean"]
Pairwise = Literal["embedded_gaussian", "gaussian", "dot_product", "dot_product_sum", "concatenation"]

# Where "auto" takes the fused form.
AUTO_FUSED_DEVICES = ("cuda",)

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
    process_group: ProcessGroup | None = None,
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
        backend: ``"auto"``, ``"eager"``, ``"fused"`` or ``"naive"``.
        out_dtype: type of the result; None for theta's.
        process_group: processes that each hold a part of the positions of every sample; None where this process
            holds all of them. The sums are then those of the whole input, M counts all its elements, and gradients
            are those of the sum of all processes' losses.

    Returns:
        y: [B, C', *S].

    Raises:
        ValueError: an argument is outside its range, the shapes do not fit, or ``"fused"`` cannot run here.

    Example:
        >>> theta, phi, g = torch.ones(3, 2, 8, 5, 5).unbind()
        >>> compact_generalized_non_local(theta, phi, g, groups=2, kernel="dot")[0, 0, 0, 0]
        tensor(100.)
    """
    _check_features(theta, phi, g, groups)
    kernel = resolve_kernel_function(kernel)
    factor = sums_factor(scale, math.prod(theta.shape[1:]) // groups, theta, process_group)
    is_empty, sizes = eager.is_empty(theta), theta.shape[2:]
    if is_empty:
        theta, phi, g = (_with_zeros(t) for t in (theta, phi, g))
    form = chosen_form(backend, theta, phi, g, kernel=kernel, operation="features")
    out_dtype = out_dtype or theta.dtype
    if form is fused:
        y = fused.compact_generalized_non_local(
            theta,
            phi,
            g,
            groups=groups,
            kernel=kernel,
            factor=factor,
            out_dtype=out_dtype,
            process_group=process_group,
        )
    elif form is naive:
        _refuse_process_group(process_group)
        theta, phi, g = _widened(theta, phi, g)
        y = naive.compact_generalized_non_local(theta, phi, g, groups=groups, kernel=kernel, factor=factor)
    else:
        y = eager.compact_generalized_non_local(
            theta, phi, g, groups=groups, kernel=kernel, factor=factor, process_group=process_group
        )
    if is_empty:
        y = _without_zeros(y, sizes)
    return y.to(out_dtype)


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
    y = _form_of_pairs(backend).generalized_non_local(
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
    backend: PairsBackend = "auto",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Relates all positions with each other (Eq. 1-4).

    ``"embedded_gaussian"`` and ``"gaussian"`` are the softmax of theta_n · phi_m over m; ``"dot_product"`` is
    theta_n · phi_m / N_phi, as Wang et al. have it, and ``"dot_product_sum"`` is theta_n · phi_m, as Eq. 4 is
    printed; ``"concatenation"`` is ReLU(w · [theta_n, phi_m]) / N_phi. The last three never make the map of all
    pairs of positions unless it is the cheaper way. Where gradients are wanted, the softmax forms copy their result,
    because the backward pass needs it as it was.

    Args:
        theta: [B, C', *S].
        phi: [B, C', *S_phi]; S_phi is smaller than S where phi and g were sub-sampled.
        g: [B, C_g, *S_phi].
        pairwise: which of the five functions.
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
    y = read_only_non_local(
        theta,
        phi,
        g,
        pairwise=pairwise,
        scale=scale,
        concat_weight=concat_weight,
        backend=backend,
        out_dtype=out_dtype,
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
    """`non_local` with a result that must not be changed in place: the softmax forms keep it for the backward pass."""
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
    form = _form_of_pairs(backend)
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
    memory_efficient: bool = False,
    process_group: ProcessGroup | None = None,
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
        backend: ``"auto"``, ``"eager"``, ``"fused"`` or ``"naive"``.
        out_dtype: type of the result; None for x's.
        memory_efficient: whether the eager form keeps less for the backward pass (x, theta and phi) and makes the rest
            again. It changes nothing where the dot product takes the Gram form, which keeps x, theta and half of X X^T
            instead. The fused form never keeps more than x, and compilers decide for themselves.
        process_group: as in `compact_generalized_non_local`.

    Returns:
        [B, C, *S].

    Raises:
        ValueError: an argument is outside its range, the shapes do not fit, or ``"fused"`` cannot run here.
    """
    _check_block(x, theta_weight, phi_weight, g_weight, z_weight, groups)
    kernel = resolve_kernel_function(kernel)
    weights = (theta_weight, phi_weight, g_weight, z_weight)
    elements = theta_weight.shape[0] // groups * math.prod(x.shape[2:])
    factor = sums_factor(scale, elements, x, process_group)
    is_empty, sizes = eager.is_empty(x), x.shape[2:]
    if is_empty:
        x = _with_zeros(x)
    form = chosen_form(backend, x, *weights, kernel=kernel)
    out_dtype = out_dtype or x.dtype
    if form is fused:
        x, theta_weight, phi_weight, g_weight, z_weight = eager.in_feature_dtype(x, *weights)
        with eager.without_autocast(x):
            y = fused.cgnl_block(
                x,
                theta_weight,
                phi_weight,
                g_weight,
                z_weight,
                groups=groups,
                kernel=kernel,
                factor=factor,
                out_dtype=out_dtype,
                process_group=process_group,
            )
    elif form is naive:
        _refuse_process_group(process_group)
        x, theta_weight, phi_weight, g_weight, z_weight = _widened(x, *weights)
        y = naive.cgnl_block(
            x, theta_weight, phi_weight, g_weight, z_weight, groups=groups, kernel=kernel, factor=factor
        )
    else:
        y = eager.cgnl_block(
            x,
            *weights,
            groups=groups,
            kernel=kernel,
            factor=factor,
            memory_efficient=memory_efficient,
            process_group=process_group,
        )
    if is_empty:
        y = _without_zeros(y, sizes)
    return y.to(out_dtype)


def chosen_form(
    backend: str, *tensors: Tensor, kernel: KernelFunction, operation: self_test.Operation = "branch"
) -> ModuleType:
    """The module whose form of the compact operation a ``backend`` argument means for these tensors.

    Args:
        backend: ``"auto"``, ``"eager"``, ``"fused"`` or ``"naive"``; ``"auto"`` takes the fused form on a device of
            `AUTO_FUSED_DEVICES`, where it can run and has passed its self-test.
        tensors: the operation's inputs: theta, phi and g, or x and the four weights.
        kernel: the kernel function.
        operation: ``"features"``: y from theta, phi and g; ``"branch"``: conv_z's output from x; ``"affine"`` or
            ``"batch_norm"``: the block with fixed statistics or with those of the batch.

    Returns:
        `cgnl.ops.eager`, `cgnl.ops.fused` or `cgnl.ops.naive`.

    Raises:
        ValueError: the name is unknown, or ``"fused"`` cannot run on these tensors.
    """
    _check_backend(backend, get_args(Backend))
    if backend == "naive":
        return naive
    on_trial = backend == "auto"
    if backend == "eager" or (on_trial and (tensors[0].device.type not in AUTO_FUSED_DEVICES or eager.is_exporting())):
        return eager
    dtype = eager.feature_dtype(tensors[0])
    obstacle = fused.obstacle(*tensors, kernel=kernel, dtype=dtype)
    if obstacle is None and (not on_trial or self_test.passes(operation, *tensors, kernel=kernel, dtype=dtype)):
        return fused
    if backend == "fused":
        raise ValueError(f"backend 'fused' cannot run here: {obstacle}; take backend='auto' or 'eager'")
    return eager


def _form_of_pairs(backend: str) -> ModuleType:
    _check_backend(backend, get_args(PairsBackend))
    return naive if backend == "naive" else eager


def _check_backend(backend: str, choices: tuple[str, ...]) -> None:
    if backend not in choices:
        raise ValueError(f"backend ({backend!r}) must be one of {', '.join(map(repr, choices))}")


def _for_backend(backend: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    return _widened(*tensors) if backend == "naive" else tensors


def _widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The naive form knows nothing of half types: it gets float32."""
    return tuple(tensor.to(eager.sum_dtype(tensor.dtype)) for tensor in tensors)


def _with_zeros(features: Tensor) -> Tensor:
    """An empty map, padded with zeros to one position along each empty axis.

    They add nothing to the sums, and their process takes part in all exchanges, as the others expect.
    """
    return F.pad(features, [count for size in reversed(features.shape[2:]) for count in (0, int(size == 0))])


def _without_zeros(y: Tensor, sizes: torch.Size) -> Tensor:
    """The result at the positions that were there before `_with_zeros`."""
    for axis, size in enumerate(sizes, start=2):
        y = y.narrow(axis, 0, size)
    return y


def _refuse_process_group(process_group: ProcessGroup | None) -> None:
    if process_group is not None:
        raise ValueError("backend 'naive' knows no process_group; take backend='auto' or 'eager'")


def sums_factor(
    scale: Scale | None, elements: int, features: Tensor, process_group: ProcessGroup | None = None
) -> float:
    """The factor on the sums of an input that may be split over processes.

    Args:
        scale: as in `scale_factor`.
        elements: the elements of one group that this process holds.
        features: this process's part of the input, [B, ...].
        process_group: the processes, or None.

    Returns:
        What `scale_factor` gives for the elements of all processes.

    Raises:
        ValueError: the processes hold different numbers of samples, or the name is unknown.
    """
    # also without a scale: what the processes exchange has to fit; a compiler is spared the check
    if process_group is not None and (scale is not None or not torch.compiler.is_compiling()):
        elements = count_over_processes(elements, features, process_group)
    return scale_factor(scale, elements)


def scale_factor(scale: Scale | None, elements: int) -> float:
    """The factor on the sums that a ``scale`` argument means.

    Args:
        scale: None, ``"sqrt"`` or ``"mean"``.
        elements: M, the number of elements of one group.

    Returns:
        1, 1 / sqrt(M) or 1 / M; 1 where there are no elements, whose sums are zero.

    Raises:
        ValueError: the name is unknown.
    """
    if scale is None:
        return 1.0
    if scale not in get_args(Scale):
        raise ValueError(f"scale ({scale!r}) must be None, {' or '.join(map(repr, get_args(Scale)))}")
    # counts are tensors in a trace, whose powers would be in float32; of no elements every sum is zero
    count: Any = elements.double() if isinstance(elements, Tensor) else torch.sym_max(elements, 1)
    return count**-0.5 if scale == "sqrt" else 1.0 / count


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
