"""The layers behind a block on cached maps: outputs and gradients of the whole network, and what is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cgnl import ResidualBlock2d, insert_blocks
from cgnl.compare.cut import Front, Tail, built, make_tail
from cgnl.compare.maps import Features, Maps
from cgnl.compare.plan import Protocol, Trial
from cgnl.compare.trials import run_on_maps
from cgnl.insertion import inserted_blocks
from cgnl.recipes import RECIPES
from cgnl.settings.reading import override, to_dict
from cgnl.tasks.registry import task_of


def recipe_of(arch, task="image", size=64):
    data = {"size": size, "resize": size, "batch_size": 4, **({"num_frames": 8} if task == "video" else {})}
    values = {"network": {"arch": arch, "weights": None}, "data": data}
    return override(RECIPES[task].make(), values, "here")


def inputs_of(recipe, count=2):
    shape = task_of(recipe).input_shape(recipe)[1:]
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("arch", "task", "size"),
    [
        ("resnet18", "image", 32),
        ("torchvision:resnet18", "image", 32),
        ("timm:tf_efficientnet_lite0", "image", 64),
        ("timm:convnext_atto", "image", 64),
        ("timm:vit_tiny_patch16_224", "image", 32),
        ("resnet18", "video", 32),
    ],
)
def test_the_tail_on_maps_is_the_whole_network(arch, task, size):
    if arch.startswith("timm"):
        pytest.importorskip("timm")
    recipe = recipe_of(arch, task, size)
    whole, x = built(recipe, "residual", 5), inputs_of(recipe)
    with torch.no_grad():
        expected = whole(x)
        maps = Front(whole)(x)
        # the same seed, so the same new classifier
        tail = make_tail(recipe, "residual", 5, 0, tuple(maps.shape[1:])).eval()
        for count in (1, 2, 2):
            torch.testing.assert_close(tail(maps[:count]), expected[:count], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", ["image", "video"])
def test_gradients_and_statistics_are_those_of_the_whole_network(task):
    recipe = recipe_of("resnet18", task, 32)
    whole, x = built(recipe, "cgnl", 3).double(), inputs_of(recipe, 4).double()
    (path,) = inserted_blocks(whole)
    block = inserted_blocks(whole)[path]
    nn.init.normal_(block.norm.weight, generator=torch.Generator().manual_seed(2))
    whole.fc.dropout = 0.0
    in_front = ["conv1", "bn1", "layer1", "layer2", path]

    def train(network):
        network.train()
        for name in in_front:
            network.get_submodule(name).eval()
        inserted_blocks(network)[path].train()

    halves = built(recipe, "cgnl", 3).double()
    halves.load_state_dict(whole.state_dict())
    halves.fc.dropout = 0.0
    with torch.no_grad():
        maps = Front(built_like(recipe, whole))(x)
    tail = Tail(halves, tuple(x.shape[1:]), maps).train()
    train(whole)
    labels = torch.tensor([0, 1, 2, 1])
    for network, given in ((whole, x), (tail, maps)):
        F.cross_entropy(network(given), labels).backward()
    own, trained = dict(whole.named_parameters()), set()
    for name, parameter in halves.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None)
        if parameter.requires_grad:
            trained.add(name)
            torch.testing.assert_close(parameter.grad, own[name].grad, rtol=1e-9, atol=1e-12)
    expected = {n for n in own if not n.startswith(("conv1", "bn1", "layer1", "layer2", "layer3.0"))}
    assert trained == expected | {n for n in own if "inserted_block" in n}
    assert len(trained) > 20
    # BatchNorm behind the block has seen the batch
    before = built(recipe, "cgnl", 3).double().state_dict()
    for name, buffer in whole.named_buffers():
        if name.startswith("layer4"):
            torch.testing.assert_close(halves.state_dict()[name], buffer)
            assert not torch.equal(buffer, before[name])


def built_like(recipe, network):
    other = built(recipe, "cgnl", 3).double()
    other.load_state_dict(network.state_dict())
    return other


class Around(nn.Module):
    """A network whose last layer sees a map from before the block."""

    def __init__(self, *, by_value):
        super().__init__()
        self.first, self.second, self.by_value = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), by_value

    def forward(self, x):
        y = self.first(x)
        if self.by_value:
            return (self.second(y) if y.max() > 0 else y).mean((2, 3))
        return (self.second(y) + y.relu()).mean((2, 3))


@pytest.mark.parametrize(("by_value", "message"), [(False, "also see earlier maps"), (True, "cannot leave out")])
def test_networks_that_cannot_be_cut_are_refused(by_value, message):
    network, x = Around(by_value=by_value), torch.randn(2, 3, 8, 8)
    insert_blocks(network, {"second": ResidualBlock2d}, example_input=x)
    with pytest.raises(ValueError) as error:
        Tail(network, (3, 8, 8), torch.zeros(2, 8, 6, 6))
    assert message in str(error.value)
    assert "--head new" in str(error.value)
    assert "\n" not in str(error.value)


def test_layers_that_change_their_input_leave_the_maps_alone():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 1), nn.Flatten())
    insert_blocks(network, {"0": nn.Identity}, example_input=torch.zeros(1, 3, 8, 8))
    maps = torch.randn(2, 8, 6, 6)
    before = maps.clone()
    tail = Tail(network, (3, 8, 8), maps).eval()
    tail(maps)
    assert torch.equal(maps, before)


def features_of(count=24, classes=3, shape=(256, 2, 2)):
    labels = torch.arange(count) % classes
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(count, 2, *shape, generator=generator) + labels.view(-1, 1, 1, 1, 1)
    return Features(Maps(maps, labels), Maps(maps[:12], labels[:12]), tuple("abc"), "layer3.0", "words")


def test_kinds_and_seeds_have_the_same_layers_behind_the_block():
    """A block that stays the identity gives the plain network's numbers; another seed changes the classifier alone."""
    recipe, features = recipe_of("resnet18", size=32), features_of()
    protocol = Protocol(
        command="", recipe=to_dict(recipe), blocks=("none", "cgnl"), seeds=(3,), frozen=True, epochs=1, rate=0.05,
        weight_decay=5e-4, dropout=0.5, width=8, head="network",
    )  # fmt: skip
    plain, frozen = (
        run_on_maps(protocol, Trial(block, 3, "fixed", 1, 0.05, factor), features)
        for block, factor in (("none", 1.0), ("cgnl", 0.0))
    )
    assert plain["curve"] == frozen["curve"]
    assert frozen["diagnosis"]["mean_s"] == frozen["diagnosis"]["removed"] == frozen["top1"]
    # the costs, counted on the layers behind the block alone
    network = built(recipe, "cgnl", 3)
    layers = nn.Sequential(network.layer3[1], network.layer4, network.avgpool, nn.Flatten(), network.fc)
    with FlopCounterMode(display=False) as counter:
        layers(features.train.maps[:1, 0])
    assert plain["multiplications"] == counter.get_total_flops() // 2
    assert plain["parameters"] == sum(p.numel() for p in layers.parameters())
    (block,) = inserted_blocks(network).values()
    assert frozen["parameters"] - plain["parameters"] == sum(p.numel() for p in block.parameters())
    assert frozen["multiplications"] > plain["multiplications"]
    states = [make_tail(recipe, "none", 3, seed, (256, 2, 2)).network.state_dict() for seed in (3, 4)]
    differing = {name for name, value in states[0].items() if not torch.equal(value, states[1][name])}
    assert differing == {"fc.weight", "fc.bias"}
