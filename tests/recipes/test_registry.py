"""Recipes out of files: of every task, changed or whole, and what is wrong with them."""

from typing import Any

import pytest
import yaml

from cgnl.recipes import RECIPES, load_recipe
from cgnl.settings.reading import from_dict, override, to_dict

ONE_OF_EACH_TASK = ["birds-resnet18-cgnl", "actions-resnet18-cgnl", "coco-maskrcnn-resnet50-cgnl"]


def file(tmp_path, values: dict[str, Any]) -> str:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.mark.parametrize("name", ONE_OF_EACH_TASK)
def test_a_whole_recipe_keeps_the_name_it_was_run_under(name, tmp_path):
    recipe = RECIPES[name].make()
    path = file(tmp_path, {"recipe": "mine", **to_dict(recipe)})
    assert load_recipe(path) == ("mine", recipe)


@pytest.mark.parametrize("name", ONE_OF_EACH_TASK)
def test_a_recipe_with_a_field_missing_is_no_whole_one(name, tmp_path):
    values = to_dict(RECIPES[name].make())
    del values["data"]["batch_size"]
    with pytest.raises(ValueError, match="there is no recipe 'mine'"):
        load_recipe(file(tmp_path, {"recipe": "mine", **values}))


@pytest.mark.parametrize("name", ONE_OF_EACH_TASK)
def test_a_file_changes_fields_of_a_recipe(name, tmp_path):
    found, recipe = load_recipe(file(tmp_path, {"recipe": name, "data": {"batch_size": 3}}))
    full = RECIPES[name].make()
    assert (found, recipe.data.batch_size, type(recipe)) == (name, 3, type(full))
    assert recipe.network == full.network


@pytest.mark.parametrize("task", ["audio", ["detection"]])
def test_an_unknown_task_is_named(task, tmp_path):
    with pytest.raises(ValueError, match="task must be one of image, video, detection"):
        load_recipe(file(tmp_path, {"recipe": "mine", "task": task}))


def test_a_run_of_an_earlier_version_is_read(tmp_path):
    recipe = RECIPES["birds-resnet18-cgnl"].make()
    values = to_dict(recipe)
    # as an earlier version has written it
    for name in ("bias_weight_decay", "bias_lr_factor", "lr_batch"):
        del values["optimizer"][name]
    del values["schedule"]["unit"], values["data"]["num_outputs"]
    values["schedule"]["warmup_epochs"] = values["schedule"].pop("warmup") + 1.5
    warmer = override(recipe, {"schedule": {"warmup": recipe.schedule.warmup + 1.5}}, "test")
    for name in ("mine", "birds-resnet18-cgnl"):
        assert load_recipe(file(tmp_path, {"recipe": name, **values})) == (name, warmer)
    del values["task"]
    assert from_dict(values, "a checkpoint") == warmer


@pytest.mark.parametrize("name", ["image", "cub-resnet50-nl"])
def test_a_run_folder_goes_before_a_recipe_of_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert load_recipe(name) == (name, RECIPES[name].make())  # an empty folder is no run
    recipe = RECIPES["birds-resnet18-cgnl"].make()
    (tmp_path / name / "recipe.yaml").write_text(yaml.safe_dump({"recipe": "image", **to_dict(recipe)}))
    assert load_recipe(name) == ("image", recipe)
