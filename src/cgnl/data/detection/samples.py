"""Images with objects: one split of a data set in COCO's form, with its bad annotations."""

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cgnl.data.decoding import AnyPath, DataError
from cgnl.data.lists import SampleList, readable
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


class Packed:
    """Lists of plain values in one array of bytes.

    Every reader process would copy a list of all annotations bit by bit, as reading a Python object changes its
    reference count.

    >>> packed = Packed([[1, 2], [], ["three"]])
    >>> len(packed), packed[0], packed.select([2, 0])[0]
    (3, [1, 2], ['three'])
    """

    def __init__(self, rows: Iterable[list[Any]] = ()) -> None:
        self._keep([pickle.dumps(row, pickle.HIGHEST_PROTOCOL) for row in rows])

    def _keep(self, parts: Sequence[bytes]) -> None:
        self._ends = np.cumsum([0, *map(len, parts)])
        self._bytes = np.frombuffer(b"".join(parts), dtype=np.uint8)

    def __len__(self) -> int:
        """Return the number of lists."""
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> list[Any]:
        """Return one of the lists, as a copy."""
        return pickle.loads(self._part(index))

    def _part(self, index: int) -> bytes:
        return self._bytes[self._ends[index] : self._ends[index + 1]].tobytes()

    def select(self, indices: Iterable[int]) -> "Packed":
        """Return some of the lists."""
        packed = Packed()
        packed._keep([self._part(index) for index in indices])
        return packed


@dataclass(frozen=True)
class DetectionList(SampleList):
    """The images of one split and the objects in them; the samples have label 0.

    Args:
        category_ids: The json's id of label k (from 1) is ``category_ids[k - 1]``; its name is ``classes[k - 1]``.
        image_ids: The json's id of each sample.
        sizes: Width and height (pixels) of each sample according to the json.
        source: The json file.
        bad_annotations: Those that are not used.
        num_objects: Number of objects in each sample.
        num_crowds: Number of annotations of each sample that stand for a crowd of objects.
        annotations: Those of each sample that are used, crowds among them.
    """

    category_ids: tuple[int, ...] = ()
    image_ids: tuple[int, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    source: Path = Path()
    bad_annotations: tuple[BadAnnotation, ...] = ()
    num_objects: tuple[int, ...] = ()
    num_crowds: tuple[int, ...] = ()
    annotations: Packed = field(default_factory=Packed, repr=False, compare=False)

    def objects(self, index: int) -> list[dict[str, Any]]:
        """Return the annotations of an image that are used.

        Each has ``id``, ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels, as the json has it),
        ``area`` (pixels), ``iscrowd`` and ``segmentation``.
        """
        return self.annotations[index]

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
    kept = [index for index, number in enumerate(images.num_objects) if number]
    return replace(
        images,
        samples=tuple(images.samples[index] for index in kept),
        image_ids=tuple(images.image_ids[index] for index in kept),
        sizes=tuple(images.sizes[index] for index in kept),
        num_objects=tuple(images.num_objects[index] for index in kept),
        num_crowds=tuple(images.num_crowds[index] for index in kept),
        annotations=images.annotations.select(kept),
    )


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
    three.
    """
    bad = images.bad_annotations
    total = len(bad) + sum(images.num_objects) + sum(images.num_crowds)
    if len(bad) > limit * total:
        some = "; ".join(map(str, bad[:3]))
        raise DataError(
            f"{len(bad)} of {total} annotations of {images.source} are bad, more than the limit of {limit:.1%} "
            f"(--data.bad-limit): {some}" + ("; ..." if len(bad) > 3 else "")
        )


def write_bad_annotations(folder: AnyPath, lists: Iterable[DetectionList]) -> None:
    """List the bad annotations of data sets in ``bad_annotations.csv`` of a run's folder, if there are any."""
    rows = [
        (readable(str(images.source)), bad.id, bad.image, bad.reason)
        for images in lists
        for bad in images.bad_annotations
    ]
    if rows:
        write_csv(Path(folder, "bad_annotations.csv"), [("file", "id", "image", "reason"), *rows])
