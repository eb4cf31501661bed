"""What the image rows of the paper's tables share: data, optimizer, schedule and start weights.

Sources: section 4.2 of the paper; batch, learning rate, epochs and drops are those of the authors' released code, and
so is the new classifier on CUB-200-2011. docs/paper-tables.md has the source of every field.
"""

import dataclasses
from typing import Any

from cgnl.settings.image import DataConfig, NetworkConfig, Recipe
from cgnl.settings.reading import override
from cgnl.settings.training import OptimizerConfig, ScheduleConfig, TrainerConfig

_WARMUP_EPOCHS = 10
_MILESTONES = (31, 61, 81)
_EPOCHS = 100
_IMAGENET_CLASSES = 1000


def cub(network: NetworkConfig, **block: Any) -> Recipe:
    """Return the training of a network on CUB-200-2011 at 448 pixels, from ImageNet weights.

    Args:
        network: Architecture and blocks; its start weights are replaced.
        block: Options of the blocks.
    """
    return _recipe(network, block, DataConfig(format="cub", size=448, resize=512, batch_size=256))


def cub_of_the_paper(network: NetworkConfig, **block: Any) -> Recipe:
    """Return the training on CUB-200-2011 of the paper's own runs, as the authors answered in their issue tracker.

    They kept the 1000-way classifier of the ImageNet weights, whose first 200 outputs became the species, and cropped
    0.08 to 1.0 of the image. All else is :func:`cub`'s, as nobody states what else was different.

    Args:
        network: Architecture and blocks; its start weights are replaced.
        block: Options of the blocks.

    Source: https://github.com/KaiyuYue/cgnl-network.pytorch/issues/5
    """
    recipe = cub(network, **block)
    return dataclasses.replace(
        recipe, data=dataclasses.replace(recipe.data, num_outputs=_IMAGENET_CLASSES, crop_area=(0.08, 1.0))
    )


def imagenet(network: NetworkConfig, **block: Any) -> Recipe:
    """Return the training of a network on ImageNet at 224 pixels, going on from ImageNet weights.

    Args:
        network: Architecture and blocks; its start weights are replaced.
        block: Options of the blocks.
    """
    return _recipe(network, block, DataConfig(size=224, resize=256, batch_size=256))


def _recipe(network: NetworkConfig, block: dict[str, Any], data: DataConfig) -> Recipe:
    # The released code trains the baseline without a warm-up, and the others for its epochs more.
    warmup = 0 if network.block == "none" else _WARMUP_EPOCHS
    recipe = Recipe(
        network=dataclasses.replace(network, weights="IMAGENET1K_V1", dropout=0.5),
        data=data,
        optimizer=OptimizerConfig(name="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4),
        schedule=ScheduleConfig(
            kind="steps",
            warmup=warmup,
            warmup_start_lr=1e-5,
            warmup_interval="epoch",
            milestones=tuple(warmup + epoch for epoch in _MILESTONES),
        ),
        trainer=TrainerConfig(max_epochs=warmup + _EPOCHS),
    )
    return override(recipe, {"block": block}, "recipes")
