"""``cgnl data check``: decode every file of a data set, of images, of images with objects or of videos."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from cgnl.data.decoding import AnyPath, DataError, following_links
from cgnl.data.faults import kinds_below
from cgnl.data.images.checking import check_images
from cgnl.data.lists import (
    IMAGE_SUFFIXES,
    SPLIT_FOLDERS,
    VIDEO_SUFFIXES,
    Sample,
    SampleList,
    coco_files,
    files_below,
    has_class_folders,
    has_parts,
    inner_data,
    pictures_below,
    seen_in,
    split_folder,
    text_lines,
)
from cgnl.data.reports import Report
from cgnl.data.scanning import Scanning
from cgnl.settings.checks import within

_LISTS = {".txt", ".csv", ".tsv", ".list", ".lst"}
_OF_IMAGES = ("cub",)
_OF_VIDEOS = ("ucf101", "kinetics", "mini_kinetics", "frame_list")
FORMATS = ("auto", *_OF_IMAGES, "list", "folders", *_OF_VIDEOS, "coco")
"""Layouts that a check can be told."""


class NothingToCheckError(DataError):
    """There is no data set of a known layout, so that no file was looked at."""


def check_data(
    root: AnyPath,
    *,
    format: str = "auto",
    list_file: AnyPath | None = None,
    lists: Mapping[str, AnyPath] | None = None,
    annotations: AnyPath | None = None,
    fold: int = 1,
    num_classes: int | None = None,
    channels: int = 3,
    follow_links: bool = False,
    frame_pattern: str | None = None,
    out: AnyPath | None = None,
    **scanning: Unpack[Scanning],
) -> Report:
    """Decode every file of a data set, whose layout is recognised as in training, and list all that is wrong.

    Args:
        root: The data set, in any layout of :func:`cgnl.data.images.read_images`, :func:`cgnl.data.detection.read_coco`
            or :func:`cgnl.data.videos.layouts.read_videos`; a folder of images or videos without labels; or one image,
            video, list file or COCO json.
        format: The layout, one of ``FORMATS``.
        list_file: Lines ``path label``, or ``folder frames label`` of folders of frames; only these are checked then.
        lists: List files of several parts, by ``train``, ``val`` and ``test``.
        annotations: Where the lists of a video data set are; or a json file in COCO's form, which is checked alone.
        fold: Which of the three splits of UCF101; each of them holds all its videos.
        num_classes: Number of classes, where it must be just that.
        channels: Number of channels that images are read with; videos and images with objects have 3.
        follow_links: Whether symbolic links may lead out of the root.
        frame_pattern: Names of the frames in folders of frames, as of :func:`cgnl.data.videos.probe`.
        out: A CSV file for the path and reason of each fault; an earlier one is replaced.
        scanning: Fields of :class:`cgnl.data.scanning.Scanning`; the timeout is by default 60 seconds, for a video 600.

    Raises:
        NothingToCheckError: A file or folder does not exist, or no layout is recognised.
        DataError: A list or the annotations are wrong, so that the files are not known.
        ValueError: Arguments that do not go together.
    """
    within("channels", channels, 1)
    root = Path(root).expanduser()
    lists = {part: Path(file) for part, file in (lists or {}).items()}
    if format not in FORMATS:
        raise ValueError(f"format ({format!r}) must be one of {', '.join(FORMATS)}")
    if list_file is not None and lists:
        raise ValueError(f"list_file ({list_file}) is for one list alone: leave it out with train, val and test lists")
    if not root.exists():
        raise NothingToCheckError(f"{root} is not a folder, and no file either.")
    for file in (list_file, annotations, *lists.values()):
        if file is not None and not Path(file).expanduser().exists():
            raise NothingToCheckError(f"{file} does not exist.")
        if file is not None and root.is_file():
            raise ValueError(f"root ({root}) must be the folder that the files in {file} are in")
    options: dict[str, Any] = {"out": out, **scanning}
    if root.is_file():
        suffix = root.suffix.lower()
        if suffix not in _LISTS and suffix != ".json":
            only = SampleList(root.parent, (Sample(root, 0),), ("",), "a file alone")
            if suffix in VIDEO_SUFFIXES:
                _refuse_channels(channels, "videos")
                return _check_videos(root.parent, files=only, **options)
            return check_images(root.parent, files=only, channels=channels, **options)
        if suffix == ".json":
            root, annotations = root.parent.parent if root.parent.name == "annotations" else root.parent, root
        else:
            root, list_file = root.parent, root
    options |= {"num_classes": num_classes}
    with following_links(follow_links):
        kind, more = _kind_of(root, format, list_file or next(iter(lists.values()), None), annotations)
        if kind != "images":
            _refuse_channels(channels, "images with objects" if kind == "coco" else kind)
        if kind == "coco":
            # Imported here, as other data sets are checked where its packages are not installed too.
            from cgnl.data.detection.checking import check_detection

            return check_detection(root, annotations=annotations, **options)
        options |= {"format": format, "list_file": list_file, "lists": lists, **more}
        if kind == "images":
            return check_images(root, channels=channels, **options)
        return _check_videos(root, annotations=annotations, fold=fold, **options)


def _refuse_channels(channels: int, files: str) -> None:
    if channels != 3:
        raise ValueError(f"channels ({channels}) must be 3 for {files}, which are read in colour")


def _check_videos(root: Path, **options: Any) -> Report:
    # Imported here, as images are checked where PyAV is not installed too.
    from cgnl.data.videos.checking import check_videos

    return check_videos(root, **options)


def _kind_of(
    root: Path, format: str, list_file: AnyPath | None, annotations: AnyPath | None
) -> tuple[str, dict[str, Any]]:
    """Return what the files are, and more arguments of their check."""
    if list_file is not None:
        if format in _OF_VIDEOS:
            return "videos", {}
        return ("images" if _lists_images(Path(list_file)) else "videos"), {}
    if format == "coco" or (annotations is not None and Path(annotations).suffix.lower() == ".json"):
        return "coco", {}
    if format in _OF_VIDEOS or annotations is not None:
        return "videos", {}
    if format == "auto" and any(coco_files(root, split) for split in SPLIT_FOLDERS):
        return "coco", {}
    if format in _OF_IMAGES or (format == "auto" and (root / "images.txt").exists()):
        return "images", {}
    if has_class_folders(root) or format == "folders":
        return _kind_of_folders(root)
    return _kind_without_classes(root)


def _kind_of_folders(root: Path) -> tuple[str, dict[str, Any]]:
    """Return the kind of file that folders of classes hold."""
    counts = kinds_below([folder for split in SPLIT_FOLDERS if (folder := split_folder(root, split))] or [root])
    kind = "videos" if counts["videos"] and counts["videos"] >= counts["images"] else "images"
    more: dict[str, Any] = {"findings": _mixed(root, counts, kind), "notes": _others(counts)}
    if kind == "videos" and not has_parts(root) and not _has_video_lists(root):
        more["format"] = "folders"
    return kind, more


def _kind_without_classes(root: Path) -> tuple[str, dict[str, Any]]:
    """Return the kind of a data set of videos with lists of its own, or of files without labels."""
    found = {"images": list(pictures_below(root)), "videos": list(files_below(root, root, VIDEO_SUFFIXES))}
    if not found["images"] and _has_video_lists(root):
        return "videos", {}
    counts = kinds_below([root])
    if inner_data(root) is not None or not any(found.values()):
        raise NothingToCheckError(
            f"{root} is not a data set in a known layout: it has no annotations/instances_*.json (COCO), no images.txt "
            "(CUB-200-2011), no train/ with class folders of images or videos, and no images or videos to check by "
            f"themselves. {seen_in(root)} Give lists and annotations that are elsewhere with --list-file and "
            "--annotations."
        )
    kind = "videos" if counts["videos"] >= counts["images"] else "images"
    if kind == "videos" and _has_video_lists(root):
        return "videos", {"findings": _mixed(root, counts, kind)}
    samples = tuple(Sample(path, 0) for path in found[kind])
    only = SampleList(root, samples, ("",), "files without labels")
    return kind, {"files": only, "findings": _mixed(root, counts, kind), "notes": _others(counts)}


def _others(counts: Counter[str]) -> list[str]:
    """Return the note on files that are of neither kind."""
    return [f"files that are no images or videos, not looked at: {counts['others']}"] * bool(counts["others"])


def _mixed(root: Path, counts: Counter[str], kind: str) -> list[tuple[Path, str]]:
    """Return the finding that a folder holds files of the other kind too."""
    other = "images" if kind == "videos" else "videos"
    words = f"holds {counts['images']} images and {counts['videos']} videos: the {other} were not looked at, and "
    return [(root, f"{words}training takes the {kind} alone")] if counts[other] else []


def _has_video_lists(root: Path) -> bool:
    """Tell whether training would find the lists or annotations of a data set of videos."""
    # Imported here, as images are checked where PyAV is not installed too.
    from cgnl.data.videos.layouts import LAYOUTS, recognise_videos

    try:
        return recognise_videos(root) in LAYOUTS
    except DataError:
        return False


def _lists_images(list_file: Path) -> bool:
    """Tell whether a list's first line names an image, with or without a label; images are the word for no line."""
    first = next((text for _, text in text_lines(list_file)), None)
    if first is None:
        return True
    paths = (first, re.split(r"[ \t,]+(?=[^ \t,]+$)", first)[0])
    return any(Path(path).suffix.lower() in IMAGE_SUFFIXES for path in paths)
