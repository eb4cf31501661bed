"""What does a training step of C2D-ResNet-50 on 32 frames cost with space-time blocks, in time and in memory?

A step is forward, cross entropy, backward and SGD with momentum, in float32 on clips of 224 pixels. The networks take
turns within one process; the measure for CGNL is its share of the multiplications. Peak memory is measured in a fresh
process for each network: the peak of the resident set over what it was before the network was made, with an allocator
that returns every freed tensor to the system. The last rows compare folding the frames into the batch with real 3d
convolutions of the same weights. Run on a machine that does nothing else:

    python studies/video_network.py
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from cgnl.insertion import inserted_blocks
from cgnl.measure.memory import PEAK_IS, call_in_a_fresh_process, peak
from cgnl.measure.networks import classifier_training_step
from cgnl.measure.timing import in_memory_format, ratios, side_by_side, spread
from cgnl.networks.cost import network_cost
from cgnl.networks.video import STRIDES_32_FRAMES, c2d_resnet50
from conv3d_network import Conv3dResNet
from script import begin, study, write

FRAMES = 32
NUM_CLASSES = 200

BLOCKS: dict[str, dict[str, Any]] = {
    "cgnl": {"block": "cgnl"},
    "nl_embedded_gaussian": {"block": "nl", "subsample": False},
    "nl_embedded_gaussian_subsampled": {"block": "nl"},
    "nl_dot_product": {"block": "nl", "pairwise": "dot_product", "subsample": False},
    "nl_dot_product_subsampled": {"block": "nl", "pairwise": "dot_product"},
}
NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {},
    **{
        f"{num_blocks}_{name}": {**options, "num_blocks": num_blocks}
        for name, options in BLOCKS.items()
        for num_blocks in (1, 5)
    },
}
# Peaks over the plain network's that CGNL must not exceed; the limit of its time is its multiplications.
MEMORY_LIMITS = {"1_cgnl": 1.05, "5_cgnl": 1.20}
MEMORY_FORMATS = ("channels_last", "contiguous")


def network_of(name: str) -> nn.Module:
    """Return the network of that name, with blocks that are no longer the identity, as in training."""
    network = c2d_resnet50(**NETWORKS[name], num_classes=NUM_CLASSES)
    for block in inserted_blocks(network).values():
        nn.init.ones_(block.get_parameter("norm.weight"))
    return network


def network_of_3d_convolutions() -> nn.Module:
    """Return the plain network with the frames left where they are."""
    network = Conv3dResNet("resnet50", STRIDES_32_FRAMES, NUM_CLASSES, {})
    network.load_frames_weights(network_of("plain").state_dict())
    return network


def step_of(network: nn.Module, memory_format: str, batch_size: int, size: int) -> Callable[[], None]:
    """Return a function that runs a training step of the network on clips of noise."""
    for parameter in network.parameters():
        if parameter.dim() > 3:
            parameter.data = in_memory_format(parameter.data, memory_format)
    video = in_memory_format(torch.randn(batch_size, 3, FRAMES, size, size), memory_format)
    return classifier_training_step(network, video, torch.randint(NUM_CLASSES, (batch_size,)))


def peak_of(name: str, memory_format: str, batch_size: int, size: int, threads: int, seed: int) -> int:
    """Return how far memory rises while a network is made and trains for two steps (bytes)."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)

    def make_and_run() -> None:
        step = step_of(network_of(name), memory_format, batch_size, size)
        # the optimizer has its momentum from the second step on
        for _ in range(2):
            step()

    return peak(make_and_run, "cpu")


def rows_of_networks(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return time, memory and multiplications of each network, and their ratios to the plain one's."""
    shape = (1, 3, FRAMES, arguments.size, arguments.size)
    clips = {name: getattr(arguments, name) for name in ("memory_format", "batch_size", "size")}
    case = {**clips, "threads": arguments.threads, "seed": arguments.seed}
    costs = {name: network_cost(partial(network_of, name), shape) for name in arguments.networks}
    peaks = {
        name: [call_in_a_fresh_process(peak_of, name=name, **case) for _ in range(arguments.peaks)]
        for name in arguments.networks
    }
    steps = {name: step_of(network_of(name), **clips) for name in arguments.networks}
    seconds = side_by_side(steps, repeats=arguments.repeats, warmup=1)
    rows = []
    for name in arguments.networks:
        row = {
            "network": name,
            "parameters": costs[name].parameters,
            "multiplications": costs[name].multiplications,
            "multiplications_over_plain": round(costs[name].multiplications / costs["plain"].multiplications, 4),
            "seconds": spread(seconds[name]),
            "time_over_plain": ratios(seconds[name], seconds["plain"]),
            "peak_mebibytes": [round(of_process / 2**20, 1) for of_process in peaks[name]],
            "peak_over_plain": round(min(peaks[name]) / min(peaks["plain"]), 4),
        }
        if name in MEMORY_LIMITS:
            row["time_limit"] = row["multiplications_over_plain"]
            row["memory_limit"] = MEMORY_LIMITS[name]
        rows.append(row)
        print(
            f"{name}: {row['seconds']['median']:.2f} s, time {row['time_over_plain']['median']:.3f}, multiplications "
            f"{row['multiplications_over_plain']:.3f}, memory {row['peak_over_plain']:.3f} times the plain network's",
            flush=True,
        )
    return rows


def row_of_folding(arguments: argparse.Namespace, memory_format: str) -> dict[str, Any]:
    """Return the time of the plain network's step beside that of the same step with real 3d convolutions."""
    networks = {"folded": network_of("plain"), "conv3d": network_of_3d_convolutions()}
    sizes = (arguments.batch_size, arguments.size)
    steps = {name: step_of(network, memory_format, *sizes) for name, network in networks.items()}
    seconds = side_by_side(steps, repeats=arguments.repeats, warmup=1)
    row = {
        "folding_against_3d_convolutions": memory_format,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "folded_over_conv3d": ratios(seconds["folded"], seconds["conv3d"]),
    }
    print(f"{memory_format}: folding takes {row['folded_over_conv3d']['median']:.3f} times the time of 3d convolutions")
    return row


def main() -> None:
    """Measure everything and write the record."""
    parser = study(__file__, __doc__)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--memory-format", choices=MEMORY_FORMATS, default="channels_last")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="with 'plain'")
    parser.add_argument("--peaks", type=int, default=2, help="processes a network whose peaks are measured")
    arguments = begin(parser)
    if "plain" not in arguments.networks:
        parser.error("--networks must have plain among them")
    rows = rows_of_networks(arguments)
    rows += [row_of_folding(arguments, memory_format) for memory_format in MEMORY_FORMATS]
    names = ("batch_size", "size", "repeats", "memory_format", "peaks")
    settings = {name: getattr(arguments, name) for name in names}
    peak_is = f"while a network is made and trains for two steps: {PEAK_IS['cpu']}"
    write(arguments, rows, frames=FRAMES, **settings, dtype="float32", peak=peak_is)


if __name__ == "__main__":
    main()
