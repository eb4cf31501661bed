"""Learning rates that fall from layer to layer: timm's own groups, and a plain rule for other networks."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from torchvision import models

import cgnl
from cgnl.insertion import inserted_blocks
from cgnl.networks.depth import depths
from cgnl.networks.image import resnet18
from cgnl.networks.video import c2d_resnet
from cgnl.settings.training import OptimizerConfig
from cgnl.training.classification import ClassificationModule


def rates(module):
    """The rate of each parameter by its name."""
    names = {id(p): name for name, p in module.network.named_parameters()}
    return {names[id(p)]: group["lr"] for group in module.make_optimizer().param_groups for p in group["params"]}


def timms(network, decay):
    """The factor of each parameter by its name, as timm has it."""
    names = {id(p): name for name, p in network.named_parameters()}
    groups = param_groups_layer_decay(network, layer_decay=decay)
    return {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "test_efficientnet"])
def test_the_rates_are_those_of_timm(name):
    network = timm.create_model(name, num_classes=5)
    config = OptimizerConfig(lr=0.5, layer_decay=0.6, block_lr_factor=3.0)
    expected = {key: 0.5 * scale for key, scale in timms(network, 0.6).items()}
    assert len(set(expected.values())) > 2
    head = (timm.get_pretrained_cfg(name).classifier,)
    options = {"num_classes": 5, "optimizer": config, "classifier": head}
    assert rates(ClassificationModule(network, **options)) == pytest.approx(expected)
    # a block goes with the layer that it stands behind, and has its own factor on top
    size = timm.get_pretrained_cfg(name).input_size[-1]
    kind = cgnl.CGNL1d if name == "test_vit" else cgnl.CGNL2d
    cgnl.insert_blocks(network, kind, example_input=torch.zeros(1, 3, size, size))
    found = rates(ClassificationModule(network, **options))
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    (path,) = inserted_blocks(network)
    host = next(value for key, value in expected.items() if key.startswith(f"{path}."))
    of_block = {value for key, value in found.items() if key not in expected}
    assert [*of_block] == [pytest.approx(3 * host)]


def test_the_layers_of_the_papers_networks():
    for network in (
        resnet18(num_classes=4, block="cgnl", num_blocks=1),
        c2d_resnet("resnet18", num_classes=4, block="cgnl", num_blocks=1),
    ):
        found = depths(network, [network.fc])
        assert found["fc.bias"] == 0
        assert found["conv1.weight"] == found["bn1.bias"] == 9
        blocks = [f"layer{stage}.{number}" for stage in (4, 3, 2, 1) for number in (1, 0)]
        for depth, path in enumerate(blocks, start=1):
            assert {value for name, value in found.items() if name.startswith(f"{path}.")} == {depth}
        (place,) = inserted_blocks(network)
        # the inserted block is among these
        assert any(name.startswith(f"{place}.inserted_block.") for name in found)


@pytest.mark.parametrize(
    ("name", "layers", "one", "other"),
    [
        ("vit_b_16", 14, "class_token", "conv_proj.bias"),
        ("vit_b_16", 14, "encoder.ln.bias", "encoder.layers.encoder_layer_11.mlp.0.bias"),
        ("convnext_tiny", 23, "features.0.0.weight", "features.0.1.bias"),
        ("convnext_tiny", 23, "features.2.0.bias", "features.2.1.bias"),
        ("regnet_y_400mf", 18, "stem.0.weight", "stem.1.bias"),
        ("mobilenet_v3_small", 13, "features.12.0.weight", "features.11.block.0.0.weight"),
        ("vgg11_bn", 11, "features.0.weight", "features.1.weight"),
    ],
)
def test_the_layers_of_torchvisions_networks(name, layers, one, other):
    network = models.get_model(name)
    head = next(module for module in reversed([*network.modules()]) if isinstance(module, nn.Linear))
    found = depths(network, [head])
    assert found.keys() == dict(network.named_parameters()).keys()
    assert {*found.values()} == {*range(layers)}
    assert found[one] == found[other]
    # never nearer to the head than what comes behind
    ordered = [found[key] for key in found if "layer_scale" not in key and "token" not in key and "pos_" not in key]
    assert ordered == sorted(ordered, reverse=True)


def test_blocks_behind_modules_without_weights_and_behind_stages():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()), nn.Flatten())
    network.append(nn.Linear(8 * 16, 2))
    example = torch.zeros(1, 3, 8, 8)
    cgnl.insert_blocks(network, {"1": cgnl.CGNL2d, "2": cgnl.CGNL2d}, example_input=example)
    found = depths(network, [network[4]])
    assert {found[name] for name in found if name.startswith("1.")} == {2}
    assert {found[name] for name in found if name.startswith("2.")} == {1}
    assert (found["0.weight"], found["2.0.weight"], found["4.weight"]) == (2, 1, 0)


def test_factors_multiply_and_the_log_has_the_rate_without_them():
    network = resnet18(num_classes=4, block="cgnl", num_blocks=1)
    config = OptimizerConfig(lr=0.1, layer_decay=0.5, head_lr_factor=10, bias_lr_factor=2, block_lr_factor=4)
    module = ClassificationModule(network, num_classes=4, optimizer=config, freeze=("conv1", "bn1"))
    found = rates(module)
    assert found["fc.weight"] == pytest.approx(1)
    assert found["fc.bias"] == pytest.approx(2)
    assert found["layer4.1.conv1.weight"] == pytest.approx(0.05)
    (place,) = inserted_blocks(network)
    block = next(key for key in found if key.startswith(f"{place}.inserted_block") and key.endswith("theta.weight"))
    assert found[block] == pytest.approx(4 * found[f"{place}.conv1.weight"])
    assert "conv1.weight" not in found
    first = module.make_optimizer().param_groups[0]
    assert first["lr"] / first["layer_scale"] == pytest.approx(0.1)


@pytest.mark.parametrize("value", [0, -1, 1.5, float("nan")])
def test_a_decay_that_cannot_be(value):
    with pytest.raises(ValueError, match=r"optimizer.layer_decay \("):
        OptimizerConfig(layer_decay=value)
