"""Networks with blocks at the paper's places, and checkpoints of them; each part is imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cgnl.networks import checkpoints, conversion, cost, detection, export, image, video, weights

__all__ = ["checkpoints", "conversion", "cost", "detection", "export", "image", "video", "weights"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return import_module(f"cgnl.networks.{name}")
    raise AttributeError(f"module 'cgnl.networks' has no attribute {name!r}")
