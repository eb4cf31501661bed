"""What checks of image and of video data sets have in common: their counts, and how they are printed."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cgnl.data.lists import NoSplitError, SampleList, Split, readable, write_rows

_SHOWN = 50


@dataclass(frozen=True)
class SplitReport:
    """What one split of a data set holds.

    Args:
        name: Of the split.
        per_class: (name, number of files that can be read) of each class.
        unreadable: Number of files that cannot be read.
        missing: Number of files that are named but do not exist.
    """

    name: str
    per_class: tuple[tuple[str, int], ...]
    unreadable: int
    missing: int


def read_splits(
    read: Callable[[Split], SampleList], root: Path, list_file: str | os.PathLike[str] | None
) -> dict[str, SampleList]:
    """Read all splits that a data set has: one alone, where the annotations are those of one.

    Args:
        read: From a split to its samples.
        root: The data set.
        list_file: A list that is read instead.

    Returns:
        The samples by the name of their split, or of the list.
    """
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


def paths_of(splits: Mapping[str, SampleList]) -> list[Path]:
    """Return the files of all splits that exist, each once."""
    return sorted({sample.path for samples in splits.values() for sample in samples.samples})


def missing_of(splits: Mapping[str, SampleList]) -> dict[Path, str]:
    """Return why each missing file of any split cannot be used."""
    return {path: samples.why_missing(path) for samples in splits.values() for path in samples.missing}


def report_of(name: str, samples: SampleList, bad: Mapping[Path, str]) -> SplitReport:
    """Count what a split holds.

    Args:
        name: Of the split.
        samples: The files.
        bad: Those that cannot be read.

    Returns:
        The counts.
    """
    counts = [0] * len(samples.classes)
    unreadable = 0
    for sample in samples.samples:
        if sample.path in bad:
            unreadable += 1
        else:
            counts[sample.label] += 1
    return SplitReport(name, tuple(zip(samples.classes, counts, strict=True)), unreadable, len(samples.missing))


def write_anew(out: str | os.PathLike[str] | None, rows: Sequence[tuple[Path, str]]) -> None:
    """Write the path and reason of each bad file to a CSV file; None writes nothing."""
    if out is not None:
        Path(out).unlink(missing_ok=True)
        write_rows(Path(out), rows)


def printed(
    title: str,
    noun: str,
    splits: Iterable[SplitReport],
    contents: Iterable[str | Table],
    bad: Sequence[tuple[Path, str]],
    damaged: Sequence[tuple[Path, str]] = (),
    bad_noun: str = "bad files",
) -> str:
    """Return what a check has found, to read.

    Args:
        title: The data set.
        noun: What it holds, in the plural.
        splits: The counts of each split.
        contents: What the files are like.
        bad: Path and reason of each bad file; of very many only the first are shown.
        damaged: The same of files that can be read, but not as a whole.
        bad_noun: What the rows of ``bad`` are.

    Returns:
        Lines of text.
    """
    counts = Table("split", noun, "classes", f"{noun} per class", "unreadable", "missing")
    for split in splits:
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
        console.print(readable(title), **plain)
        console.print(counts)
        for content in contents:
            console.print(content, highlight=False)
        for rows, what in ((damaged, "damaged files"), (bad, bad_noun)):
            for path, reason in rows[:_SHOWN]:
                console.print(readable(f"{path} {reason}"), **plain)
            if len(rows) > _SHOWN:
                console.print(f"... and {len(rows) - _SHOWN} more", highlight=False)
            if rows:
                console.print(f"{len(rows)} {what}", highlight=False)
        if not (bad or damaged):
            console.print("nothing is bad", highlight=False)
    return captured.get().rstrip()
