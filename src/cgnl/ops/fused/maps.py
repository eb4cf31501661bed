"""Maps as the kernels and the matrix products see them: [B, C, N], channels first or last in memory.

Legend: B batch, C channels, S spatial or space-time axes, N positions, G groups.
"""

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


def as_map(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """[B, C, *S] as [B, C, N] with channels or positions next to each other in memory; in the other map's format.

    Copies only where the tensor does not lie like that.
    """
    flat = tensor.flatten(2)
    if like is not None and not has_format(flat, is_channels_last(like)):
        return empty_map(like, flat.shape[1], flat.dtype).copy_(flat)
    return flat if has_format(flat, True) or has_format(flat, False) else flat.contiguous()


def has_format(flat: Tensor, channels_last: bool) -> bool:
    """Whether channels, or else positions, lie next to each other."""
    fast = 1 if channels_last else 2
    return flat.shape[fast] == 1 or flat.stride(fast) == 1


def is_channels_last(flat: Tensor) -> bool:
    return not has_format(flat, False)


def empty_map(like: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """A map [B, channels, N] in the memory format of the other."""
    batch, _, positions = like.shape
    if is_channels_last(like):
        return like.new_empty(batch, positions, channels, dtype=dtype).transpose(1, 2)
    return like.new_empty(batch, channels, positions, dtype=dtype)


def kernel_strides(flat: Tensor, like: Tensor) -> tuple[int, int]:
    """The strides of a map as a kernel takes them, in the format of the other map: of the batch and the slower axis."""
    assert has_format(flat, is_channels_last(like))
    return flat.stride(0), flat.stride(2 if is_channels_last(like) else 1)


def kernel_layout(like: Tensor, *others: Tensor) -> dict[str, int]:
    """What kernels know of the memory format of maps when they are compiled."""
    if is_channels_last(like):
        return {"CHANNELS_LAST": True, "ALIGN": 1}
    maps = (like, *others)
    return {"CHANNELS_LAST": False, "ALIGN": math.gcd(16, like.shape[2], *(flat.stride(1) for flat in maps))}


def gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of temporary maps: float16 has too small a range for y and for gradients times the sums."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def convolve(matrices: Tensor, flat: Tensor) -> Tensor:
    """A 1x1 convolution of [B, groups·C_in, N] with the matrices [groups, C_out, C_in], in the map's memory format."""
    groups = matrices.shape[0]
    if not is_channels_last(flat):
        return torch.matmul(matrices, flat.unflatten(1, (groups, -1))).flatten(1, 2)
    rows = flat.transpose(1, 2)
    if groups == 1:
        return torch.matmul(rows, matrices[0].T).transpose(1, 2)
    out = rows.new_empty(*rows.shape[:2], groups * matrices.shape[1])
    torch.bmm(_rows_by_group(rows, groups), matrices.transpose(1, 2), out=_rows_by_group(out, groups))
    return out.transpose(1, 2)


def weight_gradient(d_out: Tensor, flat: Tensor, groups: int) -> Tensor:
    """The gradient of the matrices of `convolve`, [groups, C_out, C_in], summed over the batch in float32."""
    if is_channels_last(flat):
        d_rows = _rows_by_group(d_out.transpose(1, 2), groups)
        return torch.bmm(d_rows.transpose(1, 2), _rows_by_group(flat.transpose(1, 2), groups))
    d_groups, groups_of_flat = d_out.unflatten(1, (groups, -1)), flat.unflatten(1, (groups, -1))
    return torch.matmul(d_groups, groups_of_flat.transpose(2, 3)).sum(0, dtype=torch.float32)


def with_strides_of(model: Tensor, flat: Tensor) -> Tensor:
    """The map [B, C, N] in the shape [B, C, *S] and the memory format that PyTorch gives a result of the model's.

    It shares the map's memory, but is no view: autograd forbids in-place changes to a view that an operator returns.
    """
    tensor = flat.unflatten(2, model.shape[2:])
    if tensor.stride() == torch.empty_like(model, device="meta").stride():
        return tensor.new_empty(0).set_(tensor)
    return torch.empty_like(model, dtype=tensor.dtype).copy_(tensor)


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Products inside an operator keep the type of their operands."""
    return torch.autocast(tensor.device.type, enabled=False)


def _rows_by_group(rows: Tensor, groups: int) -> Tensor:
    """[B, N, groups·C] as [groups, B·N, C]."""
    return rows.flatten(0, 1).unflatten(1, (groups, -1)).transpose(0, 1)
