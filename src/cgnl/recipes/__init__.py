"""Recipes: one module per paper table, a function per row; each returns a :class:`Recipe`."""

from cgnl.recipes.recipe import (
    RECIPES,
    DataConfig,
    NetworkConfig,
    OptimizerConfig,
    PaperRow,
    Recipe,
    RecipeEntry,
    ScheduleConfig,
    TrainerConfig,
    override,
    register,
    smoke,
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
    "override",
    "register",
    "smoke",
    "to_dict",
]
