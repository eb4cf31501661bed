"""The options of blocks: what each kind has, what is refused by name, and what stays when the kind changes."""

import dataclasses

import pytest

from cgnl.recipes import RECIPES
from cgnl.settings.blocks import OPTIONS, CGNLOptions, NonLocalOptions
from cgnl.settings.detection import DetectionNetworkConfig, DetectionRecipe
from cgnl.settings.image import NetworkConfig, Recipe
from cgnl.settings.reading import from_dict, override, to_dict
from cgnl.settings.video import VideoNetworkConfig, VideoRecipe


@pytest.mark.parametrize("block", [*OPTIONS, "mypackage.MyBlock"])
@pytest.mark.parametrize(
    ("recipe", "network"),
    [(Recipe, NetworkConfig), (VideoRecipe, VideoNetworkConfig), (DetectionRecipe, DetectionNetworkConfig)],
)
def test_each_kind_nests_into_each_task(recipe, network, block):
    made = recipe(network=network(block=block))
    assert from_dict(to_dict(made), "a file") == made
    with pytest.raises(ValueError, match=rf"a file: block.nothing is not an option of block {block}, which has: "):
        override(made, {"block": {"nothing": 1}}, "a file")


def test_defaults_of_the_tasks():
    assert Recipe(network=NetworkConfig(block="nl")).block == NonLocalOptions(subsample=False, bias=False)
    video = VideoRecipe(network=VideoNetworkConfig(block="nl")).block
    assert (video.subsample, video.bias, video.norm) == (True, True, "batch")
    for block in ("nl", "cgnl", "cgnlx", "residual", "gnl"):
        assert DetectionRecipe(network=DetectionNetworkConfig(block=block)).block.norm == "sync_batch"


@pytest.mark.parametrize(
    ("values", "refused"),
    [
        (
            {"network": {"block": "nl", "kernel": "rbf", "groups": 32}},
            "block.kernel is not an option of block nl, which has",
        ),
        ({"network": {"block": "nl"}, "block": {"groups": 32}}, "block.groups is not an option of block nl"),
        ({"network": {"block": "gc", "norm": "batch"}}, "block.norm is not an option of block gc"),
        ({"network": {"block": "none", "groups": 8}}, "block.groups is not an option of block none, which has: none"),
        ({"network": {"block": "own.Block", "groups": 8}}, "block.groups is not an option of block own.Block"),
        ({"network": {"block": "cgln"}}, r"block \('cgln'\) must be one of none, nl, cgnl"),
        ({"block": {"kernel": "dot", "order": 2}}, r"block.order \(2\) is not an option of the kernel dot"),
        ({"block": {"kernel": "embedded_gaussian", "gamma": 2}}, r"block.gamma \(2.0\) is .* which has order"),
        ({"block": {"kernel": "rbf", "coefficients": [1, 2]}}, r"which has order, gamma, beta"),
        ({"block": {"kernel": "series"}}, "block.coefficients is needed"),
        ({"block": {"kernel": "rbf", "gamma": 0}}, r"block.gamma \(0.0\) must be above 0"),
        ({"block": {"kernel": "rbf", "order": -1}}, r"block.order \(-1\) must be at least 0"),
        ({"network": {"block": "cgnlx"}, "block": {"kernel": "dot"}}, "block.kernel must be one of rbf"),
        ({"block": {"inner_channels": 0}}, r"block.inner_channels \(0\) must be at least 1"),
        ({"network": {"places": ["layer1.0", "layer2.0"], "num_blocks": 5}}, r"num_blocks \(5\) must be left out"),
    ],
)
def test_a_setting_that_does_nothing_is_refused_by_name(values, refused):
    with pytest.raises(ValueError, match=refused):
        override(RECIPES["cub-resnet50-cgnl"].make(), values, "a file")


def test_options_that_both_kinds_have_keep_the_recipes_values():
    recipe = RECIPES["cub-resnet101-cgnl-g4"].make()
    changed = override(recipe, {"block": {"channel_reduction": 4, "scale": "mean"}}, "a file")
    residual = override(changed, {"network": {"block": "residual"}}, "a file").block
    assert (residual.groups, residual.channel_reduction) == (4, 4)
    # a scale of sums is none of logits, and the inner channels of a gc block are its own unless they were changed
    non_local = override(changed, {"network": {"block": "nl"}}, "a file").block
    assert non_local == NonLocalOptions(channel_reduction=4)
    assert override(recipe, {"network": {"block": "gc"}}, "a file").block.channel_reduction == 16
    back = override(RECIPES["cub-resnet50-cgnlx"].make(), {"network": {"block": "cgnl"}}, "a file").block
    assert back == CGNLOptions()
    # in Python too
    assert (
        dataclasses.replace(recipe, network=NetworkConfig(block="none")).block
        == Recipe(network=NetworkConfig(block="none")).block
    )


def test_old_spellings_are_read():
    recipe = RECIPES["cub-resnet50-cgnl"].make()
    new = override(recipe, {"block": {"kernel": "rbf", "groups": 4}}, "a file")
    assert override(recipe, {"network": {"kernel": "rbf", "groups": 4}}, "a file") == new
    assert new.block == CGNLOptions(kernel="rbf", groups=4)


@pytest.mark.parametrize("kind", [CGNLOptions, OPTIONS["residual"]])
def test_a_word_that_is_no_number_of_groups_is_refused(kind):
    with pytest.raises(ValueError, match=r"block\.groups \('all'\) must be one of 'auto', 'channels' or a number"):
        kind(groups="all")
