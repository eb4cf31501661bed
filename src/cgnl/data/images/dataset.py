"""Reading images into batches: reproducible, and open about what cannot be read.

Shapes: B batch, H height, W width.
"""

import hashlib
import os
import random
import re
import struct
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, get_worker_info

from cgnl.data.decoding import BadFileError, open_image
from cgnl.data.lists import SampleList

_MAX_WORKERS = 256


_datasets: weakref.WeakSet["ImageDataset"] = weakref.WeakSet()


class ImageDataset(Dataset[dict[str, Any]]):
    """Reads, transforms and labels the images of a :class:`cgnl.data.lists.SampleList`.

    A key is ``(epoch, index)``, or an index alone for epoch 0. Whatever the transform draws from torch's or
    Python's global random generator on the CPU is a function of seed, epoch and index alone: the same in any
    order, in any worker and after a resume. Both generators are left as they were.

    Args:
        images: what to read.
        transform: from an upright RGB image to a tensor [3, H, W].
        seed: of the random draws.

    Example:
        >>> from cgnl.data.lists import Sample
        >>> images = SampleList(Path("."), (Sample(Path("no.jpg"), 3),), tuple("abcd"), "list")
        >>> ImageDataset(images, transform=list)[0]
        {'image': None, 'label': 3, 'index': 0, 'path': PosixPath('no.jpg'), 'error': 'does not exist'}
    """

    def __init__(self, images: SampleList, transform: Callable[[Image.Image], Any], *, seed: int = 0) -> None:
        self.transform = transform
        self.seed = seed
        # Arrays instead of the samples themselves: reading Python objects in a forked worker changes their
        # reference counts, and so copies the pages that hold them into each worker.
        self._paths = np.array([os.fsencode(sample.path) for sample in images.samples])
        self._labels = np.array([sample.label for sample in images.samples], dtype=np.int64)
        # What each worker reads: its process id and the sample's number. In shared memory, so that the sample
        # that killed a worker can still be named.
        self._in_flight = torch.full((_MAX_WORKERS, 2), -1, dtype=torch.int64).share_memory_()
        _datasets.add(self)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._labels)

    def path(self, index: int) -> Path:
        """Return the file of a sample."""
        return Path(os.fsdecode(self._paths[index]))

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Read one sample.

        Args:
            key: ``(epoch, index)`` or ``index``.

        Returns:
            ``image`` [3, H, W], ``label`` and ``index``; if the file cannot be read, ``image`` is None, and
            ``path`` and ``error`` tell which and why.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        record = {"image": None, "label": int(self._labels[index]), "index": index}
        worker = get_worker_info()
        if worker is not None:
            self._in_flight[worker.id % _MAX_WORKERS] = torch.tensor([os.getpid(), index])
        try:
            image = open_image(self.path(index))
        except BadFileError as error:
            return {**record, "path": error.path, "error": error.reason}
        else:
            with _random_state_of(self.seed, epoch, index):
                record["image"] = self.transform(image)
            return record
        finally:
            if worker is not None:
                self._in_flight[worker.id % _MAX_WORKERS, 1] = -1


def describe_in_flight(error: BaseException | None = None) -> str:
    """Say which image files the data loaders' workers are reading, or were when they died; each is told once.

    Args:
        error: what the data loader raised; if it names dead processes, only their files are given.

    Returns:
        One sentence.
    """
    dead = {int(number) for pids in re.findall(r"pid(?:\(s\))? ([0-9, ]+)", str(error)) for number in pids.split(",")}
    reading = [
        (pid, dataset.path(index)) for dataset in _datasets for pid, index in dataset._in_flight.tolist() if index >= 0
    ]
    for dataset in _datasets:
        dataset._in_flight.fill_(-1)  # or a later failure in the same process would be told with this one
    paths = [path for pid, path in reading if pid in dead] or [path for _, path in reading]
    return f"The file being read: {', '.join(map(str, paths))}." if paths else "No file was being read."


@contextmanager
def _random_state_of(*numbers: int) -> Iterator[None]:
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    seed = int.from_bytes(digest, "little")
    # The CPU generator alone: torch.manual_seed would reset those of all GPUs too.
    generator, python_state = torch.default_generator, random.getstate()
    torch_state = generator.get_state()
    generator.manual_seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        generator.set_state(torch_state)
        random.setstate(python_state)


def collate(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch of the samples that could be read, and list the others.

    Args:
        records: samples of :class:`ImageDataset`.

    Returns:
        ``image`` [B, 3, H, W], ``label`` [B], ``index`` [B], and ``bad``, a list of (index, path, reason). If
        no sample could be read, B is 0, and so are H and W.
    """
    good = [record for record in records if record["image"] is not None]
    return {
        "image": torch.stack([record["image"] for record in good]) if good else torch.empty(0, 3, 0, 0),
        "label": torch.tensor([record["label"] for record in good], dtype=torch.int64),
        "index": torch.tensor([record["index"] for record in good], dtype=torch.int64),
        "bad": [(record["index"], record["path"], record["error"]) for record in records if record["image"] is None],
    }
