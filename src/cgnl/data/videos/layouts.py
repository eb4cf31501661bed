"""The layouts of video data sets on disk: UCF101, Kinetics, Mini-Kinetics, list files, folders of classes."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from cgnl.data.decoding import AnyPath, BadFileError, DataError, resolve_inside
from cgnl.data.lists import (
    VIDEO_SUFFIXES,
    Inside,
    Sample,
    SampleList,
    Split,
    allowed_missing,
    check_folder,
    check_missing,
    class_folders,
    class_parts,
    exists,
    has_class_folders,
    has_parts,
    integer,
    labelled_lines,
    listed,
    read_classes,
    seen_in,
    shown,
    text_lines,
)
from cgnl.data.videos.frame_folders import frame_files
from cgnl.data.videos.kinetics import COLUMNS, csv_files, has_id_lists, read_kinetics, read_mini_kinetics
from cgnl.settings.words import counted

_SEPARATORS = " \t,"
_UCF101_NAMES = ("UCF-101", "UCF101")


def read_videos(
    root: AnyPath,
    split: Split = "train",
    *,
    format: str = "auto",
    list_file: AnyPath | None = None,
    annotations: AnyPath | None = None,
    fold: int = 1,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    missing_limit: float | None = None,
    frame_pattern: str | None = None,
    frame_tolerance: int = 5,
) -> SampleList:
    """Read one split of a video data set in any of the known layouts.

    Args:
        root: The folder that holds the videos, and whose paths those of lists start from.
        split: ``train``, ``test`` or ``val``; where a data set has only one of the last two, either means it.
        format: ``list``, ``frame_list``, ``folders`` or a name in ``LAYOUTS``; ``auto`` takes a list with a list file,
            else looks into ``annotations`` and ``root``.
        list_file: Lines ``path label`` (``list``: of files, or of folders of frames) or ``folder frames label``
            (``frame_list``), labels from 0; the split is then whatever the file lists.
        annotations: UCF101: the folder of its lists. Kinetics: a csv file, or a folder of them. Mini-Kinetics: the
            folder of the id lists and csv files. By default they are looked for in ``root``; those of UCF101 also in
            ``ucfTrainTestlist`` beside a root with the name ``UCF-101``.
        fold: Which of the three splits of UCF101.
        num_classes: Number of classes K, where the data set must have just that many.
        classes: Names of the labels, of which a data set without a list file may have some only; by default its own.
        missing_limit: Part of the named videos that may be missing; by default 20 % for Kinetics, of which many are
            gone, and else 5 %.
        frame_pattern: Names of the frames in folders of frames, as of
            :func:`cgnl.data.videos.frame_folders.frame_files`.
        frame_tolerance: Number of frames by which a folder may differ from its line in ``frame_list``.

    Returns:
        Samples whose files exist, and the names of the missing ones.

    Raises:
        DataError: The layout is not recognised, a line or label is wrong, a path leads out of the root, or
            more videos are missing than allowed.
        ValueError: A list file with a format that has none or the other way round, or an unknown format or fold.
    """
    if fold not in (1, 2, 3):
        raise ValueError(f"fold ({fold}) must be 1, 2 or 3")
    root = Path(root).expanduser()
    check_folder(root)
    annotations = _given_annotations(annotations)
    format = recognise_videos(root, list_file, annotations) if format == "auto" else format
    if (format in ("list", "frame_list")) != (list_file is not None):
        raise ValueError(
            f"list_file ({list_file}) must be given with format list or frame_list and no other; the format is {format}"
        )
    if list_file is not None:
        options = {} if format == "list" else {"pattern": frame_pattern, "tolerance": frame_tolerance}
        read: Callable[..., SampleList] = read_video_list if format == "list" else read_frame_list
        videos = read(list_file, root, num_classes=num_classes, **options)
    elif format == "folders":
        videos = class_folders(root, split, VIDEO_SUFFIXES, classes)
    elif format in LAYOUTS:
        layout = LAYOUTS[format]
        videos = layout.read(root, split, _annotations_of(layout, root, annotations), fold)
    else:
        raise ValueError(f"format ({format!r}) must be auto, list, frame_list, folders or {', '.join(LAYOUTS)}")
    if classes is not None and list_file is None:
        videos = videos.labelled_by(classes)
    if num_classes not in (None, len(videos.classes)):
        found = counted(len(videos.classes), "class", "classes")
        raise DataError(f"{root} has {found}, but {num_classes} are expected.")
    if not videos.samples and not videos.missing:
        raise DataError(f"{list_file or root} names no videos for the {split} split.")
    check_missing(videos, allowed_missing(videos.kind, missing_limit))
    return videos


def _annotation_folders(root: Path, annotations: Path | None) -> Iterable[Path]:
    base = root if annotations is None else annotations
    folders = base, base / "ucfTrainTestlist", base / "annotations"
    whole = root.absolute()
    if annotations is None and whole.name in _UCF101_NAMES:  # its two archives lie side by side
        return *folders, whole.parent / "ucfTrainTestlist"
    return folders


def _find_annotations(layout: "Layout", root: Path, annotations: Path | None) -> Path | None:
    if annotations is not None and annotations.is_file():
        return annotations if layout.one_file else None
    return next(filter(layout.is_in, _annotation_folders(root, annotations)), None)


def _annotations_of(layout: "Layout", root: Path, annotations: Path | None) -> Path:
    found = _find_annotations(layout, root, annotations)
    if found is None:
        raise DataError(
            f"{layout.files}: not found in {', '.join(map(str, _annotation_folders(root, annotations)))}. "
            f"{seen_in(root)} Give their folder as annotations (--data.annotations), or another format "
            "(--data.format folders for folders of classes)."
        )
    return found


def recognise_videos(root: Path, list_file: AnyPath | None = None, annotations: AnyPath | None = None) -> str:
    """Return the layout of a data set of videos; DataError if it has none."""
    if list_file is not None:
        return _recognise_list(Path(list_file))
    check_folder(root)
    annotations = _given_annotations(annotations)
    for format, layout in LAYOUTS.items():
        if _find_annotations(layout, root, annotations) is not None:
            return format
    # class folders right in the root may be those of UCF101, whose lists are needed
    if annotations is None and has_parts(root):
        return "folders"
    raise DataError(
        f"{root} is not a video data set in a known layout: no list file is given, and none of these is there: "
        f"{'; '.join(layout.files for layout in LAYOUTS.values())} in "
        f"{', '.join(map(str, _annotation_folders(root, annotations)))}"
        + (f"; {root / 'train'} (folders of classes). {seen_in(root)}" if annotations is None else ".")
        + " --data.format folders takes class folders right in the root."
        * (annotations is None and has_class_folders(root))
    )


def video_parts(root: Path, format: str = "auto", annotations: AnyPath | None = None) -> tuple[Split, ...]:
    """Return which parts a data set of videos without list files may have; the annotations tell which it has."""
    format = recognise_videos(root, None, annotations) if format == "auto" else format
    return class_parts(root) if format == "folders" else ("train", "test")


def _given_annotations(annotations: AnyPath | None) -> Path | None:
    if annotations is None:
        return None
    annotations = Path(annotations).expanduser()
    if not annotations.exists():
        raise DataError(f"{annotations}, which should hold the annotations, does not exist.")
    return annotations


def _recognise_list(list_file: Path) -> str:
    rows = [text for _, text in text_lines(list_file)]
    return "frame_list" if rows and all(_frame_row(text) for text in rows) else "list"


def _frame_row(text: str) -> re.Match[str] | None:
    return re.fullmatch(rf"(.+?)[{_SEPARATORS}]+([0-9]{{1,9}})[{_SEPARATORS}]+(-?[0-9]+)", text)


def read_ucf101(root: AnyPath, split: Split = "train", *, lists: AnyPath, fold: int = 1) -> SampleList:
    """Read a split of UCF101, in the order of its list, from a root with the class folders or ``UCF-101/``.

    ``lists`` holds ``classInd.txt``, ``trainlist01.txt`` (``path label``, labels from 1), ``testlist01.txt`` (the path
    alone) and so on. The label is the number of the video's folder in ``classInd.txt``; the names of files tell no
    class, as those of HandstandPushups begin with ``v_HandStandPushups``. Where a listed file is not there, but one
    video or folder of frames of that name without its suffix is, it is taken for the same, converted. Raises DataError
    where a line is malformed, names an unknown class or a label other than that of its folder, or a path leads out of
    the root.

    Source: Soomro et al., "UCF101: A Dataset of 101 Human Actions Classes From Videos in The Wild", 2012.
    """
    root, class_file = Path(root), Path(lists, "classInd.txt")
    classes = read_classes(class_file)
    labels = {name: label for label, name in enumerate(classes)}
    if len(labels) < len(classes):
        raise DataError(f"{class_file} gives a class name twice.")
    list_file = Path(lists, f"{'train' if split == 'train' else 'test'}list{fold:02d}.txt")
    inside = Inside(_ucf101_videos(root), list_file)
    samples, missing = [], []
    videos_of = cache(_videos_by_stem)
    for line, relative, given in _ucf101_lines(list_file, with_label=split == "train"):
        path = inside(relative, line)
        folder = relative.split("/")[0]
        if folder not in labels:
            raise DataError(
                f"{list_file}, line {line}: the folder {shown(folder)} is not a class of {class_file}, "
                "expected `<class>/<video>`."
            )
        if given not in (None, labels[folder] + 1):
            raise DataError(
                f"{list_file}, line {line}: read label {given}, but {class_file.name} numbers {folder} "
                f"{labels[folder] + 1}."
            )
        if not exists(path):
            converted = videos_of(path.parent).get(path.stem, [])
            if len(converted) == 1:
                path = inside(f"{relative.rpartition('/')[0]}/{converted[0]}", line)
        if exists(path):
            samples.append(Sample(path, labels[folder]))
        else:
            missing.append(path)
    return SampleList(root, tuple(samples), classes, "ucf101", tuple(missing))


def _ucf101_videos(root: Path) -> Path:
    for name in _UCF101_NAMES:
        if (root / name).is_dir():
            return resolve_inside(root, name, source=root)
    return root


def _videos_by_stem(folder: Path) -> dict[str, list[str]]:
    """Return the names of the videos in a folder, files or folders of frames, by their names without suffix."""
    names = defaultdict(list)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            names[path.name].append(path.name)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            names[path.stem].append(path.name)
    return names


def _ucf101_lines(list_file: Path, *, with_label: bool) -> list[tuple[int, str, int | None]]:
    if with_label:
        return list(labelled_lines(list_file, first=1))
    rows: list[tuple[int, str, int | None]] = []
    for line, text in text_lines(list_file):
        path, _, label = text.partition(" ")
        try:
            rows.append((line, path, integer(label) if label else None))
        except ValueError:
            raise DataError(f"{list_file}, line {line}: read {shown(text)}, expected the path alone.") from None
    return rows


def read_video_list(list_file: AnyPath, video_root: AnyPath, num_classes: int | None = None) -> SampleList:
    """Read a list file with lines ``path label``, separated by spaces, a comma or a tab; labels from 0 to K - 1.

    A path is that of a video file or of a folder of frames, and may hold spaces and commas, as the label is what
    follows the last one. K is by default one more than the largest label. Raises DataError where a line has no label,
    or one that is no whole number or not from 0 to K - 1; labels count from 1; or a path leads out of the root.
    """
    list_file, video_root = Path(list_file), Path(video_root)
    inside = Inside(video_root, list_file)
    rows = [(line, inside(path, line), label) for line, path, label in labelled_lines(list_file, _SEPARATORS)]
    return listed(list_file, video_root, rows, num_classes=num_classes)


def read_frame_list(
    list_file: AnyPath,
    video_root: AnyPath,
    num_classes: int | None = None,
    *,
    pattern: str | None = None,
    tolerance: int = 0,
) -> SampleList:
    """Read a list file with lines ``folder frames label`` of folders with a picture for each frame.

    ``pattern`` is that of :func:`cgnl.data.videos.frame_folders.frame_files`. A folder with another number of frames
    than the list says is named in ``remarks``; if it differs by more than ``tolerance``, it counts as missing, and
    ``reasons`` tells both. Raises DataError as :func:`read_video_list`, or where the number of frames is none.
    """
    list_file, video_root = Path(list_file), Path(video_root)
    inside = Inside(video_root, list_file)
    expected = "folder frames label"
    rows, numbers = [], {}
    for line, text, label in labelled_lines(list_file, _SEPARATORS, expected):
        row = _frame_row(f"{text} {label}")
        if row is None:
            raise DataError(f"{list_file}, line {line}: read {shown(f'{text} {label}')}, expected `{expected}`.")
        path = inside(row[1], line)
        numbers[path] = int(row[2])
        rows.append((line, path, label))
    videos = replace(listed(list_file, video_root, rows, num_classes=num_classes), kind="frame_list")
    reasons: dict[Path, str] = {}
    remarks: dict[Path, str] = {}
    for sample in videos.samples:
        try:
            found = len(frame_files(sample.path, pattern)) if sample.path.is_dir() else None
        except BadFileError as error:
            reasons[sample.path] = error.reason
            continue
        number = numbers[sample.path]
        if found is None:
            reasons[sample.path] = "is not a folder of frames"
        elif abs(found - number) > tolerance:
            reasons[sample.path] = (
                f"holds {counted(found, 'frame')}, but the list says {number}, more than --data.frame-tolerance "
                f"({tolerance}) apart"
            )
        elif found != number:
            remarks[sample.path] = f"count differs: holds {counted(found, 'frame')}, but the list says {number}"
    samples = tuple(sample for sample in videos.samples if sample.path not in reasons)
    return replace(videos, samples=samples, missing=(*videos.missing, *reasons), reasons=reasons, remarks=remarks)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout whose annotations are files of its own.

    Args:
        files: These files in words, for messages.
        is_in: Tells whether a folder, which need not exist, holds them.
        read: Reads a split, from the root of the videos, the split, the folder of the annotations and the fold.
        one_file: Whether the annotations may be a single file instead, of any name.
        num_classes: Number of classes of the whole data set, if it has a fixed one.
    """

    files: str
    is_in: Callable[[Path], bool]
    read: Callable[[Path, Split, Path, int], SampleList]
    one_file: bool = False
    num_classes: int | None = None


# The first layout that finds its files is taken: Mini-Kinetics before Kinetics, whose csv files lie in its folder too.
LAYOUTS = {
    "mini_kinetics": Layout(
        files="train_ytid_list.txt and val_ytid_list.txt (Mini-Kinetics)",
        is_in=has_id_lists,
        read=lambda root, split, folder, fold: read_mini_kinetics(root, split, folder),
        num_classes=200,
    ),
    "ucf101": Layout(
        files="classInd.txt (UCF101)",
        is_in=lambda folder: (folder / "classInd.txt").exists(),
        read=lambda root, split, folder, fold: read_ucf101(root, split, lists=folder, fold=fold),
        num_classes=101,
    ),
    "kinetics": Layout(
        files=f"a csv file with `{','.join(COLUMNS)}` (Kinetics)",
        is_in=lambda folder: bool(csv_files(folder)),
        read=lambda root, split, path, fold: read_kinetics(root, split, [path] if path.is_file() else csv_files(path)),
        one_file=True,
        num_classes=400,
    ),
}
