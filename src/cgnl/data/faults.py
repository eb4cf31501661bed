"""Faults of a data set that no file shows alone: contradictory labels, test files in training, folders left out."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

from cgnl.data.decoding import is_picture
from cgnl.data.lists import IMAGE_SUFFIXES, SPLIT_WORDS, VIDEO_SUFFIXES, SampleList, is_left_out

Rows = list[tuple[Path, str]]
K = TypeVar("K")
_HEAD = 1 << 16
_WORDS = {str(part): words for part, words in SPLIT_WORDS.items()}


def faults_of(
    splits: Mapping[str, SampleList],
    bad: Collection[Path] = (),
    *,
    sources: Mapping[str, Path] | None = None,
    labelled: bool = True,
    counted: bool = False,
) -> Rows:
    """Return a path and its fault, as the rest of a sentence, for what is wrong between the samples of a data set.

    Args:
        splits: The samples of each part.
        bad: Files that cannot be read, whose contents are not compared.
        sources: The list file of each part that has one.
        labelled: Whether the labels are those of whole files, which two of the same content must share.
        counted: Whether the user has given the number of classes, some of which may have no file then.
    """
    rows = [(path, f"{reason} (ignored)") for samples in splits.values() for path, reason in samples.ignored.items()]
    if labelled and not counted:
        for part, samples in splits.items():
            rows += _empty_classes(part, samples, (sources or {}).get(part))
    for group in _same_files(splits, bad):
        rows += _faults_of_group(group, labelled=labelled)
    return list(dict.fromkeys(rows))


def _faults_of_group(group: Sequence[tuple[str, Path, str]], *, labelled: bool) -> Rows:
    """Compare the part and class of samples that are one file, or have the same content."""
    (part, first, name), *others = group
    rows = []
    for other_part, path, other_name in others:
        same, parts = os.path.realpath(path) == os.path.realpath(first), part != other_part
        classes = labelled and name != other_name
        if classes or parts:
            own, known = (
                " ".join([f"of the class {label}"] * classes + [f"in the {_WORDS.get(where, where)} part"] * parts)
                for where, label in ((other_part, other_name), (part, name))
            )
            more = f"also {known}" if same else f"has the same content as {first}, which is {known}"
            rows.append((path, f"is {own} and {more}"))
    return rows


def _same_files(splits: Mapping[str, SampleList], bad: Collection[Path]) -> Iterator[list[tuple[str, Path, str]]]:
    """Give part, path and class of samples that are the same file or have the same content, the training part first."""
    samples = [
        (part, sample.path, listed.classes[sample.label] if listed.classes else "")
        for part, listed in splits.items()
        for sample in listed.samples
    ]
    by_file = _grouped(samples, lambda sample: os.path.realpath(sample[1]))
    files = [file for file, group in by_file.items() if group[0][1] not in bad and Path(file).is_file()]
    alike = [files]
    for key in (os.path.getsize, _digest_of_head, _digest):
        alike = [same for group in alike for same in _grouped(group, key).values() if len(same) > 1]
    copies = {file: group[0] for group in alike for file in group}
    for group in _grouped(samples, lambda sample: copies.get(file := os.path.realpath(sample[1]), file)).values():
        if len({(part, name) for part, _, name in group}) > 1:
            yield group


def _grouped(values: Sequence[K], key: Callable[[K], object]) -> dict:
    groups: dict[object, list[K]] = defaultdict(list)
    for value in values:
        groups[key(value)].append(value)
    return groups


def _digest_of_head(file: str) -> bytes:
    with Path(file).open("rb") as opened:
        return blake2b(opened.read(_HEAD)).digest()


def _digest(file: str) -> bytes:
    digest = blake2b()
    with Path(file).open("rb") as opened:
        while part := opened.read(1 << 20):
            digest.update(part)
    return digest.digest()


def _empty_classes(part: str, samples: SampleList, source: Path | None) -> Rows:
    """Name the classes of a training part, or of a list alone, that have no file."""
    counts = Counter(sample.label for sample in samples.samples)
    empty = [label for label in range(len(samples.classes)) if not counts[label]]
    if not empty or part in ("val", "test"):
        return []
    names = [str(label) if source else samples.classes[label] for label in empty]
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    if source is None:
        return [(samples.root, f"has no training file of {len(names)} classes: {shown}")]
    return [
        (source, f"has labels up to {max(counts, default=0)}, but no file of {len(names)} labels below that: {shown}")
    ]


def kinds_below(folders: Collection[Path]) -> Counter[str]:
    """Count the visible images and videos in folders, and the files that are neither."""
    counts: Counter[str] = Counter()
    for folder in folders:
        for parent, names, files in os.walk(folder):
            names[:] = [name for name in names if not is_left_out(name)]
            counts.update(_kind_of(Path(parent, name)) for name in files if not name.startswith("."))
    return counts


def _kind_of(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return "videos"
    return "images" if suffix in IMAGE_SUFFIXES or (not suffix and is_picture(path)) else "others"


def left_out_below(folders: Collection[Path]) -> Rows:
    """Return the folders in others that readers pass over: hidden ones, and those that macOS adds to zip archives."""
    rows = []
    for folder in folders:
        for parent, names, _ in os.walk(folder):
            left_out = sorted(filter(is_left_out, names))
            names[:] = [name for name in names if name not in left_out]
            rows += [(Path(parent, name), "is no class folder (ignored)") for name in left_out]
    return rows
