"""How much faster is the eager CGNL block than the published formulation, and how much less does it keep?

Forward and backward, and forward alone, in float32 at G = 8 on a CPU: a kernel function's forms in turns within one
process, with nothing else between them (`cgnl benchmark block` has a dozen other blocks there), and that in several
processes, as the ratios of one differ from those of the next. Run on a machine that does nothing else:

    python studies/against_published.py
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import cgnl
from cgnl.measure.memory import bytes_kept
from cgnl.measure.record import write_result
from cgnl.measure.rivals import BareConvolutions, PublishedCGNL
from cgnl.measure.timing import forward_only, ratios, side_by_side, spread, training_step
from script import common_arguments

SHAPES = ((4, 1024, 28, 28), (8, 512, 28, 28), (2, 512, 16, 28, 28))
GROUPS = 8
ORDER = 3
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
CASES = tuple(product(SHAPES, ("dot", "rbf"), ("contiguous", "channels_last")))


def candidates(channels: int, num_axes: int, kernel: str) -> dict[str, nn.Module]:
    """The forms of one kernel function, none of them the identity."""
    make = partial({2: cgnl.CGNL2d, 3: cgnl.CGNL3d}[num_axes], channels, groups=GROUPS, kernel=kernel, backend="eager")
    made: dict[str, nn.Module] = {
        "convolutions": BareConvolutions(channels, num_axes, groups=GROUPS),
        "published": PublishedCGNL(channels, num_axes, groups=GROUPS, order=None if kernel == "dot" else ORDER),
        "ours": make(),
        "ours, memory-efficient": make(memory_efficient=True),
    }
    for name in ("published", "ours", "ours, memory-efficient"):
        nn.init.ones_(made[name].norm.weight)
    return made


def seconds_and_bytes(x: Tensor, kernel: str, repeats: int) -> dict[str, Any]:
    """Seconds of every turn by mode and candidate, and the bytes that each keeps, without weights and with them."""
    modules = candidates(x.shape[1], x.dim() - 2, kernel)
    measured: dict[str, Any] = {
        "kept": {name: bytes_kept(partial(module, x), without=module.parameters()) for name, module in modules.items()},
        "kept_with_parameters": {name: bytes_kept(partial(module, x)) for name, module in modules.items()},
    }
    for mode, make in (("training", training_step), ("forward", forward_only)):
        runs: dict[str, Callable[[], object]] = {}
        for name, module in modules.items():
            runs[name] = make(module.train(mode == "training"), x)
        measured[mode] = side_by_side(runs, repeats=repeats)
    return measured


def rows_of(processes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each of our forms, from the turns of all processes together."""
    kept, kept_with_parameters = (processes[0][name] for name in ("kept", "kept_with_parameters"))
    rows: list[dict[str, Any]] = []
    for name in ("ours", "ours, memory-efficient"):
        row: dict[str, Any] = {"candidate": name}
        for mode in ("training", "forward"):
            own, published, convolutions = (
                [value for process in processes for value in process[mode][candidate]]
                for candidate in (name, "published", "convolutions")
            )
            row[mode] = {
                "seconds": spread(own),
                "published_over_this": ratios(published, own),
                "published_over_this_by_process": [
                    ratios(process[mode]["published"], process[mode][name])["median"] for process in processes
                ],
                "over_convolutions": ratios(own, convolutions),
            }
        row["kept_over_published"] = round(kept[name] / kept["published"], 3)
        row["kept_over_published_with_parameters"] = round(
            kept_with_parameters[name] / kept_with_parameters["published"], 3
        )
        rows.append(row)
    return rows


def main() -> None:
    """Measures every shape, kernel function and memory format and writes the record."""
    parser = common_arguments(__doc__, default_out="against_published.json")
    parser.set_defaults(repeats=5)
    parser.add_argument("--processes", type=int, default=3, help="processes, each with so many turns")
    parser.add_argument("--only", type=int, help="print the raw measurements of the case with this number as JSON")
    arguments = parser.parse_args()
    if arguments.repeats < 2:
        parser.error(f"--repeats ({arguments.repeats}) must be at least 2: one turn has no spread")
    torch.set_num_threads(arguments.threads)
    if arguments.only is not None:
        shape, kernel, layout = CASES[arguments.only]
        torch.manual_seed(arguments.seed)
        x = torch.randn(shape)
        if layout == "channels_last":
            x = x.contiguous(memory_format=LAYOUTS[len(shape)])
        print(json.dumps(seconds_and_bytes(x.requires_grad_(), kernel, arguments.repeats)))
        return
    options = [f"--{name}={getattr(arguments, name)}" for name in ("repeats", "threads", "seed")]
    rows = []
    for number, (shape, kernel, layout) in enumerate(CASES):
        command = [sys.executable, __file__, f"--only={number}", *options]
        processes = [
            json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            for _ in range(arguments.processes)
        ]
        for row in rows_of(processes):
            rows.append({"shape": shape, "kernel": kernel, "memory_format": layout, **row})
            faster = row["training"]["published_over_this"]["median"]
            print(
                f"{list(shape)} {kernel} {layout}, {row['candidate']}: {faster:.2f} times as fast, "
                f"keeps {row['kept_over_published']:.2f}",
                flush=True,
            )
    write_result(
        arguments.out,
        seed=arguments.seed,
        settings={
            "groups": GROUPS,
            "rbf_order": ORDER,
            "repeats": arguments.repeats,
            "processes": arguments.processes,
            "dtype": "float32",
        },
        rows=rows,
    )


if __name__ == "__main__":
    main()
