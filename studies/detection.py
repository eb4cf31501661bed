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
from collections.abc import Callable
from typing import Any

import torch
from torchvision.models.detection import MaskRCNN

from cgnl.measure.memory import peak_bytes, resident_bytes
from cgnl.measure.networks import Batch, detector_inference, detector_training_step, images_with_objects
from cgnl.measure.record import write_result
from cgnl.measure.timing import ratios, side_by_side, spread
from cgnl.networks.detection import maskrcnn_resnet50
from script import common_arguments, number_from_a_fresh_process

BLOCKS = {"plain": None, "nl": "nl", "cgnl": "cgnl"}
NECKS = ("c4", "fpn")
MODES = ("training", "inference")
NUM_CLASSES = 81
# what CGNL may cost in training over the plain network
TIME_LIMIT = 1.065
MEMORY_LIMIT = 1.04


def network_of(name: str, neck: str, arguments: argparse.Namespace) -> MaskRCNN:
    """The network of that name; what is outside the block has the same weights in each."""
    torch.manual_seed(arguments.seed)
    network = maskrcnn_resnet50(
        BLOCKS[name],
        neck=neck,
        num_classes=NUM_CLASSES,
        size=arguments.size,
        max_size=2 * arguments.size,
        rois=arguments.rois,
        proposals=arguments.proposals,
    )
    for stage in ("conv1", "layer1"):
        network.backbone.body[stage].requires_grad_(False)
    return network.to(arguments.device)


def batch_of(arguments: argparse.Namespace) -> Batch:
    """The images and their objects."""
    return images_with_objects(
        arguments.batch_size,
        arguments.size,
        seed=arguments.seed,
        device=arguments.device,
        num_classes=NUM_CLASSES,
    )


def run_of(mode: str, network: MaskRCNN, batch: Batch, seed: int) -> Callable[[], object]:
    """One turn of a network."""
    if mode == "training":
        return detector_training_step(network, batch, seed)
    return detector_inference(network, batch)


def measure_peak(arguments: argparse.Namespace) -> None:
    """Print the peak of memory of two turns."""
    name, neck, mode = arguments.peak_of.split(",")
    batch = batch_of(arguments)
    before = resident_bytes()
    run = run_of(mode, network_of(name, neck, arguments), batch, arguments.seed)
    # the optimizer has its momentum from the second step on
    for _ in range(2):
        run()
    print(torch.cuda.max_memory_allocated() if arguments.device == "cuda" else peak_bytes() - before)


def rows_of(neck: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time and memory of the networks with this neck, and what they are to the plain one's."""
    batch = batch_of(arguments)
    names = ("batch_size", "size", "rois", "proposals", "threads", "seed", "device")
    options = {name: getattr(arguments, name) for name in names}
    rows = []
    for mode in MODES:
        peaks = {
            name: min(
                number_from_a_fresh_process(__file__, {"peak_of": f"{name},{neck},{mode}", **options})
                for _ in range(arguments.peaks)
            )
            for name in BLOCKS
        }
        networks = {name: network_of(name, neck, arguments) for name in BLOCKS}
        runs = {name: run_of(mode, network, batch, arguments.seed) for name, network in networks.items()}
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
                found = detector_inference(networks[name], batch)()
                row["objects"] = [len(of_image["boxes"]) for of_image in found]
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
    parser = common_arguments(__doc__, default_out="detection.json")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch-size", type=int, help="images; 1 on a CPU, 2 on a GPU")
    parser.add_argument("--size", type=int, help="pixels of the shorter side; 480 on a CPU, 800 on a GPU")
    parser.add_argument("--rois", type=int, help="regions an image that the heads train on; 128 on a CPU, 512 on a GPU")
    parser.add_argument("--proposals", type=int, help="regions an image in inference; 250 on a CPU, 1000 on a GPU")
    parser.add_argument("--necks", nargs="+", choices=NECKS, default=list(NECKS))
    parser.add_argument("--peaks", type=int, default=2, help="processes a network whose peaks are measured")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda"
    arguments.batch_size = arguments.batch_size or (2 if on_gpu else 1)
    arguments.size = arguments.size or (800 if on_gpu else 480)
    arguments.rois = arguments.rois or (512 if on_gpu else 128)
    arguments.proposals = arguments.proposals or (1000 if on_gpu else 250)
    torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        measure_peak(arguments)
        return
    rows = [row for neck in arguments.necks for row in rows_of(neck, arguments)]
    settings = ("device", "batch_size", "size", "rois", "proposals", "repeats", "peaks")
    write_result(
        arguments.out,
        seed=arguments.seed,
        settings={
            **{name: getattr(arguments, name) for name in settings},
            "dtype": "float32",
            "norm": "sync_batch",
            "peak": "least of the peaks of fresh processes: "
            + (
                "bytes allocated by PyTorch at the highest"
                if on_gpu
                else "resident set at its highest in two turns, less what it was before the network was made; tensors "
                "are mapped and unmapped one by one"
            ),
        },
        rows=rows,
    )


if __name__ == "__main__":
    main()
