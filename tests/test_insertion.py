"""Blocks go into real networks, and everything that worked with the network goes on working."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import (
    convnext,
    densenet,
    mobilenet_v3_small,
    resnet,
    resnet18,
    swin_transformer,
    vision_transformer,
)
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.video import resnet as video_resnet

import cgnl
from cgnl.insertion import BLOCK_NAME, inserted_blocks

make_1d = partial(cgnl.CGNL1d, groups=4)
make_2d = partial(cgnl.CGNL2d, groups=4)
make_3d = partial(cgnl.CGNL3d, groups=4)


@dataclass(frozen=True)
class Host:
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    path: str
    make_block: Callable[[int], nn.Module] = make_2d
    layout: str = "channels_first"
    key: str | None = None

    @property
    def block_key(self) -> str:
        return self.key or f"{self.path}.{BLOCK_NAME}"

    def make(self) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        return self.build().eval(), torch.randn(self.shape)

    def insert(self, model: nn.Module, x: Tensor) -> nn.Module:
        torch.manual_seed(1)
        return cgnl.insert_blocks(model, {self.path: self.make_block}, example_input=x, layout=self.layout)

    def make_inserted(self) -> tuple[nn.Module, Tensor]:
        model, x = self.make()
        return _awaken(self.insert(model, x)), x


class AudioNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(2, 16, 5, stride=2, bias=False), nn.BatchNorm1d(16), nn.ReLU(inplace=True))
        self.body = nn.Conv1d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(self.stem(x))).mean(-1))


def small_resnet() -> nn.Module:
    return resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)


def convnext_host() -> nn.Module:
    stages = [convnext.CNBlockConfig(16, 32, 1), convnext.CNBlockConfig(32, None, 1)]
    return convnext.ConvNeXt(stages, num_classes=10)


def swin_host() -> nn.Module:
    return swin_transformer.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=10)


def vit_host() -> nn.Module:
    model = vision_transformer.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10)
    nn.init.normal_(model.heads.head.weight)  # its classifier starts at zero
    return model


def densenet_host() -> nn.Module:
    return densenet.DenseNet(8, (2, 2), 16, num_classes=10)


def video_host() -> nn.Module:
    conv_makers = [video_resnet.Conv3DSimple] * 4
    return video_resnet.VideoResNet(
        video_resnet.BasicBlock, conv_makers, [1, 1, 1, 1], video_resnet.BasicStem, num_classes=10
    )


def sequential_host() -> nn.Module:
    stage = nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(nn.Conv2d(3, 16, 3), stage, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def timm_host(name: str, **sizes: object) -> Callable[[], nn.Module]:
    return partial(timm.create_model, name, pretrained=False, num_classes=10, **sizes)


timm_convnext = timm_host("convnext_atto", depths=(1, 1, 1, 1), dims=(16, 16, 32, 32))
timm_vit = timm_host("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)
timm_swin = timm_host(
    "swin_tiny_patch4_window7_224",
    img_size=32,
    window_size=4,
    embed_dim=16,
    depths=(2, 2),
    num_heads=(2, 4),
)

IMAGE = (2, 3, 32, 32)
HOSTS = {
    "resnet18": Host(resnet18, IMAGE, "layer3.0"),
    "resnet-stage": Host(small_resnet, IMAGE, "layer3", key=f"{BLOCK_NAME}_after_layer3"),
    "mobilenet_v3": Host(mobilenet_v3_small, (2, 3, 64, 64), "features.3"),
    "convnext": Host(convnext_host, IMAGE, "features.1.0"),
    "densenet-block": Host(
        densenet_host, IMAGE, "features.denseblock1", key=f"{BLOCK_NAME}_after_features_denseblock1"
    ),
    "swin": Host(swin_host, IMAGE, "features.1.1", layout="channels_last"),
    "vit": Host(vit_host, IMAGE, "encoder.layers.encoder_layer_0", make_1d, "channels_last"),
    "r3d": Host(video_host, (2, 3, 4, 16, 16), "layer2.0", make_3d),
    "timm-convnext": Host(timm_convnext, (2, 3, 64, 64), "stages.1.blocks.0"),
    "timm-regnet": Host(timm_host("regnetx_002"), IMAGE, "s3.b2"),
    "timm-regnet-stage": Host(timm_host("regnetx_002"), IMAGE, "s3", key=f"{BLOCK_NAME}_after_s3"),
    "timm-resnext": Host(timm_host("resnext26ts"), IMAGE, "stages.0.1"),
    "timm-vit": Host(timm_vit, IMAGE, "blocks.0", make_1d, "channels_last"),
    "timm-swin": Host(timm_swin, IMAGE, "layers.0", layout="channels_last"),
    "audio": Host(AudioNet, (2, 2, 33), "body", make_1d),
    "sequential-element": Host(sequential_host, IMAGE, "0"),
    "sequential-stage": Host(sequential_host, IMAGE, "1", key=f"1.0.{BLOCK_NAME}_after_1"),
}
# One for each way to hold a block (in its module, around a container, inside one) and each layout.
KINDS = ["resnet-stage", "swin", "vit", "audio", "sequential-stage"]

all_hosts = pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
hosts_of_all_kinds = pytest.mark.parametrize("host", [HOSTS[name] for name in KINDS], ids=KINDS)


def _awaken(model: nn.Module) -> nn.Module:
    """Give the inserted blocks weights that move the output, as training does."""
    generator = torch.Generator().manual_seed(2)
    for block in inserted_blocks(model).values():
        for parameter in block.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            nn.init.zeros_(parameter).data += 0.3 * noise.to(parameter)
    return model


def _assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal but for rounding, relative to the largest element: outputs of untrained networks are tiny or huge."""
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-4 * scale)


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _outline(model: nn.Module) -> list[object]:
    """All that insertion could leave behind: names, attributes, children, hooks, flags."""
    return [
        (path, type(module), sorted(vars(module)), list(module._modules), list(module._forward_hooks))
        for path, module in model.named_modules()
    ] + [module.training for module in model.modules()]


@all_hosts
def test_output_is_the_same_bit_for_bit(host: Host) -> None:
    model, x = host.make()
    plain = copy.deepcopy(model)
    host.insert(model, x)
    for training in (False, True):
        outputs = []
        for network in (plain, model):
            torch.manual_seed(3)
            outputs.append(network.train(training)(x))
        assert torch.equal(*outputs)
    assert list(inserted_blocks(model)) == [host.path]
    assert all(block.training for block in inserted_blocks(model).values())


@all_hosts
def test_host_checkpoints_load_before_and_after(host: Host) -> None:
    model, x = host.make()
    checkpoint_of_host = copy.deepcopy(model.state_dict())
    host.insert(model, x)
    block_keys = [key for key in model.state_dict() if key.startswith(f"{host.block_key}.")]
    assert f"{host.block_key}.theta.weight" in block_keys
    assert [key for key in model.state_dict() if key not in block_keys] == list(checkpoint_of_host)

    torch.manual_seed(4)
    other = host.build()
    other.load_state_dict(checkpoint_of_host)
    host.insert(other, x)
    result = host.insert(host.build(), x).load_state_dict(checkpoint_of_host, strict=False)
    # BatchNorm takes a missing counter of batches for that of an old checkpoint and fills it in itself.
    assert result.missing_keys == [key for key in block_keys if not key.endswith("num_batches_tracked")]
    assert result.unexpected_keys == []
    assert other.state_dict().keys() == model.state_dict().keys()


@all_hosts
def test_block_refines_the_output_of_its_module_once(host: Host) -> None:
    model, x = host.make_inserted()
    (block,) = inserted_blocks(model).values()
    reference = host.build().eval()
    reference.load_state_dict(
        {key: value for key, value in model.state_dict().items() if not key.startswith(host.block_key)}
    )

    def refine(module: nn.Module, args: object, output: Tensor) -> Tensor:
        if host.layout == "channels_first":
            return block(output)
        order = [0, output.ndim - 1, *range(1, output.ndim - 1)]
        return block(output.permute(order)).permute(0, *range(2, output.ndim), 1).contiguous()

    plain = reference(x)
    reference.get_submodule(host.path).register_forward_hook(refine)
    expected = reference(x)
    runs = []
    block.register_forward_hook(lambda *_: runs.append(1))
    _assert_close(model(x), expected)
    assert len(runs) == 1
    with pytest.raises(AssertionError):
        _assert_close(plain, expected)


@all_hosts
def test_gradients_reach_block_and_host(host: Host) -> None:
    model, x = host.make_inserted()
    model(x).square().sum().backward()
    (block,) = inserted_blocks(model).values()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())
    assert next(model.parameters()).grad.abs().sum() > 0


@all_hosts
def test_strides_of_the_output_are_restored(host: Host) -> None:
    model, x = host.make()
    strides = []
    model.get_submodule(host.path).register_forward_hook(lambda *args: strides.append(args[2].stride()))
    model(x)
    host.insert(model, x)
    model.get_submodule(host.path).register_forward_hook(lambda *args: strides.append(args[2].stride()))
    strides.clear()
    model(x)
    before, after = strides
    assert before == after


@all_hosts
def test_remove_gives_the_host_back(host: Host) -> None:
    model, x = host.make()
    before, outline, keys = model(x), _outline(model), list(model.state_dict())
    assert cgnl.remove_blocks(_awaken(host.insert(model, x))) is model
    assert _outline(model) == outline
    assert list(model.state_dict()) == keys
    assert torch.equal(model(x), before)
    assert inserted_blocks(model) == {}
    assert cgnl.remove_blocks(model) is model
    host.insert(model, x)
    assert list(inserted_blocks(model)) == [host.path]


@all_hosts
def test_copies_and_saved_networks_are_independent(host: Host, tmp_path: Path) -> None:
    model, x = host.make_inserted()
    expected = model(x)
    torch.save(model, tmp_path / "model.pt")
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(tmp_path / "model.pt", weights_only=False),
    ]
    cgnl.remove_blocks(model)
    for network in copies:
        assert torch.equal(network(x), expected)
        (block,) = inserted_blocks(network).values()
        assert block is network.get_submodule(host.block_key)
        nn.init.ones_(block.z.weight)
        assert not torch.equal(network(x), expected)
    plain = model(x)
    assert not torch.equal(plain, expected)
    assert torch.equal(cgnl.remove_blocks(copies[0])(x), plain)


IN_A_FRESH_PROCESS = """
import pickle, sys, torch
from pathlib import Path
from cgnl.insertion import inserted_blocks, remove_blocks

def distance(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()

for name in sys.argv[1:]:
    if name.endswith(".pt"):
        model, x, expected, plain = torch.load(name, weights_only=False)
    else:
        model, x, expected, plain = pickle.loads(Path(name).read_bytes())
    (path,) = inserted_blocks(model)
    target = model.get_submodule(path)
    seen = []
    for _ in range(2 + max(target._forward_hooks)):  # until one has surely had the chance to take the block's id
        target.register_forward_hook(lambda *_: seen.append(1))
    assert distance(plain, expected) > 1e-3, name
    assert distance(model(x), expected) < 1e-5, name
    assert len(seen) == len(target._forward_hooks) - 1, name
    assert distance(remove_blocks(model)(x), plain) < 1e-5, name
"""


def test_block_fires_after_unpickling_in_a_fresh_process(tmp_path: Path) -> None:
    files = []
    for name in ("audio", "vit", "sequential-stage"):
        model, x = HOSTS[name].make()
        plain = model(x).detach()
        model = _awaken(HOSTS[name].insert(model, x))
        content = (model, x, model(x).detach(), plain)
        files.append(tmp_path / f"{name}.pkl")
        files[-1].write_bytes(pickle.dumps(content))
        files.append(tmp_path / f"{name}.pt")
        torch.save(content, files[-1])
    # The AudioNet class lives in this module.
    result = subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS, *map(str, files)],
        cwd=Path(__file__).parent,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert result.returncode == 0, result.stderr


def _assert_same_step(model: nn.Module, other: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Outputs and all gradients of two forms of the same network."""
    results = []
    for forward, network in ((model, model), (other, other if isinstance(other, nn.Module) else model)):
        network.zero_grad()
        output = forward(x)
        output.square().sum().backward()
        gradients = {name.removeprefix("_orig_mod."): grad for name, grad in _gradients(network).items()}
        results.append({"output": output.detach(), **gradients})
    assert results[0].keys() == results[1].keys()
    for name, expected in results[0].items():
        _assert_close(results[1][name], expected)


@hosts_of_all_kinds
def test_compile_without_graph_breaks(host: Host) -> None:
    model, x = host.make_inserted()
    torch.compiler.reset()
    _assert_same_step(model, torch.compile(model, fullgraph=True, backend="aot_eager"), x)


def test_compile_with_the_default_backend() -> None:
    model, x = HOSTS["audio"].make_inserted()
    torch.compiler.reset()
    _assert_same_step(model.train(), torch.compile(model, fullgraph=True), x)


@pytest.mark.parametrize("strict", [False, True])
@hosts_of_all_kinds
def test_export(host: Host, strict: bool) -> None:
    model, x = host.make_inserted()
    exported = torch.export.export(model, (x,), strict=strict)
    _assert_close(exported.module()(x), model(x))
    assert f"{host.block_key}.theta.weight" in exported.state_dict


def test_export_with_a_dynamic_batch() -> None:
    model, x = HOSTS["swin"].make_inserted()
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    more = torch.randn(5, *x.shape[1:])
    _assert_close(exported.module()(more), model(more))


@hosts_of_all_kinds
def test_symbolic_tracing_for_feature_extraction(host: Host) -> None:
    model, x = host.make_inserted()
    seen = []
    with model.get_submodule(host.path).register_forward_hook(lambda *args: seen.append(args[2])):
        model(x)
    extract = create_feature_extractor(model, {host.path: "features"})
    _assert_close(extract(x)["features"], *seen)


@pytest.mark.parametrize("use_reentrant", [False, True])
@hosts_of_all_kinds
def test_activation_checkpointing_around_the_network(host: Host, use_reentrant: bool) -> None:
    model, x = host.make_inserted()
    x.requires_grad_()
    _assert_same_step(model, partial(checkpoint, model, use_reentrant=use_reentrant), x)


@pytest.mark.parametrize("name", ["timm-convnext", "timm-regnet", "timm-regnet-stage", "timm-vit"])
def test_activation_checkpointing_by_timm(name: str) -> None:
    model, x = HOSTS[name].make_inserted()
    plain = copy.deepcopy(model)
    model.set_grad_checkpointing(True)
    _assert_same_step(plain, model, x)


@hosts_of_all_kinds
def test_functional_call_sees_the_block(host: Host) -> None:
    model, x = host.make_inserted()
    trained = {name: p.detach().clone() for name, p in model.named_parameters()}
    expected = model(x)
    for block in inserted_blocks(model).values():
        nn.init.zeros_(block.norm.weight)
    assert not torch.equal(model(x), expected)
    _assert_close(torch.func.functional_call(model, trained, (x,)), expected)


def test_channels_last_memory_format_is_kept() -> None:
    model, x = HOSTS["resnet-stage"].make()
    model, x = (t.to(memory_format=torch.channels_last) for t in (model, x))
    plain = model(x)
    HOSTS["resnet-stage"].insert(model, x)
    formats = []
    model.layer3.register_forward_hook(
        lambda *args: formats.append(args[2].is_contiguous(memory_format=torch.channels_last))
    )
    assert torch.equal(model(x), plain)
    assert formats == [True]


class ViewingNet(nn.Module):
    """Counts on the strides of its feature map, as code after a permute may."""

    def __init__(self) -> None:
        super().__init__()
        self.transposed = nn.Conv2d(3, 16, 1).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        y = self.transposed(x.contiguous(memory_format=torch.channels_last))
        return y.permute(0, 2, 3, 1).view(len(x), -1, 16)


class Contiguous(nn.Module):
    """A block that loses the strides and the type of its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.weight * x).double().contiguous()


def test_a_view_after_the_block_still_works() -> None:
    model, x = ViewingNet(), torch.randn(2, 3, 4, 5)
    plain = model(x)
    cgnl.insert_blocks(model, {"transposed": Contiguous}, example_input=x)
    assert torch.equal(model(x), plain)
    assert model(x).dtype == plain.dtype
    model(x).square().sum().backward()
    # d/dw of sum (y + w y)^2 at w = 0, for each channel
    expected = 2 * plain.square().sum((0, 1))
    torch.testing.assert_close(inserted_blocks(model)["transposed"].weight.grad.flatten(), expected)


def test_block_takes_type_device_and_training_flag_of_its_module() -> None:
    model, x = HOSTS["resnet-stage"].make()
    model = model.to(torch.bfloat16).train()
    model.layer2.eval()
    blocks = {"layer1.0": make_2d, "layer2.0": make_2d}
    cgnl.insert_blocks(model, blocks, example_input=x.bfloat16())
    made = inserted_blocks(model)
    assert {p.dtype for block in made.values() for p in block.parameters()} == {torch.bfloat16}
    assert [made["layer1.0"].training, made["layer2.0"].training] == [True, False]
    with torch.device("meta"):
        meta = small_resnet()
    cgnl.insert_blocks(meta, {"layer1.0": make_2d}, example_input=x.to("meta"))
    assert {p.device.type for p in meta.parameters()} == {"meta"}


def test_channels_are_found_for_each_of_many_blocks() -> None:
    model, x = HOSTS["resnet-stage"].make()
    seen: dict[str, int] = {}

    def make(path: str) -> Callable[[int], nn.Module]:
        return lambda channels: make_2d(seen.setdefault(path, channels))

    paths = ["layer1", "layer2", "layer2.0", "layer4.0.conv1", "maxpool", "layer3"]
    cgnl.insert_blocks(model, {path: make(path) for path in paths}, example_input=x)
    assert seen == dict(zip(paths, [64, 128, 128, 512, 64, 256], strict=True))
    assert set(inserted_blocks(model)) == set(paths)


def test_names_of_blocks_never_clash() -> None:
    host = nn.Module()
    host.a = nn.Sequential(nn.Sequential(nn.Conv1d(2, 8, 1)))
    host.a_0 = nn.Sequential(nn.Conv1d(8, 8, 1))
    host.inserted_block = nn.Identity()
    host.forward = lambda x: host.inserted_block(host.a_0(host.a(x)))
    cgnl.insert_blocks(host, {"a.0": make_1d, "a_0": make_1d, "": make_1d}, example_input=torch.randn(2, 2, 5))
    assert len({id(block) for block in inserted_blocks(host).values()}) == 3
    assert isinstance(host.inserted_block, nn.Identity)
    assert list(cgnl.remove_blocks(host)._modules) == ["a", "a_0", BLOCK_NAME]


def test_a_block_after_a_block() -> None:
    model, x = HOSTS["audio"].make_inserted()
    plain = model(x)
    cgnl.insert_blocks(model, {f"body.{BLOCK_NAME}": make_1d}, example_input=x)
    assert torch.equal(model(x), plain)
    assert list(inserted_blocks(model)) == ["body", f"body.{BLOCK_NAME}"]
    cgnl.remove_blocks(model)
    assert inserted_blocks(model) == {}
    assert all("inserted" not in key for key in model.state_dict())


def test_a_wrapper_put_around_a_block_is_followed() -> None:
    model, x = HOSTS["audio"].make_inserted()
    block = model.body.inserted_block
    model.body.inserted_block = nn.Sequential(block, nn.Hardtanh(0.0, 1e-9))
    assert inserted_blocks(model) == {"body": model.body.inserted_block}
    torch.testing.assert_close(model(x), model.head.bias.expand(2, 3))
    assert "body.inserted_block.0.theta.weight" in model.state_dict()
    assert list(cgnl.remove_blocks(model).state_dict()) == list(AudioNet().state_dict())


class KeywordNet(AudioNet):
    def forward(self, x: Tensor, *, gain: Tensor) -> Tensor:
        return super().forward(x * gain)


def test_example_input_as_a_tuple_or_a_dict() -> None:
    x = torch.randn(2, 2, 33)
    model = cgnl.insert_blocks(AudioNet(), {"body": make_1d}, example_input=(x,))
    assert list(inserted_blocks(model)) == ["body"]
    keywords = {"x": x, "gain": torch.tensor(2.0)}
    model = cgnl.insert_blocks(KeywordNet(), {"body": make_1d}, example_input=keywords)
    assert list(inserted_blocks(model)) == ["body"]


class CountingNet(AudioNet):
    """Changes its buffers even in eval mode, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.detach()
        return super().forward(x + 0 * torch.randn_like(x))


def test_insertion_leaves_the_state_of_the_host_alone() -> None:
    model, x = CountingNet().train(), torch.randn(2, 2, 33)
    model.stem.eval()
    model.body.weight.grad = torch.ones_like(model.body.weight)
    flags = {name: module.training for name, module in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    cgnl.insert_blocks(model, {"body": lambda channels: nn.Identity()}, example_input=x)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert {name: model.get_submodule(name).training for name in flags} == flags
    torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
    assert torch.equal(model.body.weight.grad, torch.ones_like(model.body.weight))
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["body.weight"]


def test_blocks_of_two_insertions_start_differently() -> None:
    torch.manual_seed(0)
    model, x = AudioNet(), torch.randn(2, 2, 33)
    cgnl.insert_blocks(model, {"body": make_1d}, example_input=x)
    cgnl.insert_blocks(model, {"stem": make_1d}, example_input=x)
    first, second = inserted_blocks(model).values()
    assert not torch.equal(first.theta.weight, second.theta.weight)


class OddNet(nn.Module):
    """One module for each way in which a path is no place for a block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.twin = self.conv
        self.activation = nn.ReLU()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.unused = nn.Conv2d(3, 16, 3)
        self.token_pair = TokenPair()
        self.indices = Indices()
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.activation(self.conv(x)))
        self.indices(x)
        tokens, _ = self.token_pair(x.flatten(2).transpose(1, 2))
        tokens, _ = self.attention(tokens, tokens, tokens)
        return self.head(tokens.mean(1))


class TokenPair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Indices(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1, keepdim=True)


def _wrong_shape(channels: int) -> nn.Module:
    return nn.Conv2d(channels, channels, 3)


def _broken(channels: int) -> nn.Module:
    raise ValueError(f"channels ({channels}) must be prime")


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"cnov": make_2d}, r"blocks\['cnov'\]: OddNet has no module of this path; near names: conv"),
        ({"attention.out_prj": make_2d}, r"near names: attention\.out_proj"),
        ({"0": make_2d}, r"no module of this path; its children: conv, twin, activation, attention"),
        ({"activation": make_2d}, r"the module must run exactly once .* ran 2 times"),
        ({"unused": make_2d}, r"the module must run exactly once .* ran 0 times"),
        ({"attention.out_proj": make_1d}, r"the module must run exactly once .* ran 0 times"),
        ({"token_pair": make_1d}, r"feature map.* but is a tuple"),
        ({"head": make_1d}, r"feature map.* but is torch.float32 of shape \[2, 3\]"),
        ({"indices": make_2d}, r"feature map.* but is torch.int64 of shape \[2, 1, 6, 6\]"),
        ({"conv": make_1d}, r"blocks\['conv'\]: .*\[2, 16, 6, 6\], channels_first"),
        ({"conv": partial(cgnl.CGNL2d, groups=3)}, r"blocks\['conv'\]: .*groups \(3\)"),
        ({"conv": _broken}, r"blocks\['conv'\]: channels \(16\) must be prime"),
        ({"conv": _wrong_shape}, r"keep its input's shape, but made \[2, 16, 4, 4\] of \[2, 16, 6, 6\]"),
        ({"conv": lambda channels: channels}, r"must return a torch.nn.Module, not int"),
        ({"conv": make_2d, "twin": make_2d}, r"two of the paths .* name the same module"),
        ({"conv": make_2d, "unused": make_2d}, r"blocks\['unused'\]: .* ran 0 times"),
    ],
)
def test_an_impossible_place_gets_an_error_and_changes_nothing(
    blocks: dict[str, Callable[[int], nn.Module]], message: str
) -> None:
    model, x = OddNet(), torch.randn(2, 3, 8, 8)
    outline = _outline(model)
    with pytest.raises(ValueError, match=message):
        cgnl.insert_blocks(model, blocks, example_input=x)
    assert _outline(model) == outline


def test_a_2d_block_for_tokens_gets_an_error() -> None:
    model, x = HOSTS["vit"].make()
    path = HOSTS["vit"].path
    with pytest.raises(ValueError, match=rf"blocks\['{path}'\]: .*\[2, 17, 32\], channels_last"):
        cgnl.insert_blocks(model, {path: make_2d}, example_input=x, layout="channels_last")


def test_a_place_that_is_taken_gets_an_error_and_keeps_its_block() -> None:
    model, x = HOSTS["audio"].make_inserted()
    outline, expected = _outline(model), model(x)
    with pytest.raises(ValueError, match=r"blocks\['body'\]: a block is already inserted"):
        cgnl.insert_blocks(model, {"stem": make_1d, "body": make_1d}, example_input=x)
    assert _outline(model) == outline
    assert torch.equal(model(x), expected)


def test_wrong_arguments() -> None:
    model, x = AudioNet(), torch.randn(2, 2, 33)
    with pytest.raises(ValueError, match=r"layout \('NHWC'\) must be"):
        cgnl.insert_blocks(model, {"body": make_1d}, example_input=x, layout="NHWC")
    with pytest.raises(ValueError, match=r"example_input must be .* not list"):
        cgnl.insert_blocks(model, {"body": make_1d}, example_input=[x])
    block = make_1d(16)
    with pytest.raises(ValueError, match="block of its own"):
        cgnl.insert_blocks(model, dict.fromkeys(["stem", "body"], lambda _: block), example_input=x)


class IteratingNet(nn.Module):
    """Runs its children one after the other, like a Sequential that is none."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        for index, layer in enumerate(layers):
            self.add_module(str(index), layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


def test_a_network_that_iterates_over_its_children() -> None:
    x = torch.randn(2, 4, 9)
    model = IteratingNet(IteratingNet(nn.Conv1d(4, 8, 1), nn.ReLU()), nn.Conv1d(8, 4, 1))
    plain = model(x)
    cgnl.insert_blocks(model, {"0": make_1d}, example_input=x)
    assert list(inserted_blocks(model)) == ["0"]
    assert torch.equal(model(x), plain)
    assert torch.equal(cgnl.remove_blocks(_awaken(model))(x), plain)
    with pytest.raises(ValueError, match="all are containers or iterate over their children"):
        cgnl.insert_blocks(IteratingNet(), {"": make_1d}, example_input=x)


class EvasiveNet(IteratingNet):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = x if isinstance(layer, nn.Identity) else layer(x)
        return x


def test_a_block_that_would_run_twice_is_refused() -> None:
    model = EvasiveNet(nn.Conv1d(4, 8, 1))
    outline = _outline(model)
    with pytest.raises(ValueError, match=r"blocks\[''\]: .* exactly once .* ran 2 times"):
        cgnl.insert_blocks(model, {"": make_1d}, example_input=torch.randn(2, 4, 9))
    assert _outline(model) == outline


class FailsLater(AudioNet):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            raise RuntimeError("the second forward pass fails")
        return super().forward(x)


def test_an_error_after_the_blocks_went_in_takes_them_out() -> None:
    model, x = FailsLater(), torch.randn(2, 2, 33)
    model.calls = 0
    outline = _outline(model)
    with pytest.raises(RuntimeError, match="second forward pass"):
        cgnl.insert_blocks(model, {"stem": make_1d, "body": make_1d}, example_input=x)
    assert _outline(model) == outline


def test_compiled_networks_are_refused() -> None:
    x = torch.randn(2, 2, 33)
    compiled_in_place = AudioNet()
    compiled_in_place.compile()
    for model, path in ((torch.compile(AudioNet()), "_orig_mod.body"), (compiled_in_place, "body")):
        with pytest.raises(ValueError, match=r"insert blocks before torch\.compile"):
            cgnl.insert_blocks(model, {path: make_1d}, example_input=x)


def test_remove_from_a_part_of_the_network_is_refused() -> None:
    model, x = HOSTS["resnet-stage"].make_inserted()
    expected = model(x)
    with pytest.raises(ValueError, match="outside this Sequential"):
        cgnl.remove_blocks(model.layer3)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize(
    ("model", "blocks", "message"),
    [
        (3, {"0": cgnl.CGNL2d}, "model must be a torch.nn.Module, not int"),
        (nn.Sequential(nn.Conv2d(3, 16, 1)), {}, "blocks must map at least one module path"),
        (nn.Sequential(nn.Conv2d(3, 16, 1)), ["0"], "blocks must map at least one module path"),
        (nn.Sequential(nn.Conv2d(3, 16, 1)), {"0": cgnl.CGNL2d(16)}, "the class CGNL2d itself, not a block"),
    ],
)
def test_arguments_of_a_wrong_kind_are_named(model, blocks, message):
    with pytest.raises(ValueError, match=message):
        cgnl.insert_blocks(model, blocks, example_input=torch.randn(2, 3, 8, 8))
