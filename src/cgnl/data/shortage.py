"""Memory that runs out, in the many forms in which libraries report it, as one sentence. This imports no PyTorch."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
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


def _first_line(error: BaseException) -> str:
    # an error of a worker begins with the traceback there
    lines = [line for line in str(error).strip().splitlines() if any(text in line for text in _PHRASES)]
    return (lines or [type(error).__name__])[0].strip()[:200]
