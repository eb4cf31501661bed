"""The settings that all tasks share: optimizer, schedule of the learning rate, and trainer."""

from dataclasses import dataclass, field
from typing import Literal

from cgnl.settings.checks import positive, within
from cgnl.settings.marks import FREE


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
    """Weight decay of the biases (also of norms, unless norm_weight_decay is given); by default that of all weights."""
    bias_lr_factor: float = 1.0
    """Factor on the learning rate of all biases, including those of norms."""
    lr_batch: int | None = None
    """Batch size that lr is meant for: lr grows in proportion to data.batch_size; by default lr stays as it is."""
    block_lr_factor: float = 1.0
    """Factor on the learning rate of the inserted blocks."""
    head_lr_factor: float = 1.0
    """Factor on the learning rate of the classifier, or of a detector's predictors of classes, boxes and masks."""
    layer_decay: float | None = None
    """Factor on the learning rate from each layer to the one before it, counted back from the classifier; such as 0.75
    for fine-tuning. By default all layers have the same rate."""
    label_smoothing: float = 0.0
    """Label smoothing of the cross entropy."""
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    """Weight of each class in the training loss: balanced (one over its number of training samples), or one number for
    each class in the order of the labels. They are scaled to a mean of 1 over the training samples."""
    clip_norm: float | None = None
    """Maximum 2-norm of the gradient; larger gradients are scaled down to it."""

    def __post_init__(self) -> None:
        positive("optimizer.lr", self.lr)
        within("optimizer.momentum", self.momentum, 0, 1)
        for name in ("weight_decay", "block_lr_factor", "head_lr_factor", "bias_lr_factor"):
            within(f"optimizer.{name}", getattr(self, name), 0)
        within("optimizer.norm_weight_decay", self.norm_weight_decay, 0)
        within("optimizer.bias_weight_decay", self.bias_weight_decay, 0)
        within("optimizer.lr_batch", self.lr_batch, 1)
        within("optimizer.label_smoothing", self.label_smoothing, 0, 1)
        within("optimizer.layer_decay", self.layer_decay, 0, 1)
        positive("optimizer.layer_decay", self.layer_decay)
        if isinstance(self.class_weights, tuple):
            for weight in self.class_weights:
                within("optimizer.class_weights", weight, 0)
            if not any(self.class_weights):
                raise ValueError("optimizer.class_weights needs a number above 0")
        positive("optimizer.clip_norm", self.clip_norm)


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the run."""

    kind: Literal["steps", "cosine", "constant"] = "steps"
    """After the warm-up: drops at the milestones, half a cosine to zero, or constant."""
    unit: Literal["epoch", "step"] = "epoch"
    """Unit of warmup and milestones: epochs, or optimizer steps (for runs with trainer.max_steps)."""
    warmup: float = 0.0
    """Length of the linear warm-up (epochs or steps)."""
    warmup_start_lr: float = 1e-5
    """Learning rate at the start of the warm-up."""
    warmup_interval: Literal["epoch", "step"] = "step"
    """How often the warm-up raises the rate: at every step, or once per epoch (as in the released code)."""
    milestones: tuple[int, ...] = ()
    """Epochs or steps at whose start the learning rate drops, counted from 0 and including the warm-up."""
    gamma: float = 0.1
    """Factor of each drop."""

    def __post_init__(self) -> None:
        for name in ("warmup", "warmup_start_lr", "gamma"):
            within(f"schedule.{name}", getattr(self, name), 0)


@dataclass(frozen=True)
class TrainerConfig:
    """The length of the run, its hardware and its files."""

    max_epochs: int = field(default=100, metadata=FREE)
    """Length of the training (epochs)."""
    max_steps: int = field(default=-1, metadata=FREE)
    """Maximum number of optimizer steps; -1 is no limit."""
    seed: int = 0
    """Seed of the weights, the order of the samples, crops and dropout."""
    devices: int | None = field(default=None, metadata=FREE)
    """Number of processes (GPUs) on this machine; by default all GPUs, or one process on a CPU."""
    nodes: int = field(default=1, metadata=FREE)
    """Number of machines; torchrun or SLURM starts them."""
    accelerator: Literal["auto", "cpu", "gpu"] = field(default="auto", metadata=FREE)
    """Hardware to train on."""
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    """Number type of the network's forward and backward passes."""
    accumulate: int = 1
    """Number of parts of a batch that are computed one after the other, to save memory."""
    channels_last: bool | None = None
    """Keep feature maps in the channels-last memory format; by default if it is faster (CPUs, GPUs in 16 bits)."""
    compile: bool = False
    """Compile the network with torch.compile."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the weights, which tests use; 0 is off."""
    sync_batch_norm: bool = False
    """Turn every BatchNorm into a SyncBatchNorm when several processes train."""
    freeze: tuple[str, ...] = ()
    """Module paths whose weights and norm statistics stay as they are, for example conv1 bn1 layer1."""
    checkpoint_every_n_steps: int = field(default=200, metadata=FREE)
    """Number of optimizer steps after which last.ckpt is written within an epoch."""
    log_every_n_steps: int = field(default=10, metadata=FREE)
    """Number of steps after which the logs get a line."""
    test_every_n_epochs: int = 1
    """Number of epochs after which the network is tested."""
    best_by: Literal["top1", "balanced-accuracy", "macro-f1"] | None = None
    """Score of a classifier that chooses best.ckpt; top-1 accuracy by default. That of a detector is its mask AP."""
    early_stopping: int | None = field(default=None, metadata=FREE)
    """Number of tests in a row without a better score, the one that chooses best.ckpt, after which the run ends."""
    skip_limit: int = field(default=20, metadata=FREE)
    """Number of steps that may be skipped for a non-finite loss or gradient before the run stops."""

    def __post_init__(self) -> None:
        for name in ("max_epochs", "nodes", "accumulate"):
            within(f"trainer.{name}", getattr(self, name), 1)
        for name in ("test_every_n_epochs", "checkpoint_every_n_steps", "log_every_n_steps"):
            within(f"trainer.{name}", getattr(self, name), 1)
        within("trainer.devices", self.devices, 1)
        if self.max_steps != -1 and self.max_steps < 1:
            raise ValueError(f"trainer.max_steps ({self.max_steps}) must be -1 or at least 1")
        within("trainer.seed", self.seed, 0, 2**32 - 1)
        within("trainer.ema_decay", self.ema_decay, 0, 1)
        within("trainer.skip_limit", self.skip_limit, 0)
        within("trainer.early_stopping", self.early_stopping, 1)
