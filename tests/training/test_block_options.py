"""Options of blocks in recipes: the start of g, and groups that fit by themselves."""

import dataclasses

import pytest
import torch
import yaml

from cgnl.recipes import RECIPES, load_recipe
from cgnl.settings.reading import from_dict, override, to_dict
from cgnl.tasks import build_network, load_trained, train

OF_EACH_TASK = ["birds-resnet18-cgnl", "actions-resnet18-cgnl", "flock-maskrcnn-resnet18-cgnl"]


def first_block(network):
    return next(module for name, module in network.named_modules() if name.endswith("inserted_block"))


def of_an_earlier_version(recipe):
    values = to_dict(recipe)
    del values["network"]["g_std"]
    return values


@pytest.mark.parametrize("name", OF_EACH_TASK)
def test_a_run_of_before_the_start_of_g_was_an_option_starts_as_it_did(name, tmp_path):
    scaled = override(RECIPES[name].make(), {"network": {"scale": "mean"}}, "test")
    before = override(scaled, {"network": {"g_std": 0.01}}, "test")
    values = of_an_earlier_version(scaled)
    assert from_dict(values, "a checkpoint") == before
    for base in ("mine", name):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"recipe": base, **values}))
        assert load_recipe(str(tmp_path)) == (base, before)
    assert first_block(build_network(before, 3)).g.weight.std().item() == pytest.approx(0.01, rel=0.05)
    unscaled = RECIPES[name].make()
    assert from_dict(of_an_earlier_version(unscaled), "a checkpoint") == unscaled


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
    with pytest.raises(ValueError, match=r"network.g_std \(0.0\) must be above 0"):
        override(chosen, {"network": {"g_std": 0.0}}, "test")


@pytest.mark.parametrize("name", OF_EACH_TASK)
@pytest.mark.parametrize("block", ["nl", "residual", "none"])
def test_a_start_of_g_is_for_cgnl_blocks_alone(name, block):
    recipe = override(RECIPES[name].make(), {"network": {"block": block, "g_std": 0.5}}, "test")
    with pytest.raises(ValueError, match=rf"g_std \(0\.5\) must be None for block '{block}'"):
        build_network(recipe, 3)


@pytest.mark.parametrize("name", OF_EACH_TASK)
def test_a_plain_network_of_before_is_read_whatever_its_scale(name):
    recipe = override(RECIPES[name].make(), {"network": {"block": "none", "scale": "mean"}}, "test")
    assert from_dict(of_an_earlier_version(recipe), "a checkpoint") == recipe
    build_network(recipe, 3)


@pytest.mark.parametrize("name", OF_EACH_TASK)
def test_groups_of_a_recipe_fit_by_themselves(name):
    recipe = override(RECIPES[name].make(), {"network": {"groups": "auto"}}, "test")
    assert from_dict(to_dict(recipe), "a checkpoint") == recipe
    assert first_block(build_network(recipe, 3)).groups == 8
    for wrong in ("all", 2.5, [8]):
        with pytest.raises(ValueError, match=r"network.groups must be auto or of type int, got"):
            override(recipe, {"network": {"groups": wrong}}, "test")
    with pytest.raises(ValueError, match=r"network.groups \(0\) must be at least 1"):
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
    del checkpoint["cgnl"]["recipe"]["network"]["g_std"]
    torch.save(checkpoint, path)
    trained = load_trained(path)
    assert trained.recipe.network.g_std == 0.01
    weights = {key.removeprefix("network."): value for key, value in checkpoint["state_dict"].items()}
    for key, value in trained.network.state_dict().items():
        assert torch.equal(value, weights[key]), key
    train(override(recipe, {"trainer": {"max_epochs": 2}}, ""), tmp_path / "run", resume=True, progress=False)
    assert load_trained(path).epoch > trained.epoch
