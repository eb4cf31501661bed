"""Table 1 of the paper, measured: time and memory of the operations against N, C and P, and of blocks against N.

Table 1 has two columns, both of operations over the NC elements of theta, phi and g: the general non-local method
f(Theta Phi^T) g, which is GNL by explicit pairs, with O(2(NC)^2) in time and in space, and CGNL, Theta Phi^T g, with
O(NC(P+1)) in both. There is no non-local block over N positions in it; those that are measured here are for comparison.

Legend: B batch, C channels, C' = C / 2 inner channels, N positions, G groups, M = (C'/G)·N elements of one group,
P order of the series. Operations have one group, as in Table 1, so that M = N C with C the channels of theta.

Source: Yue et al., "Compact Generalized Non-local Network", NeurIPS 2018, Table 1.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import cgnl
from cgnl.blocks import SingleSampleWarning
from cgnl.measure.forms import gram_form
from cgnl.measure.memory import peak_allocated
from cgnl.measure.rivals import NonLocal
from cgnl.measure.rooflines import Rooflines, block_work, measure_rooflines
from cgnl.measure.timing import reason_of_failure, rounded, side_by_side, spread, training_step
from cgnl.ops import PairsBackend

BATCH = 1
# Channels of all samples together that a compact form is timed with: alone, a sample of few channels takes less time
# than the calls.
_TIMED_CHANNELS = 1024
GROUPS = 8
SIDES = (7, 14, 28, 56, 112, 224)
CHANNELS = (64, 256, 1024)
LEAST_POSITIONS = 784
"""Exponents are fitted over this many positions and more."""
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
# What a point may take at most, so that the whole run stays within minutes.
LIMITS = {
    "cpu": {"multiplications": 1e11, "pairs": 1.3e9, "map_bytes": 2e9},
    "cuda": {"multiplications": 2e12, "pairs": 2.1e10, "map_bytes": 2e10},
}
# For a count of bytes that grow with N: at so few positions there is little else than what does not.
_FEW_POSITIONS_SIDE = 2


class _ThroughFeatures(cgnl.CGNL2d):
    """A CGNL block that never takes the Gram form, so that all its points are of one form."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output; this also chooses the form of the backward pass."""
        with gram_form(False):
            return super().forward(x)


METHODS: dict[str, Callable[[int], nn.Module]] = {
    "nl_attention": partial(NonLocal, form="attention"),
    "nl_map": partial(NonLocal, form="map"),
    "gnl": partial(cgnl.GeneralizedNonLocal2d, groups=GROUPS),
    "cgnl_dot": partial(cgnl.CGNL2d, groups=GROUPS),
    # the fused operators take one form only, and would be measured twice
    "cgnl_dot_features": partial(_ThroughFeatures, groups=GROUPS, backend="eager"),
    "cgnl_rbf": partial(cgnl.CGNL2d, groups=GROUPS, kernel=cgnl.GaussianRBF(order=3)),
}
_GAMMA = 0.5
"""At the paper's 1e-4 the high powers of a series vanish in float32."""
_ORDER = 3


def _by_stacked_powers(theta: Tensor, phi: Tensor, g: Tensor, *, order: int) -> Tensor:
    """Compute Eq. 11 and 12 as they are printed, with the powers of theta and phi stored: [B, P + 1, M] each."""
    alphas = [math.sqrt(a2) for a2 in cgnl.GaussianRBF(gamma=_GAMMA, order=order).coefficients]
    features = [torch.stack([alpha * t.flatten(1) ** p for p, alpha in enumerate(alphas)], dim=1) for t in (theta, phi)]
    sums = features[1] @ g.flatten(1)[..., None]
    return (features[0] * sums).sum(1).view_as(theta)


def _compact(theta: Tensor, phi: Tensor, g: Tensor, *, order: int) -> Tensor:
    kernel = cgnl.GaussianRBF(gamma=_GAMMA, order=order)
    return cgnl.ops.compact_generalized_non_local(theta, phi, g, groups=1, kernel=kernel)


def _exact(theta: Tensor, phi: Tensor, g: Tensor, *, order: int, backend: PairsBackend) -> Tensor:
    """Return the exact RBF; it has no order."""
    kernel = cgnl.GaussianRBF(gamma=_GAMMA)
    return cgnl.ops.generalized_non_local(theta, phi, g, groups=1, kernel=kernel, backend=backend)


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "gnl_pairs": partial(_exact, backend="naive"),
    "gnl_chunks": partial(_exact, backend="eager"),
    "cgnl_stacked": _by_stacked_powers,
    "cgnl": _compact,
}
EXPECTED = {
    "gnl_pairs": {"time": {"N": 2, "C": 2}, "memory": {"N": 2, "C": 2}},
    "gnl_chunks": {"time": {"N": 2, "C": 2}, "memory": {"N": 1, "C": 1}},
    "cgnl_stacked": {"time": {"N": 1, "C": 1, "P + 1": 1}, "memory": {"N": 1, "C": 1, "P + 1": 1}},
    "cgnl": {"time": {"N": 1, "C": 1, "P + 1": 1}, "memory": {"N": 1, "C": 1, "P + 1": 0}},
}
"""Exponents of the operations: "gnl_pairs" and "cgnl_stacked" are the two columns of Table 1, the others our forms."""


def work_of_forward(method: str, channels: int, positions: int, element_size: int) -> dict[str, float]:
    """Return the work of a method's forward pass with `BATCH` samples, C and N, in the units of `LIMITS`.

    These are the multiplications of its matrix products; the pairs of elements that GNL goes through one by one; and
    the bytes of the map of all pairs of positions.
    """
    inner = channels // 2
    z_groups = 1 if method.startswith("nl") else GROUPS
    work = {"multiplications": BATCH * positions * channels * inner * (3 + 1 / z_groups), "pairs": 0, "map_bytes": 0}
    if method.startswith("nl"):
        work["multiplications"] += 2 * BATCH * positions**2 * inner
    if method == "nl_map":
        work["map_bytes"] = BATCH * positions**2 * element_size
    if method == "gnl":
        work["pairs"] = BATCH * GROUPS * (inner // GROUPS * positions) ** 2
    return work


def timed_batch(method: str, channels: int) -> int:
    """Return the number of samples in a step that is timed; its seconds are divided by it."""
    return max(1, _TIMED_CHANNELS // channels) if method.startswith("cgnl") else BATCH


def fit_exponent(positions: Sequence[float], values: Sequence[float]) -> float | None:
    """Return the k of values ~ positions^k, by least squares of the logarithms.

    None where fewer than two points are left, or where a value has no logarithm: bytes that do not grow with N.

    >>> fit_exponent([100, 200, 400], [3.0, 12.0, 48.0])
    2.0
    """
    if len(positions) < 2 or min(values) <= 0:
        return None
    x, y = ([math.log(value) for value in of_axis] for of_axis in (positions, values))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    return round(slope, 3)


def measure(device: str, *, repeats: int | None, seed: int, smallest: bool) -> dict[str, Any]:
    """Measure the operations against N, C and P, and a training step of every block at every N and C in the limits.

    Returns the record's settings, rooflines, and rows and exponents of blocks and operations. ``repeats`` counts turns:
    None for 3 (on CUDA 10, in the smallest run, with few and small N and C, 2).
    """
    sides, all_channels = ((3, 6, 12), (16, 32)) if smallest else (SIDES, CHANNELS)
    least_positions = 9 if smallest else LEAST_POSITIONS
    # even the smallest run has points that are skipped
    limits = {"multiplications": 1e8, "pairs": 5e5, "map_bytes": 1e8} if smallest else LIMITS[device]
    repeats = repeats or (2 if smallest else 10 if device == "cuda" else 3)
    dtype = DTYPES[device]
    rooflines = measure_rooflines(device, [dtype], smallest=smallest)
    rows = []
    for channels in all_channels:
        few = _peaks_at_few_positions(channels, dtype, device, seed)
        for side in sides:
            print(f"C = {channels}, N = {side * side}", flush=True)
            rows += _rows(channels, side, dtype, device, repeats, seed, limits, few, rooflines)
    operations = measure_operations(device, repeats=repeats, seed=seed, smallest=smallest)
    settings = {
        "batch": BATCH,
        "groups": GROUPS,
        "dtype": dtype,
        "repeats": repeats,
        "measured": "forward and backward of the block in training mode, every gradient made anew",
        "methods": {
            "nl_attention": "softmax over positions by PyTorch's fused attention, without the N x N map",
            "nl_map": "softmax over positions with the N x N map",
            "gnl": "the exact dot product over all pairs of elements, rows of the M x M map in chunks",
            "cgnl_dot": "the compact form, dot product",
            "cgnl_dot_features": "the compact form, dot product, always through phi and g (eager)",
            "cgnl_rbf": "the compact form, Gaussian RBF, series of order 3",
        },
        "seconds": f"of one sample; compact forms are timed with {_TIMED_CHANNELS} / C samples, memory is that of one",
        "limits": {**limits, "of": "a forward pass; a point beyond a limit is skipped"},
        "floor": "as of `cgnl benchmark block`: the products of the CGNL block and its maps read and written",
        "bytes": "what PyTorch's allocator holds at the highest in the step, above what it held before, less the same "
        f"at N = {_FEW_POSITIONS_SIDE**2}: the bytes that grow with N",
        "exponents": f"least squares of logarithms over N of at least {least_positions}",
        "operations": {
            "measured": "forward and backward of the operation on [1, C, N], gradients of theta, phi and g; one group",
            "gnl_pairs": "f(Theta Phi^T) g by the matrix of all pairs of elements: the first column of Table 1",
            "gnl_chunks": "the same in chunks of rows",
            "cgnl_stacked": "Theta Phi^T g with the powers stored, as Eq. 11 is printed: the second column of Table 1",
            "cgnl": "the same by sums and a polynomial, no powers stored",
            "kernel": f"Gaussian RBF, gamma {_GAMMA}, order {_ORDER} but where P changes",
            "bytes": "what PyTorch's allocator holds at the highest in the step, above what it held before",
        },
    }
    fitted = exponents(rows, least_positions)
    return {
        "settings": settings,
        "rooflines": rooflines.as_json(),
        "exponents": fitted,
        "rows": rows,
        "operations": operations,
    }


def sweeps(operation: str, device: str, *, smallest: bool) -> dict[str, list[tuple[int, int, int]]]:
    """Return the points (C, N, P) at which an operation is measured, by what changes: N, C or P + 1.

    The smallest is large enough that more than the calls is seen; the explicit matrix sets the largest of GNL.

    >>> sweeps("gnl_pairs", "cpu", smallest=True)
    {'N': [(4, 32, 3), (4, 64, 3), (4, 128, 3)], 'C': [(4, 32, 3), (8, 32, 3), (16, 32, 3)]}
    """
    if operation.startswith("gnl"):
        channels, positions, steps = (4, 32, 3) if smallest else (8, 128, 4) if device == "cpu" else (16, 256, 4)
    else:
        channels, positions, steps = (
            (16, 1024, 3) if smallest else (256, 4096, 4) if device == "cpu" else (1024, 16384, 4)
        )
    factors = [2**step for step in range(steps)]
    points = {
        "N": [(channels, positions * factor, _ORDER) for factor in factors],
        "C": [(channels * factor, positions, _ORDER) for factor in factors],
    }
    if not operation.startswith("gnl"):
        points["P + 1"] = [(channels, positions, 2 * factor - 1) for factor in factors]
    return points


def measure_operations(device: str, *, repeats: int, seed: int, smallest: bool) -> dict[str, Any]:
    """Measure forward and backward of every operation at its `sweeps`, and fit exponents of N, C and P + 1."""
    rows: list[dict[str, Any]] = []
    for operation in OPERATIONS:
        print(f"operation {operation}", flush=True)
        points = dict.fromkeys(
            point for line in sweeps(operation, device, smallest=smallest).values() for point in line
        )
        rows += [_row_of_operation(operation, point, device, repeats, seed, smallest) for point in points]
    measured = {(row["operation"], row["channels"], row["positions"], row["order"]): row for row in rows}
    fitted = []
    for operation in OPERATIONS:
        for variable, line in sweeps(operation, device, smallest=smallest).items():
            some = [row for point in line if "seconds" in (row := measured[operation, *point])]
            values = [
                {"N": row["positions"], "C": row["channels"], "P + 1": row["order"] + 1}[variable] for row in some
            ]
            fitted.append(
                {
                    "operation": operation,
                    "of": variable,
                    "values": values,
                    "time": fit_exponent(values, [row["seconds"]["median"] for row in some]),
                    "memory": fit_exponent(values, [row["bytes"] for row in some]),
                }
            )
    return {"rows": rows, "exponents": fitted}


def _row_of_operation(
    operation: str, point: tuple[int, int, int], device: str, repeats: int, seed: int, smallest: bool
) -> dict[str, Any]:
    channels, positions, order = point
    row: dict[str, Any] = {"operation": operation, "channels": channels, "positions": positions, "order": order}
    torch.manual_seed(seed)
    dtype = getattr(torch, DTYPES[device])
    inputs = [
        (0.1 * torch.randn(1, channels, positions, device=device)).to(dtype).requires_grad_()
        for _ in ("theta", "phi", "g")
    ]
    d_y = torch.randn(1, channels, positions, device=device).to(dtype)

    def step() -> None:
        torch.autograd.grad(OPERATIONS[operation](*inputs, order=order), inputs, d_y)

    def count() -> None:
        row["bytes"] = _peak(step, device)

    if failed := reason_of_failure(count):
        row["failed"] = failed
        return row
    least_seconds = 0.0 if smallest else 0.05
    row["seconds"] = spread(side_by_side({"": step}, repeats=repeats, warmup=1, least_seconds=least_seconds)[""])
    return row


def exponents(rows: Sequence[Mapping[str, Any]], least_positions: int = LEAST_POSITIONS) -> list[dict[str, Any]]:
    """Return the exponents of N in time and memory, for every method and C, over the rows with enough positions."""
    fitted = []
    for method, channels in dict.fromkeys((row["method"], row["channels"]) for row in rows):
        points = [
            row
            for row in rows
            if (row["method"], row["channels"]) == (method, channels)
            and row["positions"] >= least_positions
            and "seconds" in row
        ]
        positions = [row["positions"] for row in points]
        fitted.append(
            {
                "method": method,
                "channels": channels,
                "positions": positions,
                "time": fit_exponent(positions, [row["seconds"]["median"] for row in points]),
                "memory": fit_exponent(positions, [row["bytes"] for row in points]),
            }
        )
    return fitted


def _step(
    method: str, channels: int, side: int, dtype: str, device: str, seed: int, batch: int = BATCH
) -> Callable[[], None]:
    torch.manual_seed(seed)
    x = torch.randn(batch, channels, side, side, device=device).to(getattr(torch, dtype)).requires_grad_()
    module = METHODS[method](channels).to(x.device, x.dtype)
    nn.init.ones_(module.get_parameter("norm.weight"))
    with warnings.catch_warnings():
        # is about what one sample trains, which is not asked here
        warnings.simplefilter("ignore", SingleSampleWarning)
        return training_step(module.train(), x)


def _peak(step: Callable[[], None], device: str) -> int:
    # what a library takes at its first call, as cuBLAS does, is none of the step's
    step()
    return peak_allocated(step, device)


def _peaks_at_few_positions(channels: int, dtype: str, device: str, seed: int) -> dict[str, int]:
    return {
        method: _peak(_step(method, channels, _FEW_POSITIONS_SIDE, dtype, device, seed), device) for method in METHODS
    }


def _prepare(
    row: dict[str, Any],
    steps: dict[str, Callable[[], None]],
    make: Callable[..., Callable[[], None]],
    device: str,
    bytes_at_few: int,
) -> None:
    """Count the memory of a row's step, and make the step that is timed."""
    row["bytes"] = _peak(make(), device) - bytes_at_few
    row["timed_batch"] = timed_batch(row["method"], row["channels"])
    steps[row["method"]] = make(batch=row["timed_batch"])
    steps[row["method"]]()


def _rows(
    channels: int,
    side: int,
    dtype: str,
    device: str,
    repeats: int,
    seed: int,
    limits: Mapping[str, float],
    few: Mapping[str, int],
    rooflines: Rooflines,
) -> list[dict[str, Any]]:
    """Return one row for each method, with its measurements or why it was skipped."""
    positions = side * side
    element_size = Tensor().to(getattr(torch, dtype)).element_size()
    products, num_bytes = block_work((BATCH, channels, side, side), GROUPS, element_size)["training"]
    floor = rooflines.floor(products, num_bytes, dtype)
    rows: dict[str, dict[str, Any]] = {}
    steps: dict[str, Callable[[], None]] = {}
    for method in METHODS:
        row = rows[method] = {"method": method, "channels": channels, "positions": positions}
        work = work_of_forward(method, channels, positions, element_size)
        too_much = [
            f"{work[kind]:.2g} {kind} of at most {limit:.2g}" for kind, limit in limits.items() if work[kind] > limit
        ]
        if too_much:
            row["skipped"] = ", ".join(too_much)
            continue
        step = partial(_step, method, channels, side, dtype, device, seed)
        failed = reason_of_failure(partial(_prepare, row, steps, step, device, few[method]))
        if failed:
            row["failed"] = failed
    for method, of_batch in side_by_side(steps, repeats=repeats, warmup=1, least_seconds=0.05).items():
        values = [value / rows[method]["timed_batch"] for value in of_batch]
        rows[method] |= {
            "seconds": spread(values),
            "over_floor": spread([value / floor for value in values]),
            "floor_seconds": rounded(floor),
        }
    return list(rows.values())
