"""Testing a trained classifier on a data set."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cgnl.data.decoding import DataError
from cgnl.data.lists import Split, readable
from cgnl.files import json_text, write_csv, write_text
from cgnl.settings.training import TrainerConfig
from cgnl.training.class_scores import ClassCounts
from cgnl.training.classification import SCORES, ClassificationModule
from cgnl.training.data import SampleData
from cgnl.training.processes import end_together, gathered, interruptible, reporting_dead_readers
from cgnl.training.run import make_trainer, quieten, uses_channels_last
from cgnl.training.task import TestResult
from cgnl.training.trained import NOT_FINITE, TrainedNetwork


class Tested(NamedTuple):
    """One tested sample: its file, label, five most probable classes and their probabilities."""

    path: Path
    label: int
    classes: list[int]
    probabilities: list[float]


@dataclass(frozen=True)
class Evaluation(TestResult):
    """Accuracy on a data set.

    Attributes:
        top1: Top-1 accuracy (%).
        top1_interval: Its 95 % interval (%).
        top5: Top-5 accuracy (%); with fewer than five classes, 100.
        top5_interval: Its 95 % interval (%).
        balanced_accuracy: Mean of the classes' accuracies (%), over those that have test samples.
        macro_f1: Mean of the classes' F1 (%), over those that have test samples or were predicted.
        count: Tested samples.
        bad: Samples that could not be read.
        per_class: Name, samples, accuracy (recall), precision and F1 (%) of each class that has test samples.
        confused: True class, predicted class and how often, the most frequent first.
        troubles: What could not be read, in a few words each.
        split: The part of the data that was tested: ``val`` or ``test``.
        num_classes: Number of classes.
        outputs: Names of the network's outputs, the classes first.
        predictions: The tested samples.
    """

    top1: float
    top1_interval: tuple[float, float]
    top5: float
    top5_interval: tuple[float, float]
    balanced_accuracy: float
    macro_f1: float
    count: int
    bad: int
    per_class: tuple[tuple[str, int, float, float, float], ...]
    confused: tuple[tuple[str, str, int], ...]
    troubles: tuple[str, ...]
    split: Split
    num_classes: int
    outputs: tuple[str, ...] = field(repr=False)
    predictions: tuple[Tested, ...] = field(repr=False)

    @property
    def scores(self) -> dict[str, float]:
        """The scores (%) by name."""
        values = self.top1, self.top5, self.balanced_accuracy, self.macro_f1
        return dict(zip(SCORES.values(), values, strict=True))

    def lines(self, tested: str, out: Path) -> list[str]:
        """Return the scores, accuracies with their intervals, and the most frequent confusions."""
        return [
            *self._score_lines(tested),
            *self._lines_on_classes(),
            *self.trouble_lines(out),
            *(f"{times:5} x {true} taken for {predicted}" for true, predicted, times in self.confused[:5]),
            f"written: {out / 'predictions.csv'}, per_class.csv, confusions.csv, measures.json",
        ]

    def _score_lines(self, tested: str) -> Iterator[str]:
        intervals: tuple[Any, ...] = self.top1_interval, self.top5_interval, None, None
        for (name, value), interval in zip(self.scores.items(), intervals, strict=True):
            chance = "95 % interval {:.2f} to {:.2f} %, ".format(*interval) if interval else ""
            yield f"{name} {value:.2f} %  ({chance}{self.count} {tested}) {self.on_split()}"

    def _lines_on_classes(self) -> list[str]:
        """Return a line where some classes have no samples."""
        if len(self.per_class) == self.num_classes:
            return []
        return [f"{len(self.per_class)} of the {self.num_classes} classes were tested; the others have no samples here"]

    def measures(self) -> dict[str, Any]:
        """Return scores, intervals and counts for JSON."""
        return {
            "split": self.split,
            "samples": self.count,
            "unreadable": self.bad,
            "top1": self.top1,
            "top1_interval": self.top1_interval,
            "top5": self.top5,
            "top5_interval": self.top5_interval,
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
        }

    def pooled(self, others: Sequence[TestResult]) -> "Evaluation":
        """Return the result over the samples of several tests, each of a network of its own."""
        tests: list[Any] = [self, *others]
        if any(test.outputs != self.outputs for test in tests):
            raise ValueError("networks that are tested together on folds must have the same classes")
        return _evaluation(
            tuple(tested for test in tests for tested in test.predictions),
            self.outputs,
            bad=sum(test.bad for test in tests),
            troubles=(),  # each test tells its own
            split=self.split,
            num_classes=self.num_classes,
        )

    def write(self, out: Path) -> None:
        """Write predictions.csv, per_class.csv, confusions.csv and measures.json into a folder."""
        names = self.outputs
        tops = range(1, min(5, len(names)) + 1)
        header = ["path", "label", *(f"{what}{k}" for k in tops for what in ("class", "probability"))]
        lines = []
        for path, label, classes, probabilities in self.predictions:
            best = [value for k, p in zip(classes, probabilities, strict=True) for value in (names[k], f"{p:.6f}")]
            lines.append([readable(str(path)), names[label], *best])
        write_csv(out / "predictions.csv", [header, *lines])
        write_csv(out / "per_class.csv", [("class", "samples", "top1", "precision", "f1"), *self.per_class])
        write_csv(out / "confusions.csv", [("true", "predicted", "times"), *self.confused])
        write_text(out / "measures.json", json_text(self.measures(), indent=2))


def wilson_interval(correct: int, count: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the 95 % interval (%) of an accuracy, by Wilson's score method with the normal distribution's quantile z.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Example:
        >>> [round(bound, 1) for bound in wilson_interval(50, 100)]
        [40.4, 59.6]
    """
    if count == 0:
        return 0.0, 100.0
    rate = correct / count
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return 100 * max(centre - half, 0.0), 100 * min(centre + half, 1.0)


def evaluate(
    trained: TrainedNetwork,
    samples: SampleData[Any],
    *,
    trainer: TrainerConfig | None = None,
    out: Path | None = None,
    stay: bool = False,
) -> Evaluation:
    """Measure a classifier's accuracy on test samples; arguments and errors as of :func:`cgnl.tasks.evaluate`."""
    quieten()
    here = trainer or TrainerConfig(devices=1, precision=trained.recipe.trainer.precision)
    module = ClassificationModule(
        trained.network, num_classes=len(trained.classes), channels_last=uses_channels_last(here)
    )
    runner = make_trainer(trainer or here, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with interruptible(), reporting_dead_readers():
        parts: Any = runner.predict(module, datamodule=samples)
    rows = _rows(samples, parts)
    samples.share_bad_files()
    _check_finite(samples, rows)
    if not stay:
        end_together()
    missing = len(samples.tested_samples.missing)
    evaluation = _evaluation(
        rows,
        samples.classes,
        bad=len(samples.tested_samples) - len(rows),
        troubles=(*[f"missing {samples.noun}s: {missing}"] * bool(missing), *samples.troubles()),
        split=samples.tested,
        num_classes=len(samples.named_classes),
    )
    if out is not None and runner.is_global_zero:
        evaluation.write(out)
    return evaluation


def _rows(data: SampleData, parts: list[dict[str, Tensor]]) -> tuple[Tested, ...]:
    """Return the tested samples of all processes, in order."""
    mine = [
        row
        for part in parts
        for row in zip(part["index"].tolist(), part["classes"].tolist(), part["probabilities"].tolist(), strict=True)
    ]
    samples = data.tested_samples.samples
    rows = sorted(row for share in gathered(mine) for row in share)
    return tuple(Tested(samples[index].path, samples[index].label, *best) for index, *best in rows)


def _check_finite(data: SampleData, rows: Sequence[Tested]) -> None:
    """Raise DataError where a sample's probabilities are not finite: its class would be any."""
    wrong = [row.path for row in rows if not all(map(math.isfinite, row.probabilities))]
    if wrong:
        raise DataError(f"{wrong[0]} {NOT_FINITE}, as do {len(wrong)} of {len(rows)} {data.noun}s in all")


def _evaluation(rows: tuple[Tested, ...], names: tuple[str, ...], **facts: Any) -> Evaluation:
    count = len(rows)
    pairs = Counter((row.label, row.classes[0]) for row in rows)
    confused = Counter({pair: times for pair, times in pairs.items() if pair[0] != pair[1]}).most_common()
    in_top5 = sum(row.label in row.classes for row in rows)
    counts = ClassCounts(*torch.zeros(3, len(names), dtype=torch.int64))
    for (label, best), times in pairs.items():
        counts.true[label] += times
        counts.predicted[best] += times
        counts.right[label] += times * (label == best)
    right = int(counts.right.sum())
    table = zip(
        names, counts.true.tolist(), *((100 * values.double()).tolist() for values in counts.of_classes()), strict=True
    )
    return Evaluation(
        100 * right / max(count, 1),
        wilson_interval(right, count),
        100 * in_top5 / max(count, 1),
        wilson_interval(in_top5, count),
        100 * float(counts.balanced_accuracy()),
        100 * float(counts.macro_f1()),
        count,
        per_class=tuple(row for row in table if row[1]),
        confused=tuple((names[label], names[best], times) for (label, best), times in confused),
        outputs=names,
        predictions=rows,
        **facts,
    )
