"""The processes of a run: which of them writes, that no other run does, how they end, and readers that die.

Nothing here imports PyTorch before it is needed, so that the command line can.
"""

import errno
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cgnl.data.decoding import DataError
from cgnl.files import lock_file, make_folders

LACK_OF_MEMORY = (
    "the system kills processes when memory runs out: lower data.workers, data.batch_size or data.size if it did"
)


class TrainingStopped(Exception):
    """The run was asked to stop by a signal and has saved its state.

    Attributes:
        signal_number: The signal.
        step: Optimizer steps taken.
    """

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name} after step {step}")
        self.signal_number, self.step = signal_number, step


class StoppedAtOnce(KeyboardInterrupt):
    """A second signal while the run was stopping; nothing more was saved.

    Attributes:
        signal_number: The signal.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped at once by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


def is_first_process() -> bool:
    """Return whether this is the process that writes and prints, under torchrun and SLURM too."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", 0)))) == 0


@contextmanager
def locked(folder: Path, *, inside: bool = True) -> Iterator[None]:
    """Keep a folder for this process; ValueError if another one keeps it.

    It is free again when this process ends, however it ends, since the lock is an open file: ``.lock`` in the folder,
    which is made if need be; or else, not ``inside``, one for this machine alone. Where the file system knows no locks,
    nothing is locked.
    """
    from filelock import FileLock, Timeout

    if inside:
        make_folders(folder)
    path = folder / ".lock" if inside else lock_file(folder)
    owner = ""
    with suppress(OSError):  # there is none yet, or Windows lets nobody read what is locked
        owner = path.read_text(errors="replace").strip()
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{owner or 'another process'} is writing into {folder}: wait until it ends, stop it, or choose another "
            "folder"
        ) from None
    except OSError as error:
        # a lock of this machine may be another user's
        if inside and error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    try:
        # for the message alone: a full disk leaves the file empty
        with suppress(OSError):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        lock.release()


def gathered(value: Any) -> list[Any]:
    """Return the value of every process; with one process, its own."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def end_together() -> None:
    """Wait for the other processes and leave the group: one that ends first makes the others' last messages fail."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a KeyboardInterrupt through, for which Lightning ends the process with code 1 and without a word."""
    try:
        yield
    except SystemExit as ended:
        if isinstance(ended.__context__, KeyboardInterrupt):
            raise ended.__context__ from None
        raise


@contextmanager
def reporting_dead_readers() -> Iterator[None]:
    """Turn the death or the hanging of a process that reads samples into a DataError that names its file."""
    before = set(multiprocessing.active_children())
    try:
        yield
    except RuntimeError as error:
        if not any(text in str(error) for text in ("DataLoader worker (pid", "DataLoader timed out")):
            raise
        from cgnl.data.records import describe_in_flight

        reason = str(error).rstrip(". ")
        # SIGKILL, by its name in PyTorch's message
        if "signal: Killed" in reason or "exited unexpectedly" in reason:
            reason += f"; {LACK_OF_MEMORY}"
        raise DataError(f"a process that reads samples died or hangs: {reason}. {describe_in_flight(error)}") from error
    finally:
        # what went wrong may have left a reader that hangs, and it would be waited for when this process ends
        if sys.exc_info()[0] is not None:
            for reader in set(multiprocessing.active_children()) - before:
                reader.kill()
