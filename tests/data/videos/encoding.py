"""Real test videos: drawn here, encoded with PyAV, each frame with its number in its pixels.

Not a test itself; the tests of everything that reads videos import it.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_BITS = 10


def draw(number: int, width: int = 96, height: int = 64) -> np.ndarray:
    """A frame [H, W, 3] with a drifting texture, and its number as a row of black and white cells along the top."""
    y, x = np.mgrid[:height, :width]
    phase = 0.35 * number
    frame = np.stack(
        [
            128 + 60 * np.sin(x / 9 + phase) + 30 * np.cos(y / 5 - phase / 2),
            128 + 50 * np.sin(y / 7 + phase / 3) + 40 * np.cos((x + y) / 11 + phase),
            100 + 0.8 * x + 30 * np.sin(phase / 5),
        ],
        -1,
    )
    cell = width // _BITS
    for bit in range(_BITS):
        frame[: height // 3, bit * cell : (bit + 1) * cell] = 235 if number >> bit & 1 else 20
    return frame.clip(0, 255).astype(np.uint8)


def number_of(frame: np.ndarray) -> int:
    """The number that :func:`draw` put into an upright frame, read from its decoded pixels."""
    height, width = frame.shape[:2]
    cell = width // _BITS
    row = frame[: height // 3].astype(int).mean((0, 2))
    cells = [row[bit * cell : (bit + 1) * cell].mean() for bit in range(_BITS)]
    return sum(1 << bit for bit, value in enumerate(cells) if value > 128)


def encode(
    path: Path,
    codec: str = "libx264",
    *,
    frames: int = 60,
    width: int = 96,
    height: int = 64,
    options: dict[str, str] | None = None,
    pixel_format: str = "yuv420p",
    rate: int | Fraction = 25,
    times: Sequence[int] | None = None,
    container: str | None = None,
    rotation: tuple[float, bool] | None = None,
    audio: bool = False,
    muxer: dict[str, str] | None = None,
) -> Path:
    """Write a video of drawn frames.

    Args:
        path: the file.
        codec: FFmpeg's name of the encoder.
        frames: number of frames.
        width: in pixels, as stored.
        height: in pixels, as stored.
        options: of the encoder: ``g`` is the key-frame interval, ``bf`` the number of B-frames.
        pixel_format: of the encoder.
        rate: frames per second.
        times: pts of the frames in units of 1/1000 s, for a variable frame rate.
        container: FFmpeg's name of the format, where the path's suffix does not tell.
        rotation: degrees and mirroring of the display matrix.
        audio: whether a silent sound stream goes along.
        muxer: options of the container.

    Returns:
        The path.
    """
    with av.open(str(path), "w", format=container, options=muxer or {}) as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        sound = output.add_stream("aac", rate=8000, layout="mono") if audio else None
        if sound is not None:
            for block in range(frames * 8000 // (int(rate) * 1024) + 1):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                silence.rate, silence.pts = 8000, block * 1024
                output.mux(sound.encode(silence))
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(draw(number, width, height), format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, 1) / rate if times is None else Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if sound is not None:
            output.mux(sound.encode(None))
    return path


def decode_sequentially(path: Path) -> np.ndarray:
    """All frames [T, H, W, 3] of a video, by a plain decode from its start with PyAV; display matrices are ignored."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
