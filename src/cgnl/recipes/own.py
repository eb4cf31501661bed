"""Where to start with data of your own: 224 pixels, batches of 32, AdamW, and the layout of the data recognised."""

from collections.abc import Mapping
from typing import Any

from cgnl.recipes.rows import Base, row, table
from cgnl.settings.detection import DetectionDataConfig, DetectionNetworkConfig, DetectionRecipe
from cgnl.settings.image import DataConfig, NetworkConfig, Recipe
from cgnl.settings.reading import override
from cgnl.settings.training import OptimizerConfig, ScheduleConfig, TrainerConfig
from cgnl.settings.video import VideoDataConfig, VideoNetworkConfig, VideoRecipe

# a block and a classifier start from nothing among weights that are trained
_OPTIMIZER = OptimizerConfig(name="adamw", lr=1e-4, weight_decay=0.05, block_lr_factor=10, head_lr_factor=10)
_SCHEDULE = ScheduleConfig(kind="cosine", warmup=1)
_TRAINER = TrainerConfig(max_epochs=20)


def _image(values: Mapping[str, Any]) -> Recipe:
    network, data = NetworkConfig(weights="IMAGENET1K_V1"), DataConfig(size=224, resize=256, batch_size=32)
    recipe = Recipe(network=network, data=data, optimizer=_OPTIMIZER, schedule=_SCHEDULE, trainer=_TRAINER)
    return override(recipe, values, "recipes")


def _video(values: Mapping[str, Any]) -> Recipe:
    recipe = VideoRecipe(
        network=VideoNetworkConfig(weights="IMAGENET1K_V1", temporal_strides=(1, 1, 2)),
        data=VideoDataConfig(size=224, resize=256, batch_size=32, num_frames=8, frame_step=8),
        optimizer=_OPTIMIZER,
        schedule=_SCHEDULE,
        trainer=_TRAINER,
    )
    return override(recipe, values, "recipes")


def _detection(values: Mapping[str, Any]) -> Recipe:
    recipe = DetectionRecipe(
        network=DetectionNetworkConfig(backbone_weights="IMAGENET1K_V1"),
        data=DetectionDataConfig(size=224, max_size=373, batch_size=32),
        optimizer=_OPTIMIZER,
        schedule=_SCHEDULE,
        trainer=_TRAINER,
    )
    return override(recipe, values, "recipes")


def _own(make: Any, **more: Any) -> Base:
    return Base(make, "your own data", "DATA", of_paper=False, **more)


IMAGE = table(None, _own(_image), row("image", "Your own images: ResNet-50 with a CGNL block", "cgnl"))
VIDEO = table(
    None, _own(_video, sample="clip"), row("video", "Your own videos: C2D-ResNet-50 with a CGNL block", "cgnl")
)
DETECTION = table(
    None,
    _own(_detection, backbone_alone=True),
    row("detection", "Your own images with boxes and masks: Mask R-CNN with a CGNL block", "cgnl", norm="batch"),
)
