"""Write whole files: beside their place first, then onto the disk and renamed, so that no file is ever half written.

Logs grow by whole lines.
"""

import csv
import errno
import glob
import hashlib
import io
import json
import math
import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

# Seconds after which no other process still writes a half file.
_OLD = 3600


@contextmanager
def whole_file(path: Path, mode: str = "w", *, make_folder: bool = True, shared: bool = False) -> Iterator[IO[Any]]:
    """Open a file, for UTF-8 text ("w", line ends stay) or bytes ("wb"), that takes the path's name once complete.

    After an error, a full disk or a kill the earlier file is as it was. A device or a pipe is written to directly. With
    ``shared``, other processes may write this file at the same time, and the last one wins; half files of killed ones
    go after an hour. An OSError names the path.
    """
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    direct = path.parent == Path("/dev") or (path.exists() and not path.is_file())
    # a fixed name otherwise: the next write takes the place of what a kill has left
    token = f".{secrets.token_hex(4)}" if shared else ""
    part = path if direct else part_of(path, token)
    try:
        if make_folder:
            make_folders(path.parent)
        if shared:
            _remove_old_parts(path)
        with part.open(mode, **text) as file:
            yield file
            if not direct:
                file.flush()
                os.fsync(file.fileno())
        if not direct:
            part.replace(path)
    except BaseException as error:
        if not direct:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(part)):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def part_of(path: Path, token: str = "") -> Path:
    """Return the file beside ``path`` that :func:`whole_file` writes first; a kill can leave it."""
    return path.with_name(f".{path.name}{token}.part")


def _remove_old_parts(path: Path) -> None:
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with suppress(OSError):  # another process removes it too, or it is not ours
            if time.time() - part.stat().st_mtime > _OLD:
                part.unlink()


def lock_file(path: Path) -> Path:
    """Return a file of the system's temporary folder to lock for a path, where no file should stay beside it."""
    key = hashlib.blake2b(os.fsencode(path.absolute()), digest_size=8).hexdigest()
    return Path(tempfile.gettempdir(), f"cgnl-{key}.lock")


def make_folders(folder: Path) -> None:
    """Make a folder and those above it; an OSError names the file that stands in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next(path for path in (folder, *folder.parents) if path.exists() and not path.is_dir())
        raise NotADirectoryError(errno.ENOTDIR, "this must be a folder, and it is a file", str(file)) from None


def json_text(content: Any, **options: Any) -> str:
    """Return JSON with null for numbers that are not finite, since JSON has none; options are those of json.dumps."""
    return json.dumps(_with_nulls(content), allow_nan=False, **options)


def _with_nulls(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _with_nulls(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_with_nulls(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_text(path: Path, content: str) -> None:
    """Write a text, whole or not at all, as :func:`whole_file` does."""
    with whole_file(path) as file:
        file.write(content)


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write the rows of a table as CSV, whole or not at all, as :func:`whole_file` does; nan becomes an empty cell."""
    with whole_file(path) as file:
        csv.writer(file).writerows([cell(value) for value in row] for row in rows)


def cell(value: Any) -> Any:
    """Return a value as a table for people holds it: nothing for nan, a number that there is not."""
    return "" if isinstance(value, float) and math.isnan(value) else value


def append_csv(path: Path, header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> None:
    """Add rows to a CSV file as :func:`append_lines` does; a new or empty file gets the header first."""
    text = io.StringIO(newline="")
    empty = not path.exists() or not path.stat().st_size
    csv.writer(text).writerows([cell(value) for value in row] for row in ([header, *rows] if empty else rows))
    append_lines(path, text.getvalue())


def append_lines(path: Path, lines: str) -> None:
    """Add lines to a file, onto the disk; after an error, such as a full disk, the file is as it was.

    They start on a line of their own, also behind one that an earlier version or a crash of the system has cut. An
    OSError names the path.
    """
    try:
        with path.open("a+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(-1, os.SEEK_END)
                lines = lines if file.read(1) == b"\n" else f"\n{lines}"
            left = lines.encode("utf-8", "surrogateescape")
            try:
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except BaseException:
                with suppress(OSError):
                    file.truncate(size)
                raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
