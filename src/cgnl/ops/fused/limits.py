"""Where the fused form can run.

Legend: P order of the series.
"""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from cgnl.kernel_functions import GaussianRBF, KernelFunction
from cgnl.ops.eager.series import scaled_coefficients
from cgnl.ops.precision import is_plain_tensor, is_transforming

HIGHEST_ORDER = 5
LEAST_CAPABILITY = (8, 0)


def obstacle(*tensors: Tensor, kernel: KernelFunction, dtype: torch.dtype | None = None) -> str | None:
    """Say in a clause why the fused form cannot run on the inputs of an operation, or None where it can.

    ``dtype`` is the type in which the operation gets them; None for their own.

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
    if is_transforming():
        return "function transforms and forward-mode derivatives do not reach into it"
    for tensor in tensors:
        if not is_plain_tensor(tensor):
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
    """Return gamma of the envelope exp(-gamma t^2) that the kernels know; 0 for none."""
    if isinstance(kernel, GaussianRBF) and type(kernel).envelope is GaussianRBF.envelope and kernel.beta != "constant":
        return kernel.gamma
    return 0.0
