"""Blocks go into real networks, and everything that worked with the network goes on working."""

import copy
from collections.abc import Callable

import pytest
import torch
from hosts import HOSTS, AudioNet, Host, all_hosts, assert_close, awaken, make_1d, make_2d, outline, small_resnet
from torch import Tensor, nn

import cgnl
from cgnl.insertion import BLOCK_NAME, inserted_blocks
from cgnl.networks.video import c2d_resnet18


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
    assert_close(model(x), expected)
    assert len(runs) == 1
    with pytest.raises(AssertionError):
        assert_close(plain, expected)


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
    before, surroundings, keys = model(x), outline(model), list(model.state_dict())
    assert cgnl.remove_blocks(awaken(host.insert(model, x))) is model
    assert outline(model) == surroundings
    assert list(model.state_dict()) == keys
    assert torch.equal(model(x), before)
    assert inserted_blocks(model) == {}
    assert cgnl.remove_blocks(model) is model
    host.insert(model, x)
    assert list(inserted_blocks(model)) == [host.path]


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


class Autocasts(AudioNet):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


@pytest.mark.parametrize("path", ["body", "act"])
def test_a_block_under_autocast_keeps_the_type_of_the_weights(path: str) -> None:
    model, x = Autocasts(), torch.randn(2, 2, 33)
    model.act = nn.ReLU()  # without weights of its own
    model.stem.append(model.act)
    plain = model.eval()(x)
    cgnl.insert_blocks(model, {path: make_1d}, example_input=x)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model(x), plain)
    cgnl.remove_blocks(model)
    # autocast of the caller
    with torch.autocast("cpu", torch.bfloat16):
        cgnl.insert_blocks(model, {path: make_1d}, example_input=x)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


class CastsItself(AudioNet):
    """Converts its map itself, where no autocast would convert a block's input."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.converted(self.stem(x)).float().mean(-1))


class Converted(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).bfloat16()


def test_a_block_takes_the_type_of_a_map_that_is_converted_by_hand() -> None:
    model, x = CastsItself(), torch.randn(2, 2, 33)
    model.converted = Converted(16, 16, 3)
    cgnl.insert_blocks(model, {"converted": make_1d}, example_input=x)
    assert {p.dtype for p in inserted_blocks(model)["converted"].parameters()} == {torch.bfloat16}


def test_blocks_that_are_inserted_in_inference_mode_can_be_trained() -> None:
    model, x = AudioNet(), torch.randn(2, 2, 33)
    video = c2d_resnet18(num_classes=3)
    with torch.inference_mode():
        cgnl.insert_blocks(model, {"body": make_1d}, example_input=x.clone())
        cgnl.insert_blocks(video, cgnl.CGNL3d, example_input=torch.randn(1, 3, 2, 32, 32))
    for network, example in ((model, x), (video, torch.randn(2, 3, 2, 32, 32))):
        network(example).sum().backward()
        (block,) = inserted_blocks(network).values()
        assert block.norm.weight.grad.any()
