"""What the detection rows share: data, optimizer, schedule and start weights of Mask R-CNN on COCO 2017.

Sources: the authors' released code, the C4 neck, the block's place in it and its 8 groups among the rest. The paper
prints the numbers and says that the blocks go into the ResNet-50 backbone; it states no optimizer, schedule, image size
or start weights, and none that differ from the released ones, so one recipe serves a row of both. Neither states a
schedule for the NL block (that of the other rows). The start weights of the backbone are torchvision's.
docs/paper-tables.md has the source of every field.
"""

import dataclasses
from typing import Any, cast

from cgnl.settings.detection import DetectionDataConfig, DetectionNetworkConfig, DetectionRecipe
from cgnl.settings.reading import override
from cgnl.settings.training import OptimizerConfig, ScheduleConfig, TrainerConfig

_LR = 0.01


def coco(
    network: DetectionNetworkConfig,
    *,
    steps: int = 180_000,
    milestones: tuple[int, ...] = (120_000, 160_000),
    warmup: int = 500,
    **block: Any,
) -> DetectionRecipe:
    """Return the training of Mask R-CNN on COCO 2017 at 800 pixels, from a backbone with ImageNet weights.

    The stem and the first stage stay as they are, and so do all norms of the backbone; the block's own is trained.

    Args:
        network: Architecture, neck and blocks; its start weights are replaced.
        steps: Length of the training (optimizer steps of 8 images).
        milestones: Steps at which the learning rate drops to a tenth.
        warmup: Length of the linear warm-up from a third of the learning rate (steps).
        block: Options of the blocks.
    """
    recipe = DetectionRecipe(
        network=dataclasses.replace(
            network,
            backbone_norm="frozen",
            weights=None,
            backbone_weights="IMAGENET1K_V1",
            rois=512,
        ),
        data=DetectionDataConfig(size=800, max_size=1333, flip=0.5, batch_size=8),
        optimizer=OptimizerConfig(
            name="sgd",
            lr=_LR,
            lr_batch=8,
            momentum=0.9,
            weight_decay=1e-4,
            bias_weight_decay=0.0,
            bias_lr_factor=2.0,
        ),
        schedule=ScheduleConfig(
            kind="steps", unit="step", warmup=warmup, warmup_start_lr=_LR / 3, milestones=milestones
        ),
        trainer=TrainerConfig(
            # no epoch is shorter than a step, so that it is the steps that end the run
            max_epochs=steps,
            max_steps=steps,
            test_every_n_epochs=4,
            freeze=("backbone.body.conv1", "backbone.body.bn1", "backbone.body.layer1"),
        ),
    )
    return cast(DetectionRecipe, override(recipe, {"block": block}, "recipes"))
