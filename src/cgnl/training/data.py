"""Lightning data modules: read, cut, batched, and resumable in the middle of an epoch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset

from cgnl.data.decoding import DataError, following_links
from cgnl.data.images import ImageDataset, image_parts, read_images
from cgnl.data.images import collate as collate_images
from cgnl.data.lists import (
    SPLIT_WORDS,
    BadFiles,
    SampleList,
    Split,
    allowed_missing,
    changes,
    check_missing,
    fingerprint,
    readable,
    write_missing,
)
from cgnl.data.transforms import test_transform, train_transform
from cgnl.networks.libraries import Inputs
from cgnl.settings.detection import DetectionDataConfig
from cgnl.settings.image import DataConfig
from cgnl.training.parts import check_not_trained_on, check_relative_paths, divides, parted, untrained
from cgnl.training.processes import gathered, is_first_process
from cgnl.training.readers import WatchedLoader, leave_signals_to_the_training_process
from cgnl.training.sampling import EpochBatches

Part = Mapping[Literal["train", "test"], tuple[Split, Sequence[int] | None]]
# kinds of data sets whose classes have no names of their own
_LIST_KINDS = ("list", "frame_list")
# how the names of outputs that are no class begin; they tell such outputs only in checkpoints without `num_classes`
_NO_CLASS = "(no class: output "
ConfigT = TypeVar("ConfigT", bound=DataConfig | DetectionDataConfig)


class SampleData(pl.LightningDataModule, Generic[ConfigT]):
    """Training, validation and test samples of a recipe: the base of the data modules.

    The validation samples choose the best checkpoint, and the test samples are for a test after training. A data set
    with one held-out part only uses it for both.

    Args:
        config: Where the samples are, how they are cut, and how many go into one step.
        seed: Seed of the order and of the random crops.
        accumulate: Parts that a batch is computed in.
        run: Folder in which missing and bad files are listed; None lists them nowhere.
        classes: Names of the outputs, of which the test samples must have the classes; by default those of the
            training samples.
        num_classes: How many of ``classes`` are classes, the first ones; by default all that are not named as outputs
            without one.
        inputs: How the network's input is normalised and resized; by default as ImageNet's, or as ``config`` says.
        part: For "train" and "test", the split whose samples it takes, and their numbers (None for all); "test" is then
            for validation too. By default each split takes all of its own.
        tested: Which samples tests see: ``val`` during training, ``test`` after it.

    Raises:
        DataError: Anything wrong with the data set; nothing is trained then.
    """

    noun: str
    """One sample: ``image`` or ``video``."""
    min_classes = 2
    """Minimum number of classes that the training samples have."""
    samples_have_classes = True
    """Whether each sample is of one class; in detection it holds objects."""
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
        tested: Split = "test",
    ) -> None:
        super().__init__()
        check_relative_paths(config)
        self._check_places(config)
        self._part, self._tested = part, tested
        self.inputs = inputs or Inputs().of_data(config)
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
        """Read the list of a split as the files have it; of a lone held-out part as ``val`` and as ``test``."""
        raise NotImplementedError

    def _parts(self) -> tuple[Split, ...]:
        """Return which parts the files have."""
        raise NotImplementedError

    def _to_train_on(self, samples: SampleList) -> SampleList:
        """Return the samples of the training part that a network can learn from."""
        return samples

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
        lists = {"train": config.train_list, "val": config.val_list, "test": config.test_list}
        if any(lists.values()):
            lists |= {"val": lists["val"] or lists["test"], "test": lists["test"] or lists["val"]}
        if lists[split] is None and (config.format in _LIST_KINDS or any(lists.values())):
            raise DataError(f"data.{split}_list is needed: the list file of the {split} {self.noun}s")
        # the labels of a list are numbers, which no names can move
        classes = self.named_classes if self._classes and lists[split] is None else None
        num_classes = config.num_classes if split == "train" else len(self.named_classes)
        return {"list_file": lists[split], "classes": classes, "num_classes": num_classes}

    @cached_property
    def held_out(self) -> tuple[Split, ...]:
        """Which held-out parts there are: ``val``, ``test``, both, or none that can be told from the files.

        Raises ValueError where ``data.val_fraction`` or ``data.num_folds`` would leave one of them unread.
        """
        if self._part is not None:
            return ("test",)
        parts, given = self._own_held_out, divides(self.config)
        if given is None:
            return parts
        if len(parts) > 1:
            raise ValueError(f"{given} must be left out here: the data has a validation and a test part of its own")
        return ("val", "test") if parts else ("val",)

    @property
    def holds_fold_out(self) -> bool:
        """Whether tests see the samples of a fold."""
        return self.config.num_folds is not None and self.tested == "val"

    @cached_property
    def _own_held_out(self) -> tuple[Split, ...]:
        """The held-out parts that list files name, or else those of the files."""
        parts: tuple[Split, ...] = ("val", "test")
        listed = tuple(split for split in parts if getattr(self.config, f"{split}_list", None))
        return listed or tuple(split for split in self._parts() if split != "train")

    @cached_property
    def train_samples(self) -> SampleList:
        """The training samples, read on first use."""
        return self._read("train")

    @property
    def train_labels(self) -> list[int]:
        """The class of each training sample."""
        return [sample.label for sample in self.train_samples.samples]

    @cached_property
    def val_samples(self) -> SampleList:
        """The samples that choose the best checkpoint, read on first use; their classes are those of training."""
        return self._read("val") if "val" in self.held_out else self.test_samples

    @cached_property
    def test_samples(self) -> SampleList:
        """The samples for a test after training, read on first use; their classes are those of training."""
        return self.val_samples if self.held_out == ("val",) else self._read("test")

    @property
    def tested(self) -> Split:
        """The part that tests see: another than was asked for where there is only one."""
        return self._tested if self._tested in self.held_out else (*self.held_out, "test")[0]

    @property
    def tested_samples(self) -> SampleList:
        """The samples that tests see."""
        return self.val_samples if self.tested == "val" else self.test_samples

    def samples_of(self, split: Split) -> SampleList:
        """Return the training samples, or those that tests see."""
        return self.train_samples if split == "train" else self.tested_samples

    @cached_property
    def _training_part(self) -> tuple[SampleList, list[int], list[int]]:
        """The training samples of the files, the numbers of those to train on, and of those that are held out."""
        samples = self.listed("train")
        return samples, *parted(samples, self.config, self.noun)

    def listed(self, split: Split) -> SampleList:
        """Read the list of a split as the files have it, following links where the settings allow that."""
        with following_links(self.config.follow_links):
            return self._list(split)

    def _part_of(self, split: Split) -> SampleList:
        """Return the samples of a part; those held out by a fraction or as a fold are some of the training samples."""
        given = divides(self.config)
        if split == "test" and given and not self._own_held_out:
            split = "val"
        if not given or split == "test":
            samples = self.listed(split)
        else:
            whole, kept, held = self._training_part
            samples = replace(whole.select(held), missing=()) if split == "val" else whole.select(kept)
        return self._to_train_on(samples) if split == "train" else samples

    def _check_labels(self, samples: SampleList, split: Split) -> None:
        """Raise DataError where the folders of a list show that its labels are not those of training."""
        if split == "train" and self._classes is None:
            return
        expected = self.named_classes
        for label, name in enumerate(samples.classes):
            # the names of a list are those of its folders, where they tell the labels apart
            if name in expected and expected[label] != name and not name.isdecimal():
                raise DataError(
                    f"{samples.root}: in the {SPLIT_WORDS[split]} list, the files of label {label} lie in folders of "
                    f"the class {name}, whose label is {expected.index(name)} here; the labels must be those of "
                    "training"
                )

    def _read(self, split: Split) -> SampleList:
        source, numbers = self._part["test" if split == "val" else split] if self._part else (split, None)
        samples = self._part_of(source)
        if numbers is not None:
            samples = samples.select(numbers)
        if samples.kind in _LIST_KINDS:
            self._check_labels(samples, split)
        elif self._classes is not None:
            samples = samples.labelled_by(self.named_classes)
        folder = self.run if is_first_process() else None
        self._bad[split] = BadFiles(samples, folder, limit=self.config.bad_limit)
        if folder is not None and samples.missing:
            write_missing(folder, [samples])
        check_missing(samples, allowed_missing(samples.kind, self.config.missing_limit, self.config.bad_limit))
        return samples

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classifier's outputs: the classes in the order of the labels, then outputs that are no class.

        Raises ValueError where ``data.num_outputs`` is less than the number of classes, DataError for a single class.
        """
        if self._classes:
            return self._classes
        names = self._class_names()
        if len(names) < self.min_classes:
            raise DataError(
                f"{self.config.root} has one class ({', '.join(names)}), but a classifier needs {self.min_classes} or "
                "more"
            )
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
        return without_no_class(outputs)

    @property
    def normalisation(self) -> dict[str, tuple[float, ...]]:
        """Mean and standard deviation (of each channel, images in 0..1) that the network's input is normalised with."""
        return {"mean": self.inputs.mean, "std": self.inputs.std}

    def resume(self, epoch: int, batch: int) -> None:
        """Start training at a batch of an epoch (both from 0)."""
        self._resume_at = epoch, batch

    def names(self, indices: Sequence[int]) -> list[str]:
        """Return the paths of training samples by their numbers."""
        return [str(self.train_samples.samples[index].path) for index in indices]

    def on_after_batch_transfer(self, batch: Mapping[str, Any], dataloader_idx: int) -> Mapping[str, Any]:
        """Count the samples that could not be read; over the limit the run stops."""
        split = "train" if self._in_training else self.tested
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
        """Read all lists and make the data sets, to find mistakes (DataError, ValueError) at the beginning."""
        self._dataset("train", training=True)
        _ = self.classes  # too few are an error
        self._dataset(self.tested, training=False)
        assert self.test_samples.root  # read now, though training does not look at them

    @property
    def has_own_test(self) -> bool:
        """Whether the samples that choose the best checkpoint are others than those of a test after training."""
        return len(self.held_out) > 1

    def summary(self) -> str:
        """Return in a line how many samples and classes there are, what they are for, and what is left out."""
        lists: dict[Split, SampleList] = {
            "train": self.train_samples,
            "val": self.val_samples,
            "test": self.test_samples,
        }
        counts = {split: f"{len(samples)} {SPLIT_WORDS[split]}" for split, samples in lists.items()}
        classes = f"{self.noun}s of {len(self.named_classes)} classes"
        if self.has_own_test:
            words = f"{counts['train']}, {counts['val']} and {counts['test']} {classes}"
        elif self._part is not None or self._tested == "test":
            words = f"{counts['train']} and {counts['test']} {classes}"
        else:
            words = (
                f"{counts['train']} and {len(self.val_samples)} held-out {classes}; the held-out {self.noun}s choose "
                "best.ckpt and are also what cgnl evaluate reports"
            )
        missing = {path for samples in lists.values() for path in samples.missing}
        if missing:
            words += f"; missing files: {len(missing)}" + (f" (missing_files.csv in {self.run})" if self.run else "")
        if self._part is None and (absent := untrained(self.train_samples, self.config)):
            words += f"; all {self.noun}s of {', '.join(absent)} are held out"
        ignored = {path: reason for samples in lists.values() for path, reason in samples.ignored.items()}
        return "; ".join([words, *(f"ignored: {readable(str(path))} {reason}" for path, reason in ignored.items())])

    @cached_property
    def fingerprints(self) -> dict[str, torch.Tensor]:
        """The fingerprint of each split that was read, as a tensor of bytes; made on first use."""
        return {
            split: torch.frombuffer(bytearray(fingerprint(bad.samples)), dtype=torch.uint8)
            for split, bad in self._bad.items()
        }

    def changed_files(self, before: Mapping[str, torch.Tensor]) -> list[str]:
        """Say what differs from the files whose fingerprints a checkpoint holds, a few words for each split."""
        names = {str(label): name for label, name in enumerate(self.classes)} if self.samples_have_classes else {}
        found = []
        for split, words in SPLIT_WORDS.items():
            old, new = (bytes(each[split].numpy()) if split in each else b"" for each in (before, self.fingerprints))
            if differing := changes(old, new, names):
                found.append(f"{words} {self.noun}s: {', '.join(differing)}")
        return found

    def check_held_out(self, trained_on: Mapping[str, torch.Tensor] | None) -> None:
        """Raise DataError if samples that are held out by a setting are in the training list of these fingerprints."""
        if trained_on is not None and divides(self.config) is not None and self.tested == "val":
            check_not_trained_on(self.tested_samples, trained_on, self.config, self.noun)

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
            labels=self.train_labels if getattr(config, "balanced_sampler", False) else None,
            groups=self._groups(),
        )
        batches.resume(*self._resume_at)
        return self._loader(self._dataset("train", training=True), batches)

    def val_dataloader(self) -> DataLoader:
        """Return the samples that tests see, cut at the middle, each to one process only."""
        per_process = max(self.config.batch_size // (self._place()[1] * self.accumulate), 1)
        return self._loader(self._dataset(self.tested, training=False), self._test_batches(per_process))

    def predict_dataloader(self) -> DataLoader:
        """Return the samples that tests see as they are tested after training."""
        return self.val_dataloader()

    def tested_batches(self, split: Split) -> Iterator[Mapping[str, Any]]:
        """Yield the batches of a split in its order, cut as in a test; without a trainer."""
        samples = self.samples_of(split)
        batches = EpochBatches(len(samples.samples), self.config.batch_size, training=False)
        self._reading = split
        for batch in self._loader(self._dataset(split, training=False), batches):
            yield self.on_after_batch_transfer(batch, 0)
        self._reading = None

    def _test_batches(self, per_process: int) -> EpochBatches:
        rank, world_size = self._place()
        return EpochBatches(
            len(self.tested_samples.samples), per_process, training=False, rank=rank, world_size=world_size
        )

    def _loader(self, dataset: Dataset[Any], batches: EpochBatches) -> DataLoader:
        workers = self.config.workers
        return WatchedLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=self.collate,
            worker_init_fn=leave_signals_to_the_training_process,
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

    def _parts(self) -> tuple[Split, ...]:
        assert self.config.root is not None
        return image_parts(self.config.root.expanduser(), self.config.format)

    def _dataset(self, split: Split, *, training: bool) -> ImageDataset:
        config, samples = self.config, self.samples_of(split)
        options: dict[str, Any] = {**self.normalisation, "interpolation": self.inputs.interpolation}
        size, resize = config.pixels
        if not training:
            return ImageDataset(samples, test_transform(size, resize, **options), channels=config.channels)
        cut: dict[str, Any] = {"area": config.crop_area, "aspect": config.crop_aspect, "flip": config.flip}
        transform = train_transform(size, **cut, augment=config.augment, **options)
        return ImageDataset(samples, transform, channels=config.channels, seed=self.seed)


def without_no_class(outputs: Sequence[str]) -> tuple[str, ...]:
    """Return the names of outputs without those that name no class."""
    return tuple(name for name in outputs if not name.startswith(_NO_CLASS))
