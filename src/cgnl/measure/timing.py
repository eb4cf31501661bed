"""Side-by-side timing.

Candidates take turns in one process, so that whatever else the machine does hits all of them alike; ratios are taken
turn by turn.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

Measured = TypeVar("Measured")


def side_by_side(
    candidates: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 3, least_seconds: float = 0.0
) -> dict[str, list[float]]:
    """Time each candidate once a turn, in turns; return the seconds of one call in every turn, by name.

    ``repeats`` turns count, after ``warmup`` turns. A candidate is called in a row until its turn has
    ``least_seconds``; above 0 the warm-up must have a turn.
    """
    calls = dict.fromkeys(candidates, 1)

    def timed(name: str) -> float:
        return _seconds_of_a_call(candidates[name], calls[name])

    turns = {name: partial(timed, name) for name in candidates}
    for name, seconds in in_turns(turns, repeats=warmup).items():
        if seconds:
            calls[name] = max(1, math.ceil(least_seconds / seconds[-1]))
    return in_turns(turns, repeats=repeats)


def in_turns(candidates: Mapping[str, Callable[[], Measured]], *, repeats: int) -> dict[str, list[Measured]]:
    """Call each candidate once a turn, in turns, and return its results, by name."""
    measured: dict[str, list[Measured]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            measured[name].append(run())
    return measured


def _seconds_of_a_call(run: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def spread(values: list[float]) -> dict[str, float]:
    """Return median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": rounded(median), "lower_quartile": rounded(low), "upper_quartile": rounded(high)}


def ratios(values: list[float], to: list[float]) -> dict[str, float]:
    """Return median and quartiles of the ratios, turn by turn."""
    return spread([value / other for value, other in zip(values, to, strict=True)])


def rounded(value: float) -> float:
    """Return the value with four digits."""
    return float(f"{value:.4g}")


def reason_of_failure(run: Callable[[], object]) -> str | None:
    """Run a candidate once; return in one line why it cannot run, or None.

    Whatever it fails of is the finding, be it memory, a compiler, or an argument that a version does not know: the
    other candidates are measured nevertheless.
    """
    try:
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except Exception as error:
        first, *_ = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {first}"
    return None


def forward_only(module: nn.Module, x: Tensor) -> Callable[[], None]:
    """Return a function that runs the module without gradients, in the mode (eval or train) it is in."""

    def run() -> None:
        with torch.inference_mode():
            module(x)

    return run


def in_memory_format(x: Tensor, name: str) -> Tensor:
    """Return x, [B, C, *S], in the memory format "contiguous" or "channels_last", whatever its number of axes."""
    channels_last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return x.contiguous(memory_format=channels_last if name == "channels_last" else torch.contiguous_format)


def training_step(module: nn.Module, x: Tensor) -> Callable[[], None]:
    """Return a function that runs forward and backward with random output gradients; each run replaces all gradients.

    The module gives a tensor or a tuple of them; x gets a gradient, too.
    """
    inputs = [x, *module.parameters()]
    d_outputs = tuple(torch.randn_like(output) for output in _outputs(module, x))

    def step() -> None:
        torch.autograd.grad(_outputs(module, x), inputs, d_outputs)

    return step


def _outputs(module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    result = module(x)
    return result if isinstance(result, tuple) else (result,)


def in_cuda_graph(run: Callable[[], object]) -> Callable[[], None]:
    """Return a function that replays the work of ``run``, on the same CUDA tensors, captured once as a CUDA graph.

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs, whose warm-up this follows.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
