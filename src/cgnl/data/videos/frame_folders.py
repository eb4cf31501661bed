"""Videos as folders with a picture for each frame.

Shapes: T frames wanted, H height, W width.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cgnl.data.decoding import AnyPath, BadFileError, open_image

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


def frame_files(folder: AnyPath) -> list[Path]:
    """Return the JPEG, PNG, WebP and BMP files of a folder in natural order of names: ``img_2`` before ``img_10``.

    Raises:
        BadFileError: The folder cannot be read or holds no picture.
    """
    try:
        files = [path for path in Path(folder).iterdir() if path.suffix.lower() in _SUFFIXES]
    except OSError as error:
        raise BadFileError(folder, f"cannot be read: {error.strerror}") from None
    files = [path for path in files if not path.name.startswith(".")]
    if not files:
        raise BadFileError(folder, "is a folder without frames (JPEG, PNG, WebP or BMP files)")
    return sorted(files, key=lambda path: (_natural(path.stem), path.name))


def _natural(name: str) -> list[str | int]:
    # Every other part is a number, so that numbers are compared with numbers only.
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", name))]


def probe_folder(folder: AnyPath) -> tuple[int, float, int, int, int | None]:
    """Count the frames of a folder and look at the first.

    Returns frames, frames per second (0: unknown), width and height (pixels), and the number promised (None). Raises
    BadFileError where the folder holds no picture, or the first cannot be decoded.
    """
    files = frame_files(folder)
    return len(files), 0.0, *open_image(files[0]).size, None


def read_folder(
    folder: AnyPath, wanted: Sequence[int], allocate: Callable[[tuple[int, ...]], np.ndarray] | None
) -> tuple[np.ndarray, list[int]]:
    """Read frames of a folder by number (``wanted`` ascends) into a uint8 array that ``allocate`` makes of a shape.

    Returns the frames [T, H, W, 3] (RGB, uint8), none if ``allocate`` is None; and the numbers past the end, which get
    the last frame. Raises BadFileError where a picture cannot be decoded, or has another size than the folder's first.
    """
    files = frame_files(folder)
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
