"""Frames of videos by number: of video files, and of folders with a picture for each frame.

The processes that decode videos import this module, so it imports no torch.

Shapes: T frames wanted, H height, W width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cgnl.data.decoding import AnyPath, BadFileError
from cgnl.data.videos.frame_folders import probe_folder, read_folder
from cgnl.data.videos.probing import probe_stream, stream_times
from cgnl.data.videos.streams import Pieces, read_stream
from cgnl.settings.checks import within


@dataclass(frozen=True)
class VideoInfo:
    """Length and size of a video.

    Args:
        frames: Number of frames, as counted.
        fps: Frames per second on average; 0 if unknown, as it is for a folder of frames.
        width: In pixels, upright.
        height: In pixels, upright.
        promised: Number of frames that the container announces; None if it announces none.
        even: Whether the frames are evenly spaced in time, ``fps`` of them in each second.
    """

    frames: int
    fps: float
    width: int
    height: int
    promised: int | None
    even: bool = True


def probe(path: AnyPath, frame_pattern: str | None = None) -> VideoInfo:
    """Count the frames of a video file or of a folder of frames, and look at its first one.

    The frames are counted by their packets, without decoding them, wherever the packets tell; else all are decoded.
    Those of a folder are the pictures that :func:`cgnl.data.videos.frame_folders.frame_files` returns. Raises
    BadFileError where the path is no video that is opened, or holds no frame that can be decoded.
    """
    if Path(path).is_dir():
        return VideoInfo(*probe_folder(path, frame_pattern))
    return VideoInfo(*probe_stream(path, decode_all=False))


def decode_all(path: AnyPath, frame_pattern: str | None = None) -> VideoInfo:
    """Decode a whole video file or folder of frames; ``frames`` is less than for :func:`probe` where some are damaged.

    Raises:
        BadFileError: As for :func:`probe`; and a picture in a folder of frames cannot be decoded.
    """
    if Path(path).is_dir():
        info = probe(path, frame_pattern)
        read_folder(path, range(info.frames), None, frame_pattern)
        return info
    return VideoInfo(*probe_stream(path, decode_all=True))


def frame_times(path: AnyPath) -> np.ndarray:
    """Return when each frame of a video begins and the last one ends, in seconds; float64 [F + 1].

    Frames that are evenly spaced may be so up to the rounding of their container. Raises BadFileError as
    :func:`probe`, and for a folder of frames, which tells no times.
    """
    if Path(path).is_dir():
        raise BadFileError(path, "does not say how many frames it has per second: it is a folder, so give folder_fps")
    return stream_times(path)


def read_frames(path: AnyPath, indices: Sequence[int], frame_pattern: str | None = None) -> tuple[np.ndarray, int]:
    """Read frames of a video by number, decoding only the stretches that are wanted.

    Frame i is the i-th that a decode of the whole first video stream shows; in a damaged file those that cannot be
    decoded keep their numbers.

    Args:
        path: A video file, or a folder of frames.
        indices: T numbers of frames, from 0, in any order; repeats are allowed.
        frame_pattern: As of :func:`probe`.

    Returns:
        uint8 [T, H, W, 3] RGB, upright; and the number of wanted frames that could not be decoded or lie past the
        end, each of which is replaced by the nearest one that could, or that the decoder calls damaged.

    Raises:
        BadFileError: The path is no video that is opened, or none of its frames can be decoded.
        ValueError: No index, or a negative one.
    """
    return read_into(path, indices, lambda shape: np.empty(shape, np.uint8), frame_pattern)


def read_into(
    path: AnyPath,
    indices: Sequence[int],
    allocate: Callable[[tuple[int, ...]], np.ndarray],
    frame_pattern: str | None = None,
) -> tuple[np.ndarray, int]:
    """Read frames as :func:`read_frames` does, into memory that ``allocate`` makes for a shape.

    Frames that are to be turned or repeated need not end up there. Return the frames, contiguous, and the number of
    wanted ones that could not be decoded.
    """
    numbers = checked_indices(indices)
    wanted = sorted(set(numbers))
    read: list[np.ndarray] = []
    pieces = Pieces(len(wanted), allocate, lambda _, frames: read.append(frames))
    lost = set(read_pieces(path, wanted, pieces, frame_pattern))
    frames = read[-1]
    if numbers != wanted:
        row = {number: row for row, number in enumerate(wanted)}
        frames = frames[[row[number] for number in numbers]]
    return frames, sum(number in lost for number in numbers)


def read_pieces(path: AnyPath, wanted: Sequence[int], pieces: Pieces, frame_pattern: str | None = None) -> list[int]:
    """Read frames of a video by number (``wanted`` ascends), of which some at a time are in memory.

    Return the wanted numbers that could not be decoded, which get the nearest frame. Errors are those of
    :func:`read_frames`.
    """
    if not Path(path).is_dir():
        return read_stream(path, wanted, pieces)
    lost = []
    for first in range(0, len(wanted), pieces.size):
        frames, past = read_folder(path, wanted[first : first + pieces.size], pieces.allocate, frame_pattern)
        pieces.take(first, frames)
        lost += past
    return lost


def checked_indices(indices: Sequence[int]) -> list[int]:
    """Return frame numbers as plain integers; raise ValueError if there are none, or negative ones."""
    numbers = [int(index) for index in indices]
    if not numbers:
        raise ValueError("indices must name at least one frame")
    within("indices", min(numbers), 0)
    return numbers
