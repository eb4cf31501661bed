"""Testing a trained detector on a data set, and using it on single images."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.v2.functional import to_dtype, to_image

from cgnl.files import write_csv, write_text
from cgnl.settings.detection import DetectionDataConfig
from cgnl.settings.training import TrainerConfig
from cgnl.training.checkpoint import TrainedNetwork
from cgnl.training.detection import KINDS, DetectionModule
from cgnl.training.detection_data import DetectionData
from cgnl.training.evaluation import default_device
from cgnl.training.processes import end_together, reporting_dead_readers
from cgnl.training.run import make_module, make_trainer, quieten, uses_channels_last


@dataclass(frozen=True)
class DetectionEvaluation:
    """Average precision on a data set.

    Attributes:
        box: COCO's measures of the boxes (%), such as ``AP`` and ``AP50``; nan where there is no such object.
        mask: Those of the masks (%).
        per_class: Name, objects, AP of the boxes and AP of the masks (%) of each class.
        count: Tested images.
        bad: Images that could not be read.
        detections: Detected objects.
        troubles: What could not be read, in a few words each.
    """

    box: dict[str, float]
    mask: dict[str, float]
    per_class: tuple[tuple[str, int, float, float], ...]
    count: int
    bad: int
    detections: int
    troubles: tuple[str, ...]

    def measures(self) -> dict[str, dict[str, float | None]]:
        """Return box and mask measures for JSON, which has no nan: None where there is no such object."""
        return {
            kind: {name: None if math.isnan(value) else value for name, value in getattr(self, kind).items()}
            for kind in KINDS
        }


def evaluate_detection(
    trained: TrainedNetwork,
    data: DetectionDataConfig,
    *,
    trainer: TrainerConfig | None = None,
    out: Path | None = None,
    stay: bool = False,
) -> DetectionEvaluation:
    """Test a detector: every image of the test split once, over all processes.

    Args:
        trained: The detector, out of :func:`cgnl.training.checkpoint.load_trained`.
        data: Where the images and annotations are.
        trainer: Devices and precision; by default one device (torchrun's processes), the recipe's precision.
        out: Folder for box_results.json and mask_results.json (COCO's result format), measures.json, per_class.csv
            and the lists of bad files and annotations, or None.
        stay: Whether the processes stay together, to test another network: a group that ends cannot begin again.

    Returns:
        Average precisions of boxes and masks.

    Raises:
        DataError: Something is wrong with the data set, or its classes are not the network's.
    """
    quieten()
    samples = DetectionData(data, run=out, classes=trained.classes)
    here = trainer or TrainerConfig(devices=1, precision=trained.recipe.trainer.precision)
    module = make_module(trained.recipe, trained.network, samples, channels_last=uses_channels_last(here))
    assert isinstance(module, DetectionModule)
    # Mask R-CNN resizes the images itself
    resize = trained.network.transform
    assert isinstance(resize, GeneralizedRCNNTransform)
    own_size = resize.min_size, resize.max_size
    runner = make_trainer(here, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    try:
        resize.min_size, resize.max_size = (data.size,), data.max_size
        with reporting_dead_readers():
            runner.validate(module, datamodule=samples, verbose=False)
    finally:
        resize.min_size, resize.max_size = own_size
    samples.share_bad_files()
    if not stay:
        end_together()
    classes = module.per_class
    evaluation = DetectionEvaluation(
        module.measures["box"],
        module.measures["mask"],
        tuple(
            (name, count, ap, mask[1]) for (name, ap, count), mask in zip(classes["box"], classes["mask"], strict=True)
        ),
        len(module.tested["images"]),
        len(samples.test_samples) - len(module.tested["images"]),
        len(module.results),
        tuple(samples.troubles()),
    )
    if out is not None and runner.is_global_zero:
        _write(out, module.results, evaluation)
    return evaluation


def _write(out: Path, results: list[dict[str, Any]], evaluation: DetectionEvaluation) -> None:
    # two files, as COCO's server wants them: with boxes beside the masks, pycocotools sizes masks by their boxes
    for kind, other in (("box", "segmentation"), ("mask", "bbox")):
        rows = [{key: value for key, value in row.items() if key != other} for row in results]
        write_text(out / f"{kind}_results.json", json.dumps(rows))
    write_text(out / "measures.json", json.dumps(evaluation.measures(), indent=2))
    write_csv(out / "per_class.csv", [("class", "objects", "box_ap", "mask_ap"), *evaluation.per_class])


@torch.inference_mode()
def detect(trained: TrainedNetwork, image: Image.Image, *, min_score: float = 0.0) -> dict[str, Tensor]:
    """Return the objects that a detector finds in an image, the surest first.

    Args:
        trained: The detector; it is moved to the GPU where there is one.
        image: An upright RGB image of H x W pixels.
        min_score: Minimum score.

    Returns:
        ``boxes`` [D, 4] (x0, y0, x1, y1 in pixels), ``labels`` [D] (from 1), ``scores`` [D] and ``masks`` [D, H, W]
        (bool).
    """
    device = default_device()
    heads = trained.network.to(device).roi_heads
    assert isinstance(heads, RoIHeads)
    own_score = heads.score_thresh
    try:
        # masks are pasted of what is kept alone; torchvision keeps what is above its threshold, not at it
        below = float(torch.nextafter(torch.tensor(min_score), torch.tensor(-math.inf)))
        heads.score_thresh = max(own_score, below)
        (found,) = trained.network([to_dtype(to_image(image), torch.float32, scale=True).to(device)])
    finally:
        heads.score_thresh = own_score
    return {
        "boxes": found["boxes"].cpu(),
        "labels": found["labels"].cpu(),
        "scores": found["scores"].cpu(),
        "masks": (found["masks"] >= 0.5)[:, 0].cpu(),
    }
