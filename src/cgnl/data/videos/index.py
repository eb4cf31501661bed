"""Length and size of the videos of a data set, found once and kept in a file beside them."""

import csv
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from cgnl.data.decoding import AnyPath, BadFileError
from cgnl.data.scanning import scan_with_bar
from cgnl.data.videos.decoding import VideoInfo, probe
from cgnl.data.videos.frame_folders import frame_files
from cgnl.files import lock_file, whole_file

_logger = logging.getLogger(__name__)

NAME = "video_index.csv"
_TITLE = "# cgnl video index, version 2"
_HEADER = ["path", "bytes", "mtime_ns", "frames", "fps", "width", "height", "promised", "even", "error"]
# A killed process loses no more than this; writing a large index takes a second or two.
_SECONDS_BETWEEN_WRITES = 30.0


# Bytes of a file or frames of a folder, and when it was changed: if neither differs, the video is the same.
_State = tuple[int, int]


class _Entry(NamedTuple):
    state: _State | None
    info: VideoInfo | str


def index_videos(
    videos: Sequence[Path],
    root: AnyPath,
    *,
    file: AnyPath | None = None,
    otherwise: AnyPath | None = None,
    workers: int | None = None,
    timeout: float = 60.0,
    progress: bool = True,
    frame_pattern: str | None = None,
) -> dict[Path, VideoInfo | str]:
    """Look into every video, in several processes, and keep the results for the next time.

    The index is written every half minute, as a whole and under its name at once, so that a process that is killed
    leaves a good one. Of several processes that want the same index at the same time, as those of a distributed run
    do, one looks and the others wait for it. A video is looked into again only if its size or time of change differs.

    Args:
        videos: Video files and folders of frames, all below the root.
        root: The folder of the data set.
        file: Where the index is kept; by default ``video_index.csv`` in the root.
        otherwise: Where it is kept if that place cannot be written to; None keeps none then.
        workers: Number of processes; by default one for each core.
        timeout: Seconds that one video may take.
        progress: Whether a progress bar is shown on the standard error output.
        frame_pattern: As of :func:`cgnl.data.videos.probe`.

    Returns:
        Length and size of each video, or why it cannot be read, as the rest of a sentence that begins with its path.

    Raises:
        ValueError: A video that is not below the root.
    """
    root = Path(root)
    outside = next((path for path in videos if not path.is_relative_to(root)), None)
    if outside is not None:
        raise ValueError(f"videos ({outside}) must be below root ({root})")
    names = {path: path.relative_to(root).as_posix() for path in videos}
    places = [Path(file) if file is not None else root / NAME] + ([Path(otherwise)] if otherwise is not None else [])
    states = {path: _state(path, frame_pattern) for path in names}
    found = _known(places, names, states)
    if len(found) < len(names):
        with _alone(places[0]):
            found = _known(places, names, states, quiet=True)  # the first look has warned
            rest = [path for path in names if path not in found]
            new: dict[str, _Entry] = {}
            written = time.monotonic()
            try:
                for result in scan_with_bar(
                    partial(probe, frame_pattern=frame_pattern) if frame_pattern else probe,
                    rest,
                    "looking into videos",
                    workers=workers,
                    timeout=timeout,
                    progress=progress and bool(rest),
                ):
                    info = found[result.path] = result.error or "" if result.value is None else result.value
                    # One that crashed its process or took too long may have done so for want of memory or time:
                    # without a state its row fits no file, and it is tried again the next time.
                    new[names[result.path]] = _Entry(states[result.path] if result.answered else None, info)
                    if time.monotonic() - written > _SECONDS_BETWEEN_WRITES:
                        _keep(places, new)
                        written = time.monotonic()
            finally:
                if new:
                    _keep(places, new)
    return {path: found[path] for path in names}


def _known(
    places: Sequence[Path], names: Mapping[Path, str], states: Mapping[Path, _State | None], *, quiet: bool = False
) -> dict[Path, VideoInfo | str]:
    """Return the entries of the indexes that fit the files as they are now."""
    found = {}
    for index in (_read(place, quiet=quiet) for place in places):
        for path, state in states.items():
            entry = index.get(names[path])
            if entry is not None and state is not None and entry.state == state:
                found[path] = entry.info
    return found


@contextmanager
def _alone(index: Path) -> Iterator[None]:
    """Wait until no other process of this machine makes this index."""
    lock = FileLock(lock_file(index))
    # another user's, or no such folder: the work is done twice then, and the index is still whole
    with suppress(OSError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _state(path: Path, frame_pattern: str | None) -> _State | None:
    """Return None if the path cannot be read now, so that its entry is not kept."""
    try:
        stat = path.stat()
        size = len(frame_files(path, frame_pattern)) if path.is_dir() else stat.st_size
    except (OSError, BadFileError):
        return None
    return (size, stat.st_mtime_ns) if os.access(path, os.R_OK) else None


def _read(file: Path, *, quiet: bool = False) -> dict[str, _Entry]:
    """Read an index; without one, or with one that cannot be used, nothing is known."""
    try:
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
            if opened.readline().rstrip("\r\n") != _TITLE:
                raise ValueError("it has another version or none")
            rows = csv.reader(opened)
            if next(rows, None) != _HEADER:
                raise ValueError("its header is damaged")
            return dict(map(_parsed, rows))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, csv.Error) as error:
        if not quiet:
            reason = error.strerror if isinstance(error, OSError) else error
            _logger.warning("%s cannot be used (%s): cgnl reads the videos again", file, reason)
        return {}


def _parsed(row: list[str]) -> tuple[str, _Entry]:
    if len(row) != len(_HEADER):
        raise ValueError(f"a line has {len(row)} columns instead of {len(_HEADER)}")
    name, size, mtime_ns, frames, fps, width, height, promised, even, error = row
    state = (int(size), int(mtime_ns)) if size else None
    if error:
        return name, _Entry(state, error)
    info = VideoInfo(
        int(frames), float(fps), int(width), int(height), int(promised) if promised else None, bool(int(even))
    )
    if min(info.frames, info.width, info.height) < 1 or not 0 <= info.fps < math.inf:
        raise ValueError("a line holds numbers that no video can have")
    return name, _Entry(state, info)


def _row(name: str, entry: _Entry) -> list[object]:
    state = entry.state or ("", "")
    if isinstance(entry.info, str):
        return [name, *state, *[""] * 6, entry.info]
    info = entry.info
    promised = "" if info.promised is None else info.promised
    return [name, *state, info.frames, repr(info.fps), info.width, info.height, promised, int(info.even), ""]


def _keep(places: Sequence[Path], new: Mapping[str, _Entry]) -> None:
    """Add rows to the first index that can be written; without any, the rows are not kept."""
    problems = []
    for place in places:
        try:
            # What another process has written in the meantime stays.
            _write(place, {**_read(place, quiet=True), **new})
            return
        except OSError as error:
            problems.append(f"{place}: {error.strerror}")
    _logger.warning("cannot save the index of the videos (%s)", "; ".join(problems))


def _write(file: Path, entries: Mapping[str, _Entry]) -> None:
    with whole_file(file, shared=True) as opened:
        opened.write(f"{_TITLE}\n")
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(_HEADER)
        writer.writerows(_row(name, entries[name]) for name in sorted(entries))
