"""What do the maps of one block cost beyond the forward pass, and what do they keep?

For each network: the forward pass, the trace (the forward pass with theta, phi and g of the block once more), the
affinity of one reference as row and column together with the evidence of its group (of a non-local block row and
column alone, as it has no sums), and the effect, which is forward passes. The candidates take turns within one process,
in float32. Then memory at several numbers of positions: how far the resident set of a fresh process rises at most while
a block is traced and its maps are made, with a line through the numbers; of a non-local block without its own forward
pass, which holds a map of all pairs. Run on a machine that does nothing else:

    python studies/explain.py
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from cgnl import CGNL2d, NonLocal2d
from cgnl.explain.effect import effect
from cgnl.explain.maps import affinity, affinity_group, evidence, reference_channel
from cgnl.explain.trace import BlockTrace, trace_blocks
from cgnl.measure.memory import call_in_a_fresh_process, peak_resident
from cgnl.measure.timing import forward_only, side_by_side, spread
from cgnl.networks.image import resnet50
from cgnl.networks.video import c2d_resnet50
from script import begin, study, write

PATH = "layer3.4"
# Name, network, input, seconds that the maps may take beyond the forward pass.
CASES: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], float]] = [
    ("image of 448 pixels", lambda: resnet50("cgnl"), (1, 3, 448, 448), 0.05),
    ("image of 448 pixels, non-local", lambda: resnet50("nl"), (1, 3, 448, 448), 0.05),
    ("32 frames of 224 pixels", lambda: c2d_resnet50("cgnl"), (1, 3, 32, 224, 224), 0.3),
    ("32 frames of 448 pixels", lambda: c2d_resnet50("cgnl"), (1, 3, 32, 448, 448), 0.3),
    ("32 frames of 448 pixels, non-local", lambda: c2d_resnet50("nl"), (1, 3, 32, 448, 448), 0.3),
]
SMALL_CASES = [
    ("image of 64 pixels", CASES[0][1], (1, 3, 64, 64), 0.05),
    ("image of 64 pixels, non-local", CASES[1][1], (1, 3, 64, 64), 0.05),
    ("8 frames of 64 pixels", CASES[2][1], (1, 3, 8, 64, 64), 0.3),
]
CHANNELS = 256
SIDES = (28, 42, 56, 70, 84)


class NonLocalWithoutItsMap(NonLocal2d):
    """Hands its input on, so that the N x N map of its own forward pass does not hide what trace and maps need."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input."""
        return x


BLOCKS = {"cgnl": CGNL2d, "nl": NonLocalWithoutItsMap}


def awake(network: nn.Module) -> nn.Module:
    """Return the network with a block that is no longer the identity, as after the first steps of training."""
    nn.init.ones_(network.get_submodule(f"{PATH}.inserted_block.norm").weight)
    return network.eval()


def maps_of_one_reference(block: BlockTrace) -> list[Tensor]:
    """Return the affinity of the middle's strongest element as row and column, and all evidence of its group."""
    position = tuple(size // 2 for size in block.shape)
    channel = reference_channel(block, position)
    group = affinity_group(block, channel)
    powers = range(len(block.kernel.coefficients) if block.kernel is not None else 0)
    return [
        affinity(block, position, channel),
        affinity(block, position, channel, view="column"),
        *(evidence(block, group.start // len(group), power) for power in powers),
    ]


def time_maps(name: str, network: nn.Module, x: Tensor, bound: float, repeats: int) -> dict[str, object]:
    """Return the seconds of forward pass, trace and maps, and those of maps and trace beyond the forward pass."""
    block = trace_blocks(network, x).blocks[PATH]
    seconds = side_by_side(
        {
            "forward": forward_only(network, x),
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


def bytes_needed(block: str, side: int) -> int:
    """Return how far the resident set rises from the trace of a [CHANNELS, side, side] input to its maps (bytes)."""
    network = BLOCKS[block](CHANNELS).eval()
    maps_of_one_reference(trace_blocks(network, torch.randn(1, CHANNELS, 8, 8)).blocks[""])  # loads libraries
    x = torch.randn(1, CHANNELS, side, side)
    return peak_resident(lambda: maps_of_one_reference(trace_blocks(network, x).blocks[""]))


def fit_memory(block: str) -> dict[str, object]:
    """Return the bytes that a trace and its maps need at several numbers of positions, and the line through them."""
    positions = [side * side for side in SIDES]
    needed = [call_in_a_fresh_process(bytes_needed, block=block, side=side) for side in SIDES]
    slope, intercept = np.polyfit(positions, needed, 1)
    residual = np.abs(np.polyval((slope, intercept), positions) - needed).max() / max(needed)
    per_number = slope / (CHANNELS // 2)
    print(
        f"{block}: trace and maps need at most {per_number:.1f} bytes per position and inner channel, and "
        f"{intercept / 2**20:.1f} MiB; off the line by {residual:.1%} at most"
    )
    return {
        "name": "memory",
        "block": block,
        "channels": CHANNELS,
        "positions": positions,
        "bytes": needed,
        "bytes_per_position_and_inner_channel": round(float(per_number), 3),
        "off_the_line": float(f"{residual:.2g}"),
    }


def main() -> None:
    """Time the maps for an image and videos, fit the memory, and write the record."""
    parser = study(__file__, __doc__)
    parser.add_argument("--small", action="store_true", help="small inputs, to try the script")
    arguments = begin(parser)
    rows = [
        time_maps(name, awake(make()), torch.randn(shape), bound, arguments.repeats)
        for name, make, shape, bound in (SMALL_CASES if arguments.small else CASES)
    ]
    rows += [fit_memory(block) for block in ("nl", "cgnl")]
    write(arguments, rows, repeats=arguments.repeats, small=arguments.small, dtype="float32")


if __name__ == "__main__":
    main()
