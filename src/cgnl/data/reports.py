"""The common part of the checks of images, objects and videos: decode all files, count and print."""

import os
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypedDict, TypeVar, Unpack

from rich.console import Console
from rich.table import Table

from cgnl.data.decoding import AnyPath, DataError
from cgnl.data.faults import faults_of, left_out_below
from cgnl.data.lists import SPLIT_FOLDERS, NoSplitError, SampleList, Split, readable, seen_in, split_folder, write_rows
from cgnl.data.scanning import Scanning, scan_with_bar
from cgnl.settings.words import counted

T = TypeVar("T")

WITHOUT_LABELS = "files"
"""Name of files that are checked without labels, in place of a part."""
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
    part, and ``findings`` of all else that is wrong. ``notes`` are sentences on what was looked at.
    """

    noun: ClassVar[str]
    bad_noun: ClassVar[tuple[str, str]] = ("bad file", "bad files")
    damaged_noun: ClassVar[tuple[str, str]] = ("damaged file", "damaged files")
    root: Path
    kind: str
    splits: tuple[SplitReport, ...]
    bad: tuple[tuple[Path, str], ...]
    damaged: tuple[tuple[Path, str], ...] = ()
    findings: tuple[tuple[Path, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.bad or self.damaged or self.findings)

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
                f"{len(numbers)} of {len(split.per_class)}" if split.name != WITHOUT_LABELS else "",
                f"{min(numbers)} to {max(numbers)}" if numbers and split.name != WITHOUT_LABELS else "",
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
            for note in self.notes:
                console.print(readable(note), **plain)
            nouns = ("finding", "findings"), self.damaged_noun, self.bad_noun
            for rows, what in zip((self.findings, self.damaged, self.bad), nouns, strict=True):
                for path, reason in rows[:_SHOWN]:
                    console.print(readable(f"{path} {reason}"), **plain)
                if len(rows) > _SHOWN:
                    console.print(f"... and {len(rows) - _SHOWN} more", highlight=False)
                if rows:
                    console.print(counted(len(rows), *what), highlight=False)
            if self.is_good:
                console.print(f"nothing is bad in {self._looked_at()}", highlight=False)
        return captured.get().rstrip()

    def _looked_at(self) -> str:
        """Return how many files of which parts were opened."""
        words = []
        for split in self.splits:
            count = sum(number for _, number in split.per_class)
            words.append(
                counted(count, self.noun.removesuffix("s"))
                + (f" of {split.name}" if split.name != WITHOUT_LABELS else "")
            )
        return " and ".join(words)


def sizes_in_words(sizes: Iterable[tuple[int, int]]) -> str:
    """Return the smallest, largest and median of (width, height) in pixels."""
    return (
        "; ".join(
            f"{side} {min(values)} to {max(values)}, median {statistics.median_low(values)}"
            for side, values in zip(("width", "height"), zip(*sizes, strict=True), strict=True)
        )
        + " pixels"
    )


class Lists(TypedDict, total=False):
    """What a check looks at, beside a root.

    Attributes:
        list_file: One list file, which is checked alone.
        lists: List files of several parts.
        num_classes: Number of classes, where it must be just that.
        files: Files without labels, which are checked in place of a data set.
        findings: What is known to be wrong already: path and the rest of a sentence.
        notes: Sentences on what was looked at.
    """

    list_file: AnyPath | None
    lists: Mapping[Split, Path]
    num_classes: int | None
    files: SampleList | None
    findings: Sequence[tuple[Path, str]]
    notes: Sequence[str]


class Checked(Lists, Scanning, total=False):
    """What a check looks at, and how it scans the files."""


def apart(given: Checked) -> tuple[Lists, Scanning]:
    """Return what a check looks at, and how it scans."""
    values: Any = given
    what: Any = {name: value for name, value in values.items() if name in Lists.__annotations__}
    how: Any = {name: value for name, value in values.items() if name not in what}
    return what, how


def read_parts(
    root: Path,
    read: Callable[[Split, Path | None, int | None], SampleList],
    parts: Callable[[], Sequence[Split]],
    given: Lists,
) -> tuple[dict[str, SampleList], dict[str, Path]]:
    """Read the parts of a data set.

    Args:
        root: The data set.
        read: Reads a part, from a list file or else from the root, with a number of classes.
        parts: Finds out which parts the root has.
        given: What to look at.

    Returns:
        The samples of each part by its name, and the list files of those that have one.
    """
    num_classes, lists = given.get("num_classes"), given.get("lists") or {}
    if (files := given.get("files")) is not None:
        return {WITHOUT_LABELS: files}, {}
    if not lists:
        list_file = given.get("list_file")
        source = None if list_file is None else Path(list_file)
        own = parts() if source is None else ()
        splits = read_splits(lambda part: read(part, source, num_classes), root, source, own)
        return splits, {} if source is None else dict.fromkeys(splits, source)
    splits = {}
    for part in [part for part in SPLIT_FOLDERS if part in lists]:
        # held-out lists have the classes of the training list
        splits[part] = read(part, lists[part], len(splits["train"].classes) if "train" in splits else num_classes)
    return splits, {str(part): file for part, file in lists.items()}


def read_splits(
    read: Callable[[Split], SampleList],
    root: Path,
    list_file: AnyPath | None,
    parts: Sequence[Split] = ("train", "test"),
) -> dict[str, SampleList]:
    """Read the parts of a data set by name, those that its annotations have; or ``list_file`` alone."""
    if list_file is not None:
        return {Path(list_file).name: read("train")}
    splits: dict[str, SampleList] = {}
    error = DataError(f"{root} has no folder of class folders for training, validation or testing. {seen_in(root)}")
    for part in parts:
        try:
            splits[part] = read(part)
        except NoSplitError as lacking:
            error = lacking
    if not splits:
        raise error
    return splits


def between(
    root: Path, splits: Mapping[str, SampleList], sources: Mapping[str, Path], bad: Collection[Path], given: Lists
) -> dict[str, Any]:
    """Return the ``findings`` between the parts of a data set and the ``notes`` on them, for a report."""
    findings, notes = [*given.get("findings", ())], [*given.get("notes", ())]
    alone = given.get("files") is not None or given.get("list_file") is not None
    findings += faults_of(splits, bad, sources=sources, counted=alone and bool(given.get("num_classes")))
    if not alone:
        missing, more = missing_parts(root, splits)
        findings, notes = [*missing, *findings], [*notes, *more]
    if any(samples.kind == "folders" for samples in splits.values()):
        known = {path for path, _ in findings}
        folders = [folder for split in SPLIT_FOLDERS if (folder := split_folder(root, split))] or [root]
        findings += [row for row in left_out_below(folders) if row[0] not in known]
    return {"findings": tuple(findings), "notes": tuple(notes)}


def missing_parts(root: Path, splits: Mapping[str, SampleList]) -> tuple[list[tuple[Path, str]], list[str]]:
    """Return the finding that nothing is held out of training, or the note that there is no training part."""
    if "train" not in splits:
        return [], ["there is no training part: cgnl evaluate can test on this data, but nothing can be trained on it"]
    if len(splits) > 1:
        return [], []
    return [(root, "has no held-out part: add val/ or test/, or train with --data.val-fraction 0.2")], []


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
