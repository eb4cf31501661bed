"""Accounts of the files of a data set that are missing or cannot be read."""

import csv
from collections.abc import Iterable
from pathlib import Path

from cgnl.data.decoding import AnyPath, DataError
from cgnl.data.lists.samples import SampleList
from cgnl.data.lists.text import readable
from cgnl.files import append_csv, make_folders


class BadFiles:
    """Counts the files of one data set that cannot be read, up to the part ``limit``, and names each once.

    They stand in ``bad_files.csv`` of the folder, or nowhere without one; what it names already is not written again.
    """

    def __init__(self, samples: SampleList, folder: AnyPath | None, *, limit: float = 0.05) -> None:
        self.samples, self.limit = samples, limit
        self.file = None if folder is None else Path(folder, "bad_files.csv")
        self._bad: set[int] = set()

    def __len__(self) -> int:
        """Return the number of different bad files so far."""
        return len(self._bad)

    def add(self, bad: Iterable[tuple[int, Path, str]]) -> None:
        """Count the bad files of a batch, as (index, path, reason); raise DataError if they exceed the limit."""
        new = [row for row in bad if row[0] not in self._bad]
        if not new:
            return
        self._bad.update(index for index, *_ in new)
        if self.file is not None:
            write_rows(self.file, [(path, reason) for _, path, reason in new])
        if len(self._bad) > self.limit * len(self.samples):
            _, path, reason = new[-1]
            raise DataError(
                f"{len(self._bad)} of {len(self.samples)} files of {self.samples.root} cannot be read, more "
                f"than the limit of {self.limit:.1%} (--data.bad-limit); the last: {path} {reason}."
                + (f" All are listed in {self.file}." if self.file else "")
            )


def write_missing(folder: AnyPath, lists: Iterable[SampleList]) -> None:
    """List the missing files of data sets in ``missing_files.csv`` of a run's folder, if there are any."""
    rows = [(path, samples.why_missing(path)) for samples in lists for path in samples.missing]
    if rows:
        write_rows(Path(folder, "missing_files.csv"), rows)


def write_rows(file: Path, rows: Iterable[tuple[Path, str]]) -> None:
    """Add the rows whose path the file does not name yet."""
    known = set()
    if file.exists():
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
            known = {row[0] for row in csv.reader(opened) if row}
    new: dict[str, str] = {}
    for path, reason in rows:
        if (name := readable(str(path))) not in known:
            new.setdefault(name, readable(reason))
    if new or not known:
        make_folders(file.parent)
        append_csv(file, ("path", "reason"), new.items())
