"""Memory: what a forward pass keeps, and how high memory rises.

Three measures. `bytes_kept` counts storages. `peak_allocated` counts what PyTorch's allocator holds, exactly and the
same in each run, but on a CPU not what libraries take for themselves. `peak_resident` sees everything, in whole pages,
and wants a process whose allocator returns every freed tensor to the system: `call_in_a_fresh_process`.
"""

import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def bytes_kept(forward: Callable[[], object], *, without: Iterable[Tensor] = ()) -> int:
    """Bytes of the distinct storages that a forward pass keeps for its backward pass.

    Args:
        forward: runs it.
        without: tensors whose storages do not count, such as parameters, which are there in any case.
    """
    not_counted = {tensor.untyped_storage().data_ptr() for tensor in without}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    kept = sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in not_counted)
    del result
    return kept


def peak_allocated(run: Callable[[], object], device: str) -> int:
    """Bytes that PyTorch's allocator holds at the highest while something runs, above what it held before.

    Args:
        run: what runs.
        device: "cpu" or "cuda".
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def peak_resident(run: Callable[[], object]) -> int:
    """How far this process's resident set rises at most while something runs (bytes)."""
    gc.collect()
    forget_peak()
    before = resident_bytes()
    run()
    return peak_bytes() - before


def resident_bytes() -> int:
    """The process's resident set."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak_bytes() -> int:
    """The process's resident set at its highest, since its start or the last `forget_peak`."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Let `peak_bytes` begin at what is resident now: what a process loads at first is more than small tensors."""
    Path("/proc/self/clear_refs").write_text("5")


def output_of_a_fresh_process(arguments: Sequence[str]) -> str:
    """What Python prints when it is started with these arguments.

    Its allocator returns every freed tensor to the system, so that its resident set is what it needs.

    Raises:
        RuntimeError: the process failed; the last line of its errors is in the message.
    """
    # every tensor gets its own mapping, which goes back to the system with it
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed no error"])[-1]
        raise RuntimeError(f"a process of its own ended with code {done.returncode}: {last}")
    return done.stdout


def call_in_a_fresh_process(function: Callable[..., Any], **arguments: Any) -> Any:
    """The result of a module's function, called in a process of `output_of_a_fresh_process`.

    Args:
        function: of a module that can be imported.
        arguments: its arguments; they and the result go through JSON.
    """
    code = (
        f"import json, sys; from {function.__module__} import {function.__name__} as function; "
        "print(json.dumps(function(**json.loads(sys.argv[1]))))"
    )
    return json.loads(output_of_a_fresh_process(["-c", code, json.dumps(arguments)]).splitlines()[-1])
