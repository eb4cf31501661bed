"""Unequal classes: scores that count each class equally, and weights of the classes in the loss.

Shapes: K classes.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric


class ClassCounts(NamedTuple):
    """How often each class was predicted rightly, predicted, and true, each [K]."""

    right: Tensor
    predicted: Tensor
    true: Tensor

    def of_classes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return recall (nan where a class has no samples), precision (0 where it is never predicted) and F1, each [K].

        F1, their harmonic mean, is nan where a class is neither true nor predicted.
        """
        right = self.right.double()
        return right / self.true, right / self.predicted.clamp(min=1), 2 * right / (self.predicted + self.true)

    def balanced_accuracy(self) -> Tensor:
        """Return the mean recall over the classes that have samples (0 to 1)."""
        return self.of_classes()[0].nanmean()

    def macro_f1(self) -> Tensor:
        """Return the mean F1 over the classes that are true or predicted somewhere (0 to 1)."""
        return self.of_classes()[2].nanmean()


class ClassCounter(Metric):
    """Counts the classes of a test over all batches and processes.

    The scores of classes in torchmetrics make a table of K x K numbers for each batch: gigabytes for many classes.

    Args:
        num_classes: Number of classes K.
    """

    right: Tensor
    predicted: Tensor
    true: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        for name in ClassCounts._fields:
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits [B, K] and labels [B]."""
        best = logits.argmax(1)
        for name, classes in (("right", labels[best == labels]), ("predicted", best), ("true", labels)):
            setattr(self, name, getattr(self, name) + classes.bincount(minlength=self.num_classes))

    def compute(self) -> ClassCounts:
        """Return the counts, on the CPU."""
        return ClassCounts(self.right.cpu(), self.predicted.cpu(), self.true.cpu())


def class_weights(
    wanted: Literal["balanced"] | Sequence[float] | None,
    labels: Sequence[int],
    num_outputs: int,
    classes: Sequence[str],
) -> Tensor | None:
    """Return the weights [num_outputs] of ``optimizer.class_weights``, whose mean over the samples is 1; None for none.

    Balanced weights are N / (K n_k) for N samples of K classes, n_k of them of class k. Outputs without samples, and
    outputs that are no class, weigh 1.

    Args:
        wanted: ``balanced``, or a number for each class.
        labels: The classes of the training samples, as often as training draws them.
        num_outputs: Outputs of the classifier.
        classes: Names of the classes.

    Raises:
        ValueError: There are more or fewer numbers than classes, or only classes without samples weigh something.

    >>> class_weights("balanced", [0, 0, 0, 1], 3, "abc")
    tensor([0.6667, 2.0000, 1.0000])
    """
    if wanted is None:
        return None
    counts = torch.bincount(torch.tensor(labels), minlength=num_outputs).double()
    weights = torch.ones_like(counts)
    if wanted == "balanced":
        seen = counts > 0
        weights[seen] = 1 / counts[seen]
    else:
        if len(wanted) != len(classes):
            raise ValueError(
                f"optimizer.class_weights has {len(wanted)} numbers, but the data has {len(classes)} classes "
                f"({', '.join(classes[:5])}{', ...' * (len(classes) > 5)})"
            )
        weights[: len(classes)] = torch.tensor(wanted, dtype=torch.float64)
    mean = (weights * counts).sum() / counts.sum()
    if not mean:
        raise ValueError("optimizer.class_weights are 0 for every class that has training samples")
    weights /= mean
    weights[counts == 0] = 1
    return weights.float()


def weights_of(recipe: Any, labels: Sequence[int], num_outputs: int, classes: Sequence[str]) -> Tensor | None:
    """Return the class weights [num_outputs] of a recipe; arguments and errors are those of :func:`class_weights`."""
    if recipe.data.balanced_sampler:
        # each class is drawn equally often
        labels = sorted(set(labels))
    return class_weights(recipe.optimizer.class_weights, labels, num_outputs, classes)


def weighted_cross_entropy(
    logits: Tensor, target: Tensor, weights: Tensor | None, label_smoothing: float = 0.0
) -> Tensor:
    """Return the mean cross entropy of logits [B, K], each class with its weight [K].

    The sum of the weighted losses is divided by B, and not by the sum of the weights as PyTorch does, so that the parts
    of a batch add up to the whole. ``target`` holds labels [B] or probabilities [B, K].
    """
    if weights is None:
        return F.cross_entropy(logits, target, label_smoothing=label_smoothing)
    total = F.cross_entropy(logits, target, weights, label_smoothing=label_smoothing, reduction="sum")
    return total / len(logits)
