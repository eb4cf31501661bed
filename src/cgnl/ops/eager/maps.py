"""Maps [B, C, N] and their products with small matrices, as they lie in memory.

A map has its channels first ([B, C, N] contiguous) or last ([B, N, C] contiguous, seen transposed). Products keep the
format of the map that they are given: nothing is copied into another one.

Legend: B batch, C channels, c = C/G channels of a group, N positions, G groups.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of x in a part of the batch on a CPU: with what is made of them they fit its cache.
_ELEMENTS_OF_A_PART = 2**20


def channels_last(flat: Tensor) -> bool:
    """Whether a map has its channels last."""
    return flat.stride(1) == 1 and flat.shape[2] > 1


def in_format_of(model: Tensor, flat: Tensor) -> Tensor:
    """The map in the format of another map of its shape; a copy where that differs."""
    if channels_last(model) == channels_last(flat):
        return flat
    return empty_map_like(model, flat.shape[1], flat.dtype).copy_(flat)


def with_strides_of(model: Tensor, tensor: Tensor) -> Tensor:
    """The tensor in the memory format that PyTorch gives a result of the model's shape."""
    expected = torch.empty_like(model, device="meta").stride()
    if tensor.stride() == expected:
        return tensor
    return torch.empty_like(model, dtype=tensor.dtype).copy_(tensor)


def memory_as_map(tensor: Tensor, model: Tensor) -> Tensor | None:
    """The memory of a tensor [B, C, *S] as a map [B, C, N] in the other map's format; None where it lies otherwise."""
    flat = tensor.flatten(2)
    lies_alike = channels_last(flat) == channels_last(model) and is_dense(flat)
    return flat if lies_alike and flat.data_ptr() == tensor.data_ptr() else None


def is_dense(flat: Tensor) -> bool:
    """Whether the map fills its memory, channels first or last."""
    return flat.is_contiguous() or flat.transpose(1, 2).is_contiguous()


def empty_map_like(model: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """A map [B, channels, N] in the memory format of the other."""
    batch, _, positions = model.shape
    if channels_last(model):
        return model.new_empty(batch, positions, channels, dtype=dtype).transpose(1, 2)
    return model.new_empty(batch, channels, positions, dtype=dtype)


def parts_of_batch(flat: Tensor) -> list[slice]:
    """Slices of the batch to work on one after the other.

    On a CPU so small that what is made of them stays in its cache and takes memory that is at hand; else the whole.
    """
    batch = flat.shape[0]
    step = max(1, _ELEMENTS_OF_A_PART // flat[0].numel()) if flat.device.type == "cpu" else batch
    return [slice(start, start + step) for start in range(0, batch, step)]


def multiply(matrices: Tensor, flat: Tensor, out: Tensor | None = None) -> Tensor:
    """A 1x1 convolution of [B, G·c_in, N] with the matrices [G, c_out, c_in], into ``out`` where it is given."""
    groups = matrices.shape[0]
    if not channels_last(flat):
        if out is not None:
            out = out.unflatten(1, (groups, -1))
        return torch.matmul(matrices, flat.unflatten(1, (groups, -1)), out=out).flatten(1, 2)
    rows = flat.transpose(1, 2)
    if out is None and flat.dtype in (torch.float32, torch.bfloat16):
        # oneDNN's convolution is faster here than a matrix product; it has no float64
        weight = matrices.flatten(0, 1)[..., None, None]
        return F.conv2d(flat.unsqueeze(2), weight, groups=groups).squeeze(2)
    if out is None:
        out = rows.new_empty(*rows.shape[:2], groups * matrices.shape[1]).transpose(1, 2)
    out_rows = out.transpose(1, 2)
    if groups == 1:
        torch.mm(rows.flatten(0, 1), matrices[0].transpose(0, 1), out=out_rows.view(-1, out.shape[1]))
    else:
        torch.bmm(_rows_by_group(rows, groups), matrices.transpose(1, 2), out=_rows_by_group(out_rows, groups))
    return out


def add_matrix_gradient(d_out: Tensor, flat: Tensor, to: Tensor) -> None:
    """Adds the gradient [c_out, c_in] of the one matrix of `multiply`, summed over the batch, to ``to``."""
    if channels_last(flat):
        d_rows, rows = (t.transpose(1, 2).flatten(0, 1) for t in (d_out, flat))
        pairs = [(d_rows.transpose(0, 1), rows)]
    else:
        pairs = [(d_sample, sample.transpose(0, 1)) for d_sample, sample in zip(d_out, flat, strict=True)]
    for left, right in pairs:
        if to.dtype == left.dtype:
            to.addmm_(left, right)
        else:
            to.add_(torch.mm(left, right))


def products_by_group(left: Tensor, right: Tensor, groups: int) -> Tensor:
    """Sum over the positions of left right^T for each sample and group: [B, G, c_left, c_right]."""
    last = channels_last(left)
    left, right = left.unflatten(1, (groups, -1)), right.unflatten(1, (groups, -1)).transpose(2, 3)
    if not last:
        return torch.matmul(left, right)
    # one sample after the other: a product over both axes would copy the maps
    out = left.new_empty(*left.shape[:3], right.shape[3])
    for to, left_sample, right_sample in zip(out, left, right, strict=True):
        torch.bmm(left_sample, right_sample, out=to)
    return out


def by_group(matrices: Tensor, vectors: Tensor) -> Tensor:
    """The matrices [G, c_out, c_in] times one vector a sample, [B, G·c_in]: [B, G·c_out]."""
    columns = vectors.unflatten(1, (matrices.shape[0], -1))[..., None]
    return torch.matmul(matrices, columns).flatten(1)


def mean_of_squares(flat: Tensor) -> Tensor:
    """The mean over the positions of a map's squares, [B, C]; never with the squares of the whole batch on a CPU."""
    return torch.cat([flat[part].square().mean(-1) for part in parts_of_batch(flat)])


def _rows_by_group(rows: Tensor, groups: int) -> Tensor:
    """[B, N, G·c] as [G, B·N, c]."""
    return rows.flatten(0, 1).unflatten(1, (groups, -1)).transpose(0, 1)
