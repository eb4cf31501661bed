"""Options of blocks in recipes: the start of g, and groups that fit by themselves."""

import dataclasses

import pytest
import torch
import yaml

from cgnl.blocks.kinds import KINDS
from cgnl.recipes import RECIPES, load_recipe
from cgnl.settings.reading import from_dict, override, to_dict
from cgnl.tasks import build_network, load_trained, train

OF_EACH_TASK = ["birds-resnet18-cgnl", "actions-resnet18-cgnl", "flock-maskrcnn-resnet18-cgnl"]


def first_block(network):
    return next(module for name, module in network.named_modules() if name.endswith("inserted_block"))


# what every network's settings held before the options of blocks had a part of their own
BEFORE = {"groups": 8, "kernel": "dot", "norm": "batch", "scale": None, "g_std": None, "channel_reduction": 2}
IN_VIDEOS = {"pairwise": "embedded_gaussian", "subsample": True, "bias": True}


def of_an_earlier_version(recipe, *lacking):
    """A recipe as an earlier version wrote it: every option of blocks, whether the block has it or not."""
    values = to_dict(recipe)
    every = {**BEFORE, **(IN_VIDEOS if recipe.task == "video" else {})}
    every = {name: values["block"].get(name, value) for name, value in every.items() if name not in lacking}
    values["network"] = {name: value for name, value in values["network"].items() if name != "places"} | every
    del values["block"]
    return values


@pytest.mark.parametrize("name", OF_EACH_TASK)
@pytest.mark.parametrize("block", ["none", "nl", "cgnl", "cgnlx", "residual"])
def test_a_whole_recipe_of_before_is_read_and_what_its_block_does_not_have_is_dropped(name, block, tmp_path):
    recipe = override(RECIPES[name].make(), {"network": {"block": block}}, "test")
    values = of_an_earlier_version(recipe)
    assert values["network"]["kernel"] in ("dot", "rbf")
    values["network"]["kernel"] = "dot"
    if block == "nl":
        values["network"] |= {"groups": 32, "scale": None}
    assert from_dict(values, "a checkpoint") == recipe
    for base in ("mine", name):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"recipe": base, **values}))
        assert load_recipe(str(tmp_path)) == (base, recipe)


@pytest.mark.parametrize("name", OF_EACH_TASK)
def test_a_run_of_before_the_start_of_g_was_an_option_starts_as_it_did(name, tmp_path):
    scaled = override(RECIPES[name].make(), {"network": {"scale": "mean"}}, "test")
    before = override(scaled, {"network": {"g_std": 0.01}}, "test")
    values = of_an_earlier_version(scaled, "g_std")
    assert from_dict(values, "a checkpoint") == before
    for base in ("mine", name):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"recipe": base, **values}))
        assert load_recipe(str(tmp_path)) == (base, before)
    assert first_block(build_network(before, 3)).g.weight.std().item() == pytest.approx(0.01, rel=0.05)
    unscaled = RECIPES[name].make()
    assert from_dict(of_an_earlier_version(unscaled, "g_std"), "a checkpoint") == unscaled


@pytest.mark.parametrize("name", OF_EACH_TASK)
def test_a_recipe_with_a_scale_starts_as_the_block_does(name, tmp_path):
    path = tmp_path / "own.yaml"
    for scale, std in (("mean", 2.0), ("sqrt", 0.2)):
        path.write_text(yaml.safe_dump({"recipe": name, "network": {"scale": scale}}))
        recipe = load_recipe(str(path))[1]
        assert first_block(build_network(recipe, 3)).g.weight.std().item() == pytest.approx(std, rel=0.05)
        assert from_dict(to_dict(recipe), "a checkpoint") == recipe
    path.write_text(yaml.safe_dump({"recipe": name, "network": {"g_std": 0.5}}))
    chosen = load_recipe(str(path))[1]
    assert first_block(build_network(chosen, 3)).g.weight.std().item() == pytest.approx(0.5, rel=0.05)
    with pytest.raises(ValueError, match=r"block.g_std \(0.0\) must be above 0"):
        override(chosen, {"network": {"g_std": 0.0}}, "test")


@pytest.mark.parametrize("name", OF_EACH_TASK)
@pytest.mark.parametrize("block", ["nl", "residual", "none"])
def test_a_start_of_g_is_for_cgnl_blocks_alone(name, block):
    with pytest.raises(ValueError, match=rf"test: block.g_std is not an option of block {block}, which has: "):
        override(RECIPES[name].make(), {"network": {"block": block, "g_std": 0.5}}, "test")


@pytest.mark.parametrize("name", OF_EACH_TASK)
def test_a_plain_network_of_before_is_read_whatever_its_scale(name):
    recipe = override(RECIPES[name].make(), {"network": {"block": "none"}}, "test")
    values = of_an_earlier_version(recipe, "g_std")
    values["network"]["scale"] = "mean"
    assert from_dict(values, "a checkpoint") == recipe
    build_network(recipe, 3)


@pytest.mark.parametrize("name", OF_EACH_TASK)
def test_groups_of_a_recipe_fit_by_themselves(name):
    recipe = override(RECIPES[name].make(), {"network": {"groups": "auto"}}, "test")
    assert from_dict(to_dict(recipe), "a checkpoint") == recipe
    assert first_block(build_network(recipe, 3)).groups == 8
    for wrong in ("all", 2.5, [8]):
        with pytest.raises(ValueError, match=r"block.groups must be auto, channels or of type int, got"):
            override(recipe, {"network": {"groups": wrong}}, "test")
    with pytest.raises(ValueError, match=r"block.groups \(0\) must be at least 1"):
        override(recipe, {"network": {"groups": 0}}, "test")


def test_a_checkpoint_of_before_is_read_and_its_run_goes_on(class_folders, tmp_path):
    recipe = RECIPES["birds-resnet18-cgnl"].make()
    small = {
        "network": {"scale": "mean"},
        "data": {"format": "folders", "size": 32, "resize": 36, "batch_size": 8, "workers": 0},
        "schedule": {"kind": "constant", "warmup": 0.0},
        "trainer": {"max_epochs": 1},
    }
    recipe = override(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root=class_folders)), small, "")
    train(recipe, tmp_path / "run", progress=False)
    path = tmp_path / "run" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["cgnl"]["recipe"] = of_an_earlier_version(recipe, "g_std")
    torch.save(checkpoint, path)
    trained = load_trained(path)
    assert trained.recipe.block.g_std == 0.01
    weights = {key.removeprefix("network."): value for key, value in checkpoint["state_dict"].items()}
    for key, value in trained.network.state_dict().items():
        assert torch.equal(value, weights[key]), key
    train(override(recipe, {"trainer": {"max_epochs": 2}}, ""), tmp_path / "run", resume=True, progress=False)
    assert load_trained(path).epoch > trained.epoch


@pytest.mark.parametrize("name", OF_EACH_TASK)
@pytest.mark.parametrize("block", ["gnl", "gc", "se", "residual", "nl", "cgnlx"])
def test_each_kind_goes_into_each_task_at_the_places_that_are_named(name, block):
    values = {"network": {"block": block, "places": ["layer2.1", "layer3.0"]}, "block": {"inner_channels": 16}}
    recipe = override(RECIPES[name].make(), values, "test")
    network = build_network(recipe, 3)
    blocks = {path: block for path, block in network.named_modules() if path.endswith("inserted_block")}
    body = "backbone.body." if recipe.task == "detection" else ""
    assert list(blocks) == [f"{body}layer2.1.inserted_block", f"{body}layer3.0.inserted_block"]
    assert {type(block) for block in blocks.values()} == {KINDS[block].classes[2 if recipe.task == "video" else 1]}


@pytest.mark.parametrize("block", ["gnl", "gc", "se"])
def test_a_new_kind_is_trained_and_loaded(block, class_folders, tmp_path):
    values = {
        "network": {"block": block},
        "data": {"format": "folders", "size": 32, "resize": 36, "batch_size": 8, "workers": 0},
        "schedule": {"kind": "constant", "warmup": 0.0},
        "trainer": {"max_epochs": 1},
    }
    recipe = override(RECIPES["birds-resnet18-cgnl"].make(), values, "test")
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root=class_folders))
    train(recipe, tmp_path / "run", progress=False)
    trained = load_trained(tmp_path / "run" / "last.ckpt")
    assert trained.recipe == recipe
    x = torch.randn(1, 256, 4, 4)
    assert not torch.equal(first_block(trained.network)(x), x)
    # and its run goes on
    train(override(recipe, {"trainer": {"max_epochs": 2}}, ""), tmp_path / "run", resume=True, progress=False)
    with pytest.raises(ValueError, match=r"network\.block was .*, now nl"):
        train(override(recipe, {"network": {"block": "nl"}}, ""), tmp_path / "run", resume=True, progress=False)


@pytest.mark.parametrize("name", ["cub-resnet50-nl", "cub-resnet50", "ucf101-resnet50-nl"])
def test_an_empty_option_that_a_block_does_not_have_asks_for_nothing(name):
    recipe = RECIPES[name].make()
    assert override(recipe, {"network": {"scale": None, "g_std": None}}, "a file") == recipe
    scaled = override(RECIPES["cub-resnet50-cgnl"].make(), {"block": {"scale": "mean"}}, "a file")
    assert override(scaled, {"network": {"scale": None}}, "a file").block.scale is None
