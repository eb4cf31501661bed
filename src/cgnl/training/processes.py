"""The processes of a run: which of them writes, how they end together, and what becomes of readers that die.

Nothing here imports PyTorch before it is needed, so that the command line can.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cgnl.data.decoding import DataError

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


def is_first_process() -> bool:
    """Return whether this is the process that writes and prints, under torchrun and SLURM too."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", 0)))) == 0


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
