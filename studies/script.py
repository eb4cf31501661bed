"""What the scripts of this folder share: their options, their start, and the record that they write."""

import argparse
from pathlib import Path
from typing import Any

import torch

from cgnl.measure.record import write_result

RESULTS = Path(__file__).parent / "results"


def study(
    file: str, description: str | None, *, repeats: int = 15, repeats_are: str = "turns that count", threads: int = 2
) -> argparse.ArgumentParser:
    """Return a parser with the options of every study.

    Args:
        file: The script; its record has the same name.
        description: What ``--help`` prints first.
        repeats: Default of ``--repeats``.
        repeats_are: What is repeated.
        threads: Default of ``--threads``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = RESULTS / f"{Path(file).stem}.json"
    parser.add_argument("--out", type=Path, default=out, help=f"the JSON file to write; results/{out.name} by default")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"{repeats_are}; {repeats} by default")
    parser.add_argument("--threads", type=int, default=threads, help=f"CPU threads; {threads} by default")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def begin(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line, and set threads and seed as it says."""
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    return arguments


def write(arguments: argparse.Namespace, rows: list[dict[str, Any]], **settings: Any) -> None:
    """Write the record of a study.

    Args:
        arguments: As `begin` returned them.
        rows: The measurements.
        settings: What was measured, and how.
    """
    device = getattr(arguments, "device", "cpu")
    write_result(arguments.out, seed=arguments.seed, device=device, settings=settings, rows=rows)
