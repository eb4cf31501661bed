"""The common part of the checks of images, objects and videos: decode all files, count and print."""

import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, Unpack

from rich.console import Console
from rich.table import Table

from cgnl.data.decoding import AnyPath
from cgnl.data.lists import NoSplitError, SampleList, Split, readable, write_rows
from cgnl.data.scanning import Scanning, scan_with_bar
from cgnl.settings.words import counted

T = TypeVar("T")

_SHOWN = 50


@dataclass(frozen=True)
class SplitReport:
    """Contents of one split of a data set: (name, number of files that can be read) of each class, and the counts of
    others.
    """

    name: str
    per_class: tuple[tuple[str, int], ...]
    unreadable: int
    missing: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """Contents of a data set, split by split, and its faults; as a string, tables to read.

    ``bad`` has path and reason of each file that is missing or cannot be read, ``damaged`` of those that can be read in
    part.
    """

    noun: ClassVar[str]
    bad_noun: ClassVar[tuple[str, str]] = ("bad file", "bad files")
    root: Path
    kind: str
    splits: tuple[SplitReport, ...]
    bad: tuple[tuple[Path, str], ...]
    damaged: tuple[tuple[Path, str], ...] = ()

    def describe(self) -> Iterable[str | Table]:
        """Return lines and tables that describe the files."""
        return ()

    def __str__(self) -> str:
        counts = Table("split", self.noun, "classes", f"{self.noun} per class", "unreadable", "missing")
        for split in self.splits:
            numbers = [number for _, number in split.per_class if number]
            counts.add_row(
                split.name,
                str(sum(numbers)),
                f"{len(numbers)} of {len(split.per_class)}",
                f"{min(numbers)} to {max(numbers)}" if numbers else "",
                str(split.unreadable),
                str(split.missing),
            )
        console = Console(width=None if os.isatty(1) else 120)
        plain: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
        with console.capture() as captured:
            console.print(readable(f"{self.root} (layout: {self.kind})"), **plain)
            console.print(counts)
            for content in self.describe():
                console.print(content, highlight=False)
            for rows, what in ((self.damaged, ("damaged file", "damaged files")), (self.bad, self.bad_noun)):
                for path, reason in rows[:_SHOWN]:
                    console.print(readable(f"{path} {reason}"), **plain)
                if len(rows) > _SHOWN:
                    console.print(f"... and {len(rows) - _SHOWN} more", highlight=False)
                if rows:
                    console.print(counted(len(rows), *what), highlight=False)
            if not (self.bad or self.damaged):
                console.print("nothing is bad", highlight=False)
        return captured.get().rstrip()


def sizes_in_words(sizes: Iterable[tuple[int, int]]) -> str:
    """Return the smallest, largest and median of (width, height) in pixels."""
    return (
        "; ".join(
            f"{side} {min(values)} to {max(values)}, median {statistics.median_low(values)}"
            for side, values in zip(("width", "height"), zip(*sizes, strict=True), strict=True)
        )
        + " pixels"
    )


def read_splits(read: Callable[[Split], SampleList], root: Path, list_file: AnyPath | None) -> dict[str, SampleList]:
    """Read all splits that a data set has, by name; one alone where annotations or ``list_file`` are those of one."""
    try:
        train = read("train")
    except NoSplitError:
        return {"test": read("test")}
    if list_file is not None:
        return {Path(list_file).name: train}
    others: tuple[Split, ...] = ("val", "test")
    if train.kind == "folders":
        return {"train": train, **{split: read(split) for split in others if (root / split).is_dir()}}
    try:
        return {"train": train, "test": read("test")}
    except NoSplitError:
        return {"train": train}


def examined(
    decode: Callable[[Path], T], splits: Mapping[str, SampleList], noun: str, **scanning: Unpack[Scanning]
) -> tuple[dict[Path, T], dict[Path, str]]:
    """Decode every file of all splits, each once; ``noun`` names the files in the progress bar.

    Return the result for each good file, and the reason why each missing or bad one cannot be used.
    """
    found: dict[Path, T] = {}
    bad = {path: samples.why_missing(path) for samples in splits.values() for path in samples.missing}
    paths = sorted({sample.path for samples in splits.values() for sample in samples.samples})
    for result in scan_with_bar(decode, paths, f"checking {noun}", **scanning):
        if result.value is None:
            bad[result.path] = result.error or ""
        else:
            found[result.path] = result.value
    return found, bad


def report_of(name: str, samples: SampleList, bad: Mapping[Path, str]) -> SplitReport:
    """Count the files of a split; ``bad`` holds those that cannot be read."""
    counts = [0] * len(samples.classes)
    unreadable = 0
    for sample in samples.samples:
        if sample.path in bad:
            unreadable += 1
        else:
            counts[sample.label] += 1
    return SplitReport(name, tuple(zip(samples.classes, counts, strict=True)), unreadable, len(samples.missing))


def write_anew(out: AnyPath | None, rows: Sequence[tuple[Path, str]]) -> None:
    """Write the path and reason of each bad file to a CSV file; None writes nothing."""
    if out is not None:
        Path(out).unlink(missing_ok=True)
        write_rows(Path(out), rows)
