"""The JSON record of a benchmark: rows, and the command, commit, versions and machine that made them."""

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import cgnl
from cgnl.files import write_text


def write_result(
    path: Path,
    *,
    seed: int,
    settings: Mapping[str, Any],
    rows: list[dict[str, Any]],
    command: str | None = None,
    device: str = "cpu",
    **more: Any,
) -> dict[str, Any]:
    """Write a record, whole or not at all, and return it.

    ``settings`` say what was measured, and how; ``rows`` are the measurements, ``more`` further parts, such as
    rooflines. ``command`` is by default this process's script and its arguments.
    """
    record = {
        "command": command or shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
        "machine": {
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        },
        "seed": seed,
        "settings": dict(settings),
        **more,
        "rows": rows,
    }
    # no NaN: it is no JSON, and no measurement
    write_text(path, json.dumps(record, indent=2, allow_nan=False) + "\n")
    return record


def versions() -> dict[str, str]:
    """Return the versions of Python, PyTorch, Triton (where it is) and cgnl."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "cgnl": cgnl.__version__}
    try:
        import triton
    except ImportError:
        return found
    return {**found, "triton": triton.__version__}


def commit(file: Path = Path(__file__)) -> str:
    """Return the commit that a file of the code is checked out from, with ``-dirty`` where the code differs from it.

    Twelve digits, or "unknown" for a file in no checkout, or not part of it. What is in studies/results is not code.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=file.parent, capture_output=True, text=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", file.name)
        top = git("rev-parse", "--show-toplevel").strip()
        changed = git("-C", top, "status", "--porcelain", "--", "src", "studies", ":!studies/results")
        return git("rev-parse", "--short=12", "HEAD").strip() + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
