"""What do the maps of one block cost beyond the forward pass, and what do they keep?

For each network: the forward pass, the trace (the forward pass with theta, phi and g of the block once more), the
affinity of one reference as row and column together with the evidence of its group, and the effect, which is forward
passes. The candidates take turns within one process, in float32. Then the bytes that a trace keeps, at several numbers
of positions, with a line through them. Run on a machine that does nothing else:

    python benchmarks/explain.py
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from cgnl import CGNL2d
from cgnl.explain.effect import effect
from cgnl.explain.maps import affinity, affinity_group, evidence, reference_channel
from cgnl.explain.trace import BlockTrace, trace_blocks
from cgnl.networks.image import resnet50
from cgnl.networks.video import c2d_resnet50
from timing import common_arguments, side_by_side, spread, write_result

PATH = "layer3.4"
# Name, network, input, seconds that the maps may take beyond the forward pass.
CASES: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], float]] = [
    ("image of 448 pixels", lambda: resnet50("cgnl"), (1, 3, 448, 448), 0.05),
    ("32 frames of 224 pixels", lambda: c2d_resnet50("cgnl"), (1, 3, 32, 224, 224), 0.3),
    ("32 frames of 448 pixels", lambda: c2d_resnet50("cgnl"), (1, 3, 32, 448, 448), 0.3),
]
SMALL_CASES = [
    ("image of 64 pixels", CASES[0][1], (1, 3, 64, 64), 0.05),
    ("8 frames of 64 pixels", CASES[1][1], (1, 3, 8, 64, 64), 0.3),
]
CHANNELS = 256
SIDES = (14, 28, 42, 56, 84)


def awake(network: nn.Module) -> nn.Module:
    """The block is no longer the identity, as after the first steps of training."""
    nn.init.ones_(network.get_submodule(f"{PATH}.inserted_block.norm").weight)
    return network.eval()


def maps_of_one_reference(block: BlockTrace) -> list[Tensor]:
    """Affinity of the middle's strongest element as row and column, and the evidence of its group for every power."""
    position = tuple(size // 2 for size in block.shape)
    channel = reference_channel(block, position)
    group = affinity_group(block, channel)
    assert block.kernel is not None
    powers = range(len(block.kernel.coefficients))
    return [
        affinity(block, position, channel),
        affinity(block, position, channel, view="column"),
        *(evidence(block, group.start // len(group), power) for power in powers),
    ]


def forward(network: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """The forward pass alone."""

    def run() -> Tensor:
        with torch.no_grad():
            return network(x)

    return run


def time_maps(name: str, network: nn.Module, x: Tensor, bound: float, repeats: int) -> dict[str, object]:
    """Seconds of the forward pass, of the trace, of the maps, and of the maps and trace beyond the forward pass."""
    block = trace_blocks(network, x).blocks[PATH]
    seconds = side_by_side(
        {
            "forward": forward(network, x),
            "trace": lambda: trace_blocks(network, x),
            "maps": lambda: maps_of_one_reference(block),
        },
        repeats=repeats,
        warmup=1,
    )
    beyond = [
        trace - plain + maps
        for plain, trace, maps in zip(seconds["forward"], seconds["trace"], seconds["maps"], strict=True)
    ]
    of_effect = side_by_side({"effect": lambda: effect(network, x, PATH)}, repeats=max(2, repeats // 5), warmup=0)
    result = {key: spread(values) for key, values in {**seconds, **of_effect, "beyond_forward": beyond}.items()}
    print(
        f"{name}, block at {list(block.theta.shape)}: maps {result['maps']['median'] * 1000:.1f} ms, with the trace "
        f"{result['beyond_forward']['median'] * 1000:.1f} ms beyond the forward pass (bound {bound * 1000:.0f} ms), "
        f"effect {result['effect']['median']:.2f} s"
    )
    return {"input": list(x.shape), "features": list(block.theta.shape), "bound": bound, "name": name, **result}


def bytes_of_trace(side: int) -> int:
    """Bytes that the trace of a [CHANNELS, side, side] input keeps."""
    trace = trace_blocks(CGNL2d(CHANNELS), torch.randn(1, CHANNELS, side, side)).blocks[""]
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in vars(trace).values()
        if isinstance(tensor, Tensor)
    }
    return sum(storages.values())


def fit_memory() -> dict[str, object]:
    """Bytes kept at several numbers of positions, and the line through them."""
    positions = [side * side for side in SIDES]
    kept = [bytes_of_trace(side) for side in SIDES]
    slope, intercept = np.polyfit(positions, kept, 1)
    residual = np.abs(np.polyval((slope, intercept), positions) - kept).max() / max(kept)
    per_number = slope / (CHANNELS // 2)
    print(
        f"a trace keeps {per_number:.2f} bytes per position and inner channel; off the line by {residual:.1e} at most"
    )
    return {
        "name": "memory",
        "channels": CHANNELS,
        "positions": positions,
        "bytes": kept,
        "bytes_per_position_and_inner_channel": round(float(per_number), 3),
        "off_the_line": float(f"{residual:.2g}"),
    }


def main() -> None:
    """Times the maps for an image and videos, fits the memory, and writes the record."""
    parser = common_arguments(__doc__, default_out="explain.json")
    parser.add_argument("--small", action="store_true", help="small inputs, to try the script")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    rows = [
        time_maps(name, awake(make()), torch.randn(shape), bound, arguments.repeats)
        for name, make, shape, bound in (SMALL_CASES if arguments.small else CASES)
    ]
    rows.append(fit_memory())
    write_result(
        arguments.out,
        seed=arguments.seed,
        settings={"repeats": arguments.repeats, "small": arguments.small, "dtype": "float32"},
        rows=rows,
    )


if __name__ == "__main__":
    main()
