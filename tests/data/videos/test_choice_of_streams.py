"""Which stream of a file is the video, and Theora, for which there is no encoder here."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from encoding import draw, encode, number_of

from cgnl.data.decoding import BadFileError
from cgnl.data.videos import decode_all, probe, read_frames
from cgnl.data.videos.decoding import frame_times

STREAMS = {
    "video": ("libx264", "yuv420p", 20),
    "other": ("libx264", "yuv420p", 5),
    "photos": ("mjpeg", "yuvj420p", 20),
    "cover": ("mjpeg", "yuvj420p", 1),
}


@pytest.fixture(scope="module", autouse=True)
def silent():
    """Keep encoders from writing to the terminal."""
    av.logging.set_libav_level(av.logging.PANIC)


def mux(path: Path, names: str, *, default: int | None = None, sound: bool = False) -> Path:
    """Write several video streams; frames of stream n are numbered from 100 n on."""
    with av.open(str(path), "w") as output:
        streams = []
        for number, name in enumerate(names.split()):
            codec, pixel_format, frames = STREAMS[name]
            stream = output.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 96, 64, pixel_format
            stream.disposition = Disposition.default if number == default else Disposition(0)
            streams.append((stream, frames))
        audio = output.add_stream("aac", rate=8000, layout="mono") if sound else None
        for block in range(8 if audio else 0):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.rate, silence.pts = 8000, block * 1024
            output.mux(audio.encode(silence))
        for number, (stream, frames) in enumerate(streams):
            for k in range(frames):
                frame = av.VideoFrame.from_ndarray(draw(100 * number + k), format="rgb24")
                frame.pts = k
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        if audio:
            output.mux(audio.encode(None))
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("names", "default", "taken"),
    [
        ("video other", 0, 0),
        ("video other", 1, 1),
        ("other video", 1, 1),
        ("cover video", None, 1),  # a picture that nobody marked
        ("cover video", 0, 1),
        ("cover other video", 2, 2),
        ("photos other", 0, 0),  # the same codec as a cover, but a video
        ("photos cover", None, 0),
    ],
)
def test_the_default_stream_is_taken_and_no_picture(tmp_path, suffix, names, default, taken):
    path = mux(tmp_path / f"a.{suffix}", names, default=default)
    frames = STREAMS[names.split()[taken]][2]
    assert probe(path).frames == decode_all(path).frames == frames
    pixels, lost = read_frames(path, range(frames))
    assert lost == 0
    assert [number_of(frame) for frame in pixels] == [100 * taken + k for k in range(frames)]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_sound_with_a_picture_is_no_video(tmp_path, suffix):
    with pytest.raises(BadFileError, match="holds no video stream"):
        probe(mux(tmp_path / f"song.{suffix}", "cover", sound=True))
    # but a video may have a single frame
    assert probe(mux(tmp_path / f"short.{suffix}", "cover")).frames == 1


def test_ogg_with_another_codec_and_with_sound_alone(tmp_path):
    path = encode(tmp_path / "a.ogv", "libvpx", frames=20, container="ogg")
    assert probe(path).frames == 20
    assert [number_of(frame) for frame in read_frames(path, [3, 17])[0]] == [3, 17]
    with av.open(str(tmp_path / "b.ogg"), "w") as output:
        sound = output.add_stream("libopus", rate=48000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), "s16", "mono")
        silence.rate = 48000
        output.mux(sound.encode(silence))
        output.mux(sound.encode(None))
    with pytest.raises(BadFileError, match="holds no video stream"):
        probe(tmp_path / "b.ogg")


def test_theora(tmp_path):
    greys = [60, 200, 90, 170, 80, 220, 70, 180]
    path = theora(tmp_path / "a.ogv", greys)
    info = probe(path)
    assert (info.frames, info.width, info.height, info.fps) == (8, 32, 32, 25.0)
    assert decode_all(path) == info
    frames, lost = read_frames(path, [5, 0, 3])
    assert lost == 0
    for frame, number in zip(frames, (5, 0, 3), strict=True):
        assert np.abs(frame.astype(float) - (greys[number] - 16) * 255 / 219).max() < 3
    np.testing.assert_allclose(frame_times(path), np.arange(9) / 25, atol=1e-6)


class Bits:
    """Numbers written one after the other, the highest bit first, as Theora does."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, *pairs: tuple[int, int]) -> "Bits":
        self.text += "".join(f"{value:0{width}b}" for value, width in pairs)
        return self

    def done(self) -> bytes:
        return int(self.text.ljust(-(-len(self.text) // 8) * 8, "0"), 2).to_bytes(-(-len(self.text) // 8), "big")


def theora(path: Path, greys: list[int]) -> Path:
    """Write frames of 32 x 32 pixels and one brightness each (35 or more from 128), by the format's specification.

    All are key frames. Each Huffman table has two codes: 0 for a coefficient, 1 for a run of blocks without more.
    """
    coefficient, run = 22, 6  # tokens: a sign and 9 bits of what is over 69; 12 bits of a number of blocks
    comment = struct.pack("<I", 4) + b"test" + struct.pack("<I", 0)
    head = Bits().write((3, 8), (2, 8), (1, 8), (2, 16), (2, 16), (32, 24), (32, 24), (0, 8), (0, 8))
    head.write((25, 32), (1, 32), (0, 24), (0, 24), (0, 8), (0, 24), (0, 6), (0, 5), (0, 2), (0, 3))
    # no loop filter, scales of 1, two matrices of 4, the first of them for all six sets of quantisers
    scales = [(7, 4), *[(100, 8)] * 64]
    setup = Bits().write((0, 3), *scales, *scales, (1, 9), *[(4, 8)] * 128, (0, 1), (62, 6), *[(0, 1)] * 9)
    setup.write(*[(0, 1), (1, 1), (coefficient, 5), (1, 1), (run, 5)] * 80)
    packets = [b"\x80theora" + head.done(), b"\x81theora" + comment, b"\x82theora" + setup.done()]
    for grey in greys:
        frame = Bits().write((0, 1), (0, 1), (0, 6), (0, 1), (0, 3))  # a key frame, of the lowest quality
        # the first of 24 blocks has a value, from which the others are predicted
        frame.write((0, 4), (0, 4), (0, 1), (int(grey < 128), 1), (2 * abs(grey - 128) - 69, 9), (1, 1), (23, 12))
        packets.append(frame.write((0, 4), (0, 4), (1, 1), (1, 12)).done())
    with path.open("wb") as file:
        for number, packet in enumerate(packets):
            lacing = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
            page = struct.pack("<4sBBqIII", b"OggS", 0, 2 * (number == 0), max(number - 2, 0), 1, number, 0)
            page += bytes([len(lacing)]) + lacing + packet
            file.write(page[:22] + struct.pack("<I", _crc(page)) + page[26:])
    return path


def _crc(data: bytes) -> int:
    value = 0
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = value << 1 ^ (0x104C11DB7 if value >> 31 else 0)
    return value
