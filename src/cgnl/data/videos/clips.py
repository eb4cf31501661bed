"""Which frames make a clip: functions from a video's number of frames to numbers of frames.

A clip is ``length`` frames, every ``step``-th one of a stretch of ``length * step`` consecutive frames (32 of 64 in
the paper). Numbers past the end of a video wrap around, so that a video shorter than the stretch loops.

Source: the paper, which follows Wang et al. 2018, "Non-local neural networks".
"""

import math

import numpy as np
import torch

from cgnl.settings.checks import within


def clip_from(frames: int, length: int, step: int, start: int) -> np.ndarray:
    """Return the ``length`` frames of the clip that starts at a frame, ``step`` apart, as int64 [T].

    Behind the last frame the clip goes on with the first. Raises ValueError for a number below 1, or a start that is no
    frame of the video.

    Example:
        >>> clip_from(10, length=4, step=2, start=5)
        array([5, 7, 9, 1])
    """
    _check(frames=frames, length=length, step=step)
    if not 0 <= start < frames:
        raise ValueError(f"start ({start}) must be at least 0 and below frames ({frames})")
    return _clips(frames, np.array([start]), length, step)[0]


def training_clip(frames: int, length: int, step: int) -> np.ndarray:
    """Return a clip with a random start: from 0 to ``frames - length * step``, or 0 where the video is shorter.

    The start is drawn from torch's global generator; arguments, result and errors are as of :func:`clip_from`.

    >>> training_clip(3, length=4, step=2)
    array([0, 2, 1, 0])
    """
    _check(frames=frames, length=length, step=step)
    start = int(torch.randint(_last_start(frames, length, step) + 1, ()))
    return clip_from(frames, length, step, start)


def centre_clip(frames: int, length: int, step: int) -> np.ndarray:
    """Return the clip in the middle: from floor((frames - length * step) / 2), or from 0 where the video is shorter.

    Arguments, result and errors are as of :func:`clip_from`.

    >>> centre_clip(9, length=3, step=2)
    array([1, 3, 5])
    """
    _check(frames=frames, length=length, step=step)
    return clip_from(frames, length, step, _last_start(frames, length, step) // 2)


def test_clips(frames: int, num_clips: int, length: int, step: int) -> np.ndarray:
    """Return clips that start evenly spaced: clip j at floor(frames * j / num_clips); int64 [num_clips, T].

    The formula would put a single clip at the beginning, where many videos only fade in; it is :func:`centre_clip`
    instead. The other arguments and errors are as of :func:`clip_from`.

    >>> test_clips(9, num_clips=2, length=3, step=2)
    array([[0, 2, 4],
           [4, 6, 8]])
    """
    _check(frames=frames, num_clips=num_clips, length=length, step=step)
    if num_clips == 1:
        return centre_clip(frames, length, step)[None]
    return _clips(frames, frames * np.arange(num_clips) // num_clips, length, step)


test_clips.__test__ = False  # type: ignore[attr-defined]  # no test, though pytest would take the name for one


def timeline_clips(frames: int, fps: float, length: int, step: int) -> np.ndarray:
    """Return one clip for each second of a video, centred on the middle of that second; int64 [seconds, T].

    A clip that would begin before the video or end after it is moved to lie inside, so that it does not mix the end
    with the beginning; only a video shorter than a clip loops. A part of a second at the end counts as one. Arguments
    and errors are as of :func:`clip_from`. Also raises ValueError for an fps that is not above 0, which a folder of
    frames has.

    >>> timeline_clips(11, fps=4, length=2, step=2)
    array([[0, 2],
           [4, 6],
           [7, 9]])
    """
    _check(frames=frames, length=length, step=step)
    if not 0 < fps < math.inf:
        raise ValueError(f"fps ({fps}) must be above 0")
    middles = (np.arange(math.ceil(frames / fps)) + 0.5) * fps
    starts = np.floor(middles - length * step / 2).astype(np.int64)
    return _clips(frames, starts.clip(0, _last_start(frames, length, step)), length, step)


def _clips(frames: int, starts: np.ndarray, length: int, step: int) -> np.ndarray:
    return (starts[:, None] + step * np.arange(length)) % frames


def _last_start(frames: int, length: int, step: int) -> int:
    return max(frames - length * step, 0)


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        within(name, value, 1)
