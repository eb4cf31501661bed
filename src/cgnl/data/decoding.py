"""Opening files that others made: only what is asked for, only inside the root, never hanging.

Images are recognised by their content, not their name, and only JPEG, PNG, WebP and BMP are opened. Pillow
knows dozens of other formats (some run other programs, as EPS does); their code is not reached from here.
"""

import os
import re
import signal
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
"""Signals that stop a training run, saved. The processes that read for it end when it does. Windows lacks some."""
HANGUP = getattr(signal, "SIGHUP", None)
"""Signal that says that the terminal is closed."""
MAX_PIXELS = 100_000_000
# Resizing the shorter side of an image of 1 x 65535 pixels to 512 would take 50 GB.
MAX_ASPECT = 100

Signatures = tuple[tuple[re.Pattern[bytes], str], ...]
"""Patterns of the first bytes of files, and what such a file is."""
_OPENERS: tuple[tuple[re.Pattern[bytes], Callable[[BinaryIO, str], ImageFile]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), WebPImageFile),
    (re.compile(rb"BM"), BmpImageFile),
)
TIFF = re.compile(rb"II[*+]\0|MM\0[*+]")
"""The first bytes of a TIFF file."""
_NAMES_OF_OTHERS: Signatures = (
    (TIFF, "a TIFF file"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "a PostScript file"),
    (re.compile(rb"GIF8[79]a"), "a GIF file"),
    (re.compile(rb".{4}ftyp", re.DOTALL), "an AVIF, HEIC or MP4 file"),
    (re.compile(rb"(?:\xef\xbb\xbf)?\s*<"), "an HTML or XML page"),
    (re.compile(rb"PK\x03\x04"), "a zip archive"),
)
_follow_links: ContextVar[bool] = ContextVar("follow_links", default=False)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
# Windows knows only the last flag and no SIGKILL
_READ_ONLY = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
_SIGKILL = 9
AnyPath = str | os.PathLike[str]


class DataError(ValueError):
    """Something is wrong with the user's files or data; the message is one or two plain sentences."""


class BadFileError(DataError):
    """One file cannot be used; ``reason`` is the rest of a sentence that begins with the path."""

    def __init__(self, path: AnyPath, reason: str) -> None:
        super().__init__(path, reason)
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


def open_regular(path: AnyPath) -> BinaryIO:
    """Open a regular local file for reading; the caller closes it. A symbolic link is followed.

    Raises BadFileError where it does not exist or cannot be read; a pipe, socket or device is refused, not waited for.
    """
    try:
        # Looked at before it is opened, as opening a device can already act on it; and once more when open,
        # as the name may have been given to something else in between.
        if stat.S_ISREG(Path(path).stat().st_mode):
            descriptor = os.open(path, _READ_ONLY)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return os.fdopen(descriptor, "rb")
            os.close(descriptor)
    except FileNotFoundError:
        is_address = _URL.match(os.fspath(path))
        raise BadFileError(
            path, "is an address, and only local files are read" if is_address else "does not exist"
        ) from None
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror}") from None
    raise BadFileError(path, "is not a regular file")


def is_picture(path: AnyPath) -> bool:
    """Tell whether a file begins as one of the formats that :func:`open_image` opens, whatever its name."""
    try:
        with open_regular(path) as file:
            head = file.read(32)
    except BadFileError:
        return False
    return any(signature.match(head) for signature, _ in _OPENERS)


def open_image(path: AnyPath, *, size: tuple[int, int] | None = None, grey: bool = False) -> Image.Image:
    """Decode a JPEG, PNG, WebP or BMP file, whatever its name, fully into an upright 8-bit RGB image.

    The EXIF orientation is applied. Grey and palette images get their colours, 16-bit channels are scaled to 8 bits,
    CMYK is converted without a colour profile, and transparent pixels are composited on white. Of an animation the
    first frame is taken. ``size`` is the width and height (pixels) of the image that annotations were made for. If the
    stored pixels have this size, the image is not turned: whoever made the annotations did not look at the orientation.
    With ``grey`` the image is 8-bit grey, or 16-bit (I;16) where the file is.

    Raises:
        BadFileError: The file is missing, empty, of another format, over 100 megapixels (seen in the header, before any
            pixel is decoded), truncated or otherwise broken, or of another size than ``size``.
    """
    with open_regular(path) as file:
        head = file.read(32)
        if not head:
            raise BadFileError(path, "is empty (0 bytes)")
        opener = next((opener for signature, opener in _OPENERS if signature.match(head)), None)
        if opener is None:
            raise BadFileError(path, f"is not a JPEG, PNG, WebP or BMP file{looks_like(_NAMES_OF_OTHERS, head)}")
        file.seek(0)
        try:
            image = opener(file, os.fspath(path))
            width, height = image.size
            if rule := broken_limit(width, height):
                raise BadFileError(path, f"is {width} x {height} pixels, {rule}")
            image.load()
            convert = _to_grey if grey else _to_rgb
            if size == image.size:
                return convert(image)
            upright = convert(_upright(image))
            if size not in (None, upright.size):
                raise BadFileError(path, f"is {width} x {height} pixels, but its annotations say {size[0]} x {size[1]}")
            return upright
        except (BadFileError, MemoryError):
            raise
        except Image.DecompressionBombError:
            raise BadFileError(path, f"has more than {MAX_PIXELS // 10**6} megapixels") from None
        except Exception as error:  # broken files make Pillow's decoders raise nearly anything
            raise BadFileError(path, f"cannot be decoded: {error}") from error


def broken_limit(width: int, height: int) -> str | None:
    """Return the limit that a frame's size in pixels exceeds, as the end of a sentence; None if it exceeds none.

    >>> broken_limit(8192, 16)
    'with one side more than 100 times the other'
    """
    if width * height > MAX_PIXELS:
        return f"more than {MAX_PIXELS // 10**6} megapixels"
    if max(width, height) > MAX_ASPECT * min(width, height):
        return f"with one side more than {MAX_ASPECT} times the other"
    return None


def death_in_words(code: int) -> str:
    """Return how a process ended, by its exit code as Python gives it: below 0 the signal.

    >>> death_in_words(-11), death_in_words(3)
    ('SIGSEGV', 'exit code 3')
    """
    if code == -_SIGKILL:
        return "SIGKILL, perhaps for lack of memory"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def looks_like(others: Signatures, head: bytes) -> str:
    """Return what a file of another format looks like by its first bytes, as the end of a sentence."""
    return next((f" but looks like {name}" for signature, name in others if signature.match(head)), "")


def decoded_size(path: Path, *, sizes: Mapping[Path, tuple[int, int]] | None = None) -> tuple[int, int]:
    """Decode an image file fully, as :func:`open_image` does, and return only its width and height (pixels).

    They are upright, unless ``sizes`` gives those that the file must have.
    """
    return open_image(path, size=None if sizes is None else sizes[path]).size


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I;16":
        grey = np.asarray(image).astype(np.uint32)
        # Pillow would clip at 255 instead of scaling.
        scaled = ((grey * 255 + 32767) // 65535).astype(np.uint8)
        if "transparency" in image.info:
            scaled[grey == image.info["transparency"]] = 255
        return Image.fromarray(scaled).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_grey(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "I;16") and "transparency" not in image.info:
        return image
    if image.mode == "I;16":
        values = np.asarray(image)
        return Image.fromarray(np.where(values == image.info["transparency"], 65535, values).astype(np.uint16))
    return _to_rgb(image).convert("L")


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF data say, in place, and return it."""
    with suppress(Exception):  # unreadable EXIF data says nothing about the pixels, which are whole
        ImageOps.exif_transpose(image, in_place=True)
    return image


@contextmanager
def following_links(allowed: bool) -> Iterator[None]:
    """Let symbolic links in data sets lead out of their roots, where ``allowed``; ``..`` and absolute paths may not."""
    token = _follow_links.set(allowed)
    try:
        yield
    finally:
        _follow_links.reset(token)


def follows_links() -> bool:
    """Tell whether links may lead out, as :func:`following_links` says."""
    return _follow_links.get()


def resolve_inside(root: AnyPath, relative: str, *, source: AnyPath, line: int | None = None) -> Path:
    """Join a path read from a list (with ``/`` between its parts) to its root, refusing any that would lead out of it.

    Nothing is opened, and the file need not exist. The root may itself be a symbolic link. ``source`` and ``line``
    (from 1), where the path was read, are for the message. Raises DataError where the path is empty, a URL, absolute,
    holds ``..`` or a NUL character, or leads out of the root through a symbolic link.
    """
    where = os.fspath(source) if line is None else f"{os.fspath(source)}, line {line}"
    posix = PurePosixPath(relative)
    rule = None
    if not relative:
        rule = "is empty"
    elif "\0" in relative:
        rule = "holds a NUL character"
    elif _URL.match(relative):
        rule = "is a URL, and only local files are read"
    elif posix.is_absolute() or PureWindowsPath(relative).is_absolute():
        rule = f"is absolute, but must be relative to {os.fspath(root)}"
    elif ".." in posix.parts or ".." in PureWindowsPath(relative).parts:
        rule = f"holds '..', but must stay inside {os.fspath(root)}"
    elif not _follow_links.get():
        inside = os.path.realpath(root)
        target = os.path.realpath(f"{inside}/{relative}")
        if target != inside and not target.startswith(inside.rstrip(os.sep) + os.sep):
            rule = (
                f"is or passes a symbolic link that leads out of {os.fspath(root)}; --data.follow-links (or "
                "--follow-links of cgnl data check) allows that"
            )
    if rule is not None:
        raise DataError(f"{where}: the path {relative!r} {rule}.")
    return Path(root, relative)
