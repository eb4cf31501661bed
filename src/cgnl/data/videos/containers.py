"""Opening video files that others made: known containers only, recognised by content, and nothing besides the file.

FFmpeg knows hundreds of formats, and some of them (playlists, concat lists, session descriptions, image sequences)
name other files and addresses, which it then opens. Here the format is fixed from the first bytes of the file, FFmpeg
gets an opened regular file instead of a name, and whatever else it may ask to open is refused.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, NoReturn

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
    (re.compile(rb"OggS\0"), "ogg"),
)
_NAMES_OF_OTHERS: Signatures = (
    (re.compile(rb"(?:\xef\xbb\xbf)?\s*#EXTM3U|ffconcat|\[playlist\]", re.IGNORECASE), "a playlist"),
    (re.compile(rb"v=0\r?\n"), "a session description (SDP)"),
    (re.compile(rb"(?:\xef\xbb\xbf)?\s*<"), "an HTML or XML page"),
    (re.compile(rb"PK\x03\x04"), "a zip archive"),
    (re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM"), "an image"),
)
_HEAD = 1024
_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
# A track of one packet of these is a picture, as of a song's cover, whether it is marked so or not.
_PICTURE_CODECS = {"mjpeg", "png", "bmp", "gif", "webp", "tiff", "jpeg2000", "jpegls"}
_LIMITS = {"max_pixels": str(MAX_PIXELS)}
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
        raise BadFileError(path, f"is not an MP4, MOV, AVI, Matroska, WebM, MPEG, FLV, Ogg or ASF video{looks}")
    return name


@contextmanager
def open_video(path: AnyPath, *, every_stream: bool = False) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a regular local video file; no other file or address is ever opened.

    Yields the container, and its video stream, to be decoded with one thread: of several that are no pictures, the
    first that is marked as the default one, or else the first. The container gives the packets of this stream alone,
    unless ``every_stream``. Raises BadFileError where the file is missing, empty, of another format, broken, without a
    video stream, of a codec that cannot be decoded, or of frames over 100 megapixels or over 100 times as long one way
    as the other.
    """
    with open_regular(path) as file:
        name = container_format(path, file.read(_HEAD))
        container = _container(path, file, name)
        pictures = {stream.index for stream in container.streams.video if stream.disposition & _PICTURES}
        if unsure := [stream for stream in container.streams.video if _may_be_picture(container, stream)]:
            pictures |= _of_one_packet(container, unsure)
            container.close()
            container = _container(path, file, name)
        with container:
            moving = [stream for stream in container.streams.video if stream.index not in pictures]
            default = [stream for stream in moving if stream.disposition & Disposition.default]
            stream = next(iter(default or moving), None)
            if stream is None:
                raise BadFileError(path, "holds no video stream")
            context = stream.codec_context
            if context is None:
                raise BadFileError(path, "uses a codec that cannot be decoded")
            if rule := broken_limit(context.width, context.height):
                raise BadFileError(path, f"is {context.width} x {context.height} pixels, {rule}")
            for other in container.streams:
                if other.index != stream.index and not every_stream:
                    other.discard = Discard.all
            context.options = _LIMITS
            # One worker process a core reads videos; threads of their decoders would only take turns.
            context.thread_count = 1
            yield container, stream


def _container(path: AnyPath, file: BinaryIO, name: str) -> InputContainer:
    """Open the container of a file, from its beginning."""
    file.seek(0)
    try:
        return av.open(
            _File(file),
            mode="r",
            format=name,
            options=_LIMITS,
            container_options={"format_whitelist": name, "protocol_whitelist": "none"},
            metadata_errors="replace",
            buffer_size=_BUFFER,
            io_open=_refuse,
        )
    except (av.FFmpegError, _OtherFileError, OSError) as error:
        raise BadFileError(path, f"cannot be opened as a video: {_told(error)}") from None


def _may_be_picture(container: InputContainer, stream: VideoStream) -> bool:
    context = stream.codec_context
    is_alone = len(container.streams) == 1
    return not is_alone and stream.frames <= 1 and context is not None and context.name in _PICTURE_CODECS


def _of_one_packet(container: InputContainer, streams: Sequence[VideoStream]) -> set[int]:
    """Return the indices of those streams that have one packet or none; reads on where the container stands."""
    counts = {stream.index: 0 for stream in streams}
    try:
        for packet in container.demux(*streams):
            if packet.size:
                counts[packet.stream.index] += 1
                if min(counts.values()) > 1:
                    break
    except (av.FFmpegError, OSError):
        pass
    return {index for index, count in counts.items() if count < 2}


class _OtherFileError(Exception):
    """FFmpeg asked for another file or address."""


def _refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise _OtherFileError(f"it refers to another file or address, {url!r}")


def _told(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
