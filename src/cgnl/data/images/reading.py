"""The layouts of image data sets on disk: CUB-200-2011, list files, folders of classes."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from cgnl.data.decoding import DataError, open_regular, resolve_inside

T = TypeVar("T")
Split = Literal["train", "test", "val"]
Format = Literal["auto", "cub", "list", "folders"]

# Files in class folders that are meant as images. TIFF, GIF and the like cannot be read, so each of them will
# be named as bad; leaving them out here would drop samples without a word.
_READ = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib"}
_NOT_READ = {".tif", ".tiff", ".gif", ".eps", ".avif", ".heic", ".heif", ".svg"}


@dataclass(frozen=True, slots=True)
class ImageSample:
    """One image file and its class.

    Args:
        path: the file; nothing is known of its contents.
        label: number of the class, from 0.
    """

    path: Path
    label: int


@dataclass(frozen=True)
class ImageList:
    """The images of one split of a data set.

    Args:
        root: the folder that holds all files.
        samples: the files that exist, with their labels.
        classes: a name for each label.
        kind: the layout it was read from: ``cub``, ``list`` or ``folders``.
        missing: files that the data set names but that do not exist.
    """

    root: Path
    samples: tuple[ImageSample, ...]
    classes: tuple[str, ...]
    kind: str
    missing: tuple[Path, ...] = ()

    def __len__(self) -> int:
        """Return the number of files that exist."""
        return len(self.samples)


def read_images(
    root: str | os.PathLike[str],
    split: Split = "train",
    *,
    format: Format = "auto",
    list_file: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    missing_limit: float = 0.05,
) -> ImageList:
    """Read one split of an image data set in any of the known layouts.

    Args:
        root: a ``CUB_200_2011`` folder, one with ``train/`` and ``val/`` (or ``test/``) of class folders, or
            the folder that the paths of a list file start from.
        split: ``train``, ``test`` or ``val``; where a data set has only one of the last two, either means it.
        format: the layout; ``auto`` takes ``list`` with a list file, else looks into ``root``.
        list_file: lines ``path label``, labels from 0; the split is then whatever the file lists.
        num_classes: number of classes K, where the data set must have just that many.
        missing_limit: part of the named files that may be missing.

    Returns:
        Samples whose files exist, and the names of the missing ones.

    Raises:
        DataError: the layout is not recognised, a line or label is wrong, a path leads out of the root, or
            more files are missing than allowed.
        ValueError: a list file with a format other than ``list``, or none with it.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"{root} is not a folder.")
    if format == "auto":
        format = _recognise(root, list_file)
    if (format == "list") != (list_file is not None):
        raise ValueError(f"list_file ({list_file}) must be given with format list and no other; the format is {format}")
    if format == "cub":
        images = read_cub(root, split)
    elif format == "folders":
        images = read_class_folders(root, split)
    else:
        assert list_file is not None
        images = read_image_list(list_file, root, num_classes=num_classes)
    if num_classes not in (None, len(images.classes)):
        raise DataError(f"{root} has {len(images.classes)} classes, but {num_classes} are expected.")
    if not images.samples and not images.missing:
        raise DataError(f"{list_file or root} names no images for the {split} split.")
    check_missing(images, missing_limit)
    return images


def _recognise(root: Path, list_file: str | os.PathLike[str] | None) -> Format:
    if list_file is not None:
        return "list"
    if (root / "images.txt").exists():
        return "cub"
    if (root / "train").is_dir():
        return "folders"
    hint = ""
    if (root / "CUB_200_2011" / "images.txt").exists():
        hint = f" Did you mean {root / 'CUB_200_2011'}?"
    raise DataError(
        f"{root} holds neither images.txt (CUB-200-2011) nor train/ (folders of classes), and no list file "
        f"is given.{hint}"
    )


def check_missing(images: ImageList, limit: float) -> None:
    """Refuse a data set that lacks too many of its files.

    Args:
        images: the data set.
        limit: part of the named files that may be missing.

    Raises:
        DataError: more are missing; the message counts them and names the first.
    """
    total = len(images.samples) + len(images.missing)
    if len(images.missing) > limit * total:
        some = ", ".join(map(str, images.missing[:3])) + (", ..." if len(images.missing) > 3 else "")
        raise DataError(
            f"{len(images.missing)} of {total} files of {images.root} are missing, more than the limit of "
            f"{limit:.1%}: {some}"
        )


def read_cub(root: str | os.PathLike[str], split: Split = "train") -> ImageList:
    """Read a folder in the layout of CUB-200-2011.

    Args:
        root: the folder with ``images.txt``, ``image_class_labels.txt`` (labels from 1), ``classes.txt``,
            ``train_test_split.txt`` and ``images/``.
        split: ``train``, or ``test`` (``val`` means the same).

    Returns:
        Samples in the order of ``images.txt``, labels from 0.

    Raises:
        DataError: a line is malformed, an id or label unknown or given twice, or a path leads out of
            ``images/``.

    Source: Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011.
    """
    root = Path(root)
    class_file, label_file = root / "classes.txt", root / "image_class_labels.txt"
    names = _table(class_file, "<class id> <name>", readable)
    expected_ids = range(1, len(names) + 1)
    for number, (line, _) in names.items():
        if number not in expected_ids:
            raise DataError(f"{class_file}, line {line}: read class id {number}, expected 1 to {len(names)} once each.")
    classes = tuple(names[number][1] for number in expected_ids)

    labels = _table(label_file, "<image id> <class id>", _integer)
    for line, label in labels.values():
        if label not in expected_ids:
            raise DataError(f"{label_file}, line {line}: read class id {label}, expected 1 to {len(names)}.")
    splits = _table(root / "train_test_split.txt", "<image id> <1 for training, 0 for testing>", _flag)

    image_file = root / "images.txt"
    inside = _Inside(_subfolder(root, "images"), image_file)
    samples, missing = [], []
    for image_id, (line, relative) in _table(image_file, "<image id> <path>", str).items():
        for name, table in ((label_file.name, labels), ("train_test_split.txt", splits)):
            if image_id not in table:
                raise DataError(f"{image_file}, line {line}: image {image_id} has no line in {name}.")
        path = inside(relative, line)
        if splits[image_id][1] != (split == "train"):
            continue
        if path.exists():
            samples.append(ImageSample(path, labels[image_id][1] - 1))
        else:
            missing.append(path)
    return ImageList(root, tuple(samples), classes, "cub", tuple(missing))


def read_cub_boxes(root: str | os.PathLike[str]) -> dict[Path, tuple[float, float, float, float]]:
    """Read the bounding boxes of a folder in the layout of CUB-200-2011.

    Args:
        root: the folder with ``images.txt`` and ``bounding_boxes.txt``.

    Returns:
        ``(x, y, width, height)`` in pixels for each image file.

    Raises:
        DataError: a line is malformed or names an unknown image.
    """
    paths = _cub_paths(Path(root))
    file = Path(root, "bounding_boxes.txt")
    boxes = {}
    for line, (image_id, x, y, width, height) in _numbers(file, "<image id> <x> <y> <width> <height>", 5):
        boxes[_known_image(paths, image_id, file, line)] = (x, y, width, height)
    return boxes


def read_cub_parts(
    root: str | os.PathLike[str],
) -> tuple[tuple[str, ...], dict[Path, dict[str, tuple[float, float]]]]:
    """Read the part locations of a folder in the layout of CUB-200-2011.

    Args:
        root: the folder with ``images.txt``, ``parts/parts.txt`` and ``parts/part_locs.txt``.

    Returns:
        The names of all parts, and for each image file the ``(x, y)`` in pixels of its visible parts.

    Raises:
        DataError: a line is malformed or names an unknown image or part.
    """
    paths = _cub_paths(Path(root))
    names = _table(Path(root, "parts", "parts.txt"), "<part id> <name>", readable)
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
    inside = _Inside(_subfolder(root, "images"), file)
    return {
        image_id: inside(relative, line)
        for image_id, (line, relative) in _table(file, "<image id> <path>", str).items()
    }


def _known_image(paths: dict[int, Path], image_id: float, file: Path, line: int) -> Path:
    if image_id not in paths:
        raise DataError(f"{file}, line {line}: read image id {image_id:g}, which images.txt does not have.")
    return paths[int(image_id)]


def read_image_list(
    list_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> ImageList:
    """Read a list file of the released code: lines ``path label`` by white space, labels from 0.

    Args:
        list_file: the file; a path may hold spaces, as the label is what follows the last one.
        image_root: the folder that the paths start from.
        classes: a name for each label; by default the name of the folder where that tells the labels apart,
            else the label itself.
        num_classes: number of classes K; by default one more than the largest label.

    Returns:
        Samples in the order of the file.

    Raises:
        DataError: a line has no label, or one that is no whole number or not from 0 to K - 1; labels count
            from 1; or a path leads out of the root.
    """
    list_file, image_root = Path(list_file), Path(image_root)
    if classes is not None:
        num_classes = len(classes)
    inside = _Inside(image_root, list_file)
    rows: list[tuple[int, Path, int]] = []
    for line, text in _lines(list_file):
        row = re.fullmatch(r"(.+?)[ \t]+(\S+)", text)
        if row is None:
            raise DataError(f"{list_file}, line {line}: read {_shown(text)}, expected `path label`.")
        try:
            label = _integer(row[2])
        except ValueError:
            raise DataError(
                f"{list_file}, line {line}: read the label {_shown(row[2])}, expected a whole number from 0."
            ) from None
        rows.append((line, inside(row[1], line), label))
    _check_labels(list_file, [(line, label) for line, _, label in rows], num_classes)

    named = [ImageSample(path, label) for _, path, label in rows]
    missing = {sample.path for sample in named if not sample.path.exists()}
    if classes is None:
        num_classes = num_classes or max((sample.label for sample in named), default=-1) + 1
        classes = _names_from_folders(named, num_classes)
    samples = tuple(sample for sample in named if sample.path not in missing)
    return ImageList(image_root, samples, tuple(classes), "list", tuple(sorted(missing)))


def _check_labels(list_file: Path, labels: list[tuple[int, int]], num_classes: int | None) -> None:
    if not labels:
        return
    lowest, highest = (pick(label for _, label in labels) for pick in (min, max))
    upper = highest if num_classes is None else num_classes - 1
    expected = "0 or above" if num_classes is None else f"0 to {upper}"
    for line, label in labels:
        if not 0 <= label <= upper:
            from_one = lowest >= 1 and highest == num_classes
            raise DataError(
                f"{list_file}, line {line}: read label {label}, expected {expected}."
                + (" No line has label 0: the labels seem to count from 1." if from_one else "")
            )
    occurring = len({label for _, label in labels})
    if num_classes is None and highest + 1 > 2 * occurring:
        line = next(line for line, label in labels if label == highest)
        raise DataError(
            f"{list_file}, line {line}: read label {highest}, but only {occurring} different labels occur. "
            "Give the number of classes if the others just have no images."
        )
    if num_classes is None and lowest >= 1:
        line = next(line for line, label in labels if label == lowest)
        raise DataError(
            f"{list_file}, line {line}: read label {lowest}, the lowest of all, but expected labels from 0; "
            "these seem to count from 1. Give the number of classes if class 0 just has no images."
        )


def _names_from_folders(samples: Iterable[ImageSample], num_classes: int) -> tuple[str, ...]:
    folders = defaultdict(set)
    for sample in samples:
        folders[sample.label].add(sample.path.parent)
    names = {label: readable(next(iter(found)).name) for label, found in folders.items() if len(found) == 1}
    if len(names) == len(folders) and len(set(names.values())) == len(names):
        return tuple(names.get(label, str(label)) for label in range(num_classes))
    return tuple(map(str, range(num_classes)))


def read_class_folders(root: str | os.PathLike[str], split: Split = "train") -> ImageList:
    """Read ``root/{train,val,test}/<class>/*``; labels number the class folders of ``train`` by sorted name.

    Hidden files and files whose suffix is not that of an image format are left out; folders inside a class
    folder belong to the class.

    Args:
        root: the folder with ``train/`` and ``val/`` or ``test/``.
        split: which of them; where there is only one of the last two, either means it.

    Returns:
        Samples sorted by class and path.

    Raises:
        DataError: there is no such folder, it has no class folders, it has one that ``train/`` lacks, or a
            symbolic link leads out of the root.
    """
    root = Path(root)
    folder = root / split
    if split != "train" and not folder.is_dir():
        folder = root / ("val" if split == "test" else "test")
    class_names = _class_names(root, root / "train")
    labels = {name: label for label, name in enumerate(class_names)}
    samples = []
    for name in _class_names(root, folder):
        if name not in labels:
            raise DataError(
                f"{folder / name} is a class that {root / 'train'} does not have; expected those of training."
            )
        samples += [ImageSample(path, labels[name]) for path in _files(root, folder / name)]
    return ImageList(root, tuple(samples), tuple(map(readable, class_names)), "folders")


def _subfolder(root: Path, name: str) -> Path:
    return resolve_inside(root, name, source=root)


def _class_names(root: Path, folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; expected one with a folder for each class.")
    _subfolder(root, folder.name)
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder} has no folders in it; expected one for each class.")
    return names


def _files(root: Path, folder: Path) -> Iterator[Path]:
    if folder.is_symlink():
        resolve_inside(root, str(folder.relative_to(root)), source=folder.parent)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _files(root, path)
        elif path.suffix.lower() in {*_READ, *_NOT_READ, ""}:
            if entry.is_symlink():
                resolve_inside(root, str(path.relative_to(root)), source=folder)
            yield path


class _Inside:
    """``resolve_inside`` for the many lines of one file: each folder is resolved once only."""

    def __init__(self, root: Path, source: Path) -> None:
        self.root, self.source = root, source
        self._known: set[str] = set()

    def __call__(self, relative: str, line: int) -> Path:
        path = self._checked(relative, line)
        in_latin1 = readable(relative)
        if in_latin1 != relative and not path.exists():
            # The list is in Latin-1, but the names on disk may be in UTF-8.
            return self._checked(in_latin1, line)
        return path

    def _checked(self, relative: str, line: int) -> Path:
        parent, _, name = relative.rpartition("/")
        path = self.root / relative
        if parent not in self._known or name in ("", "..") or "\0" in name or path.is_symlink():
            resolve_inside(self.root, relative, source=self.source, line=line)
            resolve_inside(self.root, parent or ".", source=self.source, line=line)
            self._known.add(parent)
        return path


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number and text of the lines of a text file that are not blank; bytes that are not UTF-8 are kept."""
    with open_regular(file) as opened:
        text = opened.read().decode("utf-8-sig", "surrogateescape")
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip(" \t\r")
        if line:
            yield number, line


def readable(text: str) -> str:
    """Latin-1 where the text's bytes are not UTF-8, so that it can be printed and saved."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text).decode("latin-1")
    return text


def _shown(text: str) -> str:
    text = readable(text)
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _table(file: Path, expected: str, convert: Callable[[str], T]) -> dict[int, tuple[int, T]]:
    """Lines ``<id> <value>`` as id -> (line number, value)."""
    rows: dict[int, tuple[int, T]] = {}
    for line, text in _lines(file):
        row = re.fullmatch(r"([0-9]{1,18})[ \t]+(.+)", text)
        try:
            if row is None:
                raise ValueError
            key, value = int(row[1]), convert(row[2])
        except ValueError:
            raise DataError(f"{file}, line {line}: read {_shown(text)}, expected `{expected}`.") from None
        if key in rows:
            raise DataError(f"{file}, line {line}: id {key} was given in line {rows[key][0]} already.")
        rows[key] = (line, value)
    return rows


def _integer(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise ValueError
    return int(text)


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError
    return text == "1"


def _numbers(file: Path, expected: str, count: int) -> Iterator[tuple[int, list[float]]]:
    """Lines of ``count`` finite numbers, with their line numbers."""
    for line, text in _lines(file):
        try:
            numbers = [float(word) for word in text.split()]
        except ValueError:
            numbers = []
        if len(numbers) != count or not np.isfinite(numbers).all():
            raise DataError(f"{file}, line {line}: read {_shown(text)}, expected `{expected}`.")
        yield line, numbers
