"""torchcodec gives the frames that PyAV gives, opens no more than PyAV does, and is asked for plainly."""

import ctypes.util
import subprocess
import sys

import av
import numpy as np
import pytest
import torchcodec.decoders
from encoding import encode, number_of

from cgnl.data.decoding import BadFileError
from cgnl.data.videos import GuardedReader, read_frames, streams

QUIET = {"x265-params": "log-level=none"}


@pytest.fixture(scope="module", autouse=True)
def silent():
    """Keep encoders from writing to the terminal."""
    av.logging.set_libav_level(av.logging.PANIC)


@pytest.mark.skipif(
    ctypes.util.find_library("avcodec") is None, reason="torchcodec needs FFmpeg's libraries (Debian: ffmpeg)"
)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mp4", {"options": {"g": "12"}}),
        ("a.mkv", {"options": {"g": "24", "bf": "3"}}),
        ("hevc.mp4", {"codec": "libx265", "options": {"g": "12", **QUIET}}),
        ("odd.mp4", {"width": 97, "height": 63, "pixel_format": "yuv444p"}),
        ("uneven.mp4", {"times": np.cumsum(np.arange(1, 61) % 7 + 1).tolist()}),
    ],
)
def test_the_same_frames(tmp_path, monkeypatch, name, settings):
    path = encode(tmp_path / name, **settings)
    indices = np.random.default_rng(0).integers(0, 60, 12)
    expected, _ = read_frames(path, indices)
    monkeypatch.setattr(streams, "read_stream", None)
    frames, lost = read_frames(path, indices, backend="torchcodec")
    assert lost == 0
    assert [number_of(frame) for frame in frames] == indices.tolist()
    assert np.abs(frames.astype(int) - expected).max() <= 3
    frames, lost = read_frames(path, [59, 60, 59, 99], backend="torchcodec")
    assert ([number_of(frame) for frame in frames], lost) == ([59] * 4, 2)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("a.avi", {"codec": "mpeg4"}), ("a.ts", {}), ("phone.mp4", {"rotation": (90, False)})],
)
def test_what_is_left_to_pyav(tmp_path, name, settings):
    path = encode(tmp_path / name, **settings)
    np.testing.assert_array_equal(read_frames(path, [7, 3], backend="torchcodec")[0], read_frames(path, [7, 3])[0])


def test_damaged_files_are_read_as_by_pyav(tmp_path):
    path = encode(tmp_path / "a.mp4", options={"g": "12"}, muxer={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    frames, lost = read_frames(path, [3, 59], backend="torchcodec")
    assert lost == 1
    assert number_of(frames[0]) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"#EXTM3U\n#EXTINF:9,\nother.ts\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile other.ts\n",
        b"\x1a\x45\xdf\xa3<MPD profiles='dash:profile:x'><BaseURL>other.ts</BaseURL></MPD>" + bytes(99),
    ],
)
def test_playlists_never_get_to_torchcodec(tmp_path, monkeypatch, content):
    def decoder(*arguments: object, **options: object) -> None:
        raise AssertionError("torchcodec got the file")

    monkeypatch.setattr("cgnl.data.videos.torchcodec_streams.VideoDecoder", decoder)
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(BadFileError):
        read_frames(tmp_path / "a.mp4", [0], backend="torchcodec")
    with pytest.raises(AssertionError, match="torchcodec got the file"):
        read_frames(encode(tmp_path / "b.mp4"), [0], backend="torchcodec")


def test_in_a_process_of_its_own(tmp_path):
    path = encode(tmp_path / "a.mp4")
    with GuardedReader(backend="torchcodec") as reader:
        frames, lost = reader.read(path, [30, 4])
    assert ([number_of(frame) for frame in frames], lost) == ([30, 4], 0)


def test_without_torchcodec_one_sentence_says_what_to_do(tmp_path):
    path = encode(tmp_path / "a.mp4")
    (tmp_path / "torchcodec").mkdir()
    (tmp_path / "torchcodec" / "__init__.py").write_text("raise RuntimeError('no FFmpeg')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from cgnl.data.videos import GuardedReader, read_frames\n"
        "for read in (lambda: read_frames(sys.argv[1], [0], backend='torchcodec'),\n"
        "             lambda: GuardedReader(backend='torchcodec').read(sys.argv[1], [0])):\n"
        "    try:\n"
        "        read()\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("backend ('torchcodec') needs" in line and "backend='pyav' needs neither" in line for line in lines)
    assert torchcodec.decoders.VideoDecoder  # which is there otherwise
