"""Networks by name in recipes: what a recipe of the paper's networks keeps, and where blocks stand."""

import re

import pytest

from cgnl.recipes import RECIPES
from cgnl.settings.image import with_arch
from cgnl.settings.reading import from_dict, override


@pytest.mark.parametrize(
    ("name", "arch", "expected"),
    [
        ("image", "timm:test_convnext", {"weights": "default", "dropout": None}),
        ("image", "resnet101", {"weights": "IMAGENET1K_V1", "dropout": 0.5}),
        ("birds-resnet18-cgnl", "torchvision:swin_t", {"weights": None, "dropout": None}),
        ("image", "mypackage.make_network", {"weights": None, "dropout": None}),
        ("video", "torchvision:r3d_18", {"weights": "default", "temporal_strides": (2, 2, 2), "head": "average"}),
        ("ucf101-resnet50", "torchvision:r3d_18", {"temporal_strides": (2, 2, 2), "head": "average"}),
        ("ucf101-resnet50", "resnet101", {"head": "fully_convolutional"}),
        (
            "coco-maskrcnn-resnet50-cgnl",
            "torchvision:mobilenet_v3_small",
            {"neck": "fpn", "weights": None, "backbone_weights": "default"},
        ),
    ],
)
def test_another_network_leaves_out_what_fits_the_papers_alone(name, arch, expected):
    recipe = RECIPES[name].make()
    found = override(recipe, {"network": {"arch": arch}}, "a file").network
    assert found.arch == arch
    assert {field: getattr(found, field) for field in expected} == expected
    assert with_arch(recipe.network, arch) == found


def test_what_is_given_with_another_network_stays():
    recipe = RECIPES["image"].make()
    values = {"arch": "timm:test_convnext", "dropout": 0.2, "weights": "r160_in1k"}
    found = override(recipe, {"network": values}, "a file").network
    assert (found.dropout, found.weights) == (0.2, "r160_in1k")
    file = override(recipe, {"network": {"weights": "mine.pth"}}, "a file").network
    assert with_arch(file, "timm:test_convnext").weights == "mine.pth"
    values = {"arch": "torchvision:r3d_18", "temporal_strides": [1, 1, 2]}
    with pytest.raises(ValueError, match=r"network\.temporal_strides must be left out for .*r3d_18, which has none"):
        override(RECIPES["video"].make(), {"network": values}, "a file")


@pytest.mark.parametrize("name", ["image", "video", "detection"])
def test_a_place_that_is_named_twice_is_refused(name):
    values = {"network": {"places": ["layer3.4", "layer3.4"], "num_blocks": 2}}
    with pytest.raises(ValueError, match=r"network\.places \(layer3\.4 layer3\.4\) must name each path once"):
        override(RECIPES[name].make(), values, "a file")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"network": {"arch": "resnet51"}}, "network.arch (resnet51) must be one of"),
        ({"network": {"block": "cgn"}}, "block ('cgn') must be one of"),
        ({"optimizer": {"lr": -1}}, "optimizer.lr (-1.0) must be above 0"),
        ({"block": {"groups": 0}}, "block.groups (0) must be at least 1"),
        ({"data": {"size": 0}}, "data.size (0) must be at least 1"),
    ],
)
def test_a_wrong_value_is_refused_with_the_file_that_it_stands_in(values, said):
    with pytest.raises(ValueError, match=re.escape(f"mine.yaml: {said}")):
        from_dict(values, "mine.yaml")
