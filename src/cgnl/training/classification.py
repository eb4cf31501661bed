"""The Lightning module that trains and tests a classifier.

Shapes: B batch, K classes.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchvision import tv_tensors
from torchvision.transforms import v2

from cgnl.training.class_scores import ClassCounter, weighted_cross_entropy
from cgnl.training.module import TrainingModule, naming_small_batches

SCORES = {
    "test/top1": "top-1",
    "test/top5": "top-5",
    "test/balanced_accuracy": "balanced accuracy",
    "test/macro_f1": "macro-F1",
}
"""The scores (%) of a test, and their names for people."""


class ClassificationModule(TrainingModule):
    """Trains a network that gives logits [B, K] with cross entropy, and tests it with accuracies and F1.

    Batches are dictionaries with ``image`` [B, 3, H, W], or clips [B, 3, T, H, W], ``label`` [B] and ``index`` [B]
    (the number of each sample in its data set), as the data modules of images and videos give them.

    Args:
        network: The network.
        num_classes: Number of classes K.
        mixup: Alpha of mixup; 0 is off.
        cutmix: Alpha of cutmix; 0 is off. With both, each batch takes one of the two.
        seed: Seed of mixup and cutmix.
        class_weights: Weight of each class in the training loss [K]; None weighs all alike. A batch's loss is the sum
            of its samples' weighted losses divided by their number, so that parts of a batch add up to the whole.
        best_by: Score that comes first in ``reported``: "top1", "balanced-accuracy" or "macro-f1".
        classifier: Module paths of the classifier, for ``head_lr_factor``; by default the last Linear.
        options: Options of :class:`cgnl.training.module.TrainingModule`: ``optimizer``, ``schedule``, ``freeze``, ...

    Raises:
        ValueError: A path in ``freeze`` that is not in the network, or one that freezes all of it.
    """

    logged = ("train/loss", "test/loss", "test/top1", "test/top5", "test/balanced_accuracy", "test/macro_f1")
    reported: Mapping[str, str] = SCORES

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        seed: int = 0,
        class_weights: Tensor | None = None,
        best_by: str = "top1",
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
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)
        best = f"test/{best_by.replace('-', '_')}"
        self.reported = {best: SCORES[best], **SCORES}
        # by default NaN is left out
        self.test_loss = MeanMetric(nan_strategy="disable")
        self.top1 = MulticlassAccuracy(num_classes, top_k=1, average="micro")
        self.top5 = MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro")
        self.counts = ClassCounter(num_classes)

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
        loss = weighted_cross_entropy(logits, target, self.class_weights, self.optimizer_config.label_smoothing)
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
        self.counts.update(logits, batch["label"])
        return logits

    def on_validation_epoch_end(self) -> None:
        """Log loss and scores (%) over all processes; without a finite loss there is no score."""
        loss = self.test_loss.compute()
        self.log("test/loss", loss)
        counts = self.counts.compute()
        scores = self.top1.compute(), self.top5.compute(), counts.balanced_accuracy(), counts.macro_f1()
        for name, score in zip(SCORES, scores, strict=True):
            self.log(name, score * 100 if loss.isfinite() else math.nan)
        for metric in (self.test_loss, self.top1, self.top5, self.counts):
            metric.reset()

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return the samples' numbers, their five most probable classes [B, 5] and the probabilities [B, 5].

        The probabilities of a video are the mean over its views.
        """
        if len(batch["label"]) == 0:
            all_probabilities = torch.zeros(0, self.num_classes)
        elif "views" in batch:
            all_probabilities = torch.stack([self.mean_probabilities(views) for views in batch["views"]])
        else:
            all_probabilities = self(batch["image"]).float().softmax(-1)
        probabilities, classes = all_probabilities.topk(min(5, self.num_classes))
        return {"index": batch["index"], "classes": classes, "probabilities": probabilities}

    def mean_probabilities(self, views: Iterable[Tensor]) -> Tensor:
        """Return the mean probabilities [K] over the views of a video, given in parts [V, 3, T, H, W]."""
        parts = [self(part).float().softmax(-1) for part in views]
        return torch.cat(parts).mean(0)
