"""Write whole files: beside their place first, then onto the disk and renamed, so that no file is ever half written."""

import csv
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


@contextmanager
def whole_file(path: Path, mode: str = "w", *, make_folder: bool = True, shared: bool = False) -> Iterator[IO[Any]]:
    """Open a file, for UTF-8 text ("w", line ends stay) or bytes ("wb"), that takes the path's name once complete.

    After an error, a full disk or a kill the earlier file is as it was. A device or a pipe is written to directly. With
    ``shared``, other processes may write this file at the same time, and the last one wins. An OSError names the path.
    """
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    direct = path.parent == Path("/dev") or (path.exists() and not path.is_file())
    # a fixed name otherwise: the next write takes the place of what a kill has left
    token = f".{secrets.token_hex(4)}" if shared else ""
    part = path if direct else path.with_name(f".{path.name}{token}.part")
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
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
