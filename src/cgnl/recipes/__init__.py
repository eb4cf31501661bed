"""Recipes: a module for each table of the paper. ``RECIPES`` and what goes with it are imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cgnl.recipes.registry import RECIPES, load_recipe

__all__ = ["RECIPES", "load_recipe"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("cgnl.recipes.registry"), name)
    raise AttributeError(f"module 'cgnl.recipes' has no attribute {name!r}")
