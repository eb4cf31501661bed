"""What the image rows of the paper's tables share: data, optimizer, schedule and start weights.

Sources: section 4.2 of the paper; batch, learning rate and epochs are those of the authors' released code.
"""

import dataclasses
from typing import TYPE_CHECKING

from cgnl.training.recipe import DataConfig, NetworkConfig, OptimizerConfig, Recipe, ScheduleConfig, TrainerConfig

if TYPE_CHECKING:
    from cgnl.networks.image import NetworkCost

_WARMUP_EPOCHS = 10
_MILESTONES = (31, 61, 81)
_EPOCHS = 100


def cub(network: NetworkConfig) -> Recipe:
    """Return the training of a network on CUB-200-2011 at 448 pixels, from ImageNet weights.

    Args:
        network: Architecture and blocks; its start weights are replaced.
    """
    return _recipe(network, DataConfig(format="cub", size=448, resize=512, batch_size=256))


def imagenet(network: NetworkConfig) -> Recipe:
    """Return the training of a network on ImageNet at 224 pixels, going on from ImageNet weights.

    Args:
        network: Architecture and blocks; its start weights are replaced.
    """
    return _recipe(network, DataConfig(size=224, resize=256, batch_size=256))


def _recipe(network: NetworkConfig, data: DataConfig) -> Recipe:
    # The released code trains the baseline without a warm-up, and the others for its epochs more.
    warmup = 0 if network.block == "none" else _WARMUP_EPOCHS
    return Recipe(
        network=dataclasses.replace(network, weights="IMAGENET1K_V1", dropout=0.5),
        data=data,
        optimizer=OptimizerConfig(name="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4),
        schedule=ScheduleConfig(
            kind="steps",
            warmup_epochs=warmup,
            warmup_start_lr=1e-5,
            warmup_interval="epoch",
            milestones=tuple(warmup + epoch for epoch in _MILESTONES),
        ),
        trainer=TrainerConfig(max_epochs=warmup + _EPOCHS),
    )


def recipe_cost(recipe: Recipe) -> "NetworkCost":
    """Count the parameters of a recipe's network and its multiplications for one image of the recipe's size.

    Without ``data.num_classes`` CUB counts 200 classes and everything else ImageNet's 1000.

    Args:
        recipe: The recipe; its start weights are not looked at.

    Returns:
        The two counts; see :func:`cgnl.networks.image.network_cost`.
    """
    from cgnl.networks.image import network_cost, resnet

    settings = dataclasses.asdict(dataclasses.replace(recipe.network, weights=None))
    num_classes = recipe.data.num_classes or (200 if recipe.data.format == "cub" else 1000)
    size = recipe.data.size
    return network_cost(lambda: resnet(**settings, num_classes=num_classes), (1, 3, size, size))
