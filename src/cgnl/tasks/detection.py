"""Detecting objects in images, with boxes and masks."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.transforms.v2.functional import to_dtype, to_image

from cgnl.data.decoding import open_image
from cgnl.data.lists import Split, differences
from cgnl.explain.geometry import View
from cgnl.explain.inputs import SeenInput
from cgnl.networks.cost import NetworkCost, network_cost
from cgnl.networks.detection import maskrcnn, set_test_limits
from cgnl.networks.libraries import start_weights
from cgnl.networks.pyramid import named_detector
from cgnl.networks.weights import named_weights
from cgnl.settings.blocks import given_places
from cgnl.settings.detection import DetectionDataConfig, DetectionRecipe
from cgnl.settings.image import ARCHITECTURES
from cgnl.settings.training import TrainerConfig
from cgnl.training.task import Export, Prediction, Task, TestResult
from cgnl.training.trained import TrainedNetwork, default_device, refusing_outputs_not_finite

_COCO_CATEGORIES = 80


class DetectionTask(Task[DetectionRecipe]):
    """Detecting objects with Mask R-CNN."""

    words = "a detector"
    scores = ("box AP", "mask AP")
    classifies = False
    start_weights = ("weights", "backbone_weights")
    prediction_options = ("out", "score")
    drawn = "flock"

    def build_network(self, recipe: DetectionRecipe, num_classes: int) -> nn.Module:
        """Build the network that a recipe describes, with one more class for the background."""
        # Mask R-CNN resizes the images itself
        sizes = {"size": recipe.data.size, "max_size": recipe.data.max_size}
        settings = self.network_settings(recipe) | {"num_classes": num_classes + 1, **sizes}
        if recipe.network.arch in ARCHITECTURES:
            return maskrcnn(**settings | {"places": given_places(recipe.network.places)})
        options = {field.name for field in fields(recipe.block)} | {"arch", "block", "neck"}
        kept = {name: value for name, value in settings.items() if name not in options}
        return named_detector(recipe.network.arch, blocks=self.blocks(recipe), **kept).network

    def start(self, recipe: DetectionRecipe) -> str:
        """Say which weights a recipe's network starts from."""
        config = recipe.network
        if config.weights is not None:
            named = named_weights(MaskRCNN_ResNet50_FPN_Weights, config.weights)
            return f"start weights: {f'torchvision {named.name} of Mask R-CNN' if named else config.weights}"
        line = start_weights(config.arch, 2, config.backbone_weights)
        return line if config.backbone_weights is None else f"{line}, backbone alone"

    def check_start_weights(self, recipe: DetectionRecipe, classes: Sequence[str]) -> None:
        """Refuse data whose labels mean other kinds of objects than the outputs of torchvision's weights do."""
        super().check_start_weights(recipe, tuple(classes))
        named, weights = MaskRCNN_ResNet50_FPN_Weights, recipe.network.weights or ""
        if recipe.network.new_classifier:
            return
        if named_weights(named, weights) is None and Path(weights).name != Path(named.COCO_V1.url).name:
            return
        every = named.COCO_V1.meta["categories"][1:]
        names = every if len(classes) == len(every) else [name for name in every if name != "N/A"]
        if list(classes) == names:
            return
        raise ValueError(
            f"network.weights ({weights}) is for COCO's {len(names)} classes, but the data has {len(classes)} others; "
            f"{differences(classes, names, new='unknown to COCO')}. To train on them, add --network.new-classifier"
        )

    def check(self, recipe: DetectionRecipe) -> None:
        """Refuse to compile a detector."""
        if recipe.trainer.compile:
            raise ValueError(
                "trainer.compile is for classifiers: torch.compile breaks a detector into many small graphs"
            )

    def make_data(self, config: DetectionDataConfig, **options: Any) -> Any:
        """Return a :class:`cgnl.training.DetectionData`."""
        from cgnl.training.detection_data import DetectionData

        return DetectionData(config, **options)

    def make_module(self, recipe: DetectionRecipe, network: nn.Module, data: Any, **options: Any) -> Any:
        """Return a :class:`cgnl.training.DetectionModule`."""
        from cgnl.training.detection import DetectionModule

        return DetectionModule(network, truth=data.truth, category_ids=data.category_ids, **options)

    def evaluate(
        self,
        trained: TrainedNetwork,
        data: DetectionDataConfig,
        *,
        split: Split,
        trainer: TrainerConfig | None,
        out: Path | None,
        stay: bool,
    ) -> TestResult:
        """Measure COCO's average precision on a split."""
        from cgnl.training.detection_evaluation import evaluate

        samples = self.make_data(data, run=out, classes=trained.classes, tested=split)
        samples.check_held_out(trained.files)
        return evaluate(trained, samples, trainer=trainer, out=out, stay=stay)

    def set_test_options(self, network: Any, options: dict[str, Any]) -> None:
        """Change the numbers of proposals and detections, and the minimum score."""
        set_test_limits(network, **options)

    def predict(self, trained: TrainedNetwork, path: Path, *, top: int = 5, score: float = 0.5) -> "ObjectPrediction":
        """Return the objects in an image that have at least a score."""
        image = open_image(path)
        with refusing_outputs_not_finite(trained.network, path):
            found = detect(trained, image, min_score=score)
        return ObjectPrediction(image, found, trained.classes, score)

    def export(self, trained: TrainedNetwork) -> Export:
        """Refuse: a detector cannot be exported."""
        raise ValueError("holds a detector, and PyTorch's exporter to ONNX cannot follow its choice of boxes")

    def see(self, trained: TrainedNetwork, path: Path) -> SeenInput:
        """Return an image as the network sees it, which resizes it and fills it up to a multiple of 32 pixels."""
        image = open_image(path)
        x = to_dtype(to_image(image), torch.float32, scale=True)
        network: Any = trained.network
        resized, _ = network.transform([x])
        (height, width), (full_height, full_width) = resized.image_sizes[0], resized.tensors.shape[-2:]
        view = View(image.width, image.height, full_width, full_height, width / image.width, height / image.height)
        return SeenInput(path, (image,), view, [x])

    def page_note(self, recipe: DetectionRecipe) -> str | None:
        """Say what dark bands are, and why there are no effects."""
        return (
            "A detector pads images with zeros on the right and at the bottom, which show as dark bands. "
            "It gives no single prediction, so the page shows no effects."
        )

    def draw(self, folder: Path) -> None:
        """Draw flocks of three species, in COCO's layout."""
        from cgnl.toy.flock import draw_flock

        draw_flock(folder, num_species=3, train_images=4, test_images=2, size=(96, 72))

    def smoke(
        self, recipe: DetectionRecipe, root: Path, *, size: int | None, batch_size: int | None, steps: int
    ) -> DetectionRecipe:
        """Return a recipe that runs in seconds on a CPU.

        The gradient is scaled down to a norm of 1: over random weights with frozen norms the maps grow from one
        residual block to the next, and the losses with them.
        """
        size = size or 96
        data = replace(
            recipe.data,
            root=root,
            train_annotations=None,
            val_annotations=None,
            test_annotations=None,
            train_images=None,
            val_images=None,
            test_images=None,
            size=size,
            max_size=round(recipe.data.max_size / recipe.data.size * size),
            batch_size=batch_size or 2,
            workers=0,
        )
        return replace(
            recipe,
            network=replace(recipe.network, weights=None, backbone_weights=None, rois=8, proposals=20),
            data=data,
            optimizer=replace(recipe.optimizer, clip_norm=1.0),
            trainer=replace(self.smoke_trainer(recipe.trainer, steps), test_every_n_epochs=1),
        )

    def cost(self, recipe: DetectionRecipe) -> NetworkCost:
        """Count all parameters for COCO's classes, and the multiplications of the backbone for an image of 4 : 3."""
        with torch.device("meta"):
            detector: Any = self.build_network(self.without_start_weights(recipe), _COCO_CATEGORIES)
        parameters = sum(parameter.numel() for parameter in detector.parameters())
        backbone = network_cost(lambda: detector.backbone, (1, 3, *detector_input(recipe)))
        return NetworkCost(parameters, backbone.multiplications)


@dataclass(frozen=True)
class ObjectPrediction(Prediction):
    """The objects in an image.

    Attributes:
        image: The image.
        found: The objects, as :func:`detect` returns them.
        classes: Names of the labels, from 1.
        min_score: Minimum score that was asked for.
    """

    image: Image.Image
    found: dict[str, Tensor]
    classes: tuple[str, ...]
    min_score: float

    def _objects(self) -> Iterator[tuple[str, float, list[float]]]:
        names = [self.classes[label - 1] for label in self.found["labels"].tolist()]
        return zip(names, self.found["scores"].tolist(), self.found["boxes"].tolist(), strict=True)

    def lines(self) -> list[str]:
        """Return a line for each object: score, class and box."""
        rows = [f"  {100 * p:6.2f} %  {name}  " + " ".join(f"{x:.1f}" for x in box) for name, p, box in self._objects()]
        return rows or [f"  no object with a score of {self.min_score:g} or more"]

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON, with masks as COCO's run lengths."""
        from cgnl.training.average_precision import run_lengths

        objects = [
            {"class": name, "score": round(p, 6), "box": [round(x, 3) for x in box], "mask": mask}
            for (name, p, box), mask in zip(self._objects(), run_lengths(self.found["masks"]), strict=True)
        ]
        return {"objects": objects}

    def picture(self) -> Image.Image:
        """Return the image with boxes, masks and names drawn in."""
        from cgnl.explain.detections import draw_objects

        found = self.found
        return draw_objects(
            self.image, found["boxes"], found["labels"], self.classes, scores=found["scores"], masks=found["masks"]
        )


def detector_input(recipe: DetectionRecipe) -> tuple[int, int]:
    """Return the height and width of an image of 4 : 3 as it reaches a detector's backbone (pixels).

    Source: torchvision's detectors scale the shorter side to ``size``, or less where the longer one would pass
    ``max_size``, and pad both to multiples of 32.

    >>> detector_input(DetectionRecipe())
    (800, 1088)
    """
    height = min(recipe.data.size, recipe.data.max_size * 3 // 4)
    return _padded(height), _padded(height * 4 // 3)


def _padded(side: int) -> int:
    return -(-side // 32) * 32


@torch.inference_mode()
def detect(trained: TrainedNetwork, image: Image.Image, *, min_score: float = 0.0) -> dict[str, Tensor]:
    """Return the objects that a detector finds in an upright RGB image, the surest first.

    They are ``boxes`` [D, 4] (x0, y0, x1, y1 in pixels), ``labels`` [D] (from 1), ``scores`` [D] from ``min_score`` on
    and ``masks`` [D, H, W] (bool). The detector is moved to the GPU where there is one; ValueError for other networks.
    """
    device = default_device()
    heads = getattr(trained.network.to(device), "roi_heads", None)
    if not isinstance(heads, RoIHeads):
        raise ValueError(f"detect needs a detector, and {trained.name} is none")
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


TASK = DetectionTask()
