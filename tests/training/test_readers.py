"""Workers that hang: whatever they do, the wait ends, and what they read is named."""

import ctypes
import multiprocessing
import os
import signal
import struct
import sys
import time

import pytest
import torch

from cgnl.data.decoding import DataError
from cgnl.data.images import ImageDataset, collate
from cgnl.data.lists import Sample, SampleList
from cgnl.training.readers import WatchedLoader


class Reader(ImageDataset):
    """Gives the number of the sample; one of them does something to its process."""

    def __init__(self, images, fate, chosen):
        super().__init__(images, list)
        self.fate, self.chosen = fate, chosen

    def read(self, index):
        if index == self.chosen:
            self.fate()
        return {"image": torch.full((3, 8, 8), float(index))}


def hold_the_lock():
    # a C function that is called with Python's lock held
    ctypes.PyDLL(None).sleep(1000)


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def nothing():
    pass


def loader(fate, chosen=5, workers=2, timeout=1, **options):
    images = SampleList(".", tuple(Sample(f"{number}.jpg", 0) for number in range(8)), ("a",), "list")
    return WatchedLoader(
        Reader(images, fate, chosen),
        batch_size=2,
        num_workers=workers,
        collate_fn=collate,
        timeout=timeout,
        persistent_workers=True,
        **options,
    )


def indices(batches):
    return [index for batch in batches for index in batch["index"].tolist()]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("fate", [hold_the_lock, stop])
def test_a_worker_that_hangs_in_a_sample_is_killed_and_the_sample_named(fate, workers):
    batches = loader(fate, workers=workers)
    with pytest.raises(
        DataError, match=r"no batch came for 1 seconds \(data\.timeout\).*\. The file being read: 5\.jpg\.$"
    ):
        list(batches)
    assert not multiprocessing.active_children()


def test_a_worker_that_stops_while_its_tensors_are_fetched_is_killed_and_its_batch_named():
    iterator = iter(loader(nothing, workers=1))
    assert next(iterator)["index"].tolist() == [0, 1]
    # the next batches lie in the pipe, but their tensors are handed over by the worker
    time.sleep(1)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(DataError, match=r"it is stopped \(SIGSTOP\)\. Its batch: 2\.jpg, 3\.jpg\.$"):
        list(iterator)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("fate", [hold_the_lock, stop])
def test_a_worker_that_hangs_before_its_first_sample_is_killed_and_its_batch_named(fate):
    batches = loader(nothing, workers=1, worker_init_fn=lambda number: fate())
    with pytest.raises(DataError, match=r"Its batch: 0\.jpg, 1\.jpg\.$"):
        list(batches)


def test_a_worker_that_stops_between_two_epochs_is_killed():
    batches = loader(nothing)
    for _ in range(2):
        assert indices(batches) == [*range(8)]
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGSTOP)
    with pytest.raises(DataError, match=r"it is stopped \(SIGSTOP\)"):
        list(batches)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_a_message():
    frame = sys._getframe()
    while frame.f_code.co_name != "_worker_loop":
        frame = frame.f_back
    # its length, and not all of it
    os.write(frame.f_locals["data_queue"]._writer.fileno(), struct.pack("!i", 100_000) + b"half")
    die()


def leave():
    os._exit(3)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("fate", "words"),
    [
        (die, "is killed by signal: Killed"),
        (die_in_a_message, "is killed by signal: Killed"),
        (leave, "ended with exit code 3"),
    ],
)
def test_a_worker_that_dies_is_named_with_its_sample(fate, words, workers):
    batches = loader(fate, workers=workers, timeout=60)
    with pytest.raises(
        DataError, match=rf"died or hangs: DataLoader worker \(pid \d+\) {words}.*\. The file being read: 5\.jpg\.$"
    ):
        list(batches)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("fetched", [False, True])
def test_the_death_of_a_worker_interrupts_nothing_but_the_wait_for_it(fetched):
    iterator = iter(loader(nothing, workers=1, timeout=60))
    assert next(iterator)["index"].tolist() == [0, 1]
    (worker,) = multiprocessing.active_children()
    if fetched:
        # the next batches lie in the pipe, but their tensors were to be handed over by the worker
        time.sleep(1)
    os.kill(worker.pid, signal.SIGKILL)
    # an exception at any place here, as in a write of a checkpoint, would be taken for an error there
    worker.join()
    with pytest.raises(DataError, match=r"DataLoader worker \(pid \d+\) is killed by signal: Killed"):
        list(iterator)


def test_a_loader_with_a_stopped_worker_can_be_closed():
    batches = loader(nothing, workers=1)
    assert indices(batches) == [*range(8)]
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGSTOP)
    del batches
    worker.join(1)
    assert worker.exitcode == -signal.SIGKILL


def test_a_slow_worker_has_its_time_for_each_batch():
    assert indices(loader(lambda: time.sleep(0.5), timeout=2)) == [*range(8)]


def test_seconds_in_which_the_whole_run_is_stopped_do_not_count():
    """As Ctrl-Z stops a run with its workers, and fg continues it: a grandchild does both."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        try:
            found = indices(loader(lambda: time.sleep(1.5), timeout=3, workers=1))
            os._exit(0 if found == [*range(8)] else 1)
        finally:
            os._exit(2)
    time.sleep(1.5)
    os.killpg(child, signal.SIGSTOP)
    time.sleep(4)
    os.killpg(child, signal.SIGCONT)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
