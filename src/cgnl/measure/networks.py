"""What do 0, 1 and 5 CGNL blocks cost a network, in training and in inference, in time and in memory?

ResNet-50 on images, C2D-ResNet-50 on clips of 32 frames, and Mask R-CNN with ResNet-50 (res4 as its only map, as in the
paper). The networks with different numbers of blocks take turns within one process; the measure for their time is what
the blocks add to the multiplications. Every block of a classifier is awake, as after the first steps of training. Those
of Mask R-CNN stay the identity, at a learning rate of 0: all networks see the same proposals and find the same objects.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import MaskRCNN

from cgnl.blocks.grouped import GroupedBlock
from cgnl.insertion import inserted_blocks
from cgnl.measure.memory import PEAK_IS, add_peaks, peak
from cgnl.measure.rooflines import Rooflines, measure_rooflines
from cgnl.measure.timing import forward_only, ratios, reason_of_failure, rounded, side_by_side, spread
from cgnl.networks.detection import maskrcnn
from cgnl.networks.image import resnet
from cgnl.networks.video import c2d_resnet

NetworkName = Literal["resnet50", "c2d_resnet50", "maskrcnn_resnet50"]
Neck = Literal["c4", "fpn"]
MODES = ("training", "inference")
BLOCKS = (0, 1, 5)
# Scores of an image that pass the threshold in inference; most images keep 100 objects after suppression.
SCORES_ABOVE_THRESHOLD = 1000

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]
Run = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """What a network is measured on.

    Args:
        batch_size: Images or clips.
        size: Pixels of both sides, for Mask R-CNN of the shorter side.
        frames: Frames of a clip.
        rois: Regions per image that Mask R-CNN's heads train on.
        proposals: Regions per image in its inference.
        detections: Most objects per image in its inference.
        arch: "resnet50", or a smaller one to see that all parts work.
        num_blocks: Numbers of blocks that are measured.
    """

    batch_size: int
    size: int
    frames: int = 1
    rois: int = 0
    proposals: int = 0
    detections: int = 100
    arch: str = "resnet50"
    num_blocks: tuple[int, ...] = BLOCKS


SETTINGS: dict[str, dict[NetworkName, Setting]] = {
    "cpu": {
        "resnet50": Setting(batch_size=8, size=224),
        "c2d_resnet50": Setting(batch_size=2, size=224, frames=32),
        # the heads see a quarter of a GPU's regions: more of them only make the blocks' share smaller
        "maskrcnn_resnet50": Setting(batch_size=1, size=480, rois=128, proposals=250),
    },
    "cuda": {
        "resnet50": Setting(batch_size=64, size=224),
        "c2d_resnet50": Setting(batch_size=8, size=224, frames=32),
        "maskrcnn_resnet50": Setting(batch_size=2, size=800, rois=512, proposals=1000),
    },
}
_SMALL: dict[str, Any] = {"batch_size": 2, "size": 32, "arch": "resnet18", "num_blocks": (0, 1)}
SMALLEST: dict[NetworkName, Setting] = {
    "resnet50": Setting(**_SMALL),
    "c2d_resnet50": Setting(**_SMALL, frames=8),
    "maskrcnn_resnet50": Setting(**_SMALL, rois=8, proposals=20, detections=5),
}


def classifier_training_step(network: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], None]:
    """Return a function that runs forward, cross entropy, backward and a step of SGD with momentum."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        network.train()
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()

    return step


def images_with_objects(batch_size: int, size: int, *, seed: int, device: str, num_classes: int) -> Batch:
    """Return images of noise, wider than high by a third, with eight rectangles each, for torchvision's detectors."""
    torch.manual_seed(seed)
    height, width = size, size * 4 // 3
    extent = torch.tensor([width, height], device=device)
    images, targets = [], []
    for _ in range(batch_size):
        corner, length = torch.rand(2, 8, 2, device=device)
        corner = corner * extent / 2
        boxes = torch.cat([corner, corner + (0.05 + 0.45 * length) * extent], dim=1)
        masks = torch.zeros(8, height, width, dtype=torch.uint8, device=device)
        for mask, (left, top, right, bottom) in zip(masks, boxes.long().tolist(), strict=True):
            mask[top : bottom + 1, left : right + 1] = 1
        labels = torch.randint(1, num_classes, (8,), device=device)
        images.append(torch.rand(3, height, width, device=device))
        targets.append({"boxes": boxes, "labels": labels, "masks": masks})
    return images, targets


def detector_training_step(network: MaskRCNN, batch: Batch, seed: int) -> Callable[[], None]:
    """Return a function that runs forward, losses, backward and a step of SGD with momentum that moves nothing."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        # the regions that the heads are trained on are drawn
        torch.manual_seed(seed)
        network.train()
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(network(*batch).values())).sum().backward()
        optimizer.step()

    return step


def detector_inference(network: MaskRCNN, batch: Batch) -> Callable[[], list[dict[str, Tensor]]]:
    """Return a function that finds boxes and masks; the threshold is set so that untrained scores pass it."""
    images = batch[0]
    network.eval()
    logits: list[Tensor] = []
    hook = network.roi_heads.box_predictor.register_forward_hook(lambda _, args, output: logits.append(output[0]))
    with torch.inference_mode():
        network.roi_heads.score_thresh = 1.0
        network(images)
    hook.remove()
    scores = logits[0].softmax(-1)[:, 1:].flatten()
    kept = min(len(images) * SCORES_ABOVE_THRESHOLD, len(scores))
    network.roi_heads.score_thresh = float(scores.topk(kept).values[-1])

    def run() -> list[dict[str, Tensor]]:
        network.eval()
        with torch.inference_mode():
            return network(images)

    return run


def measure(
    device: str, *, networks: Sequence[NetworkName], repeats: int | None, seed: int, smallest: bool
) -> dict[str, Any]:
    """Measure every network with every number of blocks in both modes; return settings, rooflines and rows.

    ``repeats`` counts turns: None for 7 (in the smallest run, ResNet-18 with small inputs, 2).
    """
    settings = SMALLEST if smallest else SETTINGS[device]
    repeats = repeats or (2 if smallest else 7)
    rooflines = measure_rooflines(device, [_dtype(device)], smallest=smallest)
    rows = []
    for name in networks:
        of_network = _rows(name, settings[name], device, repeats, seed, rooflines)
        _add_peaks(of_network, device, seed, smallest)
        rows += of_network
    described = {
        "repeats": repeats,
        "dtype": _dtype(device) + (" by autocast" if device == "cuda" else ""),
        "memory_format": "channels_last",
        "networks": {name: asdict(settings[name]) for name in networks},
        "floor": "the step's multiplications at the rate of matrix products",
        "peak_bytes": "how far memory rises while the network is made and runs twice: " + PEAK_IS[device],
    }
    return {"settings": described, "rooflines": rooflines.as_json(), "rows": rows}


def _dtype(device: str) -> str:
    return "bfloat16" if device == "cuda" else "float32"


def _with_autocast(run: Run) -> Run:
    def run_with_autocast() -> object:
        with torch.autocast("cuda", torch.bfloat16):
            return run()

    return run_with_autocast


def run_of(
    name: NetworkName, setting: Setting, mode: str, num_blocks: int, device: str, seed: int
) -> tuple[nn.Module, Run]:
    """Return a network and a function that runs one turn of it; all networks have the same weights outside blocks."""
    if name == "maskrcnn_resnet50":
        network, run = detector_run(setting, mode, "cgnl" if num_blocks else None, num_blocks, device, seed)
    else:
        torch.manual_seed(seed)
        network, run = _classifier_run(name, setting, mode, num_blocks, device)
    return network, _with_autocast(run) if device == "cuda" else run


def _classifier_run(
    name: NetworkName, setting: Setting, mode: str, num_blocks: int, device: str
) -> tuple[nn.Module, Run]:
    build = c2d_resnet if name == "c2d_resnet50" else resnet
    network = build(setting.arch, "cgnl" if num_blocks else None, num_blocks or 1, num_classes=1000)
    for block in inserted_blocks(network).values():
        nn.init.ones_(block.get_parameter("norm.weight"))
    network = network.to(device, memory_format=torch.channels_last)
    frames = (setting.frames,) if name == "c2d_resnet50" else ()
    x = torch.randn(setting.batch_size, 3, *frames, setting.size, setting.size, device=device)
    x = x.contiguous(memory_format=torch.channels_last_3d if frames else torch.channels_last)
    if mode == "inference":
        return network, forward_only(network.eval(), x)
    return network, classifier_training_step(network, x, torch.randint(1000, (setting.batch_size,), device=device))


def detector_run(
    setting: Setting, mode: str, block: str | None, num_blocks: int, device: str, seed: int, neck: Neck = "c4"
) -> tuple[nn.Module, Run]:
    """Return a Mask R-CNN and a function that runs one turn of it in ``mode`` "training" or "inference".

    The weights outside the blocks are the same for all blocks. Stem and layer1 are frozen, as in the recipes.
    """
    torch.manual_seed(seed)
    num_classes = 81
    network = maskrcnn(
        setting.arch,
        block,
        num_blocks or 1,
        neck=neck,
        num_classes=num_classes,
        size=setting.size,
        max_size=2 * setting.size,
        rois=setting.rois,
        proposals=setting.proposals,
        detections=setting.detections,
    )
    for stage in ("conv1", "layer1"):
        network.backbone.get_submodule(f"body.{stage}").requires_grad_(False)
    network = network.to(device)
    batch = images_with_objects(setting.batch_size, setting.size, seed=seed, device=device, num_classes=num_classes)
    if mode == "inference":
        return network, detector_inference(network, batch)
    return network, detector_training_step(network, batch, seed)


def multiplications_of(network: nn.Module, run: Run) -> int:
    """Count the multiply-adds of convolutions and matrix products in one turn, with the blocks' eager form.

    The counter does not see into the fused operators.
    """
    blocks = [module for module in network.modules() if isinstance(module, GroupedBlock)]
    backends = [block.backend for block in blocks]
    for block in blocks:
        block.backend = "eager"
    with FlopCounterMode(display=False) as counter:
        run()
    for block, backend in zip(blocks, backends, strict=True):
        block.backend = backend
    return counter.get_total_flops() // 2


def _rows(
    name: NetworkName, setting: Setting, device: str, repeats: int, seed: int, rooflines: Rooflines
) -> list[dict[str, Any]]:
    """Return one row for each mode and number of blocks, those of the plain network first."""
    rows: list[dict[str, Any]] = []
    for mode in MODES:
        print(f"{name}, {mode}", flush=True)
        runs: dict[str, Run] = {}
        of_mode: dict[str, dict[str, Any]] = {}
        for num_blocks in setting.num_blocks:
            row = of_mode[str(num_blocks)] = {"network": name, "mode": mode, "num_blocks": num_blocks}

            failed = reason_of_failure(partial(_prepare, row, runs, setting, device, seed))
            if failed:
                row["failed"] = failed
        seconds = side_by_side(runs, repeats=repeats, warmup=1)
        for key, values in seconds.items():
            floor = rooflines.floor(of_mode[key]["multiplications"], 0, _dtype(device))
            of_mode[key] |= {
                "seconds": spread(values),
                "floor_seconds": rounded(floor),
                "over_floor": spread([value / floor for value in values]),
            }
            if "0" in seconds:
                plain = of_mode["0"]["multiplications"]
                of_mode[key] |= {
                    "time_over_plain": ratios(values, seconds["0"]),
                    "multiplications_over_plain": round(of_mode[key]["multiplications"] / plain, 4),
                }
        rows += of_mode.values()
    return rows


def _prepare(row: dict[str, Any], runs: dict[str, Run], setting: Setting, device: str, seed: int) -> None:
    """Make a row's network and run it once to count its multiplications."""
    network, run = run_of(row["network"], setting, row["mode"], row["num_blocks"], device, seed)
    row["multiplications"] = multiplications_of(network, run)
    runs[str(row["num_blocks"])] = run


def _add_peaks(rows: list[dict[str, Any]], device: str, seed: int, smallest: bool) -> None:
    measured = [row for row in rows if "failed" not in row]
    add_peaks(measured, ("network", "mode", "num_blocks"), peaks, device, seed=seed, smallest=smallest)
    plain = {row["mode"]: row["peak_bytes"] for row in measured if row["num_blocks"] == 0 and "peak_bytes" in row}
    for row in measured:
        if row["mode"] in plain:
            row["peak_over_plain"] = round(row["peak_bytes"] / plain[row["mode"]], 4)


def peaks(cases: Sequence[Mapping[str, Any]], device: str, seed: int, smallest: bool, threads: int) -> list[int]:
    """Return how far memory rises while each case's network is made and runs twice (bytes).

    The second step is the first one that has the optimizer's momentum.
    """
    torch.set_num_threads(threads)
    settings = SMALLEST if smallest else SETTINGS[device]

    def make_and_run(case: Mapping[str, Any], times: int = 2) -> None:
        name = case["network"]
        _, run = run_of(name, settings[name], case["mode"], case["num_blocks"], device, seed)
        for _ in range(times):
            run()

    make_and_run(cases[0], times=1)  # loads libraries
    found = []
    for case in cases:
        gc.collect()
        found.append(peak(partial(make_and_run, case), device))
    return found
