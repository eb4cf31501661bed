"""The parts of a data set: the folders that hold them, and a part of the training samples that is held out."""

import os
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from cgnl.data.decoding import DataError
from cgnl.data.lists.samples import Split
from cgnl.data.lists.text import readable

SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names of the folder of each part, in lower case; a folder may have capitals."""
SPLIT_WORDS: dict[Split, str] = {"train": "training", "val": "validation", "test": "test"}
COCO_EXPORT = "_annotations.coco.json"
"""Name of a json file in COCO's form among its images, as exporters write it."""
_SHOWN = 8


def check_folder(root: Path) -> None:
    """Raise DataError where there is no such folder."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder.")


def split_folder(root: Path, split: Split) -> Path | None:
    """Return the folder of a part, or None; DataError where several folders have its names."""
    names = SPLIT_FOLDERS[split]
    found = sorted(entry.name for entry in os.scandir(root) if entry.name.lower() in names and entry.is_dir())
    if len(found) > 1:
        raise DataError(
            f"{root} has several folders for the {SPLIT_WORDS[split]} split: {', '.join(found)}. Keep one of them."
        )
    return root / found[0] if found else None


def coco_files(root: Path, split: Split) -> list[Path]:
    """Return the json files of a part in COCO's layout: ``instances_*.json``, or an export's among the images."""
    if found := sorted(root.glob(f"annotations/instances_{split}*.json")):
        return found
    folder = split_folder(root, split)
    return [folder / COCO_EXPORT] if folder is not None and (folder / COCO_EXPORT).exists() else []


def has_parts(root: Path) -> bool:
    """Tell whether a root has a folder of any part."""
    return any(split_folder(root, split) for split in SPLIT_FOLDERS)


def seen_in(folder: Path) -> str:
    """Return a sentence on what a folder holds, and a hint where a folder in it looks like a data set."""
    names = sorted(
        (not entry.is_dir(), f"{readable(entry.name)}{'/' if entry.is_dir() else ''}")
        for entry in os.scandir(folder)
        if not entry.name.startswith(".")
    )
    shown = [name for _, name in names[:_SHOWN]]
    more = len(names) - len(shown)
    words = ", ".join(shown) + (f" and {more} more" if more else "") if names else "nothing"
    sentence = f"{folder} holds {words}."
    inner = inner_data(folder)
    return sentence if inner is None else f"{sentence} Did you mean {inner}?"


def inner_data(folder: Path) -> Path | None:
    """Return the first folder in another that looks like a data set, where the other does not."""
    inner = (path for path in sorted(folder.iterdir()) if path.is_dir() and _looks_like_data(path))
    return None if has_parts(folder) else next(inner, None)


def _looks_like_data(folder: Path) -> bool:
    return (folder / "images.txt").exists() or split_folder(folder, "train") is not None


def divided(labels: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide samples at random: return the numbers of those that stay, and of those that are held out.

    Of each label the fraction is held out, at least one sample if it has two, and never all. The same labels, fraction
    and seed give the same numbers.

    >>> divided([0, 0, 0, 0, 1, 1, 2], 0.25, 0)
    ([0, 1, 2, 4, 6], [3, 5])
    """
    held = set[int]()
    for own in _shuffled(labels, seed):
        held.update(own[: min(max(int(fraction * len(own) + 0.5), 1), len(own) - 1)])
    return [number for number in range(len(labels)) if number not in held], sorted(held)


def fold(labels: Sequence[int], num_folds: int, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """Divide samples into folds at random: return the numbers of those to train on, and of the fold held out, from 1.

    Over the folds each sample is held out once. The sizes of the folds differ by one sample at most, and so do the
    samples of a label in them. The same labels and seed give the same folds.

    >>> [fold([0, 0, 0, 0, 1, 1, 2], 3, number, seed=0)[1] for number in (1, 2, 3)]
    [[0, 3, 6], [2, 5], [1, 4]]
    """
    dealt = [number for own in _shuffled(labels, seed) for number in own]
    held = set(dealt[held_out - 1 :: num_folds])
    return [number for number in range(len(labels)) if number not in held], sorted(held)


def _shuffled(labels: Sequence[int], seed: int) -> Iterator[list[int]]:
    """Give the numbers of each label's samples in a random order."""
    numbers = defaultdict(list)
    for number, label in enumerate(labels):
        numbers[label].append(number)
    # random() alone gives the same numbers in every version of Python
    generator = random.Random(seed)
    for label in sorted(numbers):
        yield sorted(numbers[label], key=lambda _: generator.random())
