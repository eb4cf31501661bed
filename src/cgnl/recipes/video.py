"""What the video rows of the paper's tables share: data, optimizer, schedule and start weights.

Sources: sections 4.1 and 4.2 of the paper; batch, learning rate, flip and the decay of the norms (0) are those of Wang
et al., "Non-local Neural Networks", CVPR 2018, whose training the paper follows. The authors' released code has no
video. Nobody states the number of epochs, or those at which the learning rate drops, for these data sets; here it drops
after 40 % and 80 % of 110 epochs. docs/paper-tables.md has the source of every field.
"""

from collections.abc import Mapping
from typing import Any

from cgnl.recipes.rows import Base
from cgnl.settings.image import Recipe
from cgnl.settings.reading import override
from cgnl.settings.training import OptimizerConfig, ScheduleConfig, TrainerConfig
from cgnl.settings.video import VideoDataConfig, VideoNetworkConfig, VideoRecipe


def _recipe(data: VideoDataConfig, values: Mapping[str, Any]) -> Recipe:
    recipe = VideoRecipe(
        network=VideoNetworkConfig(weights="IMAGENET1K_V1", dropout=0.5, head="fully_convolutional"),
        data=data,
        optimizer=OptimizerConfig(name="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4, norm_weight_decay=0.0),
        schedule=ScheduleConfig(
            kind="steps", warmup=10, warmup_start_lr=1e-5, warmup_interval="epoch", milestones=(44, 88)
        ),
        trainer=TrainerConfig(max_epochs=110),
    )
    return override(recipe, values, "recipes")


_UCF101, _MINI_KINETICS = VideoDataConfig(format="ucf101"), VideoDataConfig(format="mini_kinetics")

UCF101 = Base(lambda values: _recipe(_UCF101, values), "UCF101", "UCF-101", "9,537 videos", sample="clip")
MINI_KINETICS = Base(
    lambda values: _recipe(_MINI_KINETICS, values), "Mini-Kinetics", "kinetics", "78,265 videos", sample="clip"
)
