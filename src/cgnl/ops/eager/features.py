"""From x to y, and y again in the backward pass: theta, phi and g, their sums, and what is kept of all that.

Legend: B batch, C channels, C' inner channels, c = C'/G, N positions, G groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cgnl.ops import statistics
from cgnl.ops.eager import gram
from cgnl.ops.eager.ending import Split
from cgnl.ops.eager.plain import Settings
from cgnl.ops.eager.series import (
    PowerSums,
    joined_over_processes,
    part_of,
    polynomial,
    power_sums,
    with_gaps,
    without_shared,
)
from cgnl.ops.maps import empty_map, multiply
from cgnl.ops.parallel import over_processes
from cgnl.ops.precision import sum_dtype
from cgnl.ops.statistics import at_each_channel, group_sums


@dataclass(frozen=True)
class Kept:
    """What the backward pass needs of the features.

    Attributes:
        theta: [B, C', N]; for the dot product less its mean, where there is one and theta has the type of the sums.
        others: phi and g, [B, 2C', N], or phi alone, where g is made again; None where both are, or the Gram form runs.
        moments: K of the Gram form, see `gram.second_moments`; None without it.
        x_mean: [B, C], with the Gram form.
        y_mean: [B, C'], the mean over the positions of y less z_0, of theta for the dot product; None without a norm.
        group_moments: Of phi and g, see `statistics.moments_of`; None for the sum.
        sums: Of the series, a tensor for each coefficient that is not zero; of the dot product one, [B, G].
    """

    theta: Tensor
    others: Tensor | None
    moments: Tensor | None
    x_mean: Tensor | None
    y_mean: Tensor | None
    group_moments: Tensor | None
    sums: list[Tensor]


def takes_gram_form(x_flat: Tensor, inner: int, settings: Settings) -> bool:
    """Tell whether the Gram form runs: only on a CPU, as on a GPU fused operators read x twice and need no K."""
    return settings.statistic == "sum" and _would_take_gram_form(x_flat, inner, settings)


def _would_take_gram_form(x_flat: Tensor, inner: int, settings: Settings) -> bool:
    batch, channels, positions = x_flat.shape
    return (
        settings.is_dot_product
        and settings.feature_dtype in (torch.float32, torch.float64)
        and x_flat.device.type == "cpu"
        and gram.pays(batch, channels, inner, positions, settings.groups, training=settings.training)
    )


def y_of_dot_product(
    source: Tensor, weights: Sequence[Tensor], parts: Sequence[slice], settings: Settings, with_gram: bool
) -> tuple[Split, Kept]:
    theta_weight, phi_weight, g_weight = weights
    dtype = sum_dtype(source.dtype)
    others, moments, x_mean, group_moments = None, None, None, None
    if settings.statistic != "sum":
        # as much is kept as for the sum at the most, which needs neither phi nor g in the Gram form
        if not (settings.memory_efficient or _would_take_gram_form(source, phi_weight.shape[0], settings)):
            others = _memory_for_others(source, weights, settings)
        group_moments = source.new_empty(source.shape[0], settings.groups, 6, dtype=dtype)
        for part in parts:
            phi, g = (features.to(dtype) for features in _make_others(others, source, weights, part))
            group_moments[part] = statistics.moments_of(
                phi, g, settings.groups, settings.process_group, is_padding=settings.is_padding
            )
        sums = statistics.statistic_of(group_moments, settings.statistic)
    elif with_gram:
        x_mean = source.mean(-1)
        moments = gram.second_moments(source, x_mean)
        sums = gram.sums(moments, x_mean, phi_weight, g_weight, settings.groups, source.shape[2])
    else:
        others = _memory_for_others(source, weights, settings)
        sums = source.new_empty(source.shape[0], settings.groups, dtype=dtype)
        for part in parts:
            phi, g = _make_others(others, source, weights, part)
            sums[part] = group_sums(phi.to(dtype) * g.to(dtype), settings.groups)
    theta = multiply(theta_weight[None], source)
    y_mean = theta.to(dtype).mean(-1) if settings.kind == "batch_norm" else None
    if y_mean is not None and theta.dtype == dtype:
        theta.sub_(y_mean[..., None])
    if group_moments is None:
        sums = over_processes(sums, settings.process_group)
    kept = Kept(theta, others, moments, x_mean, y_mean, group_moments, [sums * settings.coefficients[1]])
    return y_again(kept, settings, dtype), kept


def y_of_series(
    source: Tensor, weights: Sequence[Tensor], parts: Sequence[slice], settings: Settings, _: bool
) -> tuple[Split, Kept]:
    dtype = sum_dtype(source.dtype)
    others = _memory_for_others(source, weights, settings)
    sums_of_parts = []
    for part in parts:
        phi, g = _make_others(others, source, weights, part)
        sums_of_parts.append(power_sums(phi.to(dtype), g.to(dtype), settings.groups, settings.coefficients))
    sums = joined_over_processes(sums_of_parts, settings.groups, settings.process_group)
    theta = multiply(weights[0][None], source)
    shared = None if sums[0] is None else sums[0][..., 0]
    y_mean, mean = None, shared
    if settings.kind == "batch_norm":
        y_mean, mean = source.new_empty(2, *theta.shape[:2], dtype=dtype).unbind()

    def y_map(part: slice) -> Tensor:
        y = _varying(theta[part], part_of(sums, part), dtype)
        if y_mean is None or mean is None:
            return y
        y_mean[part] = y.mean(-1)
        mean[part] = y_mean[part] if shared is None else y_mean[part] + shared[part]
        return y.sub_(y_mean[part][..., None])

    kept = Kept(theta, others, None, None, y_mean, None, [s for s in sums if s is not None])
    return Split(y_map, mean, None), kept


def _memory_for_others(source: Tensor, weights: Sequence[Tensor], settings: Settings) -> Tensor:
    """Make room for phi and g, [B, 2C', N], or to save memory for phi alone."""
    width = weights[1].shape[0]
    # the moments of many groups are kept as well, and no more than for the sum in all
    phi_alone = settings.memory_efficient or settings.statistic != "sum"
    return empty_map(source, width if phi_alone else 2 * width, source.dtype)


def _make_others(
    others: Tensor | None, source: Tensor, weights: Sequence[Tensor], part: slice
) -> tuple[Tensor, Tensor]:
    """Return phi and g of a part of the batch, [B_part, C', N] each; the kept ones go into ``others``."""
    _, phi_weight, g_weight = weights
    if others is None:
        phi, g = multiply(torch.cat([phi_weight, g_weight])[None], source[part]).chunk(2, dim=1)
        return phi, g
    kept = others[part]
    if kept.shape[1] == phi_weight.shape[0]:
        return multiply(phi_weight[None], source[part], out=kept), multiply(g_weight[None], source[part])
    phi, g = multiply(torch.cat([phi_weight, g_weight])[None], source[part], out=kept).chunk(2, dim=1)
    return phi, g


def others_again(
    others: Tensor | None, source: Tensor, weights: Sequence[Tensor], part: slice
) -> tuple[Tensor, Tensor]:
    """Return phi and g of a part of the batch, from what was kept."""
    _, phi_weight, g_weight = weights
    if others is None:
        return _make_others(None, source, weights, part)
    kept = others[part]
    if kept.shape[1] == phi_weight.shape[0]:
        return kept, multiply(g_weight[None], source[part])
    phi, g = kept.chunk(2, dim=1)
    return phi, g


def _varying(theta: Tensor, sums: PowerSums, dtype: torch.dtype) -> Tensor:
    """Return y without z_0, which all positions share."""
    if len(sums) == 1:
        return torch.zeros_like(theta, dtype=dtype)
    y = torch.empty_like(theta, dtype=dtype)
    return polynomial(theta.to(dtype), without_shared(sums), out=y)


def y_again(kept: Kept, settings: Settings, dtype: torch.dtype) -> Split:
    """Return y as the forward pass had it, from what was kept."""
    theta = kept.theta
    sums = with_gaps(kept.sums, settings.coefficients)

    def y_map(part: slice) -> Tensor:
        own = theta[part]
        if not settings.is_dot_product:
            y = _varying(own, part_of(sums, part), dtype)
            return y if kept.y_mean is None else y.sub_(kept.y_mean[part][..., None])
        if own.dtype != dtype:
            own = own.to(dtype)
            own = own if kept.y_mean is None else own.sub_(kept.y_mean[part][..., None])
        return own if settings.has_factor else own * at_each_channel(kept.sums[0][part], own.shape[1])

    if not settings.is_dot_product:
        shared = None if sums[0] is None else sums[0][..., 0]
        mean = shared if kept.y_mean is None else kept.y_mean if shared is None else kept.y_mean + shared
        return Split(y_map, mean, None)
    if settings.has_factor:
        return Split(y_map, kept.y_mean, kept.sums[0])
    if kept.y_mean is None:
        return Split(y_map, None, None)
    return Split(y_map, kept.y_mean * at_each_channel(kept.sums[0], theta.shape[1])[..., 0], None)
