"""Exact frames of video streams, by number, decoding only the stretches that are wanted.

The packets of a stream tell which frame is when (their presentation time stamps, pts) and where decoding can begin
(key frames), without any decoding. From the last key frame at or before a wanted frame the packets are decoded until
the frame with the right pts comes out. Whatever does not go by that plan ends in a decode of the stream from its start.

Shapes: T frames wanted, P frames of a piece of them, H height, W width.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from cgnl.data.decoding import MAX_PIXELS, AnyPath, BadFileError
from cgnl.data.videos.containers import open_video

# One packet of these holds one frame; others have packets without a frame (VP8's alternate references).
_FRAME_IN_EACH_PACKET = {
    "av1", "flv", "h263", "h264", "hevc", "libdav1d", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v2",
    "msmpeg4", "vp9", "wmv1", "wmv2",
}  # fmt: skip

# Decoders refuse larger frames before they decode them, without saying why.
NO_FRAME = f"holds no frame that can be decoded (of at most {MAX_PIXELS // 10**6} megapixels)"

# More packets than any decoder may hold back to show their frames in order; the standards allow for 16.
_REORDERED = 64
# Packets that are held at once (bytes); of a longer stretch they are read a second time.
_KEPT_BYTES = 1 << 26


@dataclass(frozen=True)
class Pieces:
    """Where wanted frames go: ``size`` (P) of them at a time, in their order.

    ``allocate`` makes the uint8 array of a shape for frames that need not be turned. ``take`` gets the place of a
    piece's first frame among the wanted ones and the frames, contiguous uint8 [P, H, W, 3]; it starts again
    with the first piece if decoding does.
    """

    size: int
    allocate: Callable[[tuple[int, ...]], np.ndarray]
    take: Callable[[int, np.ndarray], None]


class UnexpectedFrameError(Exception):
    """The decoder does not give the frames that the packets announce."""


@dataclass(frozen=True)
class PacketIndex:
    """Which packets hold which frames.

    Args:
        packets: The ones kept, in decoding order; None if they would be too many.
        start: Place of the first of them in the stream.
        times: Pts of frame i, in the order in which frames are shown.
        keys: (pts, place among the packets) of the key frames, both ascending.
        regular: Whether the packets tell the number and order of the frames reliably.
        number: Number of packets.
        hidden: Number of those that the container marks as decoded but not shown.
        last: How long the frame that is shown last stays, in the units of the pts; 0 if unknown.
    """

    packets: list[Packet] | None
    start: int
    times: list[int]
    keys: list[tuple[int, int]]
    regular: bool
    number: int
    hidden: int
    last: int


def index_packets(packets: Iterable[Packet], stream: VideoStream, *, first: int | None = None) -> PacketIndex:
    """Work out from its packets, read from the start, which frames a stream has.

    Packets may be missing if they are shown later than the frames of interest. Packets are kept from the last key frame
    on that is sure not to be shown after frame ``first``; None keeps none.
    """
    context = stream.codec_context
    # AVI stores no times or durations, and the times that FFmpeg works out for H.264 and HEVC are wrong.
    is_avi = stream.container.format.name == "avi"
    unknown = is_avi and context.name in ("h264", "hevc")
    regular = context.name in _FRAME_IN_EACH_PACKET and not unknown
    # MPEG-4 part 2 spends at least a bit on each macroblock; what is hardly more than a header is a place holder
    # without a frame, as encoders write for a repeated frame or after two frames in one packet.
    least = 8 + -(-context.width // 16) * -(-context.height // 16) // 8 if context.name == "mpeg4" else 0
    kept: list[Packet] = []
    keep = first is not None
    number = hidden = start = size = 0
    ends = (-math.inf, 0)
    times: list[int] = []
    keys: list[tuple[int, int]] = []
    seen = set()
    latest: int | None = None
    for place, packet in enumerate(packets):
        number += 1
        time = packet.pts
        if time is None or packet.is_corrupt or packet.size <= least:
            regular = False
        if time is None:
            continue
        seen.add(time)
        if packet.is_discard:
            hidden += 1
        else:
            times.append(time)
            ends = max(ends, (time, 0 if is_avi else packet.duration or 0))
        if latest is None or time > latest:
            latest = time
            # A key frame that is shown before what was decoded earlier is no place to begin.
            if packet.is_keyframe:
                keys.append((time, place))
                # As many of the frames before it may be still to come.
                if first is not None and len(times) + _REORDERED <= first:
                    kept, start, size, keep = [], place, 0, True
        if keep:
            kept.append(packet)
            size += packet.size
            if size > _KEPT_BYTES:
                kept, keep = [], False
    times.sort()
    regular = regular and bool(times) and len(seen) == number and keys[:1] == [(min(seen), 0)]
    return PacketIndex(kept if keep else None, start, times, keys, regular, number, hidden, ends[1])


def demux(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """Yield the packets of a stream that hold data, up to the end of the file or the first that cannot be read."""
    try:
        yield from (packet for packet in container.demux(stream) if packet.size)
    except (av.FFmpegError, OSError):
        return


def _beginning(packets: Iterable[Packet], number: int) -> Iterator[Packet]:
    """Yield packets until so many of them are shown."""
    for packet in packets:
        yield packet
        number -= not packet.is_discard
        if number == 0:
            return


def decode(packets: Iterable[Packet], stream: VideoStream) -> Iterator[VideoFrame]:
    """Decode packets from a key frame on, skip those that cannot be decoded, and yield all frames as they are shown."""
    for packet in packets:
        try:
            frames = stream.decode(packet)
        except av.FFmpegError:
            continue
        yield from frames
    try:
        yield from stream.decode(None)
    except av.FFmpegError:
        return


def read_stretches(
    stream: VideoStream,
    index: PacketIndex,
    packets: Iterable[tuple[int, Packet]],
    wanted: Sequence[int],
    take: Callable[[int, VideoFrame], None],
) -> list[int]:
    """Decode the wanted frames of a regular stream that was just opened, and little more; return those past the end.

    ``packets`` are (place, packet) from ``index.start`` or earlier on; ``wanted`` ascends without repeats. ``take`` is
    called with each wanted number and its frame, in their order; past the end it gets the last frame. Raises
    UnexpectedFrameError where the frames that come out are not those that the index announces.
    """
    context = stream.codec_context
    last = len(index.times) - 1
    missing: dict[int, list[int]] = {}
    for number in wanted:
        missing.setdefault(index.times[min(number, last)], []).append(number)
    times = frozenset(missing)
    key_times = [time for time, _ in index.keys]
    begin = place = 0
    upcoming = iter(packets)
    first_time: int | None = None
    latest: int | None = None

    def give(frames: Iterable[VideoFrame]) -> None:
        nonlocal first_time, latest
        for frame in frames:
            if frame.pts is None or frame.is_corrupt or (latest is not None and frame.pts <= latest):
                raise UnexpectedFrameError
            latest = frame.pts
            if first_time is not None and frame.pts >= first_time:
                # Decoding began here: right only if the frame stands for itself.
                if frame.pts != first_time or not frame.key_frame or frame.pict_type != PictureType.I:
                    raise UnexpectedFrameError
                first_time = None
            for number in missing.pop(frame.pts, ()):
                take(number, frame)

    try:
        for time in sorted(times):
            key_time, key_place = index.keys[bisect_right(key_times, time) - 1]
            if time in missing and key_place > place:
                context.flush_buffers()
                begin, first_time = key_place, key_time
            if begin < index.start:
                raise UnexpectedFrameError
            while time in missing and (following := next(upcoming, None)) is not None:
                place, packet = following
                if place < begin:
                    continue
                # Frames that no other frame refers to and nobody wants are passed over.
                context.skip_frame = "DEFAULT" if packet.pts in times else "NONREF"
                give(stream.decode(packet))
        if missing:
            give(stream.decode(None))
    except av.FFmpegError:
        raise UnexpectedFrameError from None
    if missing:
        raise UnexpectedFrameError
    return [number for number in wanted if number > last]


def read_from_start(
    numbered: Iterable[tuple[int, VideoFrame]], wanted: Sequence[int], take: Callable[[int, VideoFrame], None]
) -> list[int]:
    """Take the wanted frames out of a decode of the whole stream; return the wanted numbers that are not there whole.

    ``wanted`` ascends without repeats. ``take`` is called with each wanted number, in their order, and its frame,
    though it may be damaged, or the nearest one; never if there is no frame at all.
    """
    left = list(reversed(wanted))
    lost: list[int] = []
    last: tuple[int, VideoFrame] | None = None
    for number, frame in numbered:
        if last is not None and number <= last[0]:
            continue
        while left and left[-1] < number:
            near = frame if last is None or number - left[-1] < left[-1] - last[0] else last[1]
            lost.append(left.pop())
            take(lost[-1], near)
        if left and left[-1] == number:
            if frame.is_corrupt:
                lost.append(number)
            take(left.pop(), frame)
        if not left:
            return lost
        last = number, frame
    for number in reversed(left):
        lost.append(number)
        if last is not None:
            take(number, last[1])
    return lost


class Canvas:
    """The wanted frames of one video, ``number`` of them, brought to the stream's size and upright RGB by pieces."""

    def __init__(self, stream: VideoStream, number: int, pieces: Pieces) -> None:
        self._size = stream.codec_context.width, stream.codec_context.height
        self._number, self._pieces = number, pieces
        self._pixels = np.empty((0, 0, 0, 3), np.uint8)
        self._first = self.taken = 0
        self._reformatter = VideoReformatter()

    def take(self, number: int, frame: VideoFrame) -> None:
        """Convert the next wanted frame and keep its pixels; hand the piece over that it completes."""
        width, height = self._size
        if self.taken == self._first:
            self._pixels = self._pieces.allocate((min(self._pieces.size, self._number - self._first), height, width, 3))
        rgb = self._reformatter.reformat(frame, width, height, "rgb24", threads=1)
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        self._pixels[self.taken - self._first] = rows[:, : width * 3].reshape(height, width, 3)
        self.taken += 1
        if self.taken == self._first + len(self._pixels):
            matrix = display_matrix(frame)
            upright = self._pixels if matrix is None else turned(self._pixels, matrix)
            self._pieces.take(self._first, np.ascontiguousarray(upright))
            self._first = self.taken


def display_matrix(frame: VideoFrame) -> np.ndarray | None:
    """Return the matrix [2, 2] by which a frame's positions are to be turned for display; None if not at all."""
    if "DISPLAYMATRIX" not in frame.side_data:
        return None
    data = bytes(frame.side_data["DISPLAYMATRIX"])  # type: ignore[typeddict-item]
    return np.sign(np.frombuffer(data, np.int32).reshape(3, 3)[:2, :2])


def turned(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Turn frames [T, H, W, 3] by quarters and mirror them, to [T, H, W, 3] or [T, W, H, 3].

    ``matrix`` has the signs [2, 2] of M in (x', y') = (x, y) M, y pointing down; other matrices leave the frames as
    they are.

    >>> turned(np.arange(6).reshape(1, 1, 6, 1)[..., :2, :], np.array([[0, 1], [-1, 0]])).shape
    (1, 2, 1, 1)
    """
    (a, b), (c, d) = matrix.tolist()
    if a and d and not (b or c):
        return pixels[:, ::d, ::a]
    if b and c and not (a or d):
        return pixels.transpose(0, 2, 1, 3)[:, ::b, ::c]
    return pixels


def read_stream(path: AnyPath, wanted: Sequence[int], pieces: Pieces) -> list[int]:
    """Read frames of a video file (``wanted`` ascends), decoding none twice unless something is wrong with the file.

    Returns the wanted numbers that got the nearest frame instead, or are damaged. Raises BadFileError where the file is
    no video that can be opened, or none of its frames can be decoded.
    """
    with open_video(path) as (container, stream):
        enough = _beginning(demux(container, stream), wanted[-1] + 1 + _REORDERED)
        index = index_packets(enough, stream, first=wanted[0])
        if index.regular and index.packets is not None:
            canvas = Canvas(stream, len(wanted), pieces)
            with suppress(UnexpectedFrameError):
                return read_stretches(stream, index, enumerate(index.packets, index.start), wanted, canvas.take)
    if index.regular and index.packets is None:
        with open_video(path) as (container, stream), suppress(UnexpectedFrameError):
            canvas = Canvas(stream, len(wanted), pieces)
            return read_stretches(stream, index, enumerate(demux(container, stream)), wanted, canvas.take)
    # Numbers by time leave gaps where frames are lost. If the times do not fit, the frames are numbered as they come.
    for times in [index.times, None] if index.regular else [None]:
        with open_video(path) as (container, stream), suppress(UnexpectedFrameError):
            canvas = Canvas(stream, len(wanted), pieces)
            numbered = _numbered(decode(demux(container, stream), stream), times)
            lost = read_from_start(numbered, wanted, canvas.take)
            break
    if not canvas.taken:
        raise BadFileError(path, NO_FRAME)
    return lost


def _numbered(frames: Iterable[VideoFrame], times: list[int] | None) -> Iterator[tuple[int, VideoFrame]]:
    """Number frames by their time, so that those which are lost leave a gap; without times, as they come."""
    if times is None:
        yield from enumerate(frames)
        return
    number_of_time = {time: number for number, time in enumerate(times)}
    for frame in frames:
        if frame.pts is None:
            raise UnexpectedFrameError
        # The times may end a little after the frames that are wanted.
        number = len(times) if frame.pts > times[-1] else number_of_time.get(frame.pts)
        if number is None:
            raise UnexpectedFrameError
        yield number, frame
