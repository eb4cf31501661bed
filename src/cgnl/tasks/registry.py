"""The tasks by name. A task's file is imported when it is first used, so that ``cgnl --help`` answers at once."""

from importlib import import_module
from typing import Any

from cgnl.settings.image import Recipe
from cgnl.settings.reading import TASKS
from cgnl.training.task import Task


def task_named(name: str) -> Task[Any]:
    """Return the task of that name: the ``TASK`` of ``cgnl/tasks/NAME.py``."""
    if name not in TASKS:
        raise ValueError(f"task ({name}) must be one of {', '.join(TASKS)}")
    return import_module(f"cgnl.tasks.{name}").TASK


def task_of(recipe: Recipe) -> Task[Any]:
    """Return the task of a recipe."""
    return task_named(recipe.task)
