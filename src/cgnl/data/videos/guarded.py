"""Reading videos in a process of its own, whatever they do to a decoder.

The reader works where multiprocessing does not, in the (daemonic) workers of a data loader: the process is started as a
program. Requests and replies are lines of JSON through its standard input and output, frames come through a file in
memory that both have opened; nothing that the decoding process says is unpickled. Windows has none of what that takes:
there the process that asks decodes the videos itself.
"""

import json
import math
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from cgnl.data.decoding import STOPPING, AnyPath, BadFileError, death_in_words
from cgnl.data.videos.decoding import VideoInfo, checked_indices, frame_times, probe, read_into, read_pieces
from cgnl.data.videos.streams import Pieces
from cgnl.settings.checks import within

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")
_START_SECONDS = 120.0
_MAX_REPLY = 1 << 20
# Room for a clip each; more than any clip needs, as it takes no space before it is written.
_SLOTS, _SLOT_BYTES = 8, 1 << 36
_KEPT_BYTES = 1 << 26
_NONSENSE = "makes the process that decodes it send invalid data"


class GuardedReader:
    """Reads frames as :func:`cgnl.data.videos.read_frames` does, in a process that may crash or hang.

    The process starts with the first video (RuntimeError if it cannot) and again after one that ends it; it ends with
    the process that reads through it. After a fork or in a copy the reader starts a process of its own. One thread may
    use it at a time. A call may take ``timeout`` seconds, a number above 0. ``frame_pattern`` is as of
    :func:`cgnl.data.videos.probe`.
    """

    def __init__(self, *, timeout: float = 60.0, frame_pattern: str | None = None) -> None:
        if timeout <= 0:
            raise ValueError(f"timeout ({timeout}) must be above 0 seconds")
        self.timeout, self.frame_pattern = timeout, frame_pattern
        self._child: _Child | _Direct | None = None

    def read(self, path: AnyPath, indices: Sequence[int]) -> tuple[np.ndarray, int]:
        """Read frames of a video by number, with arguments, results and errors of :func:`cgnl.data.videos.read_frames`.

        Also raises BadFileError for a file that crashes its decoder or holds it up.
        """
        numbers = checked_indices(indices)
        return self._asked(path, lambda child: child.read(path, numbers))

    def read_pieces(
        self, path: AnyPath, wanted: Sequence[int], size: int, take: Callable[[int, np.ndarray], None]
    ) -> int:
        """Read frames of a video in one go, P (``size``) at a time; return how many could not be decoded.

        ``wanted`` ascends without repeats. ``take`` is called with the place of the first of some frames among the
        wanted ones and the frames, uint8 [P, H, W, 3] (the last time they may be fewer), which are there until it
        returns. If decoding has to start again, so do the places, from 0. Raises BadFileError as :meth:`read` (forget
        the frames that were handed over before), and ValueError for another size or other numbers.
        """
        numbers = checked_indices(wanted)
        if any(after <= before for before, after in pairwise(numbers)):
            raise ValueError("wanted must hold ascending numbers, without repeats")
        within("size", size, 1)
        return self._asked(path, lambda child: child.read_pieces(path, numbers, size, take))

    def probe(self, path: AnyPath) -> VideoInfo:
        """Count the frames of a video and look at its first one, as :func:`cgnl.data.videos.probe` does.

        Also raises BadFileError for a file that crashes its decoder or holds it up.
        """
        return self._asked(path, lambda child: child.probe(path))

    def times(self, path: AnyPath) -> np.ndarray:
        """Return when each frame begins and the last one ends, as :func:`cgnl.data.videos.decoding.frame_times` does.

        Also raises BadFileError for a file that crashes its decoder or holds it up.
        """
        return self._asked(path, lambda child: child.times(path))

    def _asked(self, path: AnyPath, ask: Callable[["_Child | _Direct"], T]) -> T:
        if self._child is not None and self._child.owner == os.getpid() and self._child.ended():
            self.close()  # it ended while nothing was asked of it, which says nothing about this file
        if self._child is None or self._child.owner != os.getpid():
            self._child = self._started()
        try:
            return ask(self._child)
        except BadFileError:
            raise
        except _EndedError as error:
            self.close()
            raise BadFileError(path, str(error)) from None
        except BaseException:
            self.close()  # a reply that nobody has read must not be taken for the next one
            raise

    def _started(self) -> "_Child | _Direct":
        if not _can_guard():
            return _Direct(self.frame_pattern)
        try:
            return _Child(self.timeout, self.frame_pattern)
        except RuntimeError:
            # it may have been killed, as where memory runs out; one that cannot start fails again
            return _Child(self.timeout, self.frame_pattern)

    def close(self) -> None:
        """End the process; the next call starts another."""
        if self._child is not None and self._child.owner == os.getpid():
            self._child.stop()
        self._child = None

    def __enter__(self) -> "GuardedReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_child", None) is not None:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_child": None}


class _EndedError(Exception):
    """The process ended or was ended; the message continues a sentence that begins with the path."""


class _Child:
    """A process that reads videos, and the memory shared with it."""

    def __init__(self, timeout: float, frame_pattern: str | None) -> None:
        self.owner = os.getpid()
        self.timeout = timeout
        self._frames = _Slots(_memory_file())
        self._free = list(range(1, _SLOTS))
        self._unread = b""
        # -P: a file in the working folder must not stand in for a module. A session of its own: Ctrl-C in the terminal
        # is for the process that reads through this one.
        with _signals_held():
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(self._frames.file), repr(timeout), frame_pattern or ""],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                pass_fds=[self._frames.file],
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
            )
        try:
            self._reply(_START_SECONDS)
        except _EndedError as error:
            self.stop()
            raise RuntimeError(f"the process that reads videos does not start: it {error}") from None

    def read(self, path: AnyPath, numbers: list[int]) -> tuple[np.ndarray, int]:
        # The first slot is for when the caller holds on to the frames of all others.
        slot = self._free.pop() if self._free else 0
        try:
            reply = self._answer({"path": os.fsencode(path).hex(), "indices": numbers, "slot": slot})
            pixels = self._pixels(reply, len(numbers), slot)
            lost = _whole(reply, "lost")
        except BaseException:
            if slot:
                self._free.append(slot)
            raise
        if slot:
            return np.asarray(_Loan(pixels, self._frames, slot, self._free)), lost
        frames = pixels.copy()
        self._frames.tidy(slot)
        return frames, lost

    def probe(self, path: AnyPath) -> VideoInfo:
        reply = self._answer({"path": os.fsencode(path).hex()})
        frames, width, height = (_whole(reply, name) for name in ("frames", "width", "height"))
        promised = None if reply.get("promised") is None else _whole(reply, "promised")
        fps = reply.get("fps")
        if not isinstance(fps, float) or min(frames, width, height) < 1 or not 0 <= fps < math.inf:
            raise _EndedError(_NONSENSE)
        return VideoInfo(frames, fps, width, height, promised, bool(reply.get("even")))

    def times(self, path: AnyPath) -> np.ndarray:
        size = 8 * _whole(self._answer({"path": os.fsencode(path).hex(), "times": True}), "times")
        if not 16 <= size <= _SLOT_BYTES:
            raise _EndedError(_NONSENSE)
        times = self._frames.array(0, (size,)).view(np.float64).copy()
        self._frames.tidy(0)
        if not (np.isfinite(times).all() and (np.diff(times) > 0).all()):
            raise _EndedError(_NONSENSE)
        return times

    def read_pieces(self, path: AnyPath, numbers: list[int], size: int, take: Callable[[int, np.ndarray], None]) -> int:
        request: dict[str, Any] = {"path": os.fsencode(path).hex(), "indices": numbers, "slot": 0, "size": size}
        spent = 0.0
        try:
            while True:
                began = time.monotonic()
                reply = self._answer(request, spent)
                spent += time.monotonic() - began
                if "first" not in reply:
                    return _whole(reply, "lost")
                first = _whole(reply, "first")
                if first not in range(0, len(numbers), size):
                    raise _EndedError(_NONSENSE)
                take(first, self._pixels(reply, min(size, len(numbers) - first), 0))
                request = {}  # go on
        finally:
            self._frames.tidy(0)

    def _pixels(self, reply: dict[str, Any], number: int, slot: int) -> np.ndarray:
        shape = number, _whole(reply, "height"), _whole(reply, "width"), 3
        if min(shape) < 1 or math.prod(shape) > _SLOT_BYTES:
            raise _EndedError(_NONSENSE)
        return self._frames.array(slot, shape)

    def ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        os.close(self._frames.file)

    def _answer(self, request: dict[str, Any], spent: float = 0.0) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            raise _EndedError(self._death()) from None
        reply = self._reply(self.timeout, spent)
        if "bad" not in reply:
            return reply
        try:
            path = os.fsdecode(bytes.fromhex(reply["path"]))
        except (KeyError, TypeError, ValueError):
            raise _EndedError(_NONSENSE) from None
        raise BadFileError(path, str(reply["bad"]))

    def _reply(self, timeout: float, spent: float = 0.0) -> dict[str, Any]:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        deadline = time.monotonic() + timeout - spent
        while b"\n" not in self._unread and len(self._unread) < _MAX_REPLY:
            left = deadline - time.monotonic()
            if left <= 0:
                raise _EndedError(f"takes longer than {timeout:g} second{'s' * (timeout != 1)} to decode")
            if poll.poll(math.ceil(left * 1000)):
                data = os.read(pipe, 1 << 16)
                if not data:
                    raise _EndedError(self._death())
                self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise _EndedError(_NONSENSE)
        return reply

    def _death(self) -> str:
        code = self._process.wait()
        return f"ends the process that decodes it ({death_in_words(code)})"


@contextmanager
def _signals_held() -> Iterator[None]:
    """Let a process start that never gets the signals that stop a run; a cluster sends them to all processes."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _whole(reply: dict[str, Any], name: str) -> int:
    value = reply.get(name)
    if not isinstance(value, int):
        raise _EndedError(_NONSENSE)
    return value


class _Slots:
    """A file without a name, in which each slot has room for the frames of one call."""

    def __init__(self, file: int) -> None:
        self.file = file
        self._mapped: dict[int, mmap.mmap] = {}

    def array(self, slot: int, shape: tuple[int, ...]) -> np.ndarray:
        """Return the beginning of a slot as an array; the memory stays mapped for the next call."""
        size = math.prod(shape)
        if size > _SLOT_BYTES:
            raise MemoryError
        if slot not in self._mapped or len(self._mapped[slot]) < size:
            self._mapped[slot] = mmap.mmap(self.file, size, offset=slot * _SLOT_BYTES)
        return np.frombuffer(self._mapped[slot], np.uint8, size).reshape(shape)

    def tidy(self, slot: int) -> None:
        """Give the memory of an unusually large slot back to the system."""
        if len(self._mapped.get(slot, ())) > _KEPT_BYTES and hasattr(mmap, "MADV_REMOVE"):
            self._mapped.pop(slot).madvise(mmap.MADV_REMOVE)


class _Loan:
    """Memory of a slot, which is free again when the last array that shows it is gone."""

    def __init__(self, pixels: np.ndarray, slots: _Slots, slot: int, free: list[int]) -> None:
        self.__array_interface__ = pixels.__array_interface__
        self._pixels, self._slots, self._slot, self._free = pixels, slots, slot, free

    def __del__(self) -> None:
        self._slots.tidy(self._slot)
        self._free.append(self._slot)


def _memory_file() -> int:
    """Open a file without a name, in memory where the system can; it takes space only where it is written."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.ftruncate(file, _SLOTS * _SLOT_BYTES)
    if fcntl is not None and hasattr(fcntl, "F_ADD_SEALS"):
        # If the other process could cut it short, reading what is mapped would end this one.
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return file


def _can_guard() -> bool:
    """Return whether this system has what a process of its own takes; Windows has none of it."""
    return fcntl is not None and hasattr(select, "poll") and hasattr(signal, "setitimer")


class _Direct:
    """The decoder in this process, with the methods of :class:`_Child`; nothing stops a video that crashes or hangs."""

    def __init__(self, frame_pattern: str | None) -> None:
        self.owner, self._pattern = os.getpid(), frame_pattern

    def read(self, path: AnyPath, numbers: list[int]) -> tuple[np.ndarray, int]:
        return read_into(path, numbers, _array, self._pattern)

    def probe(self, path: AnyPath) -> VideoInfo:
        return probe(path, self._pattern)

    def times(self, path: AnyPath) -> np.ndarray:
        return frame_times(path)

    def read_pieces(self, path: AnyPath, numbers: list[int], size: int, take: Callable[[int, np.ndarray], None]) -> int:
        return len(read_pieces(path, numbers, Pieces(size, _array, take), self._pattern))

    def ended(self) -> bool:
        return False

    def stop(self) -> None:
        pass


def _array(shape: tuple[int, ...]) -> np.ndarray:
    return np.empty(shape, np.uint8)


class _Server:
    """The other side: answers requests until there are no more, each within ``timeout`` seconds."""

    def __init__(self, frames_file: int, timeout: float, frame_pattern: str | None) -> None:
        self._requests, self._replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
        # What libraries print must not get among the replies.
        os.dup2(2, 1)
        self._slots = _Slots(frames_file)
        self._timeout, self._pattern = timeout, frame_pattern

    def run(self) -> None:
        self._reply({})
        while request := self._next():
            try:
                self._reply(self._answer(os.fsdecode(bytes.fromhex(request["path"])), request))
            except BadFileError as error:
                self._reply({"path": os.fsencode(error.path).hex(), "bad": error.reason})
            except MemoryError:
                self._reply({"path": request["path"], "bad": "needs more memory for decoding than there is"})

    def _next(self) -> dict[str, Any] | None:
        line = self._requests.readline()
        # A decoder that hangs cannot see that its parent is gone.
        signal.setitimer(signal.ITIMER_REAL, self._timeout + 10)
        return json.loads(line) if line else None

    def _reply(self, reply: dict[str, Any]) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._replies.write(json.dumps(reply).encode() + b"\n")

    def _answer(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        if "times" in request:
            times = frame_times(path)
            self._slots.array(0, (times.nbytes,))[:] = times.view(np.uint8)
            return {"times": len(times)}
        if "indices" not in request:
            return asdict(probe(path, self._pattern))
        wanted, slot = request["indices"], request["slot"]
        allocate = partial(self._slots.array, slot)
        if "size" not in request:
            frames, lost = read_into(path, wanted, allocate, self._pattern)
            return {**self._shown(frames, slot), "lost": lost}

        def take(first: int, frames: np.ndarray) -> None:
            self._reply({**self._shown(frames, slot), "first": first})
            if self._next() is None:
                raise SystemExit

        return {"lost": len(read_pieces(path, wanted, Pieces(request["size"], allocate, take), self._pattern))}

    def _shown(self, frames: np.ndarray, slot: int) -> dict[str, Any]:
        shown = self._slots.array(slot, frames.shape)
        if shown.ctypes.data != frames.ctypes.data:
            shown[...] = frames
        return {"height": frames.shape[1], "width": frames.shape[2]}


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # nobody is left to read for
        _Server(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3] or None).run()
