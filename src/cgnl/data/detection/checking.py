"""``cgnl data check`` for a data set in COCO's form: decode every image, and say what is bad and what there is."""

import os
import statistics
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cgnl.data.decoding import DataError, decoded_size
from cgnl.data.detection.reading import read_coco
from cgnl.data.detection.samples import DetectionList, check_categories
from cgnl.data.lists import SampleList, Split
from cgnl.data.reports import SplitReport, missing_of, paths_of, printed, read_splits, write_anew
from cgnl.data.scanning import scan_with_bar


@dataclass(frozen=True)
class DetectionReport:
    """What a data set holds and what is bad in it; as a string, tables to read.

    Args:
        root: The data set.
        kind: Its layout.
        splits: What each split holds; the numbers of its categories are those of objects in images that can be read.
        contents: A sentence on each split.
        bad: (path, reason) of each file that is missing or cannot be read, and of each annotation that cannot be
            used; the path of an annotation is that of its json, a comma, and what names it.
    """

    root: Path
    kind: str
    splits: tuple[SplitReport, ...]
    contents: tuple[str, ...]
    bad: tuple[tuple[Path, str], ...]

    def __str__(self) -> str:
        title = f"{self.root} (layout: {self.kind})"
        return printed(title, "objects", self.splits, self.contents, self.bad, bad_noun="bad files and annotations")


def check_detection(
    root: str | os.PathLike[str],
    *,
    annotations: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    workers: int | None = None,
    timeout: float = 60.0,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> DetectionReport:
    """Decode every image of a data set in COCO's form, in several processes, and list what is bad.

    Args:
        root: The data set, as for :func:`cgnl.data.detection.read_coco`.
        annotations: A json file that is checked alone.
        num_classes: Number of categories, where it must be just that.
        workers: Number of processes; by default one for each core.
        timeout: Seconds that one file may take.
        out: A CSV file that is written anew with the path and reason of each bad file and annotation.
        progress: Whether a progress bar is shown on the standard error output.

    Returns:
        Counts of images, objects and categories for each split, and what is bad.

    Raises:
        DataError: A json is not in COCO's form, so that the files are not known; or the splits differ in their
            categories.
    """
    root = Path(root).expanduser()
    lists: dict[str, DetectionList] = {}

    def read(split: Split) -> SampleList:
        name = split if annotations is None else Path(annotations).name
        lists[name] = read_coco(root, split, annotations=annotations)
        return lists[name]

    splits = read_splits(read, root, annotations)
    first = next(iter(lists.values()))
    for images in lists.values():
        check_categories(first, images)
        if num_classes not in (None, len(images.classes)):
            raise DataError(f"{images.source} has {len(images.classes)} categories, but {num_classes} are expected.")
    sizes = {
        sample.path: size
        for images in lists.values()
        for sample, size in zip(images.samples, images.sizes, strict=True)
    }
    bad = missing_of(splits)
    for result in scan_with_bar(
        partial(decoded_size, sizes=sizes),
        paths_of(splits),
        "checking images",
        workers=workers,
        timeout=timeout,
        progress=progress,
    ):
        if result.value is None:
            bad[result.path] = result.error or ""
    rows = (*sorted(bad.items()), *(row for images in lists.values() for row in _bad_rows(images)))
    write_anew(out, rows)
    return DetectionReport(
        root,
        first.kind,
        tuple(_report_of(name, images, bad) for name, images in lists.items()),
        tuple(_describe(name, images) for name, images in lists.items()),
        rows,
    )


def _bad_rows(images: DetectionList) -> list[tuple[Path, str]]:
    return [
        (Path(f"{images.source}, annotation {bad.id}"), f"({bad.image}) {bad.reason}") for bad in images.bad_annotations
    ]


def _report_of(name: str, images: DetectionList, bad: dict[Path, str]) -> SplitReport:
    readable = [index for index, sample in enumerate(images.samples) if sample.path not in bad]
    counts = Counter(
        annotation["category_id"]
        for index in readable
        for annotation in images.objects(index)
        if not annotation["iscrowd"]
    )
    per_class = tuple((name, counts[id]) for name, id in zip(images.classes, images.category_ids, strict=True))
    return SplitReport(name, per_class, len(images) - len(readable), len(images.missing))


def _describe(name: str, images: DetectionList) -> str:
    if not images.samples:
        return f"{name}: no images"
    widths, heights = zip(*images.sizes, strict=True)
    return (
        f"{name}: {len(images)} images, {images.num_objects.count(0)} of them without objects; "
        f"{sum(images.num_crowds)} crowds; {len(images.bad_annotations)} bad annotations; "
        f"width {min(widths)} to {max(widths)}, median {statistics.median_low(widths)}, "
        f"height {min(heights)} to {max(heights)}, median {statistics.median_low(heights)} pixels"
    )
