"""How far are the results of every backend and type from float64?

The CGNL block from x to conv_z's output, and every gradient of it, against `cgnl.ops.naive` in float64 on the same
inputs, which are rounded to the type first. An error is the largest of a tensor's elements, in units of the type's
rounding at the tensor's largest element: about one unit is what rounding the exact result costs.

Legend: B batch, C channels, C' inner channels, S spatial axes, G groups.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from cgnl import ops
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF, KernelFunction
from cgnl.measure import varying_part
from cgnl.measure.forms import gram_form
from cgnl.measure.timing import reason_of_failure, rounded
from cgnl.ops import fused
from cgnl.ops.fused.self_test import WIDTHS, Kind, Layout, Operation, outcome_of, tolerance_of


class Case(NamedTuple):
    """An input and a block for it.

    Attributes:
        shape: Shape of x, [B, C, *S].
        groups: G.
        gram: Whether the eager dot product in float32 takes the Gram form on a CPU. The reference's M x M matrices
            bound the sizes to such where it does not pay, so the case sets it.
        memory_efficient: Whether the block keeps less for its backward pass, which changes the eager form only.
    """

    shape: tuple[int, ...]
    groups: int = 8
    gram: bool = False
    memory_efficient: bool = False


# Each takes a way of its own: a group of more than 128 features is wide for the fused operators.
CASES = {
    "through features": Case((2, 128, 7, 9)),
    "Gram form": Case((2, 160, 7, 9), gram=True),
    "memory-efficient": Case((2, 128, 7, 9), memory_efficient=True),
    "one wide group": Case((2, 272, 2, 5), groups=1),
}
SMALLEST_CASES = {
    "through features": Case((2, 16, 3, 3)),
    "Gram form": Case((2, 144, 1, 2), gram=True),
    "memory-efficient": Case((2, 16, 3, 3), memory_efficient=True),
    "one wide group": Case((2, 272, 1, 2), groups=1),
}
BACKENDS: tuple[ops.Backend, ...] = ("eager", "fused")
DTYPES = ("float32", "float16", "bfloat16")
KERNELS: dict[str, KernelFunction] = {
    "dot": DotProduct(),
    "embedded_gaussian": EmbeddedGaussian(order=3),
    "rbf": GaussianRBF(gamma=0.1, order=3),
    "rbf_normalized": GaussianRBF(gamma=0.1, order=3, beta="normalized"),
    "rbf_exact": GaussianRBF(gamma=0.1, order=3, beta="exact"),
}
"""Gamma is large enough that every power of the series counts."""
TENSORS = ("output", "d_x", "d_theta", "d_phi", "d_g", "d_z")


class NotFiniteError(ValueError):
    """A result holds NaN or infinity."""


def error_in_units(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    """Return max |actual - expected| / (eps · max |expected|) with the eps of ``dtype`` and ``expected`` in float64.

    Raises NotFiniteError where ``actual`` has an element that is not finite, which no comparison may let pass.

    >>> error_in_units(torch.tensor([2.0, 1.0]), torch.tensor([2.0, 1.0 + 2.0**-22]).double(), torch.float32)
    1.0
    """
    if not actual.isfinite().all():
        raise NotFiniteError(f"{int((~actual.isfinite()).sum())} of {actual.numel()} elements are not finite")
    largest = (actual.double() - expected).abs().max()
    return (largest / (torch.finfo(dtype).eps * expected.abs().max())).item()


def inputs_of(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[Tensor]:
    """Return x, the four weights and the output's gradient, rounded to the type: [x, theta, phi, g, z, d_output]."""
    generator = torch.Generator().manual_seed(seed)
    shape, groups = case.shape, case.groups
    channels, inner = shape[1], shape[1] // 2
    sizes: list[tuple[Sequence[int], float]] = [
        (shape, 1.0),
        *[((inner, channels, 1, 1), channels**-0.5)] * 3,
        ((channels, inner // groups, 1, 1), (inner // groups) ** -0.5),
        (shape, 1.0),
    ]
    tensors = [scale * torch.randn(*size, generator=generator, dtype=torch.float64) for size, scale in sizes]
    return [tensor.to(device, dtype) for tensor in tensors]


def results_of(inputs: Sequence[Tensor], case: Case, kernel: KernelFunction, backend: ops.Backend) -> dict[str, Tensor]:
    """Return the block's output and every gradient, by the names in `TENSORS`."""
    *wanted, d_output = inputs
    wanted = [tensor.detach().requires_grad_() for tensor in wanted]
    # "mean" keeps the sums, and so the output, near 1: errors then come from rounding, not from float16's range
    with gram_form(case.gram):
        output = ops.cgnl_block(
            *wanted,
            groups=case.groups,
            kernel=kernel,
            scale="mean",
            backend=backend,
            memory_efficient=case.memory_efficient,
        )
    return dict(zip(TENSORS, (output.detach(), *torch.autograd.grad(output, wanted, d_output)), strict=True))


def measure(device: str, *, seed: int, smallest: bool) -> dict[str, Any]:
    """Measure every backend, type, case and kernel function; return the record's settings, rows and varying part.

    A row of a backend that cannot run, or whose results are not finite, says so. ``smallest`` takes tiny inputs.
    """
    cases = SMALLEST_CASES if smallest else CASES
    rows = []
    for backend in BACKENDS:
        for dtype in DTYPES:
            print(f"{backend}, {dtype}", flush=True)
            for case_name, case in cases.items():
                if backend != "eager" and (case.gram or case.memory_efficient):
                    continue
                inputs = inputs_of(case, getattr(torch, dtype), device, seed)
                for name, kernel in KERNELS.items():
                    row: dict[str, Any] = {"backend": backend, "dtype": dtype, "case": case_name, "kernel": name}
                    rows.append(row | _errors(inputs, case, kernel, backend))
    settings = {
        "cases": {name: case._asdict() for name, case in cases.items()},
        "scale": "mean",
        "triton_interpreter": os.environ.get("TRITON_INTERPRET") == "1",
        "kernels": {name: repr(kernel) for name, kernel in KERNELS.items()},
        "errors": "max |result - reference| / (eps · max |reference|) with the type's eps; the reference is the naive "
        "form in float64 on the same rounded inputs",
    }
    varying = varying_part.measure(device, seed=seed, smallest=smallest)
    return {"settings": settings, "varying_part": varying, "rows": rows}


def _errors(inputs: Sequence[Tensor], case: Case, kernel: KernelFunction, backend: ops.Backend) -> dict[str, Any]:
    results: dict[str, Tensor] = {}
    failed = reason_of_failure(lambda: results.update(results_of(inputs, case, kernel, backend)))
    if failed:
        return {"failed": failed}
    expected = results_of([tensor.double() for tensor in inputs], case, kernel, "naive")
    return compared(results, expected, inputs[0].dtype)


def compared(results: Mapping[str, Tensor], expected: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """Return the part of a row that says how far results are from the reference, or which of them are not finite."""
    errors, not_finite = {}, []
    for name, result in results.items():
        try:
            errors[name] = rounded(error_in_units(result, expected[name], dtype))
        except NotFiniteError as error:
            not_finite.append(f"{name}: {error}")
    return {"errors": errors} | ({"not_finite": not_finite} if not_finite else {})


def self_test(device: str, *, smallest: bool) -> Iterator[tuple[Kind, float, float, str]]:
    """Yield how the fused operators pass the test that ``backend="auto"`` makes before it takes them on a device.

    That is, for each kind of call, the largest difference, the largest that passes, and "passed" or why it did not.
    ``smallest`` is float32 with channels first and the dot product alone. Raises ValueError where they cannot run.
    """
    where = torch.device(device)
    obstacle = fused.obstacle(torch.ones(1, 1, 1, device=where), kernel=DotProduct())
    if obstacle is not None:
        raise ValueError(obstacle)
    for kind in _kinds_for_self_test(where, smallest):
        error, reason = outcome_of(kind, where)
        yield kind, error, tolerance_of(kind), reason or "passed"


def _kinds_for_self_test(device: torch.device, smallest: bool) -> list[Kind]:
    # in the interpreter the narrowest: it takes seconds for what a GPU does in no time
    width = WIDTHS[2 if device.type == "cuda" else 0]
    layouts: tuple[Layout, ...] = get_args(Layout)
    kinds = [
        Kind(operation, getattr(torch, dtype), layout, powers, envelope, width)
        for dtype in DTYPES[: 1 if smallest else None]
        for layout in layouts[: 1 if smallest else None]
        for powers, envelope in ((0b10, False), (0b1111, True))[: 1 if smallest else None]
        for operation in get_args(Operation)
    ]
    wide = [kind._replace(width=WIDTHS[-1]) for kind in kinds if kind.operation == "batch_norm" and not kind.envelope]
    return kinds if smallest else kinds + wide
