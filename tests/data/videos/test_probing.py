"""Presentation times against those that a whole decode shows, and promises of containers that are not kept."""

import struct
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from encoding import encode, number_of

from cgnl.data.decoding import BadFileError
from cgnl.data.videos import GuardedReader, Rate, decode_all, probe
from cgnl.data.videos.decoding import frame_times

# milliseconds: one frame a second, then 25
SLOW_THEN_FAST = [0, 1000, 2000, 3000, *range(4000, 5000, 40)]


@pytest.fixture(scope="module", autouse=True)
def silent():
    """Keep encoders from writing to the terminal."""
    av.logging.set_libav_level(av.logging.PANIC)


def shown(path: Path) -> list[float]:
    """When a plain decode shows each frame (seconds)."""
    with av.open(str(path)) as container:
        return [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]


def with_edits(path: Path, edits: Sequence[tuple[int, int]]) -> Path:
    """Give an MP4 whose directory is at its end other edits: (milliseconds, first time in the stream's units)."""
    data = path.read_bytes()
    place = data.index(b"elst") - 4
    old = struct.unpack(">I", data[place : place + 4])[0]
    entries = b"".join(struct.pack(">IiI", length, begin, 1 << 16) for length, begin in edits)
    new = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(edits)) + entries
    for name in (b"moov", b"trak", b"edts"):
        box = data.index(name) - 4
        size = struct.unpack(">I", data[box : box + 4])[0] + len(new) - old
        data = data[:box] + struct.pack(">I", size) + data[box + 4 :]
    changed = path.with_name(f"edited-{path.name}")
    changed.write_bytes(data[:place] + new + data[place + old :])
    return changed


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"g": "12"}),
        ("a.mov", "mpeg4", {"bf": "2"}),
        ("a.mkv", "libx264", {"g": "12"}),
        ("a.webm", "libvpx", {}),
        ("a.avi", "mpeg4", {}),
        ("mjpeg.avi", "mjpeg", {}),
    ],
)
def test_times_of_a_video_that_is_slow_and_then_fast(tmp_path, name, codec, options):
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = encode(tmp_path / name, codec, frames=29, times=SLOW_THEN_FAST, options=options, pixel_format=pixels)
    times = frame_times(path)
    np.testing.assert_allclose(times[:-1], shown(path), atol=1e-6)
    np.testing.assert_allclose(times, [time / 1000 for time in (*SLOW_THEN_FAST, 5000)], atol=1e-6)
    info = probe(path)
    assert (info.frames, info.even, info.promised in (None, 29)) == (29, False, True)
    assert info.fps == pytest.approx(29 / 5)
    assert decode_all(path) == info
    with GuardedReader() as reader:
        np.testing.assert_array_equal(reader.times(path), times)


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("a.mp4", "libx264", 25),
        ("a.mkv", "libx264", 60),  # times are whole milliseconds
        ("a.ts", "libx264", 25),  # whose clock does not begin at 0
        ("a.flv", "flv", 30),
        ("h264.avi", "libx264", 25),  # stores no times
        ("mpeg4.avi", "mpeg4", 10),
        ("a.wmv", "wmv2", 25),
    ],
)
def test_times_of_evenly_spaced_frames_begin_with_the_file(tmp_path, name, codec, rate):
    path = encode(tmp_path / name, codec, frames=40, rate=rate)
    np.testing.assert_allclose(frame_times(path), np.arange(41) / rate, atol=2e-3)
    assert (probe(path).even, probe(path).fps) == (True, rate)


@pytest.mark.parametrize(
    ("edits", "first", "begins"),
    [
        ([(2000, 12800)], 25, 0.0),  # two seconds, from the second one on
        ([(2000, -1), (4000, 0)], 0, 2.0),  # nothing for two seconds
        ([(1000, 0), (1000, 25600)], 0, 0.0),  # the first second and the third
    ],
)
def test_times_after_the_edits_of_a_container(tmp_path, edits, first, begins):
    path = with_edits(encode(tmp_path / "a.mp4", frames=100, options={"bf": "0"}), edits)
    with av.open(str(path)) as container:
        assert number_of(next(container.decode(video=0)).to_ndarray(format="rgb24")) == first
    times = frame_times(path)
    np.testing.assert_allclose(times[:-1], shown(path), atol=1e-6)
    assert times[0] == begins
    info = probe(path)
    assert info.promised == info.frames == len(times) - 1


def test_times_that_cannot_be_right(tmp_path):
    path = encode(tmp_path / "a.mkv", frames=3, times=[0, 40, 10**9])
    with pytest.raises(BadFileError, match=r"gives times that cannot be right: [0-9]+ seconds for 3 frames"):
        frame_times(path)


def cut_off(path: Path, packets: int) -> Path:
    """End a file before so many of its last video packets."""
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(container.streams.video[0]) if packet.size]
    short = path.with_name(f"short-{path.name}")
    short.write_bytes(path.read_bytes()[: places[-packets]])
    return short


@pytest.mark.parametrize("packets", [1, 5])
@pytest.mark.parametrize(
    ("name", "codec", "settings"),
    [
        ("a.mkv", "libx264", {"options": {"bf": "0"}}),
        ("a.webm", "libvpx", {}),
        ("a.flv", "flv", {}),
        ("a.avi", "mpeg4", {}),
        ("a.mp4", "libx264", {"options": {"bf": "0"}, "muxer": {"movflags": "faststart"}}),
        ("fragments.mp4", "libx264", {"options": {"g": "12"}, "muxer": {"movflags": "frag_keyframe+empty_moov"}}),
    ],
)
def test_even_one_frame_less_than_the_container_promises_is_seen(tmp_path, name, codec, settings, packets):
    whole = encode(tmp_path / name, codec, frames=100, **settings)
    assert probe(whole).promised in (None, 100)
    info = probe(cut_off(whole, packets))
    assert (info.frames, info.promised) == (100 - packets, 100)


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.flv", "flv"), ("a.mp4", "libx264")])
def test_sound_that_goes_on_after_the_frames_promises_none(tmp_path, name, codec):
    path = tmp_path / name
    encode(path, codec, frames=100, audio=True)
    assert probe(path).promised in (None, 100)
    assert decode_all(path) == probe(path)


def test_a_long_last_frame_promises_no_others(tmp_path):
    path = encode(tmp_path / "a.avi", "mpeg4", frames=29, times=[*range(0, 1000, 40), 1040, 1500, 2000, 3000])
    assert probe(path).promised in (None, 29)


def test_a_video_seen_at_another_rate(tmp_path):
    path = encode(tmp_path / "a.mp4", frames=29, times=SLOW_THEN_FAST)
    with GuardedReader() as reader:
        seen = Rate(fps=5).numbers(reader, path, probe(path))
        assert seen.tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5 + [4, 9, 14, 19, 24]
        assert Rate().numbers(reader, path, probe(path)).tolist() == list(range(29))


def test_a_folder_of_frames_has_the_rate_that_is_given(tmp_path):
    for number in range(10):
        av.VideoFrame(16, 16, "rgb24").to_image().save(tmp_path / f"{number}.png")
    with GuardedReader() as reader:
        assert Rate(5, folder_fps=10).numbers(reader, tmp_path, probe(tmp_path)).tolist() == [0, 2, 4, 6, 8]
        with pytest.raises(BadFileError, match="does not say how many frames it has per second"):
            Rate(5).numbers(reader, tmp_path, probe(tmp_path))
