"""The tasks: classifying images, classifying videos, detecting objects; and training, testing and using their networks.

Names are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cgnl.tasks.detection import detect
    from cgnl.tasks.explaining import score_parts, scored_block, see, trace_file
    from cgnl.tasks.loading import build_network, from_start_weights, load_exported, load_trained
    from cgnl.tasks.registry import task_named, task_of
    from cgnl.tasks.running import diagnose, evaluate, predict, predict_timeline, recipe_cost, smoke, train
    from cgnl.training.trained import TrainedNetwork

_FILE_OF_NAME = {
    "detect": "tasks.detection",
    **dict.fromkeys(["score_parts", "scored_block", "see", "trace_file"], "tasks.explaining"),
    **dict.fromkeys(["build_network", "from_start_weights", "load_exported", "load_trained"], "tasks.loading"),
    **dict.fromkeys(["task_named", "task_of"], "tasks.registry"),
    **dict.fromkeys(
        ["diagnose", "evaluate", "predict", "predict_timeline", "recipe_cost", "smoke", "train"], "tasks.running"
    ),
    "TrainedNetwork": "training.trained",
}

__all__ = [
    "TrainedNetwork", "build_network", "detect", "diagnose", "evaluate", "from_start_weights", "load_exported",
    "load_trained", "predict", "predict_timeline", "recipe_cost", "score_parts", "scored_block", "see", "smoke",
    "task_named", "task_of", "trace_file", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _FILE_OF_NAME:
        return getattr(import_module(f"cgnl.{_FILE_OF_NAME[name]}"), name)
    raise AttributeError(f"module 'cgnl.tasks' has no attribute {name!r}")
