"""Recipes: a module for each table of the paper. ``RECIPES`` and what goes with it are imported on first use."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cgnl.recipes.registry import RECIPES, load_recipe

__all__ = ["RECIPES", "load_recipe"]
_TABLES = (
    *("table2a", "table2b", "table2c", "table2d", "table3", "table4a", "table4b", "table4b_1000_way", "table4c"),
    *("table5", "channel_reduction", "toy"),
)


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module 'cgnl.recipes' has no attribute {name!r}")
    for table in sorted(_TABLES):
        import_module(f"cgnl.recipes.{table}")
    return getattr(import_module("cgnl.recipes.registry"), name)
