"""The base of all Lightning modules: the network, frozen parts, optimizer and schedule."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric

from cgnl.data.decoding import DataError
from cgnl.insertion import inserted_blocks
from cgnl.networks.depth import depths
from cgnl.settings.training import OptimizerConfig, ScheduleConfig
from cgnl.settings.words import counted
from cgnl.training.schedule import learning_rate_factor

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


class TrainingModule(pl.LightningModule):
    """A network with its optimizer and schedule; the losses and metrics of a task are left to a subclass.

    Args:
        network: The network.
        optimizer: Optimizer and loss.
        schedule: Learning rate over the run.
        lr_scale: Factor on all learning rates, warm-up included.
        max_steps: Length of the run (optimizer steps) if the Trainer does not limit it; -1 asks the Trainer.
        freeze: Module paths in the network whose weights and norm statistics stay as they are.
        channels_last: Whether the network works on feature maps in the channels-last memory format.

    Raises:
        ValueError: A path in ``freeze`` that is not in the network, or one that freezes all of it.
    """

    logged: ClassVar[tuple[str, ...]]
    """Metrics of an epoch, as the log of epochs has them."""
    reported: Mapping[str, str]
    """Test metrics (%) that are printed, with their names; the first decides which checkpoint is best."""

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: OptimizerConfig | None = None,
        schedule: ScheduleConfig | None = None,
        lr_scale: float = 1.0,
        max_steps: int = -1,
        freeze: tuple[str, ...] = (),
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer_config = optimizer or OptimizerConfig()
        self.schedule_config = schedule or ScheduleConfig(kind="constant")
        self.lr_scale, self.max_steps = lr_scale, max_steps
        self.channels_last = channels_last
        self._frozen = [_find(network, path) for path in freeze]
        for module in self._frozen:
            module.requires_grad_(False).eval()
        if not any(p.requires_grad for p in network.parameters()):
            raise ValueError(f"trainer.freeze ({' '.join(freeze)}) leaves nothing to train")
        if channels_last:
            maps = any(parameter.dim() == 5 for parameter in network.parameters())
            network.to(memory_format=torch.channels_last_3d if maps else torch.channels_last)
        self.train_loss = MeanMetric()
        # kept in checkpoints: a run that resumes in the middle of an epoch then reports the mean of all of it
        self.train_loss.persistent(True)

    def heads(self) -> Sequence[nn.Module]:
        """Return the modules whose learning rate ``head_lr_factor`` scales."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "TrainingModule":
        """Set the training mode; frozen modules stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def loss_of_no_sample(self, batch: Mapping[str, Any]) -> Tensor:
        """Return a zero with zero gradients, for a batch of which no sample could be read.

        Raises DataError where the other processes wait for this one's norm statistics.
        """
        if any(isinstance(m, nn.SyncBatchNorm) for m in self.network.modules()) and self.trainer.world_size > 1:
            raise DataError(f"no sample of a batch could be read: {', '.join(str(b[1]) for b in batch['bad'])}")
        return sum((p.sum() * 0 for p in self.network.parameters() if p.requires_grad), torch.zeros(()))

    def on_train_epoch_end(self) -> None:
        """Log the mean loss of the epoch."""
        self.log("train/loss", self.train_loss.compute())
        self.train_loss.reset()

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer, with learning rates of their own for blocks, head and biases."""
        config = self.optimizer_config
        norms = {id(p) for module in self.network.modules() if isinstance(module, _NORMS) for p in module.parameters()}
        biases = {id(p) for name, p in self.network.named_parameters() if name.rpartition(".")[2] == "bias"}

        def settings(parameter: nn.Parameter, factor: float) -> tuple[float, float]:
            decays: list[float | None] = [config.weight_decay]
            if id(parameter) in biases:
                factor *= config.bias_lr_factor
                decays.append(config.bias_weight_decay)
            if id(parameter) in norms:
                decays.append(config.norm_weight_decay)
            # the last rule that is set
            return config.lr * self.lr_scale * factor, [decay for decay in decays if decay is not None][-1]

        groups = []
        for parameters, factor, scale in self._parameter_groups():
            # those without a rule of their own come first
            alike: dict[tuple[float, float], list[nn.Parameter]] = {
                (config.lr * self.lr_scale * factor, config.weight_decay): []
            }
            for parameter in parameters:
                alike.setdefault(settings(parameter, factor), []).append(parameter)
            rest = {} if scale == 1 else {"layer_scale": scale}
            groups += [
                {"params": some, "lr": lr, "weight_decay": decay, **rest} for (lr, decay), some in alike.items() if some
            ]
        if config.name == "adamw":
            return torch.optim.AdamW(groups)
        return torch.optim.SGD(groups, momentum=config.momentum)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimizer and its schedule in optimizer steps."""
        config, optimizer = self.optimizer_config, self.make_optimizer()
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: learning_rate_factor(
                step,
                # infinite until the data is set up, when only step 0 has been asked for
                steps_per_epoch=self.trainer.num_training_batches / self.trainer.accumulate_grad_batches,
                max_epochs=self.trainer.max_epochs or 1,
                max_steps=self.max_steps if self.max_steps >= 0 else self.trainer.max_steps,
                lr=config.lr,
                config=self.schedule_config,
            ),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def rate(self) -> float:
        """Return the present learning rate of the backbone, without the factors of its layers."""
        group = self.trainer.optimizers[0].param_groups[0]
        return group["lr"] / group.get("layer_scale", 1.0)

    def _parameter_groups(self) -> Iterator[tuple[list[nn.Parameter], float, float]]:
        """Give backbone, blocks and head with their factors on the learning rate, and the part due to their depth."""
        config = self.optimizer_config
        blocks = {id(p) for block in inserted_blocks(self.network).values() for p in block.parameters()}
        head = {id(p) for module in self.heads() for p in module.parameters()}
        trained = [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]
        deep = depths(self.network, self.heads()) if config.layer_decay is not None else {}
        decay = config.layer_decay or 1.0
        for some, factor in (
            ([(name, p) for name, p in trained if id(p) not in blocks | head], 1.0),
            ([(name, p) for name, p in trained if id(p) in blocks], config.block_lr_factor),
            ([(name, p) for name, p in trained if id(p) in head], config.head_lr_factor),
        ):
            for depth in sorted({deep.get(name, 0) for name, _ in some}):
                scale = decay**depth
                yield [p for name, p in some if deep.get(name, 0) == depth], factor * scale, scale


@contextmanager
def naming_small_batches(images: Sequence[Tensor], bad: Sequence[tuple[int, Path, str]] = ()) -> Iterator[None]:
    """Raise DataError with the batch's size where it is too small for BatchNorm; images are [3, H, W] or clips.

    It names the batch's ``bad`` files, which could not be read.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        size = f"{counted(len(images), 'sample')} of {' x '.join(map(str, images[0].shape[1:]))}"
        if bad:
            named = "; ".join(f"{path} {reason}" for _, path, reason in bad[:3]) + "; ..." * (len(bad) > 3)
            raise DataError(
                f"only {size} of a batch of {len(images) + len(bad)} could be read, too few for BatchNorm: {named}. "
                "Repair or remove these files, or raise data.batch_size"
            ) from error
        raise DataError(f"a batch of {size} is too small for BatchNorm: raise data.batch_size or data.size") from error


def _find(network: nn.Module, path: str) -> nn.Module:
    try:
        return network.get_submodule(path)
    except AttributeError:
        names = ", ".join(name for name, _ in network.named_children())
        raise ValueError(f"trainer.freeze names {path!r}, which is not in the network; it has {names}") from None
