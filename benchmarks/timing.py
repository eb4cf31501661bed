"""Side-by-side timing, and the JSON record of a benchmark.

Candidates take turns in one process, so that whatever else the machine does hits all of them alike; ratios are taken
turn by turn.
"""

import argparse
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def side_by_side(
    candidates: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 3
) -> dict[str, list[float]]:
    """Times each candidate once a turn, in turns.

    Args:
        candidates: functions without arguments, by name.
        repeats: number of turns that count.
        warmup: number of turns before them.

    Returns:
        Seconds of every turn, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + repeats):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            elapsed = time.perf_counter() - start
            if turn >= warmup:
                seconds[name].append(elapsed)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": _rounded(median), "lower_quartile": _rounded(low), "upper_quartile": _rounded(high)}


def ratios(values: list[float], to: list[float]) -> dict[str, float]:
    """Median and quartiles of the ratios, turn by turn."""
    return spread([value / other for value, other in zip(values, to, strict=True)])


def bytes_kept(forward: Callable[[], object]) -> int:
    """Bytes of the distinct storages that a forward pass keeps for its backward pass."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    kept = sum(storage.nbytes() for storage in storages.values())
    del result
    return kept


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


def number_from_a_fresh_process(script: str, options: Mapping[str, object]) -> int:
    """The number that a script prints when it is run with these options.

    Its allocator returns every freed tensor to the system, so that its resident set is what it needs.

    Args:
        script: path of the script.
        options: values by the options' names, with underscores.
    """
    command = [sys.executable, script]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    # every tensor gets its own mapping, which goes back to the system with it
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000"}
    return int(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout)


def common_arguments(description: str | None, *, default_out: str) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes: where to write, turns, threads, seed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / default_out, help="the JSON file to write")
    parser.add_argument("--repeats", type=int, default=15, help="turns that count")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def write_result(path: Path, *, seed: int, settings: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
    """Writes rows with the command, commit, versions and machine that made them."""
    record = {
        "command": shlex.join(["python", *sys.argv]),
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "machine": {
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
        "seed": seed,
        "settings": dict(settings),
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _commit() -> str:
    """The commit, marked where the code differs from it; results that were written before do not count."""
    here = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True)
    if commit.returncode:
        return "unknown"
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "..", ":!results"], cwd=here)
    return commit.stdout.strip() + ("-dirty" if changed.returncode else "")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
