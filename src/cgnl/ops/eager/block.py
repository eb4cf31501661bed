"""The CGNL block from x to conv_z's output, and with norm and residual to the block's output.

The autograd function keeps x and one to three maps [B, C', N], and recomputes the rest in the backward pass.
Convolutions run as matrix products, and the result has x's memory format. The dot product has a way of its own: y is
theta times one number for each sample and group, which no map needs to be made for, and which the Gram form computes
without phi and g where that is the cheaper way.

Legend: B batch, C channels, C' inner channels, c = C'/G, S spatial or space-time axes, N positions, G groups.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cgnl.kernel_functions import KernelFunction
from cgnl.ops import statistics
from cgnl.ops.eager import gram
from cgnl.ops.eager.ending import (
    EndingGradients,
    Split,
    Statistics,
    finish,
    finish_gradients,
    update_running_statistics,
)
from cgnl.ops.eager.features import Kept, others_again, takes_gram_form, y_again, y_of_dot_product, y_of_series
from cgnl.ops.eager.plain import Settings, block_in_plain_operations
from cgnl.ops.eager.series import (
    differentiable_gradients,
    part_of,
    scaled_coefficients,
    with_gaps,
    write_series_gradients,
)
from cgnl.ops.maps import add_matrix_gradient, empty_map, in_format_of, memory_as_map, multiply, with_strides_of
from cgnl.ops.parallel import over_processes
from cgnl.ops.precision import autograd_function_can_run, feature_dtype, sum_dtype, without_autocast


def cgnl_block(
    x: Tensor,
    theta_weight: Tensor,
    phi_weight: Tensor,
    g_weight: Tensor,
    z_weight: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    groups: int,
    kernel: KernelFunction,
    factor: float,
    **settings_of_block: Any,
) -> Tensor:
    """Run Fig. 2 from x to conv_z's output. Arguments as in `cgnl.ops` and `Settings`; ``factor`` is the scale.

    The kind "affine" is x + weight · branch + bias, in x's type: Eq. 13 with a norm whose statistics are given, or
    none; weight and bias are [C] or None. "batch_norm" is Eq. 13 in training: BatchNorm of the branch over this batch,
    plus x. It keeps less than a norm after the branch does, because conv_z's output is not needed in the backward pass
    (of a plain series). The running statistics, where given, are updated in place.
    """
    coefficients = scaled_coefficients(kernel, factor)
    z_groups = theta_weight.shape[0] // z_weight.shape[1]
    settings = Settings(groups, z_groups, kernel, coefficients, feature_dtype(x), **settings_of_block)
    inputs = (x, theta_weight, phi_weight, g_weight, z_weight, weight, bias)
    tensors = [t for t in inputs if t is not None]
    can_run = autograd_function_can_run(*tensors)
    if can_run:
        settings = replace(settings, training=torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        if settings.kernel.is_plain_series:
            return _Block.apply(*inputs, running_mean, running_var, settings)
    if can_run and settings.memory_efficient and settings.training:
        out, *statistics = checkpoint(
            block_in_plain_operations, *inputs, settings, use_reentrant=False, preserve_rng_state=False
        )
    else:
        out, *statistics = block_in_plain_operations(*inputs, settings)
    if settings.kind == "batch_norm":
        mean, variance = statistics
        count = x.shape[0] * math.prod(x.shape[2:])
        update_running_statistics(running_mean, running_var, mean, variance, count, settings.momentum)
    return with_strides_of(x, out) if can_run else out


cgnl_block_affine = partial(cgnl_block, kind="affine")
cgnl_block_batch_norm = partial(cgnl_block, kind="batch_norm")


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
        settings: Settings,
    ) -> Tensor:
        dtype = sum_dtype(x.dtype)
        with without_autocast(x):
            x_flat = x.flatten(2)
            # no view of another tensor: what follows may change it in place
            result = torch.empty_like(x, dtype=dtype if settings.kind == "branch" else x.dtype)
            own_memory = memory_as_map(result, x_flat) if result.dtype == dtype else None
            out = empty_map(x_flat, x_flat.shape[1], dtype) if own_memory is None else own_memory
            parts = settings.parts(x_flat)
            weights = _matrices((theta_weight, phi_weight, g_weight), settings)
            ctx.gram = takes_gram_form(x_flat, theta_weight.shape[0], settings)
            make = y_of_dot_product if settings.is_dot_product else y_of_series
            y, kept = make(x_flat.to(settings.feature_dtype), weights, parts, settings, ctx.gram)
            statistics = finish(
                y,
                _z_matrices(z_weight, settings.z_groups, dtype),
                x_flat,
                parts,
                settings.ending(weight, bias, dtype),
                running_mean,
                running_var,
                out,
            )
            if own_memory is None:
                result.copy_(out.unflatten(2, x.shape[2:]))
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
            kept.group_moments,
            *(() if statistics is None else (statistics.mean, statistics.inverse_deviation, statistics.mean_squares)),
            *kept.sums,
        )
        ctx.settings = settings
        return result

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        settings: Settings = ctx.settings
        # read once: non-reentrant checkpointing gives them a single time
        saved = ctx.saved_tensors
        inputs = saved[:7]
        if torch.is_grad_enabled() or not autograd_function_can_run(d_out):
            outputs: Callable[..., tuple[Tensor, ...]] = partial(block_in_plain_operations, settings=settings)
            recorded = differentiable_gradients(lambda *tensors: outputs(*tensors)[0], inputs, d_out)
            return (*recorded, None, None, None)
        x, theta_weight, phi_weight, g_weight, z_weight, weight, bias = inputs
        num_statistics = 3 if settings.kind == "batch_norm" else 0
        statistics = Statistics(*saved[13 : 13 + num_statistics]) if num_statistics else None
        theta, others, moments, x_mean, y_mean, group_moments = saved[7:13]
        sums = list(saved[13 + num_statistics :])
        kept = Kept(theta, others, moments, x_mean, y_mean, group_moments, sums)
        wants = ctx.needs_input_grad
        dtype = sum_dtype(x.dtype)
        gradients: list[Tensor | None] = [None] * 7
        with without_autocast(x):
            source = x.flatten(2).to(settings.feature_dtype)
            parts = settings.parts(source)
            weights = _matrices((theta_weight, phi_weight, g_weight), settings)
            d_flat = in_format_of(source, d_out.flatten(2).to(dtype))
            y = y_again(kept, settings, dtype)
            found = finish_gradients(
                d_flat,
                y,
                _z_matrices(z_weight, settings.z_groups, dtype),
                parts,
                settings.ending(weight, bias, dtype),
                statistics,
                wants_z=wants[4],
            )
            d_x: Tensor | None = None
            d_weights: tuple[Tensor | None, ...] = (None, None, None)
            if any(wants[:4]):
                d_x, d_weights = _through_features(
                    d_flat, y, found, source, weights, kept, parts, settings, ctx.gram, wants
                )
            if d_x is not None:
                d_x = with_strides_of(x, d_x.to(x.dtype).unflatten(2, x.shape[2:]))
            found_gradients = (d_x, *d_weights, found.z_matrices, found.weight, found.bias)
            for place, (like, gradient) in enumerate(zip(inputs, found_gradients, strict=True)):
                if wants[place] and gradient is not None:
                    gradients[place] = gradient.to(like.dtype).view_as(like) if place else gradient
        return (*gradients, None, None, None)


def _through_features(
    d_out: Tensor,
    y: Split,
    found: EndingGradients,
    source: Tensor,
    weights: Sequence[Tensor],
    kept: Kept,
    parts: Sequence[slice],
    settings: Settings,
    with_gram: bool,
    wants: Sequence[bool],
) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
    """Return the gradients of x and of the three weights."""
    dtype = d_out.dtype
    product_dtype = torch.bfloat16 if settings.feature_dtype == torch.bfloat16 else dtype
    own_weights = weights[:1] if with_gram else weights
    joined = torch.cat([weight.to(product_dtype) for weight in own_weights])
    d_joined = torch.zeros_like(joined, dtype=dtype) if any(wants[1 : 1 + len(own_weights)]) else None
    d_x = empty_map(source, source.shape[1], product_dtype) if wants[0] else None
    all_d_sums = None
    if settings.is_dot_product:
        all_d_sums = d_out.new_empty(d_out.shape[0], settings.groups)
        if found.factor is not None:
            all_d_sums = over_processes(found.factor, settings.process_group) * settings.coefficients[1]
    for part in parts:
        d_features = empty_map(source[part], joined.shape[0], dtype)
        d_theta = d_features[:, : weights[0].shape[0]]
        found.write_y(part, d_out[part], y.map(part), d_theta)
        d_sums = None if all_d_sums is None else all_d_sums[part]
        if d_sums is not None and not settings.has_factor:
            _from_y_to_theta(d_theta, d_sums, kept, part, settings)
        if not with_gram:
            phi, g = others_again(kept.others, source, weights, part)
            _write_feature_gradients(d_features, kept, phi, g, d_sums, part, settings)
        d_features = d_features.to(product_dtype)
        if d_joined is not None:
            add_matrix_gradient(d_features, source[part].to(product_dtype), d_joined)
        if d_x is not None:
            multiply(joined.transpose(0, 1)[None], d_features, out=d_x[part])
    d_weights: list[Tensor | None] = [None, None, None]
    if d_joined is not None:
        d_weights[: len(own_weights)] = d_joined.chunk(len(own_weights))
    if with_gram and all_d_sums is not None:
        _, phi_weight, g_weight = weights
        if any(wants[2:4]):
            assert kept.moments is not None
            assert kept.x_mean is not None
            d_weights[1:] = gram.weight_gradients(
                all_d_sums, kept.moments, kept.x_mean, phi_weight, g_weight, source.shape[2]
            )
        if d_x is not None:
            gram.add_input_gradients(all_d_sums, phi_weight, g_weight, source, d_x)
    if d_x is not None and settings.kind != "branch":
        d_x = d_x.to(dtype).add_(d_out)
    return d_x, tuple(d_weights)


def _from_y_to_theta(d_y: Tensor, d_sums: Tensor, kept: Kept, part: slice, settings: Settings) -> None:
    """Turn the gradient of y = s theta [B_part, C', N] into theta's, and write that of s before its factor."""
    theta, channels = kept.theta[part].to(d_y.dtype), d_y.shape[1]
    of_s = statistics.group_sums(d_y * theta, settings.groups)
    if kept.y_mean is not None and kept.theta.dtype == d_y.dtype:  # theta is kept less its mean
        of_s = of_s + statistics.group_sums(d_y.sum(-1, keepdim=True) * kept.y_mean[part][..., None], settings.groups)
    d_sums.copy_(over_processes(of_s, settings.process_group) * settings.coefficients[1])
    d_y.mul_(statistics.at_each_channel(kept.sums[0][part], channels))


def _write_feature_gradients(
    d_features: Tensor, kept: Kept, phi: Tensor, g: Tensor, d_sums: Tensor | None, part: slice, settings: Settings
) -> None:
    """Write the gradients of theta, phi and g of a part of the batch, [B_part, 3C', N], where that of y leads."""
    d_theta, d_phi, d_g = d_features.chunk(3, dim=1)
    if d_sums is not None and kept.group_moments is not None:
        phi, g = phi.to(d_phi.dtype), g.to(d_g.dtype)
        statistics.gradients(d_sums, kept.group_moments[part], settings.statistic, phi, g, (d_phi, d_g))
        return
    if d_sums is not None:
        factor = statistics.at_each_channel(d_sums, d_phi.shape[1])
        torch.mul(g, factor, out=d_phi)
        torch.mul(phi, factor, out=d_g)
        return
    write_series_gradients(
        d_theta,
        (kept.theta[part], phi, g),
        part_of(with_gaps(kept.sums, settings.coefficients), part),
        settings.groups,
        settings.coefficients,
        (d_theta, d_phi, d_g),
        settings.process_group,
    )


def _matrices(weights: Sequence[Tensor], settings: Settings) -> list[Tensor]:
    """Return the weights of theta, phi and g as matrices [C', C]."""
    return [weight.flatten(1).to(settings.feature_dtype) for weight in weights]


def _z_matrices(z_weight: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """Return conv_z's weight as one matrix a group, [G, C/G, c]."""
    return z_weight.flatten(1).unflatten(0, (groups, -1)).to(dtype)
