"""Reading the first image of a TIFF file, of any number of channels, with tifffile.

Only the plain layouts are read: all that makers of scanners and microscopes added, some of which names further files,
is left out. The sizes in the header, and where it says that the pixels lie, are checked before any pixel is decoded.
"""

import logging
import math
import os
from importlib.util import find_spec
from typing import Any, BinaryIO

import numpy as np

from cgnl.data.decoding import MAX_PIXELS, AnyPath, BadFileError, broken_limit

NEEDS_TIFFFILE = "needs tifffile: pip install 'cgnl[tiff]'"
_TYPES = ("uint8", "uint16", "float32")
# the flags of tifffile for layouts that are not plain
_NOT_PLAIN = (
    *("lsm", "mmstack", "ome", "ndtiff", "fluoview", "stk", "sis", "svs", "scn", "qpi", "ndpi", "bif", "avs", "eer"),
    *("philips", "scanimage", "nih", "mdgel"),
)
_NO_COMPRESSION, _JPEG = 1, 7
# besides: LZW, Deflate under both of its numbers, PackBits and Zstandard
_COMPRESSIONS = (_NO_COMPRESSION, 5, _JPEG, 8, 32773, 32946, 50000)
_WHITE_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 2, 3, 5, 6
_COLOURS = (_WHITE_IS_ZERO, 1, _RGB, _CMYK, _YCBCR)
_ORIENTATION = 274
# Of each value of that tag, whether rows and columns are exchanged, and which axes are reversed afterwards.
_TURNS: dict[int, tuple[bool, tuple[int, ...]]] = {
    **{2: (False, (1,)), 3: (False, (0, 1)), 4: (False, (0,))},
    **{5: (True, ()), 6: (True, (1,)), 7: (True, (0, 1)), 8: (True, (0,))},
}
# as Pillow weighs red, green and blue
_GREY = (0.299, 0.587, 0.114)


def read_tiff(file: BinaryIO, path: AnyPath, channels: int) -> np.ndarray:
    """Decode the first image of an open TIFF file, upright, into an array [H, W, channels] as it is stored.

    Its channels are first or last, in one page or one a page. A grey image is repeated over three channels, and the
    grey of an RGB image taken for one. ``path`` is for messages.

    Raises:
        BadFileError: tifffile is not installed, the image has another number of channels, its values are not uint8,
            uint16 or finite float32, or it is too large, truncated, or otherwise broken.
    """
    if find_spec("tifffile") is None:
        raise BadFileError(path, f"is a TIFF file, which {NEEDS_TIFFFILE}")
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        plain: dict[str, Any] = {f"is_{name}": False for name in _NOT_PLAIN}
        with tifffile.TiffFile(file, name=os.fspath(path), _multifile=False, **plain) as tiff:
            if not tiff.series:
                raise BadFileError(path, "holds no image")
            series = tiff.series[0]
            _check_page(series.keyframe, path)
            axis = _check_shape(series, path, channels)
            _check_extent(series, os.fstat(file.fileno()).st_size, path)
            # threads of a reader that is forked would never end
            values = series.asarray(maxworkers=1)
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise BadFileError(path, "holds values that are not finite (NaN or infinity)")
            values = values[..., None] if axis is None else np.moveaxis(values, axis, -1)
            return _upright(series.keyframe, values, channels)
    except (BadFileError, MemoryError):
        raise
    except Exception as error:  # broken files make the decoders raise nearly anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BadFileError(path, f"cannot be decoded: {reason}") from error


def _check_page(page: Any, path: AnyPath) -> None:
    """Raise BadFileError for values, colours or compressions that are not read."""
    bits, kind = page.bitspersample, str(page.dtype)
    if kind not in _TYPES or bits != page.dtype.itemsize * 8:
        name = kind if page.dtype is not None and bits == page.dtype.itemsize * 8 else f"{bits}-bit"
        raise BadFileError(path, f"holds {name} values, and only {', '.join(_TYPES)} are read")
    if page.photometric not in _COLOURS or (page.photometric == _YCBCR and page.compression != _JPEG):
        name = "a colour palette" if page.photometric == _PALETTE else f"colours of the kind {_name(page.photometric)}"
        raise BadFileError(path, f"has {name}, which is not read: save it with plain channels")
    if page.compression not in _COMPRESSIONS:
        raise BadFileError(path, f"is compressed as {_name(page.compression)}, which is not read")
    packed = page.compression != _NO_COMPRESSION or page.predictor != 1
    # what tifffile has instead would unpack a small file into all of the memory
    if packed and find_spec("imagecodecs") is None:
        raise BadFileError(
            path, f"is compressed ({_name(page.compression)}), which needs imagecodecs: pip install 'cgnl[tiff]'"
        )


def _name(value: Any) -> str:
    return getattr(value, "name", str(value))


def _check_shape(series: Any, path: AnyPath, channels: int) -> int | None:
    """Return the axis of the channels, None where there is only one; raise BadFileError unless it has the right size.

    A file of H pages [W, C], which is what tifffile writes of an array [H, W, C], has its channels last as well.
    """
    shape, axes = series.shape, series.axes
    if len(shape) not in (2, 3):
        raise BadFileError(path, f"holds {' x '.join(map(str, shape))} values, which are not one image")
    photometric = series.keyframe.photometric
    axis = None if len(shape) == 2 else 2 if axes.endswith("S") else 0
    if axis is not None and shape[axis] != channels and shape[2 - axis] == channels:
        axis = 2 - axis
    found = 1 if axis is None else shape[axis] if axes.endswith("S") else min(shape[axis], shape[2 - axis])
    height, width = (side for place, side in enumerate(shape) if place != axis)
    wanted = {1: (1, 3) if photometric in (_RGB, _YCBCR) else (1,), 3: (1, 3)}.get(channels, (channels,))
    if (1 if axis is None else shape[axis]) not in wanted:
        values = f"has {found} channel{'s' * (found != 1)} ({' x '.join(map(str, shape))} values)"
        raise BadFileError(path, f"{values}, but {channels} are expected (data.channels)")
    if rule := broken_limit(width, height):
        raise BadFileError(path, f"is {width} x {height} pixels, {rule}")
    if math.prod(series.keyframe.chunks) > MAX_PIXELS * channels:
        raise BadFileError(path, f"has tiles of more than {MAX_PIXELS // 10**6} megapixels")
    return axis


def _check_extent(series: Any, size: int, path: AnyPath) -> None:
    """Raise BadFileError where a file of ``size`` bytes ends before its pixels do."""
    if series.dataoffset is not None:
        end = series.dataoffset + series.nbytes
    else:
        pages = [page for page in series.pages if page is not None]
        ends = [sum(part) for page in pages for part in zip(page.dataoffsets, page.databytecounts, strict=True)]
        end = max(ends, default=0)
        if not any(count for page in pages for count in page.databytecounts):
            raise BadFileError(path, "holds no pixels")
    if end > size:
        raise BadFileError(path, f"is truncated: its pixels end at byte {end}, and it has {size}")


def _upright(page: Any, values: np.ndarray, channels: int) -> np.ndarray:
    """Return values [H, W, C] upright, in the machine's byte order, with 0 for black, and of so many channels."""
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if page.photometric == _WHITE_IS_ZERO and values.dtype.kind == "u":
        values = np.iinfo(values.dtype).max - values
    if values.shape[2] != channels:
        values = _grey_of(values) if channels == 1 else np.repeat(values, channels, axis=2)
    exchanged, reversed_axes = _TURNS.get(page.tags.valueof(_ORIENTATION, 1), (False, ()))
    if exchanged:
        values = values.swapaxes(0, 1)
    return np.ascontiguousarray(np.flip(values, reversed_axes))


def _grey_of(values: np.ndarray) -> np.ndarray:
    grey = values @ np.array(_GREY, np.float32)
    return (np.round(grey) if values.dtype.kind == "u" else grey).astype(values.dtype)[..., None]
