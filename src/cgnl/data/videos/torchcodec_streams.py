"""Frames of MP4, MOV, Matroska and WebM files by torchcodec, which has decoders of its own choice behind it.

torchcodec lets FFmpeg choose the format, which may be one that names other files. So it gets an opened file and only
those whose first bytes leave FFmpeg no other choice. Files of other formats, rotated videos, and whatever torchcodec
cannot decode are read with PyAV.

Shapes: T frames wanted, H height, W width.
"""

import os
import re
from collections.abc import Sequence
from io import BufferedReader

from torchcodec.decoders import VideoDecoder

from cgnl.data.decoding import open_regular
from cgnl.data.videos import streams
from cgnl.data.videos.containers import broken_limit

# FFmpeg gives these its highest score; if a playlist gets the same, it opens neither.
_UNMISTAKABLE = re.compile(rb".{4}ftyp|\x1a\x45\xdf\xa3.{1,40}\x42\x82[\x84\x88](?:webm|matroska)", re.DOTALL)


def read_stream(path: str | os.PathLike[str], wanted: Sequence[int], pieces: streams.Pieces) -> list[int]:
    """Read frames of a video file.

    Args:
        path: the file.
        wanted: numbers of frames, ascending, without repeats.
        pieces: where the frames go; torchcodec's own arrays are of its making.

    Returns:
        As :func:`cgnl.data.videos.streams.read_stream`; colours may differ from PyAV's by their rounding.

    Raises:
        BadFileError: as :func:`cgnl.data.videos.streams.read_stream`.
    """
    with open_regular(path) as file:
        safe = _UNMISTAKABLE.match(file.read(64)) is not None
        file.seek(0)
        if safe:
            try:
                assert isinstance(file, BufferedReader)
                decoder = VideoDecoder(file, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
                about = decoder.metadata
                if not about.rotation and broken_limit(about.width or 0, about.height or 0) is None:
                    last = len(decoder) - 1
                    for first in range(0, len(wanted), pieces.size):
                        some = [min(number, last) for number in wanted[first : first + pieces.size]]
                        pieces.take(first, decoder.get_frames_at(some).data.numpy())
                    return [number for number in wanted if number > last]
            except (RuntimeError, ValueError, IndexError):  # damaged: PyAV goes on after an error
                pass
    return streams.read_stream(path, wanted, pieces)
