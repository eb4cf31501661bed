"""Lines of text files that others made, and the paths in them."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from cgnl.data.decoding import DataError, open_regular, resolve_inside

T = TypeVar("T")


class Inside:
    """``resolve_inside`` for the many lines of one file: each folder is resolved once only."""

    def __init__(self, root: Path, source: Path) -> None:
        self.root, self.source = root, source
        self._known: set[str] = set()

    def __call__(self, relative: str, line: int) -> Path:
        path = self._checked(relative, line)
        in_latin1 = readable(relative)
        if in_latin1 != relative and not exists(path):
            # The list is in Latin-1, but the names on disk may be in UTF-8.
            return self._checked(in_latin1, line)
        return path

    def _checked(self, relative: str, line: int) -> Path:
        parent, _, name = relative.rpartition("/")
        path = self.root / relative
        if parent not in self._known or name in ("", "..") or "\0" in name or _is_link(path):
            resolve_inside(self.root, relative, source=self.source, line=line)
            resolve_inside(self.root, parent or ".", source=self.source, line=line)
            self._known.add(parent)
        return path


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except OSError:  # a name that is too long for the file system
        return False


def exists(path: Path) -> bool:
    """Tell whether there is such a file; of a name that no file can have, there is none."""
    try:
        return path.exists()
    except OSError:
        return False


def text_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of the lines of a text file that are not blank; bytes that are not UTF-8 are kept."""
    with open_regular(file) as opened:
        text = opened.read().decode("utf-8-sig", "surrogateescape")
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip(" \t\r")
        if line:
            yield number, line


def readable(text: str) -> str:
    """Return Latin-1 where the text's bytes are not UTF-8, so that it can be printed and saved."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text).decode("latin-1")
    return text


def shown(text: str) -> str:
    text = readable(text)
    return repr(text if len(text) <= 80 else text[:77] + "...")


def read_table(file: Path, expected: str, convert: Callable[[str], T]) -> dict[int, tuple[int, T]]:
    """Read lines ``<id> <value>`` as id -> (line number, value)."""
    rows: dict[int, tuple[int, T]] = {}
    for line, text in text_lines(file):
        row = re.fullmatch(r"([0-9]{1,18})[ \t]+(.+)", text)
        try:
            if row is None:
                raise ValueError
            key, value = int(row[1]), convert(row[2])
        except ValueError:
            raise DataError(f"{file}, line {line}: read {shown(text)}, expected `{expected}`.") from None
        if key in rows:
            raise DataError(f"{file}, line {line}: id {key} was given in line {rows[key][0]} already.")
        rows[key] = (line, value)
    return rows


def integer(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise ValueError
    return int(text)
