"""Images with objects: one split of a data set in COCO's form, with its bad annotations."""

import hashlib
import marshal
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from cgnl.data.decoding import AnyPath, DataError
from cgnl.data.lists import SampleList, check_missing, differences, readable
from cgnl.files import write_csv


@dataclass(frozen=True, slots=True)
class BadAnnotation:
    """An annotation that is not used, by its id (or place in the json), and its image, by name (or id).

    ``reason`` is the fault, as the rest of a sentence that begins with the annotation.
    """

    id: int | str
    image: str
    reason: str

    def __str__(self) -> str:
        return f"annotation {self.id} ({self.image}) {self.reason}"


def whole(value: Any) -> int | None:
    """Return a number of a json as an int, where it is a whole one that tensors can hold (3.0 is 3); else None."""
    if type(value) is float and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


class Place(int):
    """The number of a row in :class:`Rows`."""

    __slots__ = ()


class Rows:
    """Plain values of a json, one after another in one array of bytes: a fifth of the memory that they would take.

    Every reader process would copy a list of all annotations bit by bit, as reading a Python object changes its
    reference count; it shares an array.

    >>> rows = Rows()
    >>> rows[rows.add({"id": 7})]
    {'id': 7}
    """

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array("q", [0])

    def add(self, value: Any) -> Place:
        """Keep a value, and return its place."""
        self._bytes += marshal.dumps(value)
        self._ends.append(len(self._bytes))
        return Place(len(self._ends) - 2)

    def __getitem__(self, place: int) -> Any:
        """Return a value, as a copy."""
        return marshal.loads(memoryview(self._bytes)[self._ends[place] : self._ends[place + 1]])


class Packed:
    """Lists of rows.

    >>> rows = Rows()
    >>> packed = Packed(rows, [[rows.add(1), rows.add(2)], [], [rows.add("three")]])
    >>> len(packed), packed[0], packed.select([2, 0])[0]
    (3, [1, 2], ['three'])
    """

    def __init__(self, rows: Rows | None = None, lists: Sequence[Sequence[int]] = ()) -> None:
        self._rows = rows or Rows()
        self._places = np.array([place for places in lists for place in places], dtype=np.int64)
        self._ends = np.cumsum([0, *map(len, lists)])

    def __len__(self) -> int:
        """Return the number of lists."""
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> list[Any]:
        """Return one of the lists, as a copy."""
        return [self._rows[place] for place in self._part(index)]

    def _part(self, index: int) -> list[int]:
        places: list[int] = self._places[self._ends[index] : self._ends[index + 1]].tolist()
        return places

    def select(self, indices: Iterable[int]) -> "Packed":
        """Return some of the lists."""
        return Packed(self._rows, [self._part(index) for index in indices])


@dataclass(frozen=True)
class DetectionList(SampleList):
    """The images of one split and the objects in them; the samples have label 0.

    Args:
        category_ids: The json's id of label k (from 1) is ``category_ids[k - 1]``; its name is ``classes[k - 1]``.
        image_ids: The json's id of each sample.
        sizes: Width and height (pixels) of each sample according to the json.
        source: The json file.
        bad_annotations: Those that are not used.
        partial_annotations: Those of which some polygons are not used.
        notes: Other things in the json that are likely mistakes, as the rest of a sentence that begins with its name.
        num_objects: Number of objects in each sample.
        num_crowds: Number of annotations of each sample that stand for a crowd of objects.
        annotations: Those of each sample that are used, crowds among them.
    """

    category_ids: tuple[int, ...] = ()
    image_ids: tuple[int, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    source: Path = Path()
    bad_annotations: tuple[BadAnnotation, ...] = ()
    partial_annotations: tuple[BadAnnotation, ...] = ()
    notes: tuple[str, ...] = ()
    num_objects: tuple[int, ...] = ()
    num_crowds: tuple[int, ...] = ()
    annotations: Packed = field(default_factory=Packed, repr=False, compare=False)

    def select(self, numbers: Sequence[int]) -> "DetectionList":
        """Return the images with these numbers."""
        return replace(
            self,
            samples=tuple(self.samples[index] for index in numbers),
            image_ids=tuple(self.image_ids[index] for index in numbers),
            sizes=tuple(self.sizes[index] for index in numbers),
            num_objects=tuple(self.num_objects[index] for index in numbers),
            num_crowds=tuple(self.num_crowds[index] for index in numbers),
            annotations=self.annotations.select(numbers),
        )

    def labelled_by(self, classes: Sequence[str]) -> "DetectionList":
        """Return the same images with other names of the labels; those without a category get an id that none has.

        Raises:
            DataError: An object's category is not among the names.
        """
        if self.classes == tuple(classes):
            return self
        id_of = dict(zip(self.classes, self.category_ids, strict=True))
        known = {id_of[name] for name in classes if name in id_of}
        occurring = {row["category_id"] for index in range(len(self)) for row in self.objects(index)}
        if not known or occurring - known:
            raise DataError(f"{self.root} has other classes than expected; {differences(self.classes, classes)}")
        unused = count(max(self.category_ids) + 1)
        ids = tuple(id_of[name] if name in id_of else next(unused) for name in classes)
        return replace(self, classes=tuple(classes), category_ids=ids)

    def objects(self, index: int) -> list[dict[str, Any]]:
        """Return the annotations of an image that are used.

        Each has ``id``, ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels, as the json has it),
        ``area`` (pixels), ``iscrowd`` and ``segmentation``.
        """
        return self.annotations[index]

    def truth_of(self, index: int) -> str:
        """Return a digest of the objects of an image: categories, boxes, areas, and whether each is a crowd."""
        objects = [[row[name] for name in ("category_id", "bbox", "area", "iscrowd")] for row in self.objects(index)]
        return hashlib.blake2b(repr(objects).encode(), digest_size=8).hexdigest()

    def truth(self) -> dict[str, list[dict[str, Any]]]:
        """Return the ``images``, ``annotations`` that are used (crowds too) and ``categories`` in COCO's own structure.

        COCO's evaluation takes the annotation id 0 for "no object", so that one gets another number.
        """
        annotations = [annotation for index in range(len(self)) for annotation in self.objects(index)]
        unused = max((annotation["id"] for annotation in annotations), default=0) + 1
        for annotation in annotations:
            annotation["id"] = annotation["id"] or unused
        return {
            "images": [
                {"id": image_id, "file_name": sample.path.name, "width": width, "height": height}
                for sample, image_id, (width, height) in zip(self.samples, self.image_ids, self.sizes, strict=True)
            ],
            "annotations": annotations,
            "categories": [{"id": id, "name": name} for id, name in zip(self.category_ids, self.classes, strict=True)],
        }


def with_objects(images: DetectionList) -> DetectionList:
    """Return the images to learn from: those with an object that is no crowd."""
    return images.select([index for index, number in enumerate(images.num_objects) if number])


def check_categories(first: DetectionList, other: DetectionList) -> None:
    """Raise DataError if the categories of two splits differ, with the first id or name that only one of them has."""
    ours, theirs = (set(zip(images.category_ids, images.classes, strict=True)) for images in (first, other))
    if ours != theirs:
        id, name = min(ours ^ theirs)
        there, lacks = (first, other) if (id, name) in ours else (other, first)
        raise DataError(
            f"{there.source} has the category {id} {name!r}, but {lacks.source} does not; "
            "both must have the same categories."
        )


def check_annotations(images: DetectionList, limit: float) -> None:
    """Raise DataError if more than ``limit`` (a part) of the annotations are bad; it counts them and names the first
    three. Images that are missing, which make their annotations bad, are counted before.
    """
    check_missing(images, limit)
    bad = images.bad_annotations
    total = len(bad) + sum(images.num_objects) + sum(images.num_crowds)
    if len(bad) > limit * total:
        some = "; ".join(map(str, bad[:3]))
        raise DataError(
            f"{len(bad)} of {total} annotations of {images.source} are bad, more than the limit of {limit:.1%} "
            f"(--data.bad-limit): {some}" + ("; ..." if len(bad) > 3 else "")
        )


def write_bad_annotations(folder: AnyPath, lists: Iterable[DetectionList]) -> None:
    """List the bad and the partial annotations of data sets in ``bad_annotations.csv`` of a run's folder, if any."""
    rows = [
        (readable(str(images.source)), bad.id, bad.image, bad.reason)
        for images in lists
        for bad in (*images.bad_annotations, *images.partial_annotations)
    ]
    if rows:
        write_csv(Path(folder, "bad_annotations.csv"), [("file", "id", "image", "reason"), *rows])
