"""Image networks: places, weights, golden logits, and costs against torchvision's published ones."""

import copy
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import WeightsEnum
from torchvision.models._api import Weights

import cgnl
from cgnl.networks import image, weights
from cgnl.networks.checkpoints import CheckpointError, from_released
from cgnl.networks.cost import network_cost

GOLDEN = Path(__file__).parents[1] / "golden"
BLOCKS: list[str | None] = [None, "nl", "cgnl", "cgnlx", "residual"]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ["base", "cgnl", "cgnlx", "nl"])
def test_golden_networks(name: str) -> None:
    golden = json.loads((GOLDEN / f"resnet50_{name}.json").read_text())
    released = {}
    for i, (key, shape) in enumerate(golden["keys"]):
        if key.endswith("num_batches_tracked"):
            released[key] = torch.tensor(0)
            continue
        n = np.random.RandomState(golden["base_seed"] + i).standard_normal(shape)
        if key.endswith("running_var"):
            n = 1 + 0.1 * abs(n)
        elif key.endswith("running_mean") or key.endswith("bias"):
            n = 0.1 * n
        elif n.ndim >= 2:
            n = n * (1 / n[0].size) ** 0.5
        else:
            n = 0.5 + 0.05 * n
        released[key] = torch.from_numpy(n)
    network = image.resnet50(
        None if name == "base" else name,
        num_classes=len(golden["logits"][0]),
        **({"base": {}, "nl": {"scale": True}}.get(name, {"norm": "group", "groups": 8})),
    )
    network.double().eval().load_state_dict(from_released(released))
    x = torch.from_numpy(np.random.RandomState(golden["input_seed"]).standard_normal(golden["input_shape"]))
    with torch.no_grad():
        logits = network(x)
    torch.testing.assert_close(logits, torch.tensor(golden["logits"], dtype=torch.float64), rtol=1e-9, atol=0)


def test_places_are_those_of_the_paper() -> None:
    res3, late = ["layer2.1", "layer2.3"], {"resnet50": (1, 3, 5), "resnet101": (6, 13, 20)}
    assert image.block_places("resnet50", 1) == ["layer3.4"]
    assert image.block_places("resnet101", 1) == ["layer3.21"]
    assert image.block_places("resnet152", 1) == ["layer3.34"]
    for arch, elements in late.items():
        assert image.block_places(arch, 5) == [*res3, *(f"layer3.{i}" for i in elements)]
    for arch in image.ARCHITECTURES:
        with torch.device("meta"):
            network = getattr(image, arch)("cgnl", max(image._PLACES[arch]))
        last_of_res4 = len(network.layer3) - 1
        assert image.block_places(arch, 1) == [f"layer3.{last_of_res4 - 1}"]
        assert all(isinstance(m, nn.Module) for m in map(network.get_submodule, image._PLACES[arch][1]))
        found = [key.split(".inserted_block")[0] for key in network.state_dict() if "theta.weight" in key]
        assert found == image.block_places(arch, len(found))


def test_networks_are_reached_from_the_package() -> None:
    code = "import cgnl; cgnl.networks.image.resnet18; cgnl.networks.checkpoints.from_released"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_numbers_of_blocks_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"num_blocks \(3\) must be 1 or 5 for resnet50"):
        image.resnet50("cgnl", 3)
    with pytest.raises(ValueError, match=r"num_blocks \(5\) must be 1 or 2 for resnet18"):
        image.resnet18("nl", 5)
    with pytest.raises(ValueError, match=r"arch \('vgg'\) must be one of resnet18, "):
        image.resnet("vgg")


@pytest.mark.parametrize("block", BLOCKS)
def test_new_blocks_leave_the_network_as_it_is(block: str | None, tmp_path: Path) -> None:
    host = models.resnet18(num_classes=5).eval()
    torch.save(host.state_dict(), tmp_path / "host.pth")
    network = image.resnet18(block, weights=tmp_path / "host.pth").eval()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(network(x), host(x))
    host_keys = [key for key in network.state_dict() if "inserted_block" not in key]
    assert host_keys == list(host.state_dict())
    assert (len(host_keys) < len(network.state_dict())) == (block is not None)


def test_block_options_reach_the_block() -> None:
    network = image.resnet18("cgnl", groups=4, norm="group", scale="mean", channel_reduction=4)
    block = network.layer3[0].inserted_block
    assert isinstance(block, cgnl.CGNL2d)
    assert block.theta.weight.shape == (64, 256, 1, 1)
    assert block.z.weight.shape == (256, 16, 1, 1)
    assert isinstance(block.norm, nn.GroupNorm)

    residual = image.resnet18("residual", groups=2).layer3[0].inserted_block
    assert isinstance(residual, cgnl.ResidualBlock2d)
    assert residual.z.weight.shape == (256, 64, 1, 1)

    options = {"pairwise": "concatenation", "scale": False}
    keys = image.resnet18("nl", **options).state_dict()
    direct = cgnl.NonLocal2d(256, **options).state_dict()
    assert {key.split("inserted_block.")[1] for key in keys if "inserted_block" in key} == set(direct)

    own = image.resnet18(lambda channels: nn.Conv2d(channels, channels, 1))
    assert own.layer3[0].inserted_block.in_channels == 256


@pytest.mark.parametrize(
    ("options", "same_as"),
    [
        ({"block": "cgnlx"}, {"block": "cgnl", "kernel": "rbf"}),
        ({"block": "cgnlx", "order": 4}, {"block": "cgnl", "kernel": cgnl.GaussianRBF(order=4)}),
        (
            {"block": "cgnlx", "kernel": cgnl.GaussianRBF(gamma=0.3)},
            {"block": "cgnl", "kernel": cgnl.GaussianRBF(gamma=0.3)},
        ),
        ({"block": "nl"}, {"block": "nl", "scale": True}),
    ],
)
def test_names_that_mean_the_same_block(options: dict, same_as: dict) -> None:
    a, b, other = (image.resnet18(**kw).eval() for kw in (options, same_as, {"block": "cgnl"}))
    for network in (a, b, other):
        nn.init.ones_(network.layer3[0].inserted_block.norm.weight)
        network.layer3[0].inserted_block.theta.weight.data.mul_(100)
        network.layer3[0].inserted_block.phi.weight.data.mul_(100)
    b.load_state_dict(a.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(a(x), b(x))
    if options["block"] == "cgnlx":
        other.load_state_dict(a.state_dict())
        assert not torch.allclose(a(x), other(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": "cgln"}, r"block \('cgln'\) must be one of none, nl, cgnl, cgnlx"),
        ({"block": "nl", "g_std": 0.5}, r"g_std is not an option of block nl, which has: channel_reduction, "),
        ({"block": "residual", "g_std": 0.5}, "g_std is not an option of block residual"),
        ({"block": "none", "g_std": 0.5}, "g_std is not an option of block none, which has: none"),
        ({"block": None, "g_std": 0.5}, "g_std is not an option of block none"),
        ({"block": "nl", "scale": "sqrt"}, r"scale \('sqrt'\) must be one of True, False for block 'nl'"),
        ({"block": "residual", "scale": "mean"}, "scale is not an option of block residual"),
        ({"block": "cgnl", "scale": True}, r"scale \(True\) must be one of None, 'sqrt', 'mean' for a CGNL block"),
        ({"block": "cgnl", "channel_reduction": 3}, r"channels \(256\) must be divisible by channel_reduction \(3\)"),
        ({"block": "cgnlx", "kernel": "dot"}, r"kernel \('dot'\) must be 'rbf' for block 'cgnlx'"),
        ({"block": "cgnl", "groups": 3}, r"divisible by groups \(3\)"),
        ({"dropout": 1.5}, r"dropout \(1\.5\) must be between 0 and 1"),
        ({"num_classes": 0}, r"num_classes \(0\) must be at least 1"),
        ({"weights": "IMAGENET1K_V9"}, r"weights \(IMAGENET1K_V9\) must be a file or one of IMAGENET1K_V1"),
        ({"weights": models.ResNet50_Weights.IMAGENET1K_V1}, r"one of IMAGENET1K_V1, DEFAULT for resnet18"),
    ],
)
def test_wrong_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image.resnet18(**options)


def test_a_misspelt_option_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"group is not an option of block cgnl, which has: .*groups"):
        image.resnet18("cgnl", group=4)


@pytest.mark.parametrize("block", [None, "none", "nl", cgnl.CGNL2d])
def test_an_option_that_the_block_does_not_have_is_refused_by_name(block) -> None:
    with pytest.raises(ValueError, match="groups is not an option of"):
        image.resnet18(block, groups=8)


def test_dropout_stands_before_the_classifier_in_training_only() -> None:
    network = image.resnet18(num_classes=4, dropout=0.5)
    features = torch.ones(1, 512)
    assert torch.equal(network.eval().fc(features), nn.functional.linear(features, network.fc.weight, network.fc.bias))
    seen: list[Tensor] = []
    identity = copy.deepcopy(network.train().fc)
    identity.weight = nn.Parameter(torch.eye(512))
    identity.bias = None
    for _ in range(20):
        seen.append(identity(features))
    values = torch.cat(seen)
    assert set(values.unique().tolist()) == {0.0, 2.0}
    assert 0.45 < (values == 0).float().mean() < 0.55
    assert list(network.fc.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize(
    "weights", ["IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1", models.ResNet18_Weights.IMAGENET1K_V1]
)
def test_weights_by_name(torch_home: Path, weights: str | WeightsEnum) -> None:
    host = models.resnet18().eval()
    file_name = models.ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    # as the file of torchvision: the legacy format, and no counters of batches
    state_dict = {key: value for key, value in host.state_dict().items() if "num_batches" not in key}
    torch.save(state_dict, torch_home / file_name, _use_new_zipfile_serialization=False)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(image.resnet18("cgnl", weights=weights).eval()(x), host(x))

    adapted = image.resnet18("cgnl", num_classes=50, weights=weights)
    assert adapted.fc.weight.shape == (50, 512)
    assert torch.equal(adapted.layer4[1].conv2.weight, host.layer4[1].conv2.weight)
    assert adapted.fc.weight.std().item() == pytest.approx((2 / 50) ** 0.5, rel=0.05), "Kaiming, fan-out"
    assert not adapted.fc.bias.any()


def test_weights_that_cannot_be_downloaded(torch_home: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Cannot get the weights ResNet18_Weights\.IMAGENET1K_V1 from http"):
        image.resnet18(weights="IMAGENET1K_V1")
    assert not any(torch_home.iterdir())


def test_a_download_is_checked_against_its_hash(torch_home: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.pth"
    torch.save({"fc.weight": torch.ones(2, 2)}, source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()

    def published(prefix: str) -> WeightsEnum:
        path = tmp_path / f"net-{prefix}.pth"
        path.write_bytes(source.read_bytes())

        class Published(WeightsEnum):
            V1 = Weights(url=path.as_uri(), transforms=nn.Identity, meta={})

        return Published.V1

    assert torch.equal(weights._download(published(digest[:8]))["fc.weight"], torch.ones(2, 2))
    with pytest.raises(CheckpointError, match="invalid hash value"):
        weights._download(published("00000000"))
    assert [path.name for path in torch_home.iterdir()] == [f"net-{digest[:8]}.pth"]


def test_weights_from_a_file_must_fit(tmp_path: Path) -> None:
    path = tmp_path / "seven.pth"
    source = image.resnet18("cgnl", num_classes=7)
    nn.init.normal_(source.layer3[0].inserted_block.norm.weight)
    torch.save(source.state_dict(), path)

    same = image.resnet18("cgnl", weights=path)
    assert all(torch.equal(a, b) for a, b in zip(same.state_dict().values(), source.state_dict().values(), strict=True))

    message = r"fc\.weight has shape \[7, 512\] instead of \[9, 512\]; fc\.bias .* new_classifier=True .* starts"
    with pytest.raises(CheckpointError, match=message):
        image.resnet18("cgnl", num_classes=9, weights=path)
    adapted = image.resnet18("cgnl", num_classes=9, weights=str(path), new_classifier=True)
    assert adapted.fc.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    kept, loaded = source.state_dict(), adapted.state_dict()
    assert all(torch.equal(kept[key], loaded[key]) for key in kept if not key.startswith("fc."))
    same_classes = image.resnet18("cgnl", num_classes=7, weights=path, new_classifier=True)
    assert not torch.equal(same_classes.fc.weight, source.fc.weight)

    with pytest.raises(CheckpointError, match=r"z\.weight has shape .* groups=8, channel_reduction=2, norm='batch'"):
        image.resnet18("cgnl", groups=2, weights=path)
    with pytest.raises(CheckpointError, match=r"layer3\.0\.inserted_block\.theta\.weight is unknown"):
        image.resnet18(weights=path)
    with pytest.raises(CheckpointError, match=r"layer2\.0\.inserted_block\.theta\.weight is missing"):
        image.resnet18("cgnl", 2, weights=path)
    with pytest.raises(CheckpointError, match="does not exist"):
        image.resnet18(weights=tmp_path / "absent.pth")
    torch.save({"theta.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"seven\.pth holds no ResNet"):
        image.resnet18(weights=path)


@pytest.mark.parametrize("arch", image.ARCHITECTURES)
def test_costs_are_torchvisions(arch: str) -> None:
    published = models.get_model_weights(arch)["IMAGENET1K_V1"].meta
    cost = network_cost(getattr(image, arch), (1, 3, 224, 224))
    assert cost.parameters == published["num_params"]
    assert cost.multiplications / 1e9 == pytest.approx(published["_ops"], abs=1e-3)


@pytest.mark.parametrize(
    ("block", "products"), [("cgnl", 3 * 1024 * 512 + 1024 * 512 // 8), ("nl", 4 * 1024 * 512 + 2 * 196 * 512)]
)
def test_multiplications_of_a_block(block: str, products: int) -> None:
    def cost(build: Callable[[], nn.Module]) -> int:
        return network_cost(build, (1, 3, 224, 224)).multiplications

    plain, added = cost(image.resnet50), cost(lambda: image.resnet50(block)) - cost(image.resnet50)
    assert added == 196 * products
    if block == "cgnl":
        assert 100 * added / plain == pytest.approx(7.8, abs=0.1), "the share of the multiplications in %"


def test_of_blocks_without_a_shell_in_a_file_no_number_is_said(tmp_path):
    torch.save(image.resnet18("se", num_classes=3).state_dict(), tmp_path / "se.pth")
    with pytest.raises(CheckpointError, match=r"excite\.bias is unknown to the network\.$"):
        image.resnet18("none", num_classes=3, weights=tmp_path / "se.pth")
