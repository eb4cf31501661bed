"""Types of sums and features, autocast, and whether a compiler, an exporter or a transform is at work."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which sums over the elements of a group run: float32 for the half types."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def in_sum_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors, each in the type in which its sums run: the naive form has no half types."""
    return tuple(tensor.to(sum_dtype(tensor.dtype)) for tensor in tensors)


def feature_dtype(x: Tensor) -> torch.dtype:
    """Return the type of theta, phi and g: autocast's where it is on, else x's."""
    if autocast_is_on(x) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def in_feature_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in the type of theta, phi and g: autocast's where it is on, else that of the first."""
    dtype = feature_dtype(tensors[0])
    return tuple(tensor.to(dtype) for tensor in tensors)


def gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type of the fused form's temporary maps.

    float16 has too small a range for y and for gradients times the sums.
    """
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def autocast_is_on(tensor: Tensor) -> bool:
    """Tell whether autocast is on for the tensor's device."""
    device_type = tensor.device.type
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Switch autocast off where it is on for the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False) if autocast_is_on(tensor) else nullcontext()


def is_exporting() -> bool:
    """Tell whether the network is being exported: exported programs must need only PyTorch's own operators."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


def is_empty(features: Tensor) -> bool:
    """Tell whether a map has no elements; always False while a compiler or tracer is at work."""
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing()) and not features.numel()


def is_transforming() -> bool:
    """Tell whether a function transform (vmap, grad, jvp) or forward-mode differentiation is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_plain_tensor(tensor: Tensor) -> bool:
    """Tell whether it is a tensor or parameter of PyTorch's own class."""
    return type(tensor) in (Tensor, torch.nn.Parameter)


def autograd_function_can_run(*tensors: Tensor) -> bool:
    """Tell whether these tensors may go through an autograd function: plain ones, outside traces and transforms."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or is_transforming()
        or any(not is_plain_tensor(t) or not t.numel() for t in tensors)
        # batched by `torch.autograd.grad(is_grads_batched=True)`, which is no function transform
        or any(torch._C._functorch.is_legacy_batchedtensor(t) for t in tensors)
    )
