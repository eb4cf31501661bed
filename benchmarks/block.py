"""What does the eager CGNL block cost, beside its four bare convolutions and the published formulation?

Forward and backward in float32 at G = 8, in turns within one process; and the bytes each form keeps for the backward
pass. Run on a machine that does nothing else:

    python benchmarks/block.py
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import cgnl
from published import PublishedCGNL
from timing import bytes_kept, common_arguments, ratios, side_by_side, spread, write_result

SHAPES = ((4, 1024, 28, 28), (8, 512, 28, 28))
GROUPS = 8
ORDER = 3


class BareConvolutions(nn.Module):
    """The block's four convolutions and nothing else: the floor."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.three = nn.ModuleList(nn.Conv2d(channels, channels // 2, 1, bias=False) for _ in range(3))
        self.z = nn.Conv2d(channels // 2, channels, 1, groups=GROUPS, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        theta, phi, g = (convolution(x) for convolution in self.three)
        return self.z(theta), phi, g


def training_step(module: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward and backward with random output gradients; each gradient is made anew."""
    with torch.no_grad():
        outputs = module(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    d_outputs = tuple(torch.randn_like(output) for output in outputs)

    def step() -> None:
        x.grad = None
        module.zero_grad(set_to_none=True)
        result = module(x)
        torch.autograd.backward(result if isinstance(result, tuple) else (result,), d_outputs)

    return step


def main() -> None:
    """Measures every shape and kernel function and writes the record."""
    arguments = common_arguments(__doc__, default_out="block.json").parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    rows = []
    for shape in SHAPES:
        for kernel, order in (("dot", None), ("rbf", ORDER)):
            for memory_format in (torch.contiguous_format, torch.channels_last):
                x = torch.randn(shape).contiguous(memory_format=memory_format).requires_grad_()
                modules = {
                    "convolutions": BareConvolutions(shape[1]),
                    "published": PublishedCGNL(shape[1], groups=GROUPS, order=order),
                    "ours": cgnl.CGNL2d(shape[1], groups=GROUPS, kernel=kernel),
                }
                nn.init.ones_(modules["ours"].norm.weight)
                seconds = side_by_side(
                    {name: training_step(module, x) for name, module in modules.items()}, repeats=arguments.repeats
                )
                kept = {name: bytes_kept(partial(module, x)) for name, module in modules.items()}
                row = {
                    "shape": shape,
                    "memory_format": str(memory_format).removeprefix("torch."),
                    "kernel": kernel,
                    "seconds": {name: spread(values) for name, values in seconds.items()},
                    "ours_over_convolutions": ratios(seconds["ours"], seconds["convolutions"]),
                    "published_over_convolutions": ratios(seconds["published"], seconds["convolutions"]),
                    "bytes_kept": kept,
                    "bytes_kept_ours_over_published": round(kept["ours"] / kept["published"], 3),
                }
                rows.append(row)
                print(
                    f"{shape} {row['memory_format']} {kernel}: "
                    f"ours {row['ours_over_convolutions']['median']:.3f}, "
                    f"published {row['published_over_convolutions']['median']:.3f} times the convolutions; "
                    f"bytes kept {row['bytes_kept_ours_over_published']:.2f} of the published form's"
                )
    write_result(
        arguments.out,
        seed=arguments.seed,
        settings={"groups": GROUPS, "rbf_order": ORDER, "repeats": arguments.repeats, "dtype": "float32"},
        rows=rows,
    )


if __name__ == "__main__":
    main()
