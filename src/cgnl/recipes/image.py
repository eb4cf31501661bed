"""What the image rows of the paper's tables share: data, optimizer, schedule and start weights.

Sources: section 4.2 of the paper; batch, learning rate, epochs and drops are those of the authors' released code, and
so is the new classifier on CUB-200-2011. docs/paper-tables.md has the source of every field.
"""

from collections.abc import Mapping
from typing import Any

from cgnl.recipes.rows import Base
from cgnl.settings.image import DataConfig, NetworkConfig, Recipe
from cgnl.settings.training import OptimizerConfig, ScheduleConfig, TrainerConfig

_WARMUP_EPOCHS = 10
_MILESTONES = (31, 61, 81)
_EPOCHS = 100


def _recipe(data: DataConfig, values: Mapping[str, Any]) -> Recipe:
    # The released code trains the baseline without a warm-up, and the others for its epochs more.
    warmup = 0 if values["network"]["block"] == "none" else _WARMUP_EPOCHS
    return Recipe(
        network=NetworkConfig(weights="IMAGENET1K_V1", dropout=0.5),
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


_CUB = DataConfig(format="cub", size=448, resize=512, batch_size=256)
# The paper's own runs, as the authors answered in their issue tracker: they kept the 1000-way classifier of the
# ImageNet weights, whose first 200 outputs became the species, and cropped 0.08 to 1.0 of the image. All else is as in
# the released code, as nobody states what else was different. https://github.com/KaiyuYue/cgnl-network.pytorch/issues/5
_CUB_1000_WAY = DataConfig(format="cub", size=448, resize=512, batch_size=256, num_outputs=1000, crop_area=(0.08, 1.0))
_IMAGENET = DataConfig(size=224, resize=256, batch_size=256)

CUB = Base(lambda values: _recipe(_CUB, values), "CUB-200-2011", "CUB_200_2011", "5,994 images")
CUB_1000_WAY = Base(lambda values: _recipe(_CUB_1000_WAY, values), "CUB-200-2011", "CUB_200_2011", "5,994 images")
IMAGENET = Base(lambda values: _recipe(_IMAGENET, values), "ImageNet", "imagenet", "1,281,167 images")
