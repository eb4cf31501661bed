"""Compact generalized non-local (CGNL) blocks for vision networks.

Names are imported on first use, so that ``import cgnl`` (and with it the command line's ``--help``) stays
fast and needs nothing beyond PyTorch.

Source: Yue et al., "Compact Generalized Non-local Network", NeurIPS 2018.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cgnl.settings.blocks import OPTIONS

if TYPE_CHECKING:
    from cgnl import data, networks, ops, recipes, training
    from cgnl.blocks import *  # noqa: F403 (the classes of every kind)
    from cgnl.blocks import CGNLStream3d, fuse_blocks
    from cgnl.insertion import insert_blocks, remove_blocks
    from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF, SeriesKernel  # noqa: F401 (in _KERNELS)

__version__ = "0.1.0"

_BLOCKS = sorted({f"{kind.public_name}{d}d" for kind in OPTIONS.values() if kind.public_name for d in (1, 2, 3)})
_KERNELS = ("DotProduct", "EmbeddedGaussian", "GaussianRBF", "SeriesKernel")
_ROOM_OF_NAME = {
    **dict.fromkeys(_KERNELS, "kernel_functions"),
    **dict.fromkeys(["CGNLStream3d", "fuse_blocks", *_BLOCKS], "blocks"),
    **dict.fromkeys(["insert_blocks", "remove_blocks"], "insertion"),
}
_ROOMS = ("data", "networks", "ops", "recipes", "training")

__all__ = ["data", "fuse_blocks", "insert_blocks", "networks", "ops", "recipes", "remove_blocks", "training"]
__all__ += ["CGNLStream3d", *_BLOCKS, *_KERNELS]


def __getattr__(name: str) -> Any:
    if name in _ROOM_OF_NAME:
        return getattr(import_module(f"cgnl.{_ROOM_OF_NAME[name]}"), name)
    if name in _ROOMS:
        return import_module(f"cgnl.{name}")
    raise AttributeError(f"module 'cgnl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
