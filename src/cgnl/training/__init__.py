"""Training and testing networks, on Lightning's Trainer.

The Lightning modules and data modules are public: they work in a Trainer of one's own. Names are imported on first
use, so that the recipe dataclass can be had without PyTorch.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if _missing := [name for name in ("lightning", "torchmetrics", "torchvision") if find_spec(name) is None]:
    raise ImportError(f"cgnl.training needs {', '.join(_missing)}: pip install 'cgnl[train]'")

if TYPE_CHECKING:
    from cgnl.training.callbacks import FiniteGuard, RunKeeper
    from cgnl.training.classification import ClassificationModule
    from cgnl.training.data import ImageData
    from cgnl.training.detection import DetectionModule
    from cgnl.training.detection_data import DetectionData
    from cgnl.training.detection_evaluation import DetectionEvaluation
    from cgnl.training.evaluation import Evaluation
    from cgnl.training.video_data import VideoData

_FILE_OF_NAME = {
    "ClassificationModule": "classification",
    "DetectionData": "detection_data",
    "DetectionEvaluation": "detection_evaluation",
    "DetectionModule": "detection",
    "Evaluation": "evaluation",
    "FiniteGuard": "callbacks",
    "ImageData": "data",
    "RunKeeper": "callbacks",
    "VideoData": "video_data",
}

__all__ = [
    "ClassificationModule", "DetectionData", "DetectionEvaluation", "DetectionModule", "Evaluation", "FiniteGuard",
    "ImageData", "RunKeeper", "VideoData",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _FILE_OF_NAME:
        return getattr(import_module(f"cgnl.training.{_FILE_OF_NAME[name]}"), name)
    raise AttributeError(f"module 'cgnl.training' has no attribute {name!r}")
