"""Drawn actions and tiny video recipes for them."""

import dataclasses
from pathlib import Path

import pytest

from cgnl.data.toy.actions import draw_actions
from cgnl.recipes import RECIPES, Recipe, override


@pytest.fixture(scope="session")
def actions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training and four test videos of four classes; tests must not change them."""
    root = tmp_path_factory.mktemp("actions") / "set"
    draw_actions(root, num_classes=4, groups=3, clips_per_group=1, size=(64, 48), workers=1)
    return root


@pytest.fixture(scope="session")
def tiny_video(actions: Path) -> Recipe:
    """Two steps of ResNet-18 with a block on clips of four frames."""
    recipe = RECIPES["actions-resnet18-cgnl"].make()
    small = {
        "data": {"size": 32, "resize": 36, "num_frames": 4, "frame_step": 8, "batch_size": 4, "workers": 0},
        "schedule": {"kind": "constant", "warmup": 0.0},
        "optimizer": {"name": "sgd", "lr": 0.01, "weight_decay": 5e-4, "block_lr_factor": 10.0},
        "trainer": {"max_epochs": 1, "log_every_n_steps": 1},
    }
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root=actions))
    return override(recipe, small, "test")
