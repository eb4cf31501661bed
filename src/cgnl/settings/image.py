"""The settings of a training run on images: network, data, and the whole recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from cgnl.settings.blocks import BlockOptions, carried_over, check_blocks, given_places, options_class
from cgnl.settings.checks import (
    MAX_WORKERS,
    check_arch,
    check_division,
    check_per_channel,
    finite,
    is_dotted_name,
    positive,
    read_none,
    within,
)
from cgnl.settings.marks import FREE
from cgnl.settings.training import OptimizerConfig, ScheduleConfig, TrainerConfig

Architecture = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
ARCHITECTURES = get_args(Architecture)
"""The names of the paper's networks; other networks have a library's prefix or a dotted name."""
Augmentation = Literal["trivial", "rand", "auto", "augmix", "jitter", "vertical-flip", "rotate", "erasing"]
_OF_ANY_CHANNELS = ("vertical-flip", "rotate", "erasing")
IMAGENET_SIZES = (224, 256)
"""Size and resize (pixels) that torchvision's ResNets were trained with."""


@dataclass(frozen=True)
class NetworkConfig:
    """The network and the blocks in it."""

    # the values of other networks, for fields whose own defaults fit only the paper's networks
    of_others: ClassVar[Mapping[str, Any]] = {"dropout": None, "weights": "default"}
    arch: str = "resnet50"
    """Network that the blocks go into: resnet18, resnet34, resnet50, resnet101, resnet152, a library's classifier
    such as timm:convnext_tiny or torchvision:regnet_y_400mf, or a function of your own such as mypackage.make_network,
    which is called with num_classes."""
    block: str = "cgnl"
    """Kind of block, or a class of your own such as mypackage.MyBlock."""
    num_blocks: int = 1
    """Number of blocks to insert at the paper's places: 1 (res4) or 5 (two in res3, three in res4)."""
    places: tuple[str, ...] = ()
    """Module paths that the blocks follow, such as layer3.4 layer4.1. By default, or with auto, they are the paper's;
    in other networks cgnl finds them."""
    dropout: float | None = 0.5
    """Probability of dropout before the classifier; None leaves the library's own."""
    weights: str | None = field(default=None, metadata=FREE)
    """Start weights: default for the library's own, the name of torchvision weights (IMAGENET1K_V1), a timm tag, a
    checkpoint file, or None for random weights."""
    new_classifier: bool = field(default=False, metadata=FREE)
    """Start with a new classifier instead of the one in the weights file. Named weights
    always get a new one if your classes differ from theirs."""

    def __post_init__(self) -> None:
        read_none(self, "weights")
        check_arch(self.arch, ARCHITECTURES)
        check_blocks(self.block, self.num_blocks, given_places(self.places))
        within("network.dropout", self.dropout, 0, 1)


def with_arch(network: Any, arch: str) -> Any:
    """Return a network's settings with another network; raise ValueError if its name has no valid form.

    If the paper does not have the new network, settings that fit only the paper's networks are dropped, and the
    library's own weights replace named weights.
    """
    if arch in ARCHITECTURES or network.arch not in ARCHITECTURES:
        return replace(network, arch=arch)
    changed = dict(network.of_others)
    for name in [name for name in changed if name.endswith("weights")]:
        now = getattr(network, name)
        if now is None or Path(now).suffix:  # none, or a file
            del changed[name]
        elif is_dotted_name(arch):
            changed[name] = None
    return replace(network, arch=arch, **changed)


def check_augment(names: Sequence[str], channels: int) -> None:
    """Raise ValueError for changes of colours in images that have none."""
    if channels not in (1, 3) and (wrong := [name for name in names if name not in _OF_ANY_CHANNELS]):
        raise ValueError(
            f"data.augment ({' '.join(wrong)}) must be left out for data.channels {channels}, as it changes colours; "
            f"{', '.join(_OF_ANY_CHANNELS)} work with any"
        )


@dataclass(frozen=True)
class DataConfig:
    """The images, their crops, and the batch."""

    root: Path | None = field(default=None, metadata=FREE)
    """Folder: CUB_200_2011, or one with train/, val/ and test/ of class folders, or the image root of list files."""
    format: Literal["auto", "cub", "list", "folders"] = "auto"
    """Layout of the data set; auto recognises it."""
    train_list: Path | None = field(default=None, metadata=FREE)
    """List file with lines `path label` for training (labels from 0)."""
    val_list: Path | None = field(default=None, metadata=FREE)
    """List file with lines `path label` for validation, which chooses best.ckpt (labels from 0)."""
    test_list: Path | None = field(default=None, metadata=FREE)
    """List file with lines `path label` for testing (labels from 0)."""
    val_fraction: float = 0.0
    """Fraction of the training samples of each class to hold out for validation."""
    val_seed: int = 0
    """Seed that chooses the samples of val_fraction, or of each fold."""
    num_folds: int | None = None
    """Number of folds that the training samples of each class are divided into, one of which is held out."""
    held_out_fold: int | None = None
    """Fold that is held out for validation, from 1; it is also the test part of data that has none of its own."""
    follow_links: bool = field(default=False, metadata=FREE)
    """Follow symbolic links that lead out of the folder."""
    num_classes: int | None = None
    """Number of classes; by default found from the data."""
    num_outputs: int | None = None
    """Number of outputs of the classifier, if larger than the number of classes; the first outputs are the classes.
    1000 keeps the classifier of ImageNet weights. By default there is one output for each class."""
    channels: int = 3
    """Number of channels: 1 reads images in grey, 3 in colour; 2, 4 or more need TIFF files."""
    mean: tuple[float, ...] = ()
    """Mean that is subtracted from the input, whose integers are scaled to 0..1: one number, or one for each channel.
    By default that of the network's weights; for another number of channels than theirs, its average."""
    std: tuple[float, ...] = ()
    """Standard deviation that the input is divided by, as data.mean."""
    size: int | None = 448
    """Input height and width of the network (pixels); None for those of the weights' training."""
    resize: int | None = 512
    """Length of the shorter side before the centre crop at test time (pixels); another size alone keeps
    the recipe's ratio of resize to size, None takes the network's own."""
    crop_area: tuple[float, float] = (0.08, 1.25)
    """Range of the random training crop's area as a fraction of the image; a fraction above 1 is drawn again."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the random training crop's width over height."""
    flip: float = 0.5
    """Probability of a horizontal flip in training."""
    augment: tuple[Augmentation, ...] = ()
    """More random changes of a training sample, in this order: torchvision's TrivialAugmentWide (trivial), RandAugment
    (rand), AutoAugment (auto), AugMix (augmix), ColorJitter (jitter), RandomVerticalFlip (vertical-flip),
    RandomRotation (rotate) and RandomErasing (erasing). All frames of a clip change alike. With other channels than
    1 or 3, the last three alone."""
    balanced_sampler: bool = False
    """Draw each training sample of an epoch from a random class, so that all classes are seen equally often. An epoch
    stays as long as it is; samples of small classes come several times."""
    mixup: float = 0.0
    """Alpha of mixup; 0 is off."""
    cutmix: float = 0.0
    """Alpha of cutmix; 0 is off. With mixup as well, each batch takes one of the two."""
    batch_size: int = 256
    """Images in one optimizer step, over all processes and accumulated parts together."""
    workers: int = field(default=2, metadata=FREE)
    """Processes that read images, for each training process, up to 256; 0 reads in the training process itself."""
    timeout: int = field(default=120, metadata=FREE)
    """Seconds to wait for a reader process before the run ends with an error (only with workers)."""
    bad_limit: float = field(default=0.05, metadata=FREE)
    """Fraction of the data set that may be unreadable before the run stops."""
    missing_limit: float | None = field(default=None, metadata=FREE)
    """Fraction of the listed files that may be missing before the run stops; by default as data.bad_limit, for Kinetics
    0.2."""

    @property
    def pixels(self) -> tuple[int, int]:
        """Size and resize as numbers; :meth:`cgnl.training.task.Task.sized` replaces None by numbers."""
        if self.size is None or self.resize is None:
            raise ValueError(f"data.size ({self.size}) and data.resize ({self.resize}) must be numbers here")
        return self.size, self.resize

    def __post_init__(self) -> None:
        for name in ("channels", "size", "resize", "batch_size", "timeout"):
            within(f"data.{name}", getattr(self, name), 1)
        check_per_channel("data.mean", self.mean, self.channels)
        check_per_channel("data.std", self.std, self.channels)
        for value in self.std:
            positive("data.std", value)
        check_augment(self.augment, self.channels)
        for name in ("num_classes", "num_outputs"):
            within(f"data.{name}", getattr(self, name), 1)
        within("data.workers", self.workers, 0, MAX_WORKERS)
        check_division(self.val_fraction, self.val_seed, self.num_folds, self.held_out_fold)
        for name in ("flip", "bad_limit", "missing_limit"):
            within(f"data.{name}", getattr(self, name), 0, 1)
        for name in ("mixup", "cutmix"):
            within(f"data.{name}", getattr(self, name), 0)
        for name in ("crop_area", "crop_aspect"):
            low, high = getattr(self, name)
            finite(f"data.{name}", high)
            if not 0 < low <= high:
                raise ValueError(f"data.{name} ({low} {high}) must be two numbers above 0, the smaller one first")


@dataclass(frozen=True)
class Recipe:
    """A training run."""

    task: ClassVar[str] = "image"
    # this task's defaults of block options, where they differ from those of the kinds
    block_defaults: ClassVar[Mapping[str, Any]] = {}
    network: NetworkConfig = field(default_factory=NetworkConfig)
    # the options of network.block; if the kind changes, options that the new kind has are carried over
    block: BlockOptions = field(default_factory=BlockOptions)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        if type(self.block) is not options_class(self.network.block):
            object.__setattr__(self, "block", carried_over(self.block, self.network.block, self.block_defaults))
        if self.optimizer.class_weights == "balanced" and getattr(self.data, "balanced_sampler", False):
            raise ValueError(
                "data.balanced_sampler and optimizer.class_weights balanced both even the classes out: give one of them"
            )


def with_size(recipe: Any, size: int) -> Any:
    """Return a recipe with another input size (pixels), and the same part of each image in it, where it cuts a part."""
    data = recipe.data
    if not isinstance(data, DataConfig) or data.size is None or data.resize is None:
        return recipe
    return replace(recipe, data=replace(data, size=size, resize=round(data.resize / data.size * size)))


def recipe_with_arch(recipe: Any, arch: str) -> Any:
    """Return a recipe with another network, as :func:`with_arch` does; its own input size replaces ImageNet's.

    Args:
        recipe: The recipe.
        arch: The name of the other network.

    Raises:
        ValueError: The name has no valid form.
    """
    data = recipe.data
    changes = arch not in ARCHITECTURES and recipe.network.arch in ARCHITECTURES
    if changes and isinstance(data, DataConfig) and (data.size, data.resize) == IMAGENET_SIZES:
        data = replace(data, size=None, resize=None)
    return replace(recipe, network=with_arch(recipe.network, arch), data=data)
