"""The views of a test video, cut some at a time, and what is wrong with a video; without Lightning."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from cgnl.data.transforms import normalise_clip
from cgnl.data.videos import GuardedReader, Rate, VideoInfo, views
from cgnl.settings.video import VideoDataConfig
from cgnl.settings.words import counted


def view_size(config: VideoDataConfig) -> int:
    """Return height and width of a test view: three crops cover the resized frame, one is as in training."""
    size, resize = config.pixels
    return resize if config.test_crops == 3 else size


def rate_of(config: VideoDataConfig) -> Rate:
    """Return how clips are sampled in time."""
    return Rate(config.fps, config.folder_fps)


def reading(config: VideoDataConfig) -> dict[str, Any]:
    """Return how a data set reads its videos, as arguments of :class:`cgnl.data.videos.VideoDataset`."""
    return {"timeout": config.decode_timeout, "rate": rate_of(config), "frame_pattern": config.frame_pattern}


def reader_of(config: VideoDataConfig) -> GuardedReader:
    """Return a reader of single videos."""
    return GuardedReader(timeout=config.decode_timeout, frame_pattern=config.frame_pattern)


def damage(info: VideoInfo | None, lost: int = 0) -> list[str]:
    """Tell what is wrong with a video that can be read, as the rest of a sentence that begins with its path.

    ``info`` is None if its number of frames is right; ``lost`` counts wanted frames that could not be decoded whole.
    """
    found = []
    if info is not None and info.promised not in (None, info.frames):
        found.append(f"holds {counted(info.frames, 'frame')}, but its container promises {info.promised}")
    if lost:
        found.append(f"has {counted(lost, 'wanted frame')} that could not be decoded whole")
    return found


def normalised_views(
    video: Mapping[str, Tensor], config: VideoDataConfig, *, mean: tuple[float, ...], std: tuple[float, ...]
) -> Iterator[Tensor]:
    """Cut the views of a video, float32 [V, 3, T, H, W], some at a time.

    ``video`` has ``frames`` and ``clips`` as :func:`cgnl.data.videos.views` takes them; mean and std are those of the
    input normalisation (RGB, images in 0..1).
    """
    parts = views(
        video["frames"],
        video["clips"],
        num_crops=config.test_crops,
        size=view_size(config),
        chunk=config.views_per_step,
    )
    return map(partial(normalise_clip, mean=mean, std=std), parts)
