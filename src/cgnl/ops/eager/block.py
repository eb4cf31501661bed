"""The CGNL block from x to conv_z's output, and with BatchNorm and residual to the block's output.

Legend: B batch, C channels, C' inner channels, c = C'/G, S spatial or space-time axes, N positions, G groups.

The autograd function makes theta, phi and g by one product, keeps x and that one map [B, 3C', N], and
recomputes the rest in the backward pass. Convolutions run as matrix products on the map as it lies in memory, channels
first or last: nothing is copied into another format, and the result has x's.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cgnl.kernel_functions import KernelFunction
from cgnl.ops.eager.series import (
    autocast_is_on,
    autograd_function_can_run,
    differentiable_gradients,
    scaled_coefficients,
    series,
    sum_dtype,
    with_gaps,
    without_autocast,
    write_polynomial,
    write_series,
    write_series_gradients,
)

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


@dataclass(frozen=True)
class _Settings:
    groups: int
    kernel: KernelFunction
    coefficients: tuple[float, ...]
    feature_dtype: torch.dtype
    batch_norm: bool = False
    eps: float = 0.0
    momentum: float = 0.0


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
) -> Tensor:
    """Fig. 2 from x to conv_z's output. Arguments as in `cgnl.ops`; ``factor`` is the scale."""
    weights = (theta_weight, phi_weight, g_weight, z_weight)
    settings = _Settings(groups, kernel, scaled_coefficients(kernel, factor), _feature_dtype(x))
    if not autograd_function_can_run(x, *weights):
        return _block(x, *weights, None, None, settings)
    if kernel.is_plain_series:
        return _Block.apply(x, *weights, None, None, None, None, settings)
    return _with_strides_of(x, _block(x, *weights, None, None, settings))


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
    """Eq. 13 in training: BatchNorm of the block's branch over this batch, plus x, in x's type.

    Keeps less than a norm after `cgnl_block` does, because conv_z's output is made again in the backward
    pass. Plain series and plain tensors only. The running statistics, where given, are updated in place.
    """
    coefficients = scaled_coefficients(kernel, factor)
    settings = _Settings(groups, kernel, coefficients, _feature_dtype(x), True, eps, momentum)
    weights = (theta_weight, phi_weight, g_weight, z_weight)
    return _Block.apply(x, *weights, norm_weight, norm_bias, running_mean, running_var, settings)


def _feature_dtype(x: Tensor) -> torch.dtype:
    """The type of theta, phi and g: autocast's where it is on, else x's."""
    if autocast_is_on(x) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _block(
    x: Tensor,
    theta_weight: Tensor,
    phi_weight: Tensor,
    g_weight: Tensor,
    z_weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    settings: _Settings,
) -> Tensor:
    """The block as ordinary differentiable operations; with BatchNorm and residual if the settings say so."""
    convolve = _CONVOLUTIONS[x.dim()]
    dtype = sum_dtype(x.dtype)
    with without_autocast(x):
        theta, phi, g = (
            convolve(x.to(settings.feature_dtype), weight.to(settings.feature_dtype)).flatten(2)
            for weight in (theta_weight, phi_weight, g_weight)
        )
        y = series(theta, phi, g, settings.groups, settings.kernel, settings.coefficients).to(dtype)
        branch = convolve(y.unflatten(2, x.shape[2:]), z_weight.to(dtype), groups=settings.groups)
        if not settings.batch_norm:
            return branch
        weight, bias = (None if t is None else t.to(dtype) for t in (norm_weight, norm_bias))
        normed = F.batch_norm(branch, None, None, weight, bias, training=True, eps=settings.eps)
        return (x.to(dtype) + normed).to(x.dtype)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        theta_weight: Tensor,
        phi_weight: Tensor,
        g_weight: Tensor,
        z_weight: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        settings: _Settings,
    ) -> Tensor:
        dtype = sum_dtype(x.dtype)
        statistics: list[Tensor] = []
        with without_autocast(x):
            x_flat = x.flatten(2)
            weights = _joined(theta_weight, phi_weight, g_weight, settings.feature_dtype)
            features = _multiply(weights, x_flat.to(settings.feature_dtype))
            y = _empty_map_like(features, theta_weight.shape[0], dtype)
            theta, phi, g = features.chunk(3, dim=1)
            sums = write_series(theta, phi, g, settings.groups, settings.coefficients, y)
            out = _multiply(_z_matrices(z_weight, settings.groups, dtype), y)
            if settings.batch_norm:
                out, *statistics = _batch_norm(out, norm_weight, norm_bias, running_mean, running_var, settings)
                out = out.add_(x_flat).to(x.dtype)
        ctx.save_for_backward(
            x,
            theta_weight,
            phi_weight,
            g_weight,
            z_weight,
            norm_weight,
            norm_bias,
            features,
            *statistics,
            *(s for s in sums if s is not None),
        )
        ctx.settings = settings
        return _with_strides_of(x, out.unflatten(2, x.shape[2:]))

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        settings: _Settings = ctx.settings
        # read once: non-reentrant checkpointing gives them a single time
        saved = ctx.saved_tensors
        inputs, (features, *kept) = saved[:7], saved[7:]
        if torch.is_grad_enabled():
            recorded = differentiable_gradients(partial(_block, settings=settings), inputs, d_out)
            return (*recorded, None, None, None)
        x, theta_weight, phi_weight, g_weight, z_weight, norm_weight, norm_bias = inputs
        wants_features = any(ctx.needs_input_grad[:4])
        statistics = [kept.pop(0), kept.pop(0)] if settings.batch_norm else []
        sums = with_gaps(kept, settings.coefficients)
        dtype = sum_dtype(x.dtype)
        gradients: list[Tensor | None] = [None] * 7
        with without_autocast(x):
            x_flat = x.flatten(2)
            d_out = _with_strides_of(x_flat, d_out.flatten(2).to(dtype))
            theta, phi, g = features.chunk(3, dim=1)
            z_matrices = _z_matrices(z_weight, settings.groups, dtype)
            y = _empty_map_like(features, theta_weight.shape[0], dtype)
            write_polynomial(theta, sums, y)
            d_branch = d_out
            if settings.batch_norm:
                branch = _multiply(z_matrices, y)
                d_branch, d_norm_weight, d_norm_bias = _batch_norm_gradients(
                    d_out, branch, norm_weight, statistics, settings, ctx.needs_input_grad[5:7]
                )
                del branch  # maps are large: each is let go before the next is made
                gradients[5:7] = [
                    None if d is None or t is None else d.to(t.dtype)
                    for d, t in ((d_norm_weight, norm_weight), (d_norm_bias, norm_bias))
                ]
            if ctx.needs_input_grad[4]:
                d_z = _matrix_gradient(d_branch, y, settings.groups)
                gradients[4] = d_z.to(z_weight.dtype).view_as(z_weight)
            del y
            if wants_features:
                d_y = _multiply(z_matrices.transpose(1, 2), d_branch)
                del d_branch
                d_features = torch.empty_like(features, dtype=dtype)
                write_series_gradients(
                    d_y, (theta, phi, g), sums, settings.groups, settings.coefficients, d_features.chunk(3, dim=1)
                )
                del d_y
                product_dtype = torch.bfloat16 if settings.feature_dtype == torch.bfloat16 else dtype
                d_features = d_features.to(product_dtype)
                if any(ctx.needs_input_grad[1:4]):
                    d_weights = _matrix_gradient(d_features, x_flat.to(product_dtype), 1)
                    gradients[1:4] = [
                        d.to(weight.dtype).view_as(weight)
                        for d, weight in zip(d_weights[0].chunk(3), (theta_weight, phi_weight, g_weight), strict=True)
                    ]
                if ctx.needs_input_grad[0]:
                    weights = _joined(theta_weight, phi_weight, g_weight, product_dtype)
                    d_x = _multiply(weights.transpose(1, 2), d_features)
                    if settings.batch_norm:
                        d_x = d_x.to(dtype).add_(d_out)
                    gradients[0] = _with_strides_of(x, d_x.to(x.dtype).unflatten(2, x.shape[2:]))
        return (*gradients, None, None, None)


def _joined(theta_weight: Tensor, phi_weight: Tensor, g_weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The three weights as one matrix, [1, 3C', C]."""
    return torch.cat([theta_weight, phi_weight, g_weight]).flatten(1).to(dtype)[None]


def _z_matrices(z_weight: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """conv_z's weight as one matrix a group, [G, C/G, c]."""
    return z_weight.flatten(1).unflatten(0, (groups, -1)).to(dtype)


def _channels_last(flat: Tensor) -> bool:
    return flat.stride(1) == 1 and flat.shape[2] > 1


def _empty_map_like(features: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """A map [B, channels, N] in the memory format of the other."""
    batch, _, positions = features.shape
    if _channels_last(features):
        return features.new_empty(batch, positions, channels, dtype=dtype).transpose(1, 2)
    return features.new_empty(batch, channels, positions, dtype=dtype)


def _multiply(matrices: Tensor, flat: Tensor) -> Tensor:
    """A 1x1 convolution of [B, groups·C_in, N] with the matrices [groups, C_out, C_in], in the map's memory format."""
    groups = matrices.shape[0]
    if not _channels_last(flat):
        return torch.matmul(matrices, flat.unflatten(1, (groups, -1))).flatten(1, 2)
    if flat.dtype in (torch.float32, torch.bfloat16):
        # oneDNN's convolution is faster here than a matrix product; it has no float64
        weight = matrices.flatten(0, 1)[..., None, None]
        return F.conv2d(_as_image(flat), weight, groups=groups).squeeze(2)
    rows = flat.transpose(1, 2)
    if groups == 1:
        return F.linear(rows, matrices[0]).transpose(1, 2)
    out = rows.new_empty(*rows.shape[:2], groups * matrices.shape[1])
    torch.bmm(_rows_by_group(rows, groups), matrices.transpose(1, 2), out=_rows_by_group(out, groups))
    return out.transpose(1, 2)


def _matrix_gradient(d_out: Tensor, flat: Tensor, groups: int) -> Tensor:
    """The gradient of `_multiply`'s matrices, [groups, C_out, C_in]."""
    if _channels_last(flat):
        d_rows = _rows_by_group(d_out.transpose(1, 2), groups)
        return torch.bmm(d_rows.transpose(1, 2), _rows_by_group(flat.transpose(1, 2), groups))
    d_out, flat = d_out.unflatten(1, (groups, -1)), flat.unflatten(1, (groups, -1))
    result = torch.bmm(d_out[0], flat[0].transpose(1, 2))
    for d_sample, sample in zip(d_out[1:], flat[1:], strict=True):
        result.baddbmm_(d_sample, sample.transpose(1, 2))
    return result


def _rows_by_group(rows: Tensor, groups: int) -> Tensor:
    """[B, N, groups·C] as [groups, B·N, C]."""
    return rows.flatten(0, 1).unflatten(1, (groups, -1)).transpose(0, 1)


def _as_image(flat: Tensor) -> Tensor:
    """[B, C, N] as [B, C, 1, N], in the strides by which PyTorch knows a channels-last image."""
    return flat.unsqueeze(2)


def _batch_norm(
    branch: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    settings: _Settings,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised branch [B, C, N], mean and inverse deviation; updates the running statistics in place."""
    dtype = branch.dtype
    weight, bias, mean, var = (None if t is None else t.to(dtype) for t in (weight, bias, running_mean, running_var))
    normed, batch_mean, inverse_deviation = torch.native_batch_norm(
        _as_image(branch), weight, bias, mean, var, True, settings.momentum, settings.eps
    )
    for running, updated in ((running_mean, mean), (running_var, var)):
        if running is not None and updated is not None and running is not updated:
            running.copy_(updated)
    return normed.squeeze(2), batch_mean, inverse_deviation


def _batch_norm_gradients(
    d_out: Tensor,
    branch: Tensor,
    weight: Tensor | None,
    statistics: list[Tensor],
    settings: _Settings,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    d_branch, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
        _as_image(d_out),
        _as_image(branch),
        None if weight is None else weight.to(branch.dtype),
        None,
        None,
        *statistics,
        True,
        settings.eps,
        [True, *wanted],
    )
    return d_branch.squeeze(2), d_weight, d_bias


def _with_strides_of(model: Tensor, tensor: Tensor) -> Tensor:
    """The tensor in the memory format that PyTorch gives a result of the model's shape."""
    expected = torch.empty_like(model, device="meta").stride()
    if tensor.stride() == expected:
        return tensor
    return torch.empty_like(model, dtype=tensor.dtype).copy_(tensor)
