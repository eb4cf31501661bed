"""Memory and disk space that run out, in the many forms in which libraries report it, as one sentence.

This imports no PyTorch.
"""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cgnl.data.decoding import DataError

# of PyTorch's allocators, its shared memory, oneDNN, C++, and Python's threads and processes
_PHRASES = (
    "can't allocate memory",
    "Cannot allocate memory",
    "out of memory",
    "could not create a primitive",
    "could not create a memory",
    "bad_alloc",
    "can't start new thread",
    "Unable to allocate",
    "failed to map segment",
)


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, or the processes and threads that the system allows."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOMEM, errno.EAGAIN)
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, (RuntimeError, OSError, ImportError)) and any(text in str(error) for text in _PHRASES)


@contextmanager
def reporting_lack_of_memory(data: Any) -> Iterator[None]:
    """Raise DataError with what to lower where memory runs out; ``data`` are a recipe's settings of the data."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        if not lacks_memory(error):
            raise
        size = f"data.size {data.size}, data.batch_size {data.batch_size}, data.workers {data.workers}"
        frames = getattr(data, "num_frames", None)
        size += f", data.num_frames {frames}" if frames else ""
        raise DataError(
            f"memory ran out with {size}: lower one of them, or raise trainer.accumulate, which computes a batch in "
            f"parts ({_first_line(error)})"
        ) from error


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error says that a disk, a quota or a file's limit is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def reporting_full_disk(run: Path) -> Iterator[None]:
    """Raise DataError where the disk of a run's folder is full: before it resumes, or as soon as a write fails."""
    last = run / "last.ckpt"
    free, needed = (shutil.disk_usage(run).free, last.stat().st_size) if last.exists() else (0, 0)
    if free < needed:
        raise DataError(
            f"the disk of {run} has {free / 1e6:.1f} MB free, but a checkpoint takes {needed / 1e6:.1f} MB beside the "
            "earlier one: free some space. last.ckpt is whole"
        )
    try:
        yield
    except OSError as error:
        if not is_disk_full(error) or error.filename is not None:
            raise
        raise DataError(f"the disk of {run} is full ({error.strerror}); the checkpoints in it are whole") from error


def _first_line(error: BaseException) -> str:
    # an error of a worker begins with the traceback there
    lines = [line for line in str(error).strip().splitlines() if any(text in line for text in _PHRASES)]
    return (lines or [type(error).__name__])[0].strip()[:200]
