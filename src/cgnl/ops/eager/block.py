"""The CGNL block from x to conv_z's output, and with norm and residual to the block's output.

The autograd function keeps x and one to three maps [B, C', N], and recomputes the rest in the backward pass.
Convolutions run as matrix products, and the result has x's memory format. The dot product has a way of its own: y is
theta times one number for each sample and group, which no map needs to be made for, and which the Gram form computes
without phi and g where that is the cheaper way.

Legend: B batch, C channels, C' inner channels, c = C'/G, S spatial or space-time axes, N positions, G groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cgnl.kernel_functions import KernelFunction
from cgnl.ops.eager import gram
from cgnl.ops.eager.ending import Centred, Ending, Kind, Statistics, centred, finish, finish_gradients
from cgnl.ops.eager.maps import (
    channels_last,
    empty_map_like,
    in_faster_format,
    in_format_of,
    multiply,
    product_gradients,
    with_strides_of,
)
from cgnl.ops.eager.series import (
    ProcessGroup,
    autocast_is_on,
    autograd_function_can_run,
    differentiable_gradients,
    group_sums,
    over_processes,
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
    kind: Kind = "branch"
    eps: float = 0.0
    momentum: float = 0.0
    memory_efficient: bool = False
    process_group: ProcessGroup | None = None

    @property
    def is_dot_product(self) -> bool:
        return len(self.coefficients) == 2 and not self.coefficients[0]

    def ending(self, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Ending:
        weight, bias = (None if t is None else t.to(dtype) for t in (weight, bias))
        return Ending(self.kind, weight, bias, self.eps, self.momentum)


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
    memory_efficient: bool = False,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Fig. 2 from x to conv_z's output. Arguments as in `cgnl.ops`; ``factor`` is the scale."""
    settings = _Settings(
        groups,
        kernel,
        scaled_coefficients(kernel, factor),
        _feature_dtype(x),
        memory_efficient=memory_efficient,
        process_group=process_group,
    )
    return _run(x, (theta_weight, phi_weight, g_weight, z_weight), None, None, None, None, settings)


def cgnl_block_affine(
    x: Tensor,
    theta_weight: Tensor,
    phi_weight: Tensor,
    g_weight: Tensor,
    z_weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    *,
    groups: int,
    kernel: KernelFunction,
    factor: float,
    memory_efficient: bool = False,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """x + scale · branch + shift, in x's type: Eq. 13 with a norm whose statistics are given, or none.

    Args:
        scale: [C], or None for 1.
        shift: [C], or None for 0.
    """
    settings = _Settings(
        groups,
        kernel,
        scaled_coefficients(kernel, factor),
        _feature_dtype(x),
        "affine",
        memory_efficient=memory_efficient,
        process_group=process_group,
    )
    return _run(x, (theta_weight, phi_weight, g_weight, z_weight), scale, shift, None, None, settings)


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
    memory_efficient: bool = False,
) -> Tensor:
    """Eq. 13 in training: BatchNorm of the block's branch over this batch, plus x, in x's type.

    Keeps less than a norm after `cgnl_block` does, because conv_z's output is not needed in the backward pass. Plain
    series and plain tensors only. The running statistics, where given, are updated in place.
    """
    settings = _Settings(
        groups,
        kernel,
        scaled_coefficients(kernel, factor),
        _feature_dtype(x),
        "batch_norm",
        eps,
        momentum,
        memory_efficient,
    )
    weights = (theta_weight, phi_weight, g_weight, z_weight)
    return _Block.apply(x, *weights, norm_weight, norm_bias, running_mean, running_var, settings)


def _run(
    x: Tensor,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    settings: _Settings,
) -> Tensor:
    plain = autograd_function_can_run(x, *weights, *(t for t in (weight, bias) if t is not None))
    if plain and settings.kernel.is_plain_series:
        return _Block.apply(x, *weights, weight, bias, running_mean, running_var, settings)
    out = _block(x, *weights, weight, bias, settings)
    return with_strides_of(x, out) if plain else out


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
    weight: Tensor | None,
    bias: Tensor | None,
    settings: _Settings,
) -> Tensor:
    """The block as ordinary differentiable operations."""
    convolve = _CONVOLUTIONS[x.dim()]
    dtype = sum_dtype(x.dtype)
    with without_autocast(x):
        theta, phi, g = (
            convolve(x.to(settings.feature_dtype), weight.to(settings.feature_dtype)).flatten(2)
            for weight in (theta_weight, phi_weight, g_weight)
        )
        y = series(theta, phi, g, settings.groups, settings.kernel, settings.coefficients, settings.process_group)
        branch = convolve(y.to(dtype).unflatten(2, x.shape[2:]), z_weight.to(dtype), groups=settings.groups)
        ending = settings.ending(weight, bias, dtype)
        if ending.kind == "branch":
            return branch
        if ending.kind == "batch_norm":
            branch = F.batch_norm(branch, None, None, ending.weight, ending.bias, training=True, eps=ending.eps)
        else:
            for vector, apply in ((ending.weight, torch.mul), (ending.bias, torch.add)):
                if vector is not None:
                    branch = apply(branch, vector.unflatten(0, (-1, *(1,) * (x.dim() - 2))))
        return (x.to(dtype) + branch).to(x.dtype)


@dataclass
class _Kept:
    """What the backward pass needs of the features.

    Attributes:
        theta: [B, C', N]; less its mean for the dot product.
        others: phi and g, [B, 2C', N]; None where the Gram form runs, or where they are made again.
        moments: K of the Gram form, [B, C, C]; None where it does not run, or where they are made again.
        x_mean: [B, C], with the Gram form.
        y_mean: [B, C'], the mean of y over the positions; of theta for the dot product.
        sums: of the series, a tensor for each coefficient that is not zero; of the dot product one, [B, G].
    """

    theta: Tensor | None
    others: Tensor | None
    moments: Tensor | None
    x_mean: Tensor | None
    y_mean: Tensor
    sums: list[Tensor]


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        theta_weight: Tensor,
        phi_weight: Tensor,
        g_weight: Tensor,
        z_weight: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        settings: _Settings,
    ) -> Tensor:
        dtype = sum_dtype(x.dtype)
        with without_autocast(x):
            x_flat = x.flatten(2)
            weights = _matrices((theta_weight, phi_weight, g_weight), settings)
            ctx.gram = _takes_gram_form(x_flat, settings, training=any(ctx.needs_input_grad))
            source = x_flat.to(settings.feature_dtype)
            source = source if ctx.gram else in_faster_format(source)
            make = _dot_product if settings.is_dot_product else _series
            y, kept = make(source, weights, settings, ctx.gram)
            out, statistics = finish(
                y,
                _z_matrices(z_weight, settings.groups, dtype),
                x_flat,
                settings.ending(weight, bias, dtype),
                running_mean,
                running_var,
            )
        if settings.memory_efficient:
            kept = _Kept(None if kept.others is not None else kept.theta, None, None, None, kept.y_mean, kept.sums)
        ctx.save_for_backward(
            x,
            theta_weight,
            phi_weight,
            g_weight,
            z_weight,
            weight,
            bias,
            kept.theta,
            kept.others,
            kept.moments,
            kept.x_mean,
            kept.y_mean,
            *(() if statistics is None else (statistics.mean, statistics.inverse_deviation, statistics.mean_squares)),
            *kept.sums,
        )
        ctx.settings = settings
        return with_strides_of(x, out.unflatten(2, x.shape[2:]))

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        settings: _Settings = ctx.settings
        # read once: non-reentrant checkpointing gives them a single time
        saved = ctx.saved_tensors
        inputs = saved[:7]
        if torch.is_grad_enabled():
            recorded = differentiable_gradients(partial(_block, settings=settings), inputs, d_out)
            return (*recorded, None, None, None)
        x, theta_weight, phi_weight, g_weight, z_weight, weight, bias = inputs
        num_statistics = 3 if settings.kind == "batch_norm" else 0
        statistics = Statistics(*saved[12 : 12 + num_statistics]) if num_statistics else None
        kept = _Kept(*saved[7:12], list(saved[12 + num_statistics :]))
        wants = ctx.needs_input_grad
        dtype = sum_dtype(x.dtype)
        gradients: list[Tensor | None] = [None] * 7
        with without_autocast(x):
            source = x.flatten(2).to(settings.feature_dtype)
            source = source if ctx.gram else in_faster_format(source)
            weights = _matrices((theta_weight, phi_weight, g_weight), settings)
            _make_missing(kept, source, weights, settings, ctx.gram)
            d_flat = d_out.flatten(2).to(dtype)
            y = _y_again(kept, settings, dtype)
            d_features = None
            if any(wants[:4]):
                d_features = empty_map_like(y.map, y.map.shape[1] * (1 if ctx.gram else 3), dtype)
            found = finish_gradients(
                d_flat,
                y,
                _z_matrices(z_weight, settings.groups, dtype),
                settings.ending(weight, bias, dtype),
                statistics,
                d_y_out=None if d_features is None else d_features[:, : y.map.shape[1]],
                wants_z=wants[4],
                wants_ending=any(wants[5:7]),
            )
            for place, like, gradient in (
                (4, z_weight, found.z_matrices),
                (5, weight, found.weight),
                (6, bias, found.bias),
            ):
                if wants[place] and gradient is not None:
                    gradients[place] = gradient.to(like.dtype).view_as(like)
            del y
            if d_features is not None:
                through = _through_dot_product if settings.is_dot_product else _through_series
                d_x, d_weights = through(d_features, found.factor, source, weights, kept, settings, wants)
                gradients[1:4] = [
                    None if d is None else d.to(like.dtype).view_as(like)
                    for d, like in zip(d_weights, inputs[1:4], strict=True)
                ]
                if d_x is not None:
                    d_x = in_format_of(d_flat, d_x)
                    if settings.kind != "branch":
                        d_x = d_x.to(dtype).add_(d_flat)
                    gradients[0] = with_strides_of(x, d_x.to(x.dtype).unflatten(2, x.shape[2:]))
        return (*gradients, None, None, None)


def _takes_gram_form(x_flat: Tensor, settings: _Settings, *, training: bool) -> bool:
    """Only on a CPU: on a GPU fused operators read x twice and need no K."""
    return (
        settings.is_dot_product
        and settings.feature_dtype in (torch.float32, torch.float64)
        and x_flat.device.type == "cpu"
        and gram.pays(*x_flat.shape[1:], training=training)
    )


def _dot_product(
    source: Tensor, weights: Sequence[Tensor], settings: _Settings, with_gram: bool
) -> tuple[Centred, _Kept]:
    theta_weight, phi_weight, g_weight = weights
    others, moments, x_mean = None, None, None
    if with_gram:
        x_mean = source.mean(-1)
        source = source - x_mean[..., None]
        moments = gram.second_moments(source)
        sums = gram.sums(moments, x_mean, phi_weight, g_weight, settings.groups, source.shape[2])
        theta = multiply(theta_weight[None], source)
        theta_map, y_mean = theta, x_mean @ theta_weight.transpose(0, 1)
    else:
        others = multiply(torch.cat([phi_weight, g_weight])[None], source)
        dtype = sum_dtype(source.dtype)
        phi, g = (feature.to(dtype) for feature in others.chunk(2, dim=1))
        sums = group_sums(phi * g, settings.groups)
        theta = multiply(theta_weight[None], source)
        theta_map, y_mean = centred(theta.to(dtype))
    factor = over_processes(sums, settings.process_group) * settings.coefficients[1]
    return Centred(theta_map, y_mean, factor), _Kept(theta, others, moments, x_mean, y_mean, [factor])


def _through_dot_product(
    d_features: Tensor,
    d_factor: Tensor | None,
    source: Tensor,
    weights: Sequence[Tensor],
    kept: _Kept,
    settings: _Settings,
    wants: Sequence[bool],
) -> tuple[Tensor | None, Sequence[Tensor | None]]:
    """The gradients of x and the three weights from those of theta, which lead ``d_features``, and of the factor."""
    assert d_factor is not None
    d_sums = over_processes(d_factor, settings.process_group) * settings.coefficients[1]
    theta_weight, phi_weight, g_weight = weights
    if kept.moments is None or kept.x_mean is None:
        assert kept.others is not None
        width = theta_weight.shape[0]
        factor = d_sums.repeat_interleave(width // settings.groups, dim=1)[..., None]
        phi, g = kept.others.chunk(2, dim=1)
        torch.mul(g, factor, out=d_features[:, width : 2 * width])
        torch.mul(phi, factor, out=d_features[:, 2 * width :])
        return _through_features(d_features, source, weights, settings, wants)
    positions = source.shape[2]
    d_phi_weight, d_g_weight = None, None
    if any(wants[2:4]):
        d_phi_weight, d_g_weight = gram.weight_gradients(
            d_sums, kept.moments, kept.x_mean, phi_weight, g_weight, positions
        )
    d_x, d_theta_weight = product_gradients(d_features, source, theta_weight, wants_map=wants[0], wants_matrix=wants[1])
    if d_x is not None:
        matrices = gram.input_matrices(d_sums, phi_weight, g_weight, positions)
        if channels_last(d_x):
            torch.baddbmm(d_x.transpose(1, 2), source.transpose(1, 2), matrices, out=d_x.transpose(1, 2))
        else:
            torch.baddbmm(d_x, matrices, source, out=d_x)
    return d_x, (d_theta_weight, d_phi_weight, d_g_weight)


def _series(source: Tensor, weights: Sequence[Tensor], settings: _Settings, _: bool) -> tuple[Centred, _Kept]:
    dtype = sum_dtype(source.dtype)
    theta_weight, *other_weights = weights
    theta = multiply(theta_weight[None], source)
    others = multiply(torch.cat(other_weights)[None], source)
    y = empty_map_like(theta, theta.shape[1], dtype)
    phi, g = others.chunk(2, dim=1)
    sums = write_series(theta, phi, g, settings.groups, settings.coefficients, y, settings.process_group)
    y_map, y_mean = centred(y)
    return Centred(y_map, y_mean, None), _Kept(theta, others, None, None, y_mean, [s for s in sums if s is not None])


def _through_series(
    d_features: Tensor,
    _: Tensor | None,
    source: Tensor,
    weights: Sequence[Tensor],
    kept: _Kept,
    settings: _Settings,
    wants: Sequence[bool],
) -> tuple[Tensor | None, Sequence[Tensor | None]]:
    """The gradients of x and the three weights from that of y, which leads ``d_features`` and is replaced."""
    assert kept.theta is not None
    assert kept.others is not None
    d_theta, d_phi, d_g = d_features.chunk(3, dim=1)
    phi, g = kept.others.chunk(2, dim=1)
    write_series_gradients(
        d_theta,
        (kept.theta, phi, g),
        with_gaps(kept.sums, settings.coefficients),
        settings.groups,
        settings.coefficients,
        (d_theta, d_phi, d_g),
        settings.process_group,
    )
    return _through_features(d_features, source, weights, settings, wants)


def _through_features(
    d_features: Tensor, source: Tensor, weights: Sequence[Tensor], settings: _Settings, wants: Sequence[bool]
) -> tuple[Tensor | None, Sequence[Tensor | None]]:
    """The gradients of x and of the three weights from those of theta, phi and g, [B, 3C', N]."""
    product_dtype = torch.bfloat16 if settings.feature_dtype == torch.bfloat16 else d_features.dtype
    d_x, d_joined = product_gradients(
        d_features.to(product_dtype),
        source.to(product_dtype),
        torch.cat(list(weights)).to(product_dtype),
        wants_map=wants[0],
        wants_matrix=any(wants[1:4]),
    )
    if d_joined is None:
        return d_x, (None, None, None)
    return d_x, [d if wanted else None for d, wanted in zip(d_joined.chunk(3), wants[1:4], strict=True)]


def _make_missing(kept: _Kept, source: Tensor, weights: Sequence[Tensor], settings: _Settings, with_gram: bool) -> None:
    """Makes again what was not kept, to save memory."""
    theta_weight, *other_weights = weights
    if settings.memory_efficient and with_gram:
        kept.x_mean = source.mean(-1)
        kept.moments = gram.second_moments(source - kept.x_mean[..., None])
    elif settings.memory_efficient:
        kept.theta = multiply(theta_weight[None], source)
        if settings.is_dot_product and source.dtype == sum_dtype(source.dtype):
            kept.theta.sub_(kept.y_mean[..., None])
        kept.others = multiply(torch.cat(other_weights)[None], source)


def _y_again(kept: _Kept, settings: _Settings, dtype: torch.dtype) -> Centred:
    """y as the forward pass had it, from what was kept."""
    theta = kept.theta
    assert theta is not None
    if settings.is_dot_product:
        if theta.dtype != dtype:
            theta = theta.to(dtype) - kept.y_mean[..., None]
        return Centred(theta, kept.y_mean, kept.sums[0])
    y = empty_map_like(theta, theta.shape[1], dtype)
    write_polynomial(theta, with_gaps(kept.sums, settings.coefficients), y)
    return Centred(y.sub_(kept.y_mean[..., None]), kept.y_mean, None)


def _matrices(weights: Sequence[Tensor], settings: _Settings) -> list[Tensor]:
    """The weights of theta, phi and g as matrices [C', C]."""
    return [weight.flatten(1).to(settings.feature_dtype) for weight in weights]


def _z_matrices(z_weight: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """conv_z's weight as one matrix a group, [G, C/G, c]."""
    return z_weight.flatten(1).unflatten(0, (groups, -1)).to(dtype)
