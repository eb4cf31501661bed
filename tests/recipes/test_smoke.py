"""Recipes train and test in their smoke variants: one of each table in the short suite, all kinds in the long.

Of recipes that differ in depth and groups alone, the first one trains; tests/recipes/test_rows.py builds and runs the
networks of all of them where it counts their cost.
"""

import csv
import dataclasses

import pytest
import torch

from cgnl.insertion import inserted_blocks
from cgnl.networks.image import block_places
from cgnl.recipes import RECIPES
from cgnl.settings.reading import to_dict
from cgnl.tasks import load_trained, smoke, train
from cgnl.toy.actions import draw_actions
from cgnl.toy.birds import draw_birds
from cgnl.toy.flock import draw_flock

# the cheapest recipe of each table that no other table's choice stands for
ONE_OF_EACH_TABLE = {
    "cub-resnet50-cgnlx",  # 2a
    "cub-resnet101-cgnl-g4",  # 2c
    "cub-resnet50-residual",  # 3
    "cub-resnet50-nl",  # 4b
    "imagenet-resnet50-cgnl",  # 5
    "cub-1000-way-resnet50-cgnl",  # 4b by the paper's protocol
    "cub-resnet50-cgnl-g1-quarter",  # text beside 2d, on images
    "ucf101-resnet50-cgnl",  # 2b
    "mini-kinetics-resnet50-cgnl-g1",  # 2d and the text beside it
    "mini-kinetics-resnet50-nl",  # 4a
    "coco-maskrcnn-resnet50-cgnl",  # 4c
    "birds-resnet18-cgnl",
    "actions-resnet18-cgnl",
    "flock-maskrcnn-resnet18-cgnl",
}
# the deepest that no other choice stands for
DEEP = {"imagenet-resnet152-cgnl", "mini-kinetics-resnet101-cgnl5", "coco-maskrcnn-resnet101-cgnl"}
DRAWN = {"image": "birds", "video": "actions", "detection": "flock"}


def without_depth_and_groups(name: str) -> str:
    """Return a recipe's settings, in which those of ResNet-50, 101 and 152 are alike, and those of all groups."""
    settings = to_dict(RECIPES[name].make())
    settings["block"].pop("groups", None)
    for field in ("weights", "backbone_weights"):  # a smoke variant has none
        settings["network"].pop(field, None)
    if settings["network"]["arch"] in ("resnet101", "resnet152"):
        settings["network"]["arch"] = "resnet50"
    return str(settings)


def chosen() -> list:
    """Return the recipes that train, with marks."""
    kinds: dict[str, str] = {}
    for name in [*ONE_OF_EACH_TABLE, *RECIPES]:
        kinds.setdefault(without_depth_and_groups(name), name)
    names = ONE_OF_EACH_TABLE | DEEP | set(kinds.values())
    return [
        pytest.param(name, marks=() if name in ONE_OF_EACH_TABLE else pytest.mark.slow)
        for name in RECIPES
        if name in names
    ]


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    root = tmp_path_factory.mktemp("birds") / "set"
    draw_birds(root, num_species=4, train_images=2, test_images=1, size=96, workers=1)
    return root


@pytest.fixture(scope="module")
def actions(tmp_path_factory):
    root = tmp_path_factory.mktemp("actions") / "set"
    draw_actions(root, num_classes=4, groups=3, clips_per_group=1, size=(96, 72), workers=1)
    return root


@pytest.fixture(scope="module")
def flock(tmp_path_factory):
    root = tmp_path_factory.mktemp("flock") / "set"
    draw_flock(root, num_species=2, train_images=4, test_images=2, size=(128, 96), workers=1)
    return root


def test_the_choice_has_a_recipe_of_every_table():
    tables = {row.table for entry in RECIPES.values() for row in entry.rows}
    assert {row.table for name in ONE_OF_EACH_TABLE for row in RECIPES[name].rows} == tables


@pytest.mark.parametrize("name", RECIPES)
def test_a_smoke_variant_shrinks_only_pixels_images_and_steps(name, tmp_path):
    full = RECIPES[name].make()
    small = smoke(full, tmp_path)
    assert (small.task, small.schedule) == (full.task, full.schedule)
    changed = {
        f"{part}.{field.name}"
        for part in ("network", "block", "data", "optimizer", "trainer")
        for field in dataclasses.fields(getattr(full, part))
        if getattr(getattr(full, part), field.name) != getattr(getattr(small, part), field.name)
    }
    start_weights, without_them = {"network.weights"}, set()
    pixels_images_steps = {"data.root", "data.size", "data.batch_size", "trainer.max_steps"}
    if full.task == "detection":
        start_weights |= {"network.backbone_weights"}
        without_them |= {"optimizer.clip_norm"}
        pixels_images_steps |= {"data.max_size", "network.rois", "network.proposals", "trainer.test_every_n_epochs"}
        scaled = "max_size"
    else:
        pixels_images_steps |= {"data.resize"}
        scaled = "resize"
    if full.task == "video":
        pixels_images_steps |= {"data.format", "data.num_frames", "data.frame_step", "data.test_clips"}
    where = {"data.workers", "trainer.devices", "trainer.accelerator"}
    assert changed <= start_weights | without_them | pixels_images_steps | where
    assert all(getattr(small.network, path.partition(".")[2]) is None for path in start_weights)
    ratios = [getattr(recipe.data, scaled) / recipe.data.size for recipe in (full, small)]
    assert ratios[0] == pytest.approx(ratios[1], abs=0.02)


def test_a_smoke_variant_has_the_pixels_that_are_asked_for(tmp_path):
    recipe = smoke(RECIPES["coco-maskrcnn-resnet50"].make(), tmp_path, size=192, batch_size=1, steps=3)
    assert (recipe.data.size, recipe.data.max_size, recipe.data.batch_size) == (192, 320, 1)
    assert recipe.trainer.max_steps == 3


@pytest.mark.parametrize("name", chosen())
def test_a_recipe_trains_and_tests(name, request, tmp_path):
    full = RECIPES[name].make()
    recipe = smoke(full, request.getfixturevalue(DRAWN[full.task]))
    train(dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, max_epochs=1)), tmp_path / "run")
    trained = load_trained(tmp_path / "run" / "last.ckpt")
    assert trained.step == 2
    blocks = inserted_blocks(trained.network)
    network = recipe.network
    stages = "backbone.body." if full.task == "detection" else ""
    places = [] if network.block == "none" else block_places(network.arch, network.num_blocks)
    assert list(blocks) == [stages + place for place in places]
    # two steps with a zero-initialised norm: the first moves the norm, the second what is before it
    for block in blocks.values():
        assert block.norm.weight.abs().max() > 0
        assert torch.isfinite(block.theta.weight).all()
    with (tmp_path / "run" / "epochs.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["train_loss"]) > 0
    for measure in ("test_box_ap", "test_mask_ap") if full.task == "detection" else ("test_top1",):
        assert 0 <= float(row[measure]) <= 100
