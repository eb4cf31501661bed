"""The compact generalized non-local operation: P + 1 sums a group, then a polynomial in theta.

Legend: B batch, C' inner channels, c = C'/G, S spatial or space-time axes, N positions, G groups,
M = c·N elements of one group, P order of the series.

The sums are an elementwise product and a sum, never a batched matrix product: on a CPU that loses up to
thousands of rounding units on long correlated vectors, where the pairwise summation of ``sum`` loses a few.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cgnl.kernel_functions import KernelFunction

# Sums [B, G, 1, 1] by power; None for a power whose coefficient is zero.
PowerSums = list[Tensor | None]


def compact_generalized_non_local(
    theta: Tensor, phi: Tensor, g: Tensor, *, groups: int, kernel: KernelFunction, factor: float
) -> Tensor:
    """Eq. 12 through P + 1 sums a group. Arguments as in `cgnl.ops`; ``factor`` is the scale."""
    theta_split, phi_split, g_split = (split_groups(t, groups) for t in (theta, phi, g))
    coefficients = scaled_coefficients(kernel, factor)
    if kernel.is_plain_series and autograd_function_can_run(theta, phi, g):
        y = _Series.apply(theta_split, phi_split, g_split, kernel, coefficients)
    else:
        y = series(theta_split, phi_split, g_split, kernel, coefficients)
    return y.flatten(1, 2).unflatten(2, theta.shape[2:])


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums over the elements of a group run: float32 for the half types."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def split_groups(features: Tensor, groups: int) -> Tensor:
    """[B, C', *S] as [B, G, c, N]."""
    return features.flatten(2).unflatten(1, (groups, -1))


def scaled_coefficients(kernel: KernelFunction, factor: float) -> tuple[float, ...]:
    """The series' coefficients with the scale in them, up to the last that is not zero."""
    coefficients = [a2 * factor for a2 in kernel.coefficients]
    order = max(p for p, a2 in enumerate(kernel.coefficients) if a2)
    return tuple(coefficients[: order + 1])


def autocast_is_on(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's device."""
    device_type = tensor.device.type
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Switches autocast off where it is on for the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False) if autocast_is_on(tensor) else nullcontext()


def autograd_function_can_run(*tensors: Tensor) -> bool:
    """Whether these tensors may go through an autograd function: plain ones, outside traces and transforms."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or any(type(t) not in (Tensor, torch.nn.Parameter) or not t.numel() for t in tensors)
    )


def series(theta: Tensor, phi: Tensor, g: Tensor, kernel: KernelFunction, coefficients: Sequence[float]) -> Tensor:
    """The operation on [B, G, c, N] as ordinary differentiable operations, for every kernel function."""
    dtype = sum_dtype(theta.dtype)
    theta, phi, g = theta.to(dtype), phi.to(dtype), g.to(dtype)
    if kernel.normalizes_features:
        theta, phi = (
            t / torch.linalg.vector_norm(t, dim=(-2, -1), keepdim=True).clamp_min(1e-12) for t in (theta, phi)
        )
    phi_envelope, theta_envelope = kernel.envelope(phi), kernel.envelope(theta)
    if phi_envelope is not None:
        g = g * phi_envelope
    y = polynomial_map(theta, power_sums(phi, g, coefficients))
    return y if theta_envelope is None else y * theta_envelope


def power_sums(base: Tensor, weight: Tensor, coefficients: Sequence[float]) -> PowerSums:
    """coefficients[p] · (sum over c and N of base^p weight), for each p."""
    sums: PowerSums = []
    product = weight
    for p, coefficient in enumerate(coefficients):
        if p:
            in_place = p > 1 and not torch.is_grad_enabled()
            product = product.mul_(base) if in_place else product * base
        # axis by axis: over both at once PyTorch sums a map that has the channels last without splitting it up
        total = product.sum(-1, keepdim=True).sum(-2, keepdim=True) if coefficient else None
        sums.append(None if total is None else total * coefficient)
    return sums


def polynomial(base: Tensor, coefficients: PowerSums, out: Tensor | None = None) -> Tensor:
    """The polynomial in base with one set of coefficients a sample and group, by Horner's rule.

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


def polynomial_map(base: Tensor, coefficients: PowerSums) -> Tensor:
    """The polynomial as a map of base's shape and strides, also where it is constant."""
    values = polynomial(base, coefficients)
    return values if len(coefficients) > 1 else torch.zeros_like(base) + values


def derivative(coefficients: PowerSums) -> PowerSums:
    """The coefficients of the polynomial's derivative; zero for a constant."""
    if len(coefficients) == 1:
        (constant,) = coefficients
        assert constant is not None
        return [torch.zeros_like(constant)]
    return [None if s is None else p * s for p, s in enumerate(coefficients) if p]


def series_gradients(
    dy: Tensor,
    features: tuple[Tensor, Tensor, Tensor],
    sums: PowerSums,
    coefficients: Sequence[float],
    out: Sequence[Tensor],
) -> None:
    """Writes the gradients of theta, phi and g, [B, G, c, N], into ``out``.

    With z_p = a2_p s_p the sums: d theta = dy · q'(theta), d s_p = a2_p · sum of dy theta^p, and phi and g
    get the polynomials in phi that these make.
    """
    theta, phi, g = features
    d_theta, d_phi, d_g = out
    torch.mul(dy, polynomial(theta, derivative(sums), out=d_theta), out=d_theta)
    d_sums = power_sums(theta, dy, coefficients)
    torch.mul(g, polynomial(phi, derivative(d_sums), out=d_phi), out=d_phi)
    d_g.copy_(polynomial(phi, d_sums, out=d_g))


class _Series(torch.autograd.Function):
    """The plain series: keeps theta, phi, g and the sums, and neither powers nor steps of Horner's rule."""

    @staticmethod
    def forward(
        ctx: Any, theta: Tensor, phi: Tensor, g: Tensor, kernel: KernelFunction, coefficients: Sequence[float]
    ) -> Tensor:
        dtype = sum_dtype(theta.dtype)
        sums = power_sums(phi.to(dtype), g.to(dtype), coefficients)
        ctx.save_for_backward(theta, phi, g, *(s for s in sums if s is not None))
        ctx.kernel, ctx.coefficients = kernel, coefficients
        return polynomial_map(theta.to(dtype), sums)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        theta, phi, g, *kept = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (
                *differentiable_gradients(
                    lambda t, p, g: series(t, p, g, ctx.kernel, ctx.coefficients), (theta, phi, g), dy
                ),
                None,
                None,
            )
        gradients = [torch.empty_like(t, dtype=dy.dtype) for t in (theta, phi, g)]
        features = (theta.to(dy.dtype), phi.to(dy.dtype), g.to(dy.dtype))
        series_gradients(dy, features, with_gaps(kept, ctx.coefficients), ctx.coefficients, gradients)
        return (*(d.to(theta.dtype) for d in gradients), None, None)


def differentiable_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], dy: Tensor
) -> list[Tensor | None]:
    """Gradients at the inputs that want one, with a graph of their own: for gradients of gradients."""
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    gradients = iter(torch.autograd.grad(function(*inputs), wanted, dy, create_graph=True, allow_unused=True))
    return [next(gradients) if t is not None and t.requires_grad else None for t in inputs]


def with_gaps(kept: Sequence[Tensor], coefficients: Sequence[float]) -> PowerSums:
    """The kept sums at the places of their powers."""
    remaining = iter(kept)
    return [next(remaining) if coefficient else None for coefficient in coefficients]
