"""The compact generalized non-local operation: P + 1 sums a group, then a polynomial in theta.

Legend: B batch, C' inner channels, c = C'/G, S spatial or space-time axes, N positions, G groups,
M = c·N elements of one group, P order of the series.

The sums are an elementwise product and a sum, never a batched matrix product: on a CPU that loses up to
thousands of rounding units on long correlated vectors, where the pairwise summation of ``sum`` loses a few.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cgnl.kernel_functions import KernelFunction
from cgnl.ops.maps import parts_of_batch
from cgnl.ops.parallel import ProcessGroup, over_processes
from cgnl.ops.precision import autograd_function_can_run, sum_dtype
from cgnl.ops.statistics import Statistic, at_each_channel, group_sums, moments_of, statistic_of

# Sums by power, [B, C', 1] with a group's sum at each of its channels; None for a power whose coefficient is zero.
PowerSums = list[Tensor | None]

# Elements of one map that are worked on together on a CPU.
_ELEMENTS_IN_CACHE = 2**18


def compact_generalized_non_local(
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    *,
    groups: int,
    kernel: KernelFunction,
    factor: float,
    statistic: Statistic = "sum",
    is_padding: bool = False,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Run Eq. 12 through P + 1 sums a group. Arguments as in `cgnl.ops`; ``factor`` is the scale."""
    maps = (theta.flatten(2), phi.flatten(2), g.flatten(2))
    coefficients = scaled_coefficients(kernel, factor)
    if statistic != "sum":
        y = scaled_by_statistic(*maps, groups, statistic, coefficients[1], process_group, is_padding=is_padding)
        return y.unflatten(2, theta.shape[2:])
    plain = kernel.is_plain_series and autograd_function_can_run(theta, phi, g)
    y = (_Series.apply if plain else series)(*maps, groups, kernel, coefficients, process_group)
    return y.unflatten(2, theta.shape[2:])


def scaled_coefficients(kernel: KernelFunction, factor: float) -> tuple[float, ...]:
    """Return the series' coefficients with the scale in them, up to the last that is not zero."""
    coefficients = [a2 * factor for a2 in kernel.coefficients]
    order = max(p for p, a2 in enumerate(kernel.coefficients) if a2)
    return tuple(coefficients[: order + 1])


def series(*arguments: Any) -> Tensor:
    """Do as `series_in_parts`, and return y."""
    varying, shared = series_in_parts(*arguments)
    return varying if shared is None else varying + shared


def scaled_by_statistic(
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    groups: int,
    statistic: Statistic,
    factor: float,
    process_group: ProcessGroup | None = None,
    *,
    is_padding: bool = False,
) -> Tensor:
    """Return y = factor s theta of [B, C', N] for a statistic s other than the sum, differentiable."""
    theta, phi, g = (t.to(sum_dtype(theta.dtype)) for t in (theta, phi, g))
    s = statistic_of(moments_of(phi, g, groups, process_group, is_padding=is_padding), statistic) * factor
    return theta * at_each_channel(s, theta.shape[1])


def series_in_parts(
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    groups: int,
    kernel: KernelFunction,
    coefficients: Sequence[float],
    process_group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Run the operation on [B, C', N] as ordinary differentiable operations, for every kernel function.

    Return the part that varies over the positions and the shared one, [B, C', 1], z_0 of Eq. 12.
    """
    dtype = sum_dtype(theta.dtype)
    theta, phi, g = theta.to(dtype), phi.to(dtype), g.to(dtype)
    if kernel.normalizes_features:
        theta, phi = (_normalized(t, groups, process_group) for t in (theta, phi))
    phi_envelope = kernel.envelope(phi)
    if phi_envelope is not None:
        g = g * phi_envelope
    sums = _over_processes(power_sums(phi, g, groups, coefficients), groups, process_group)
    constant = sums[0]
    if constant is not None and len(sums) == 1:
        # phi gets a gradient all the same, zeros, as theta does: data parallelism waits for them
        sums = [constant + nothing_of(phi)]
    return varying_part(theta, sums, kernel), sums[0]


def varying_part(theta: Tensor, sums: PowerSums, kernel: KernelFunction) -> Tensor:
    """Return y less z_0, which all positions share."""
    varying = polynomial(theta, without_shared(sums)) if len(sums) > 1 else nothing_of(theta).expand_as(theta)
    envelope, less_one = kernel.envelope(theta), kernel.envelope_less_one(theta)
    if envelope is None or less_one is None:
        return varying
    varying = varying * envelope
    return varying if sums[0] is None else varying + sums[0] * less_one


def without_shared(sums: PowerSums) -> PowerSums:
    """Return the coefficients of the polynomial without its constant."""
    return [None, *sums[1:]]


def nothing_of(features: Tensor) -> Tensor:
    """Return a zero for each row of a map that depends on the map, whatever is in it."""
    return features[..., :0].sum(-1, keepdim=True)


def _normalized(features: Tensor, groups: int, process_group: ProcessGroup | None) -> Tensor:
    """Return the map with l2 norm 1 in each group."""
    split = features.unflatten(1, (groups, -1))
    if process_group is None:
        norm = torch.linalg.vector_norm(split, dim=(2, 3), keepdim=True)
    else:
        # of the whole input; a root has no gradient at zero, where a process holds no positions
        squares = split.square().sum((2, 3), keepdim=True)
        norm = over_processes(squares, process_group).clamp_min(1e-24).sqrt()
    return (split / norm.clamp_min(1e-12)).flatten(1, 2)


def power_sums(base: Tensor, weight: Tensor, groups: int, coefficients: Sequence[float]) -> PowerSums:
    """Return coefficients[p] · (sum over a group's elements of base^p weight), for each p."""
    sums: PowerSums = []
    product = weight
    for p, coefficient in enumerate(coefficients):
        if p:
            # torch.jit checks its trace with gradients off, and wants the same operations
            in_place = p > 1 and not (torch.is_grad_enabled() or torch.jit.is_tracing())
            product = product.mul_(base) if in_place else product * base
        sums.append(
            at_each_channel(group_sums(product, groups), product.shape[1]) * coefficient if coefficient else None
        )
    return sums


def _over_processes(sums: PowerSums, groups: int, process_group: ProcessGroup | None) -> PowerSums:
    """Add all sums over the processes in one exchange of [B, G] numbers each."""
    if process_group is None:
        return sums
    own = [s for s in sums if s is not None]
    by_group = torch.stack([s.unflatten(1, (groups, -1))[:, :, 0, 0] for s in own])
    whole = iter(over_processes(by_group, process_group))
    return [None if s is None else at_each_channel(next(whole), s.shape[1]) for s in sums]


def polynomial(base: Tensor, coefficients: PowerSums, out: Tensor | None = None) -> Tensor:
    """Evaluate the polynomial in base with one set of coefficients a sample and group, by Horner's rule.

    A constant comes back as it is, to be broadcast, and leaves ``out`` alone.
    """
    *lower, result = coefficients
    assert result is not None
    for coefficient in reversed(lower):
        if coefficient is None:
            result = torch.mul(result, base, out=out)
        else:
            result = torch.addcmul(coefficient, result, base, out=out)
    return result


def derivative(coefficients: PowerSums) -> PowerSums:
    """Return the coefficients of the polynomial's derivative; zero for a constant."""
    if len(coefficients) == 1:
        (constant,) = coefficients
        assert constant is not None
        return [torch.zeros_like(constant)]
    return [None if s is None else p * s for p, s in enumerate(coefficients) if p]


def _sums_in_parts(
    base: Tensor,
    weight: Tensor,
    groups: int,
    coefficients: Sequence[float],
    dtype: torch.dtype,
    process_group: ProcessGroup | None,
) -> PowerSums:
    """Return `power_sums` over all processes, working on one part of the batch at a time."""
    parts = [
        power_sums(base[part].to(dtype), weight[part].to(dtype), groups, coefficients)
        for part in parts_of_batch(base, _ELEMENTS_IN_CACHE)
    ]
    return joined_over_processes(parts, groups, process_group)


def joined_over_processes(parts: Sequence[PowerSums], groups: int, process_group: ProcessGroup | None) -> PowerSums:
    """Return the sums of the whole batch from those of its parts, over all processes."""
    sums: PowerSums = [None if own[0] is None else torch.cat(own) for own in zip(*parts, strict=True)]
    return _over_processes(sums, groups, process_group)


def part_of(sums: PowerSums, part: slice) -> PowerSums:
    """Return the sums of a part of the batch."""
    return [None if s is None else s[part] for s in sums]


def write_polynomial(base: Tensor, coefficients: PowerSums, out: Tensor) -> None:
    """Write the polynomial's values into ``out``."""
    for part in parts_of_batch(base, _ELEMENTS_IN_CACHE):
        own = part_of(coefficients, part)
        out[part].copy_(polynomial(base[part].to(out.dtype), own, out=out[part]))


def write_series_gradients(
    dy: Tensor,
    features: tuple[Tensor, Tensor, Tensor],
    sums: PowerSums,
    groups: int,
    coefficients: Sequence[float],
    out: Sequence[Tensor],
    process_group: ProcessGroup | None = None,
) -> None:
    """Write the gradients of theta, phi and g, [B, C', N], into ``out``.

    ``dy`` may be the first of them. With z_p = a2_p s_p the sums: d theta = dy · q'(theta), d s_p = a2_p · sum of
    dy theta^p, and phi and g get the polynomials in phi that these make.
    """
    all_d_sums = _sums_in_parts(features[0], dy, groups, coefficients, dy.dtype, process_group)
    for part in parts_of_batch(dy, _ELEMENTS_IN_CACHE):
        theta, phi, g = (feature[part].to(dy.dtype) for feature in features)
        d_theta, d_phi, d_g = (d[part] for d in out)
        own_sums, d_sums = part_of(sums, part), part_of(all_d_sums, part)
        torch.mul(dy[part], polynomial(theta, derivative(own_sums)), out=d_theta)
        torch.mul(g, polynomial(phi, derivative(d_sums), out=d_phi), out=d_phi)
        d_g.copy_(polynomial(phi, d_sums, out=d_g))


class _Series(torch.autograd.Function):
    """The plain series: keeps theta, phi, g and the sums, and neither powers nor steps of Horner's rule."""

    @staticmethod
    def forward(
        ctx: Any,
        theta: Tensor,
        phi: Tensor,
        g: Tensor,
        groups: int,
        kernel: KernelFunction,
        coefficients: Sequence[float],
        process_group: ProcessGroup | None,
    ) -> Tensor:
        y = torch.empty_like(theta, dtype=sum_dtype(theta.dtype))
        sums = _sums_in_parts(phi, g, groups, coefficients, y.dtype, process_group)
        write_polynomial(theta, sums, y)
        ctx.save_for_backward(theta, phi, g, *(s for s in sums if s is not None))
        ctx.settings = groups, kernel, coefficients, process_group
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        theta, phi, g, *kept = ctx.saved_tensors
        groups, _, coefficients, process_group = ctx.settings
        if torch.is_grad_enabled() or not autograd_function_can_run(dy):
            recorded = differentiable_gradients(lambda *maps: series(*maps, *ctx.settings), (theta, phi, g), dy)
            return (*recorded, None, None, None, None)
        gradients = [torch.empty_like(t, dtype=dy.dtype) for t in (theta, phi, g)]
        sums = with_gaps(kept, coefficients)
        write_series_gradients(dy, (theta, phi, g), sums, groups, coefficients, gradients, process_group)
        return (*(d.to(theta.dtype) for d in gradients), None, None, None, None)


def differentiable_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], dy: Tensor
) -> list[Tensor | None]:
    """Return the gradients at the inputs that want one, through recorded operations.

    They have a graph of their own where gradients of gradients are wanted, and ``dy`` may be of any kind.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # seen as others: one input may depend on another, which is no part of these gradients
        inputs = [None if t is None else t.view_as(t) for t in inputs]
        y = function(*inputs)
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    gradients = iter(torch.autograd.grad(y, wanted, dy, create_graph=create_graph, allow_unused=True))
    return [next(gradients) if t is not None and t.requires_grad else None for t in inputs]


def with_gaps(kept: Sequence[Tensor], coefficients: Sequence[float]) -> PowerSums:
    """Return the kept sums at the places of their powers."""
    remaining = iter(kept)
    return [next(remaining) if coefficient else None for coefficient in coefficients]
