"""Testing a trained detector on a data set."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cgnl.data.lists import Split
from cgnl.files import json_text, write_csv, write_text
from cgnl.settings.training import TrainerConfig
from cgnl.settings.words import decimal
from cgnl.training.detection import KINDS, DetectionModule
from cgnl.training.detection_data import DetectionData
from cgnl.training.processes import end_together, interruptible, reporting_dead_readers
from cgnl.training.run import make_trainer, quieten, uses_channels_last
from cgnl.training.task import TestResult
from cgnl.training.trained import TrainedNetwork, refusing_outputs_not_finite


@dataclass(frozen=True)
class DetectionEvaluation(TestResult):
    """Average precision on a data set.

    Attributes:
        box: COCO's measures of the boxes (%), such as ``AP`` and ``AP50``; nan where there is no such object.
        mask: Those of the masks (%).
        per_class: Name, objects, AP of the boxes and AP of the masks (%) of each class.
        count: Tested images.
        bad: Images that could not be read.
        detections: Detected objects.
        troubles: What could not be read, in a few words each.
        split: The part of the data that was tested: ``val`` or ``test``.
    """

    box: dict[str, float]
    mask: dict[str, float]
    per_class: tuple[tuple[str, int, float, float], ...]
    count: int
    bad: int
    detections: int
    troubles: tuple[str, ...]
    split: Split

    @property
    def scores(self) -> dict[str, float]:
        """Both average precisions (%) by name."""
        return {"box AP": self.box["AP"], "mask AP": self.mask["AP"]}

    def lines(self, tested: str, out: Path) -> list[str]:
        """Return COCO's measures as a table."""
        measures = ("AP", "AP50", "AP75", "APs", "APm", "APl")
        return [
            "      "
            + "".join(f"{measure:>8}" for measure in measures)
            + f"  (%, {self.count} {tested}) {self.on_split()}",
            *(f"{kind:6}" + "".join(f"{decimal(getattr(self, kind)[name]):>8}" for name in measures) for kind in KINDS),
            *self.trouble_lines(out),
            f"written: {out / 'box_results.json'}, mask_results.json, measures.json, per_class.csv",
        ]

    def measures(self) -> dict[str, dict[str, float | None]]:
        """Return box and mask measures for JSON, which has no nan: None where there is no such object."""
        return {
            kind: {name: None if math.isnan(value) else value for name, value in getattr(self, kind).items()}
            for kind in KINDS
        }


def evaluate(
    trained: TrainedNetwork,
    samples: DetectionData,
    *,
    trainer: TrainerConfig | None = None,
    out: Path | None = None,
    stay: bool = False,
) -> DetectionEvaluation:
    """Measure a detector's average precision on test images; arguments and errors as of :func:`cgnl.tasks.evaluate`."""
    quieten()
    data: Any = samples.config
    here = trainer or TrainerConfig(devices=1, precision=trained.recipe.trainer.precision)
    network: Any = trained.network
    module = DetectionModule(
        network, truth=samples.truth, category_ids=samples.category_ids, channels_last=uses_channels_last(here)
    )
    # Mask R-CNN resizes the images itself
    resize = network.transform
    assert isinstance(resize, GeneralizedRCNNTransform)
    own_size = resize.min_size, resize.max_size
    runner = make_trainer(here, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    try:
        resize.min_size, resize.max_size = (data.size,), data.max_size
        with (
            interruptible(),
            reporting_dead_readers(),
            refusing_outputs_not_finite(network, samples.tested_samples.root),
        ):
            runner.validate(module, datamodule=samples, verbose=False)
    finally:
        resize.min_size, resize.max_size = own_size
    samples.share_bad_files()
    if not stay:
        end_together()
    classes, missing = module.per_class, len(samples.tested_samples.missing)
    evaluation = DetectionEvaluation(
        module.measures["box"],
        module.measures["mask"],
        tuple(
            (name, count, ap, mask[1]) for (name, ap, count), mask in zip(classes["box"], classes["mask"], strict=True)
        ),
        len(module.tested["images"]),
        len(samples.tested_samples) - len(module.tested["images"]),
        len(module.results),
        (*[f"missing images: {missing}"] * bool(missing), *samples.troubles()),
        samples.tested,
    )
    if out is not None and runner.is_global_zero:
        _write(out, module.results, evaluation)
    return evaluation


def _write(out: Path, results: list[dict[str, Any]], evaluation: DetectionEvaluation) -> None:
    # two files, as COCO's server wants them: with boxes beside the masks, pycocotools sizes masks by their boxes
    for kind, other in (("box", "segmentation"), ("mask", "bbox")):
        rows = [{key: value for key, value in row.items() if key != other} for row in results]
        write_text(out / f"{kind}_results.json", json_text(rows))
    write_text(out / "measures.json", json_text({"split": evaluation.split, **evaluation.measures()}, indent=2))
    write_csv(out / "per_class.csv", [("class", "objects", "box_ap", "mask_ap"), *evaluation.per_class])
