"""Testing a trained network on a data set, and using it on single images."""

import csv
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cgnl.data.decoding import open_image
from cgnl.data.images.reading import readable
from cgnl.data.transforms import test_transform
from cgnl.training.checkpoint import TrainedNetwork
from cgnl.training.classification import ClassificationModule
from cgnl.training.data import ImageData
from cgnl.training.processes import end_together, gathered, reporting_dead_readers
from cgnl.training.recipe import DataConfig, TrainerConfig
from cgnl.training.run import make_trainer, quieten, uses_channels_last


@dataclass(frozen=True)
class Evaluation:
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
    """

    top1: float
    top1_interval: tuple[float, float]
    top5: float
    top5_interval: tuple[float, float]
    count: int
    bad: int
    per_class: tuple[tuple[str, int, float], ...]
    confused: tuple[tuple[str, str, int], ...]


def wilson_interval(correct: int, count: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the 95 % interval (%) of an accuracy, by Wilson's score method.

    Args:
        correct: Samples that were right.
        count: All samples.
        z: Quantile of the normal distribution.

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
    data: DataConfig,
    *,
    trainer: TrainerConfig | None = None,
    out: Path | None = None,
) -> Evaluation:
    """Test a network: every sample of the test split once, over all processes.

    Args:
        trained: The network, out of :func:`cgnl.training.checkpoint.load_trained`.
        data: Where the images are; size and resize are those of the network's recipe unless changed here.
        trainer: Devices and precision; by default one device (torchrun's processes), the recipe's precision.
        out: Folder for predictions.csv, per_class.csv, confusions.csv and the list of bad files; None for none.

    Returns:
        Accuracies with 95 % intervals, classes and confusions.

    Raises:
        DataError: Something is wrong with the data set, or its classes are not the network's.
    """
    quieten()
    images = ImageData(data, run=out, classes=trained.classes)
    here = trainer or TrainerConfig(devices=1, precision=trained.recipe.trainer.precision)
    module = ClassificationModule(
        trained.network, num_classes=len(trained.classes), channels_last=uses_channels_last(here)
    )
    runner = make_trainer(trainer or here, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with reporting_dead_readers():
        parts: Any = runner.predict(module, datamodule=images)
    top1, top5 = module.accuracies()
    rows = _rows(parts)
    end_together()
    evaluation = _summary(images, rows, top1, top5)
    if out is not None and runner.is_global_zero:
        _write(out, images, rows, evaluation)
    return evaluation


def _rows(parts: list[dict[str, Tensor]]) -> list[tuple[int, list[int], list[float]]]:
    """Return sample number, top-5 classes and their probabilities of all processes' samples, in order."""
    mine = [
        row
        for part in parts
        for row in zip(part["index"].tolist(), part["classes"].tolist(), part["probabilities"].tolist(), strict=True)
    ]
    return sorted(row for share in gathered(mine) for row in share)


def _summary(data: ImageData, rows: list[tuple[int, list[int], list[float]]], top1: float, top5: float) -> Evaluation:
    samples, names = data.test_images.samples, data.classes
    pairs = [(samples[index].label, classes[0]) for index, classes, _ in rows]
    counts, right = (
        Counter(label for label, _ in pairs),
        Counter(label for label, best in pairs if label == best),
    )
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
    )


def _write(out: Path, data: ImageData, rows: list[tuple[int, list[int], list[float]]], evaluation: Evaluation) -> None:
    out.mkdir(parents=True, exist_ok=True)
    samples, names = data.test_images.samples, data.classes
    tops = range(1, min(5, len(names)) + 1)
    header = ["path", "label", *(f"{what}{k}" for k in tops for what in ("class", "probability"))]
    with (out / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for index, classes, probabilities in rows:
            best = [value for k, p in zip(classes, probabilities, strict=True) for value in (names[k], f"{p:.6f}")]
            writer.writerow([readable(str(samples[index].path)), names[samples[index].label], *best])
    with (out / "per_class.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("class", "samples", "top1"), *evaluation.per_class])
    with (out / "confusions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("true", "predicted", "times"), *evaluation.confused])


@torch.inference_mode()
def predict(trained: TrainedNetwork, path: Path, *, top: int = 5) -> list[tuple[str, float]]:
    """Return the most probable classes of one image and their probabilities.

    Args:
        trained: The network.
        path: The image file.
        top: Number of classes.

    Raises:
        DataError: The file is no image that is opened.
    """
    size, resize = trained.recipe.data.size, trained.recipe.data.resize
    image = test_transform(size, resize, mean=trained.mean, std=trained.std)(open_image(path))
    probabilities = trained.network(image[None]).float().softmax(-1)[0]
    values, classes = probabilities.topk(min(top, len(trained.classes)))
    return [(trained.classes[k], p) for k, p in zip(classes.tolist(), values.tolist(), strict=True)]
