"""Many files through processes of their own, whatever those files do to a decoder.

``concurrent.futures`` gives up as a whole when one process dies, and waits for ever for one that hangs. Here a file
that crashes its process or holds it too long is named, and a new process goes on with the next file. The processes
import this module, so it imports no torch.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar

from cgnl.data.decoding import BadFileError, DataError, death_in_words
from cgnl.settings.checks import MAX_WORKERS, within

T = TypeVar("T")
_START_SECONDS = 120.0


@dataclass(frozen=True)
class Scanned(Generic[T]):
    """Outcome for one file: the function's result, or its error, as the rest of a sentence after the path.

    ``answered`` is False if the process died or took too long, so that the function itself said nothing.
    """

    path: Path
    value: T | None
    error: str | None
    answered: bool = True


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    path: Path | None = None
    deadline: float = float("inf")

    def give(self, path: Path | None, timeout: float) -> None:
        self.path = path
        self.deadline = float("inf") if path is None else time.monotonic() + timeout
        if path is not None:
            self.connection.send(path)

    def death(self) -> Scanned[Any]:
        self.process.join()
        code = self.process.exitcode or 0
        how = death_in_words(code)
        self.connection.close()
        if self.path is None:
            raise RuntimeError(f"a process that reads files ended before it got one ({how})")
        return Scanned(self.path, None, f"ends the process that decodes it ({how})", answered=False)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class Scanning(TypedDict, total=False):
    """How a check scans files.

    Attributes:
        workers: Number of processes; by default one for each core.
        timeout: Seconds that one file may take.
        progress: Whether a progress bar is shown on the standard error output.
    """

    workers: int | None
    timeout: float
    progress: bool


def count_workers(workers: int | None) -> int:
    """Return the number of processes to use: as many as there are usable cores if None; ValueError unless 1 to 256."""
    # two checks, because each bound has a sentence of its own
    within("workers", workers, 1)
    within("workers", workers, 1, MAX_WORKERS)
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return workers


def scan(
    function: Callable[[Path], T], paths: Sequence[Path], *, workers: int | None = None, timeout: float = 60.0
) -> Iterator[Scanned[T]]:
    """Call a function, importable by name, on each file in several processes (by default one for each core).

    It may raise :class:`cgnl.data.decoding.BadFileError`, and has ``timeout`` seconds for a file. The outcomes come in
    the order in which they are done. Raises ValueError for fewer than one worker or a timeout that is not positive, and
    RuntimeError or DataError where the processes do not start.
    """
    workers = count_workers(workers)
    if timeout <= 0:
        raise ValueError(f"timeout ({timeout}) must be above 0 seconds")
    waiting = list(reversed(paths))
    pool: list[_Worker] = []
    try:
        while waiting or any(worker.path for worker in pool):
            busy = sum(worker.path is not None for worker in pool)
            while len(pool) < min(workers, len(waiting) + busy):
                pool.append(_start(function))
            left = min(worker.deadline for worker in pool) - time.monotonic()
            ready = wait([worker.connection for worker in pool], min(max(left, 0), 3600))
            for worker in list(pool):
                if worker.connection in ready:
                    try:
                        message = worker.connection.recv()
                    except (EOFError, OSError):
                        pool.remove(worker)
                        yield worker.death()
                        continue
                    if worker.path is not None:
                        yield Scanned(worker.path, *message)
                    worker.give(waiting.pop() if waiting else None, timeout)
                elif time.monotonic() >= worker.deadline and worker.path is None:
                    raise DataError(f"a process that reads files did not start in {_START_SECONDS:g} seconds")
                elif time.monotonic() >= worker.deadline and worker.path is not None:
                    pool.remove(worker)
                    worker.stop()
                    error = f"takes longer than {timeout:g} second{'s' * (timeout != 1)} to decode"
                    yield Scanned(worker.path, None, error, answered=False)
    finally:
        for worker in pool:
            worker.stop()


def scan_with_bar(
    function: Callable[[Path], T],
    paths: Sequence[Path],
    description: str,
    *,
    workers: int | None = None,
    timeout: float = 60.0,
    progress: bool = True,
) -> Iterator[Scanned[T]]:
    """Call :func:`scan` behind a progress bar on the standard error output, with ``description`` in front of it."""
    with progress_bar(description, len(paths), progress=progress) as advance:
        bad = 0
        for result in scan(function, paths, workers=workers, timeout=timeout):
            bad += result.error is not None
            advance(1, f"{description}, {bad} bad")
            yield result


@contextmanager
def progress_bar(description: str, total: int, *, progress: bool) -> Iterator[Callable[..., None]]:
    """Show a bar on the standard error output, if ``progress``; yields what takes a number done and new words."""
    # Imported here, as the processes that read files import this module and show nothing.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task(description, total=total)

        def advance(done: int, words: str | None = None) -> None:
            bar.update(task, advance=done, description=words)

        yield advance


def _start(function: Callable[[Path], T]) -> _Worker:
    # A fork would copy locks that the parent's threads (progress bar, PyTorch) hold at that moment.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours, deadline=time.monotonic() + _START_SECONDS)


def _serve(connection: Connection, function: Callable[[Path], T]) -> None:
    """Answer each path with (value, error), after a first message that says the process is ready."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent too, which ends this process
    connection.send(None)
    while True:
        try:
            path = connection.recv()
        except EOFError:
            return
        try:
            connection.send((function(path), None))
        except BadFileError as error:
            # The path may be a folder, and the error that of a file in it.
            reason = error.reason if error.path == path else f"holds a bad file: {error}"
            connection.send((None, reason))
