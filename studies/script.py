"""What every script of this folder takes, and where it writes."""

import argparse
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from cgnl.measure.memory import output_of_a_fresh_process

RESULTS = Path(__file__).parent / "results"


def common_arguments(
    description: str | None, *, default_out: str, repeats: str = "turns that count"
) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes: where to write, turns (or what else is repeated), threads, seed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / default_out, help="the JSON file to write")
    parser.add_argument("--repeats", type=int, default=15, help=repeats)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def within(context: AbstractContextManager[object], run: Callable[[], object]) -> Callable[[], None]:
    """The function, run within the context each time; the context can be entered again, as a patch can."""

    def run_within() -> None:
        with context:
            run()

    return run_within


def number_from_a_fresh_process(script: str, options: Mapping[str, object]) -> int:
    """The number that a script prints when it is run with these options in a process of its own.

    Args:
        script: path of the script.
        options: values by the options' names, with underscores.
    """
    arguments = [script]
    for name, value in options.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    return int(output_of_a_fresh_process(arguments))
