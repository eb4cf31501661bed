"""Which frames make a clip: functions from a video's number of frames to numbers of frames.

A clip is ``length`` frames, every ``step``-th one of a stretch of ``length * step`` consecutive frames (32 of 64 in
the paper). Numbers past the end of a video wrap around, so that a video shorter than the stretch loops.

Source: the paper, which follows Wang et al. 2018, "Non-local neural networks".
"""

import math

import numpy as np
import torch

from cgnl.settings.checks import within

# Seconds by which containers round the times of frames, and part of a tick that is longer than that.
_ROUNDED, _LATER = 0.002, 0.1


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


def test_clips(
    frames: int,
    num_clips: int,
    length: int,
    step: int,
    *,
    wrap: bool = False,  # noqa: PT028
) -> np.ndarray:
    """Return clips that start evenly spaced; int64 [num_clips, T].

    The first clip begins with the video and the last one ends with it, at most. With ``wrap``, clip j starts at
    floor(frames * j / num_clips), as in the code of Wang et al., so that the last clips of most videos go on with the
    beginning. A single clip is :func:`centre_clip` in both. The other arguments and errors are as of :func:`clip_from`.

    >>> test_clips(9, num_clips=2, length=3, step=2)
    array([[0, 2, 4],
           [3, 5, 7]])
    >>> test_clips(9, num_clips=2, length=3, step=2, wrap=True)
    array([[0, 2, 4],
           [4, 6, 8]])
    """
    _check(frames=frames, num_clips=num_clips, length=length, step=step)
    if num_clips == 1:
        return centre_clip(frames, length, step)[None]
    numbers = np.arange(num_clips)
    starts = frames * numbers // num_clips if wrap else _last_start(frames, length, step) * numbers // (num_clips - 1)
    return _clips(frames, starts, length, step)


test_clips.__test__ = False  # type: ignore[attr-defined]  # no test, though pytest would take the name for one


def timeline_clips(times: np.ndarray, length: int, step: int) -> tuple[range, np.ndarray]:
    """Return the seconds of a video and a clip for each, centred on the middle of that second; int64 [seconds, T].

    A clip that would begin before the video or end after it is moved to lie inside, so that it does not mix the end
    with the beginning; only a video shorter than a clip loops. Seconds are those from the first frame to the end of
    the last; a part of one counts.

    Args:
        times: When each frame begins and the last one ends (seconds, ascending), [F + 1].
        length: Number of frames of a clip, T.
        step: Distance of two of them in frames.

    Raises:
        ValueError: A number below 1, or fewer than two times.

    >>> timeline_clips(np.array([0.0, 1, 1.25, 1.5, 1.75, 2, 2.25]), length=2, step=1)
    (range(0, 3), array([[0, 1],
           [2, 3],
           [4, 5]]))
    """
    _check(frames=len(times) - 1, length=length, step=step)
    frames = len(times) - 1
    seconds = range(max(math.floor(times[0] + _ROUNDED), 0), math.ceil(times[-1] - _ROUNDED))
    middles = np.interp(np.array(seconds) + 0.5, times, np.arange(frames + 1))
    starts = np.floor(middles - length * step / 2).astype(np.int64)
    return seconds, _clips(frames, starts.clip(0, _last_start(frames, length, step)), length, step)


def frames_at(times: np.ndarray, fps: float) -> np.ndarray:
    """Return the number of the frame that is shown at each tick of a clock, from the first frame on; int64 [ticks].

    Frames may occur more than once, or not at all.

    Args:
        times: When each frame begins and the last one ends (seconds, ascending), [F + 1].
        fps: Ticks per second.

    Raises:
        ValueError: An fps that is not above 0.

    >>> frames_at(np.array([0.0, 1, 1.25, 1.5, 1.75, 2]), fps=2)
    array([0, 0, 1, 3])
    """
    if not 0 < fps < math.inf:
        raise ValueError(f"fps ({fps}) must be above 0")
    # containers round times, so a tick is a little later than a frame that begins with it
    ticks = np.arange(max(math.ceil((times[-1] - times[0]) * fps - _LATER), 1)) + _LATER
    shown = np.searchsorted(times, times[0] + ticks / fps, side="right") - 1
    return shown.clip(0, len(times) - 2)


def _clips(frames: int, starts: np.ndarray, length: int, step: int) -> np.ndarray:
    return (starts[:, None] + step * np.arange(length)) % frames


def _last_start(frames: int, length: int, step: int) -> int:
    return max(frames - length * step, 0)


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        within(name, value, 1)
