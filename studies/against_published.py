"""How much faster is the eager CGNL block than the published formulation, and how much less does it keep?

Forward and backward, and forward alone, in float32 at G = 8 on a CPU: a kernel function's forms in turns within one
process, with nothing else between them (`cgnl benchmark block` has a dozen other blocks there), and that in several
processes, as the ratios of one differ from those of the next. Run on a machine that does nothing else:

    python studies/against_published.py
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import nn

import cgnl
from cgnl.measure.memory import bytes_kept, call_in_a_fresh_process
from cgnl.measure.rivals import BareConvolutions, PublishedCGNL
from cgnl.measure.timing import forward_only, in_memory_format, ratios, side_by_side, spread, training_step
from script import begin, study, write

SHAPES = ((4, 1024, 28, 28), (8, 512, 28, 28), (2, 512, 16, 28, 28))
GROUPS = 8
ORDER = 3


def candidates(channels: int, num_axes: int, kernel: str) -> dict[str, nn.Module]:
    """Return the forms of one kernel function, none of them the identity."""
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


def seconds_and_bytes(
    shape: Sequence[int], kernel: str, memory_format: str, repeats: int, threads: int, seed: int
) -> dict[str, Any]:
    """Return each turn's seconds by mode and candidate, and the bytes that each keeps, with and without weights."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    x = in_memory_format(torch.randn(*shape), memory_format).requires_grad_()
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
    """Return a row for each of our forms, from the turns of all processes together."""
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
    """Measure every shape, kernel function and memory format and write the record."""
    parser = study(__file__, __doc__, repeats=5)
    parser.add_argument("--processes", type=int, default=3, help="processes, each with so many turns")
    arguments = begin(parser)
    if arguments.repeats < 2:
        parser.error(f"--repeats ({arguments.repeats}) must be at least 2: one turn has no spread")
    options = {name: getattr(arguments, name) for name in ("repeats", "threads", "seed")}
    rows = []
    for shape, kernel, layout in product(SHAPES, ("dot", "rbf"), ("contiguous", "channels_last")):
        case = {"shape": shape, "kernel": kernel, "memory_format": layout, **options}
        processes = [
            call_in_a_fresh_process(seconds_and_bytes, mapped=False, **case) for _ in range(arguments.processes)
        ]
        for row in rows_of(processes):
            rows.append({"shape": shape, "kernel": kernel, "memory_format": layout, **row})
            faster = row["training"]["published_over_this"]["median"]
            print(
                f"{list(shape)} {kernel} {layout}, {row['candidate']}: {faster:.2f} times as fast, "
                f"keeps {row['kept_over_published']:.2f}",
                flush=True,
            )
    counts = {"repeats": arguments.repeats, "processes": arguments.processes}
    write(arguments, rows, groups=GROUPS, rbf_order=ORDER, **counts, dtype="float32")


if __name__ == "__main__":
    main()
