"""``cgnl data check`` for a data set in COCO's form: decode every image, count the contents and list the faults."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Unpack

from cgnl.data.decoding import AnyPath, DataError, decoded_size
from cgnl.data.detection.reading import read_coco
from cgnl.data.detection.samples import DetectionList, check_categories
from cgnl.data.lists import SampleList, Split
from cgnl.data.reports import Report, SplitReport, examined, read_splits, sizes_in_words, write_anew
from cgnl.data.scanning import Scanning
from cgnl.settings.words import counted


@dataclass(frozen=True, kw_only=True)
class DetectionReport(Report):
    """Contents of a data set in COCO's form and its faults; as a string, tables to read.

    The numbers of each class are those of objects in images that can be read. Bad are also the annotations that cannot
    be used; their path is that of the json, a comma, and the annotation's id.

    Args:
        contents: A sentence on each split.
    """

    noun: ClassVar[str] = "objects"
    bad_noun: ClassVar[tuple[str, str]] = ("bad file or annotation", "bad files and annotations")
    contents: tuple[str, ...]

    def describe(self) -> tuple[str, ...]:
        """Return the sentences on the splits."""
        return self.contents


def check_detection(
    root: AnyPath,
    *,
    annotations: AnyPath | None = None,
    num_classes: int | None = None,
    out: AnyPath | None = None,
    **scanning: Unpack[Scanning],
) -> DetectionReport:
    """Decode every image of a data set in COCO's form, in several processes, and list the bad ones.

    Arguments and errors are as of :func:`cgnl.data.checking.check_data`, and the splits must have the same categories;
    ``annotations`` is a json file that is checked alone.
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
    _, bad = examined(partial(decoded_size, sizes=sizes), splits, "images", **scanning)
    rows = (*sorted(bad.items()), *(row for images in lists.values() for row in _bad_rows(images)))
    write_anew(out, rows)
    return DetectionReport(
        root=root,
        kind=first.kind,
        splits=tuple(_report_of(name, images, bad) for name, images in lists.items()),
        bad=rows,
        contents=tuple(_describe(name, images) for name, images in lists.items()),
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
    return (
        f"{name}: {counted(len(images), 'image')}, {images.num_objects.count(0)} of them without objects; "
        f"{counted(sum(images.num_crowds), 'crowd')}; {counted(len(images.bad_annotations), 'bad annotation')}; "
        f"{sizes_in_words(images.sizes)}"
    )
