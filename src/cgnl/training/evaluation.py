"""Testing a trained classifier on a data set."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cgnl.data.decoding import DataError
from cgnl.data.lists import Split, readable
from cgnl.files import json_text, write_csv, write_text
from cgnl.settings.training import TrainerConfig
from cgnl.training.classification import ClassificationModule
from cgnl.training.data import SampleData
from cgnl.training.processes import end_together, gathered, interruptible, reporting_dead_readers
from cgnl.training.run import make_trainer, quieten, uses_channels_last
from cgnl.training.task import TestResult
from cgnl.training.trained import NOT_FINITE, TrainedNetwork


@dataclass(frozen=True)
class Evaluation(TestResult):
    """Accuracy on a data set.

    Attributes:
        top1: Top-1 accuracy (%).
        top1_interval: Its 95 % interval (%).
        top5: Top-5 accuracy (%); with fewer than five classes, 100.
        top5_interval: Its 95 % interval (%).
        count: Tested samples.
        bad: Samples that could not be read.
        per_class: Name, samples and accuracy (%) of each class.
        confused: True class, predicted class and how often, the most frequent first.
        troubles: What could not be read, in a few words each.
        split: The part of the data that was tested: ``val`` or ``test``.
        num_classes: Number of classes.
    """

    top1: float
    top1_interval: tuple[float, float]
    top5: float
    top5_interval: tuple[float, float]
    count: int
    bad: int
    per_class: tuple[tuple[str, int, float], ...]
    confused: tuple[tuple[str, str, int], ...]
    troubles: tuple[str, ...]
    split: Split
    num_classes: int

    @property
    def scores(self) -> dict[str, float]:
        """Both accuracies (%) by name."""
        return {"top-1": self.top1, "top-5": self.top5}

    def lines(self, tested: str, out: Path) -> list[str]:
        """Return accuracies with their intervals, and the most frequent confusions."""
        intervals = self.top1_interval, self.top5_interval
        return [
            *(
                f"{name} {value:.2f} %  (95 % interval {low:.2f} to {high:.2f} %, {self.count} {tested}) "
                f"{self.on_split()}"
                for (name, value), (low, high) in zip(self.scores.items(), intervals, strict=True)
            ),
            *self._lines_on_classes(),
            *self.trouble_lines(out),
            *(f"{times:5} x {true} taken for {predicted}" for true, predicted, times in self.confused[:5]),
            f"written: {out / 'predictions.csv'}, per_class.csv, confusions.csv, measures.json",
        ]

    def _lines_on_classes(self) -> list[str]:
        """Return a line where some classes have no samples."""
        if len(self.per_class) == self.num_classes:
            return []
        return [f"{len(self.per_class)} of the {self.num_classes} classes were tested; the others have no samples here"]

    def measures(self) -> dict[str, Any]:
        """Return accuracies, intervals and counts for JSON."""
        return {
            "split": self.split,
            "samples": self.count,
            "unreadable": self.bad,
            "top1": self.top1,
            "top1_interval": self.top1_interval,
            "top5": self.top5,
            "top5_interval": self.top5_interval,
        }


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
    top1, top5 = module.accuracies()
    rows = _rows(parts)
    samples.share_bad_files()
    _check_finite(samples, rows)
    if not stay:
        end_together()
    evaluation = _summary(samples, rows, top1, top5)
    if out is not None and runner.is_global_zero:
        _write(out, samples, rows, evaluation)
    return evaluation


def _rows(parts: list[dict[str, Tensor]]) -> list[tuple[int, list[int], list[float]]]:
    """Return sample number, top-5 classes and their probabilities of all processes' samples, in order."""
    mine = [
        row
        for part in parts
        for row in zip(part["index"].tolist(), part["classes"].tolist(), part["probabilities"].tolist(), strict=True)
    ]
    return sorted(row for share in gathered(mine) for row in share)


def _check_finite(data: SampleData, rows: list[tuple[int, list[int], list[float]]]) -> None:
    """Raise DataError where a sample's probabilities are not finite: its class would be any."""
    wrong = [index for index, _, values in rows if not all(map(math.isfinite, values))]
    if wrong:
        paths = [data.tested_samples.samples[index].path for index in wrong]
        raise DataError(f"{paths[0]} {NOT_FINITE}, as do {len(wrong)} of {len(rows)} {data.noun}s in all")


def _summary(data: SampleData, rows: list[tuple[int, list[int], list[float]]], top1: float, top5: float) -> Evaluation:
    samples, names = data.tested_samples.samples, data.classes
    missing = len(data.tested_samples.missing)
    pairs = [(samples[index].label, classes[0]) for index, classes, _ in rows]
    counts, right = (Counter(label for label, _ in pairs), Counter(label for label, best in pairs if label == best))
    confused = Counter((label, best) for label, best in pairs if label != best).most_common()
    count = len(rows)
    return Evaluation(
        top1,
        wilson_interval(round(top1 * count / 100), count),
        top5,
        wilson_interval(round(top5 * count / 100), count),
        count,
        len(samples) - count,
        tuple((names[k], counts[k], 100 * right[k] / counts[k]) for k in sorted(counts)),
        tuple((names[label], names[best], times) for (label, best), times in confused),
        (*[f"missing {data.noun}s: {missing}"] * bool(missing), *data.troubles()),
        data.tested,
        len(data.named_classes),
    )


def _write(out: Path, data: SampleData, rows: list[tuple[int, list[int], list[float]]], evaluation: Evaluation) -> None:
    samples, names = data.tested_samples.samples, data.classes
    tops = range(1, min(5, len(names)) + 1)
    header = ["path", "label", *(f"{what}{k}" for k in tops for what in ("class", "probability"))]
    lines = []
    for index, classes, probabilities in rows:
        best = [value for k, p in zip(classes, probabilities, strict=True) for value in (names[k], f"{p:.6f}")]
        lines.append([readable(str(samples[index].path)), names[samples[index].label], *best])
    write_csv(out / "predictions.csv", [header, *lines])
    write_csv(out / "per_class.csv", [("class", "samples", "top1"), *evaluation.per_class])
    write_csv(out / "confusions.csv", [("true", "predicted", "times"), *evaluation.confused])
    write_text(out / "measures.json", json_text(evaluation.measures(), indent=2))
