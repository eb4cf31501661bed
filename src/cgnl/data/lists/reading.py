"""List files and folders of classes, whatever kind of files they hold."""

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from cgnl.data.decoding import DataError, follows_links, is_picture, resolve_inside
from cgnl.data.lists.samples import Sample, SampleList, Split, differences
from cgnl.data.lists.splits import SPLIT_FOLDERS, has_parts, seen_in, split_folder
from cgnl.data.lists.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES
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
            f"{'occurs' if occurring == 1 else 'occur'}. Give the number of classes (--data.num-classes, or "
            "--num-classes of cgnl data check) if the others just have no files."
        )
    if num_classes is None and lowest >= 1:
        line = next(line for line, label in labels if label == lowest)
        raise DataError(
            f"{list_file}, line {line}: read label {lowest}, the lowest of all, but expected labels from 0; "
            "these seem to count from 1. Give the number of classes (--data.num-classes, or --num-classes of cgnl data "
            "check) if class 0 just has no files."
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


def class_folders(
    root: Path, split: Split, suffixes: Collection[str], classes: Sequence[str] | None = None
) -> SampleList:
    """Read folders of classes, as :func:`cgnl.data.images.read_class_folders` says, for files with a suffix."""
    folder = _folder_of(root, split, alone=classes is not None)
    found, ignored = _files_of_classes(root, folder, suffixes)
    if split == "train":
        ignored |= _without_labels(root, folder)
    of_train = None if classes is not None or split == "train" else split_folder(root, "train")
    if of_train is not None:
        classes = list(_files_of_classes(root, of_train, suffixes)[0])
    names = list(map(readable, found if classes is None else classes))
    labels = {name: label for label, name in enumerate(names)}
    own = list(map(readable, found))
    if unknown := [name for name in own if name not in labels]:
        if of_train is not None:
            raise DataError(
                f"{folder / unknown[0]} is a class that {of_train} does not have; expected those of training."
            )
        raise DataError(f"{root} has other classes than expected; {differences(own, names)}")
    samples = (Sample(path, labels[readable(name)]) for name, paths in found.items() for path in paths)
    return SampleList(root, tuple(samples), tuple(names), "folders", ignored=ignored)


def _without_labels(root: Path, train: Path) -> dict[Path, str]:
    """Return folders of a root that hold no labelled samples, though they might seem to."""
    parts = [split_folder(root, split) for split in SPLIT_FOLDERS]
    reasons = {
        part: "has no class folders, so that its files have no labels"
        for part in parts
        if part not in (None, train) and not _class_names(part)
    }
    if train != root and (root / "__MACOSX").is_dir():
        reasons[root / "__MACOSX"] = "is no class folder"
    return reasons


def class_parts(root: Path) -> tuple[Split, ...]:
    """Return which parts a root has as folders of classes; a part without class folders has no labels."""
    if not has_parts(root):
        return ("train",)
    folders = {split: split_folder(root, split) for split in SPLIT_FOLDERS}
    return tuple(split for split, folder in folders.items() if folder and (split == "train" or _class_names(folder)))


def has_class_folders(root: Path) -> bool:
    """Tell whether a root has folders of its parts, or right in it several folders with images or videos."""
    return has_parts(root) or sum(_holds_files(root / name) for name in _class_names(root)) > 1


def _holds_files(folder: Path) -> bool:
    """Tell whether images or videos lie right in a folder."""
    return any(Path(entry.name).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES for entry in os.scandir(folder))


def _folder_of(root: Path, split: Split, *, alone: bool) -> Path:
    """Return the folder with a part's class folders.

    Without folders of parts, the root itself is the training part, and any part where the classes are known already
    (``alone``).
    """
    folders = {name: split_folder(root, name) for name in SPLIT_FOLDERS}
    if (alone or split == "train") and not any(folders.values()) and has_class_folders(root):
        return root
    orders: dict[Split, tuple[Split, ...]] = {"train": ("train",), "val": ("val", "test"), "test": ("test", "val")}
    order = orders[split]
    present = [folder for name in order if (folder := folders[name]) is not None]
    if present:
        # a part without class folders has no labels
        return next((folder for folder in present if _class_names(folder)), present[0])
    names = [name for part in order for name in SPLIT_FOLDERS[part]]
    more = " --data.val-fraction 0.2 holds a part of the training samples out instead." if split != "train" else ""
    raise DataError(
        f"{root / names[0]} is not a folder, and neither is {' or '.join(f'{name}/' for name in names[1:])}; expected "
        f"one with a folder for each class. {seen_in(root)}{more}"
    )


def _files_of_classes(
    root: Path, folder: Path, suffixes: Collection[str]
) -> tuple[dict[str, list[Path]], dict[Path, str]]:
    """Return the files of each class folder that has any, by its name on disk, and what else the folder holds."""
    if folder != root:
        resolve_inside(root, folder.name, source=root)
    names = _class_names(folder)
    if not names:
        raise DataError(f"{folder} has no folders in it; expected one for each class. {seen_in(folder)}")
    files = {name: list(files_below(root, folder / name, suffixes)) for name in names}
    ignored = {folder / name: "is a class folder without files" for name, paths in files.items() if not paths}
    beside = 0
    for entry in os.scandir(folder):
        if is_left_out(entry.name) and entry.is_dir():
            ignored[Path(entry.path)] = "is no class folder"
        elif not entry.is_dir() and Path(entry.name).suffix.lower() in suffixes and not entry.name.startswith("."):
            beside += 1
    if beside and folder != root:
        ignored[folder] = f"holds {counted(beside, 'file')} beside the class folders"
    return {name: paths for name, paths in files.items() if paths}, dict(sorted(ignored.items()))


def is_left_out(name: str) -> bool:
    """Tell whether a folder's name is hidden, or that of the folder that macOS adds to zip archives."""
    return name.startswith(".") or name == "__MACOSX"


def _class_names(folder: Path | None) -> list[str]:
    if folder is None:
        return []
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_left_out(entry.name))


def files_below(root: Path, folder: Path, suffixes: Collection[str]) -> Iterator[Path]:
    """Walk a folder in ``root`` and those in it, by sorted name, for files with one of the suffixes (in lower case).

    Yields those that are not hidden, and links to folders in their place: these are not followed, unless links may lead
    out of the root. Raises DataError where a symbolic link leads out of the root.
    """
    yield from _walk(root, folder, suffixes, ())


def pictures_below(folder: Path) -> Iterator[Path]:
    """Walk a folder as :func:`files_below` does, for images: by their suffix, or by their content if they have none."""
    files = files_below(folder, folder, IMAGE_SUFFIXES | {""})
    return (path for path in files if path.suffix or is_picture(path))


def _walk(root: Path, folder: Path, suffixes: Collection[str], above: tuple[str, ...]) -> Iterator[Path]:
    if folder.is_symlink():
        resolve_inside(root, str(folder.relative_to(root)), source=folder.parent)
    own = os.path.realpath(folder) if follows_links() else ""
    if own and own in above:  # a link to a folder around it
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if is_left_out(entry.name):
            continue
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=follows_links()):
            yield from _walk(root, path, suffixes, (*above, own))
        elif path.suffix.lower() in suffixes or entry.is_dir():  # a link to a folder, which is no file to read
            if entry.is_symlink():
                resolve_inside(root, str(path.relative_to(root)), source=folder)
            yield path
