"""Maps [B, C, N] and their products with small matrices, as they lie in memory.

A map has its channels first ([B, C, N] contiguous) or last ([B, N, C] contiguous, seen transposed). Products keep the
format of the map that they are given: nothing is copied into another one.

Legend: B batch, C channels, c = C/G channels of a group, N positions, G groups.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of x in a part of the batch on a CPU: with what is made of them they fit its cache.
_ELEMENTS_OF_A_PART = 2**20


def is_channels_last(flat: Tensor) -> bool:
    """Tell whether a map has its channels last."""
    return flat.stride(1) == 1 and min(flat.shape[1:]) > 1


def as_map(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """Return [B, C, *S] as [B, C, N] with channels or positions next to each other, in the other map's format.

    Copies only where the tensor does not lie like that.
    """
    flat = tensor.flatten(2)
    if like is not None and not _has_format(flat, is_channels_last(like)):
        return empty_map(like, flat.shape[1], flat.dtype).copy_(flat)
    return flat if is_channels_last(flat) or _has_format(flat, False) else flat.contiguous()


def _has_format(flat: Tensor, channels_last: bool) -> bool:
    """Tell whether channels, or else positions, lie next to each other."""
    fast = 1 if channels_last else 2
    return flat.shape[fast] == 1 or flat.stride(fast) == 1


def in_format_of(model: Tensor, flat: Tensor) -> Tensor:
    """Return the map in the format of another map of its shape; a copy where that differs."""
    if is_channels_last(model) == is_channels_last(flat):
        return flat
    return empty_map(model, flat.shape[1], flat.dtype).copy_(flat)


def with_strides_of(model: Tensor, tensor: Tensor) -> Tensor:
    """Return the tensor in the memory format that PyTorch gives a result of the model's shape."""
    if _has_strides_of(model, tensor):
        return tensor
    return torch.empty_like(model, dtype=tensor.dtype).copy_(tensor)


def as_result(model: Tensor, flat: Tensor) -> Tensor:
    """Return the map [B, C, N] in the shape [B, C, *S] and the memory format of a result of the model's.

    It shares the map's memory, but is no view: autograd forbids in-place changes to a view that an operator returns.
    """
    tensor = flat.unflatten(2, model.shape[2:])
    if _has_strides_of(model, tensor):
        return tensor.new_empty(0).set_(tensor)
    return torch.empty_like(model, dtype=tensor.dtype).copy_(tensor)


def _has_strides_of(model: Tensor, tensor: Tensor) -> bool:
    return tensor.stride() == torch.empty_like(model, device="meta").stride()


def memory_as_map(tensor: Tensor, model: Tensor) -> Tensor | None:
    """Return a tensor's memory [B, C, *S] as a map [B, C, N] in the other's format; None where it lies otherwise."""
    flat = tensor.flatten(2)
    is_dense = flat.is_contiguous() or flat.transpose(1, 2).is_contiguous()
    lies_alike = is_channels_last(flat) == is_channels_last(model) and is_dense
    return flat if lies_alike and flat.data_ptr() == tensor.data_ptr() else None


def empty_map(model: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Make a map [B, channels, N] in the memory format of the other."""
    batch, _, positions = model.shape
    if is_channels_last(model):
        return model.new_empty(batch, positions, channels, dtype=dtype).transpose(1, 2)
    return model.new_empty(batch, channels, positions, dtype=dtype)


def kernel_strides(flat: Tensor, like: Tensor) -> tuple[int, int]:
    """Return a map's strides as a kernel takes them, in the other map's format: of the batch and the slower axis."""
    assert _has_format(flat, is_channels_last(like))
    return flat.stride(0), flat.stride(2 if is_channels_last(like) else 1)


def kernel_layout(like: Tensor, *others: Tensor) -> dict[str, int]:
    """Return the constants that kernels are compiled with for the memory format of maps."""
    if is_channels_last(like):
        return {"CHANNELS_LAST": True, "ALIGN": 1}
    maps = (like, *others)
    return {"CHANNELS_LAST": False, "ALIGN": math.gcd(16, like.shape[2], *(flat.stride(1) for flat in maps))}


def parts_of_batch(flat: Tensor, elements: int | None = None) -> list[slice]:
    """Return slices of the batch of a map [B, C, N] to work on one after the other.

    On a CPU so small (``elements``, or the usual number) that everything made of them stays in its cache and takes
    memory that is at hand; else the whole.
    """
    batch = flat.shape[0]
    step = batch
    if flat.device.type == "cpu":
        step = max(1, (elements or _ELEMENTS_OF_A_PART) // flat[0].numel())
    return [slice(start, start + step) for start in range(0, batch, step)]


def multiply(matrices: Tensor, flat: Tensor, out: Tensor | None = None) -> Tensor:
    """Do as `convolve`, with oneDNN's convolution where that is faster than a matrix product."""
    if out is not None or not is_channels_last(flat) or flat.dtype not in (torch.float32, torch.bfloat16):
        return convolve(matrices, flat, out)
    weight = matrices.flatten(0, 1)[..., None, None]
    return F.conv2d(flat.unsqueeze(2), weight, groups=matrices.shape[0]).squeeze(2)


def convolve(matrices: Tensor, flat: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply [B, G·c_in, N] with the matrices [G, c_out, c_in] at each position: a 1x1 convolution.

    ``out`` [B, G·c_out, N] is written, in the map's memory format; None makes a new map.
    """
    groups = matrices.shape[0]
    if not is_channels_last(flat):
        if out is not None:
            out = out.unflatten(1, (groups, -1))
        return torch.matmul(matrices, flat.unflatten(1, (groups, -1)), out=out).flatten(1, 2)
    rows = flat.transpose(1, 2)
    if out is None:
        out = rows.new_empty(*rows.shape[:2], groups * matrices.shape[1]).transpose(1, 2)
    out_rows = out.transpose(1, 2)
    if groups == 1:
        torch.mm(rows.flatten(0, 1), matrices[0].transpose(0, 1), out=out_rows.view(-1, out.shape[1]))
    else:
        torch.bmm(_rows_by_group(rows, groups), matrices.transpose(1, 2), out=_rows_by_group(out_rows, groups))
    return out


def weight_gradient(d_out: Tensor, flat: Tensor, groups: int) -> Tensor:
    """Return the gradient of the matrices of `convolve`, [groups, c_out, C_in], summed over the batch in float32."""
    if is_channels_last(flat):
        d_rows = _rows_by_group(d_out.transpose(1, 2), groups)
        return torch.bmm(d_rows.transpose(1, 2), _rows_by_group(flat.transpose(1, 2), groups))
    d_groups, groups_of_flat = d_out.unflatten(1, (groups, -1)), flat.unflatten(1, (groups, -1))
    return torch.matmul(d_groups, groups_of_flat.transpose(2, 3)).sum(0, dtype=torch.float32)


def add_matrix_gradient(d_out: Tensor, flat: Tensor, to: Tensor) -> None:
    """Add the gradient [c_out, c_in] of the one matrix of `multiply`, summed over the batch, to ``to``."""
    if is_channels_last(flat):
        d_rows, rows = (t.transpose(1, 2).flatten(0, 1) for t in (d_out, flat))
        pairs = [(d_rows.transpose(0, 1), rows)]
    else:
        pairs = [(d_sample, sample.transpose(0, 1)) for d_sample, sample in zip(d_out, flat, strict=True)]
    for left, right in pairs:
        if to.dtype == left.dtype:
            to.addmm_(left, right)
        else:
            to.add_(torch.mm(left, right))


def products_by_group(left: Tensor, right: Tensor, groups: int, *, summed: bool = False) -> Tensor:
    """Sum left right^T over the positions, for each sample and group: [B, G, c_left, c_right].

    With ``summed`` also over the samples: [1, G, c_left, c_right].
    """
    last = is_channels_last(left)
    left, right = left.unflatten(1, (groups, -1)), right.unflatten(1, (groups, -1)).transpose(2, 3)
    if not last and not summed:
        return torch.matmul(left, right)
    # one sample after the other: a product over both axes would copy the maps
    out = left.new_zeros(1 if summed else left.shape[0], *left.shape[1:3], right.shape[3])
    targets = out.expand(left.shape[0], -1, -1, -1) if summed else out
    for to, left_sample, right_sample in zip(targets, left, right, strict=True):
        to.baddbmm_(left_sample, right_sample)
    return out


def by_group(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Multiply the matrices [G, c_out, c_in] with one vector a sample, [B, G·c_in]: [B, G·c_out]."""
    columns = vectors.unflatten(1, (matrices.shape[0], -1))[..., None]
    return torch.matmul(matrices, columns).flatten(1)


def mean_of_squares(flat: Tensor) -> Tensor:
    """Return the mean over the positions of a map's squares, [B, C], a part of the batch at a time on a CPU."""
    return torch.cat([flat[part].square().mean(-1) for part in parts_of_batch(flat)])


def _rows_by_group(rows: Tensor, groups: int) -> Tensor:
    """View [B, N, G·c] as [G, B·N, c]."""
    return rows.flatten(0, 1).unflatten(1, (groups, -1)).transpose(0, 1)
