"""C2D networks against networks of real 3d convolutions, the published sizes and costs, and plain loops."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

import cgnl
import tolerances
from cgnl.insertion import inserted_blocks, remove_blocks
from cgnl.networks import image, video
from cgnl.networks.checkpoints import CheckpointError
from cgnl.networks.cost import network_cost

STRIDES = [video.STRIDES_32_FRAMES, video.STRIDES_8_FRAMES]
BLOCKS_3D: dict[str, Callable[[int], nn.Module]] = {
    "cgnl": partial(cgnl.CGNL3d, groups=8),
    "cgnlx": partial(cgnl.CGNL3d, groups=8, kernel="rbf"),
    "nl": partial(cgnl.NonLocal3d, pairwise="embedded_gaussian", scale=True, subsample=True, bias=True),
    "residual": partial(cgnl.ResidualBlock3d, groups=8),
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def awake(network: nn.Module) -> nn.Module:
    """Norms with random weights: blocks are no longer the identity."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                module.weight.uniform_(0.5, 1)
                module.bias.uniform_(-0.1, 0.1)
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 2)
    return network


def assert_close(a: Tensor, b: Tensor, tolerance: float, zero: float = 0.0) -> None:
    assert (a - b.view_as(a)).norm() <= tolerance * b.norm() + zero


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    ("arch", "block", "num_blocks", "strides"),
    [
        ("resnet18", None, 1, video.STRIDES_32_FRAMES),
        ("resnet18", None, 1, video.STRIDES_8_FRAMES),
        ("resnet18", "cgnlx", 1, (3, 1, 1)),
        ("resnet18", "residual", 1, (1, 3, 1)),
        ("resnet18", "nl", 2, video.STRIDES_32_FRAMES),
        ("resnet18", "cgnl", 2, video.STRIDES_8_FRAMES),
        ("resnet50", "cgnl", 5, video.STRIDES_32_FRAMES),
    ],
)
def test_equals_a_network_of_3d_convolutions(
    arch: str,
    block: str | None,
    num_blocks: int,
    strides: tuple[int, int, int],
    training: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "studies")
    from conv3d_network import Conv3dResNet

    network = video.c2d_resnet(arch, block, num_blocks, num_classes=5, dropout=0.0, temporal_strides=strides)
    awake(network).double().train(training)
    places = image.block_places(arch, num_blocks) if block else []
    reference = (
        Conv3dResNet(arch, strides, 5, dict.fromkeys(places, BLOCKS_3D.get(block or ""))).double().train(training)
    )
    reference.load_frames_weights(network.state_dict())
    x, y = (torch.randn(2, 3, 9, 40, 33, generator=torch.Generator().manual_seed(1)).double() for _ in range(2))
    logits, expected = network(x.requires_grad_()), reference(y.requires_grad_())
    assert_close(logits, expected, 1e-11)
    for output in (logits, expected):
        F.cross_entropy(output, torch.tensor([1, 3])).backward()
    assert_close(x.grad, y.grad, 1e-9)
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    assert len(gradients) == sum(1 for _ in network.parameters())
    for name, parameter in network.named_parameters():
        # biases before a norm, and phi's before a softmax, have gradients that are zero in truth
        assert_close(parameter.grad, gradients[name], 1e-9, tolerances.ZERO_FLOAT64)
    buffers = dict(reference.named_buffers())
    for name, buffer in network.named_buffers():
        assert_close(buffer.double(), buffers[name].double(), 1e-11)


@pytest.mark.parametrize("strides", STRIDES)
def test_one_frame_is_the_image_network(strides: tuple[int, int, int]) -> None:
    host = awake(models.resnet18(num_classes=5)).eval()
    network = video.c2d_resnet18(num_classes=5, temporal_strides=strides).eval()
    network.load_state_dict(host.state_dict())
    assert list(network.state_dict()) == list(host.state_dict())
    x = torch.randn(2, 3, 45, 64)
    assert torch.equal(network(x[:, :, None]), host(x))


@pytest.mark.parametrize(
    ("strides", "frames", "lengths"),
    [
        (video.STRIDES_32_FRAMES, 32, {"conv1": 16, "pool1": 8, "layer1": 8, "rest": 4}),
        (video.STRIDES_8_FRAMES, 8, {"conv1": 8, "pool1": 8, "layer1": 8, "rest": 4}),
    ],
)
def test_sizes_are_those_of_the_table(strides: tuple[int, int, int], frames: int, lengths: dict[str, int]) -> None:
    sizes: dict[str, tuple[int, ...]] = {}

    def record(name: str) -> Callable[..., None]:
        return lambda module, args, output: sizes.update({name: tuple(output.shape)})

    with torch.device("meta"), torch.no_grad():
        network = video.c2d_resnet50("cgnl", 5, temporal_strides=strides).eval()
        for name in ("conv1", "pool1", "layer1.2", "pool2", "layer2.3", "layer3.5", "layer4.2"):
            network.get_submodule(name).register_forward_hook(record(name))
        for path, block in inserted_blocks(network).items():
            block.register_forward_hook(record(f"block after {path}"))
        assert network(torch.empty(1, 3, frames, 224, 224)).shape == (1, 1000)
    rest = lengths["rest"]
    assert sizes == {
        "conv1": (lengths["conv1"], 64, 112, 112),
        "pool1": (1, 64, lengths["pool1"], 56, 56),
        "layer1.2": (lengths["layer1"], 256, 56, 56),
        "pool2": (1, 256, rest, 56, 56),
        "layer2.3": (rest, 512, 28, 28),
        "layer3.5": (rest, 1024, 14, 14),
        "layer4.2": (rest, 2048, 7, 7),
        **{f"block after layer2.{i}": (1, 512, rest, 28, 28) for i in (1, 3)},
        **{f"block after layer3.{i}": (1, 1024, rest, 14, 14) for i in (1, 3, 5)},
    }


@pytest.mark.parametrize("arch", image.ARCHITECTURES)
def test_blocks_stand_at_the_places_of_the_paper(arch: str) -> None:
    with torch.device("meta"):
        network = getattr(video, f"c2d_{arch}")("cgnl", max(image._PLACES[arch]))
    assert list(inserted_blocks(network)) == image.block_places(arch, max(image._PLACES[arch]))


def test_multiplications_are_those_of_the_paper() -> None:
    def cost(block: str | None, num_blocks: int) -> int:
        return network_cost(lambda: video.c2d_resnet50(block, num_blocks), (1, 3, 32, 224, 224)).multiplications

    plain = cost(None, 1)
    assert plain / 1e9 == pytest.approx(20.4, abs=0.05)
    assert 100 * (cost("cgnl", 1) / plain - 1) == pytest.approx(6.3, abs=0.05)
    assert 100 * (cost("cgnl", 5) / plain - 1) == pytest.approx(31.4, abs=0.05)


def test_nl_is_that_of_the_non_local_code_and_options_reach_the_blocks() -> None:
    block = video.c2d_resnet18("nl").get_submodule("layer3.0.inserted_block")
    assert isinstance(block, cgnl.NonLocal3d)
    assert (block.subsample, block.scale, block.pairwise) == (True, True, "embedded_gaussian")
    assert all(block.get_submodule(name).bias is not None for name in ("theta", "phi", "g"))
    bare = video.c2d_resnet18("nl", subsample=False, bias=False, scale=False, pairwise="dot_product", norm="group")
    block = bare.get_submodule("layer3.0.inserted_block")
    assert (block.subsample, block.scale, block.pairwise, block.theta.bias) == (False, False, "dot_product", None)
    assert isinstance(block.norm, nn.GroupNorm)

    block = video.c2d_resnet18("cgnlx", groups=4, scale="mean", channel_reduction=4).layer3[0].inserted_block
    assert isinstance(block, cgnl.CGNL3d)
    assert (block.groups, block.scale, block.theta.weight.shape) == (4, "mean", (64, 256, 1, 1, 1))
    assert isinstance(block.kernel, cgnl.GaussianRBF)
    assert block.theta.bias is None
    own = video.c2d_resnet18(lambda channels: nn.Conv3d(channels, channels, 1))
    assert own.layer3[0].inserted_block.in_channels == 256


def test_weights_of_images_and_videos(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    host = awake(models.resnet18(num_classes=7))
    torch.save(host.state_dict(), path)
    network = video.c2d_resnet18("cgnl", weights=path).eval()
    x = torch.randn(1, 3, 1, 33, 33)
    assert torch.equal(network(x), host.eval()(x[:, :, 0]))
    with pytest.raises(CheckpointError, match=r"fc\.weight has shape \[7, 512\] instead of \[9, 512\]"):
        video.c2d_resnet18(num_classes=9, weights=path)
    adapted = video.c2d_resnet18(num_classes=9, weights=path, new_classifier=True)
    assert adapted.fc.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1)

    for block in ("cgnl", "nl"):
        source = awake(image.resnet18(block, 2, num_classes=7)).eval()
        torch.save(source.state_dict(), path)
        as_images = {"bias": False, "subsample": False} if block == "nl" else {}
        network = video.c2d_resnet18(block, 2, weights=path, **as_images).eval()
        assert network.layer2[0].inserted_block.theta.weight.shape == (64, 128, 1, 1, 1)
        torch.testing.assert_close(network(x), source(x[:, :, 0]))

    source = awake(video.c2d_resnet18("nl", 2, num_classes=7))
    torch.save({"state_dict": {f"network.{key}": value for key, value in source.state_dict().items()}}, path)
    network = video.c2d_resnet18("nl", 2, weights=path)
    for key, value in source.state_dict().items():
        assert torch.equal(network.state_dict()[key], value)
    with pytest.raises(CheckpointError, match=r"layer2\.0\.inserted_block\.theta\.bias is unknown"):
        video.c2d_resnet18("nl", 2, weights=path, bias=False)
    with pytest.raises(CheckpointError, match=r"theta\.weight has shape \[128, 256, 1, 1, 1\] instead of"):
        image.resnet18("cgnl", weights=path)


@pytest.mark.parametrize("size", [(32, 32), (224, 224), (256, 288)])
def test_fully_convolutional_head_against_a_loop(size: tuple[int, int]) -> None:
    network = video.c2d_resnet18(num_classes=6, head="fully_convolutional").double().eval()
    features: list[Tensor] = []
    network.layer4[1].register_forward_hook(lambda module, args, output: features.append(output))
    video_input = torch.randn(2, 3, 9, *size).double()
    with torch.no_grad():
        nn.init.normal_(network.fc.weight)
        output = network(video_input)
        (maps,) = features
        _, channels, height, width = maps.shape
        maps = maps.view(2, -1, channels, height, width)
        assert maps.shape[1] == 2
        window_height, window_width = min(7, height), min(7, width)
        for sample, log_mean in zip(maps, output, strict=True):
            probabilities = [
                network.fc(sample[:, :, i : i + window_height, j : j + window_width].mean((0, 2, 3))).softmax(0)
                for i in range(height - window_height + 1)
                for j in range(width - window_width + 1)
            ]
            torch.testing.assert_close(log_mean.softmax(0), torch.stack(probabilities).mean(0))
        torch.testing.assert_close(output.exp().sum(1), torch.ones(2).double())
        network.head = "average"
        if len(probabilities) == 1:
            torch.testing.assert_close(network(video_input).log_softmax(1), output)
        else:
            assert not torch.allclose(network(video_input).log_softmax(1), output)


def test_dropout_stands_before_the_classifier_in_training_only() -> None:
    for head in ("average", "fully_convolutional"):
        network = video.c2d_resnet18(num_classes=4, dropout=1.0, head=head)
        network.fc.bias.data = torch.tensor([1.0, 2.0, 3.0, 4.0])
        x = torch.randn(2, 3, 1, 32, 32)
        expected = network.fc.bias.expand(2, 4).log_softmax(1)
        torch.testing.assert_close(network(x).log_softmax(1), expected)
        assert not torch.allclose(network.eval()(x).log_softmax(1), expected)


@pytest.mark.parametrize(("block", "head"), [("cgnl", "average"), ("nl", "fully_convolutional")])
def test_compiles_whole_and_exports(block: str, head: video.Head) -> None:
    network = awake(video.c2d_resnet18(block, 2, num_classes=5, head=head)).eval()
    x = torch.randn(2, 3, 9, 40, 40)
    expected = network(x)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=tolerances.FLOAT32_OTHER_KERNELS, atol=1e-5)
    exported = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    more = torch.cat([x, x[:1]])
    torch.testing.assert_close(exported.module()(more), network(more), rtol=tolerances.FLOAT32_OTHER_KERNELS, atol=1e-5)


@pytest.mark.parametrize("block", ["cgnl", "nl"])
def test_a_sample_alone_is_as_in_a_batch(block: str) -> None:
    network = awake(video.c2d_resnet18(block, 2, num_classes=5)).double().eval()
    x = torch.randn(3, 3, 9, 40, 40).double()
    batch = network(x)
    assert batch.std(0).min() > 0
    for row, sample in zip(batch, x, strict=True):
        torch.testing.assert_close(network(sample[None])[0], row, rtol=1e-10, atol=1e-10)
    x[1] = torch.nan
    assert torch.equal(network(x).isfinite().all(1), torch.tensor([True, False, True]))


@pytest.mark.parametrize("block", ["cgnl", "nl", "residual"])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.channels_last_3d])
def test_channels_last_gives_the_same_without_copies(block: str, memory_format: torch.memory_format) -> None:
    network = awake(video.c2d_resnet18(block, 2, num_classes=5, dropout=0.0))
    converted = copy.deepcopy(network).to(memory_format=memory_format)
    assert converted.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 12, 40, 40)
    addresses: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            addresses.update({f"{name} in": args[0].data_ptr(), f"{name} out": output.data_ptr()})

        return hook

    names = ("relu", "pool1", "layer1.0", "layer1.1", "pool2", "layer2.0", "layer2.0.inserted_block", "layer2.1")
    for name in names:
        converted.get_submodule(name).register_forward_hook(note(name))
    logits, expected = converted(x.contiguous(memory_format=torch.channels_last_3d)), network(x)
    torch.testing.assert_close(logits, expected, rtol=tolerances.FLOAT32_OTHER_KERNELS, atol=1e-4)
    for before, after in zip(names, names[1:], strict=False):
        assert addresses[f"{before} out"] == addresses[f"{after} in"], f"a copy between {before} and {after}"
    for output in (logits, expected):
        F.cross_entropy(output, torch.tensor([1, 3])).backward()
    for own, other in zip(converted.parameters(), network.parameters(), strict=True):
        assert_close(own.grad, other.grad, 1e-3, 1e-5)


def test_to_moves_and_casts() -> None:
    network = video.c2d_resnet18("cgnl").to("meta", torch.float64, memory_format=torch.channels_last)
    parameters = list(network.parameters())
    assert all(p.device.type == "meta" and p.dtype == torch.float64 for p in parameters)
    assert network.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_blocks_are_listed_and_taken_out(tmp_path: Path) -> None:
    network = awake(video.c2d_resnet18("cgnl", 2, num_classes=5)).eval()
    plain = video.c2d_resnet18(num_classes=5).eval()
    plain.load_state_dict({key: value for key, value in network.state_dict().items() if "inserted" not in key})
    x = torch.randn(1, 3, 5, 33, 33)
    expected = network(x)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(x), expected)
        assert [type(block) for block in inserted_blocks(twin).values()] == [cgnl.CGNL3d] * 2
        remove_blocks(twin)
        assert inserted_blocks(twin) == {}
        assert list(twin.state_dict()) == list(plain.state_dict())
        assert torch.equal(twin(x), plain(x))
    assert not torch.allclose(expected, plain(x))
    with pytest.raises(ValueError, match="already inserted"):
        cgnl.insert_blocks(network, {"layer3.0": cgnl.CGNL2d}, example_input=x)
    cgnl.insert_blocks(plain, {"layer2.1": cgnl.CGNL2d}, example_input=x)
    assert torch.equal(plain(x), remove_blocks(network)(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"block": "cgln"},
            r"block \('cgln'\) must be one of none, nl, cgnl, cgnlx, residual, .* or a class of your own",
        ),
        ({"block": "nl", "num_blocks": 5}, r"num_blocks \(5\) must be 1 or 2 for resnet18"),
        ({"block": "nl", "scale": "mean"}, r"scale \('mean'\) must be one of True, False for block 'nl'"),
        ({"block": "cgnl", "groups": 3}, r"channels \(256\) must be divisible by groups \(3\)"),
        ({"temporal_strides": (2, 2)}, r"temporal_strides \(\(2, 2\)\) must be three integers of at least 1"),
        ({"temporal_strides": (2, 0, 2)}, r"temporal_strides \(\(2, 0, 2\)\) must be three integers"),
        ({"head": "max"}, r"head \('max'\) must be one of average, fully_convolutional"),
        ({"dropout": 2.0}, r"dropout \(2\.0\) must be between 0 and 1"),
        ({"num_classes": 0}, r"num_classes \(0\) must be at least 1"),
    ],
)
def test_wrong_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        video.c2d_resnet18(**options)
    with pytest.raises(ValueError, match=r"arch \('vgg'\) must be one of"):
        video.c2d_resnet("vgg")


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 4, 32, 32), (2, 3, 0, 32, 32), (0, 3, 4, 32, 32)])
def test_wrong_videos(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"video \(.*\) must be \[B, 3, T, H, W\]"):
        video.c2d_resnet18()(torch.zeros(shape))


def test_a_block_that_changes_the_shape() -> None:
    network = video.c2d_resnet18(lambda channels: nn.Conv3d(channels, 2 * channels, 1))
    with pytest.raises(ValueError, match="block must keep its input's shape, but made"):
        network(torch.zeros(1, 3, 1, 32, 32))
