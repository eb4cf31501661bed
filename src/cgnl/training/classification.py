"""The Lightning module that trains and tests a classifier.

Shapes: B batch, K classes.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchvision import tv_tensors
from torchvision.transforms import v2

from cgnl.training.module import TrainingModule, naming_small_batches


class ClassificationModule(TrainingModule):
    """Trains a network that gives logits [B, K] with cross entropy, and tests it with top-1 and top-5 accuracy.

    Batches are dictionaries with ``image`` [B, 3, H, W], or clips [B, 3, T, H, W], ``label`` [B] and ``index`` [B]
    (the number of each sample in its data set), as the data modules of images and videos give them.

    Args:
        network: The network.
        num_classes: Number of classes K.
        mixup: Alpha of mixup; 0 is off.
        cutmix: Alpha of cutmix; 0 is off. With both, each batch takes one of the two.
        seed: Seed of mixup and cutmix.
        classifier: Module paths of the classifier, for ``head_lr_factor``; by default the last Linear.
        options: Options of :class:`cgnl.training.module.TrainingModule`: ``optimizer``, ``schedule``, ``freeze``, ...

    Raises:
        ValueError: A path in ``freeze`` that is not in the network, or one that freezes all of it.
    """

    logged = ("train/loss", "test/loss", "test/top1", "test/top5")
    reported: ClassVar[dict[str, str]] = {"test/top1": "top-1", "test/top5": "top-5"}

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        seed: int = 0,
        classifier: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        self.num_classes = num_classes
        self.classifier = classifier
        self.seed = seed
        mixers = [v2.MixUp(alpha=mixup, num_classes=num_classes)] if mixup else []
        mixers += [v2.CutMix(alpha=cutmix, num_classes=num_classes)] if cutmix else []
        self._mix = v2.RandomChoice(mixers) if mixers else None
        # by default NaN is left out
        self.test_loss = MeanMetric(nan_strategy="disable")
        self.top1 = MulticlassAccuracy(num_classes, top_k=1, average="micro")
        self.top5 = MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro")

    def heads(self) -> Sequence[nn.Module]:
        """Return the classifier: what was named, or the last Linear of the network."""
        if self.classifier:
            return [self.network.get_submodule(path) for path in self.classifier]
        return [module for module in self.network.modules() if isinstance(module, nn.Linear)][-1:]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, K] of images [B, 3, H, W] or clips [B, 3, T, H, W]."""
        if self.channels_last:
            images = images.contiguous(
                memory_format=torch.channels_last if images.ndim == 4 else torch.channels_last_3d
            )
        return self.network(images)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the batch's mean loss; a batch without a readable sample gives a zero with zero gradients."""
        images, target = batch["image"], batch["label"]
        if len(target) == 0:
            return self.loss_of_no_sample(batch)
        if self._mix is not None:
            images, target = self._mixed_at(images, target, (self.current_epoch, batch_idx, self.global_rank))
        with naming_small_batches(images, batch.get("bad", ())):
            logits = self(images)
        loss = F.cross_entropy(logits, target, label_smoothing=self.optimizer_config.label_smoothing)
        if loss.isfinite():
            self.train_loss.update(loss.detach(), weight=len(target))
        return loss

    def _mixed_at(self, images: Tensor, labels: Tensor, place: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Mix a batch; the draws depend on the seed and on epoch, batch and process alone, and leave no trace."""
        assert self._mix is not None
        digest = hashlib.blake2b(repr((self.seed, *place)).encode(), digest_size=8).digest()
        # the CPU generator alone, which the transforms draw from: torch.manual_seed would reset those of GPUs too
        state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(int.from_bytes(digest, "little"))
        try:
            # the class alone tells torchvision that a fifth axis is meant
            mixed, target = self._mix(tv_tensors.Video(images) if images.ndim == 5 else images, labels)
            return mixed.as_subclass(Tensor), target
        finally:
            torch.default_generator.set_state(state)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor | None:
        """Update loss and accuracies; return the logits [B, K]."""
        if len(batch["label"]) == 0:
            return None
        logits = self(batch["image"]).float()
        self.test_loss.update(F.cross_entropy(logits, batch["label"]), weight=len(logits))
        self.top1.update(logits, batch["label"])
        self.top5.update(logits, batch["label"])
        return logits

    def on_validation_epoch_end(self) -> None:
        """Log loss and accuracies (%) over all processes; without a finite loss there is no accuracy."""
        loss = self.test_loss.compute()
        self.log("test/loss", loss)
        self.test_loss.reset()
        for name, metric in (("test/top1", self.top1), ("test/top5", self.top5)):
            self.log(name, metric.compute() * 100 if loss.isfinite() else math.nan)
            metric.reset()

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return the samples' numbers, their five most probable classes [B, 5] and the probabilities [B, 5].

        The probabilities of a video are the mean over its views. Updates the accuracies as well, so that
        :meth:`accuracies` gives them over all processes afterwards.
        """
        if len(batch["label"]) == 0:
            all_probabilities = torch.zeros(0, self.num_classes)
        elif "views" in batch:
            all_probabilities = torch.stack([self.mean_probabilities(views) for views in batch["views"]])
        else:
            all_probabilities = self(batch["image"]).float().softmax(-1)
        probabilities, classes = all_probabilities.topk(min(5, self.num_classes))
        if len(batch["label"]):
            self.top1.update(all_probabilities, batch["label"])
            self.top5.update(all_probabilities, batch["label"])
        return {"index": batch["index"], "classes": classes, "probabilities": probabilities}

    def mean_probabilities(self, views: Iterable[Tensor]) -> Tensor:
        """Return the mean probabilities [K] over the views of a video, given in parts [V, 3, T, H, W]."""
        parts = [self(part).float().softmax(-1) for part in views]
        return torch.cat(parts).mean(0)

    def accuracies(self) -> tuple[float, float]:
        """Return top-1 and top-5 accuracy (%) over all processes since the last call."""
        values = float(self.top1.compute()) * 100, float(self.top5.compute()) * 100
        self.top1.reset()
        self.top5.reset()
        return values
