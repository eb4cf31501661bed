"""Drawn actions and flocks, and tiny recipes for them."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from cgnl.recipes import RECIPES
from cgnl.settings.detection import DetectionRecipe
from cgnl.settings.image import Recipe
from cgnl.settings.reading import override
from cgnl.toy.actions import draw_actions
from cgnl.toy.flock import draw_flock


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


@pytest.fixture(scope="session")
def flock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training and three test scenes of three species; tests must not change them."""
    root = tmp_path_factory.mktemp("flock") / "set"
    draw_flock(root, num_species=3, train_images=8, test_images=3, size=(80, 64), workers=1)
    return root


@pytest.fixture(scope="session")
def tiny_detection(flock: Path) -> DetectionRecipe:
    """Six steps, an epoch and a half, of Mask R-CNN with ResNet-18 and a block; it finds ten objects in any image."""
    recipe = RECIPES["flock-maskrcnn-resnet18-cgnl"].make()
    assert isinstance(recipe, DetectionRecipe)
    small = {
        "network": {"neck": "c4", "rois": 8, "proposals": 20, "detections": 10, "score_threshold": 0.0},
        "data": {"size": 64, "max_size": 80, "batch_size": 2, "workers": 0},
        "optimizer": {"name": "sgd", "lr": 0.001, "lr_batch": 1},
        "schedule": {"kind": "steps", "warmup": 2.0, "warmup_start_lr": 0.0005, "milestones": [4]},
        "trainer": {"max_epochs": 3, "max_steps": 6, "test_every_n_epochs": 4, "log_every_n_steps": 1},
    }
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root=flock))
    return override(recipe, small, "test")


@pytest.fixture(scope="session")
def unequal(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three classes, 8, 5 and 2 to train on and 4, 3 and 1 to test; tests must not change them."""
    root = shutil.copytree(class_folders, tmp_path_factory.mktemp("unequal") / "set")
    for split, counts in {"train": (8, 5, 2), "val": (4, 3, 1)}.items():
        for label, count in enumerate(counts):
            for file in sorted((root / split / f"class_{label}").iterdir())[count:]:
                file.unlink()
    return root


@pytest.fixture(scope="session")
def tiny_unequal(unequal: Path) -> Recipe:
    """Three steps an epoch of a tiny ResNet, of which the classifier alone trains: no BatchNorm tells batches apart."""
    recipe = RECIPES["birds-resnet18"].make()
    small = {
        "network": {"arch": "timm:test_resnet", "weights": None},
        "data": {"root": str(unequal), "format": "folders", "size": 32, "resize": 36, "batch_size": 4, "workers": 0},
        "optimizer": {"name": "sgd", "lr": 0.1, "clip_norm": None},
        "schedule": {"kind": "constant", "warmup": 0.0},
        "trainer": {"max_epochs": 2, "log_every_n_steps": 1},
    }
    small["trainer"]["freeze"] = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    return override(recipe, small, "test")
