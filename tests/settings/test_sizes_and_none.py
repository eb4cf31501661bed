"""Settings that follow from others, or are spelled in another way."""

import pytest

from cgnl.cli.arguments import parse_fields
from cgnl.cli.evaluation import TestOptions as Options
from cgnl.recipes import RECIPES
from cgnl.settings.reading import override


def parsed(name, *arguments):
    return parse_fields(f"train {name}", Options, RECIPES[name].make(), arguments)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("image", ["--data.size", "112"], (112, 128)),
        ("image", ["--data.size=112", "--data.resize=112"], (112, 112)),
        ("cub-resnet50-cgnl", ["--data.size", "224"], (224, 256)),
        ("video", ["--data.size", "112"], (112, 128)),
        ("image", ["--data.resize", "300"], (224, 300)),
        ("image", ["--network.arch", "timm:convnext_tiny", "--data.size", "112"], (112, None)),
    ],
)
def test_another_size_alone_keeps_the_part_of_each_image_that_is_seen(name, given, expected):
    data = parsed(name, *given).data
    assert (data.size, data.resize) == expected


def test_the_same_holds_in_files():
    recipe = RECIPES["image"].make()
    assert override(recipe, {"data": {"size": 112}}, "f.yaml").data.resize == 128
    assert override(recipe, {"data": {"size": 112, "resize": 120}}, "f.yaml").data.resize == 120


@pytest.mark.parametrize("word", ["none", "None", "NONE"])
def test_none_is_no_weights_however_it_is_written(word):
    assert parsed("image", f"--network.weights={word}").network.weights is None
    recipe = RECIPES["flock-maskrcnn-resnet18-cgnl"].make()
    changed = override(recipe, {"network": {"backbone_weights": word, "weights": word}}, "f.yaml")
    assert changed.network.backbone_weights is changed.network.weights is None
