"""Recipes: one module per paper table, a function per row; each returns a :class:`Recipe`."""

from cgnl.recipes import channel_reduction, table2a, table2c, table3, table4b, table5, toy  # noqa: F401 (they register)
from cgnl.recipes.registry import RECIPES, PaperRow, RecipeEntry, load_recipe, register, smoke
from cgnl.training.recipe import (
    DataConfig,
    NetworkConfig,
    OptimizerConfig,
    Recipe,
    ScheduleConfig,
    TrainerConfig,
    override,
    to_dict,
)

__all__ = [
    "RECIPES",
    "DataConfig",
    "NetworkConfig",
    "OptimizerConfig",
    "PaperRow",
    "Recipe",
    "RecipeEntry",
    "ScheduleConfig",
    "TrainerConfig",
    "load_recipe",
    "override",
    "register",
    "smoke",
    "to_dict",
]
