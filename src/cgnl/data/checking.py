"""``cgnl data check``: decode every file of a data set, of images, of images with objects or of videos."""

from pathlib import Path
from typing import Unpack

from cgnl.data.decoding import AnyPath, DataError
from cgnl.data.images.checking import check_images
from cgnl.data.lists import IMAGE_SUFFIXES, VIDEO_SUFFIXES, files_below, text_lines
from cgnl.data.reports import Report
from cgnl.data.scanning import Scanning

_CUB = ("images.txt", "CUB_200_2011/images.txt")


def check_data(
    root: AnyPath,
    *,
    list_file: AnyPath | None = None,
    annotations: AnyPath | None = None,
    fold: int = 1,
    num_classes: int | None = None,
    frame_pattern: str | None = None,
    out: AnyPath | None = None,
    **scanning: Unpack[Scanning],
) -> Report:
    """Decode every file of a data set, whose layout is recognised, and list the bad ones.

    Args:
        root: The data set, in any layout of :func:`cgnl.data.images.read_images`, :func:`cgnl.data.detection.read_coco`
            or :func:`cgnl.data.videos.layouts.read_videos`.
        list_file: Lines ``path label``, or ``folder frames label`` of folders of frames; only these are checked then.
        annotations: Where the lists of a video data set are; or a json file in COCO's form, which is checked alone.
        fold: Which of the three splits of UCF101; each of them holds all its videos.
        num_classes: Number of classes, where it must be just that.
        frame_pattern: Names of the frames in folders of frames, as of :func:`cgnl.data.videos.probe`.
        out: A CSV file for the path and reason of each bad file or annotation; an earlier one is replaced.
        scanning: Fields of :class:`cgnl.data.scanning.Scanning`; the timeout is by default 60 seconds, for a video 600.

    Raises:
        DataError: The layout or a list is wrong, so that the files are not known.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"{root} is not a folder.")
    if _is_coco(root, annotations) and list_file is None:
        # Imported here, as other data sets are checked where its packages are not installed too.
        from cgnl.data.detection.checking import check_detection

        return check_detection(root, annotations=annotations, num_classes=num_classes, out=out, **scanning)
    if annotations is None and _holds_images(root, None if list_file is None else Path(list_file)):
        return check_images(root, list_file=list_file, num_classes=num_classes, out=out, **scanning)
    if list_file is None and annotations is None and next(files_below(root, root, VIDEO_SUFFIXES), None) is None:
        raise DataError(
            f"{root} is not a data set in a known layout: it has no annotations/instances_*.json (COCO), no images.txt "
            "(CUB-200-2011), no train/ with class folders of images or videos, and no videos. Give lists and "
            "annotations that are elsewhere with --list-file and --annotations."
        )
    # Imported here, as images are checked where PyAV is not installed too.
    from cgnl.data.videos.checking import check_videos

    return check_videos(
        root,
        list_file=list_file,
        annotations=annotations,
        fold=fold,
        num_classes=num_classes,
        frame_pattern=frame_pattern,
        out=out,
        **scanning,
    )


def _is_coco(root: Path, annotations: AnyPath | None) -> bool:
    if annotations is not None:
        return Path(annotations).suffix.lower() == ".json"
    return any(any(root.glob(pattern)) for pattern in ("annotations/instances_*.json", "*/_annotations.coco.json"))


def _holds_images(root: Path, list_file: Path | None) -> bool:
    if list_file is not None:
        first = next((text for _, text in text_lines(list_file)), "")
        return Path(first.rpartition(" ")[0] or first.rpartition("\t")[0]).suffix.lower() in IMAGE_SUFFIXES
    if any((root / name).exists() for name in _CUB):
        return True
    if not (root / "train").is_dir():
        return False
    file = next(files_below(root, root / "train", IMAGE_SUFFIXES | VIDEO_SUFFIXES), None)
    return file is not None and file.suffix.lower() in IMAGE_SUFFIXES
