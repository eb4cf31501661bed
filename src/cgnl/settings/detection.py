"""The settings of a training run on images with boxes and masks: network, data, and the whole recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from cgnl.settings.blocks import check_blocks, given_places
from cgnl.settings.checks import MAX_WORKERS, check_arch, check_division, read_none, within
from cgnl.settings.image import ARCHITECTURES, Recipe
from cgnl.settings.marks import FOR_TESTS, FREE


@dataclass(frozen=True)
class DetectionNetworkConfig:
    """Mask R-CNN and the blocks in its backbone."""

    of_others: ClassVar[Mapping[str, Any]] = {"neck": "fpn", "weights": None, "backbone_weights": "default"}
    arch: str = "resnet50"
    """Network of the backbone: resnet18, resnet34, resnet50, resnet101; with neck fpn also a library's convolutional
    classifier such as torchvision:regnet_y_400mf, or a function of your own such as mypackage.make_network."""
    neck: Literal["c4", "fpn"] = "fpn"
    """c4: RoIs of the res4 map go through res5; fpn: torchvision's feature pyramid, with blocks inside the stages."""
    block: str = "cgnl"
    """Kind of block, or a class of your own such as mypackage.MyBlock."""
    num_blocks: int = 1
    """Number of blocks to insert: 1 (right before the last residual block of res4), or 5 (two in res3, three in
    res4)."""
    places: tuple[str, ...] = ()
    """Module paths in the classifier that the blocks follow, such as layer3.4. By default, or with auto, they are the
    paper's; in other networks cgnl finds them."""
    weights: str | None = field(default=None, metadata=FREE)
    """Start weights of the whole detector: COCO_V1 (torchvision's, for neck fpn), a checkpoint file, or None."""
    backbone_weights: str | None = field(default=None, metadata=FREE)
    """Start weights of the backbone alone: IMAGENET1K_V1, an image network's checkpoint, or None."""
    new_classifier: bool = field(default=False, metadata=FREE)
    """Start with new predictors of boxes, classes and masks instead of those in the weights file."""
    backbone_norm: Literal["frozen", "batch"] = "frozen"
    """Norms of the backbone: frozen BatchNorm, or trained BatchNorm (for random start weights and large batches)."""
    rois: int = 512
    """Number of regions per image that train the heads."""
    proposals: int = field(default=1000, metadata=FOR_TESTS)
    """Number of regions per image from the region proposal network at test time (twice as many in training)."""
    detections: int = field(default=100, metadata=FOR_TESTS)
    """Maximum number of objects kept in an image."""
    score_threshold: float = field(default=0.05, metadata=FOR_TESTS)
    """Minimum score of a detection."""

    def __post_init__(self) -> None:
        read_none(self, "weights", "backbone_weights")
        for name in ("rois", "proposals", "detections"):
            within(f"network.{name}", getattr(self, name), 1)
        check_arch(self.arch, ARCHITECTURES[:-1])
        if self.arch not in ARCHITECTURES and self.neck != "fpn":
            raise ValueError(f"network.neck ({self.neck}) must be fpn for network.arch {self.arch}")
        check_blocks(self.block, self.num_blocks, given_places(self.places))
        within("network.score_threshold", self.score_threshold, 0, 1)


@dataclass(frozen=True)
class DetectionDataConfig:
    """The images, their objects, and the batch."""

    root: Path | None = field(default=None, metadata=FREE)
    """Folder in COCO's layout: annotations/instances_train2017.json beside train2017/, and the same for val; not needed
    if you give the files and folders below."""
    train_annotations: Path | None = field(default=None, metadata=FREE)
    """COCO JSON file for training, for other layouts."""
    val_annotations: Path | None = field(default=None, metadata=FREE)
    """COCO JSON file for validation, which chooses best.ckpt, for other layouts."""
    test_annotations: Path | None = field(default=None, metadata=FREE)
    """COCO JSON file for testing, for other layouts."""
    train_images: Path | None = field(default=None, metadata=FREE)
    """Folder of the training images, for other layouts."""
    val_images: Path | None = field(default=None, metadata=FREE)
    """Folder of the validation images, for other layouts."""
    test_images: Path | None = field(default=None, metadata=FREE)
    """Folder of the test images, for other layouts."""
    val_fraction: float = 0.0
    """Fraction of the training images to hold out for validation."""
    val_seed: int = 0
    """Seed that chooses the images of val_fraction, or of each fold."""
    num_folds: int | None = None
    """Number of folds that the training images are divided into, one of which is held out."""
    held_out_fold: int | None = None
    """Fold that is held out for validation, from 1; it is also the test part of data that has none of its own."""
    follow_links: bool = field(default=False, metadata=FREE)
    """Follow symbolic links that lead out of the folder."""
    size: int = 800
    """Length of the shorter side of the network's input (pixels)."""
    max_size: int = 1333
    """Maximum length of the longer side of the input (pixels); the shorter side shrinks with it."""
    flip: float = 0.5
    """Probability of a horizontal flip in training."""
    group_by_aspect: bool = True
    """Put wide and tall images into separate batches, to keep the padding small."""
    batch_size: int = 8
    """Images in one optimizer step, over all processes and accumulated parts together."""
    workers: int = field(default=2, metadata=FREE)
    """Processes that read images, for each training process, up to 256; 0 reads in the training process itself."""
    timeout: int = field(default=120, metadata=FREE)
    """Seconds to wait for a reader process before the run ends with an error (only with workers)."""
    bad_limit: float = field(default=0.05, metadata=FREE)
    """Fraction of the images, or of the annotations, that may be missing or bad before the run stops."""
    missing_limit: float | None = field(default=None, metadata=FREE)
    """Fraction of the images that may be missing before the run stops; by default as data.bad_limit."""

    def __post_init__(self) -> None:
        for name in ("size", "batch_size", "timeout"):
            within(f"data.{name}", getattr(self, name), 1)
        within("data.max_size", self.max_size, self.size)
        within("data.workers", self.workers, 0, MAX_WORKERS)
        check_division(self.val_fraction, self.val_seed, self.num_folds, self.held_out_fold)
        for name in ("flip", "bad_limit", "missing_limit"):
            within(f"data.{name}", getattr(self, name), 0, 1)


@dataclass(frozen=True)
class DetectionRecipe(Recipe):
    """A training run on images with boxes and masks."""

    task: ClassVar[str] = "detection"
    block_defaults: ClassVar[Mapping[str, Any]] = {"norm": "sync_batch"}
    # not the fields of a classifier and its data, which would be options without effect
    network: DetectionNetworkConfig = field(default_factory=DetectionNetworkConfig)  # type: ignore[assignment]
    data: DetectionDataConfig = field(default_factory=DetectionDataConfig)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        of_classifiers = {
            "optimizer.label_smoothing": (self.optimizer.label_smoothing, "the losses of a detector have none"),
            "optimizer.class_weights": (self.optimizer.class_weights, "the losses of a detector have none"),
            "optimizer.layer_decay": (
                self.optimizer.layer_decay,
                "a detector has no single classifier to count layers from",
            ),
            "trainer.best_by": (self.trainer.best_by, "the mask AP chooses a detector's best.ckpt"),
        }
        for name, (value, reason) in of_classifiers.items():
            if value:
                words = " ".join(map(str, value)) if isinstance(value, tuple) else value
                raise ValueError(f"{name} ({words}) is for classifiers: {reason}")
