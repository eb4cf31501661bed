"""The layouts of image data sets on disk: CUB-200-2011, list files, folders of classes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from cgnl.data.decoding import AnyPath, DataError, resolve_inside
from cgnl.data.lists import (
    IMAGE_SUFFIXES,
    Inside,
    Sample,
    SampleList,
    Split,
    check_folder,
    check_missing,
    class_folders,
    class_parts,
    exists,
    has_class_folders,
    integer,
    labelled_lines,
    listed,
    read_classes,
    read_table,
    readable,
    seen_in,
    shown,
    text_lines,
)
from cgnl.settings.words import counted

_CUB_FILES = ("classes.txt", "images.txt", "image_class_labels.txt", "train_test_split.txt")
Format = Literal["auto", "cub", "list", "folders"]


def read_images(
    root: AnyPath,
    split: Split = "train",
    *,
    format: Format = "auto",
    list_file: AnyPath | None = None,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    missing_limit: float = 0.05,
) -> SampleList:
    """Read one split of an image data set in any of the known layouts.

    Args:
        root: A ``CUB_200_2011`` folder, one of class folders as :func:`read_class_folders` reads them, or the folder
            that the paths of a list file start from.
        split: ``train``, ``test`` or ``val``; where a data set has only one of the last two, either means it.
        format: The layout; ``auto`` takes ``list`` with a list file, else looks into ``root``.
        list_file: Lines ``path label``, labels from 0; the split is then whatever the file lists.
        num_classes: Number of classes K, where the data set must have just that many.
        classes: Names of the labels, of which the data set may have some only; by default its own.
        missing_limit: Part of the named files that may be missing.

    Returns:
        Samples whose files exist, and the names of the missing ones.

    Raises:
        DataError: The layout is not recognised, a line or label is wrong, a path leads out of the root, or
            more files are missing than allowed.
        ValueError: A list file with a format other than ``list``, or none with it.
    """
    root = Path(root).expanduser()
    check_folder(root)
    format = recognise_images(root, list_file) if format == "auto" else format
    if (format == "list") != (list_file is not None):
        raise ValueError(f"list_file ({list_file}) must be given with format list and no other; the format is {format}")
    if format == "cub":
        if lacking := next((name for name in _CUB_FILES if not (root / name).exists()), None):
            raise DataError(
                f"{root / lacking} does not exist, but the layout was taken for CUB-200-2011 (data.format cub). "
                f"{seen_in(root)} With --data.format auto, cgnl recognises the layout."
            )
        images = read_cub(root, split)
    elif format == "folders":
        images = read_class_folders(root, split, classes)
    else:
        assert list_file is not None
        images = read_image_list(list_file, root, classes, num_classes)
    if classes is not None:
        images = images.labelled_by(classes)
    if num_classes not in (None, len(images.classes)):
        found = counted(len(images.classes), "class", "classes")
        raise DataError(f"{root} has {found}, but {num_classes} are expected.")
    if not images.samples and not images.missing:
        raise DataError(f"{list_file or root} names no images for the {split} split.")
    check_missing(images, missing_limit)
    return images


def recognise_images(root: Path, list_file: AnyPath | None = None) -> Format:
    """Return the layout of a data set of images; DataError if it has none."""
    if list_file is not None:
        return "list"
    check_folder(root)
    if (root / "images.txt").exists():
        return "cub"
    if has_class_folders(root):
        return "folders"
    raise DataError(
        f"{root} holds neither images.txt (CUB-200-2011) nor train/ or other folders of classes, and no list file is "
        f"given. {seen_in(root)}"
    )


def image_parts(root: Path, format: Format = "auto") -> tuple[Split, ...]:
    """Return which parts a data set of images without list files has."""
    format = recognise_images(root) if format == "auto" else format
    return class_parts(root) if format == "folders" else ("train", "test")


def read_cub(root: AnyPath, split: Split = "train") -> SampleList:
    """Read a folder in the layout of CUB-200-2011, in the order of ``images.txt``; labels count from 0.

    It holds ``images.txt``, ``image_class_labels.txt`` (labels from 1), ``classes.txt``, ``train_test_split.txt`` and
    ``images/``. The split is ``train``, or ``test`` (``val`` means the same). Raises DataError where a line is
    malformed, an id or label unknown or given twice, or a path leads out of ``images/``.

    Source: Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011.
    """
    root = Path(root)
    label_file = root / "image_class_labels.txt"
    classes = read_classes(root / "classes.txt")
    expected_ids = range(1, len(classes) + 1)
    labels = read_table(label_file, "<image id> <class id>", integer)
    for line, label in labels.values():
        if label not in expected_ids:
            raise DataError(f"{label_file}, line {line}: read class id {label}, expected 1 to {len(classes)}.")
    splits = read_table(root / "train_test_split.txt", "<image id> <1 for training, 0 for testing>", _flag)

    image_file = root / "images.txt"
    inside = Inside(resolve_inside(root, "images", source=root), image_file)
    samples, missing = [], []
    for image_id, (line, relative) in read_table(image_file, "<image id> <path>", str).items():
        for name, table in ((label_file.name, labels), ("train_test_split.txt", splits)):
            if image_id not in table:
                raise DataError(f"{image_file}, line {line}: image {image_id} has no line in {name}.")
        path = inside(relative, line)
        if splits[image_id][1] != (split == "train"):
            continue
        if exists(path):
            samples.append(Sample(path, labels[image_id][1] - 1))
        else:
            missing.append(path)
    return SampleList(root, tuple(samples), classes, "cub", tuple(missing))


def read_cub_boxes(root: AnyPath) -> dict[Path, tuple[float, float, float, float]]:
    """Read CUB-200-2011's ``bounding_boxes.txt``: ``(x, y, width, height)`` in pixels for each image file.

    Raises DataError where a line is malformed or names an unknown image.
    """
    paths = _cub_paths(Path(root))
    file = Path(root, "bounding_boxes.txt")
    boxes = {}
    for line, (image_id, x, y, width, height) in _numbers(file, "<image id> <x> <y> <width> <height>", 5):
        boxes[_known_image(paths, image_id, file, line)] = (x, y, width, height)
    return boxes


def read_cub_parts(root: AnyPath) -> tuple[tuple[str, ...], dict[Path, dict[str, tuple[float, float]]]]:
    """Read CUB-200-2011's ``parts/parts.txt`` and ``parts/part_locs.txt``.

    Returns the names of all parts, and for each image file the ``(x, y)`` in pixels of its visible parts. Raises
    DataError where a line is malformed or names an unknown image or part.
    """
    paths = _cub_paths(Path(root))
    names = read_table(Path(root, "parts", "parts.txt"), "<part id> <name>", readable)
    file = Path(root, "parts", "part_locs.txt")
    locations: dict[Path, dict[str, tuple[float, float]]] = {path: {} for path in paths.values()}
    for line, (image_id, part, x, y, visible) in _numbers(file, "<image id> <part id> <x> <y> <visible>", 5):
        path = _known_image(paths, image_id, file, line)
        if part not in names:
            raise DataError(f"{file}, line {line}: read part id {part:g}, which parts.txt does not have.")
        if visible:
            locations[path][names[int(part)][1]] = (x, y)
    return tuple(name for _, name in names.values()), locations


def _cub_paths(root: Path) -> dict[int, Path]:
    file = root / "images.txt"
    inside = Inside(resolve_inside(root, "images", source=root), file)
    return {
        image_id: inside(relative, line)
        for image_id, (line, relative) in read_table(file, "<image id> <path>", str).items()
    }


def _known_image(paths: dict[int, Path], image_id: float, file: Path, line: int) -> Path:
    if image_id not in paths:
        raise DataError(f"{file}, line {line}: read image id {image_id:g}, which images.txt does not have.")
    return paths[int(image_id)]


def read_image_list(
    list_file: AnyPath, image_root: AnyPath, classes: Sequence[str] | None = None, num_classes: int | None = None
) -> SampleList:
    """Read a list file of the released code: lines ``path label`` by white space, labels from 0.

    A path may hold spaces, as the label is what follows the last one, and starts from ``image_root``. ``classes`` names
    the labels; by default the names are those of the folders where they tell the labels apart, else the labels
    themselves. ``num_classes`` (K) is by default one more than the largest label. Raises DataError where a line has no
    label, or one that is no whole number or not from 0 to K - 1; labels count from 1; or a path leads out of the root.
    """
    list_file, image_root = Path(list_file), Path(image_root)
    inside = Inside(image_root, list_file)
    rows = [(line, inside(path, line), label) for line, path, label in labelled_lines(list_file)]
    return listed(list_file, image_root, rows, classes=classes, num_classes=num_classes)


def read_class_folders(root: AnyPath, split: Split = "train", classes: Sequence[str] | None = None) -> SampleList:
    """Read ``root/{train,val,test}/<class>/*``; labels number the class folders of ``train`` by sorted name.

    ``train`` may also be ``training``, ``val`` be ``valid`` or ``validation``, and ``test`` be ``testing``. Without any
    of them, the class folders right in the root are the training part. Where there is only one of ``val`` and ``test``,
    either name means it. Files whose suffix is not that of an image format are skipped, and so is what is hidden, or in
    a ``__MACOSX`` folder; folders inside a class folder belong to the class, and those without files are no classes.
    With ``classes``, these names are the labels, and there need be no ``train``. Samples are sorted by class and path.
    Raises DataError where there is no such folder, it has no class folders, it has a class that ``train`` or
    ``classes`` lacks, or a symbolic link leads out of the root.
    """
    return class_folders(Path(root), split, IMAGE_SUFFIXES | {""}, classes)


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError
    return text == "1"


def _numbers(file: Path, expected: str, count: int) -> Iterator[tuple[int, list[float]]]:
    """Read lines of ``count`` finite numbers, with their line numbers."""
    for line, text in text_lines(file):
        try:
            numbers = [float(word) for word in text.split()]
        except ValueError:
            numbers = []
        if len(numbers) != count or not np.isfinite(numbers).all():
            raise DataError(f"{file}, line {line}: read {shown(text)}, expected `{expected}`.")
        yield line, numbers
