"""What the detection rows share: data, optimizer, schedule and start weights of Mask R-CNN on COCO 2017.

Sources: the authors' released code, the C4 neck, the block's place in it and its 8 groups among the rest. The paper
prints the numbers and says that the blocks go into the ResNet-50 backbone; it states no optimizer, schedule, image size
or start weights, and none that differ from the released ones, so one recipe serves a row of both. Neither states a
schedule for the NL block (that of the other rows). The start weights of the backbone are torchvision's.
docs/paper-tables.md has the source of every field.
"""

from cgnl.recipes.rows import Base
from cgnl.settings.detection import DetectionDataConfig, DetectionNetworkConfig, DetectionRecipe
from cgnl.settings.training import OptimizerConfig, ScheduleConfig, TrainerConfig

_LR = 0.01
_STEPS = 180_000


_COCO = DetectionRecipe(
    network=DetectionNetworkConfig(neck="c4", backbone_norm="frozen", backbone_weights="IMAGENET1K_V1", rois=512),
    data=DetectionDataConfig(size=800, max_size=1333, flip=0.5, batch_size=8),
    optimizer=OptimizerConfig(
        name="sgd", lr=_LR, lr_batch=8, momentum=0.9, weight_decay=1e-4, bias_weight_decay=0.0, bias_lr_factor=2.0
    ),
    schedule=ScheduleConfig(
        kind="steps", unit="step", warmup=500, warmup_start_lr=_LR / 3, milestones=(120_000, 160_000)
    ),
    trainer=TrainerConfig(
        # no epoch is shorter than a step, so that it is the steps that end the run
        max_epochs=_STEPS,
        max_steps=_STEPS,
        test_every_n_epochs=4,
        # the stem, the first stage and all norms of the backbone stay as they are; the block's own norm is trained
        freeze=("backbone.body.conv1", "backbone.body.bn1", "backbone.body.layer1"),
    ),
)


COCO = Base(_COCO, "COCO", "coco", backbone_alone=True)
