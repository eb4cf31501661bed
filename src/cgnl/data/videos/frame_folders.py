"""Videos as folders with a picture for each frame.

Shapes: T frames wanted, H height, W width.
"""

import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cgnl.data.decoding import AnyPath, BadFileError, open_image
from cgnl.data.lists.suffixes import VIDEO_SUFFIXES
from cgnl.settings.checks import name_pattern

# How the names of optical flow begin.
_FLOW = re.compile(r"(?:.*[_-])?flow|[xyuv][_-]?$", re.IGNORECASE)
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
_logger = logging.getLogger(__name__)


def frame_files(folder: AnyPath, pattern: str | None = None) -> list[Path]:
    """Return the pictures of a folder that are frames, in natural order of names: ``img_2`` before ``img_10``.

    They are those whose names a ``pattern`` such as ``img_{:05d}.jpg`` describes
    (:func:`cgnl.settings.checks.name_pattern`). Without one, they are all JPEG, PNG, WebP and BMP files; optical flow
    beside the frames (``flow_x_00001.jpg``) is left out.

    Raises:
        BadFileError: The folder cannot be read, holds no such picture, or without a pattern holds videos or several
            series of pictures.
    """
    try:
        entries = [path for path in Path(folder).iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise BadFileError(folder, f"cannot be read: {error.strerror}") from None
    files = [path for path in entries if path.suffix.lower() in _SUFFIXES]
    if pattern is not None:
        fits = name_pattern("frame_pattern", pattern)
        files = [path for path in files if fits.fullmatch(path.name)]
        if not files:
            raise BadFileError(folder, f"is a folder without frames named {pattern} (data.frame_pattern)")
    if not files:
        raise BadFileError(folder, "is a folder without frames (JPEG, PNG, WebP or BMP files)")
    if pattern is None:
        if video := next((path for path in entries if path.suffix.lower() in VIDEO_SUFFIXES), None):
            raise BadFileError(
                folder,
                f"holds videos ({video.name}), so its pictures are not taken for frames; if they are, give their names "
                "(data.frame_pattern, such as img_{:05d}.jpg)",
            )
        files = _only_series(folder, files)
    return sorted(files, key=lambda path: (_natural(path.stem), path.name))


def _only_series(folder: AnyPath, files: list[Path]) -> list[Path]:
    """Return pictures without the optical flow among them; raise BadFileError where several series are left.

    Series are numbered alike, picture by picture: ``rgb_1, rgb_2, depth_1, depth_2``.
    """
    series: dict[str, dict[int, Path]] = {}
    for path in files:
        name = re.fullmatch(r"(.*?)([0-9]+)", path.stem)
        if name is None:
            return files
        series.setdefault(name[1], {})[int(name[2])] = path
    shortest, longest = (pick(map(len, series.values())) for pick in (min, max))
    if len(series) == 1 or shortest < max(longest / 2, 2):
        return files
    kept = {name: numbered for name, numbered in series.items() if not _FLOW.match(name)} or series
    if len(kept) > 1:
        names = ", ".join(f"{name}*" for name in sorted(kept))
        raise BadFileError(
            folder,
            f"holds several series of pictures ({names}): name those that are the frames (data.frame_pattern, such as "
            f"{max(kept)}{{:05d}}.jpg)",
        )
    return list(next(iter(kept.values())).values())


def videos_below(folder: Path) -> list[Path]:
    """Return the videos in a folder and those in it, by sorted name: files, and folders of frames.

    Pictures beside videos are no frames, which is logged. Of a folder with none of them, return the folder.
    """
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        seen = [Path(place, name) for name in sorted(names) if not name.startswith(".")]
        videos = [path for path in seen if path.suffix.lower() in VIDEO_SUFFIXES]
        pictures = [path for path in seen if path.suffix.lower() in _SUFFIXES]
        if videos and pictures:
            _logger.warning("%s holds videos, so its pictures are no frames and are left out: %s", place, pictures[0])
        found += videos or ([Path(place)] if pictures else [])
    return found or [folder]


def _natural(name: str) -> list[str | int]:
    # Every other part is a number, so that numbers are compared with numbers only.
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", name))]


def probe_folder(folder: AnyPath, pattern: str | None = None) -> tuple[int, float, int, int, int | None]:
    """Count the frames of a folder, those that :func:`frame_files` returns, and look at the first.

    Returns frames, frames per second (0: unknown), width and height (pixels), and the number promised (None). Raises
    BadFileError where the folder holds no picture, or the first cannot be decoded.
    """
    files = frame_files(folder, pattern)
    return len(files), 0.0, *open_image(files[0]).size, None


def read_folder(
    folder: AnyPath,
    wanted: Sequence[int],
    allocate: Callable[[tuple[int, ...]], np.ndarray] | None,
    pattern: str | None = None,
) -> tuple[np.ndarray, list[int]]:
    """Read frames of a folder by number (``wanted`` ascends) into a uint8 array that ``allocate`` makes of a shape.

    Returns the frames [T, H, W, 3] (RGB, uint8), none if ``allocate`` is None; and the numbers past the end, which get
    the last frame. Raises BadFileError where a picture cannot be decoded, or has another size than the folder's first.
    """
    files = frame_files(folder, pattern)
    first = open_image(files[0])
    last = len(files) - 1
    shape = len(wanted), first.height, first.width, 3
    frames = np.empty((0, *shape[1:]), np.uint8) if allocate is None else allocate(shape)
    for row, number in enumerate(wanted):
        file = files[min(number, last)]
        image = open_image(file)
        if image.size != first.size:
            raise BadFileError(
                file,
                f"is {image.width} x {image.height} pixels, but the first frame of its folder is "
                f"{first.width} x {first.height}",
            )
        if allocate is not None:
            frames[row] = np.asarray(image)
    return frames, [number for number in wanted if number > last]
