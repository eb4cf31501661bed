"""Memory: what a forward pass keeps, and how high memory rises.

There are three measures. `bytes_kept` counts storages. `peak_allocated` counts what PyTorch's allocator holds: it gives
the same number in each run, but on a CPU it does not see what libraries take for themselves. `peak_resident` sees
everything, in whole pages, and needs a process whose allocator returns every freed tensor to the system:
`call_in_a_fresh_process`.
"""

import gc
import inspect
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

PEAK_IS = {
    "cpu": "the resident set of a fresh process, whose tensors are mapped and unmapped one by one",
    "cuda": "what PyTorch allocated at the highest",
}
"""What `peak` measures on a device, as records say it."""
_EASILY_MAPPED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000"}


def bytes_kept(forward: Callable[[], object], *, without: Iterable[Tensor] = ()) -> int:
    """Return the bytes of the distinct storages that a forward pass keeps for its backward pass.

    Those of the tensors ``without``, such as parameters, do not count, as they are there in any case.
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
    """Return the bytes that PyTorch's allocator holds at most while something runs, above those it held before."""
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
    """Return how far this process's resident set rises at most while something runs (bytes).

    Raises RuntimeError on other systems than Linux, which do not tell it.
    """
    if not sys.platform.startswith("linux"):
        raise RuntimeError(f"the peak of resident memory is measured on Linux alone, not on {sys.platform}")
    gc.collect()
    forget_peak()
    before = resident_bytes()
    run()
    # the kernel's two counters may be some pages apart
    return max(0, peak_bytes() - before)


def resident_bytes() -> int:
    """Return the process's resident set."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * mmap.PAGESIZE


def peak_bytes() -> int:
    """Return the process's resident set at its highest, since its start or the last `forget_peak`."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Make `peak_bytes` start from the memory that is resident now, without the libraries that were loaded before."""
    Path("/proc/self/clear_refs").write_text("5")


def peak(run: Callable[[], object], device: str) -> int:
    """Return how far memory rises while something runs (bytes): `peak_resident` on a CPU, else `peak_allocated`."""
    return peak_resident(run) if device == "cpu" else peak_allocated(run, device)


def add_peaks(
    rows: Sequence[dict[str, Any]], case: Sequence[str], peaks: Callable[..., list[int]], device: str, **arguments: Any
) -> None:
    """Write the peak of each row into it as ``peak_bytes``, or why there is none as ``peak_failed``.

    ``case`` has the keys of a row that say what runs. ``peaks`` is a module's function that returns the peaks for
    ``cases``, which are those keys and values of each row; it also takes ``device``, ``threads`` and ``arguments``. On
    a CPU it runs in a fresh process.
    """
    cases = [{key: row[key] for key in case} for row in rows]
    call = partial(call_in_a_fresh_process, peaks) if device == "cpu" else peaks
    try:
        found = call(cases=cases, device=device, threads=torch.get_num_threads(), **arguments)
    except RuntimeError as error:  # the system may end a process that wants too much memory
        for row in rows:
            row["peak_failed"] = str(error)
        return
    for row, of_row in zip(rows, found, strict=True):
        row["peak_bytes"] = of_row


def output_of_a_fresh_process(arguments: Sequence[str], *, mapped: bool = True) -> str:
    """Return what Python prints when it is started with these arguments.

    With ``mapped`` every tensor has its own mapping, which goes back to the system with it, so that the resident set is
    what the process needs. It costs time. Raises RuntimeError with the last line of the errors where the process fails.
    """
    environment = os.environ | (_EASILY_MAPPED if mapped else {})
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed no error"])[-1]
        raise RuntimeError(f"a process of its own ended with code {done.returncode}: {last}")
    return done.stdout


def call_in_a_fresh_process(function: Callable[..., Any], *, mapped: bool = True, **arguments: Any) -> Any:
    """Return the result of an importable function, or one of this script, called in a process of its own.

    The arguments and the result go through JSON; ``mapped`` is as in `output_of_a_fresh_process`.
    """
    module, setup = function.__module__, "import gc, json, sys"
    if module == "__main__":
        script = Path(inspect.getfile(function)).resolve()
        module, setup = script.stem, f"{setup}; sys.path.insert(0, {str(script.parent)!r})"
    code = (
        f"{setup}; from {module} import {function.__name__} as function\n"
        # a measure's `gc.collect` would look through all that was imported; libraries complain of what stays at the end
        "gc.freeze()\ntry: print(json.dumps(function(**json.loads(sys.argv[1]))))\nfinally: gc.unfreeze()"
    )
    return json.loads(output_of_a_fresh_process(["-c", code, json.dumps(arguments)], mapped=mapped).splitlines()[-1])
