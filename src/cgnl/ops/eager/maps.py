"""Maps [B, C, N] and their products with small matrices, as they lie in memory.

A map has its channels first ([B, C, N] contiguous) or last ([B, N, C] contiguous, seen transposed). Products keep the
format of the map that they are given: nothing is copied into another one.

Legend: B batch, C channels, c = C/G channels of a group, N positions, G groups.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of a sample up to which a copy with the channels last costs less than the faster products bring.
_ELEMENTS_WORTH_A_COPY = 2**20


def channels_last(flat: Tensor) -> bool:
    """Whether a map has its channels last."""
    return flat.stride(1) == 1 and flat.shape[2] > 1


def in_faster_format(flat: Tensor) -> Tensor:
    """A float32 map on a CPU with the channels last, where oneDNN's products are faster; others as they are."""
    if (
        flat.device.type != "cpu"
        or flat.dtype != torch.float32
        or channels_last(flat)
        or flat[0].numel() > _ELEMENTS_WORTH_A_COPY
    ):
        return flat
    return flat.transpose(1, 2).contiguous().transpose(1, 2)


def in_format_of(model: Tensor, flat: Tensor) -> Tensor:
    """The map in the format of another map of its shape; a copy where that differs."""
    if channels_last(model) == channels_last(flat):
        return flat
    out = empty_map_like(model, flat.shape[1], flat.dtype)
    if channels_last(model):
        return out.copy_(flat)
    # one matrix after the other is transposed in blocks; a whole batch is not
    for to, sample in zip(out, flat, strict=True):
        to.copy_(sample)
    return out


def with_strides_of(model: Tensor, tensor: Tensor) -> Tensor:
    """The tensor in the memory format that PyTorch gives a result of the model's shape."""
    expected = torch.empty_like(model, device="meta").stride()
    if tensor.stride() == expected:
        return tensor
    return torch.empty_like(model, dtype=tensor.dtype).copy_(tensor)


def empty_map_like(model: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """A map [B, channels, N] in the memory format of the other."""
    batch, _, positions = model.shape
    if channels_last(model):
        return model.new_empty(batch, positions, channels, dtype=dtype).transpose(1, 2)
    return model.new_empty(batch, channels, positions, dtype=dtype)


def multiply(matrices: Tensor, flat: Tensor, model: Tensor | None = None) -> Tensor:
    """A 1x1 convolution of [B, G·c_in, N] with the matrices [G, c_out, c_in].

    The result is in the map's format, or in that of ``model``.
    """
    groups = matrices.shape[0]
    if model is not None and channels_last(model) != channels_last(flat):
        out = empty_map_like(model, groups * matrices.shape[1], flat.dtype)
        for to, sample in zip(out, flat, strict=True):
            torch.bmm(matrices, sample.unflatten(0, (groups, -1)), out=to.unflatten(0, (groups, -1)))
        return out
    if not channels_last(flat):
        return torch.matmul(matrices, flat.unflatten(1, (groups, -1))).flatten(1, 2)
    if flat.dtype in (torch.float32, torch.bfloat16):
        # oneDNN's convolution is faster here than a matrix product; it has no float64
        return F.conv2d(_as_image(flat), _as_filters(matrices), groups=groups).squeeze(2)
    rows = flat.transpose(1, 2)
    if groups == 1:
        return F.linear(rows, matrices[0]).transpose(1, 2)
    out = rows.new_empty(*rows.shape[:2], groups * matrices.shape[1])
    torch.bmm(_rows_by_group(rows, groups), matrices.transpose(1, 2), out=_rows_by_group(out, groups))
    return out.transpose(1, 2)


def product_gradients(
    d_out: Tensor, flat: Tensor, matrix: Tensor, *, wants_map: bool, wants_matrix: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of ``multiply(matrix[None], flat)``: of the map, and of the matrix [c_out, c_in]."""
    if channels_last(flat) and flat.dtype == torch.float32 and flat.device.type == "cpu":
        d_flat, d_matrix, _ = torch.ops.aten.convolution_backward(
            _as_image(d_out),
            _as_image(flat),
            _as_filters(matrix[None]),
            None,
            [1, 1],
            [0, 0],
            [1, 1],
            False,
            [0, 0],
            1,
            [wants_map, wants_matrix, False],
        )
        return d_flat.squeeze(2) if wants_map else None, d_matrix.flatten(1) if wants_matrix else None
    d_flat = multiply(matrix.transpose(0, 1)[None], d_out) if wants_map else None
    return d_flat, _matrix_gradient(d_out, flat) if wants_matrix else None


def _matrix_gradient(d_out: Tensor, flat: Tensor) -> Tensor:
    if channels_last(flat):
        return torch.mm(d_out.transpose(1, 2).flatten(0, 1).transpose(0, 1), flat.transpose(1, 2).flatten(0, 1))
    result = torch.mm(d_out[0], flat[0].transpose(0, 1))
    for d_sample, sample in zip(d_out[1:], flat[1:], strict=True):
        result.addmm_(d_sample, sample.transpose(0, 1))
    return result


def products_by_group(left: Tensor, right: Tensor, groups: int) -> Tensor:
    """Sum over the positions of left right^T for each sample and group: [B, G, c_left, c_right]."""
    left_last, right_last = channels_last(left), channels_last(right)
    left, right = left.unflatten(1, (groups, -1)), right.unflatten(1, (groups, -1)).transpose(2, 3)
    if not (left_last or right_last):
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
    """The mean over the positions of a map's squares, [B, C]; one sample at a time, to hold the squares of one only."""
    return torch.stack([(sample * sample).mean(-1) for sample in flat])


def _as_image(flat: Tensor) -> Tensor:
    """[B, C, N] as [B, C, 1, N], in the strides by which PyTorch knows a channels-last image."""
    return flat.unsqueeze(2)


def _as_filters(matrices: Tensor) -> Tensor:
    """[G, c_out, c_in] as the weight of a 1x1 convolution, [G·c_out, c_in, 1, 1]."""
    return matrices.flatten(0, 1)[..., None, None]


def _rows_by_group(rows: Tensor, groups: int) -> Tensor:
    """[B, N, G·c] as [G, B·N, c]."""
    return rows.flatten(0, 1).unflatten(1, (groups, -1)).transpose(0, 1)
