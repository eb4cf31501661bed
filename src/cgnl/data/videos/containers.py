"""Opening video files that others made: known containers only, recognised by content, and nothing besides the file.

FFmpeg knows hundreds of formats, and some of them (playlists, concat lists, session descriptions, image sequences)
name other files and addresses, which it then opens. Here the format is fixed from the first bytes of the file, FFmpeg
gets an opened regular file instead of a name, and whatever else it may ask to open is refused.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import av
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from cgnl.data.decoding import MAX_PIXELS, AnyPath, BadFileError, Signatures, broken_limit, looks_like, open_regular

av.logging.set_libav_level(av.logging.PANIC)

_CONTAINERS: Signatures = (
    (re.compile(rb".{4}(?:ftyp|moov|mdat|free|skip|wide|pnot|styp)", re.DOTALL), "mov"),
    (re.compile(rb"RIFF.{4}AVI[ \x19X]", re.DOTALL), "avi"),
    (re.compile(rb"\x1a\x45\xdf\xa3"), "matroska"),
    (re.compile(rb"\x47.{187}\x47.{187}\x47|.{4}\x47.{191}\x47.{191}\x47", re.DOTALL), "mpegts"),
    (re.compile(rb"\0\0\x01\xba"), "mpeg"),
    (re.compile(rb"FLV\x01"), "flv"),
    (re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"), "asf"),
)
_NAMES_OF_OTHERS: Signatures = (
    (re.compile(rb"(?:\xef\xbb\xbf)?\s*#EXTM3U|ffconcat|\[playlist\]", re.IGNORECASE), "a playlist"),
    (re.compile(rb"v=0\r?\n"), "a session description (SDP)"),
    (re.compile(rb"(?:\xef\xbb\xbf)?\s*<"), "an HTML or XML page"),
    (re.compile(rb"PK\x03\x04"), "a zip archive"),
    (re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM"), "an image"),
)
_HEAD = 1024
# Each refill calls back into Python; files are read nearly as a whole.
_BUFFER = 1 << 18


class _File:
    """An opened file as FFmpeg sees it: no name, no way to write."""

    def __init__(self, file: Any) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def container_format(path: AnyPath, head: bytes) -> str:
    """Return FFmpeg's name of the demuxer for a video file whose first kilobyte is ``head``.

    Raises BadFileError where the file is empty or of another format.

    >>> container_format("a.mp4", bytes(4) + b"ftypisom")
    'mov'
    """
    if not head:
        raise BadFileError(path, "is empty (0 bytes)")
    name = next((name for signature, name in _CONTAINERS if signature.match(head)), None)
    if name is None:
        looks = looks_like(_NAMES_OF_OTHERS, head)
        raise BadFileError(path, f"is not an MP4, MOV, AVI, Matroska, WebM, MPEG, FLV or ASF video{looks}")
    return name


@contextmanager
def open_video(path: AnyPath) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a regular local video file; no other file or address is ever opened.

    Yields the container, and its first video stream that is no cover picture, to be decoded with one thread. Raises
    BadFileError where the file is missing, empty, of another format, broken, without a video stream, of a codec that
    cannot be decoded, or of frames over 100 megapixels or over 100 times as long one way as the other.
    """
    with open_regular(path) as file:
        name = container_format(path, file.read(_HEAD))
        file.seek(0)
        limits = {"max_pixels": str(MAX_PIXELS)}
        try:
            container = av.open(
                _File(file),
                mode="r",
                format=name,
                options=limits,
                container_options={"format_whitelist": name, "protocol_whitelist": "none"},
                metadata_errors="replace",
                buffer_size=_BUFFER,
                io_open=_refuse,
            )
        except (av.FFmpegError, _OtherFileError, OSError) as error:
            raise BadFileError(path, f"cannot be opened as a video: {_told(error)}") from None
        with container:
            stream = next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)
            if stream is None:
                raise BadFileError(path, "holds no video stream")
            context = stream.codec_context
            if context is None:
                raise BadFileError(path, "uses a codec that cannot be decoded")
            if rule := broken_limit(context.width, context.height):
                raise BadFileError(path, f"is {context.width} x {context.height} pixels, {rule}")
            for other in container.streams:
                if other.index != stream.index:
                    other.discard = Discard.all
            context.options = limits
            # One worker process a core reads videos; threads of their decoders would only take turns.
            context.thread_count = 1
            yield container, stream


class _OtherFileError(Exception):
    """FFmpeg asked for another file or address."""


def _refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise _OtherFileError(f"it refers to another file or address, {url!r}")


def _told(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
