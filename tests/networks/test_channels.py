"""First convolutions for grey and multispectral images, against timm's own adaption and against grey images in RGB."""

import importlib
from pathlib import Path

import pytest
import timm
import torch
from timm.models import adapt_input_conv
from torch import nn
from torchvision import models

from cgnl import CGNL2d
from cgnl.networks.channels import adapted
from cgnl.networks.checkpoints import CheckpointError
from cgnl.networks.cost import network_cost
from cgnl.networks.image import resnet, resnet18
from cgnl.networks.libraries import Inputs
from cgnl.networks.named import named_network

SIZE = (64, 64)
NETWORKS = [
    "timm:test_convnext",
    "timm:test_vit",
    "timm:test_resnet",
    "torchvision:regnet_y_400mf",
    "torchvision:mobilenet_v3_small",
]


def blocks(num_axes: int):
    return CGNL2d


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 13])
def test_weights_are_adapted_as_timm_does(channels):
    weight = torch.randn(8, 3, 5, 5)
    torch.testing.assert_close(adapted(weight, channels), adapt_input_conv(channels, weight))


def saved(network: nn.Module, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize("name", NETWORKS)
def test_a_grey_image_gives_what_it_gave_in_rgb(tmp_path, name):
    torch.manual_seed(0)
    of_rgb = named_network(name, 5, (1, 3, *SIZE)).network.eval()
    file = saved(of_rgb, tmp_path / "rgb.pth")
    grey = torch.rand(2, 1, *SIZE)
    of_grey = named_network(name, 5, (1, 1, *SIZE), weights=file).network.eval()
    with torch.no_grad():
        torch.testing.assert_close(of_grey(grey), of_rgb(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_of_rgb_weights_is_adapted_and_one_of_as_many_channels_is_loaded(tmp_path, name):
    torch.manual_seed(0)
    of_rgb = named_network(name, 5, (1, 3, *SIZE)).network
    file = saved(of_rgb, tmp_path / "rgb.pth")
    network = named_network(name, 5, (1, 5, *SIZE), weights=file).network
    (first,) = [key for key, value in of_rgb.state_dict().items() if value.ndim == 4 and value.shape[1] == 3]
    torch.testing.assert_close(network.state_dict()[first], adapt_input_conv(5, of_rgb.state_dict()[first]))
    # all other weights are those of the file
    for key, value in of_rgb.state_dict().items():
        assert key == first or torch.equal(network.state_dict()[key], value), key
    with torch.no_grad():
        network.get_submodule(first.removesuffix(".weight")).weight.normal_()
    again = named_network(name, 5, (1, 5, *SIZE), weights=saved(network, tmp_path / "five.pth")).network
    assert torch.equal(again.state_dict()[first], network.state_dict()[first])
    with pytest.raises(CheckpointError, match=r"does not fit the network"):
        named_network(name, 5, (1, 4, *SIZE), weights=tmp_path / "five.pth")


def test_timm_adapts_its_own_weights_in_the_same_way(tmp_path):
    torch.manual_seed(0)
    plain = timm.create_model("test_resnet", num_classes=5)
    file = saved(plain, tmp_path / "rgb.pth")
    overlay = {"file": str(file), "num_classes": 5}
    options = {"pretrained": True, "pretrained_cfg_overlay": overlay, "num_classes": 5, "in_chans": 6}
    expected = timm.create_model("test_resnet", **options).state_dict()
    ours = named_network("timm:test_resnet", 5, (1, 6, *SIZE), weights=file).network.state_dict()
    for key, value in expected.items():
        torch.testing.assert_close(ours[key], value)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_the_papers_networks(tmp_path, channels):
    torch.manual_seed(0)
    host = models.resnet18(num_classes=5).eval()
    file = saved(host, tmp_path / "rgb.pth")
    network = resnet18("cgnl", num_classes=5, weights=file, channels=channels).eval()
    assert torch.equal(network.conv1.weight, adapted(host.conv1.weight, channels))
    x = torch.rand(2, channels, *SIZE)
    host.conv1.weight = nn.Parameter(adapt_input_conv(channels, host.conv1.weight.detach()))
    with torch.no_grad():
        # a new block is the identity
        torch.testing.assert_close(network(x), host(x))
        assert network.forward_features(x).shape == (2, 512, 2, 2)
    with pytest.raises(ValueError, match=r"channels \(0\) must be at least 1"):
        resnet("resnet18", num_classes=5, channels=0)


def test_named_weights_of_torchvision_in_grey(torch_home):
    torch.manual_seed(0)
    host = models.resnet18().eval()
    torch.save(host.state_dict(), torch_home / Path(models.ResNet18_Weights.IMAGENET1K_V1.url).name)
    grey = torch.rand(2, 1, *SIZE)
    network = resnet18("nl", weights="IMAGENET1K_V1", channels=1).eval()
    with torch.no_grad():
        torch.testing.assert_close(network(grey), host(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_blocks_find_their_places_and_the_cost_counts_the_channels():
    for name in NETWORKS[:4]:
        of_three, of_five = (named_network(name, 5, (1, n, *SIZE)).network for n in (3, 5))
        first = next(value for value in of_three.state_dict().values() if value.ndim == 4 and value.shape[1] == 3)
        costs = [
            network_cost(lambda name=name, n=n: named_network(name, 5, (1, n, *SIZE)).network, (1, n, *SIZE))
            for n in (3, 5)
        ]
        assert costs[1].parameters - costs[0].parameters == 2 * first[:, 0].numel()
        assert costs[1].multiplications > costs[0].multiplications
        assert sum(p.numel() for p in of_five.parameters()) == costs[1].parameters
    found = [named_network("torchvision:regnet_y_400mf", 5, (1, n, *SIZE), blocks=blocks).places for n in (3, 1, 7)]
    assert found == [("trunk_output.block3.block3-4",)] * 3


OWN = """
import torch
from torch import nn
from torch.nn import functional as F
class Net(nn.Module):
    def __init__(self, num_classes, first, use=None):
        super().__init__()
        # named before the layer that runs first
        self.head = nn.Linear(8, num_classes)
        self.conv = nn.Conv2d(8, 8, 3)
        self.first = first
        self.use = use or (lambda first, x: first(x))
    def forward(self, x):
        return self.head(self.conv(self.use(self.first, x)).mean((2, 3)))
def of_rgb(num_classes):
    return Net(num_classes, nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"))
def of_five(num_classes):
    return Net(num_classes, nn.Conv2d(5, 8, 3))
def of_four(num_classes):
    return Net(num_classes, nn.Conv2d(4, 8, 3))
def of_a_norm(num_classes):
    return Net(num_classes, nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3)))
def of_groups(num_classes):
    return Net(num_classes, nn.Conv2d(3, 9, 3, groups=3))
def of_colour_means(num_classes):
    return Net(num_classes, nn.Conv2d(3, 8, 3), lambda first, x: first(x - torch.zeros(3, 1, 1)))
def of_two_stems(num_classes):
    stems = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)])
    return Net(num_classes, stems, lambda stems, x: stems[0](x) + stems[1](x))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "ownchannels.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    def build(function: str, channels: int) -> nn.Module:
        name = f"ownchannels.{function}"
        return named_network(name, 4, (1, channels, *SIZE), trust=("ownchannels",)).network

    return build


def test_functions_of_ones_own(own):
    torch.manual_seed(0)
    of_rgb = own("of_rgb", 3)
    torch.manual_seed(0)
    network = own("of_rgb", 5)
    # the layer is the same but for its weights
    assert (network.first.in_channels, network.first.padding_mode) == (5, "reflect")
    torch.testing.assert_close(network.first.weight, adapt_input_conv(5, of_rgb.first.weight.detach()))
    assert network.first.weight.requires_grad
    assert network(torch.rand(2, 5, *SIZE)).shape == (2, 4)
    torch.manual_seed(0)
    already = own("of_five", 5)
    torch.manual_seed(0)
    expected = importlib.import_module("ownchannels").of_five(4)
    assert all(map(torch.equal, already.state_dict().values(), expected.state_dict().values()))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("of_four", r"its first layer, first, is a Conv2d of 4 channels, and no convolution of 3 channels"),
        ("of_a_norm", r"its first layer, first.0, is a BatchNorm2d, and no convolution"),
        ("of_groups", r"its first layer, first, is a Conv2d of 3 channels"),
        ("of_colour_means", r"cannot run on an input of \[1, 5, 64, 64\]"),
        ("of_two_stems", r"cannot run on an input of \[1, 5, 64, 64\]"),
    ],
)
def test_a_network_that_cannot_be_adapted_is_refused(own, function, words):
    with pytest.raises(ValueError, match=words) as caught:
        own(function, 5)
    assert "\n" not in str(caught.value)


def test_mean_and_deviation_of_the_channels():
    inputs = Inputs()
    assert inputs.of_channels(3) == inputs
    assert inputs.of_channels(1).mean == pytest.approx([0.449])
    assert inputs.of_channels(5).std == pytest.approx([0.226] * 5)
    assert inputs.of_channels(2, [0.5], [0.1, 0.2])[2:4] == ((0.5, 0.5), (0.1, 0.2))
    assert inputs.of_channels(3, [0.5])[2] == (0.5, 0.5, 0.5)
