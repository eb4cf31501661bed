"""A data loader that never waits for ever for its workers, the processes that read samples."""

import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data import _utils as torch_utils
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from cgnl.data.decoding import STOPPING, DataError
from cgnl.data.records import FileDataset
from cgnl.training.processes import LACK_OF_MEMORY

_TICK = 0.25
_NAMED = 4
_DIED = "a process that reads samples died or hangs"


class WatchedLoader(DataLoader[Any]):
    """A data loader of a :class:`cgnl.data.records.FileDataset` whose ``timeout`` holds whatever a worker does.

    PyTorch waits without a limit for a worker that is stopped, or holds Python's lock, while it sends its tensors. Here
    a thread kills the workers after ``timeout`` seconds in which no batch came, and the loader raises DataError with
    the files that the hanging one had. Seconds in which this process is stopped itself do not count.

    It raises DataError for a worker that dies, too, and nowhere but in the wait for a batch. PyTorch raises an error as
    soon as the worker dies, wherever this process is: in a write of a checkpoint, or where nobody hears of it.
    """

    def _get_iterator(self) -> _BaseDataLoaderIter:
        return _WatchedIterator(self) if self.num_workers and self.timeout else super()._get_iterator()


class _WatchedIterator(_MultiProcessingDataLoaderIter):
    def __init__(self, loader: WatchedLoader) -> None:
        self._watch = _Watch(loader.dataset, loader.timeout)  # type: ignore[arg-type]
        self._keys: Any = ()
        super().__init__(loader)
        # the watch alone decides
        self._timeout = 0
        self._forget_workers()
        self._watch.workers = self._workers
        # a copy: the number of a closed one may soon be that of another file
        queue: Any = self._worker_result_queue
        self._watch.pipe = os.dup(queue._writer.fileno())
        threading.Thread(target=self._watch.run, daemon=True).start()

    def _next_index(self) -> Any:
        self._keys = super()._next_index()
        return self._keys

    def _try_put_index(self) -> None:
        task = self._send_idx
        super()._try_put_index()
        if self._send_idx > task:
            self._watch.tasks[task] = self._task_info[task][0], self._keys

    def _get_data(self) -> Any:
        watch = self._watch
        watch.turn += 1
        try:
            found = super()._get_data()
        except Exception as error:  # the end of a worker shows in many forms
            if watch.verdict is None:
                # the watch has not looked yet, or the connection ended before the process
                watch.verdict = watch.death(seconds=_TICK)
            if watch.verdict is None:
                raise
            self._give_up()
            raise DataError(watch.verdict) from error
        finally:
            watch.turn += 1
        watch.tasks.pop(found[0], None)
        return found

    def _give_up(self) -> None:
        """Take the place of PyTorch's own end, which waits for what a killed worker has left half done."""
        self._shutdown = True
        self._watch.closed.set()
        if self._pin_memory:
            self._pin_memory_thread_done_event.set()
        for worker in self._workers:
            worker.kill()
            worker.join()

    def _forget_workers(self) -> None:
        """Let the death of a worker be no error any more."""
        for _ in range(2):
            # a death may be reported while this runs, once; a loader that is forgotten is unknown
            with suppress(RuntimeError, ValueError):
                torch_utils.signal_handling._remove_worker_pids(id(self))
        self._worker_pids_set = False

    def _shutdown_workers(self) -> None:
        self._watch.closed.set()
        if any(_is_stopped(worker.pid) for worker in self._workers):
            for worker in self._workers:
                worker.kill()
        super()._shutdown_workers()
        for worker in self._workers:
            if worker.is_alive():  # Python would wait for it when this process ends
                worker.kill()


class _Watch:
    """Watches the waiting for one loader's workers, in a thread of its own.

    Attributes:
        workers: The processes.
        pipe: A file that writes to where the batches come from.
        tasks: The batches that are owed: their numbers, in order, with the worker's number and the samples' keys.
        turn: Odd while a batch is waited for; every wait has a number of its own.
        verdict: Why the workers were killed; None as long as they were not.
        closed: Set when there is nothing to watch any more.
    """

    def __init__(self, dataset: FileDataset, patience: float) -> None:
        self.dataset, self.patience = dataset, patience
        self.workers: Sequence[BaseProcess] = ()
        self.pipe = -1
        self.tasks: dict[Any, tuple[int, Sequence[int | tuple[int, int]]]] = {}
        self.turn = 0
        self.verdict: str | None = None
        self.closed = threading.Event()

    def run(self) -> None:
        """Count the seconds of each wait, and end the workers when they are too many or one of them is dead."""
        try:
            self._watch()
        finally:
            os.close(self.pipe)

    def _watch(self) -> None:
        turn, waited, before = 0, 0.0, time.monotonic()
        while not self.closed.wait(_TICK):
            now = time.monotonic()
            # more than a tick passes where this process was stopped too, with its workers
            waited = waited + min(now - before, 2 * _TICK) if self.turn == turn and turn % 2 else 0.0
            turn, before = self.turn, now
            death = self.death() if waited else None
            if death or waited > self.patience:
                try:
                    self.verdict = death or self._reason()
                finally:
                    for worker in self.workers:
                        worker.kill()
                    self._wake(turn)
                return

    def death(self, seconds: float = 0) -> str | None:
        """Return why there is no waiting for a batch any more: a worker that has died, or does so soon."""
        ended = wait([worker.sentinel for worker in self.workers], seconds)
        for worker in self.workers:
            if worker.sentinel in ended:
                worker.join()
                path = self.dataset.reading(worker.pid)
                what = f"The file being read: {path}." if path else "No file was being read."
                return f"{_DIED}: DataLoader worker (pid {worker.pid}) {_end_in_words(worker.exitcode or 0)}. {what}"
        return None

    def _wake(self, turn: int) -> None:
        """End a wait for the rest of a message whose sender is dead: any bytes do, as nobody takes it for a batch."""
        os.set_blocking(self.pipe, False)
        while self.turn == turn and not self.closed.is_set():
            try:
                os.write(self.pipe, bytes(1 << 16))
            except BlockingIOError:
                time.sleep(_TICK / 10)

    def _reason(self) -> str:
        stopped = [number for number, worker in enumerate(self.workers) if _is_stopped(worker.pid)]
        tasks = dict(self.tasks)
        owing = list(dict.fromkeys(number for _, (number, _) in sorted(tasks.items(), key=lambda task: task[0])))
        reading = {number: self.dataset.reading(self.workers[number].pid) for number in stopped or owing}
        files = [path for path in reading.values() if path is not None]
        what = f"The file being read: {', '.join(map(str, files))}."
        if not files:
            # it has read its batch, and hangs before or while it sends it; the first one that owes is waited for
            hanging = stopped or owing[:1]
            keys = next((keys for number, keys in tasks.values() if number in hanging), ())
            indices = [key[1] if isinstance(key, tuple) else key for key in keys[:_NAMED]]
            paths = [str(self.dataset.path(index)) for index in indices]
            more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
            what = f"Its batch: {', '.join(paths)}{more}." if paths else "No file was being read."
        how = "it is stopped (SIGSTOP)" if stopped else "raise data.timeout if it is only slow"
        return f"{_DIED}: no batch came for {self.patience:g} seconds (data.timeout); {how}. {what}"


def _end_in_words(code: int) -> str:
    """Return how a worker ended, by its exit code: below 0 the signal."""
    if code >= 0:
        return f"ended with exit code {code}"
    words = f"is killed by signal: {signal.strsignal(-code)}"
    if -code == signal.SIGKILL:
        return f"{words}; {LACK_OF_MEMORY}"
    return words + "; shared memory (/dev/shm) may be full" * (-code == signal.SIGBUS)


def _is_stopped(pid: int | None) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it is gone, or this is no Linux
        return False
    return stat.rpartition(")")[2].split()[0] in ("T", "t")


def leave_signals_to_the_training_process(worker: int) -> None:
    """Ignore the signals that stop a run, in a worker.

    Ctrl-C and a job's end reach every process; the training process decides when its readers end.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
