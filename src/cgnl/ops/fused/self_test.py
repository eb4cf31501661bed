"""Checks that the fused operators agree with the eager form on this device, before ``backend="auto"`` takes them.

At the first use of a kind of call, its operators run on a small map, forward and backward, against the eager form in
float64. The answer holds for the process and for all devices of that compute capability. A kind is all that chooses
other Triton kernels: the operation, the type, the memory format, the powers of the series, the envelope, and how wide a
group's tile is. Numbers of channels and positions are not told apart.

The test runs in a thread of its own: no autocast, gradient mode, hook, transform, dispatch mode or trace of the caller
reaches it, and its random numbers come from a generator of its own.

Legend: B batch, C channels, C' inner channels, c = C'/G, S spatial axes, G groups.
"""

import math
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cgnl.kernel_functions import DotProduct, GaussianRBF, KernelFunction, SeriesKernel
from cgnl.ops import eager
from cgnl.ops.fused.launching import product_precision
from cgnl.ops.fused.limits import envelope_width
from cgnl.ops.fused.operations import (
    cgnl_block,
    cgnl_block_affine,
    cgnl_block_batch_norm,
    compact_generalized_non_local,
)
from cgnl.ops.fused.series import WIDEST_GROUP, powers_of

Operation = Literal["features", "branch", "affine", "batch_norm"]
Layout = Literal["first", "last"]

# Features of a group, up to which a tile has the same size; the last is of groups that do not fit a tile.
WIDTHS = (16, 32, 64, WIDEST_GROUP, WIDEST_GROUP + 16)
# The largest difference that passes, relative to the norm of a result: several times what rounding costs.
TOLERANCES = {
    (torch.float32, "ieee"): 1e-4,
    (torch.float32, "tf32"): 1e-2,
    (torch.float16, "tf32"): 1e-2,
    (torch.bfloat16, "tf32"): 3e-2,
}

_GROUPS = 2
_BATCH_AND_AXES = (2, (14, 14))
_NAMES = {
    "features": ("theta", "phi", "g"),
    "branch": ("x", "theta's weight", "phi's weight", "g's weight", "conv_z's weight"),
}


class Kind(NamedTuple):
    """What chooses the Triton kernels of a call, forward and backward.

    Attributes:
        operation: ``"features"``: y from theta, phi and g; ``"branch"``: conv_z's output from x; ``"affine"`` and
            ``"batch_norm"``: the block with fixed statistics, and with those of the batch.
        dtype: Type of the features.
        layout: Whether channels are first or last in memory.
        powers: Bit p says whether the series has power p.
        envelope: Whether the series has an envelope.
        width: One of `WIDTHS`.
        moments: Whether the sums are a covariance or correlation.
        apart: Whether conv_z has other groups than the sums.
    """

    operation: Operation
    dtype: torch.dtype
    layout: Layout
    powers: int
    envelope: bool
    width: int
    moments: bool = False
    apart: bool = False

    def __str__(self) -> str:
        powers = ", ".join(str(p) for p in range(self.powers.bit_length()) if self.powers >> p & 1)
        groups = f"up to {self.width}" if self.width <= WIDEST_GROUP else f"more than {WIDEST_GROUP}"
        return (
            f"{self.operation} in {str(self.dtype).removeprefix('torch.')}, channels {self.layout}, "
            f"groups of {groups} features, powers {powers}"
            + " with an envelope" * self.envelope
            + ", a correlation" * self.moments
            + ", conv_z with other groups" * self.apart
        )


def passes(
    operation: Operation,
    *tensors: Tensor,
    kernel: KernelFunction,
    dtype: torch.dtype,
    moments: bool = False,
    apart: bool = False,
) -> bool:
    """Tell whether the fused operators may run such a call on the tensors' device.

    Tests them where no such call has been tested, and warns once if they fail. While a CUDA graph is captured or a
    backward pass runs, there can be no test, and the answer to an unknown kind is no for this time. ``tensors`` are
    theta, phi and g, or x and the four weights; ``dtype`` is the type in which the operation gets its inputs.
    """
    features = operation == "features"
    # theta and y are written where conv_z has other groups, whatever their width
    width = WIDTHS[0] if features or apart else _width_of(tensors[4].shape[1])
    powers = powers_of(kernel.coefficients)
    envelope = "yes" if envelope_width(kernel) > 0 else "no"  # a word: a trace may hold a symbol, not a constant, here
    first = tensors[0]
    rest = powers, envelope, width, moments, apart
    if not _has_passed(first.device, operation, dtype, _layout_of(first), *rest):
        return False
    # phi and g go in phi's format
    return not features or _has_passed(first.device, operation, dtype, _layout_of(tensors[1]), *rest)


def _width_of(in_group: int) -> int:
    # by comparisons, which turn a symbol of a trace into a constant
    for width in WIDTHS[:-1]:
        if in_group <= width:
            return width
    return WIDTHS[-1]


def _layout_of(tensor: Tensor) -> Layout:
    """Tell whether the operators will take the map's channels for last."""
    strides, shape = tensor.stride(), tensor.shape
    if strides[1] != 1 or shape[1] == 1:
        return "first"
    for axis in range(2, len(shape)):
        if strides[axis] == 1 and shape[axis] > 1:
            return "first"
    return "last"


# By device, or by its kind for all devices of that kind: why a kind of call failed, or None.
_reasons: dict[tuple[Any, ...], str | None] = {}
_lock = threading.Lock()


@torch.compiler.assume_constant_result
def _has_passed(
    device: torch.device,
    operation: Operation,
    dtype: torch.dtype,
    layout: Layout,
    powers: int,
    envelope: str,
    width: int,
    moments: bool,
    apart: bool,
) -> bool:
    key = device, product_precision(dtype), operation, dtype, layout, powers, envelope, width, moments, apart
    if key not in _reasons:
        kind = Kind(operation, dtype, layout, powers, envelope == "yes", width, moments, apart)
        is_cuda = device.type == "cuda"
        in_backward = torch._C._current_graph_task_id() != -1
        if in_backward or (is_cuda and torch.cuda.is_current_stream_capturing()):
            return False
        # devices of one capability run the same code
        shared_key = (torch.cuda.get_device_capability(device) if is_cuda else device.type), *key[1:]
        with _lock:
            if shared_key not in _reasons:
                _reasons[shared_key] = reason = outcome_of(kind, device).reason
                if reason is not None:
                    _warn(kind, device, reason)
            _reasons[key] = _reasons[shared_key]
    return _reasons[key] is None


def _warn(kind: Kind, device: torch.device, reason: str) -> None:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    warnings.warn(
        f"backend 'auto' takes the eager form from here on: the fused operators failed their self-test on {name} "
        f"({kind}): {reason}",
        stacklevel=2,
    )


class Outcome(NamedTuple):
    """What a test found.

    Attributes:
        error: The largest of `errors_of`; NaN where nothing came out.
        reason: A clause that says what failed, or None.
    """

    error: float
    reason: str | None


def outcome_of(kind: Kind, device: torch.device) -> Outcome:
    """Test a kind of call, whatever is known of it."""
    try:
        errors = errors_of(kind, device)
    except Exception as error:  # whatever a compiler or a driver may raise
        lines = str(error).strip().splitlines()
        return Outcome(math.nan, f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)
    name, largest = max(errors.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])
    tolerance = tolerance_of(kind)
    if largest <= tolerance:
        return Outcome(largest, None)
    return Outcome(
        largest, f"{name} differs from the eager form's by {largest:.1e} of its norm, more than {tolerance:.0e}"
    )


def tolerance_of(kind: Kind) -> float:
    """Return the largest of `errors_of` that passes."""
    return TOLERANCES[kind.dtype, product_precision(kind.dtype)]


def errors_of(kind: Kind, device: torch.device) -> dict[str, float]:
    """Return |fused - eager in float64| / |eager| in norms, by the name of the result: output first, then gradients."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_errors, kind, device).result()


def _errors(kind: Kind, device: torch.device) -> dict[str, float]:
    inputs = [t.to(device, kind.dtype) for t in _inputs(kind)]
    if kind.layout == "last":
        maps = 3 if kind.operation == "features" else 1
        inputs[:maps] = [t.contiguous(memory_format=torch.channels_last) for t in inputs[:maps]]
    results = _results(kind, inputs, _FUSED)
    expected = _results(kind, [t.double() for t in inputs], _EAGER)
    return {
        name: ((result.double() - expected[name]).norm() / expected[name].norm()).item()
        for name, result in results.items()
    }


def _inputs(kind: Kind) -> list[Tensor]:
    """Make theta, phi and g, or x and the four weights, with a norm's weight and bias if there is one; float64."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, deviation: float = 1.0) -> Tensor:
        return deviation * torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")

    batch, axes = _BATCH_AND_AXES
    inner, channels = _GROUPS * kind.width, 2 * _GROUPS * kind.width
    if kind.operation == "features":
        theta, phi, noise = (normal(batch, inner, *axes) for _ in range(3))
        return [theta, phi, _like_phi(phi, noise) + 0.5 * phi.square()]
    theta, phi, noise = (normal(inner, channels, 1, 1, deviation=channels**-0.5) for _ in range(3))
    z_width = inner if kind.apart else kind.width
    z = normal(channels, z_width, 1, 1, deviation=z_width**-0.5)
    inputs = [normal(batch, channels, *axes), theta, phi, _like_phi(phi, noise), z]
    return inputs if kind.operation == "branch" else [*inputs, 1 + 0.3 * normal(channels), normal(channels)]


def _like_phi(phi: Tensor, noise: Tensor) -> Tensor:
    """Make g: without anything in common with phi the sums of their products would be mostly rounding error."""
    return 0.8 * phi + 0.6 * noise


def _results(kind: Kind, inputs: Sequence[Tensor], form: dict[Operation, Callable[..., Tensor]]) -> dict[str, Tensor]:
    """Return the output, every gradient, and the running statistics of a norm."""
    order = kind.powers.bit_length() - 1
    kernel: KernelFunction = GaussianRBF(gamma=0.3, order=order, beta="exact")
    if not kind.envelope:
        kernel = SeriesKernel(torch.mul, [(kind.powers >> p & 1) / math.factorial(p) for p in range(order + 1)])
    positions = math.prod(inputs[0].shape[2:])
    options: dict[str, Any] = {"groups": _GROUPS, "kernel": kernel, "factor": 1 / (kind.width * positions)}
    if kind.moments:
        options |= {"statistic": "correlation", "kernel": DotProduct()}
    wanted = [t.detach().requires_grad_() for t in inputs]
    statistics = []
    if kind.operation == "batch_norm":
        statistics = [torch.zeros_like(inputs[-1]) for _ in range(2)]
        options |= {"eps": 1e-5, "momentum": 1.0}
    y = form[kind.operation](*wanted, *statistics, **options)
    generator = torch.Generator().manual_seed(1)
    d_y = torch.randn(y.shape, generator=generator, dtype=torch.float64, device="cpu").to(y)
    names = _NAMES.get(kind.operation, (*_NAMES["branch"], "the norm's weight", "the norm's bias"))
    gradients = torch.autograd.grad(y, wanted, d_y)
    return {
        "the output": y.detach(),
        **{f"the gradient of {name}": d for name, d in zip(names, gradients, strict=True)},
        **dict(zip(("the running mean", "the running variance"), statistics, strict=False)),
    }


def _of_type(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Give the operation a result in the type of its inputs, as calls have it by default."""

    def run(*inputs: Tensor, **options: Any) -> Tensor:
        return operation(*inputs, out_dtype=inputs[0].dtype, **options)

    return run


_FUSED: dict[Operation, Callable[..., Tensor]] = {
    "features": _of_type(compact_generalized_non_local),
    "branch": _of_type(cgnl_block),
    "affine": cgnl_block_affine,
    "batch_norm": cgnl_block_batch_norm,
}
_EAGER: dict[Operation, Callable[..., Tensor]] = {
    "features": eager.compact_generalized_non_local,
    "branch": eager.cgnl_block,
    "affine": eager.cgnl_block_affine,
    "batch_norm": eager.cgnl_block_batch_norm,
}
