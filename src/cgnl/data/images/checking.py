"""``cgnl data check``: decode every file of a data set and say what is bad."""

import os
import statistics
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cgnl.data.decoding import decoded_size
from cgnl.data.images.reading import Format, read_images
from cgnl.data.lists import SampleList, Split, readable, write_rows
from cgnl.data.scanning import scan_with_bar

_SHOWN = 50


@dataclass(frozen=True)
class SplitReport:
    """What one split of a data set holds.

    Args:
        name: of the split.
        per_class: (name, number of files that can be read) of each class.
        unreadable: number of files that cannot be read.
        missing: number of files that are named but do not exist.
    """

    name: str
    per_class: tuple[tuple[str, int], ...]
    unreadable: int
    missing: int


@dataclass(frozen=True)
class ImageReport:
    """What a data set holds and what is bad in it; as a string, tables to read.

    Args:
        root: the data set.
        kind: its layout.
        splits: what each split holds.
        bad: (path, reason) of each file that is missing or cannot be read.
        sizes: (width, height) in pixels of each image that can be read, upright.
    """

    root: Path
    kind: str
    splits: tuple[SplitReport, ...]
    bad: tuple[tuple[Path, str], ...]
    sizes: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        counts = Table("split", "images", "classes", "images per class", "unreadable", "missing")
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
        with console.capture() as captured:
            console.print(readable(f"{self.root} (layout: {self.kind})"), markup=False, highlight=False, soft_wrap=True)
            console.print(counts)
            if self.sizes:
                widths, heights = zip(*self.sizes, strict=True)
                console.print(
                    f"width {min(widths)} to {max(widths)}, median {statistics.median_low(widths)}; "
                    f"height {min(heights)} to {max(heights)}, median {statistics.median_low(heights)} pixels",
                    highlight=False,
                )
            for path, reason in self.bad[:_SHOWN]:
                console.print(readable(f"{path} {reason}"), markup=False, highlight=False, soft_wrap=True)
            if len(self.bad) > _SHOWN:
                console.print(f"... and {len(self.bad) - _SHOWN} more", highlight=False)
            console.print("nothing is bad" if not self.bad else f"{len(self.bad)} bad files", highlight=False)
        return captured.get().rstrip()


def check_images(
    root: str | os.PathLike[str],
    *,
    format: Format = "auto",
    list_file: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    workers: int | None = None,
    timeout: float = 60.0,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> ImageReport:
    """Decode every file of an image data set, in several processes, and list what is bad.

    A file that crashes its decoder or holds it up is named like any other, and the check goes on.

    Args:
        root: the data set, as for :func:`cgnl.data.images.read_images`.
        format: its layout.
        list_file: lines ``path label``; only these files are checked then.
        num_classes: number of classes, where it must be just that.
        workers: number of processes; by default one for each core.
        timeout: seconds that one file may take.
        out: a CSV file that is written anew with the path and reason of each bad file.
        progress: whether a progress bar is shown on the standard error output of a terminal.

    Returns:
        Counts for each split and class, sizes, and the bad files.

    Raises:
        DataError: the layout or a list is wrong, so that the files are not known.
    """
    root = Path(root).expanduser()
    lists = {
        name: read_images(root, split, format=format, list_file=list_file, num_classes=num_classes, missing_limit=1.0)
        for name, split in _splits(root, list_file).items()
    }
    paths = sorted({sample.path for images in lists.values() for sample in images.samples})
    sizes: dict[Path, tuple[int, int]] = {}
    bad = {path: images.why_missing(path) for images in lists.values() for path in images.missing}
    for result in scan_with_bar(
        decoded_size, paths, "checking images", workers=workers, timeout=timeout, progress=progress
    ):
        if result.value is not None:
            sizes[result.path] = result.value
        else:
            bad[result.path] = result.error or ""
    rows = tuple(sorted(bad.items()))
    if out is not None:
        Path(out).unlink(missing_ok=True)
        write_rows(Path(out), rows)
    return ImageReport(
        root,
        next(iter(lists.values())).kind,
        tuple(_report(name, images, bad) for name, images in lists.items()),
        rows,
        tuple(sizes[path] for path in sorted(sizes)),
    )


def _splits(root: Path, list_file: str | os.PathLike[str] | None) -> dict[str, Split]:
    if list_file is not None:
        return {Path(list_file).name: "train"}
    folders: tuple[Split, ...] = ("train", "val", "test")
    found: dict[str, Split] = {split: split for split in folders if (root / split).is_dir()}
    return {"train": "train", "test": "test"} if (root / "images.txt").exists() or not found else found


def _report(name: str, images: SampleList, bad: dict[Path, str]) -> SplitReport:
    counts = [0] * len(images.classes)
    unreadable = 0
    for sample in images.samples:
        if sample.path in bad:
            unreadable += 1
        else:
            counts[sample.label] += 1
    return SplitReport(name, tuple(zip(images.classes, counts, strict=True)), unreadable, len(images.missing))
