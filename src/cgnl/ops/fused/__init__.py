"""The compact generalized non-local operation and the CGNL block as Triton kernels behind PyTorch operators.

Forward reads x twice: pass one makes phi and g tile by tile and sums their products, pass two makes theta, applies
the polynomial and multiplies by conv_z. Backward makes the tiles again from x. Only x, the weights and P + 1 numbers
for each sample and group are kept for it.

Features are multiplied in the type of x and the weights; products, sums, powers and y are in float32. Importing this
does not import triton.

Legend: B batch, C channels, C' inner channels, S one to three spatial or space-time axes, N positions, G groups,
P order of the series.
"""

import math
import os
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cgnl.kernel_functions import GaussianRBF, KernelFunction
from cgnl.ops.eager.series import scaled_coefficients
from cgnl.ops.fused.branches import branch, branch_batch_norm
from cgnl.ops.fused.polynomials import polynomial
from cgnl.ops.fused.series import Series, powers_of
from cgnl.ops.fused.sums import feature_sums, power_sums
from cgnl.ops.parallel import sum_over_processes

HIGHEST_ORDER = 5
LEAST_CAPABILITY = (8, 0)

__all__ = [
    "cgnl_block",
    "cgnl_block_affine",
    "cgnl_block_batch_norm",
    "compact_generalized_non_local",
    "envelope_width",
    "obstacle",
]


def obstacle(*tensors: Tensor, kernel: KernelFunction, dtype: torch.dtype | None = None) -> str | None:
    """Why the fused form cannot run on these tensors.

    Args:
        tensors: the inputs of the operation.
        kernel: the kernel function.
        dtype: the type in which the operation gets them; None for their own.

    Returns:
        A clause, or None where it can run.

    Example:
        >>> from cgnl import DotProduct
        >>> obstacle(torch.ones(1, 8, 5, dtype=torch.float64), kernel=DotProduct())
        'it has no float64'
    """
    return (
        _obstacle_in_types(tensors, dtype)
        or _obstacle_in_devices({tensor.device for tensor in tensors})
        or _obstacle_in_kernel_function(kernel)
    )


def _obstacle_in_types(tensors: tuple[Tensor, ...], dtype: torch.dtype | None) -> str | None:
    for tensor in tensors:
        own = dtype or tensor.dtype
        if own not in (torch.float32, torch.float16, torch.bfloat16):
            return f"it has no {str(own).removeprefix('torch.')}"
        if tensor.numel() == 0:
            return "it takes no empty tensors"
    if torch.compiler.is_compiling():
        return None  # what follows cannot be traced, and does not occur in a trace
    if torch.jit.is_tracing():
        return "torch.jit cannot trace it"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "function transforms and forward-mode derivatives do not reach into it"
    for tensor in tensors:
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            return f"it takes plain tensors, not {type(tensor).__name__}"
    return None


def _obstacle_in_devices(devices: set[torch.device]) -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed"
    # triton's interpreter runs kernels on any device: for tests
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    for device in devices:
        if device.type != "cuda":
            if not interpreted:
                return f"it needs a CUDA device, and the tensors are on {device.type}"
        elif (capability := _compute_capability(device)) < LEAST_CAPABILITY:
            return f"it needs compute capability 8.0, and the device has {capability[0]}.{capability[1]}"
    return None


@torch.compiler.assume_constant_result
def _compute_capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _obstacle_in_kernel_function(kernel: KernelFunction) -> str | None:
    order = len(scaled_coefficients(kernel, 1.0)) - 1
    if order > HIGHEST_ORDER:
        return f"the series has order {order}, above {HIGHEST_ORDER}"
    if envelope_width(kernel) == 0 and kernel.envelope(torch.zeros(())) is not None:
        return f"{type(kernel).__name__} has an envelope of its own"
    if kernel.normalizes_features:
        return f"{type(kernel).__name__} normalizes its features"
    return None


def envelope_width(kernel: KernelFunction) -> float:
    """Gamma of the envelope exp(-gamma t^2) that the kernels know; 0 for none."""
    if isinstance(kernel, GaussianRBF) and type(kernel).envelope is GaussianRBF.envelope and kernel.beta != "constant":
        return kernel.gamma
    return 0.0


def compact_generalized_non_local(
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    *,
    groups: int,
    kernel: KernelFunction,
    factor: float,
    out_dtype: torch.dtype,
    process_group: Any = None,
) -> Tensor:
    """Eq. 12 on given features.

    Args:
        theta: [B, C', *S].
        phi: [B, C', *S].
        g: [B, C', *S].
        groups: G.
        kernel: the kernel function.
        factor: the scale of the sums.
        out_dtype: type of the result.
        process_group: processes that each hold a part of every sample's positions; ``factor`` counts all of them.

    Returns:
        y: [B, C', *S].
    """
    coefficients = scaled_coefficients(kernel, factor)
    sums = feature_sums(phi, g, groups, coefficients, envelope_width(kernel))
    if process_group is not None:
        sums = sum_over_processes(sums, process_group)
    return polynomial(theta, sums, powers_of(coefficients), envelope_width(kernel), out_dtype)


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
    out_dtype: torch.dtype,
    process_group: Any = None,
) -> Tensor:
    """Fig. 2 from x to conv_z's output.

    Args:
        x: [B, C, *S].
        theta_weight: [C', C, 1, ...], in x's type, as all weights.
        phi_weight: [C', C, 1, ...].
        g_weight: [C', C, 1, ...].
        z_weight: [C, C'/G, 1, ...].
        groups: G.
        kernel: the kernel function.
        factor: the scale of the sums.
        out_dtype: type of the result.
        process_group: processes that each hold a part of every sample's positions; ``factor`` counts all of them.

    Returns:
        [B, C, *S].
    """
    sums = _block_sums(x, phi_weight, g_weight, groups, kernel, factor, process_group)
    powers = powers_of(scaled_coefficients(kernel, factor))
    return branch(x, theta_weight, z_weight, sums, None, None, powers, envelope_width(kernel), out_dtype)


def cgnl_block_affine(
    x: Tensor,
    theta_weight: Tensor,
    phi_weight: Tensor,
    g_weight: Tensor,
    z_weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    groups: int,
    kernel: KernelFunction,
    factor: float,
    process_group: Any = None,
) -> Tensor:
    """x + scale · `cgnl_block` + shift, written once: a block whose norm has fixed statistics.

    Args:
        scale: [C].
        shift: [C].

    The others are as in `cgnl_block`.

    Returns:
        [B, C, *S], in x's type.
    """
    sums = _block_sums(x, phi_weight, g_weight, groups, kernel, factor, process_group)
    powers = powers_of(scaled_coefficients(kernel, factor))
    return branch(x, theta_weight, z_weight, sums, scale, shift, powers, envelope_width(kernel), x.dtype)


def cgnl_block_batch_norm(
    x: Tensor,
    theta_weight: Tensor,
    phi_weight: Tensor,
    g_weight: Tensor,
    z_weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    groups: int,
    kernel: KernelFunction,
    factor: float,
    eps: float,
    momentum: float,
) -> Tensor:
    """Eq. 13 in training: BatchNorm of `cgnl_block` over this batch, plus x.

    Args:
        norm_weight: [C], or None for 1.
        norm_bias: [C], or None for 0.
        running_mean: [C], updated in place, or None.
        running_var: [C], updated in place with the unbiased variance, or None.
        eps: is added to the variance.
        momentum: the part of this batch in the running statistics.

    The others are as in `cgnl_block`.

    Returns:
        [B, C, *S], in x's type.
    """
    sums = _block_sums(x, phi_weight, g_weight, groups, kernel, factor, None)
    powers = powers_of(scaled_coefficients(kernel, factor))
    out, mean, variance = branch_batch_norm(
        x, theta_weight, z_weight, sums, norm_weight, norm_bias, powers, envelope_width(kernel), eps
    )
    count = x.shape[0] * math.prod(x.shape[2:])
    with torch.no_grad():
        shared = Series(theta_weight, z_weight, sums, powers, envelope_width(kernel)).shared()
        if shared is not None:
            mean = mean + shared.mean(0)
        for running, batch in ((running_mean, mean), (running_var, variance * (count / (count - 1)))):
            if running is not None:
                running.copy_(torch.lerp(running.float(), batch, momentum))
    return out


def _block_sums(
    x: Tensor,
    phi_weight: Tensor,
    g_weight: Tensor,
    groups: int,
    kernel: KernelFunction,
    factor: float,
    process_group: Any,
) -> Tensor:
    """z_p of Eq. 12 for the block, [B, G, P + 1]."""
    sums = power_sums(x, phi_weight, g_weight, groups, scaled_coefficients(kernel, factor), envelope_width(kernel))
    if process_group is not None:
        sums = sum_over_processes(sums, process_group)
    return sums
