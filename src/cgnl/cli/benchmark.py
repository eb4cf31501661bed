"""``cgnl benchmark``: what the blocks cost and how exact they are, on this machine."""

import importlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cgnl.settings.checks import within

# the help of these says what stands for None
_Count = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
Network = Literal["resnet50", "c2d_resnet50", "maskrcnn_resnet50"]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One measurement.

    Args:
        device: Where to run. On CUDA, all but `accuracy` measure bfloat16; `networks` uses autocast.
        out: Folder for the record and the plot, or the record's file (.json).
        threads: CPU threads; 2 by default.
        seed: Seed of weights and inputs.
        smallest: Only show that all parts work, at the smallest sizes; the numbers mean nothing.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    out: Path = Path("runs/benchmark")
    threads: _Count = None
    seed: int = 0
    smallest: bool = False


@dataclass(frozen=True, kw_only=True)
class Table1(Benchmark):
    """Measure Table 1: time and memory of GNL and CGNL against N, C and P, and of blocks against N, with exponents.

    Args:
        repeats: Number of measured turns, at least 2; by default 3, on CUDA 10.
    """

    repeats: _Count = None


@dataclass(frozen=True, kw_only=True)
class Block(Benchmark):
    """Measure one block: ours in every form beside the published formulation, non-local and other blocks.

    On CUDA the fused operators are measured too, also in a CUDA graph.

    Args:
        repeats: Number of measured turns, at least 2; by default 5, on CUDA 20.
        compiled: Also measure the block behind torch.compile, which takes a C++ compiler and some minutes.
    """

    repeats: _Count = None
    compiled: bool = True


@dataclass(frozen=True, kw_only=True)
class Networks(Benchmark):
    """Measure networks with 0, 1 and 5 CGNL blocks, in training and in inference.

    Args:
        repeats: Number of measured turns, at least 2; by default 7.
        networks: Which networks to measure. With --smallest they are ResNet-18.
    """

    repeats: _Count = None
    networks: tuple[Network, ...] = ("resnet50", "c2d_resnet50", "maskrcnn_resnet50")


@dataclass(frozen=True, kw_only=True)
class Accuracy(Benchmark):
    """Measure the largest errors of every backend and type against float64; fail if a result is not finite.

    Also run the self-test that backend "auto" makes on a GPU before it takes the fused operators there. On a CPU the
    fused operators run only with TRITON_INTERPRET=1, and slowly.
    """


def benchmark(arguments: Sequence[str]) -> None:
    """Measure time, memory and accuracy on this machine (table1, block, networks, accuracy)."""
    kinds: dict[str, Callable[..., Benchmark]] = {
        "table1": Table1,
        "block": Block,
        "networks": Networks,
        "accuracy": Accuracy,
    }
    request = tyro.extras.subcommand_cli_from_dict(kinds, prog="cgnl benchmark", args=arguments)
    kind = type(request).__name__.lower()
    record_file = _checked(request, kind)
    # the profiler that counts memory has notes about itself for the terminal
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import torch

    from cgnl.measure.plots import draw
    from cgnl.measure.record import write_result
    from cgnl.measure.tables import print_self_test, print_tables

    if request.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device ('cuda') needs a GPU that PyTorch can use, and it finds none")
    if request.device == "cpu":
        torch.set_num_threads(request.threads or 2)
    _make_folder(record_file.parent, request.out)
    interpreted = "TRITON_INTERPRET=1 " if os.environ.get("TRITON_INTERPRET") == "1" else ""
    measure = importlib.import_module(f"cgnl.measure.{kind}").measure
    options = {field.name: getattr(request, field.name) for field in fields(request)}
    for name in ("out", "threads"):
        del options[name]
    record = write_result(
        record_file,
        command=interpreted + shlex.join(["cgnl", "benchmark", *arguments]),
        device=request.device,
        seed=request.seed,
        **measure(**options),
    )
    print_tables(kind, record)
    if kind == "accuracy":
        print_self_test(request.device, smallest=request.smallest)
    plot = record_file.with_suffix(".png")
    drawn = draw(kind, record, plot)
    print(f"{record_file}, {plot}" if drawn else f"{record_file}; no plot, because no row has values for it")
    not_finite = [row for row in record["rows"] if "not_finite" in row]
    for row in not_finite:
        where = f"{row['backend']}, {row['dtype']}, {row['case']}, {row['kernel']}"
        print(f"cgnl: {where}: {'; '.join(row['not_finite'])}", file=sys.stderr)
    if not_finite:
        sys.exit(1)


def _checked(request: Benchmark, kind: str) -> Path:
    """Check the options and return the record's file."""
    if request.threads is not None:
        if request.device == "cuda":
            raise ValueError(f"threads ({request.threads}) is for CPUs: leave it out with device ('cuda')")
        within("threads", request.threads, 1)
    repeats = getattr(request, "repeats", None)
    if repeats is not None and repeats < 2:
        raise ValueError(f"repeats ({repeats}) must be at least 2: one turn has no spread")
    if isinstance(request, Networks) and not request.networks:
        raise ValueError("networks () must name at least one")
    if request.out.suffix == ".json" and not request.out.is_dir():
        return request.out
    if request.out.exists() and not request.out.is_dir():
        raise ValueError(f"out ({request.out}) must be a folder or a file that ends in .json")
    return request.out / f"{kind}_{request.device}.json"


def _make_folder(folder: Path, out: Path) -> None:
    """Make the record's folder before the measurements, which take minutes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out ({out}) must be a place where a folder can be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"out ({out}) must lie in a writable folder")
