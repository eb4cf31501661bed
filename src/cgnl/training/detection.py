"""The Lightning module that trains and tests a detector.

Shapes: N objects of an image, D detections in it, H and W its height and width in pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN

from cgnl.networks.detection import PREDICTORS
from cgnl.training.average_precision import Kind, coco_results, measures_and_classes
from cgnl.training.module import TrainingModule, naming_small_batches
from cgnl.training.processes import gathered

# The evaluated kinds of COCO and what they are called in metrics.
KINDS: dict[str, Kind] = {"box": "bbox", "mask": "segm"}


class DetectionModule(TrainingModule):
    """Trains a torchvision Mask R-CNN with the sum of its losses, and tests it with COCO's average precision.

    Batches are dictionaries with ``image``, a list of [3, H, W] in 0..1, ``target``, a list of torchvision's targets
    (``boxes`` [N, 4], ``labels`` [N] from 1, ``masks`` [N, H, W], ``image_id``), ``label`` and ``index``, as
    :class:`cgnl.training.detection_data.DetectionData` gives them.

    Args:
        network: The detector; its losses and detections are torchvision's.
        truth: The test images and their objects, in COCO's structure (``images``, ``annotations``, ``categories``).
        category_ids: COCO's id of each class; the network's label k, from 1, is the k-th.
        options: Options of :class:`cgnl.training.module.TrainingModule`: ``optimizer``, ``schedule``, ``freeze``, ...

    Attributes:
        results: After a test: rows of COCO's result format, of all processes.
        measures: After a test: COCO's measures (%) of the "box" and "mask" kinds.
        per_class: After a test: name, AP (%) and number of objects of each class, of both kinds.
        tested: After a test: the part of ``truth`` that was read, over all processes.

    Raises:
        ValueError: A path in ``freeze`` that is not in the network, or one that freezes all of it.
    """

    logged = ("train/loss", "test/box_ap", "test/box_ap50", "test/mask_ap", "test/mask_ap50")
    reported: Mapping[str, str] = {"test/mask_ap": "mask AP", "test/box_ap": "box AP"}

    def __init__(
        self, network: MaskRCNN, *, truth: Mapping[str, Any], category_ids: Sequence[int], **options: Any
    ) -> None:
        super().__init__(network, **options)
        self.truth, self.category_ids = truth, tuple(category_ids)
        self.results: list[dict[str, Any]] = []
        self.measures: dict[str, dict[str, float]] = {}
        self.per_class: dict[str, list[tuple[str, float, int]]] = {}
        self.tested: dict[str, Any] = {}
        self._seen: list[int] = []

    def heads(self) -> Sequence[nn.Module]:
        """Return the layers that predict classes, boxes and masks."""
        return [self.network.get_submodule(name) for name in PREDICTORS]

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the sum of the batch's losses; a batch without a readable image gives a zero with zero gradients."""
        if not batch["image"]:
            return self.loss_of_no_sample(batch)
        with naming_small_batches(batch["image"], batch.get("bad", ())):
            losses = self.network(batch["image"], batch["target"])
        loss = torch.stack(list(losses.values())).sum()
        if loss.isfinite():
            self.train_loss.update(loss.detach(), weight=len(batch["image"]))
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()})
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget an earlier test."""
        self.results, self._seen = [], []

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Detect the objects of a batch's images."""
        if not batch["image"]:
            return
        image_ids = [int(target["image_id"]) for target in batch["target"]]
        self.results += coco_results(self.network(batch["image"]), image_ids, self.category_ids)
        self._seen += image_ids

    def on_validation_epoch_end(self) -> None:
        """Log the average precisions (%) over the images of all processes; unreadable ones are left out."""
        shares = gathered((self._seen, self.results))
        self.results = [row for _, rows in shares for row in rows]
        self.tested = _only_images(self.truth, {image_id for seen, _ in shares for image_id in seen})
        for name, kind in KINDS.items():
            self.measures[name], self.per_class[name] = measures_and_classes(self.tested, self.results, kind)
            for measure, value in self.measures[name].items():
                self.log(f"test/{name}_{measure.lower()}", value)


def _only_images(truth: Mapping[str, Any], image_ids: set[int]) -> dict[str, Any]:
    """Return the part of a data set, in COCO's structure, that some images make up."""
    return {
        **truth,
        "images": [image for image in truth["images"] if image["id"] in image_ids],
        "annotations": [row for row in truth["annotations"] if row["image_id"] in image_ids],
    }
