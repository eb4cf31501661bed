"""Videos at a rate of their own or at one that is the same for all: which of their frames are seen."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cgnl.data.decoding import AnyPath
from cgnl.data.videos.clips import frames_at
from cgnl.data.videos.decoding import VideoInfo
from cgnl.data.videos.guarded import GuardedReader
from cgnl.settings.checks import positive


@dataclass(frozen=True)
class Rate:
    """How clips are sampled in time.

    Args:
        fps: Frames per second at which videos are seen, whatever their own rate; None for their frames as they come.
        folder_fps: Frames per second of folders of frames, which do not say it.

    Raises:
        ValueError: One of them is not above 0.
    """

    fps: float | None = None
    folder_fps: float | None = None

    def __post_init__(self) -> None:
        positive("fps", self.fps)
        positive("folder_fps", self.folder_fps)

    def numbers(self, reader: GuardedReader, path: AnyPath, info: VideoInfo) -> np.ndarray:
        """Return the numbers of the frames that are seen of a video, in their order, int64; some may occur repeatedly.

        Raises BadFileError as :func:`cgnl.data.videos.decoding.frame_times`, or for a folder whose rate is not known.
        """
        if self.fps is None:
            return np.arange(info.frames)
        if info.even and info.fps > 0:
            return frames_at(np.arange(info.frames + 1) / info.fps, self.fps)
        return frames_at(self.times(reader, path, info), self.fps)

    def times(self, reader: GuardedReader, path: AnyPath, info: VideoInfo) -> np.ndarray:
        """Return when each frame begins and the last one ends (seconds), float64 [F + 1]; errors as of `numbers`."""
        if self.folder_fps is not None and Path(path).is_dir():
            return np.arange(info.frames + 1) / self.folder_fps
        return reader.times(path)
