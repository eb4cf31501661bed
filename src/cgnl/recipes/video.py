"""What the video rows of the paper's tables share: data, optimizer, schedule and start weights.

Sources: sections 4.1 and 4.2 of the paper; batch, learning rate, flip and the decay of the norms (0) are those of Wang
et al., "Non-local Neural Networks", CVPR 2018, whose training the paper follows. The authors' released code has no
video. Nobody states the number of epochs, or those at which the learning rate drops, for these data sets; here it drops
after 40 % and 80 % of 110 epochs. Test clips wrap around the end of a video, as in the code of Wang et al.
docs/paper-tables.md has the source of every field.
"""

from cgnl.recipes.rows import Base
from cgnl.settings.training import OptimizerConfig, ScheduleConfig, TrainerConfig
from cgnl.settings.video import VideoDataConfig, VideoNetworkConfig, VideoRecipe


def _recipe(data: VideoDataConfig) -> VideoRecipe:
    return VideoRecipe(
        network=VideoNetworkConfig(weights="IMAGENET1K_V1", dropout=0.5, head="fully_convolutional"),
        data=data,
        optimizer=OptimizerConfig(name="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4, norm_weight_decay=0.0),
        schedule=ScheduleConfig(
            kind="steps", warmup=10, warmup_start_lr=1e-5, warmup_interval="epoch", milestones=(44, 88)
        ),
        trainer=TrainerConfig(max_epochs=110),
    )


UCF101 = Base(
    _recipe(VideoDataConfig(format="ucf101", test_wrap=True)), "UCF101", "UCF-101", "9,537 videos", sample="clip"
)
MINI_KINETICS = Base(
    _recipe(VideoDataConfig(format="mini_kinetics", test_wrap=True)),
    "Mini-Kinetics",
    "kinetics",
    "78,265 videos",
    sample="clip",
)
