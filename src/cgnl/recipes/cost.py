"""What a recipe's network costs."""

import dataclasses
from typing import TYPE_CHECKING

from cgnl.training.recipe import Recipe, VideoRecipe

if TYPE_CHECKING:
    from cgnl.networks.image import NetworkCost

_NUM_CLASSES = {"cub": 200, "ucf101": 101, "mini_kinetics": 200, "kinetics": 400}


def recipe_cost(recipe: Recipe) -> "NetworkCost":
    """Count the parameters of a recipe's network and its multiplications for one image or clip as in training.

    Without ``data.num_classes`` the classes are those of the data set that the recipe names, else ImageNet's 1000.

    Args:
        recipe: The recipe; its start weights are not looked at.

    Returns:
        The two counts; see :func:`cgnl.networks.image.network_cost`.
    """
    from cgnl.networks.image import network_cost, resnet
    from cgnl.networks.video import c2d_resnet

    settings = dataclasses.asdict(dataclasses.replace(recipe.network, weights=None))
    num_classes = recipe.data.num_classes or _NUM_CLASSES.get(recipe.data.format, 1000)
    shape: tuple[int, ...] = (1, 3, recipe.data.size, recipe.data.size)
    if isinstance(recipe, VideoRecipe):
        shape = (1, 3, recipe.data.num_frames, *shape[2:])
        return network_cost(lambda: c2d_resnet(**settings, num_classes=num_classes), shape)
    return network_cost(lambda: resnet(**settings, num_classes=num_classes), shape)
