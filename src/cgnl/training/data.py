"""Lightning data modules: read, cut, batched, and resumable in the middle of an epoch."""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset

from cgnl.data.decoding import DataError
from cgnl.data.images import ImageDataset, read_images
from cgnl.data.images import collate as collate_images
from cgnl.data.lists import BadFiles, SampleList, allowed_missing, check_missing, differences, write_missing
from cgnl.data.transforms import test_transform, train_transform
from cgnl.networks.libraries import Inputs
from cgnl.settings.detection import DetectionDataConfig
from cgnl.settings.image import DataConfig
from cgnl.training.processes import gathered, is_first_process
from cgnl.training.sampling import EpochBatches

Split = Literal["train", "test"]
Part = Mapping[Split, tuple[Split, Sequence[int] | None]]
# kinds of data sets whose classes have no names of their own
_LIST_KINDS = ("list", "frame_list")
# how the names of outputs that are no class begin; they tell such outputs only in checkpoints without `num_classes`
_NO_CLASS = "(no class: output "
ConfigT = TypeVar("ConfigT", bound=DataConfig | DetectionDataConfig)


class SampleData(pl.LightningDataModule, Generic[ConfigT]):
    """Training and test samples of a recipe: the base of the data modules.

    Args:
        config: Where the samples are, how they are cut, and how many go into one step.
        seed: Seed of the order and of the random crops.
        accumulate: Parts that a batch is computed in.
        run: Folder in which missing and bad files are listed; None lists them nowhere.
        classes: Names of the outputs, of which the test samples must have the classes; by default those of the
            training samples.
        num_classes: How many of ``classes`` are classes, the first ones; by default all that are not named as outputs
            without one.
        inputs: How the network's input is normalised and resized; by default as ImageNet's.
        part: For each split, the split whose samples it takes, and their numbers (None for all); by default each takes
            all of its own.

    Raises:
        DataError: Anything wrong with the data set; nothing is trained then.
    """

    noun: str
    """One sample: ``image`` or ``video``."""
    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
    """Makes a batch of samples."""

    def __init__(
        self,
        config: ConfigT,
        *,
        seed: int = 0,
        accumulate: int = 1,
        run: Path | None = None,
        classes: Sequence[str] | None = None,
        num_classes: int | None = None,
        inputs: Inputs | None = None,
        part: Part | None = None,
    ) -> None:
        super().__init__()
        self._check_places(config)
        self._part: Part = part or {"train": ("train", None), "test": ("test", None)}
        self.inputs = inputs or Inputs()
        self.config, self.seed, self.accumulate, self.run = config, seed, accumulate, run
        self._classes = tuple(classes) if classes is not None else None
        self._num_classes = num_classes
        self._resume_at = (0, 0)
        self._reading: Split | None = None
        self._bad: dict[str, BadFiles] = {}
        self._unshared: list[tuple[str, tuple[int, Path, str]]] = []

    # What the kinds of data differ in

    def _check_places(self, config: ConfigT) -> None:
        """Raise a ValueError if the settings do not say where the samples are."""
        if config.root is None:
            raise ValueError(f"data.root is needed: the folder with the {self.noun}s")

    def _list(self, split: Split) -> SampleList:
        """Read the list of a split."""
        raise NotImplementedError

    def _dataset(self, split: Split, *, training: bool) -> Dataset[Any]:
        """Return the samples of a split, cut at random in training."""
        raise NotImplementedError

    def _class_names(self) -> tuple[str, ...]:
        """Return the names of the data's own classes, in the order of the labels."""
        return self.train_samples.classes

    def _groups(self) -> Sequence[bool] | None:
        """Return which training samples a batch should not mix with the others, None where all mix."""
        return None

    # Lists

    def list_options(self, split: Split) -> dict[str, Any]:
        """Return ``list_file`` and ``num_classes`` for the reader of a split of classified samples.

        Raises DataError where the layout needs a list file, and none is given.
        """
        config: Any = self.config
        list_file = config.train_list if split == "train" else config.test_list
        if list_file is None and (config.format in _LIST_KINDS or config.train_list or config.test_list):
            raise DataError(f"data.{split}_list is needed: the list file of the {split} {self.noun}s")
        return {
            "list_file": list_file,
            "num_classes": config.num_classes if split == "train" else len(self.named_classes),
        }

    @cached_property
    def train_samples(self) -> SampleList:
        """The training samples, read on first use."""
        return self._read("train")

    @cached_property
    def test_samples(self) -> SampleList:
        """The test samples, read on first use; their classes must be those of the training samples."""
        samples = self._read("test")
        expected = self.named_classes
        if samples.kind not in _LIST_KINDS and samples.classes != expected:
            differing = differences(samples.classes, expected)
            raise DataError(f"{samples.root} has other classes than expected; {differing}")
        return samples

    def _read(self, split: Split) -> SampleList:
        source, numbers = self._part[split]
        samples = self._list(source)
        if numbers is not None:
            samples = replace(samples, samples=tuple(samples.samples[number] for number in numbers))
        folder = self.run if is_first_process() else None
        self._bad[split] = BadFiles(samples, folder, limit=self.config.bad_limit)
        if folder is not None and samples.missing:
            folder.mkdir(parents=True, exist_ok=True)
            write_missing(folder, [samples])
        check_missing(samples, allowed_missing(samples.kind, self.config.missing_limit, self.config.bad_limit))
        return samples

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classifier's outputs: the classes in the order of the labels, then outputs that are no class.

        Raises ValueError where ``data.num_outputs`` is less than the number of classes.
        """
        if self._classes:
            return self._classes
        names = self._class_names()
        outputs = getattr(self.config, "num_outputs", None) or len(names)
        if outputs < len(names):
            raise ValueError(f"data.num_outputs ({outputs}) must be at least the number of classes ({len(names)})")
        return (*names, *(f"{_NO_CLASS}{number})" for number in range(len(names), outputs)))

    @property
    def named_classes(self) -> tuple[str, ...]:
        """Names of the classes alone, in the order of the labels."""
        outputs = self.classes
        if not self._classes:
            return self._class_names()
        if self._num_classes is not None:
            return outputs[: self._num_classes]
        return tuple(name for name in outputs if not name.startswith(_NO_CLASS))

    @property
    def normalisation(self) -> dict[str, tuple[float, float, float]]:
        """Mean and standard deviation (RGB, images in 0..1) that the network's input is normalised with."""
        return {"mean": self.inputs.mean, "std": self.inputs.std}

    def resume(self, epoch: int, batch: int) -> None:
        """Start training at a batch of an epoch (both from 0)."""
        self._resume_at = epoch, batch

    def names(self, indices: Sequence[int]) -> list[str]:
        """Return the paths of training samples by their numbers."""
        return [str(self.train_samples.samples[index].path) for index in indices]

    def on_after_batch_transfer(self, batch: Mapping[str, Any], dataloader_idx: int) -> Mapping[str, Any]:
        """Count the samples that could not be read; over the limit the run stops."""
        split = "train" if self._in_training else "test"
        self._unshared += [(split, row) for row in batch["bad"]]
        self._bad[split].add(batch["bad"])
        return batch

    def share_bad_files(self) -> None:
        """Let every process know the bad files of all, so that each is listed once and the limit is that of the set."""
        for share in gathered(self._unshared):
            for split, row in share:
                self._bad[split].add([row])
        self._unshared.clear()

    @property
    def _in_training(self) -> bool:
        return self._reading == "train" or (self.trainer is not None and self.trainer.training)

    @property
    def bad_count(self) -> int:
        """Number of different files that could not be read so far."""
        return sum(map(len, self._bad.values()))

    def troubles(self) -> list[str]:
        """Return what could not be read so far, a few words each."""
        return [f"unreadable {self.noun}s: {self.bad_count}"] if self.bad_count else []

    def check(self) -> None:
        """Read both lists and make both data sets, to find mistakes (DataError, ValueError) at the beginning."""
        self._dataset("train", training=True)
        self._dataset("test", training=False)

    def summary(self) -> str:
        """Return the numbers of samples and classes in a line."""
        missing = len(self.train_samples.missing) + len(self.test_samples.missing)
        return (
            f"{len(self.train_samples)} training and {len(self.test_samples)} test {self.noun}s "
            f"of {len(self.named_classes)} classes"
            + (f"; missing files: {missing}" + (f" (missing_files.csv in {self.run})" if self.run else ""))
            * bool(missing)
        )

    def train_dataloader(self) -> DataLoader:
        """Return the shuffled, randomly cut training samples."""
        config, (rank, world_size) = self.config, self._place()
        parts = world_size * self.accumulate
        if config.batch_size % parts:
            raise ValueError(
                f"data.batch_size ({config.batch_size}) must be divisible by processes x trainer.accumulate ({parts})"
            )
        batches = EpochBatches(
            len(self.train_samples.samples),
            config.batch_size // parts,
            training=True,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            parts=self.accumulate,
            groups=self._groups(),
        )
        batches.resume(*self._resume_at)
        return self._loader(self._dataset("train", training=True), batches)

    def val_dataloader(self) -> DataLoader:
        """Return the test samples, cut at the middle, each to one process only."""
        per_process = max(self.config.batch_size // (self._place()[1] * self.accumulate), 1)
        return self._loader(self._dataset("test", training=False), self._test_batches(per_process))

    def predict_dataloader(self) -> DataLoader:
        """Return the test samples as they are tested after training."""
        return self.val_dataloader()

    def tested_batches(self, split: Split) -> Iterator[Mapping[str, Any]]:
        """Yield the batches of a split in its order, cut as in a test; without a trainer."""
        samples = self.train_samples if split == "train" else self.test_samples
        batches = EpochBatches(len(samples.samples), self.config.batch_size, training=False)
        self._reading = split
        for batch in self._loader(self._dataset(split, training=False), batches):
            yield self.on_after_batch_transfer(batch, 0)
        self._reading = None

    def _test_batches(self, per_process: int) -> EpochBatches:
        rank, world_size = self._place()
        return EpochBatches(
            len(self.test_samples.samples), per_process, training=False, rank=rank, world_size=world_size
        )

    def _loader(self, dataset: Dataset[Any], batches: EpochBatches) -> DataLoader:
        workers = self.config.workers
        return DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=self.collate,
            worker_init_fn=_leave_signals_to_the_training_process,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            timeout=self.config.timeout if workers else 0,
            # its own generator: the loader's draws must not move the global random state that dropout uses
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _place(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size


class ImageData(SampleData[DataConfig]):
    """Training and test images of a recipe; arguments and errors as of :class:`SampleData`."""

    noun = "image"
    collate = staticmethod(collate_images)

    def _list(self, split: Split) -> SampleList:
        assert self.config.root is not None
        return read_images(
            self.config.root, split, format=self.config.format, missing_limit=1.0, **self.list_options(split)
        )

    def _dataset(self, split: Split, *, training: bool) -> ImageDataset:
        config, samples = self.config, self.train_samples if split == "train" else self.test_samples
        options: dict[str, Any] = {**self.normalisation, "interpolation": self.inputs.interpolation}
        size, resize = config.pixels
        if not training:
            return ImageDataset(samples, test_transform(size, resize, **options))
        transform = train_transform(size, area=config.crop_area, aspect=config.crop_aspect, flip=config.flip, **options)
        return ImageDataset(samples, transform, seed=self.seed)


def _leave_signals_to_the_training_process(worker: int) -> None:
    # Ctrl-C and a job's end reach every process; the training process decides when its readers end
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
