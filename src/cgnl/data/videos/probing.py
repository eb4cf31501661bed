"""Length, size and presentation times of video streams, and how much of them their container promises.

A file is read by its packets, without any decoding, wherever these tell; else all its frames are decoded.
"""

import re
from collections.abc import Sequence
from itertools import chain, pairwise

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from cgnl.data.decoding import AnyPath, BadFileError
from cgnl.data.videos.containers import open_video
from cgnl.data.videos.streams import NO_FRAME, PacketIndex, decode, demux, display_matrix, index_packets, turned

# Demuxers that work the duration out from the times they find, of sound too.
_STORE_NO_DURATION = {"mpeg", "mpegts", "ogg"}
# Their clocks start anywhere, so that a file's own time begins with its first packet.
_CLOCK_OF_A_SENDER = {"mpeg", "mpegts"}
# What is stored for each stream of a Matroska file.
_DURATION_TAG = re.compile(r"([0-9]{1,4}):([0-9]{2}):([0-9]{2}(?:\.[0-9]*)?)$")
# Frames are evenly spaced if none is further from its place than this part of the distance.
_UNEVEN = 0.25
# Seconds that a frame may be shown on average.
_LONGEST = 3600


def probe_stream(path: AnyPath, *, decode_all: bool) -> tuple[int, float, int, int, int | None, bool]:
    """Count the frames of a video file, by its packets where they can be trusted unless ``decode_all``.

    Returns frames, frames per second, width and height (pixels, upright), the number of frames that the container
    promises, and whether the frames are evenly spaced in time. The container promises the frames that it counts, or
    those that its stored duration has room for; None if it promises nothing. With ``decode_all``, frames that the
    decoder calls damaged are promised and not counted. BadFileError as of
    :func:`cgnl.data.videos.streams.read_stream`.
    """
    with open_video(path) as (container, stream):
        index = index_packets(demux(container, stream), stream)
        stored, whole = _stored_seconds(container, stream)
        # AVI counts the slots for frames, of which some may be empty.
        counted = 0 if container.format.name == "avi" else stream.frames
        announced, rates = bool(stream.frames), _rates(stream)
        width, height = stream.codec_context.width, stream.codec_context.height
        unit = float(stream.time_base or 0)
    with open_video(path) as (container, stream):
        frames = decode(demux(container, stream), stream)
        first = next(frames, None)
        if first is None:
            raise BadFileError(path, NO_FRAME)
        matrix, damaged = display_matrix(first), 0
        decoded = None
        if decode_all or not index.regular:
            decoded = []
            for frame in chain([first], frames):
                decoded.append(frame.pts)
                damaged += decode_all and frame.is_corrupt
    number = len(index.times) if decoded is None else len(decoded)
    times = _in_seconds(index, decoded, unit, rates)
    fps, even = _rate(times, rates)
    if counted:
        lacking = counted - index.number
    else:
        end = max(times[-1], _end_of_all(path)) if whole and stored > times[-1] else times[-1]
        lacking = _frames_in(stored - end, times)
    shown = index.number - index.hidden
    promised = shown + max(lacking, 0) if announced or lacking > 0 or (index.regular and number != shown) else None
    if damaged and promised is None:
        promised = number
    if matrix is not None:
        height, width = turned(np.empty((1, height, width, 0), np.uint8), matrix).shape[1:3]
    return number - damaged, fps, width, height, promised, even


def stream_times(path: AnyPath) -> np.ndarray:
    """Return when each frame of a video file begins, and when the last one ends (seconds, ascending): float64 [F + 1].

    These are the presentation times, with the container's edits; those of an MPEG stream count from its beginning.
    Where a file gives none, the frames are evenly spaced. BadFileError as of :func:`probe_stream`.
    """
    with open_video(path) as (container, stream):
        index = index_packets(demux(container, stream), stream)
        rates, unit, kind = _rates(stream), float(stream.time_base or 0), container.format.name
        begins = (container.start_time or 0) / av.time_base
    decoded = None
    if not index.regular:
        with open_video(path) as (container, stream):
            decoded = [frame.pts for frame in decode(demux(container, stream), stream)]
        if not decoded:
            raise BadFileError(path, NO_FRAME)
    times = _in_seconds(index, decoded, unit, rates)
    if kind == "avi":
        times -= times[0] - begins  # it stores no times, and FFmpeg's count the frames that a decoder holds back
    elif kind in _CLOCK_OF_A_SENDER:
        times -= begins
    frames, lasts = len(times) - 1, times[-1] - times[0]
    if lasts > _LONGEST * frames:
        raise BadFileError(path, f"gives times that cannot be right: {lasts:.0f} seconds for {frames} frames")
    return times


def _in_seconds(
    index: PacketIndex, decoded: Sequence[int | None] | None, unit: float, rates: Sequence[float]
) -> np.ndarray:
    """Return the times [F + 1] of frames that were ``decoded``, by their pts, or of those of a regular index (None)."""
    times: Sequence[int | None] = index.times if decoded is None else decoded
    lasts = index.last
    if not _ascends(times):
        # packets of an AVI in another order than their frames: the times are right as a set
        times = index.times if decoded is None or len(index.times) == len(decoded) else ()
    if not times or not unit or not _ascends(times):
        number = len(index.times if decoded is None else decoded)
        times, lasts, unit = range(number), 1, 1 / next(iter(rates), 25.0)
    seconds = np.array(times, dtype=np.float64) * unit
    last = lasts * unit
    if last <= 0:
        last = seconds[-1] - seconds[-2] if len(seconds) > 1 else 1 / next(iter(rates), 25.0)
    return np.append(seconds, seconds[-1] + last)


def _ascends(times: Sequence[int | None]) -> bool:
    return None not in times and all(before < after for before, after in pairwise(times))  # type: ignore[operator]


def _rates(stream: VideoStream) -> list[float]:
    """Return the frames per second that a container states or FFmpeg guesses."""
    return [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]


def _rate(times: np.ndarray, rates: Sequence[float]) -> tuple[float, bool]:
    """Return the frames per second of times [F + 1], and whether they are evenly spaced."""
    starts = times[:-1] - times[0]
    on_average = len(starts) / (times[-1] - times[0])
    for fps in (*rates, on_average):
        if (np.abs(starts * fps - np.arange(len(starts))) <= _UNEVEN).all():
            return fps, True
    return float(on_average), False


def _stored_seconds(container: InputContainer, stream: VideoStream) -> tuple[float, bool]:
    """Return when a stream ends as its container stores it, or the whole file, and whether it is that of the whole.

    It is 0 if none is stored.
    """
    if container.format.name in _STORE_NO_DURATION:
        return 0.0, False
    if tag := _DURATION_TAG.match(stream.metadata.get("DURATION", "")):
        hours, minutes, seconds = map(float, tag.groups())
        return 3600 * hours + 60 * minutes + seconds, False
    if stream.time_base is not None and container.format.name == "avi":
        return float(stream.frames * stream.time_base), False  # slots, of which FFmpeg may find fewer
    if stream.time_base is not None and stream.duration is not None:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base), False
    return (container.duration or 0) / av.time_base, True


def _end_of_all(path: AnyPath) -> float:
    """Return when the last packet of any stream ends (seconds): sound may go on after the last frame."""
    end = 0.0
    with open_video(path, every_stream=True) as (container, _):
        try:
            for packet in container.demux():
                if packet.pts is not None and packet.time_base is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        except (av.FFmpegError, OSError):
            pass
    return end


def _frames_in(seconds: float, times: np.ndarray) -> int:
    """Return how many frames, spaced as those at ``times`` [F + 1], are missing in seconds at the end; 0 if none.

    Of unevenly spaced frames the last may last as long as any other, so that less than that says nothing.
    """
    distances = np.diff(times)
    usual = float(distances.mean())
    least = usual / 2 if distances.max() < 2 * usual else float(distances.max())
    return max(round(seconds / usual), 1) if seconds > least else 0
