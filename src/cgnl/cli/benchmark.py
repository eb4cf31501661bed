"""``cgnl benchmark``: what the blocks cost and how exact they are, on this machine."""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

Device = Literal["cpu", "cuda"]
_OUT = Path("runs/benchmark")


@dataclass(frozen=True)
class _Request:
    kind: str
    device: Device
    out: Path
    threads: int | None
    seed: int
    smallest: bool
    options: dict[str, Any] = field(default_factory=dict)


def table1(
    device: Device = "cpu",
    out: Path = _OUT,
    threads: int | None = None,
    repeats: int | None = None,
    seed: int = 0,
    smallest: bool = False,
) -> _Request:
    """Table 1 measured: time and memory of GNL and CGNL against N, C and P, and of blocks against N, with exponents.

    Args:
        device: Where it runs; on CUDA in bfloat16.
        out: Folder for the record and the plot, or the record's file (.json).
        threads: CPU threads; by default 2.
        repeats: Turns that count, at least 2; by default 3, on CUDA 10.
        seed: Seed of weights and inputs.
        smallest: A run of seconds that only shows that all parts work; its numbers mean nothing.
    """
    return _Request("table1", device, out, threads, seed, smallest, {"repeats": repeats})


def block(
    device: Device = "cpu",
    out: Path = _OUT,
    threads: int | None = None,
    repeats: int | None = None,
    seed: int = 0,
    compiled: bool = True,
    smallest: bool = False,
) -> _Request:
    """One block: ours in every form beside the published formulation, non-local and other blocks.

    Args:
        device: Where it runs; on CUDA in bfloat16 and with the fused operators, also in a CUDA graph.
        out: Folder for the record and the plot, or the record's file (.json).
        threads: CPU threads; by default 2.
        repeats: Turns that count, at least 2; by default 5, on CUDA 20.
        seed: Seed of weights and inputs.
        compiled: Measure the block behind torch.compile, too, which takes a C++ compiler and some minutes.
        smallest: A run of seconds that only shows that all parts work; its numbers mean nothing.
    """
    return _Request("block", device, out, threads, seed, smallest, {"repeats": repeats, "compiled": compiled})


def networks(
    device: Device = "cpu",
    out: Path = _OUT,
    threads: int | None = None,
    repeats: int | None = None,
    seed: int = 0,
    networks: tuple[Literal["resnet50", "c2d_resnet50", "maskrcnn_resnet50"], ...] = (
        "resnet50",
        "c2d_resnet50",
        "maskrcnn_resnet50",
    ),
    smallest: bool = False,
) -> _Request:
    """Networks with 0, 1 and 5 CGNL blocks, in training and in inference.

    Args:
        device: Where it runs; on CUDA with autocast to bfloat16.
        out: Folder for the record and the plot, or the record's file (.json).
        threads: CPU threads; by default 2.
        repeats: Turns that count, at least 2; by default 7.
        seed: Seed of weights and inputs.
        networks: Which networks.
        smallest: A run of seconds with ResNet-18 that only shows that all parts work; its numbers mean nothing.
    """
    return _Request("networks", device, out, threads, seed, smallest, {"repeats": repeats, "networks": networks})


def accuracy(
    device: Device = "cpu",
    out: Path = _OUT,
    threads: int | None = None,
    seed: int = 0,
    smallest: bool = False,
) -> _Request:
    """The largest errors of every backend and type against float64; what is not finite fails.

    Also the self-test that backend "auto" makes on a GPU before it takes the fused operators there.

    Args:
        device: Where it runs. On a CPU the fused operators run with TRITON_INTERPRET=1 only, and then slowly.
        out: Folder for the record and the plot, or the record's file (.json).
        threads: CPU threads; by default 2.
        seed: Seed of weights and inputs.
        smallest: A run of seconds that only shows that all parts work.
    """
    return _Request("accuracy", device, out, threads, seed, smallest)


def benchmark(arguments: Sequence[str]) -> None:
    """Measure time, memory and accuracy on this machine (table1, block, networks, accuracy)."""
    kinds: dict[str, Callable[..., _Request]] = {
        "table1": table1,
        "block": block,
        "networks": networks,
        "accuracy": accuracy,
    }
    request = tyro.extras.subcommand_cli_from_dict(kinds, prog="cgnl benchmark", args=arguments)
    record_file = _checked(request)
    # the profiler that counts memory has notes about itself for the terminal
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import torch

    from cgnl.measure.plots import draw
    from cgnl.measure.record import write_result
    from cgnl.measure.tables import print_tables

    if request.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device ('cuda') needs a GPU that PyTorch can use, and it finds none")
    if request.device == "cpu":
        torch.set_num_threads(request.threads or 2)
    _make_folder(record_file.parent, request.out)
    interpreted = "TRITON_INTERPRET=1 " if os.environ.get("TRITON_INTERPRET") == "1" else ""
    record = write_result(
        record_file,
        command=interpreted + shlex.join(["cgnl", "benchmark", *arguments]),
        device=request.device,
        seed=request.seed,
        **_measured(request),
    )
    print_tables(request.kind, record)
    if request.kind == "accuracy":
        from cgnl.measure.accuracy import print_self_test

        print_self_test(request.device, smallest=request.smallest)
    plot = record_file.with_suffix(".png")
    drawn = draw(request.kind, record, plot)
    print(f"{record_file}, {plot}" if drawn else f"{record_file}, and no plot: no row holds what it would show")
    not_finite = [row for row in record["rows"] if "not_finite" in row]
    for row in not_finite:
        where = f"{row['backend']}, {row['dtype']}, {row['case']}, {row['kernel']}"
        print(f"cgnl: {where}: {'; '.join(row['not_finite'])}", file=sys.stderr)
    if not_finite:
        sys.exit(1)


def _checked(request: _Request) -> Path:
    """The record's file, once all that can be wrong in the arguments is known not to be."""
    if request.threads is not None:
        if request.device == "cuda":
            raise ValueError(f"threads ({request.threads}) are of a CPU, and have no meaning for device ('cuda')")
        if request.threads < 1:
            raise ValueError(f"threads ({request.threads}) must be at least 1")
    repeats = request.options.get("repeats")
    if repeats is not None and repeats < 2:
        raise ValueError(f"repeats ({repeats}) must be at least 2: one turn has no spread")
    if not request.options.get("networks", True):
        raise ValueError("networks () must name at least one")
    if request.out.suffix == ".json" and not request.out.is_dir():
        return request.out
    if request.out.exists() and not request.out.is_dir():
        raise ValueError(f"out ({request.out}) must be a folder or a file that ends in .json")
    return request.out / f"{request.kind}_{request.device}.json"


def _make_folder(folder: Path, out: Path) -> None:
    """Makes the record's folder before the measurements, which take minutes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out ({out}) must lie where a folder can be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"out ({out}) must lie in a folder that can be written to")


def _measured(request: _Request) -> dict[str, Any]:
    """Settings, rows and what else the record of this kind holds."""
    common = {"device": request.device, "seed": request.seed, "smallest": request.smallest, **request.options}
    if request.kind == "accuracy":
        from cgnl.measure import accuracy, varying_part

        settings, rows = accuracy.measure(**common)
        return {"settings": settings, "varying_part": varying_part.measure(**common), "rows": rows}
    if request.kind == "table1":
        from cgnl.measure import table1

        settings, rooflines, rows, exponents, operations = table1.measure(**common)
        of_blocks = {"settings": settings, "rooflines": rooflines.as_json(), "exponents": exponents, "rows": rows}
        return {**of_blocks, "operations": operations}
    if request.kind == "block":
        from cgnl.measure import block

        settings, rooflines, rows = block.measure(**common)
    else:
        from cgnl.measure import networks

        settings, rooflines, rows = networks.measure(**common)
    return {"settings": settings, "rooflines": rooflines.as_json(), "rows": rows}
