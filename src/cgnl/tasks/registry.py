"""The tasks by name. A task's file is imported when it is first used, so that ``cgnl --help`` answers at once."""

from importlib import import_module
from typing import Any

from cgnl.settings.image import Recipe
from cgnl.training.task import Task

# A task's file and the class in it, by the `task` of its recipes
TASKS = {
    "image": "cgnl.tasks.image:ImageTask",
    "video": "cgnl.tasks.video:VideoTask",
    "detection": "cgnl.tasks.detection:DetectionTask",
}


def task_named(name: str) -> Task[Any]:
    """Return the task of that name."""
    module, _, kind = TASKS[name].partition(":")
    return getattr(import_module(module), kind)()


def task_of(recipe: Recipe) -> Task[Any]:
    """Return the task of a recipe."""
    return task_named(recipe.task)
