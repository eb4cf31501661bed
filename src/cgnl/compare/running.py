"""Running a comparison: what is missing of its runs, in processes, each written down once it is finished."""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import cache, partial
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch

from cgnl.compare.maps import Features, cached
from cgnl.compare.plan import Protocol, Trial, best_of, planned, tuning
from cgnl.compare.report import read_runs
from cgnl.compare.trials import run_on_maps, run_whole
from cgnl.files import append_lines, json_text
from cgnl.settings.reading import from_dict
from cgnl.settings.trust import trusted_names, trusting

# What a worker trusts, for as long as it lives.
_trust = ExitStack()
_FIELDS = ("block", "seed", "length", "epochs", "rate", "block_rate_factor")


def run(
    protocol: Protocol, folder: Path, *, jobs: int = 1, minutes: float | None = None, say: Callable[[str], None]
) -> bool:
    """Run what ``runs.jsonl`` of a folder does not hold yet.

    Args:
        protocol: What to run.
        folder: The comparison's folder.
        jobs: Processes that run at once; each takes a GPU of its own, where there are several.
        minutes: No run starts that is not likely to end in so many minutes; None for no limit.
        say: Takes a line for people.

    Returns:
        Whether every run is finished.
    """
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    if protocol.frozen:
        # before the processes start, so that it is done once
        cached(from_dict(protocol.recipe, "protocol.json"), folder, say)
    todo = _Work(protocol, folder, jobs, deadline, say)
    tuned: dict[str, Any] = {}
    if protocol.factors:
        for block in ("none", *(label for label in protocol.blocks if label != "none")):
            trials = tuning(protocol, block, tuned["none"]["rate"] if block != "none" else None)
            if not todo.do(trials):
                return False
            own = [row for row in rows_of(folder) if row["length"] == "tuning" and row["block"] == block]
            tuned[block] = best_of(own, protocol.epochs)
            best = tuned[block]
            say(
                f"{block}: rate {best['rate']:g}, factor of the block's rate {best['factor']:g}, "
                f"best length {best['own'][0]} epochs"
            )
    return todo.do(planned(protocol, tuned))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return the finished runs of a folder; a last line that a kill has cut is left out."""
    return [dict(row) for row in read_runs(folder / "runs.jsonl")[0]]


class _Work:
    def __init__(
        self, protocol: Protocol, folder: Path, jobs: int, deadline: float | None, say: Callable[[str], None]
    ) -> None:
        self.protocol, self.folder, self.jobs, self.deadline, self.say = protocol, folder, jobs, deadline, say

    def do(self, trials: Sequence[Trial]) -> bool:
        """Run those that are missing; return whether all are finished then."""
        done = {tuple(row[name] for name in _FIELDS) for row in rows_of(self.folder)}
        missing = [trial for trial in trials if trial.key not in done]
        for number, row in enumerate(self._results(missing), start=len(trials) - len(missing) + 1):
            append_lines(self.folder / "runs.jsonl", json_text(row, ensure_ascii=False) + "\n")
            self.say(
                f"{number}/{len(trials)}  {row['block']}  seed {row['seed']}  {row['epochs']} epochs  "
                f"top-1 {row['top1']:.2f} %  {row['seconds']:.0f} s"
            )
            missing = [trial for trial in missing if trial.key != tuple(row[name] for name in _FIELDS)]
        return not missing

    def _results(self, trials: Sequence[Trial]) -> Iterator[dict[str, Any]]:
        arguments = json.dumps(self.protocol.recipe), self.protocol, self.folder
        if self.jobs == 1:
            for trial in trials:
                if self._is_late(trial):
                    return
                yield _run_one(*arguments, trial)
            return
        # glibc then keeps the memory of big maps for the next step, instead of returning it to the system: a tenth to a
        # third of a run's time on a CPU
        for name, number in (("MALLOC_MMAP_THRESHOLD_", 1 << 30), ("MALLOC_TRIM_THRESHOLD_", 1 << 32)):
            os.environ.setdefault(name, str(number))
        options: Any = {"initializer": _start_worker, "initargs": (self.jobs, trusted_names())}
        pool = ProcessPoolExecutor(self.jobs, mp_context=_context(), **options)
        try:
            yield from self._results_of(pool, list(trials), arguments)
        except BrokenProcessPool:
            raise ValueError(
                f"a process of --jobs {self.jobs} ended before its run did, perhaps for lack of memory; the same "
                "command continues, with fewer jobs if it happens again"
            ) from None
        except ValueError as error:  # its traceback is that of another process
            raise ValueError(str(error)) from None
        finally:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            pool.shutdown(cancel_futures=True)

    def _results_of(
        self, pool: ProcessPoolExecutor, waiting: list[Trial], arguments: tuple[str, Protocol, Path]
    ) -> Iterator[dict[str, Any]]:
        running: set[Future[dict[str, Any]]] = set()
        while True:
            while waiting and len(running) < self.jobs and not self._is_late(waiting[0]):
                running.add(pool.submit(partial(_run_one, *arguments, waiting.pop(0))))
            if not running:
                return
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()

    def _is_late(self, trial: Trial) -> bool:
        """Tell whether a run would end after the deadline, as far as earlier ones of its kind tell."""
        if self.deadline is None:
            return False
        of_epoch = [row["seconds"] / row["epochs"] for row in rows_of(self.folder) if row["block"] == trial.block]
        expected = trial.epochs * max(of_epoch, default=0.0)
        return time.monotonic() + expected > self.deadline


def _context() -> BaseContext:
    """Return the way in which workers start: as forks of a server that imports PyTorch once, where there is one.

    It takes seconds, and a comparison that tunes starts workers for each kind of block.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _start_worker(jobs: int, trusted: tuple[str, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # data loaders start their readers as in any run; readers of a server would outlive a worker that is killed
    multiprocessing.set_start_method(None, force=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _trust.enter_context(trusting(*trusted))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    if torch.cuda.device_count() > 1:
        number = int(multiprocessing.current_process().name.rpartition("-")[2])
        torch.cuda.set_device(number % torch.cuda.device_count())


def _end_with_parent() -> None:
    # a worker would wait for work for ever where its parent was killed
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_one(recipe: str, protocol: Protocol, folder: Path, trial: Trial) -> dict[str, Any]:
    if protocol.frozen:
        return run_on_maps(protocol, trial, _features(recipe, folder))
    return run_whole(protocol, trial, folder)


@cache
def _features(recipe: str, folder: Path) -> Features:
    return cached(from_dict(json.loads(recipe), "protocol.json"), folder, lambda line: None)
