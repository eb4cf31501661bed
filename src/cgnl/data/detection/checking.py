"""``cgnl data check`` for a data set in COCO's form: decode every image, count the contents and list the faults."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Unpack

from cgnl.data.decoding import AnyPath, DataError, decoded_size, open_regular
from cgnl.data.detection.reading import coco_parts, read_coco
from cgnl.data.detection.samples import BadAnnotation, DetectionList, check_categories
from cgnl.data.faults import faults_of
from cgnl.data.reports import Report, SplitReport, examined, missing_parts, sizes_in_words, write_anew
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
    damaged_noun: ClassVar[tuple[str, str]] = (
        "annotation without some of its polygons",
        "annotations without some of their polygons",
    )
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
    if annotations is not None:
        lists = {Path(annotations).name: read_coco(root, annotations=annotations)}
    else:
        parts = coco_parts(root)
        if not parts:
            read_coco(root)  # says what is missing
        lists = {part: read_coco(root, part) for part in parts}
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
    _, bad = examined(partial(decoded_size, sizes=sizes), lists, "images", **scanning)
    rows = (*sorted(bad.items()), *(row for images in lists.values() for row in _bad_rows(images)))
    missing, notes = missing_parts(root, lists) if annotations is None else ([], [])
    findings = [*missing, *(row for images in lists.values() for row in _faults_of_json(images))]
    findings += faults_of(lists, bad, labelled=False)
    write_anew(out, [*findings, *rows])
    return DetectionReport(
        root=root,
        kind=first.kind,
        splits=tuple(_report_of(name, images, bad) for name, images in lists.items()),
        bad=rows,
        damaged=tuple(row for images in lists.values() for row in _rows(images, images.partial_annotations)),
        contents=tuple(_describe(name, images) for name, images in lists.items()),
        findings=tuple(findings),
        notes=tuple(notes),
    )


def _faults_of_json(images: DetectionList) -> Iterator[tuple[Path, str]]:
    """Give what makes a json useless or ambiguous as a whole."""
    if repeated := _repeated_keys(images.source):
        yield images.source, f"has several lists {', '.join(map(repr, repeated))}, of which only the last is read"
    if any(images.num_objects) or images.bad_annotations:
        return
    if not any(images.num_crowds):
        yield images.source, "has no annotations, so there is no object to learn or to find"
    else:
        crowds = sum(images.num_crowds)
        words = counted(crowds, "annotation")
        yield images.source, f"has {words} of crowds (iscrowd) alone, and no object to learn or to find"


def _repeated_keys(source: Path) -> list[str]:
    """Return the lists of a json that it has more than once."""
    with open_regular(source) as opened:
        text = opened.read()
    names = ("images", "annotations", "categories")
    # a name may also be a text or belong to a smaller object, so that only a second one makes a closer look worthwhile
    if all(text.count(b'"%s"' % name.encode()) < 2 for name in names):
        return []
    found: list[list[str]] = []

    def keys(pairs: list[tuple[str, Any]]) -> None:
        found[:] = [[key for key, _ in pairs]]  # those of the outermost object come last

    json.loads(text, object_pairs_hook=keys)
    return [name for name in names if found[0].count(name) > 1]


def _bad_rows(images: DetectionList) -> list[tuple[Path, str]]:
    return [*((images.source, note) for note in images.notes), *_rows(images, images.bad_annotations)]


def _rows(images: DetectionList, annotations: Iterable[BadAnnotation]) -> list[tuple[Path, str]]:
    return [(Path(f"{images.source}, annotation {bad.id}"), f"({bad.image}) {bad.reason}") for bad in annotations]


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
