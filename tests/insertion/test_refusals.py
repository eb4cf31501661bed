"""A place that cannot work gets an error, and the network stays as it was."""

import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hosts import HOSTS, AudioNet, awaken, make_1d, make_2d, outline
from torch import Tensor, nn

import cgnl
from cgnl.insertion import inserted_blocks


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
        ({"head": make_1d}, r"feature map.* but is a torch.float32 tensor of shape \[2, 3\]"),
        ({"indices": make_2d}, r"feature map.* but is a torch.int64 tensor of shape \[2, 1, 6, 6\]"),
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
    before = outline(model)
    with pytest.raises(ValueError, match=message):
        cgnl.insert_blocks(model, blocks, example_input=x)
    assert outline(model) == before


def test_a_2d_block_for_tokens_gets_an_error() -> None:
    model, x = HOSTS["vit"].make()
    path = HOSTS["vit"].path
    with pytest.raises(ValueError, match=rf"blocks\['{path}'\]: .*\[2, 17, 32\], channels_last"):
        cgnl.insert_blocks(model, {path: make_2d}, example_input=x, layout="channels_last")


def test_a_place_that_is_taken_gets_an_error_and_keeps_its_block() -> None:
    model, x = HOSTS["audio"].make_inserted()
    before, expected = outline(model), model(x)
    with pytest.raises(ValueError, match=r"blocks\['body'\]: a block is already inserted"):
        cgnl.insert_blocks(model, {"stem": make_1d, "body": make_1d}, example_input=x)
    assert outline(model) == before
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
    assert torch.equal(cgnl.remove_blocks(awaken(model))(x), plain)
    with pytest.raises(ValueError, match="all are containers or iterate over their children"):
        cgnl.insert_blocks(IteratingNet(), {"": make_1d}, example_input=x)


class EvasiveNet(IteratingNet):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = x if isinstance(layer, nn.Identity) else layer(x)
        return x


def test_a_block_that_would_run_twice_is_refused() -> None:
    model = EvasiveNet(nn.Conv1d(4, 8, 1))
    before = outline(model)
    with pytest.raises(ValueError, match=r"blocks\[''\]: .* exactly once .* ran 2 times"):
        cgnl.insert_blocks(model, {"": make_1d}, example_input=torch.randn(2, 4, 9))
    assert outline(model) == before


class FailsWithBlocks(AudioNet):
    def forward(self, x: Tensor) -> Tensor:
        if inserted_blocks(self):
            raise RuntimeError("the forward pass with blocks fails")
        return super().forward(x)


def test_an_error_after_the_blocks_went_in_takes_them_out() -> None:
    model, x = FailsWithBlocks(), torch.randn(2, 2, 33)
    before = outline(model)
    with pytest.raises(RuntimeError, match="forward pass with blocks"):
        cgnl.insert_blocks(model, {"stem": make_1d, "body": make_1d}, example_input=x)
    assert outline(model) == before


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
        (nn.Sequential(nn.Conv2d(3, 16, 1)), {"0": None}, r"blocks\['0'\] must be a callable .*, not None"),
    ],
)
def test_arguments_of_a_wrong_kind_are_named(model, blocks, message):
    with pytest.raises(ValueError, match=message):
        cgnl.insert_blocks(model, blocks, example_input=torch.randn(2, 3, 8, 8))


def test_warns_where_positions_would_be_taken_for_channels():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    host = nn.Sequential(nn.Linear(8, 16), layer, nn.Linear(16, 4))
    x = torch.randn(2, 10, 8)
    with pytest.warns(
        UserWarning, match=r"blocks\['1'\]: .* last axis of \[2, 10, 16\] .* give layout='channels_last'"
    ):
        cgnl.insert_blocks(host, {"1": cgnl.CGNL1d}, example_input=x)
    cgnl.remove_blocks(host)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for layout in ("channels_first", "channels_last"):
            cgnl.insert_blocks(host, {"1": cgnl.CGNL1d}, example_input=x, layout=layout)
            cgnl.remove_blocks(host)
        first = nn.Sequential(nn.Conv1d(8, 16, 3), nn.ReLU(), nn.Conv1d(16, 4, 1))
        cgnl.insert_blocks(first, {"1": cgnl.CGNL1d}, example_input=torch.randn(2, 8, 10))


class MixesPositions(nn.Module):
    """Linear layers over the positions of [B, C, N], and a layer norm over the channels of [B, N, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(16), nn.Sequential(nn.Linear(10, 10), nn.GELU())
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.mix(self.norm(x).mT)


def test_no_warning_where_layers_mix_positions():
    host, x = MixesPositions(), torch.randn(2, 10, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cgnl.insert_blocks(host, {"mix": make_1d}, example_input=x)
    assert host.calls <= 3  # for the shapes, and to check with gradients and without
    cgnl.remove_blocks(host)
    with pytest.warns(UserWarning, match=r"blocks\['norm'\]: .* last axis of \[2, 10, 16\]"):
        cgnl.insert_blocks(host, {"norm": partial(cgnl.CGNL1d, groups=1)}, example_input=x)


class Ragged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 3), nn.Sequential(nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.nested.as_nested_tensor(list(self.conv(x).flatten(2))))


@pytest.mark.filterwarnings("ignore:.*nested tensors")
def test_nested_tensors_elsewhere_in_the_network():
    host, x = Ragged(), torch.randn(2, 3, 4, 4)
    cgnl.insert_blocks(host, {"conv": make_2d}, example_input=x)
    assert list(inserted_blocks(host)) == ["conv"]
