"""Where to start with data of your own: 224 pixels, batches of 32, AdamW, and the layout of the data recognised."""

from typing import Any

from cgnl.recipes.rows import Base, row, table
from cgnl.settings.detection import DetectionDataConfig, DetectionNetworkConfig, DetectionRecipe
from cgnl.settings.image import DataConfig, NetworkConfig, Recipe
from cgnl.settings.training import OptimizerConfig, ScheduleConfig, TrainerConfig
from cgnl.settings.video import VideoDataConfig, VideoNetworkConfig, VideoRecipe

# a block and a classifier start from nothing among weights that are trained
_TRAINING: dict[str, Any] = {
    "optimizer": OptimizerConfig(name="adamw", lr=1e-4, weight_decay=0.05, block_lr_factor=4, head_lr_factor=10),
    "schedule": ScheduleConfig(kind="cosine", warmup=1),
    "trainer": TrainerConfig(max_epochs=20),
}
_IMAGE = Recipe(
    network=NetworkConfig(weights="IMAGENET1K_V1"), data=DataConfig(size=224, resize=256, batch_size=32), **_TRAINING
)
_VIDEO = VideoRecipe(
    network=VideoNetworkConfig(weights="IMAGENET1K_V1", temporal_strides=(1, 1, 2)),
    data=VideoDataConfig(size=224, resize=256, batch_size=32, num_frames=8, frame_step=8),
    **_TRAINING,
)
_DETECTION = DetectionRecipe(
    network=DetectionNetworkConfig(backbone_weights="IMAGENET1K_V1"),
    data=DetectionDataConfig(size=224, max_size=373, batch_size=32),
    **_TRAINING,
)


def _own(recipe: Recipe, **more: Any) -> Base:
    return Base(recipe, "your own data", "DATA", of_paper=False, **more)


IMAGE = table(None, _own(_IMAGE), row("image", "Your own images: ResNet-50 with a CGNL block", "cgnl"))
VIDEO = table(
    None, _own(_VIDEO, sample="clip"), row("video", "Your own videos: C2D-ResNet-50 with a CGNL block", "cgnl")
)
DETECTION = table(
    None,
    _own(_DETECTION, backbone_alone=True),
    row("detection", "Your own images with boxes and masks: Mask R-CNN with a CGNL block", "cgnl", norm="batch"),
)
