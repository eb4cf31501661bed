"""What does a training step of C2D-ResNet-50 on 32 frames cost with space-time blocks, in time and in memory?

A step is forward, cross entropy, backward and SGD with momentum, in float32 on clips of 224 pixels. The networks take
turns within one process; the measure for CGNL is its share of the multiplications. Peak memory is measured in a fresh
process for each network: the peak of the resident set over what it was before the network was made, with an allocator
that returns every freed tensor to the system. The last rows compare folding the frames into the batch with real 3d
convolutions of the same weights. Run on a machine that does nothing else:

    python studies/video_network.py
"""

import argparse
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cgnl.insertion import inserted_blocks
from cgnl.measure.memory import peak_bytes, resident_bytes
from cgnl.measure.networks import training_step
from cgnl.measure.record import write_result
from cgnl.measure.timing import ratios, side_by_side, spread
from cgnl.networks.cost import network_cost
from cgnl.networks.video import STRIDES_32_FRAMES, c2d_resnet50
from conv3d_network import Conv3dResNet
from script import common_arguments, number_from_a_fresh_process

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
MEMORY_FORMATS = {
    "channels_last": (torch.channels_last, torch.channels_last_3d),
    "contiguous": (torch.contiguous_format, torch.contiguous_format),
}


def network_of(name: str) -> nn.Module:
    """The network of that name; blocks are no longer the identity, as after the first steps of training."""
    network = c2d_resnet50(**NETWORKS[name], num_classes=NUM_CLASSES)
    for block in inserted_blocks(network).values():
        nn.init.ones_(block.get_parameter("norm.weight"))
    return network


def network_of_3d_convolutions() -> nn.Module:
    """The plain network with the frames left where they are."""
    network = Conv3dResNet("resnet50", STRIDES_32_FRAMES, NUM_CLASSES, {})
    network.load_frames_weights(network_of("plain").state_dict())
    return network


def clips(arguments: argparse.Namespace, memory_format: str) -> tuple[Tensor, Tensor]:
    """Noise of a clip's shape, and labels."""
    shape = (arguments.batch_size, 3, FRAMES, arguments.size, arguments.size)
    video = torch.randn(shape).contiguous(memory_format=MEMORY_FORMATS[memory_format][1])
    return video, torch.randint(NUM_CLASSES, (arguments.batch_size,))


def measure_peak(arguments: argparse.Namespace) -> None:
    """Print the peak of memory of training steps, over what the process had before it made the network."""
    video, labels = clips(arguments, arguments.memory_format)
    before = resident_bytes()
    network = network_of(arguments.peak_of).to(memory_format=MEMORY_FORMATS[arguments.memory_format][0])
    step = training_step(network, video, labels)
    # the optimizer has its momentum from the second step on
    for _ in range(2):
        step()
    print(peak_bytes() - before)


def peak_in_a_fresh_process(name: str, arguments: argparse.Namespace) -> int:
    """Bytes that `measure_peak` finds."""
    names = ("batch_size", "size", "threads", "seed", "memory_format")
    options = {"peak_of": name, **{option: getattr(arguments, option) for option in names}}
    return number_from_a_fresh_process(__file__, options)


def rows_of_networks(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time, memory and multiplications of each network, and what they are to the plain one's."""
    shape = (1, 3, FRAMES, arguments.size, arguments.size)
    costs = {name: network_cost(partial(network_of, name), shape) for name in arguments.networks}
    peaks = {
        name: [peak_in_a_fresh_process(name, arguments) for _ in range(arguments.peaks)] for name in arguments.networks
    }
    video, labels = clips(arguments, arguments.memory_format)
    steps = {}
    for name in arguments.networks:
        network = network_of(name).to(memory_format=MEMORY_FORMATS[arguments.memory_format][0])
        steps[name] = training_step(network, video, labels)
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
            "peak_mebibytes": [round(peak / 2**20, 1) for peak in peaks[name]],
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
    """A step of the plain network beside one of real 3d convolutions."""
    video, labels = clips(arguments, memory_format)
    format_2d, format_3d = MEMORY_FORMATS[memory_format]
    steps = {
        "folded": training_step(network_of("plain").to(memory_format=format_2d), video, labels),
        "conv3d": training_step(network_of_3d_convolutions().to(memory_format=format_3d), video, labels),
    }
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
    parser = common_arguments(__doc__, default_out="video_network.json")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--memory-format", choices=MEMORY_FORMATS, default="channels_last")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="with 'plain'")
    parser.add_argument("--peaks", type=int, default=2, help="processes a network whose peaks are measured")
    parser.add_argument("--peak-of", choices=NETWORKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    if arguments.peak_of:
        measure_peak(arguments)
        return
    if "plain" not in arguments.networks:
        parser.error("--networks must have plain among them")
    rows = rows_of_networks(arguments)
    rows += [row_of_folding(arguments, memory_format) for memory_format in MEMORY_FORMATS]
    settings = ("batch_size", "size", "repeats", "memory_format", "peaks")
    write_result(
        arguments.out,
        seed=arguments.seed,
        settings={
            "frames": FRAMES,
            **{name: getattr(arguments, name) for name in settings},
            "dtype": "float32",
            "peak": "resident set at its highest in two training steps of a fresh process, less what it was before "
            "the network was made (clips and libraries); tensors are mapped and unmapped one by one",
        },
        rows=rows,
    )


if __name__ == "__main__":
    main()
