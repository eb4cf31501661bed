"""Kinetics on disk: csv files that name YouTube ids, videos wherever they lie, and Mini-Kinetics' lists of ids.

Source: Kay et al., "The Kinetics Human Action Video Dataset", 2017; Xie et al., "Rethinking Spatiotemporal Feature
Learning", 2018 (Mini-Kinetics-200).
"""

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cgnl.data.decoding import DataError, open_regular
from cgnl.data.lists import NoSplitError, Sample, SampleList, Split, files_below, integer, readable, shown, text_lines

COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi"}
_SPLITS = {"train": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"}
_ID = re.compile(r"[A-Za-z0-9_-]+")
_HEAD = 4096


@dataclass(frozen=True, slots=True)
class Clip:
    """One line of a csv file: start and end in seconds; the label is empty where some test files hold it back."""

    label: str
    id: str
    start: int
    end: int
    split: str

    @property
    def name(self) -> str:
        """Return the name of its file, without the suffix."""
        return f"{self.id}_{self.start:06d}_{self.end:06d}"


def _id_lists(folder: Path) -> dict[str, Path]:
    return {"train": folder / "train_ytid_list.txt", "val": folder / "val_ytid_list.txt"}


def has_id_lists(folder: Path) -> bool:
    """Tell whether a folder has one of Mini-Kinetics' two lists of ids."""
    return any(file.exists() for file in _id_lists(folder).values())


def csv_files(folder: Path) -> list[Path]:
    """Return the csv files of a folder that begin with the columns of Kinetics, by sorted name; it need not exist."""
    return [file for file in sorted(folder.glob("*.csv")) if file.is_file() and not _lacking(file)]


def _lacking(file: Path) -> list[str]:
    """Return the columns of Kinetics that a file's first line lacks."""
    with open_regular(file) as opened:
        head = opened.read(_HEAD).decode("utf-8-sig", "surrogateescape").partition("\n")[0]
    return [name for name in COLUMNS if name not in (word.strip(' "\r').lower() for word in head.split(","))]


def read_csv(files: Sequence[Path]) -> tuple[Clip, ...]:
    """Read the clips of csv files ``label,youtube_id,time_start,time_end,split`` (their order is that of the header).

    A clip that is given twice alike counts once. Raises DataError where the header lacks a column, or a line is
    malformed, has no label, or contradicts an earlier one.
    """
    clips: dict[str, tuple[Clip, str]] = {}
    for file in files:
        if lacking := _lacking(file):
            raise DataError(
                f"{file}, line 1: the header lacks {', '.join(lacking)}; expected `{','.join(COLUMNS)}` of Kinetics."
            )
        for line, row in _rows(file):
            where = f"{file}, line {line}"
            clip = _clip(row, where)
            known, known_where = clips.setdefault(clip.name, (clip, where))
            if (known.label, known.split) != (clip.label, clip.split):
                raise DataError(
                    f"{where}: {clip.name} is {shown(clip.label)} of {clip.split}, but {shown(known.label)} of "
                    f"{known.split} in {known_where}."
                )
    return tuple(clip for clip, _ in clips.values())


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    with open_regular(file) as opened:
        text = opened.read().decode("utf-8-sig", "surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        header = [name.strip().lower() for name in next(reader)]
        for row in reader:
            if not any(row):
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{file}, line {reader.line_num}: read {len(row)} columns, expected {len(header)} as in the header."
                )
            yield reader.line_num, dict(zip(header, map(str.strip, row), strict=True))
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: {error}.") from None


def _clip(row: dict[str, str], where: str) -> Clip:
    split = _SPLITS.get(row["split"].lower())
    if split is None:
        raise DataError(f"{where}: read the split {shown(row['split'])}, expected train, val or test.")
    if not _ID.fullmatch(row["youtube_id"]):
        raise DataError(f"{where}: read the YouTube id {shown(row['youtube_id'])}, expected letters, digits, - and _.")
    if not row["label"] and split != "test":
        raise DataError(f"{where}: {row['youtube_id']} has no label.")
    try:
        start, end = _seconds(row["time_start"]), _seconds(row["time_end"])
    except ValueError:
        times = f"{row['time_start']},{row['time_end']}"
        raise DataError(f"{where}: read the times {shown(times)}, expected whole seconds.") from None
    return Clip(readable(row["label"]), row["youtube_id"], start, end, split)


def _seconds(text: str) -> int:
    """Read whole seconds, which some tables write as ``276.0``; ValueError for others."""
    return integer(re.sub(r"\.0*$", "", text))


def read_kinetics(root: Path, split: Split, files: Sequence[Path]) -> SampleList:
    """Read a split of Kinetics, in the order of the csv files; its classes are all their labels, by sorted name.

    A video is ``{id}_{start:06d}_{end:06d}.mp4`` (or ``.mkv``, ``.webm``, ``.avi``), or ``{id}.mp4`` where the id
    occurs once, anywhere below the root. ``val`` and ``test`` both mean the clips of ``val``, or of ``test`` if there
    are none. Raises NoSplitError where the split has no clip, and DataError as :func:`read_csv`.
    """
    clips = [clip for clip in read_csv(files) if clip.label]
    classes = sorted({clip.label for clip in clips})
    splits = {clip.split for clip in clips}
    wanted = split if split == "train" else "val" if "val" in splits else "test"
    if wanted not in splits:
        others = f", only of {' and '.join(sorted(splits))}" if splits else " that has a label"
        raise NoSplitError(
            f"{_named(files)} has no clip of the {split} split{others}; expected the csv file of that split too, "
            "in one folder with the others."
        )
    of_id = Counter(clip.id for clip in clips)
    names = [
        (clip.label, [clip.name] if of_id[clip.id] > 1 else [clip.name, clip.id])
        for clip in clips
        if clip.split == wanted
    ]
    return _found(root, names, classes, "kinetics")


def read_mini_kinetics(root: Path, split: Split, folder: Path) -> SampleList:
    """Read a split of Mini-Kinetics, in the order of its list, with the classes that its lists need, by sorted name.

    ``folder`` holds ``train_ytid_list.txt``, ``val_ytid_list.txt`` (an id a line) and the csv files of Kinetics-400,
    which have the labels; videos are named as for :func:`read_kinetics`. An id that no csv file has counts as missing.
    Raises DataError where a list or csv file is missing or malformed, or an id is given twice or has several labels.
    """
    lists = _id_lists(folder)
    files = csv_files(folder)
    if not files:
        raise DataError(
            f"{folder} holds no csv file with `{','.join(COLUMNS)}`: the id lists of Mini-Kinetics have no labels, "
            "which come from the csv files of Kinetics-400."
        )
    clips_of_id = defaultdict(list)
    for clip in read_csv(files):
        if clip.label:
            clips_of_id[clip.id].append(clip)
    ids: dict[str, str] = {}
    for name, file in lists.items():
        for line, id in text_lines(file):
            if not _ID.fullmatch(id):
                raise DataError(f"{file}, line {line}: read {shown(id)}, expected a YouTube id alone.")
            if id in ids:
                raise DataError(f"{file}, line {line}: the id {id} was given in {lists[ids[id]].name} already.")
            ids[id] = name
            labels = sorted({clip.label for clip in clips_of_id.get(id, ())})
            if len(labels) > 1:
                raise DataError(
                    f"{file}, line {line}: the id {id} has the labels {', '.join(map(shown, labels))} in "
                    f"{_named(files)}, expected one."
                )
    classes = sorted({clips_of_id[id][0].label for id in ids if id in clips_of_id})
    wanted = [id for id, name in ids.items() if (name == "train") == (split == "train")]
    names = [
        (clips_of_id[id][0].label, [*(clip.name for clip in clips_of_id[id]), id]) for id in wanted if id in clips_of_id
    ]
    videos = _found(root, names, classes, "mini_kinetics")
    unknown = {
        root / f"{id}.mp4": f"has no label: no line of {_named(files)}" for id in wanted if id not in clips_of_id
    }
    return SampleList(root, videos.samples, videos.classes, videos.kind, (*videos.missing, *unknown), unknown)


def _named(files: Iterable[Path]) -> str:
    return ", ".join(map(str, files))


def _found(root: Path, names: Iterable[tuple[str, list[str]]], classes: Sequence[str], kind: str) -> SampleList:
    """Find each video by the first of its names that a file has; without any, it is missing by the first."""
    files: dict[str, Path] = {}
    for path in files_below(root, root, _SUFFIXES):
        files.setdefault(path.stem, path)
    labels = {name: label for label, name in enumerate(classes)}
    samples, missing = [], []
    for label, possible in names:
        present = [files[name] for name in possible if name in files]
        if present:
            samples.append(Sample(present[0], labels[label]))
        else:
            missing.append(root / f"{possible[0]}.mp4")
    return SampleList(root, tuple(samples), tuple(classes), kind, tuple(missing))
