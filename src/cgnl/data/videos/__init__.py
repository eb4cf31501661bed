"""Videos: reading their frames, finding them on disk and cutting clips out of them.

Names are imported on first use: the processes that decode videos import this package, and must not wait for PyTorch.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if find_spec("av") is None:
    raise ImportError("cgnl.data.videos needs av: pip install 'cgnl[video]'")

if TYPE_CHECKING:
    from cgnl.data.videos.decoding import VideoInfo, decode_all, probe, read_frames
    from cgnl.data.videos.guarded import GuardedReader

_MODULE_OF_NAME = {
    **dict.fromkeys(["VideoInfo", "decode_all", "probe", "read_frames"], "decoding"),
    "GuardedReader": "guarded",
}

__all__ = [
    "GuardedReader",
    "VideoInfo",
    "decode_all",
    "probe",
    "read_frames",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF_NAME:
        return getattr(import_module(f"cgnl.data.videos.{_MODULE_OF_NAME[name]}"), name)
    raise AttributeError(f"module 'cgnl.data.videos' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
