"""``cgnl data check``: decode every file of a data set and say what is bad."""

import os
import statistics
from dataclasses import dataclass
from pathlib import Path

from cgnl.data.decoding import decoded_size
from cgnl.data.images.reading import Format, read_images
from cgnl.data.lists import SampleList, Split
from cgnl.data.reports import SplitReport, missing_of, paths_of, printed, read_splits, report_of, write_anew
from cgnl.data.scanning import scan_with_bar


@dataclass(frozen=True)
class ImageReport:
    """What a data set holds and what is bad in it; as a string, tables to read.

    Args:
        root: The data set.
        kind: Its layout.
        splits: What each split holds.
        bad: (path, reason) of each file that is missing or cannot be read.
        sizes: (width, height) in pixels of each image that can be read, upright.
    """

    root: Path
    kind: str
    splits: tuple[SplitReport, ...]
    bad: tuple[tuple[Path, str], ...]
    sizes: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        contents = []
        if self.sizes:
            widths, heights = zip(*self.sizes, strict=True)
            contents.append(
                f"width {min(widths)} to {max(widths)}, median {statistics.median_low(widths)}; "
                f"height {min(heights)} to {max(heights)}, median {statistics.median_low(heights)} pixels"
            )
        return printed(f"{self.root} (layout: {self.kind})", "images", self.splits, contents, self.bad)


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
        root: The data set, as for :func:`cgnl.data.images.read_images`.
        format: Its layout.
        list_file: Lines ``path label``; only these files are checked then.
        num_classes: Number of classes, where it must be just that.
        workers: Number of processes; by default one for each core.
        timeout: Seconds that one file may take.
        out: A CSV file that is written anew with the path and reason of each bad file.
        progress: Whether a progress bar is shown on the standard error output of a terminal.

    Returns:
        Counts for each split and class, sizes, and the bad files.

    Raises:
        DataError: The layout or a list is wrong, so that the files are not known.
    """
    root = Path(root).expanduser()

    def read(split: Split) -> SampleList:
        return read_images(root, split, format=format, list_file=list_file, num_classes=num_classes, missing_limit=1.0)

    splits = read_splits(read, root, list_file)
    sizes: dict[Path, tuple[int, int]] = {}
    bad = missing_of(splits)
    for result in scan_with_bar(
        decoded_size, paths_of(splits), "checking images", workers=workers, timeout=timeout, progress=progress
    ):
        if result.value is not None:
            sizes[result.path] = result.value
        else:
            bad[result.path] = result.error or ""
    rows = tuple(sorted(bad.items()))
    write_anew(out, rows)
    return ImageReport(
        root,
        next(iter(splits.values())).kind,
        tuple(report_of(name, images, bad) for name, images in splits.items()),
        rows,
        tuple(sizes[path] for path in sorted(sizes)),
    )
