"""Videos: reading their frames, finding them on disk and cutting clips out of them.

Names are imported on first use: the processes that decode videos import this package, and must not wait for PyTorch.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if find_spec("av") is None:
    raise ImportError("cgnl.data.videos needs av: pip install 'cgnl[video]'")

if TYPE_CHECKING:
    from cgnl.data.videos.checking import VideoReport, check_videos
    from cgnl.data.videos.clips import centre_clip, frames_at, test_clips, timeline_clips, training_clip
    from cgnl.data.videos.dataset import VideoDataset, collate_videos, read_clips, test_videos, training_videos, views
    from cgnl.data.videos.decoding import VideoInfo, decode_all, probe, read_frames
    from cgnl.data.videos.guarded import GuardedReader
    from cgnl.data.videos.index import index_videos
    from cgnl.data.videos.layouts import read_videos, video_parts
    from cgnl.data.videos.rates import Rate

_NAMES = {
    "checking": "VideoReport check_videos",
    "clips": "centre_clip frames_at test_clips timeline_clips training_clip",
    "dataset": "VideoDataset collate_videos read_clips test_videos training_videos views",
    "decoding": "VideoInfo decode_all probe read_frames",
    "guarded": "GuardedReader",
    "index": "index_videos",
    "layouts": "read_videos video_parts",
    "rates": "Rate",
}
_MODULE_OF_NAME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "GuardedReader", "Rate", "VideoDataset", "VideoInfo", "VideoReport", "centre_clip", "check_videos",
    "collate_videos", "decode_all", "frames_at", "index_videos", "probe", "read_clips", "read_frames", "read_videos",
    "test_clips", "test_videos", "timeline_clips", "training_clip", "training_videos", "video_parts", "views",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF_NAME:
        return getattr(import_module(f"cgnl.data.videos.{_MODULE_OF_NAME[name]}"), name)
    raise AttributeError(f"module 'cgnl.data.videos' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
