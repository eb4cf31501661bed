"""Networks by name: the identity at the start, start weights, new classes, one's own functions, and what they need."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from timm.data import resolve_data_config
from torch import nn
from torchvision import models
from torchvision.models import SwinTransformer
from torchvision.transforms import v2

from cgnl import CGNL1d, CGNL2d, CGNL3d
from cgnl.explain.trace import trace_blocks
from cgnl.insertion import insert_blocks, remove_blocks
from cgnl.networks.checkpoints import CheckpointError
from cgnl.networks.cost import network_cost
from cgnl.networks.export import export_onnx
from cgnl.networks.libraries import Inputs, inputs_of, start_weights
from cgnl.networks.named import NamedNetwork, named_network

IMAGE = (1, 3, 64, 64)
# name, input, the place found, the classifier, axes of the block's map
NETWORKS = [
    ("timm:test_convnext", IMAGE, "stages.2.blocks.2", "head.fc", (4, 4)),
    ("torchvision:regnet_y_400mf", IMAGE, "trunk_output.block3.block3-4", "fc", (4, 4)),
    ("torchvision:swin_t", IMAGE, "features.5.4", "head", (4, 4)),
    # 16 patches and the class token
    ("timm:test_vit", IMAGE, "blocks.4", "head", (17,)),
    ("torchvision:r3d_18", (1, 3, 8, 32, 32), "layer4.0", "fc", (1, 2, 2)),
]


def blocks(num_axes: int) -> Callable[[int], nn.Module]:
    return {1: CGNL1d, 2: CGNL2d, 3: CGNL3d}[num_axes]


@pytest.fixture(scope="module", params=NETWORKS, ids=[name for name, *_ in NETWORKS])
def case(request: pytest.FixtureRequest) -> tuple[str, NamedNetwork, torch.Tensor, str, str, tuple[int, ...]]:
    name, shape, place, classifier, axes = request.param
    torch.manual_seed(0)
    built = named_network(name, 5, shape, blocks=blocks)
    built.network.eval()
    return name, built, torch.randn(shape), place, classifier, axes


def test_a_network_starts_as_its_host_with_blocks_and_classifier_where_they_are_said_to_be(case) -> None:
    name, (network, classifier, places), x, place, expected_classifier, axes = case
    assert (places, classifier) == ((place,), (expected_classifier,))
    logits = network(x)
    assert logits.shape == (1, 5)
    trace = trace_blocks(network, x)
    assert {path: block.shape for path, block in trace.blocks.items()} == {place: axes}

    library, _, own_name = name.partition(":")
    host = (timm.create_model if library == "timm" else models.get_model)(
        own_name, num_classes=5, **({"img_size": 64} if "vit" in name else {})
    )
    missing = host.load_state_dict({k: v for k, v in network.state_dict().items() if "inserted_block" not in k})
    assert not missing.missing_keys
    assert torch.equal(host.eval()(x), logits)
    assert host.get_submodule(classifier[0]).out_features == 5


def test_a_network_comes_back_from_a_file_with_and_without_its_blocks(case, tmp_path: Path) -> None:
    name, (network, classifier, _), x, *_ = case
    torch.save(network.state_dict(), tmp_path / "net.pth")
    again = named_network(name, 5, tuple(x.shape), blocks=blocks, weights=tmp_path / "net.pth").network.eval()
    assert torch.equal(again(x), network(x))

    plain = named_network(name, 5, tuple(x.shape)).network.eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in plain.state_dict().items()}}, tmp_path / "plain.pth.tar")
    with_blocks = named_network(name, 5, tuple(x.shape), blocks=blocks, weights=str(tmp_path / "plain.pth.tar"))
    assert torch.equal(with_blocks.network.eval()(x), plain(x))

    with pytest.raises(CheckpointError, match=rf"{classifier[0]}\.weight has shape .*Only the classifier differs"):
        named_network(name, 7, tuple(x.shape), weights=tmp_path / "plain.pth.tar")
    new = named_network(name, 7, tuple(x.shape), weights=tmp_path / "plain.pth.tar", new_classifier=True).network
    assert new.eval()(x).shape == (1, 7)
    before = dict(plain.named_parameters())
    kept = [key for key, value in new.named_parameters() if torch.equal(value, before[key])]
    assert set(before) - set(kept) <= {f"{classifier[0]}.weight", f"{classifier[0]}.bias"}


def test_a_network_is_exported(tmp_path: Path) -> None:
    # tests/tasks/test_named_runs.py exports a ViT
    network = named_network("timm:test_convnext", 5, IMAGE, blocks=blocks).network.eval()
    assert export_onnx(network, tmp_path / "net.onnx", torch.zeros(IMAGE)) < 1e-4


def test_a_network_with_channels_last_is_exported(tmp_path: Path) -> None:
    # swin_t has 12 layers instead of 4, and takes four times as long
    network = SwinTransformer([4, 4], 24, [2, 2], [1, 2], [4, 4], num_classes=5).eval()
    insert_blocks(network, {"features.3.0": CGNL2d}, example_input=torch.zeros(IMAGE), layout="channels_last")
    # its windows are for one size
    assert export_onnx(network, tmp_path / "net.onnx", torch.zeros(IMAGE), dynamic=["batch"]) < 1e-4


def test_places_are_given_by_path_for_maps_and_tokens() -> None:
    network, _, places = named_network("timm:test_vit", 5, IMAGE, blocks=blocks, places=["blocks.0", "blocks.2"])
    assert places == ("blocks.0", "blocks.2")
    width = network.get_submodule("norm").normalized_shape[0]
    assert network.get_submodule("blocks.0.inserted_block").theta.in_channels == width
    swin = named_network("torchvision:swin_t", 5, IMAGE, blocks=blocks, places=["features.3.0"]).network
    assert swin.get_submodule("features.3.0.inserted_block").theta.weight.shape == (96, 192, 1, 1)
    assert len(named_network("timm:test_convnext", 5, IMAGE, blocks=blocks, num_blocks=2).places) == 2
    with pytest.raises(ValueError, match=r"blocks\['blocks.9'\]: .* has no module of this path"):
        named_network("timm:test_vit", 5, IMAGE, blocks=blocks, places=["blocks.9"])
    with pytest.raises(ValueError, match=r"places \('blocks.9'\) must be 'auto' or module paths"):
        named_network("timm:test_vit", 5, IMAGE, blocks=blocks, places="blocks.9")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "num_dropped"),
    [("timm:test_convnext", 1), ("torchvision:mobilenet_v3_small", 1), ("torchvision:regnet_y_400mf", 1)],
)
def test_dropout_stands_before_the_classifier(name: str, num_dropped: int) -> None:
    network = named_network(name, 5, IMAGE, dropout=1.0).network
    classifier = network.get_submodule(named_network(name, 5, IMAGE).classifier[0])
    torch.manual_seed(0)
    with torch.no_grad():
        logits = network.train()(torch.randn(4, *IMAGE[1:]))
    assert torch.equal(logits, classifier.bias.expand_as(logits)), "every feature is dropped"
    assert network.eval()(torch.randn(IMAGE)).std() > 0


def test_dropout_is_refused_where_the_classifier_is_no_linear_layer() -> None:
    with pytest.raises(ValueError, match=r"dropout \(0.5\) must be left out for torchvision:squeezenet1_1, whose"):
        named_network("torchvision:squeezenet1_1", 5, IMAGE, dropout=0.5)


def test_the_inputs_are_those_of_the_library() -> None:
    preset = models.RegNet_Y_400MF_Weights.IMAGENET1K_V1.transforms()
    found = inputs_of("torchvision:regnet_y_400mf", weights="IMAGENET1K_V1")
    assert [found.size, found.resize] == [*preset.crop_size, *preset.resize_size]
    assert (list(found.mean), list(found.std)) == (preset.mean, preset.std)
    assert v2.InterpolationMode(found.interpolation) == preset.interpolation
    # torchvision documents 112 pixels and the statistics of Kinetics
    assert inputs_of("torchvision:r3d_18", 3)[:3] == (112, 128, (0.43216, 0.394666, 0.37645))

    config = resolve_data_config(
        {}, pretrained_cfg=timm.get_pretrained_cfg("convnext_tiny.fb_in22k_ft_in1k_384").to_dict()
    )
    found = inputs_of("timm:convnext_tiny.fb_in22k_ft_in1k_384")
    assert (found.size, found.mean, found.std) == (config["input_size"][-1], config["mean"], config["std"])
    assert found.interpolation == config["interpolation"]
    assert found.resize == int(found.size / config["crop_pct"])
    assert inputs_of("timm:convnext_tiny", weights="fb_in22k_ft_in1k_384") == found
    assert inputs_of("mypackage.make_network") == Inputs() == Inputs(224, 256, found.mean, found.std, "bilinear")


def test_start_weights_are_said() -> None:
    assert start_weights("torchvision:regnet_y_400mf") == "start weights: none (random)"
    assert (
        start_weights("torchvision:regnet_y_400mf", weights="IMAGENET1K_V1")
        == "start weights: torchvision IMAGENET1K_V1 of regnet_y_400mf"
    )
    assert start_weights("torchvision:r3d_18", 3, "default") == "start weights: torchvision KINETICS400_V1 of r3d_18"
    assert start_weights("resnet50", weights="default") == "start weights: torchvision IMAGENET1K_V2 of resnet50"
    assert start_weights("resnet50", 3, "IMAGENET1K_V1") == "start weights: torchvision IMAGENET1K_V1 of resnet50"
    assert start_weights("timm:convnext_tiny", weights="fb_in22k") == "start weights: timm fb_in22k of convnext_tiny"
    assert start_weights("timm:convnext_tiny.fb_in22k", weights="default").endswith("timm fb_in22k of convnext_tiny")
    assert start_weights("timm:convnext_tiny", weights="a/net.pth") == "start weights: a/net.pth"
    for name, weights in (("timm:convnext_tiny", "fb_in23k"), ("mypackage.make_network", "default")):
        with pytest.raises(ValueError, match=rf"weights \({weights}\) must be a file"):
            start_weights(name, weights=weights)


@pytest.mark.parametrize(
    ("name", "num_axes", "message"),
    [
        ("timm:convnext_tinny", 2, r"arch \(timm:convnext_tinny\) must be one of timm's .*near names: convnext_tiny"),
        ("timm:convnext_tiny.fb_in23k", 2, r"has no weights fb_in23k; timm has .*fb_in22k"),
        ("timm:hf-hub:someone/network", 2, r"must be one of timm's image classifiers"),
        ("timm:convnext_tiny", 3, r"timm has networks for images, not for videos"),
        ("torchvision:maskrcnn_resnet50_fpn", 2, r"must be one of torchvision's image classifiers"),
        ("torchvision:r3d_18", 2, r"must be one of torchvision's image classifiers"),
        ("torchvision:resnet18", 3, r"must be one of torchvision's video classifiers"),
        ("vgg", 2, r"arch \(vgg\) must be a ResNet, timm:NAME"),
        ("keras:resnet", 2, r"arch \(keras:resnet\) must be a ResNet, timm:NAME"),
    ],
)
def test_unknown_names(name: str, num_axes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        named_network(name, 5, (1, 3) + (64,) * num_axes)


def test_weights_that_cannot_be_downloaded(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"Cannot get the weights RegNet_Y_400MF_Weights\.IMAGENET1K_V2 from"):
        named_network("torchvision:regnet_y_400mf", 5, IMAGE, weights="default")
    code = (
        "from cgnl.networks.named import named_network\n"
        "named_network('timm:test_convnext', 5, (1, 3, 64, 64), weights='default')"
    )
    monkeypatch.setenv("HF_HOME", str(torch_home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert "CheckpointError: Cannot get timm's weights r160_in1k of test_convnext: " in last
    assert last.endswith("Without a connection, give the path of a file as weights.")


def test_named_weights_of_torchvision(torch_home: Path) -> None:
    """A file in torchvision's cache, with the hash that its name asks for."""
    torch.manual_seed(0)
    host = models.get_model("regnet_y_400mf").eval()
    weights = models.RegNet_Y_400MF_Weights.IMAGENET1K_V2
    torch.save(host.state_dict(), torch_home / Path(weights.url).name)
    x = torch.randn(IMAGE)
    network = named_network("torchvision:regnet_y_400mf", 1000, IMAGE, blocks=blocks, weights="default").network
    assert torch.equal(network.eval()(x), host(x))
    other = named_network("torchvision:regnet_y_400mf", 7, IMAGE, weights="IMAGENET1K_V2").network
    assert other.fc.out_features == 7
    assert torch.equal(other.stem[0].weight, host.stem[0].weight)
    new = named_network("torchvision:regnet_y_400mf", 1000, IMAGE, weights="default", new_classifier=True).network
    assert not torch.equal(new.fc.weight, host.fc.weight)


OWN = """
from pathlib import Path
from torch import nn
Path(__file__).with_name("imported").touch()
class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.Conv2d(8, 8, 3, 4), nn.ReLU())
        self.g = nn.Linear(8, num_classes)
    def forward(self, x):
        return self.g(self.body(self.bn(x)).mean((2, 3)))
def make_network(num_classes):
    return Net(num_classes)
def of_no_arguments():
    return Net(1)
def of_another_kind(num_classes):
    return num_classes
"""


def test_a_function_of_ones_own_is_imported_only_where_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ownedtoo.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    name = "ownedtoo.make_network"
    for trust in ((), ("other",), ("own",), ("ownedtoo.make",)):
        with pytest.raises(
            ValueError, match=r"ownedtoo.make_network is code from another package.*trust=\('ownedtoo',\)"
        ):
            named_network(name, 5, IMAGE, trust=trust)
    assert inputs_of(name) == Inputs()
    assert start_weights(name, weights=tmp_path / "net.pth") == f"start weights: {tmp_path / 'net.pth'}"
    assert "ownedtoo" not in sys.modules
    assert not (tmp_path / "imported").exists()

    network, classifier, places = named_network(
        name, 5, IMAGE, blocks=blocks, places=["body.3"], dropout=0.5, trust=("ownedtoo",)
    )
    assert (tmp_path / "imported").exists()
    assert (classifier, places) == (("g",), ("body.3",))
    assert network.g.dropout == 0.5
    # names such as g and bn, which mean something in released blocks, stay
    torch.save(remove_blocks(network).state_dict(), tmp_path / "net.pth")
    again = named_network(name, 5, IMAGE, weights=tmp_path / "net.pth", trust=(name,)).network
    assert torch.equal(again.g.weight, network.g.weight)

    for function, message in (
        ("absent", r"the module ownedtoo has no absent"),
        ("of_no_arguments", r"failed with num_classes=5: TypeError"),
        ("of_another_kind", r"must return a torch.nn.Module, not int"),
    ):
        with pytest.raises(ValueError, match=message):
            named_network(f"ownedtoo.{function}", 5, IMAGE, trust=("ownedtoo",))
    with pytest.raises(ValueError, match=r"absent_package.make cannot be imported: there is no module absent_package"):
        named_network("absent_package.make", 5, IMAGE, trust=("absent_package",))


@pytest.mark.parametrize("name", ["timm:test_vit", "torchvision:regnet_y_400mf", "torchvision:swin_t"])
def test_cost_without_memory(name: str) -> None:
    """Counted on the CPU with the networks' own attention in parts, the numbers are the same."""
    timm.layers.set_fused_attn(False)
    try:
        from torch.utils.flop_counter import FlopCounterMode

        network = named_network(name, 5, IMAGE, blocks=blocks).network.eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(IMAGE))
    finally:
        timm.layers.set_fused_attn(True)
    cost = network_cost(lambda: named_network(name, 5, IMAGE, blocks=blocks).network, IMAGE)
    assert cost.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert cost.multiplications == counter.get_total_flops() // 2


def test_places_are_found_where_a_list_names_none_and_are_refused_twice() -> None:
    for places in ([], ["auto"], "auto", ()):
        assert named_network("torchvision:regnet_y_400mf", 5, IMAGE, blocks=blocks, places=places).places == (
            "trunk_output.block3.block3-4",
        )
    with pytest.raises(
        ValueError, match=r"places \(trunk_output.block3 trunk_output.block3\) must name each path once"
    ):
        named_network("torchvision:regnet_y_400mf", 5, IMAGE, blocks=blocks, places=["trunk_output.block3"] * 2)


def test_an_input_of_a_size_that_the_network_cannot_take() -> None:
    with pytest.raises(
        ValueError, match=r"arch \(torchvision:mvit_v2_s\) cannot run on an input of \[1, 3, 4, 32, 32\]: "
    ):
        named_network("torchvision:mvit_v2_s", 5, (1, 3, 4, 32, 32), blocks=blocks)
