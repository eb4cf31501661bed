"""What the image rows of the paper's tables share: data, optimizer, schedule and start weights.

Sources: section 4.2 of the paper; batch, learning rate and epochs are those of the authors' released code.
"""

import dataclasses

from cgnl.training.recipe import DataConfig, NetworkConfig, OptimizerConfig, Recipe, ScheduleConfig, TrainerConfig

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
            warmup=warmup,
            warmup_start_lr=1e-5,
            warmup_interval="epoch",
            milestones=tuple(warmup + epoch for epoch in _MILESTONES),
        ),
        trainer=TrainerConfig(max_epochs=warmup + _EPOCHS),
    )
