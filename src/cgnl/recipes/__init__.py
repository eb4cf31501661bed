"""Recipes: one module per paper table, a function per row; each returns a :class:`Recipe`."""

from cgnl.recipes import (  # noqa: F401 (they register)
    channel_reduction,
    table2a,
    table2b,
    table2c,
    table2d,
    table3,
    table4a,
    table4b,
    table5,
    toy,
)
from cgnl.recipes.registry import RECIPES, PaperRow, RecipeEntry, load_recipe, register, smoke
from cgnl.training.recipe import (
    DataConfig,
    NetworkConfig,
    OptimizerConfig,
    Recipe,
    ScheduleConfig,
    TrainerConfig,
    VideoDataConfig,
    VideoNetworkConfig,
    VideoRecipe,
    from_dict,
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
    "VideoDataConfig",
    "VideoNetworkConfig",
    "VideoRecipe",
    "from_dict",
    "load_recipe",
    "override",
    "register",
    "smoke",
    "to_dict",
]
