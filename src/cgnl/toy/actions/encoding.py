"""Frames into real video files."""

from pathlib import Path
from typing import cast

import numpy as np

try:
    import av
except ImportError as error:
    raise ImportError("cgnl.toy.actions needs av: pip install 'cgnl[video]'") from error

FPS = 25
_OPTIONS = {
    # As the files of UCF101 are: MPEG-4 part 2, intra frames near each other, no B-frames.
    ".avi": ("mpeg4", {"qmin": "4", "qmax": "4", "bf": "0"}),
    # x264's macroblock tree is off: with it the same frames give other bytes from run to run.
    ".mp4": ("libx264", {"crf": "20", "preset": "veryfast", "bf": "2", "x264-params": "mbtree=0"}),
}


def write_video(path: Path, frames: np.ndarray, keyframe_interval: int) -> None:
    """Write frames uint8 [T, H, W, 3] of even height and width: mpeg4 for .avi, h264 with B-frames for .mp4."""
    codec, options = _OPTIONS[path.suffix]
    with av.open(path, "w") as container:
        stream = cast(av.VideoStream, container.add_stream(codec, rate=FPS, options=options))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # More threads would give other bytes on other machines, and the processes are many already.
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = keyframe_interval
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
