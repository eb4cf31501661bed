"""How much faster is the eager CGNL block than the published formulation, and how much less does it keep?

Forward and backward, and forward alone, in float32 at G = 8 on a CPU: a kernel function's forms in turns within one
process, with nothing else between them (`cgnl benchmark block` has a dozen other blocks there). Run on a machine that
does nothing else:

    python benchmarks/against_published.py
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import cgnl
from cgnl.benchmark.memory import bytes_kept
from cgnl.benchmark.record import write_result
from cgnl.benchmark.rivals import BareConvolutions, PublishedCGNL
from cgnl.benchmark.timing import forward_only, ratios, side_by_side, spread, training_step
from script import common_arguments

SHAPES = ((4, 1024, 28, 28), (8, 512, 28, 28), (2, 512, 16, 28, 28))
GROUPS = 8
ORDER = 3
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


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


def measured(x: Tensor, kernel: str, repeats: int) -> list[dict[str, Any]]:
    """A row for each of our forms."""
    modules = candidates(x.shape[1], x.dim() - 2, kernel)
    kept, kept_with_parameters, seconds = {}, {}, {}
    for name, module in modules.items():
        kept[name] = bytes_kept(partial(module, x), without=module.parameters())
        kept_with_parameters[name] = bytes_kept(partial(module, x))
    for mode, make in (("training", training_step), ("forward", forward_only)):
        runs: dict[str, Callable[[], object]] = {}
        for name, module in modules.items():
            runs[name] = make(module.train(mode == "training"), x)
        seconds[mode] = side_by_side(runs, repeats=repeats)
    return [
        {
            "candidate": name,
            **{
                mode: {
                    "seconds": spread(of[name]),
                    "published_over_this": ratios(of["published"], of[name]),
                    "over_convolutions": ratios(of[name], of["convolutions"]),
                }
                for mode, of in seconds.items()
            },
            "kept_over_published": round(kept[name] / kept["published"], 3),
            "kept_over_published_with_parameters": round(
                kept_with_parameters[name] / kept_with_parameters["published"], 3
            ),
        }
        for name in ("ours", "ours, memory-efficient")
    ]


def main() -> None:
    """Measures every shape, kernel function and memory format and writes the record."""
    arguments = common_arguments(__doc__, default_out="against_published.json").parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for shape in SHAPES:
        for kernel in ("dot", "rbf"):
            for layout in ("contiguous", "channels_last"):
                torch.manual_seed(arguments.seed)
                x = torch.randn(shape)
                if layout == "channels_last":
                    x = x.contiguous(memory_format=LAYOUTS[len(shape)])
                for row in measured(x.requires_grad_(), kernel, arguments.repeats):
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
        settings={"groups": GROUPS, "rbf_order": ORDER, "repeats": arguments.repeats, "dtype": "float32"},
        rows=rows,
    )


if __name__ == "__main__":
    main()
