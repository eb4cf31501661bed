"""Frames of videos by number: of video files, and of folders with a picture for each frame.

The processes that decode videos import this module, so it imports no torch.

Shapes: T frames wanted, H height, W width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cgnl.data.decoding import AnyPath
from cgnl.data.videos import streams
from cgnl.data.videos.frame_folders import probe_folder, read_folder
from cgnl.data.videos.streams import Pieces
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
    """

    frames: int
    fps: float
    width: int
    height: int
    promised: int | None


def probe(path: AnyPath) -> VideoInfo:
    """Count the frames of a video file or of a folder of frames, and look at its first one.

    The frames are counted by their packets, without decoding them, wherever the packets tell; else all are decoded.
    Raises BadFileError where the path is no video that is opened, or holds no frame that can be decoded.
    """
    return VideoInfo(*(probe_folder(path) if Path(path).is_dir() else streams.probe_stream(path, decode_all=False)))


def decode_all(path: AnyPath) -> VideoInfo:
    """Decode a whole video file or folder of frames; ``frames`` is less than for :func:`probe` where some are damaged.

    Raises:
        BadFileError: As for :func:`probe`; and a picture in a folder of frames cannot be decoded.
    """
    if Path(path).is_dir():
        info = probe(path)
        read_folder(path, range(info.frames), None)
        return info
    return VideoInfo(*streams.probe_stream(path, decode_all=True))


def read_frames(path: AnyPath, indices: Sequence[int]) -> tuple[np.ndarray, int]:
    """Read frames of a video by number, decoding only the stretches that are wanted.

    Frame i is the i-th that a decode of the whole first video stream shows; in a damaged file those that cannot be
    decoded keep their numbers.

    Args:
        path: A video file, or a folder of frames.
        indices: T numbers of frames, from 0, in any order; repeats are allowed.

    Returns:
        uint8 [T, H, W, 3] RGB, upright; and the number of wanted frames that could not be decoded or lie past the
        end, each of which is replaced by the nearest one that could.

    Raises:
        BadFileError: The path is no video that is opened, or none of its frames can be decoded.
        ValueError: No index, or a negative one.
    """
    return read_into(path, indices, lambda shape: np.empty(shape, np.uint8))


def read_into(
    path: AnyPath, indices: Sequence[int], allocate: Callable[[tuple[int, ...]], np.ndarray]
) -> tuple[np.ndarray, int]:
    """Read frames as :func:`read_frames` does, into memory that ``allocate`` makes for a shape.

    Frames that are to be turned or repeated need not end up there. Return the frames, contiguous, and the number of
    wanted ones that could not be decoded.
    """
    numbers = checked_indices(indices)
    wanted = sorted(set(numbers))
    read: list[np.ndarray] = []
    lost = set(read_pieces(path, wanted, Pieces(len(wanted), allocate, lambda _, frames: read.append(frames))))
    frames = read[-1]
    if numbers != wanted:
        row = {number: row for row, number in enumerate(wanted)}
        frames = frames[[row[number] for number in numbers]]
    return frames, sum(number in lost for number in numbers)


def read_pieces(path: AnyPath, wanted: Sequence[int], pieces: Pieces) -> list[int]:
    """Read frames of a video by number (``wanted`` ascends), of which some at a time are in memory.

    Return the wanted numbers that could not be decoded, which get the nearest frame. Errors are those of
    :func:`read_frames`.
    """
    if not Path(path).is_dir():
        return streams.read_stream(path, wanted, pieces)
    lost = []
    for first in range(0, len(wanted), pieces.size):
        frames, past = read_folder(path, wanted[first : first + pieces.size], pieces.allocate)
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
