"""Testing a trained network on a data set, and using it on single images and videos."""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cgnl.data.decoding import BadFileError, open_image
from cgnl.data.lists import readable
from cgnl.data.transforms import clip_test_transform, normalise_clip, test_transform
from cgnl.files import write_csv
from cgnl.settings.image import DataConfig
from cgnl.settings.training import TrainerConfig
from cgnl.settings.video import VideoDataConfig
from cgnl.training.checkpoint import TrainedNetwork
from cgnl.training.classification import ClassificationModule
from cgnl.training.data import SampleData, make_data
from cgnl.training.processes import end_together, gathered, reporting_dead_readers
from cgnl.training.run import make_trainer, quieten, uses_channels_last

_logger = logging.getLogger(__name__)


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
        troubles: What could not be read, in a few words each.
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
    stay: bool = False,
) -> Evaluation:
    """Test a network: every sample of the test split once, over all processes.

    Args:
        trained: The network, out of :func:`cgnl.training.checkpoint.load_trained`.
        data: Where the images or videos are; size and resize are those of the network's recipe unless changed here.
        trainer: Devices and precision; by default one device (torchrun's processes), the recipe's precision.
        out: Folder for predictions.csv, per_class.csv, confusions.csv and the lists of bad and damaged files, or None.
        stay: Whether the processes stay together, to test another network: a group that ends cannot begin again.

    Returns:
        Accuracies with 95 % intervals, classes and confusions.

    Raises:
        DataError: Something is wrong with the data set, or its classes are not the network's.
    """
    quieten()
    samples = make_data(data, run=out, classes=trained.classes, num_classes=trained.num_classes)
    here = trainer or TrainerConfig(devices=1, precision=trained.recipe.trainer.precision)
    module = ClassificationModule(
        trained.network, num_classes=len(trained.classes), channels_last=uses_channels_last(here)
    )
    runner = make_trainer(trainer or here, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with reporting_dead_readers():
        parts: Any = runner.predict(module, datamodule=samples)
    top1, top5 = module.accuracies()
    rows = _rows(parts)
    samples.share_bad_files()
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


def _summary(data: SampleData, rows: list[tuple[int, list[int], list[float]]], top1: float, top5: float) -> Evaluation:
    samples, names = data.test_samples.samples, data.classes
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
        tuple(data.troubles()),
    )


def _write(out: Path, data: SampleData, rows: list[tuple[int, list[int], list[float]]], evaluation: Evaluation) -> None:
    samples, names = data.test_samples.samples, data.classes
    tops = range(1, min(5, len(names)) + 1)
    header = ["path", "label", *(f"{what}{k}" for k in tops for what in ("class", "probability"))]
    lines = []
    for index, classes, probabilities in rows:
        best = [value for k, p in zip(classes, probabilities, strict=True) for value in (names[k], f"{p:.6f}")]
        lines.append([readable(str(samples[index].path)), names[samples[index].label], *best])
    write_csv(out / "predictions.csv", [header, *lines])
    write_csv(out / "per_class.csv", [("class", "samples", "top1"), *evaluation.per_class])
    write_csv(out / "confusions.csv", [("true", "predicted", "times"), *evaluation.confused])


def predict(trained: TrainedNetwork, path: Path, *, top: int = 5) -> list[tuple[str, float]]:
    """Return the most probable classes of one image or video and their probabilities.

    Those of a video are the mean over its views, ``test_clips`` x ``test_crops`` of the recipe. PyAV decodes it,
    whatever decoded the training videos: the frames are the same up to rounding. What is damaged in it is logged.

    Args:
        trained: The network; it is moved to the GPU where there is one.
        path: The image file, video file, or folder of frames.
        top: Number of classes.

    Raises:
        DataError: The file is no image or video that is opened.
    """
    config = trained.recipe.data
    if isinstance(config, VideoDataConfig):
        from cgnl.data.videos import GuardedReader, read_clips, test_clips
        from cgnl.training.video_data import damage, normalised_views

        with closing(GuardedReader(timeout=config.decode_timeout)) as reader:
            info = reader.probe(path)
            numbers = test_clips(info.frames, config.test_clips, config.num_frames, config.frame_step)
            size = 3 * info.height * info.width
            video = read_clips(reader, path, numbers, clip_test_transform(config.resize), frame_bytes=size)
        if found := damage(info, video["lost"]):
            _logger.warning("%s %s", path, "; ".join(found))
        video["frames"] = video["frames"].to(default_device())
        parts = normalised_views(video, config, mean=trained.mean, std=trained.std)
        return _best(trained, torch.cat([_probabilities(trained, part) for part in parts]).mean(0), top)
    image = test_transform(config.size, config.resize, mean=trained.mean, std=trained.std)(open_image(path))
    return _best(trained, _probabilities(trained, image[None])[0], top)


def predict_timeline(
    trained: TrainedNetwork, path: Path, *, top: int = 5
) -> Iterator[tuple[int, list[tuple[str, float]]]]:
    """Give the most probable classes of each second of a video: those of one clip and crop around its middle.

    Args:
        trained: The network; it is moved to the GPU where there is one.
        path: The video file, which PyAV decodes.
        top: Number of classes.

    Yields:
        The second, from 0, and classes with probabilities.

    Raises:
        DataError: The file is no video that is opened, or does not tell its frames per second.
    """
    from cgnl.data.videos import GuardedReader, timeline_clips

    config = trained.recipe.data
    assert isinstance(config, VideoDataConfig)
    transform = clip_test_transform(config.resize, config.size)
    with closing(GuardedReader(timeout=config.decode_timeout)) as reader:
        info = reader.probe(path)
        if info.fps <= 0:
            raise BadFileError(path, "does not tell its frames per second, so there is no timeline of it")
        clips = timeline_clips(info.frames, info.fps, config.num_frames, config.frame_step)
        for begin in range(0, len(clips), config.views_per_step):
            some = clips[begin : begin + config.views_per_step].tolist()
            batch = torch.stack([transform(reader.read(path, numbers)[0]) for numbers in some])
            batch = normalise_clip(batch.to(default_device()), mean=trained.mean, std=trained.std)
            for second, probabilities in enumerate(_probabilities(trained, batch), start=begin):
                yield second, _best(trained, probabilities, top)


def write_timeline(file: Path, rows: Sequence[tuple[Path, int, list[tuple[str, float]]]]) -> None:
    """Write the seconds of videos as CSV.

    Args:
        file: The file; an earlier one is replaced.
        rows: Video, second, and classes with probabilities, the most probable first.
    """
    tops = range(1, max((len(best) for *_, best in rows), default=0) + 1)
    header = ["path", "second", *(f"{what}{k}" for k in tops for what in ("class", "probability"))]
    lines = [
        [readable(str(path)), second, *(value for name, p in best for value in (name, f"{p:.6f}"))]
        for path, second, best in rows
    ]
    write_csv(file, [header, *lines])


def default_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def _probabilities(trained: TrainedNetwork, batch: Tensor) -> Tensor:
    return trained.network.to(default_device())(batch.to(default_device())).float().softmax(-1)


def _best(trained: TrainedNetwork, probabilities: Tensor, top: int) -> list[tuple[str, float]]:
    values, classes = probabilities.topk(min(top, len(trained.classes)))
    return [(trained.classes[k], p) for k, p in zip(classes.tolist(), values.tolist(), strict=True)]
