"""Frames of clips against stepping through the video one frame at a time."""

import numpy as np
import pytest
import torch

from cgnl.data.videos.clips import centre_clip, clip_from, frames_at, test_clips, timeline_clips, training_clip


def walked(frames: int, length: int, step: int, start: int) -> list[int]:
    """Play the video in a loop from a frame on, and keep every ``step``-th frame."""
    kept, frame = [], start
    for count in range(length * step):
        if count % step == 0:
            kept.append(frame)
        frame = frame + 1 if frame + 1 < frames else 0
    return kept


@pytest.mark.parametrize("frames", [1, 2, 3, 17, 63, 64, 65, 100, 300])
@pytest.mark.parametrize(("length", "step"), [(32, 2), (8, 8), (5, 3), (1, 1)])
def test_a_clip_is_every_stepth_frame_of_a_looping_video(frames, length, step):
    for start in {0, frames // 2, frames - 1}:
        clip = clip_from(frames, length, step, start)
        assert clip.dtype == np.int64
        assert clip.tolist() == walked(frames, length, step, start)


@pytest.mark.parametrize("frames", [1, 40, 64, 65, 70])
def test_training_starts_are_uniform_where_the_whole_clip_fits(frames):
    torch.manual_seed(0)
    clips = [training_clip(frames, 32, 2).tolist() for _ in range(300)]
    starts = [clip[0] for clip in clips]
    assert set(starts) == set(range(max(frames - 64, 0) + 1))
    assert all(clip == walked(frames, 32, 2, clip[0]) for clip in clips)
    counts = np.bincount(starts)
    assert counts.min() > 0.5 * 300 / len(counts)


def test_training_starts_come_from_torchs_generator():
    torch.manual_seed(4)
    first = [training_clip(1000, 4, 1).tolist() for _ in range(3)]
    torch.manual_seed(4)
    assert [training_clip(1000, 4, 1).tolist() for _ in range(3)] == first


@pytest.mark.parametrize("frames", [1, 7, 10, 64, 123, 300])
@pytest.mark.parametrize("num_clips", [2, 3, 10])
def test_test_clips_that_wrap_start_evenly_spaced(frames, num_clips):
    clips = test_clips(frames, num_clips, 32, 2, wrap=True)
    expected = [walked(frames, 32, 2, int(frames * number / num_clips + 1e-9)) for number in range(num_clips)]
    assert clips.dtype == np.int64
    assert clips.tolist() == expected


@pytest.mark.parametrize("frames", [1, 7, 63, 64, 65, 123, 190, 250, 300])
@pytest.mark.parametrize("num_clips", [2, 3, 10])
def test_test_clips_lie_inside_the_video_from_its_beginning_to_its_end(frames, num_clips):
    clips = test_clips(frames, num_clips, 32, 2)
    assert clips.dtype == np.int64
    if frames < 64:  # a video shorter than a clip can only loop
        assert clips.tolist() == [walked(frames, 32, 2, 0)] * num_clips
        return
    assert (np.diff(clips, axis=1) == 2).all()
    starts = clips[:, 0].tolist()
    assert (starts[0], starts[-1]) == (0, frames - 64)
    assert clips.max() < frames
    assert np.abs(np.array(starts) - np.linspace(0, frames - 64, num_clips)).max() < 1


def test_the_last_of_ten_clips_of_ten_seconds():
    assert test_clips(250, 10, 8, 4)[-1].tolist() == list(range(218, 250, 4))
    assert test_clips(250, 10, 8, 4, wrap=True)[-1].tolist() == [*range(225, 250, 4), 3]


@pytest.mark.parametrize(("frames", "start"), [(1, 0), (50, 0), (64, 0), (65, 0), (66, 1), (164, 50)])
def test_a_single_test_clip_is_centred(frames, start):
    assert centre_clip(frames, 32, 2).tolist() == walked(frames, 32, 2, start)
    assert test_clips(frames, 1, 32, 2).tolist() == [walked(frames, 32, 2, start)]


@pytest.mark.parametrize("fps", [1.0, 12.5, 30000 / 1001, 60.0])
@pytest.mark.parametrize("frames", [1, 20, 64, 299, 300, 301])
def test_a_timeline_has_a_clip_around_the_middle_of_each_second(fps, frames):
    seconds, clips = timeline_clips(np.arange(frames + 1) / fps, 8, 2)
    assert list(seconds) == [second for second in range(frames + 1) if second * fps < frames]
    for second, clip in enumerate(clips.tolist()):
        if frames < 16:
            assert clip == walked(frames, 8, 2, 0)
            continue
        assert clip == list(range(clip[0], clip[0] + 16, 2))
        assert clip[0] >= 0
        assert clip[0] + 16 <= frames
        off_centre = (second + 0.5) * fps - (clip[0] + 8)
        if clip[0] == 0:
            assert off_centre <= 0.5
        elif clip[0] + 16 == frames:
            assert off_centre >= 0
        else:
            assert 0 <= off_centre < 1 + 1e-9


def test_a_timeline_goes_by_the_times_of_the_frames():
    """Four frames of a second each, then 25 a second: by the average rate, each line would be of another second."""
    times = np.array([*range(4), *(4 + np.arange(51) / 25)])
    seconds, clips = timeline_clips(times, 2, 1)
    assert list(seconds) == [0, 1, 2, 3, 4, 5]
    # the middle of a second lies between the two frames of its clip, or inside them
    assert clips.tolist() == [[0, 1], [0, 1], [1, 2], [2, 3], [15, 16], [40, 41]]


@pytest.mark.parametrize(("first", "seconds"), [(0.0012, [0, 1]), (5.2, [5, 6, 7]), (-0.4, [0, 1]), (1.999, [2, 3])])
def test_the_seconds_of_a_timeline_are_those_of_the_video(first, seconds):
    assert list(timeline_clips(first + np.arange(51) / 25, 2, 1)[0]) == seconds


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize(
    ("own", "fps", "kept"),
    [
        (25, 25, 1),
        (30000 / 1001, 30000 / 1001, 1),
        (60, 30, 2),
        (50, 12.5, 4),
        (25, 50, 0.5),
        (24, 96, 0.25),
        (59.94, 29.97, 2),
    ],
)
def test_a_rate_that_fits_keeps_or_repeats_every_frame_alike(own, fps, kept, rounded):
    times = np.arange(301) / own
    frames = frames_at(times.round(3) if rounded else times, fps)
    assert frames.dtype == np.int64
    assert frames.tolist() == np.floor(np.arange(round(300 / kept)) * kept).astype(int).tolist()


@pytest.mark.parametrize("fps", [1, 7.3, 25, 100])
def test_frames_are_those_that_are_shown(fps):
    times = np.cumsum([3.7, *np.random.default_rng(0).choice([0.04, 0.5, 2.0], 40)])
    frames = frames_at(times, fps)
    for tick, frame in enumerate(frames.tolist()):
        late = times[0] + tick / fps
        assert times[frame] <= late + 0.11 / fps
        assert times[frame + 1] > late
    assert len(frames) == pytest.approx((times[-1] - times[0]) * fps, abs=1.1)
    assert frames[0] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clip_from(0, 4, 1, 0), r"frames \(0\) must be at least 1"),
        (lambda: clip_from(5, 4, 1, 5), r"start \(5\) must be at least 0 and below frames \(5\)"),
        (lambda: training_clip(5, 0, 1), r"length \(0\) must be at least 1"),
        (lambda: centre_clip(5, 1, 0), r"step \(0\) must be at least 1"),
        (lambda: test_clips(5, 0, 4, 1), r"num_clips \(0\) must be at least 1"),
        (lambda: timeline_clips(np.arange(1.0), 4, 1), r"frames \(0\) must be at least 1"),
        (lambda: frames_at(np.arange(5.0), 0), r"fps \(0\) must be above 0"),
        (lambda: frames_at(np.arange(5.0), float("nan")), r"fps \(nan\) must be above 0"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
