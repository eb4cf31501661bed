"""Recipes of our own for the drawn birds, actions and flocks: small enough for a CPU, from scratch."""

from typing import Any

from cgnl.recipes.rows import Base, row, table
from cgnl.settings.detection import DetectionDataConfig, DetectionNetworkConfig, DetectionRecipe
from cgnl.settings.image import DataConfig, NetworkConfig, Recipe
from cgnl.settings.training import OptimizerConfig, ScheduleConfig, TrainerConfig
from cgnl.settings.video import VideoDataConfig, VideoNetworkConfig, VideoRecipe

_FLOCK_STEPS = 300


_BIRDS = Recipe(
    network=NetworkConfig(dropout=0.0),
    data=DataConfig(format="cub", size=112, resize=128, crop_area=(0.4, 1.0), batch_size=32, workers=2),
    # a block starts as the identity, so among trained weights it has the longer way to go
    optimizer=OptimizerConfig(lr=0.05, weight_decay=5e-4, block_lr_factor=10),
    schedule=ScheduleConfig(kind="cosine", warmup=1),
    trainer=TrainerConfig(max_epochs=30),
)


_ACTIONS = VideoRecipe(
    network=VideoNetworkConfig(dropout=0.0, temporal_strides=(1, 1, 2)),
    data=VideoDataConfig(
        format="ucf101",
        num_frames=8,
        frame_step=8,
        size=48,
        resize=54,
        crop_area=(0.5, 1.0),
        batch_size=16,
        test_clips=2,
        test_crops=1,
    ),
    optimizer=OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.05, block_lr_factor=5),
    schedule=ScheduleConfig(kind="cosine", warmup=1),
    trainer=TrainerConfig(max_epochs=30),
)


_FLOCK = DetectionRecipe(
    network=DetectionNetworkConfig(neck="fpn", backbone_norm="batch", rois=16, proposals=50, detections=20),
    data=DetectionDataConfig(size=120, max_size=160, batch_size=4),
    optimizer=OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.05, clip_norm=10.0, block_lr_factor=5),
    schedule=ScheduleConfig(kind="cosine", unit="step", warmup=50),
    # no epoch is shorter than a step, so that it is the steps that end the run
    trainer=TrainerConfig(max_epochs=_FLOCK_STEPS, max_steps=_FLOCK_STEPS, test_every_n_epochs=4),
)


def _drawn(recipe: Recipe, name: str, **more: Any) -> Base:
    return Base(recipe, f"drawn {name}", name, draw=f"cgnl data toy-{name} {name}", of_paper=False, **more)


BIRDS = table(
    None,
    _drawn(_BIRDS, "birds"),
    row("birds-resnet18", "A plain ResNet-18 on the drawn birds", "none"),
    row("birds-resnet18-cgnl", "ResNet-18 with a CGNL block on the drawn birds", "cgnl"),
)
ACTIONS = table(
    None,
    _drawn(_ACTIONS, "actions", sample="clip"),
    row("actions-resnet18", "A plain C2D-ResNet-18 on the drawn actions", "none"),
    row("actions-resnet18-cgnl", "C2D-ResNet-18 with a CGNL block on the drawn actions", "cgnl"),
)
FLOCK = table(
    None,
    _drawn(_FLOCK, "flock", backbone_alone=True),
    row("flock-maskrcnn-resnet18", "A plain Mask R-CNN with ResNet-18 on the drawn flocks", "none"),
    row("flock-maskrcnn-resnet18-cgnl", "Mask R-CNN with a CGNL block on the drawn flocks", "cgnl", norm="batch"),
)
