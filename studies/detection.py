"""What does a block cost Mask R-CNN with ResNet-50, in training and in inference, in time and in memory?

The image, the targets and the random weights are the same for all networks of a neck, and every block stays the
identity (a learning rate of 0): all of them see the same proposals and find the same objects, so that nothing but the
block differs. The released table for CGNL, +6.5 % of training time and +4 % of memory, gives the limits.

A training step is forward, losses, backward and SGD with momentum, in float32, with stem and layer1 frozen as in the
recipes. The networks take turns within one process. Peak memory is measured in a fresh process for each network: on a
CPU the peak of the resident set over what it was before the network was made, on a GPU the peak of what PyTorch
allocated. On a CPU the heads see a quarter of the recipes' regions, so that it takes minutes; more of them only make
the block's share smaller. Run on a machine that does nothing else:

    python studies/detection.py
    python studies/detection.py --device cuda
"""

import argparse
from dataclasses import asdict
from typing import Any, get_args

import torch

from cgnl.measure.memory import PEAK_IS, call_in_a_fresh_process, peak
from cgnl.measure.networks import MODES, SETTINGS, Neck, Setting, detector_run
from cgnl.measure.timing import ratios, side_by_side, spread
from script import begin, study, write

BLOCKS = {"plain": None, "nl": "nl", "cgnl": "cgnl"}
NECKS = get_args(Neck)
SIZES = ("batch_size", "size", "rois", "proposals")
# what CGNL may cost in training over the plain network
TIME_LIMIT = 1.065
MEMORY_LIMIT = 1.04


def peak_of(name: str, neck: Neck, mode: str, setting: dict[str, Any], device: str, threads: int, seed: int) -> int:
    """Return how far memory rises while a network is made and runs twice (bytes)."""
    torch.set_num_threads(threads)

    def make_and_run() -> None:
        _, run = detector_run(Setting(**setting), mode, BLOCKS[name], 1, device, seed, neck)
        # the optimizer has its momentum from the second step on
        for _ in range(2):
            run()

    return peak(make_and_run, device)


def rows_of(neck: Neck, setting: Setting, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return time and memory of the networks with this neck, and their ratios to the plain one's."""
    options = {name: getattr(arguments, name) for name in ("device", "threads", "seed")}
    rows = []
    for mode in MODES:
        case = {"neck": neck, "mode": mode, "setting": asdict(setting), **options}
        peaks = {
            name: min(call_in_a_fresh_process(peak_of, name=name, **case) for _ in range(arguments.peaks))
            for name in BLOCKS
        }
        runs = {
            name: detector_run(setting, mode, block, 1, arguments.device, arguments.seed, neck)[1]
            for name, block in BLOCKS.items()
        }
        seconds = side_by_side(runs, repeats=arguments.repeats, warmup=1)
        for name in BLOCKS:
            row: dict[str, Any] = {
                "neck": neck,
                "mode": mode,
                "block": name,
                "seconds": spread(seconds[name]),
                "time_over_plain": ratios(seconds[name], seconds["plain"]),
                "peak_mebibytes": round(peaks[name] / 2**20, 1),
                "peak_over_plain": round(peaks[name] / peaks["plain"], 4),
            }
            if mode == "inference":
                row["objects"] = [len(of_image["boxes"]) for of_image in runs[name]()]
            elif name == "cgnl":
                time = row["time_over_plain"]["median"]
                row["time_limit"] = {"at_most": TIME_LIMIT, "met": time <= TIME_LIMIT}
                row["memory_limit"] = {"at_most": MEMORY_LIMIT, "met": row["peak_over_plain"] <= MEMORY_LIMIT}
            rows.append(row)
            print(
                f"{neck} {mode} {name}: {row['seconds']['median']:.2f} s, time {row['time_over_plain']['median']:.3f}, "
                f"memory {row['peak_over_plain']:.3f} times the plain network's",
                flush=True,
            )
    return rows


def main() -> None:
    """Measure everything and write the record."""
    parser = study(__file__, __doc__)
    parser.add_argument("--device", choices=tuple(SETTINGS), default="cpu")
    parser.add_argument("--batch-size", type=int, help="images; 1 on a CPU, 2 on a GPU")
    parser.add_argument("--size", type=int, help="pixels of the shorter side; 480 on a CPU, 800 on a GPU")
    parser.add_argument("--rois", type=int, help="regions an image that the heads train on; 128 on a CPU, 512 on a GPU")
    parser.add_argument("--proposals", type=int, help="regions an image in inference; 250 on a CPU, 1000 on a GPU")
    parser.add_argument("--necks", nargs="+", choices=NECKS, default=list(NECKS))
    parser.add_argument("--peaks", type=int, default=2, help="processes a network whose peaks are measured")
    arguments = begin(parser)
    default = SETTINGS[arguments.device]["maskrcnn_resnet50"]
    sizes = {name: getattr(arguments, name) or getattr(default, name) for name in SIZES}
    setting = Setting(**sizes)
    rows = [row for neck in arguments.necks for row in rows_of(neck, setting, arguments)]
    counts = {name: getattr(arguments, name) for name in ("device", "repeats", "peaks")}
    peak_is = (
        f"the lowest of {arguments.peaks} peaks, while a network is made and runs twice: {PEAK_IS[arguments.device]}"
    )
    write(arguments, rows, **sizes, **counts, dtype="float32", norm="sync_batch", peak=peak_is)


if __name__ == "__main__":
    main()
