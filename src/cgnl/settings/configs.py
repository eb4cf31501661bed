"""The parts of a recipe: frozen dataclasses; every field of them is an option of the command line.

Nothing here imports PyTorch, so that ``cgnl --help`` and ``cgnl recipes --help`` answer at once.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Architecture = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


def _within(name: str, value: float | None, low: float, high: float = math.inf) -> None:
    if value is not None and not low <= value <= high:
        allowed = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} ({value}) must be {allowed}")


def _positive(name: str, value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"{name} ({value}) must be above 0")


@dataclass(frozen=True)
class NetworkConfig:
    """The network and the blocks in it."""

    arch: Architecture = "resnet50"
    """Residual network of torchvision that the blocks go into."""
    block: Literal["none", "nl", "cgnl", "cgnlx", "residual"] = "cgnl"
    """Block: none, nl (non-local), cgnl, cgnlx (CGNL with the Gaussian RBF), residual (no attention)."""
    num_blocks: int = 1
    """Blocks to insert, at the paper's places: 1 (res4) or 5 (two in res3, three in res4)."""
    groups: Literal["auto"] | int = 8
    """Channel groups of a CGNL or residual block; auto is the largest number up to 8 that divides the channels."""
    kernel: Literal["dot", "embedded_gaussian", "rbf"] = "dot"
    """Kernel function of a CGNL block (cgnlx is always rbf)."""
    norm: Literal["batch", "sync_batch", "group"] = "batch"
    """Norm at the block's end. group is for the authors' released checkpoints: it cancels the attention."""
    scale: Literal["sqrt", "mean"] | None = None
    """Scale of a CGNL block's sums: 1/sqrt(M), 1/M or none (the authors found none best)."""
    g_std: float | None = None
    """Standard deviation of the first weights of g in a CGNL block; default: 0.01; 0.2 with scale sqrt, 2 with mean."""
    channel_reduction: int = 2
    """Channels of the map over the block's inner channels: 1, 2 or 4."""
    dropout: float = 0.5
    """Probability of dropout between the average pool and the classifier."""
    weights: str | None = None
    """Start weights: the name of torchvision weights (IMAGENET1K_V1), a checkpoint file, or none."""
    new_classifier: bool = False
    """Leave the classifier of a weights file out and start a new one (named weights with other classes always do)."""

    def __post_init__(self) -> None:
        _within("network.num_blocks", self.num_blocks, 1)
        _check_block(self)
        _within("network.channel_reduction", self.channel_reduction, 1)
        _within("network.dropout", self.dropout, 0, 1)


@dataclass(frozen=True)
class VideoNetworkConfig(NetworkConfig):
    """The video network: frames through a residual network of images, and space-time blocks between."""

    arch: Architecture = "resnet50"
    """Residual network of torchvision that each frame goes through."""
    pairwise: Literal["embedded_gaussian", "gaussian", "dot_product", "dot_product_sum", "concatenation"] = (
        "embedded_gaussian"
    )
    """Pairwise function of an NL block. dot_product divides by the number of positions, dot_product_sum does not."""
    subsample: bool = True
    """Whether an NL block max-pools phi and g over space."""
    bias: bool = True
    """Whether the convolutions of an NL block have biases."""
    temporal_strides: tuple[int, int, int] = (2, 2, 2)
    """Strides in time of conv1, pool1 and pool2: 2 2 2 for 32 frames, 1 1 2 for 8 frames."""
    head: Literal["average", "fully_convolutional"] = "average"
    """Global average pooling, or the classifier at each 7 x 7 window and the mean of the probabilities."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for stride in self.temporal_strides:
            _within("network.temporal_strides", stride, 1)


@dataclass(frozen=True)
class DataConfig:
    """The images, how they are cut, and how many go into one step."""

    root: Path | None = None
    """Folder: CUB_200_2011, or one with train/ and val/ of class folders, or the image root of list files."""
    format: Literal["auto", "cub", "list", "folders"] = "auto"
    """Layout of the data set; auto recognises it."""
    train_list: Path | None = None
    """List file with lines `path label` for training (labels from 0)."""
    test_list: Path | None = None
    """List file with lines `path label` for testing (labels from 0)."""
    num_classes: int | None = None
    """Number of classes; found from the data where not given."""
    num_outputs: int | None = None
    """Number of outputs of the classifier, if larger than the number of classes; the classes are the first ones.
    1000 keeps the classifier of ImageNet weights. Default: one for each class."""
    size: int = 448
    """Input height and width of the network (pixels)."""
    resize: int = 512
    """Length of the shorter side before the centre crop at test time (pixels)."""
    crop_area: tuple[float, float] = (0.08, 1.25)
    """Area of the random training crop as a part of the image; parts above 1 are redrawn."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of the random training crop."""
    flip: float = 0.5
    """Probability of a horizontal flip in training."""
    mixup: float = 0.0
    """Alpha of mixup; 0 is off."""
    cutmix: float = 0.0
    """Alpha of cutmix; 0 is off. With mixup as well, each batch takes one of the two."""
    batch_size: int = 256
    """Images in one optimizer step, over all processes and accumulated parts together."""
    workers: int = 2
    """Processes that read images, for each training process; 0 reads in the training process itself."""
    timeout: int = 120
    """Seconds after which a reader that gives nothing is an error (with workers only)."""
    bad_limit: float = 0.05
    """Part of the data set that may be missing or unreadable before the run stops."""

    def __post_init__(self) -> None:
        for name in ("size", "resize", "batch_size", "timeout"):
            _within(f"data.{name}", getattr(self, name), 1)
        for name in ("num_classes", "num_outputs"):
            _within(f"data.{name}", getattr(self, name), 1)
        _within("data.workers", self.workers, 0)
        for name in ("flip", "bad_limit"):
            _within(f"data.{name}", getattr(self, name), 0, 1)
        for name in ("mixup", "cutmix"):
            _within(f"data.{name}", getattr(self, name), 0)
        for name in ("crop_area", "crop_aspect"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"data.{name} ({low} {high}) must be two numbers above 0, the smaller one first")


@dataclass(frozen=True)
class VideoDataConfig(DataConfig):
    """The videos, how clips are cut from them, and how many go into one step."""

    root: Path | None = None
    """Folder of the videos (or of folders of frames): UCF101, Kinetics, or train/ and val/ of class folders."""
    format: Literal["auto", "ucf101", "kinetics", "mini_kinetics", "list", "frame_list", "folders"] = "auto"  # type: ignore[assignment]
    """Layout of the data set; auto recognises it."""
    annotations: Path | None = None
    """Folder of UCF101's lists, of Mini-Kinetics' id lists and csv files, or Kinetics' csv file or their folder."""
    fold: int = 1
    """Split of UCF101: 1, 2 or 3."""
    train_list: Path | None = None
    """List file with lines `path label`, or `folder frames label`, for training (labels from 0)."""
    test_list: Path | None = None
    """List file with lines `path label`, or `folder frames label`, for testing (labels from 0)."""
    index: Path | None = None
    """File with the lengths and sizes of the videos, made on first use; by default beside them or in the run."""
    num_frames: int = 32
    """Frames of a clip."""
    frame_step: int = 2
    """Distance between two frames of a clip: 2 takes every other frame of the video."""
    size: int = 224
    """Height and width of the training clips (pixels)."""
    resize: int = 256
    """Length of the shorter side at test time, and with several crops also their height and width (pixels)."""
    batch_size: int = 64
    """Clips in one optimizer step, over all processes and accumulated parts together."""
    test_clips: int = 10
    """Clips of a video that are tested after training, evenly spaced; their probabilities are averaged."""
    test_crops: int = 3
    """Crops of each of them along the longer side: 1 or 3."""
    views_per_step: int = 6
    """Views (clips x crops) that go through the network at once at test time."""
    backend: Literal["pyav", "torchcodec"] = "pyav"
    """Decoder: PyAV, or torchcodec where it is installed."""
    decode_timeout: int = 60
    """Seconds that reading a clip may take before its video counts as unreadable."""
    timeout: int = 600
    """Seconds after which a reader that gives nothing is an error (with workers only)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _within("data.fold", self.fold, 1, 3)
        for name in ("num_frames", "frame_step", "test_clips", "views_per_step", "decode_timeout"):
            _within(f"data.{name}", getattr(self, name), 1)
        if self.test_crops not in (1, 3):
            raise ValueError(f"data.test_crops ({self.test_crops}) must be 1 or 3")


@dataclass(frozen=True)
class DetectionNetworkConfig:
    """Mask R-CNN and the blocks in its backbone."""

    arch: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    """Residual network of the backbone."""
    neck: Literal["c4", "fpn"] = "fpn"
    """c4: RoIs of the res4 map go through res5; fpn: torchvision's feature pyramid, with blocks inside the stages."""
    block: Literal["none", "nl", "cgnl", "cgnlx", "residual"] = "cgnl"
    """Block: none, nl (non-local), cgnl, cgnlx (CGNL with the Gaussian RBF), residual (no attention)."""
    num_blocks: int = 1
    """Blocks to insert: 1 (right before the last residual block of res4) or 5 (two in res3, three in res4)."""
    groups: Literal["auto"] | int = 8
    """Channel groups of a CGNL or residual block; auto is the largest number up to 8 that divides the channels."""
    kernel: Literal["dot", "embedded_gaussian", "rbf"] = "dot"
    """Kernel function of a CGNL block (cgnlx is always rbf)."""
    norm: Literal["batch", "sync_batch", "group"] = "sync_batch"
    """Norm at the block's end. sync_batch is over all processes; with one image in all it cancels the attention, as
    batch does with one image a process, and group always."""
    scale: Literal["sqrt", "mean"] | None = None
    """Scale of a CGNL block's sums: 1/sqrt(M), 1/M or none."""
    g_std: float | None = None
    """Standard deviation of the first weights of g in a CGNL block; default: 0.01; 0.2 with scale sqrt, 2 with mean."""
    channel_reduction: int = 2
    """Channels of the map over the block's inner channels: 1, 2 or 4."""
    weights: str | None = None
    """Start weights of the whole detector: COCO_V1 (torchvision's, fpn), a checkpoint file, or none."""
    backbone_weights: str | None = None
    """Start weights of the backbone alone: IMAGENET1K_V1, an image network's checkpoint, or none."""
    new_classifier: bool = False
    """Leave the predictors of boxes, classes and masks in a weights file out and start new ones."""
    backbone_norm: Literal["frozen", "batch"] = "frozen"
    """Norms of the backbone: frozen BatchNorm, or BatchNorm that is trained (start from nothing, large batches)."""
    rois: int = 512
    """Regions of an image that the heads are trained on."""
    proposals: int = 1000
    """Regions of an image that the region proposal network hands on at test time (and twice as many in training)."""
    detections: int = 100
    """Objects that are kept in an image at most."""
    score_threshold: float = 0.05
    """Minimum score of a detection."""

    def __post_init__(self) -> None:
        for name in ("num_blocks", "channel_reduction", "rois", "proposals", "detections"):
            _within(f"network.{name}", getattr(self, name), 1)
        _check_block(self)
        _within("network.score_threshold", self.score_threshold, 0, 1)


@dataclass(frozen=True)
class DetectionDataConfig:
    """The images and their objects, and how many go into one step."""

    root: Path | None = None
    """Folder in COCO's layout: annotations/instances_train2017.json beside train2017/, and the same of val; not needed
    where the files and folders below are given."""
    train_annotations: Path | None = None
    """COCO json file for training, where the layout is another one."""
    test_annotations: Path | None = None
    """COCO json file for testing, where the layout is another one."""
    train_images: Path | None = None
    """Folder of the training images, where the layout is another one."""
    test_images: Path | None = None
    """Folder of the test images, where the layout is another one."""
    size: int = 800
    """Length of the shorter side of the network's input (pixels)."""
    max_size: int = 1333
    """Maximum length of the longer side of the input (pixels); the shorter side shrinks with it."""
    flip: float = 0.5
    """Probability of a horizontal flip in training."""
    group_by_aspect: bool = True
    """Put wide and tall images into batches of their own, so that little is padded."""
    batch_size: int = 8
    """Images in one optimizer step, over all processes and accumulated parts together."""
    workers: int = 2
    """Processes that read images, for each training process; 0 reads in the training process itself."""
    timeout: int = 120
    """Seconds after which a reader that gives nothing is an error (with workers only)."""
    bad_limit: float = 0.05
    """Part of the images, or of the annotations, that may be missing or bad before the run stops."""

    def __post_init__(self) -> None:
        for name in ("size", "batch_size", "timeout"):
            _within(f"data.{name}", getattr(self, name), 1)
        _within("data.max_size", self.max_size, self.size)
        _within("data.workers", self.workers, 0)
        for name in ("flip", "bad_limit"):
            _within(f"data.{name}", getattr(self, name), 0, 1)


def _check_block(config: NetworkConfig | DetectionNetworkConfig) -> None:
    if config.groups != "auto":
        _within("network.groups", config.groups, 1)
    _positive("network.g_std", config.g_std)


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and the loss."""

    name: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    lr: float = 0.01
    """Learning rate after the warm-up, for the whole batch."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay."""
    norm_weight_decay: float | None = None
    """Weight decay of the norms' weights and biases; by default that of all other weights and biases."""
    bias_weight_decay: float | None = None
    """Weight decay of the biases (a norm's only without norm_weight_decay); by default that of all weights."""
    bias_lr_factor: float = 1.0
    """Factor on the learning rate of all biases, those of norms among them."""
    lr_batch: int | None = None
    """Batch that lr is meant for: with another data.batch_size the rate is scaled linearly; none: lr as it is."""
    block_lr_factor: float = 1.0
    """Factor on the learning rate of the inserted blocks."""
    head_lr_factor: float = 1.0
    """Factor on the learning rate of the classifier; of a detector's layers that predict classes, boxes and masks."""
    label_smoothing: float = 0.0
    """Label smoothing of the cross entropy."""
    clip_norm: float | None = None
    """Largest 2-norm of the gradient; larger ones are scaled down."""

    def __post_init__(self) -> None:
        _positive("optimizer.lr", self.lr)
        _within("optimizer.momentum", self.momentum, 0, 1)
        for name in ("weight_decay", "block_lr_factor", "head_lr_factor", "bias_lr_factor"):
            _within(f"optimizer.{name}", getattr(self, name), 0)
        _within("optimizer.norm_weight_decay", self.norm_weight_decay, 0)
        _within("optimizer.bias_weight_decay", self.bias_weight_decay, 0)
        _within("optimizer.lr_batch", self.lr_batch, 1)
        _within("optimizer.label_smoothing", self.label_smoothing, 0, 1)
        _positive("optimizer.clip_norm", self.clip_norm)


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the run."""

    kind: Literal["steps", "cosine", "constant"] = "steps"
    """After the warm-up: drops at the milestones, half a cosine to zero, or constant."""
    unit: Literal["epoch", "step"] = "epoch"
    """What warmup and milestones are counted in: epochs, or optimizer steps (a run that trainer.max_steps ends)."""
    warmup: float = 0.0
    """Length of the linear warm-up (epochs or steps)."""
    warmup_start_lr: float = 1e-5
    """Learning rate at the start of the warm-up."""
    warmup_interval: Literal["epoch", "step"] = "step"
    """Whether the warm-up rises at every step or once an epoch (the released code)."""
    milestones: tuple[int, ...] = ()
    """Epochs or steps (from 0, warm-up counted in) at whose start the learning rate drops."""
    gamma: float = 0.1
    """Factor of each drop."""

    def __post_init__(self) -> None:
        for name in ("warmup", "warmup_start_lr", "gamma"):
            _within(f"schedule.{name}", getattr(self, name), 0)


@dataclass(frozen=True)
class TrainerConfig:
    """How long, on what, and how the run is kept."""

    max_epochs: int = 100
    """Length of the training (epochs)."""
    max_steps: int = -1
    """Stop after so many optimizer steps; -1 is no limit."""
    seed: int = 0
    """Seed of the weights, the order of the samples, crops and dropout."""
    devices: int | None = None
    """Processes (GPUs) on this machine; by default all GPUs, or one process on a CPU."""
    nodes: int = 1
    """Machines, started by torchrun or SLURM."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to train."""
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    """Number type of the network's forward and backward pass."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after the other, to save memory."""
    channels_last: bool | None = None
    """Keep feature maps in the channels-last memory format; by default where it is faster (CPUs, GPUs in 16 bits)."""
    compile: bool = False
    """Compile the network with torch.compile."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the weights, used for testing; 0 is off."""
    sync_batch_norm: bool = False
    """Turn every BatchNorm into a SyncBatchNorm when several processes train."""
    freeze: tuple[str, ...] = ()
    """Module paths whose weights and norm statistics stay as they are, for example conv1 bn1 layer1."""
    checkpoint_every_n_steps: int = 200
    """Optimizer steps between two writes of last.ckpt within an epoch."""
    log_every_n_steps: int = 10
    """Steps between two lines in the logs."""
    test_every_n_epochs: int = 1
    """Epochs between two tests."""
    skip_limit: int = 20
    """Steps that may be left out because of a non-finite loss or gradient before the run stops."""

    def __post_init__(self) -> None:
        for name in ("max_epochs", "nodes", "accumulate"):
            _within(f"trainer.{name}", getattr(self, name), 1)
        for name in ("test_every_n_epochs", "checkpoint_every_n_steps", "log_every_n_steps"):
            _within(f"trainer.{name}", getattr(self, name), 1)
        _within("trainer.devices", self.devices, 1)
        if self.max_steps != -1 and self.max_steps < 1:
            raise ValueError(f"trainer.max_steps ({self.max_steps}) must be -1 or at least 1")
        _within("trainer.seed", self.seed, 0, 2**32 - 1)
        _within("trainer.ema_decay", self.ema_decay, 0, 1)
        _within("trainer.skip_limit", self.skip_limit, 0)
