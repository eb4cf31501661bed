"""What the video rows of the paper's tables share: data, optimizer, schedule and start weights.

Sources: sections 4.1 and 4.2 of the paper; batch, learning rate, flip and the decay of the norms (0) are those of Wang
et al., "Non-local Neural Networks", CVPR 2018, whose training the paper follows. The authors' released code has no
video. Nobody states the number of epochs, or those at which the learning rate drops, for these data sets; here it drops
after 40 % and 80 % of 110 epochs. docs/paper-tables.md has the source of every field.
"""

import dataclasses
from typing import Any, cast

from cgnl.settings.reading import override
from cgnl.settings.training import OptimizerConfig, ScheduleConfig, TrainerConfig
from cgnl.settings.video import VideoDataConfig, VideoNetworkConfig, VideoRecipe

_WARMUP_EPOCHS = 10
_EPOCHS = 110
_MILESTONES = (44, 88)


def ucf101(network: VideoNetworkConfig, **block: Any) -> VideoRecipe:
    """Return the training of a network on UCF101 (split 1), from ImageNet weights.

    Args:
        network: Architecture and blocks; its start weights are replaced.
        block: Options of the blocks.
    """
    return _recipe(network, block, VideoDataConfig(format="ucf101"))


def mini_kinetics(network: VideoNetworkConfig, **block: Any) -> VideoRecipe:
    """Return the training of a network on Mini-Kinetics-200, from ImageNet weights.

    Args:
        network: Architecture and blocks; its start weights are replaced.
        block: Options of the blocks.
    """
    return _recipe(network, block, VideoDataConfig(format="mini_kinetics"))


def _recipe(network: VideoNetworkConfig, block: dict[str, Any], data: VideoDataConfig) -> VideoRecipe:
    recipe = VideoRecipe(
        network=dataclasses.replace(network, weights="IMAGENET1K_V1", dropout=0.5, head="fully_convolutional"),
        data=data,
        optimizer=OptimizerConfig(name="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4, norm_weight_decay=0.0),
        schedule=ScheduleConfig(
            kind="steps",
            warmup=_WARMUP_EPOCHS,
            warmup_start_lr=1e-5,
            warmup_interval="epoch",
            milestones=_MILESTONES,
        ),
        trainer=TrainerConfig(max_epochs=_EPOCHS),
    )
    return cast(VideoRecipe, override(recipe, {"block": block}, "recipes"))
