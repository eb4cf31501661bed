"""The common part of data sets of files: reproducible records, bad files named, the file that each worker reads."""

import hashlib
import os
import random
import re
import struct
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from cgnl.data.decoding import BadFileError
from cgnl.data.lists import SampleList
from cgnl.settings.checks import MAX_WORKERS

_datasets: weakref.WeakSet["FileDataset"] = weakref.WeakSet()


class FileDataset(Dataset[dict[str, Any]], ABC):
    """Reads the files of a :class:`cgnl.data.lists.SampleList` into records; a subclass does the reading.

    A key is ``(epoch, index)``, or ``(epoch, index, n)`` where the sample has come n times before in the epoch, or an
    index alone for epoch 0. Whatever is drawn from torch's or Python's global random generator on the CPU while a file
    is read is a function of seed and key alone: the same in any order, in any worker and after a resume. Both
    generators are left as they were.
    """

    def __init__(self, samples: SampleList, *, seed: int = 0) -> None:
        self.seed = seed
        # Arrays instead of the samples themselves: reading Python objects in a forked worker changes their
        # reference counts, and so copies the pages that hold them into each worker.
        self._paths = np.array([os.fsencode(sample.path) for sample in samples.samples])
        self._labels = np.array([sample.label for sample in samples.samples], dtype=np.int64)
        # What each worker reads: its process id and the sample's number. In shared memory, so that the sample
        # that killed a worker can still be named.
        # Written to outside of inference mode as well, in which a trainer may make the data set.
        with torch.inference_mode(False):
            self._in_flight = torch.full((MAX_WORKERS, 2), -1, dtype=torch.int64).share_memory_()
        _datasets.add(self)

    @abstractmethod
    def read(self, index: int) -> dict[str, Any]:
        """Return the fields of a sample's record besides ``label`` and ``index``.

        Raises:
            BadFileError: The file cannot be read.
        """

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._labels)

    def path(self, index: int) -> Path:
        """Return the file of a sample."""
        return Path(os.fsdecode(self._paths[index]))

    def reading(self, pid: int | None) -> Path | None:
        """Return the file that a worker is reading, by its process id, or None."""
        rows = [index for process, index in self._in_flight.tolist() if process == pid and index >= 0]
        return self.path(rows[0]) if rows else None

    def __getitem__(self, key: int | tuple[int, ...]) -> dict[str, Any]:
        """Read one sample by its key: ``label``, ``index`` and what was read.

        If the file cannot be read, ``image`` is None, and ``path`` and ``error`` tell which and why.
        """
        epoch, index, *again = key if isinstance(key, tuple) else (0, key)
        record = {"label": int(self._labels[index]), "index": index}
        worker = get_worker_info()
        if worker is not None:
            self._in_flight[worker.id % MAX_WORKERS] = torch.tensor([os.getpid(), index])
        try:
            with _random_state_of(self.seed, epoch, index, *again):
                return {**self.read(index), **record}
        except BadFileError as error:
            return {"image": None, **record, "path": error.path, "error": error.reason}
        finally:
            if worker is not None:
                self._in_flight[worker.id % MAX_WORKERS, 1] = -1


def describe_in_flight(error: BaseException | None = None) -> str:
    """Return a sentence on the files that the data loaders' workers are reading, or were when they died, each once.

    If the data loader's ``error`` names dead processes, only their files are given.
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


def sort_out(records: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the records that could be read, B of them, and the beginning of their batch.

    It holds ``label`` [B], ``index`` [B] and ``bad``, a list of (index, path, reason) of the other records.
    """
    good = [record for record in records if "error" not in record]
    return good, {
        "label": torch.tensor([record["label"] for record in good], dtype=torch.int64),
        "index": torch.tensor([record["index"] for record in good], dtype=torch.int64),
        "bad": [(record["index"], record["path"], record["error"]) for record in records if "error" in record],
    }
