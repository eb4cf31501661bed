"""List files and folders of classes, whatever kind of files they hold."""

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from cgnl.data.decoding import DataError, resolve_inside
from cgnl.data.lists.samples import Sample, SampleList, Split
from cgnl.data.lists.text import exists, integer, read_table, readable, shown, text_lines
from cgnl.settings.words import counted


def labelled_lines(
    list_file: Path, separators: str = " \t", expected: str = "path label", first: int = 0
) -> Iterator[tuple[int, str, int]]:
    """Read lines that end with a label; the text before it may hold separators too.

    Yields the line's number from 1, the text before the label, and the label; DataError where it has none that is a
    whole number. ``expected`` (the form of a line) and ``first`` (the lowest label) are for messages.
    """
    for line, text in text_lines(list_file):
        row = re.fullmatch(rf"(.+?)[{separators}]+([^{separators}]+)", text)
        if row is None:
            raise DataError(f"{list_file}, line {line}: read {shown(text)}, expected `{expected}`.")
        try:
            label = integer(row[2])
        except ValueError:
            raise DataError(
                f"{list_file}, line {line}: read the label {shown(row[2])}, expected a whole number from {first}."
            ) from None
        yield line, row[1], label


def listed(
    list_file: Path,
    root: Path,
    rows: Sequence[tuple[int, Path, int]],
    *,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
    kind: str = "list",
) -> SampleList:
    """Check the labels of a list, given as (line number, path, label), and tell which of its files exist.

    ``classes`` and ``num_classes`` are as of :func:`cgnl.data.images.read_image_list`. Raises DataError where a label
    is not from 0 to K - 1, or the labels count from 1.
    """
    if classes is not None:
        num_classes = len(classes)
    _check_labels(list_file, [(line, label) for line, _, label in rows], num_classes)
    named = [Sample(path, label) for _, path, label in rows]
    missing = {sample.path for sample in named if not exists(sample.path)}
    if classes is None:
        num_classes = num_classes or max((sample.label for sample in named), default=-1) + 1
        classes = _names_from_folders(named, num_classes)
    samples = tuple(sample for sample in named if sample.path not in missing)
    return SampleList(root, samples, tuple(classes), kind, tuple(sorted(missing)))


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
            f"{list_file}, line {line}: read label {highest}, but only {counted(occurring, 'different label')} "
            f"{'occurs' if occurring == 1 else 'occur'}. "
            "Give the number of classes if the others just have no files."
        )
    if num_classes is None and lowest >= 1:
        line = next(line for line, label in labels if label == lowest)
        raise DataError(
            f"{list_file}, line {line}: read label {lowest}, the lowest of all, but expected labels from 0; "
            "these seem to count from 1. Give the number of classes if class 0 just has no files."
        )


def _names_from_folders(samples: Iterable[Sample], num_classes: int) -> tuple[str, ...]:
    folders = defaultdict(set)
    for sample in samples:
        folders[sample.label].add(sample.path.parent)
    names = {label: readable(next(iter(found)).name) for label, found in folders.items() if len(found) == 1}
    if len(names) == len(folders) and len(set(names.values())) == len(names):
        return tuple(names.get(label, str(label)) for label in range(num_classes))
    return tuple(map(str, range(num_classes)))


def read_classes(class_file: Path) -> tuple[str, ...]:
    """Return the names in lines ``<class id> <name>``, in the order of their ids.

    Raises:
        DataError: A line is malformed, or the ids are not 1 to their number once each.
    """
    names = read_table(class_file, "<class id> <name>", readable)
    expected = range(1, len(names) + 1)
    for number, (line, _) in names.items():
        if number not in expected:
            raise DataError(f"{class_file}, line {line}: read class id {number}, expected 1 to {len(names)} once each.")
    return tuple(names[number][1] for number in expected)


def class_folders(root: Path, split: Split, suffixes: Collection[str]) -> SampleList:
    """Read ``root/{train,val,test}/<class>/*``, as :func:`cgnl.data.images.read_class_folders` says, for files with a
    suffix.
    """
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
        samples += [Sample(path, labels[name]) for path in files_below(root, folder / name, suffixes)]
    return SampleList(root, tuple(samples), tuple(map(readable, class_names)), "folders")


def _class_names(root: Path, folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; expected one with a folder for each class.")
    resolve_inside(root, folder.name, source=root)
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder} has no folders in it; expected one for each class.")
    return names


def files_below(root: Path, folder: Path, suffixes: Collection[str]) -> Iterator[Path]:
    """Walk a folder in ``root`` and those in it, by sorted name, for files with one of the suffixes (in lower case).

    Yields those that are not hidden, and links to folders in their place: these are not followed. Raises DataError
    where a symbolic link leads out of the root.
    """
    if folder.is_symlink():
        resolve_inside(root, str(folder.relative_to(root)), source=folder.parent)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from files_below(root, path, suffixes)
        elif path.suffix.lower() in suffixes or entry.is_dir():  # a link to a folder, which is no file to read
            if entry.is_symlink():
                resolve_inside(root, str(path.relative_to(root)), source=folder)
            yield path
