"""What a recipe's network costs."""

import dataclasses
from typing import TYPE_CHECKING

from cgnl.settings.detection import DetectionRecipe
from cgnl.settings.image import Recipe
from cgnl.settings.video import VideoRecipe

if TYPE_CHECKING:
    from cgnl.networks.cost import NetworkCost

_NUM_CLASSES = {"cub": 200, "ucf101": 101, "mini_kinetics": 200, "kinetics": 400}
_COCO_CATEGORIES = 80


def recipe_cost(recipe: Recipe) -> "NetworkCost":
    """Count the parameters of a recipe's network and its multiplications for one image or clip as in training.

    Without ``data.num_outputs`` and ``data.num_classes`` the classes are those of the data set that the recipe names,
    else ImageNet's 1000.
    The parameters of a detector are all of them, for COCO's 80 classes and the background; its multiplications are
    those of the backbone with its blocks and neck for an image of 4 : 3, since those of the heads depend on the
    regions that it proposes.

    Args:
        recipe: The recipe; its start weights are not looked at.

    Returns:
        The two counts; see :func:`cgnl.networks.cost.network_cost`.
    """
    if isinstance(recipe, DetectionRecipe):
        return _detector_cost(recipe)
    from cgnl.networks.cost import network_cost
    from cgnl.networks.image import resnet
    from cgnl.networks.video import c2d_resnet

    settings = dataclasses.asdict(dataclasses.replace(recipe.network, weights=None))
    num_classes = recipe.data.num_outputs or recipe.data.num_classes or _NUM_CLASSES.get(recipe.data.format, 1000)
    shape: tuple[int, ...] = (1, 3, recipe.data.size, recipe.data.size)
    if isinstance(recipe, VideoRecipe):
        shape = (1, 3, recipe.data.num_frames, *shape[2:])
        return network_cost(lambda: c2d_resnet(**settings, num_classes=num_classes), shape)
    return network_cost(lambda: resnet(**settings, num_classes=num_classes), shape)


def detector_input(recipe: DetectionRecipe) -> tuple[int, int]:
    """Return the height and width of an image of 4 : 3 as it reaches a detector's backbone (pixels).

    Source: torchvision's detectors scale the shorter side to ``size``, or less where the longer one would pass
    ``max_size``, and pad both to multiples of 32.

    >>> detector_input(DetectionRecipe())
    (800, 1088)
    """
    height = min(recipe.data.size, recipe.data.max_size * 3 // 4)
    return _padded(height), _padded(height * 4 // 3)


def _padded(side: int) -> int:
    return -(-side // 32) * 32


def _detector_cost(recipe: DetectionRecipe) -> "NetworkCost":
    import torch

    from cgnl.networks.cost import NetworkCost, network_cost
    from cgnl.networks.detection import maskrcnn

    network = dataclasses.replace(recipe.network, weights=None, backbone_weights=None)
    with torch.device("meta"):
        detector = maskrcnn(
            **dataclasses.asdict(network),
            num_classes=_COCO_CATEGORIES + 1,
            size=recipe.data.size,
            max_size=recipe.data.max_size,
        )
    parameters = sum(parameter.numel() for parameter in detector.parameters())
    backbone = network_cost(lambda: detector.backbone, (1, 3, *detector_input(recipe)))
    return NetworkCost(parameters, backbone.multiplications)
