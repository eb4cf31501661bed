"""A block refines one tensor in a nested output, and the rest stays as it is."""

import copy
import pickle
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import pytest
import torch
import transformers
from hosts import assert_close, assert_same_step, awaken, make_1d, make_2d, outline, small_mvit
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.video import mvit
from torchvision.ops import FeaturePyramidNetwork

import cgnl
from cgnl.insertion import inserted_blocks
from cgnl.insertion.nested import describe, pick, put, tensors_in

Pair = namedtuple("Pair", ["map", "size"])


@dataclass
class Output:
    map: Tensor
    size: int
    more: Tensor | None = None


@dataclass(frozen=True)
class FrozenOutput:
    map: Tensor
    size: int


class Maps(list[Tensor]):
    pass


class Holder:
    def __init__(self, tensors: Tensor) -> None:
        self.tensors = tensors


Encoded = transformers.modeling_outputs.BaseModelOutput
CASES: dict[str, tuple[Callable[[Tensor], Any], Any]] = {
    "tuple": (lambda x: (x, 3), 0),
    "tuple-last": (lambda x: (3, None, x), -1),
    "list": (lambda x: [3, x], 1),
    "list-subclass": (lambda x: Maps([x, 2 * x]), 1),
    "named-tuple-index": (lambda x: Pair(x, 3), 0),
    "named-tuple-name": (lambda x: Pair(x, 3), "map"),
    "dict": (lambda x: {"map": x, "size": 3}, "map"),
    "dict-of-numbers": (lambda x: {2: x, 1: 3}, 2),
    "ordered-dict": (lambda x: OrderedDict([("0", x), ("pool", 2 * x)]), "pool"),
    "default-dict": (lambda x: defaultdict(list, map=x), "map"),
    "model-output-name": (lambda x: Encoded(last_hidden_state=x, attentions=(x,)), "last_hidden_state"),
    "model-output-index": (lambda x: Encoded(last_hidden_state=x, attentions=(x,)), 0),
    "model-output-nested": (lambda x: Encoded(last_hidden_state=x, hidden_states=(x, 2 * x)), ("hidden_states", 1)),
    "dataclass": (lambda x: Output(x, 3, 2 * x), "map"),
    "frozen-dataclass": (lambda x: FrozenOutput(x, 3), "map"),
    "object": (Holder, "tensors"),
    "user-dict": (lambda x: UserDict(map=x), "map"),
    "nested": (lambda x: {"out": [3, (x, 2 * x)]}, ("out", 1, 0)),
    "several": (lambda x: torch.max(torch.stack([x, -x]), dim=0), 0),
    "several-name": (lambda x: torch.max(torch.stack([x, -x]), dim=0), "values"),
}
all_cases = pytest.mark.parametrize(("make_output", "select"), CASES.values(), ids=CASES)


def _parts(output: Any) -> list[Any]:
    """Everything in an output, types included, with tensors as themselves."""
    kinds = (dict, UserDict, list, tuple, Output, FrozenOutput, Holder)
    if not isinstance(output, kinds):
        return [output]
    if isinstance(output, dict | UserDict):
        items = list(output.items())
    else:
        items = list(enumerate(output)) if isinstance(output, list | tuple) else list(vars(output).items())
    return [type(output), *(part for key, value in items for part in [key, *_parts(value)])]


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


@all_cases
def test_put_gives_a_copy_of_the_same_kind(make_output: Callable[[Tensor], Any], select: Any) -> None:
    x, other = torch.ones(2), torch.zeros(2)
    keys = select if isinstance(select, tuple) else (select,)
    output = make_output(x)
    parts = _parts(output)
    changed = put(output, keys, other)
    assert all(map(_equal, _parts(output), parts)), "the host's own output was changed"
    assert pick(changed, keys) is other
    differing = [after for after, before in zip(_parts(changed), parts, strict=True) if not _equal(after, before)]
    assert len(differing) == 1
    assert differing[0] is other
    if isinstance(output, transformers.utils.ModelOutput) and len(keys) == 1:
        assert changed.last_hidden_state is other
        assert changed.to_tuple()[0] is other
    if isinstance(output, defaultdict):
        assert changed["new"] == []


class Inner(nn.Module):
    def __init__(self, make_output: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 3)
        self.make_output = make_output
        self.made: list[Any] = []

    def forward(self, x: Tensor) -> Any:
        return self.make_output(self.conv(x))


class NestedNet(nn.Module):
    def __init__(self, make_output: Callable[[Tensor], Any], take: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.inner = Inner(make_output)
        self.take = take

    def forward(self, x: Tensor) -> Tensor:
        return self.take(self.inner(x)).mean(-1)


def nested_net(name: str) -> tuple[nn.Module, Tensor, Any]:
    make_output, select = CASES[name]
    torch.manual_seed(0)
    keys = select if isinstance(select, tuple) else (select,)
    model = NestedNet(make_output, lambda output: pick(output, keys)).eval()
    return model, torch.randn(2, 3, 9), select


@pytest.mark.parametrize("name", CASES)
def test_block_refines_the_selected_tensor(name: str) -> None:
    model, x, select = nested_net(name)
    plain = model(x)
    before = outline(model)
    cgnl.insert_blocks(model, {"inner": make_1d}, example_input=x, select=select)
    assert torch.equal(model(x), plain)
    block = inserted_blocks(awaken(model))["inner"]
    raw = pick(model.inner.forward(x), select if isinstance(select, tuple) else (select,))
    torch.testing.assert_close(model(x), block(raw).mean(-1))
    assert not torch.allclose(model(x), plain)
    model(x).sum().backward()
    assert all(parameter.grad.any() for parameter in block.parameters())
    cgnl.remove_blocks(model)
    assert outline(model) == before
    assert torch.equal(model(x), plain)


class TupleNet(nn.Module):
    """Layers that return a map and its size, a dict in a list, and a named tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.sized = Sized(3)
        self.listed = Listed(8)
        self.named = Named(8)

    def forward(self, x: Tensor) -> Tensor:
        x, size = self.sized(x)
        x = self.listed(x)[0]["x"]
        pair = self.named(x)
        return pair.map.sum(-1) * size + pair.size


class Sized(nn.Conv1d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, 8, 3)

    def forward(self, x: Tensor) -> Any:
        x = super().forward(x)
        return x, x.shape[-1]


class Listed(Sized):
    def forward(self, x: Tensor) -> Any:
        return [{"x": super().forward(x)[0]}]


class Named(Sized):
    def forward(self, x: Tensor) -> Any:
        return Pair(*super().forward(x))


SELECT = {"sized": 0, "listed": (0, "x"), "named": "map"}


def tuple_net() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = TupleNet().eval(), torch.randn(2, 3, 12)
    plain = model(x)
    cgnl.insert_blocks(model, dict.fromkeys(SELECT, make_1d), example_input=x, select=SELECT)
    assert torch.equal(model(x), plain)
    assert not torch.allclose(awaken(model)(x), plain)
    return model, x


def test_copies_and_pickles_of_selecting_networks() -> None:
    model, x = tuple_net()
    expected = model(x)
    for network in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(network(x), expected)
        cgnl.remove_blocks(network)
        assert not torch.allclose(network(x), expected)


def test_selecting_networks_are_compiled_exported_traced_and_checkpointed() -> None:
    model, x = tuple_net()
    torch.compiler.reset()
    assert_same_step(model, torch.compile(model, fullgraph=True, backend="aot_eager"), x)
    for strict in (False, True):
        assert_close(torch.export.export(model, (x,), strict=strict).module()(x), model(x))
    assert_same_step(model, torch.fx.symbolic_trace(model), x)
    assert_same_step(model, partial(checkpoint, model, use_reentrant=False), x)


@pytest.mark.parametrize(
    "name", ["ordered-dict", "default-dict", "model-output-name", "model-output-nested", "dataclass", "nested"]
)
def test_every_kind_of_output_is_compiled_and_traced(name: str) -> None:
    model, x, select = nested_net(name)
    awaken(cgnl.insert_blocks(model, {"inner": make_1d}, example_input=x, select=select))
    torch.compiler.reset()
    assert_same_step(model, torch.compile(model, fullgraph=True, backend="aot_eager"), x)
    assert_same_step(model, torch.fx.symbolic_trace(model), x)


class AttentionLayer(nn.Module):
    """Returns what another module returns: in a traced network, a value of unknown kind."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention(x, x, x)


class AttentionNet(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0].mean(1)


def test_a_traced_layer_whose_output_is_of_unknown_kind() -> None:
    torch.manual_seed(0)
    model, x = AttentionNet(AttentionLayer()), torch.randn(2, 5, 16)
    cgnl.insert_blocks(awaken(model), {"layer": make_1d}, example_input=x, layout="channels_last", select=0)
    awaken(model)
    traced = torch.fx.symbolic_trace(model)
    assert_same_step(model, traced, x)
    assert_close(pickle.loads(pickle.dumps(traced))(x), model(x))


def test_attention_itself_is_selected_from() -> None:
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(16, 2, batch_first=True), torch.randn(2, 5, 16)
    plain = attention(x, x, x)
    cgnl.insert_blocks(attention, {"": make_1d}, example_input=(x, x, x), layout="channels_last", select=0)
    for after, before in zip(attention(x, x, x), plain, strict=True):
        assert torch.equal(after, before)
    output, weights = awaken(attention)(x, x, x)
    assert not torch.allclose(output, plain[0])
    assert torch.equal(weights, plain[1])


def test_video_transformers_whose_blocks_return_tokens_and_sizes() -> None:
    torch.manual_seed(0)
    model, x = small_mvit(16, 16, [[1, 1, 1]] * 2).eval(), torch.randn(1, 3, 4, 16, 16)
    plain = model(x)
    cgnl.insert_blocks(model, {"blocks.0": make_1d}, example_input=x, layout="channels_last", select=0)
    assert torch.equal(model(x), plain)
    awaken(model)(x).square().sum().backward()
    assert not torch.allclose(model(x), plain)
    assert all(parameter.grad.any() for parameter in inserted_blocks(model)["blocks.0"].parameters())


@pytest.mark.slow
def test_mvit_v2_s(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    # torchvision's settings for fewer and smaller frames
    sizes = {"spatial_size": (64, 64), "temporal_size": 4}
    monkeypatch.setattr(mvit, "_mvit", lambda make=mvit._mvit, **settings: make(**settings | sizes))
    model, x = mvit.mvit_v2_s().eval(), torch.randn(1, 3, 4, 64, 64)
    plain = model(x)
    cgnl.insert_blocks(model, {"blocks.14": cgnl.CGNL1d}, example_input=x, layout="channels_last", select=0)
    assert torch.equal(model(x), plain)
    assert not torch.allclose(awaken(model)(x), plain)


@pytest.mark.parametrize("select", ["b", 1])
def test_a_feature_pyramid(select: str | int) -> None:
    torch.manual_seed(0)
    pyramid = FeaturePyramidNetwork([4, 8], 16).eval()
    maps = OrderedDict(a=torch.randn(1, 4, 8, 8), b=torch.randn(1, 8, 4, 4))
    plain = pyramid(maps)
    if select == 1:
        with pytest.raises(ValueError, match=r"select: there is no 1 in an OrderedDict of 'a': .*16, 8, 8\], 'b': "):
            cgnl.insert_blocks(pyramid, {"": make_2d}, example_input=(maps,), select=select)
        return
    cgnl.insert_blocks(pyramid, {"": make_2d}, example_input=(maps,), select=select)
    refined = awaken(pyramid)(maps)
    assert type(refined) is OrderedDict
    assert list(refined) == ["a", "b"]
    assert torch.equal(refined["a"], plain["a"])
    assert not torch.allclose(refined["b"], plain["b"])


def test_transformers_layers_that_return_tuples() -> None:
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        depths=[1, 1], hidden_sizes=[16, 16], num_encoder_blocks=2, num_attention_heads=[2, 2], sr_ratios=[2, 1],
        patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[1, 1],
    )  # fmt: skip
    model = transformers.SegformerModel(config).eval()
    x = torch.randn(1, 3, 32, 32)
    path, output = next(
        (name, output) for name, output in _outputs(model, x).items() if isinstance(output, tuple) and name
    )
    assert isinstance(output[0], Tensor)
    plain = model(x).last_hidden_state
    cgnl.insert_blocks(model, {path: make_1d}, example_input=x, layout="channels_last", select=0)
    assert torch.equal(model(x).last_hidden_state, plain)
    assert not torch.allclose(awaken(model)(x).last_hidden_state, plain)


def _outputs(model: nn.Module, x: Tensor) -> dict[str, Any]:
    outputs: dict[str, Any] = {}
    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: outputs.setdefault(name, output))
        for name, module in model.named_modules()
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return outputs


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (None, r"feature map, .*, but is a tuple of 0: a torch.float32 tensor of .* 10\], 1: an int; select= takes"),
        (1, r"feature map, .*, but is an int; select= takes"),
        (2, r"blocks\['sized'\]: select: there is no 2 in a tuple of 0: a torch.float32 tensor of .* 10\], 1: an int"),
        ("x", r"select: there is no 'x' in a tuple"),
        ((0, 0), r"select: there is no 0 in a torch.float32 tensor of shape \[2, 8, 10\]"),
        ({"listed": 0}, r"select: its paths \['listed'\] must be among those of blocks, \['sized'\]"),
        (1.5, r"select \(1.5\) must be a key, an index or a tuple of them"),
        ([0], r"select \(\[0\]\) must be a key, an index or a tuple of them"),
        ({"sized": None}, r"select= takes one tensor out of a tuple"),
    ],
)
def test_wrong_selections_are_named(select: Any, message: str) -> None:
    model, x = TupleNet(), torch.randn(2, 3, 12)
    before = outline(model)
    with pytest.raises(ValueError, match=message):
        cgnl.insert_blocks(model, {"sized": make_1d}, example_input=x, select=select)
    assert outline(model) == before


def test_select_on_a_module_that_returns_a_tensor_is_refused_also_later() -> None:
    x = torch.randn(2, 3, 9)
    with pytest.raises(ValueError, match=r"select: there is no 0 in a torch.float32 tensor of shape \[2, 8, 7\]"):
        cgnl.insert_blocks(nn.Sequential(nn.Conv1d(3, 8, 3)), {"0": make_1d}, example_input=x, select=0)
    model, x, select = nested_net("tuple")
    cgnl.insert_blocks(model, {"inner": make_1d}, example_input=x, select=select)
    model.inner.make_output = lambda x: x
    with pytest.raises(ValueError, match=r"select: there is no 0 in a torch\.float32"):
        model(x)


class Unchangeable(tuple[Tensor, ...]):
    def __new__(cls, *tensors: Tensor) -> "Unchangeable":
        return super().__new__(cls, tensors)


@pytest.mark.parametrize(
    ("make_output", "select"),
    [(lambda x: MappingProxyType({"x": x}), "x"), (lambda x: Unchangeable(x, x), 0), (lambda x: {"x": x}.values(), 0)],
)
def test_an_output_that_cannot_be_changed_is_refused(make_output: Callable[[Tensor], Any], select: Any) -> None:
    model = NestedNet(
        make_output, lambda output: next(tensors_in(list(output.values()) if select == "x" else [*output]))
    )
    with pytest.raises(ValueError, match=r"blocks\['inner'\]: select: "):
        cgnl.insert_blocks(model, {"inner": make_1d}, example_input=torch.randn(2, 3, 9), select=select)


def test_tensors_in_and_describe_look_into_all_kinds() -> None:
    for name, (make_output, _) in CASES.items():
        x = torch.ones(1, 2)
        if name == "object":
            continue
        assert any(tensor.shape[-1] == 2 for tensor in tensors_in(make_output(x))), name
        assert "shape [1, 2]" in describe(make_output(x)) or name == "nested", name
    assert describe([torch.ones(1)] * 9).endswith("and 3 more")
    assert describe({}) == "an empty dict"
    assert describe(torch.ones(1, 2).max(0)).startswith("a max of values: a torch.float32 tensor of shape [2], indices")
