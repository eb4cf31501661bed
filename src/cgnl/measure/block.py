"""What does one block cost, beside the published formulation, its bare convolutions, and other blocks?

Forward alone (eval mode, no gradients) and forward with backward (training mode), in turns within one process; the
bytes kept for the backward pass; and how far memory rises in a training step. All blocks have the same input, and none
is the identity: their norms' weights are ones.

Legend: B batch, C channels, S spatial or space-time axes, G groups.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cgnl.blocks import kinds as blocks
from cgnl.measure.memory import PEAK_IS, add_peaks, bytes_kept, peak
from cgnl.measure.rivals import BareConvolutions, NonLocal, PublishedCGNL
from cgnl.measure.rooflines import Rooflines, block_work, measure_rooflines
from cgnl.measure.timing import (
    forward_only,
    in_cuda_graph,
    in_memory_format,
    ratios,
    reason_of_failure,
    rounded,
    side_by_side,
    spread,
    training_step,
)

GROUPS = 8
ORDER = 3
# Device: shapes of x, types.
CASES: dict[str, tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]] = {
    "cpu": (((4, 1024, 28, 28), (8, 512, 28, 28), (2, 512, 16, 28, 28)), ("float32", "bfloat16")),
    "cuda": (((64, 1024, 14, 14), (32, 1024, 28, 28), (8, 512, 16, 28, 28)), ("bfloat16",)),
}
SMALLEST = ((2, 32, 3, 4, 4),)
MEMORY_FORMATS = ("contiguous", "channels_last")
MODES = ("forward", "training")
_IN_CUDA_GRAPH = "cgnl_fused_cuda_graph"

Make = Callable[[int, int], nn.Module]


def _published(name: str) -> str:
    """Return the name of the published formulation with the candidate's kernel function."""
    return "published_rbf" if name.endswith("_rbf") else "published"


def _named(name: str, channels: int, num_axes: int, **options: Any) -> nn.Module:
    make: Callable[..., nn.Module] = getattr(blocks, f"{name}{num_axes}d")
    return make(channels, **options)


_ours = partial(_named, "CGNL", groups=GROUPS)


def _compiled(channels: int, num_axes: int) -> nn.Module:
    # what was compiled for other shapes counts against the number of compilations after which PyTorch gives up
    torch.compiler.reset()
    compiled = torch.compile(_ours(channels, num_axes, backend="eager"), fullgraph=True, dynamic=False)
    assert isinstance(compiled, nn.Module)
    return compiled


def candidates(device: str, memory_format: str, *, compiled: bool) -> dict[str, Make]:
    """Return the blocks to measure, by name; each is made from C and the number of axes in S.

    The first of `MEMORY_FORMATS` also has the blocks other than CGNL, and the compiled one if asked for.
    """
    made: dict[str, Make] = {
        "convolutions": partial(BareConvolutions, groups=GROUPS),
        "cgnl_eager": partial(_ours, backend="eager"),
        "cgnl_eager_memory_efficient": partial(_ours, backend="eager", memory_efficient=True),
        "cgnl_eager_rbf": partial(_ours, backend="eager", kernel="rbf"),
        "published": partial(PublishedCGNL, groups=GROUPS),
        "published_rbf": partial(PublishedCGNL, groups=GROUPS, order=ORDER),
    }
    if device == "cuda":
        made["cgnl_fused"] = partial(_ours, backend="fused")
        made[_IN_CUDA_GRAPH] = partial(_ours, backend="fused")
    if memory_format == "contiguous":
        if compiled:
            made["cgnl_compiled"] = _compiled
        made["nl_softmax"] = partial(NonLocal, form="attention")
        made["nl_dot_product"] = partial(NonLocal, form="dot_product")
        made["global_context"] = partial(_named, "GlobalContext")
        made["squeeze_excitation"] = partial(_named, "SqueezeExcitation")
    return made


def measure(device: str, *, repeats: int | None, seed: int, smallest: bool, compiled: bool) -> dict[str, Any]:
    """Measure every block at every shape, type and memory format; return settings, rooflines and rows of the record.

    ``repeats`` counts turns: None for 5 (on CUDA 20, in the smallest run, with tiny shapes, 2).
    """
    shapes, dtypes = CASES[device]
    shapes = SMALLEST if smallest else shapes
    repeats = repeats or (2 if smallest else 20 if device == "cuda" else 5)
    rooflines = measure_rooflines(device, dtypes, smallest=smallest)
    rows = []
    for shape in shapes:
        rows_of_shape = []
        for dtype in dtypes:
            for memory_format in MEMORY_FORMATS:
                print(f"{list(shape)}, {dtype}, {memory_format}", flush=True)
                rows_of_shape += _rows(shape, dtype, memory_format, device, repeats, seed, compiled, rooflines)
        _add_peaks(rows_of_shape, device, seed)
        rows += rows_of_shape
    settings = {
        "groups": GROUPS,
        "rbf_order": ORDER,
        "repeats": repeats,
        "forward": "eval mode, no gradients",
        "training": "forward and backward in training mode, every gradient made anew",
        "floor": "the products of the block's four 1x1 convolutions at the rate of matrix products of that type, and x "
        "read and z written (in training also x and dz read and dx written) at the bandwidth of copies",
        "bytes_kept": "distinct storages that forward keeps for backward, the input included",
        "peak_bytes": "how far memory rises in a training step, the input, the weights and dz being there before: "
        + PEAK_IS[device],
    }
    return {"settings": settings, "rooflines": rooflines.as_json(), "rows": rows}


def _input(shape: Sequence[int], dtype: str, memory_format: str, device: str, seed: int) -> Tensor:
    torch.manual_seed(seed)
    x = torch.randn(*shape, device=device).to(getattr(torch, dtype))
    return in_memory_format(x, memory_format).requires_grad_()


def _module(make: Make, x: Tensor) -> nn.Module:
    """Return the block for x, no longer the identity, as after the first steps of training."""
    module = make(x.shape[1], x.dim() - 2).to(x.device, x.dtype)
    norm = getattr(module, "norm", None)
    if isinstance(norm, nn.Module):
        nn.init.ones_(norm.get_parameter("weight"))
    return module


def _rows(
    shape: Sequence[int],
    dtype: str,
    memory_format: str,
    device: str,
    repeats: int,
    seed: int,
    compiled: bool,
    rooflines: Rooflines,
) -> list[dict[str, Any]]:
    """Return one row for each candidate."""
    x = _input(shape, dtype, memory_format, device, seed)
    work = block_work(shape, GROUPS, x.element_size())
    floors = {mode: rooflines.floor(*work[mode], dtype) for mode in MODES}
    rows: dict[str, dict[str, Any]] = {}
    runs: dict[str, dict[str, Callable[[], object]]] = {mode: {} for mode in MODES}
    modules: dict[str, nn.Module] = {}
    for name, make in candidates(device, memory_format, compiled=compiled).items():
        rows[name] = {"candidate": name, "shape": list(shape), "dtype": dtype, "memory_format": memory_format}
        failed = reason_of_failure(partial(_prepare, name, make, x, rows, modules, runs))
        if failed:
            rows[name]["failed"] = failed
            print(f"  {name} cannot run: {failed}", flush=True)
    for mode in MODES:
        for module in modules.values():
            module.train(mode == "training")
        seconds = side_by_side(runs[mode], repeats=repeats, warmup=2, least_seconds=0.02)
        for name, values in seconds.items():
            rows[name][mode] = {
                "seconds": spread(values),
                "over_floor": spread([value / floors[mode] for value in values]),
            }
            if "convolutions" in seconds:
                rows[name][mode]["over_convolutions"] = ratios(values, seconds["convolutions"])
            if _published(name) in seconds:
                rows[name][mode]["published_over_this"] = ratios(seconds[_published(name)], values)
    for row in rows.values():
        row["floor_seconds"] = {mode: rounded(floor) for mode, floor in floors.items()}
    return list(rows.values())


def _add_peaks(rows: list[dict[str, Any]], device: str, seed: int) -> None:
    # a graph's memory is its own for good, and no peak
    measured = [row for row in rows if "failed" not in row and row["candidate"] != _IN_CUDA_GRAPH]
    add_peaks(measured, ("candidate", "shape", "dtype", "memory_format"), peaks, device, seed=seed)


def _prepare(
    name: str,
    make: Make,
    x: Tensor,
    rows: dict[str, dict[str, Any]],
    modules: dict[str, nn.Module],
    runs: dict[str, dict[str, Callable[[], object]]],
) -> None:
    """Make a candidate, run it once in both modes, and count the bytes that it keeps."""
    module = _module(make, x)
    step = training_step(module.train(), x)
    rows[name]["bytes_kept"] = bytes_kept(partial(module, x))
    rows[name]["bytes_kept_without_parameters"] = bytes_kept(partial(module, x), without=module.parameters())
    if isinstance(module, NonLocal) and module.form == "attention":
        rows[name]["attention"] = module.attention_in_use(x)
    step()
    forward = forward_only(module.eval(), x)
    forward()
    if name == _IN_CUDA_GRAPH:
        forward = in_cuda_graph(forward)
        module.train()
        step = in_cuda_graph(step)
    modules[name] = module
    runs["forward"][name], runs["training"][name] = forward, step


def peaks(cases: Sequence[Mapping[str, Any]], device: str, seed: int, threads: int) -> list[int]:
    """Return how far memory rises in a training step of each case (bytes); see `_add_peaks` for the cases."""
    torch.set_num_threads(threads)
    found = []
    for case in cases:
        x = _input(case["shape"], case["dtype"], case["memory_format"], device, seed)
        make = candidates(device, case["memory_format"], compiled=True)[case["candidate"]]
        step = training_step(_module(make, x).train(), x)
        step()  # loads libraries
        found.append(peak(step, device))
        del x, step
        gc.collect()
    return found
