"""Recipes of our own for the drawn birds, actions and flocks: small enough for a CPU."""

import dataclasses

from cgnl.recipes.registry import register
from cgnl.settings.blocks import CGNLOptions
from cgnl.settings.detection import DetectionDataConfig, DetectionNetworkConfig, DetectionRecipe
from cgnl.settings.image import DataConfig, NetworkConfig, Recipe
from cgnl.settings.training import OptimizerConfig, ScheduleConfig, TrainerConfig
from cgnl.settings.video import VideoDataConfig, VideoNetworkConfig, VideoRecipe


def _birds(network: NetworkConfig) -> Recipe:
    return Recipe(
        network=network,
        data=DataConfig(format="cub", size=112, resize=128, crop_area=(0.4, 1.0), batch_size=32, workers=2),
        # a block starts as the identity, so among trained weights it has the longer way to go
        optimizer=OptimizerConfig(lr=0.05, weight_decay=5e-4, block_lr_factor=10),
        schedule=ScheduleConfig(kind="cosine", warmup=1),
        trainer=TrainerConfig(max_epochs=30),
    )


@register()
def birds_resnet18() -> Recipe:
    """A plain ResNet-18 on the drawn birds, from scratch.

    Command: ``cgnl data toy-birds birds && cgnl train birds-resnet18 --data.root birds``
    Cost: 11.2 M parameters; minutes on a CPU.
    """
    return _birds(NetworkConfig(arch="resnet18", block="none", dropout=0.0))


@register()
def birds_resnet18_cgnl() -> Recipe:
    """ResNet-18 with one CGNL block on the drawn birds, from scratch.

    Command: ``cgnl data toy-birds birds && cgnl train birds-resnet18-cgnl --data.root birds``
    Cost: 11.3 M parameters; minutes on a CPU.
    """
    return _birds(NetworkConfig(arch="resnet18", block="cgnl", dropout=0.0))


def _actions(network: VideoNetworkConfig) -> VideoRecipe:
    return VideoRecipe(
        network=network,
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


@register()
def actions_resnet18() -> VideoRecipe:
    """A plain C2D-ResNet-18 on 8 frames of the drawn actions, from scratch.

    Command: ``cgnl data toy-actions actions && cgnl train actions-resnet18 --data.root actions``
    Cost: 11.2 M parameters; minutes on a CPU.
    """
    return _actions(
        VideoNetworkConfig(arch="resnet18", block="none", dropout=0.0, temporal_strides=(1, 1, 2)),
    )


@register()
def actions_resnet18_cgnl() -> VideoRecipe:
    """C2D-ResNet-18 with one CGNL block on 8 frames of the drawn actions, from scratch.

    Command: ``cgnl data toy-actions actions && cgnl train actions-resnet18-cgnl --data.root actions``
    Cost: 11.3 M parameters; minutes on a CPU.
    """
    return _actions(
        VideoNetworkConfig(arch="resnet18", block="cgnl", dropout=0.0, temporal_strides=(1, 1, 2)),
    )


_FLOCK_STEPS = 300


def _flock(network: DetectionNetworkConfig) -> DetectionRecipe:
    recipe = DetectionRecipe(
        network=dataclasses.replace(
            network,
            neck="fpn",
            backbone_norm="batch",
            rois=16,
            proposals=50,
            detections=20,
        ),
        data=DetectionDataConfig(size=120, max_size=160, batch_size=4),
        optimizer=OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.05, clip_norm=10.0, block_lr_factor=5),
        schedule=ScheduleConfig(kind="cosine", unit="step", warmup=50),
        # no epoch is shorter than a step, so that it is the steps that end the run
        trainer=TrainerConfig(max_epochs=_FLOCK_STEPS, max_steps=_FLOCK_STEPS, test_every_n_epochs=4),
    )
    if network.block == "none":
        return recipe
    return dataclasses.replace(recipe, block=CGNLOptions(norm="batch"))


@register()
def flock_maskrcnn_resnet18() -> DetectionRecipe:
    """Mask R-CNN with a plain ResNet-18 and a feature pyramid on the drawn flocks, from scratch.

    Command: ``cgnl data toy-flock flock && cgnl train flock-maskrcnn-resnet18 --data.root flock``
    Cost: 30.9 M parameters; minutes on a CPU.
    """
    return _flock(DetectionNetworkConfig(arch="resnet18", block="none"))


@register()
def flock_maskrcnn_resnet18_cgnl() -> DetectionRecipe:
    """Mask R-CNN with one CGNL block in a ResNet-18 and a feature pyramid on the drawn flocks, from scratch.

    Command: ``cgnl data toy-flock flock && cgnl train flock-maskrcnn-resnet18-cgnl --data.root flock``
    Cost: 31.0 M parameters; minutes on a CPU.
    """
    return _flock(DetectionNetworkConfig(arch="resnet18", block="cgnl"))
