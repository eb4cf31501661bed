"""The Lightning data module of images: read, cut, batched, and resumable in the middle of an epoch."""

import signal
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from cgnl.data.decoding import DataError
from cgnl.data.images import ImageDataset, collate, read_images
from cgnl.data.lists import BadFiles, SampleList, check_missing, write_missing
from cgnl.data.transforms import IMAGENET_MEAN, IMAGENET_STD, test_transform, train_transform
from cgnl.training.processes import gathered, is_first_process
from cgnl.training.recipe import DataConfig
from cgnl.training.sampling import EpochBatches


class ImageData(pl.LightningDataModule):
    """Training and test images of a recipe.

    Args:
        config: Where the images are, how they are cut, and how many go into one step.
        seed: Seed of the order and of the random crops.
        accumulate: Parts that a batch is computed in.
        run: Folder in which missing and bad files are listed; None lists them nowhere.
        classes: Names of the classes that the test images must have; by default those of the training images.

    Raises:
        DataError: Anything wrong with the data set; nothing is trained then.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        seed: int = 0,
        accumulate: int = 1,
        run: Path | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if config.root is None:
            raise ValueError("data.root is needed: the folder with the images")
        self.config, self.seed, self.accumulate, self.run = config, seed, accumulate, run
        self._classes = tuple(classes) if classes is not None else None
        self._resume_at = (0, 0)
        self._bad: dict[str, BadFiles] = {}
        self._unshared: list[tuple[str, tuple[int, Path, str]]] = []

    @cached_property
    def train_images(self) -> SampleList:
        """The training images, read on first use."""
        return self._read("train", self.config.train_list, self.config.num_classes)

    @cached_property
    def test_images(self) -> SampleList:
        """The test images, read on first use; their classes must be those of the training images."""
        images = self._read("test", self.config.test_list, len(self.classes))
        if images.kind != "list" and images.classes != self.classes:
            new = [name for name in images.classes if name not in self.classes]
            gone = [name for name in self.classes if name not in images.classes]
            lists = [
                f"{what}: {', '.join(names[:5])}" for what, names in (("not expected", new), ("lacking", gone)) if names
            ]
            raise DataError(
                f"{images.root} has other classes than expected; {'; '.join(lists) or 'their order differs'}"
            )
        return images

    def _read(self, split: Literal["train", "test"], list_file: Path | None, num_classes: int | None) -> SampleList:
        assert self.config.root is not None
        if list_file is None and "list" in (self.config.format, self._kind):
            raise DataError(f"data.{split}_list is needed: the list file of the {split} images")
        images = read_images(
            self.config.root,
            split,
            format=self.config.format,
            list_file=list_file,
            num_classes=num_classes,
            missing_limit=1.0,
        )
        folder = self.run if is_first_process() else None
        self._bad[split] = BadFiles(images, folder, limit=self.config.bad_limit)
        if folder is not None and images.missing:
            folder.mkdir(parents=True, exist_ok=True)
            write_missing(folder, [images])
        check_missing(images, self.config.bad_limit)
        return images

    @property
    def _kind(self) -> str:
        return "list" if self.config.train_list or self.config.test_list else self.config.format

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return self._classes or self.train_images.classes

    @property
    def normalisation(self) -> dict[str, tuple[float, float, float]]:
        """Mean and standard deviation (RGB, images in 0..1) that the network's input is normalised with."""
        return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}

    def resume(self, epoch: int, batch: int) -> None:
        """Start training at a batch of an epoch (both from 0)."""
        self._resume_at = epoch, batch

    def names(self, indices: Sequence[int]) -> list[str]:
        """Return the paths of training samples by their numbers."""
        return [str(self.train_images.samples[index].path) for index in indices]

    def on_after_batch_transfer(self, batch: Mapping[str, Any], dataloader_idx: int) -> Mapping[str, Any]:
        """Count what could not be read; over the limit the run stops."""
        split = "train" if self.trainer is not None and self.trainer.training else "test"
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
    def bad_count(self) -> int:
        """Number of different images that could not be read so far."""
        return sum(map(len, self._bad.values()))

    def check(self) -> None:
        """Read both lists and make both transforms, so that what is wrong with them shows before anything is built.

        Raises:
            DataError: Something is wrong with the data set.
            ValueError: A size does not fit.
        """
        _ = self.train_images, self.test_images
        self._transform(training=True)
        self._transform(training=False)

    def summary(self) -> str:
        """Return what there is, in a line."""
        missing = len(self.train_images.missing) + len(self.test_images.missing)
        return (
            f"{len(self.train_images)} training and {len(self.test_images)} test images of {len(self.classes)} classes"
            + (f"; missing files: {missing}" + (f" (missing_files.csv in {self.run})" if self.run else ""))
            * bool(missing)
        )

    def _transform(self, *, training: bool) -> Any:
        config = self.config
        if not training:
            return test_transform(config.size, config.resize, **self.normalisation)
        return train_transform(
            config.size, area=config.crop_area, aspect=config.crop_aspect, flip=config.flip, **self.normalisation
        )

    def train_dataloader(self) -> DataLoader:
        """Return the shuffled, randomly cut training images."""
        config, (rank, world_size) = self.config, self._place()
        parts = world_size * self.accumulate
        if config.batch_size % parts:
            raise ValueError(
                f"data.batch_size ({config.batch_size}) must be divisible by processes x trainer.accumulate ({parts})"
            )
        batches = EpochBatches(
            len(self.train_images.samples),
            config.batch_size // parts,
            training=True,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            parts=self.accumulate,
        )
        batches.resume(*self._resume_at)
        return self._loader(ImageDataset(self.train_images, self._transform(training=True), seed=self.seed), batches)

    def val_dataloader(self) -> DataLoader:
        """Return the test images, cut at the centre, each to one process only."""
        config, (rank, world_size) = self.config, self._place()
        per_process = max(config.batch_size // (world_size * self.accumulate), 1)
        batches = EpochBatches(
            len(self.test_images.samples), per_process, training=False, rank=rank, world_size=world_size
        )
        return self._loader(ImageDataset(self.test_images, self._transform(training=False)), batches)

    predict_dataloader = val_dataloader

    def _loader(self, dataset: ImageDataset, batches: EpochBatches) -> DataLoader:
        workers = self.config.workers
        return DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=collate,
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


def _leave_signals_to_the_training_process(worker: int) -> None:
    # Ctrl-C and a job's end reach every process; the training process decides when its readers end
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
