"""A block runs before all other hooks of its module, so that networks which collect maps by hooks see it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import timm
import torch
import transformers
from hosts import AudioNet, awaken, make_1d, make_2d, outline
from torch import Tensor, nn

import cgnl
from cgnl.insertion import inserted_blocks


def convnext_config() -> transformers.ConvNextConfig:
    stages = [f"stage{number}" for number in range(1, 5)]
    return transformers.ConvNextConfig(depths=[1] * 4, hidden_sizes=[16, 16, 32, 32], out_features=stages)


def upernet() -> nn.Module:
    sizes = {"hidden_size": 16, "auxiliary_in_channels": 32, "auxiliary_channels": 16, "pool_scales": [1, 2]}
    return transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(backbone_config=convnext_config(), num_labels=3, **sizes)
    )


VIT_SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}


def dinov2() -> nn.Module:
    features = ["stage1", "stage2", "stage3"]
    config = transformers.Dinov2Config(out_features=features, apply_layernorm=False, mlp_ratio=1, **VIT_SIZES)
    return transformers.Dinov2Backbone(config)


def vit() -> nn.Module:
    return transformers.ViTModel(transformers.ViTConfig(intermediate_size=32, **VIT_SIZES))


def timm_features() -> nn.Module:
    return timm.create_model("resnet18", features_only=True, feature_cls="hook", out_indices=(1, 2))


@dataclass(frozen=True)
class Collector:
    """A network that gives out maps which it collects by hooks; ``number`` is that of the map after ``path``."""

    build: Callable[[], nn.Module]
    path: str
    number: int
    maps: Callable[[Any], Any]
    make_block: Callable[[int], nn.Module] = make_2d
    layout: str = "channels_first"

    def make(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build().eval()

    def keywords(self) -> dict[str, Any]:
        torch.manual_seed(1)
        name = "x" if self.build is timm_features else "pixel_values"
        return {name: torch.randn(2, 3, 64, 64), **({"output_hidden_states": True} if self.build is vit else {})}

    def insert(self, model: nn.Module) -> nn.Module:
        example = self.keywords()
        return cgnl.insert_blocks(model, {self.path: self.make_block}, example_input=example, layout=self.layout)


COLLECTORS = {
    "upernet-convnext": Collector(upernet, "backbone.encoder.stages.2", 2, lambda output: (output.logits,)),
    "convnext-backbone": Collector(
        lambda: transformers.ConvNextBackbone(convnext_config()), "encoder.stages.2", 2, lambda out: out.feature_maps
    ),
    "dinov2": Collector(dinov2, "encoder.layer.1", 1, lambda out: out.feature_maps, make_1d, "channels_last"),
    "vit": Collector(vit, "layers.1", 2, lambda output: output.hidden_states, make_1d, "channels_last"),
    "timm-hook": Collector(timm_features, "body.layer2", 1, lambda maps: maps),
}
all_collectors = pytest.mark.parametrize("collector", COLLECTORS.values(), ids=COLLECTORS)


@all_collectors
def test_networks_that_collect_maps_by_hooks_train_the_block(collector: Collector) -> None:
    model, keywords = collector.make(), collector.keywords()
    collector.insert(model).train()
    (block,) = inserted_blocks(model).values()
    before = copy.deepcopy(block.state_dict())
    optimizer = torch.optim.Adam(block.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        chosen = collector.maps(model(**keywords))[0 if collector.build is upernet else collector.number]
        chosen.square().mean().backward()
        assert all(parameter.grad is not None for parameter in block.parameters())
        assert block.norm.weight.grad.any()
        assert step == 0 or block.theta.weight.grad.any()
        optimizer.step()
    assert not torch.equal(block.norm.weight, before["norm.weight"])


@pytest.mark.parametrize("name", ["convnext-backbone", "vit", "timm-hook"])
def test_collected_maps_are_those_after_the_block(name: str) -> None:
    collector = COLLECTORS[name]
    model, keywords = collector.make(), collector.keywords()
    plain = collector.maps(model(**keywords))[collector.number]
    awaken(collector.insert(model))
    seen: list[Tensor] = []
    with model.get_submodule(collector.path).register_forward_hook(lambda *args: seen.append(args[2])):
        collected = collector.maps(model(**keywords))[collector.number]
    expected = seen[0]
    if name == "convnext-backbone":  # its backbone normalises each map
        expected = model.hidden_states_norms["stage3"](expected)
    torch.testing.assert_close(collected, expected)
    assert not torch.allclose(collected, plain)


@all_collectors
def test_hooks_of_the_host_stay_behind_the_block_and_without_it(collector: Collector) -> None:
    model, keywords = collector.make(), collector.keywords()
    called = collector.make()
    expected = collector.maps(called(**keywords))
    collector.insert(model)  # its run is the first call, in which transformers' networks make their hooks
    hooks = list(model.get_submodule(collector.path)._forward_hooks.values())
    assert [type(hook).__name__ for hook in hooks].index("_BlockHook") == 0
    cgnl.remove_blocks(model)
    assert [len(module._forward_hooks) for module in model.modules()] == [
        len(module._forward_hooks) for module in called.modules()
    ]
    for actual, plain in zip(collector.maps(model(**keywords)), expected, strict=True):
        assert torch.equal(actual, plain)


def test_an_older_hook_gets_the_refined_map_and_may_change_it_further() -> None:
    model, x = AudioNet().eval(), torch.randn(2, 2, 33)
    seen = []
    model.body.register_forward_hook(lambda module, args, output: seen.append(output))
    model.body.register_forward_hook(lambda module, args, output: 2 * output)
    plain = model(x)
    cgnl.insert_blocks(model, {"body": make_1d}, example_input=x)
    assert torch.equal(model(x), plain)
    block = inserted_blocks(awaken(model))["body"]
    refined: list[Tensor] = []
    block.register_forward_hook(lambda module, args, output: refined.append(output))
    after = model(x)
    assert torch.equal(seen[-1], refined[0])
    expected = model.head(torch.relu(2 * refined[0]).mean(-1))
    torch.testing.assert_close(after, expected)


def test_an_older_hook_that_changes_the_kind_of_output_comes_after_the_block() -> None:
    model, x = nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU()), torch.randn(2, 2, 9)
    model[1].register_forward_hook(lambda module, args, output: (output, output))
    cgnl.insert_blocks(model, {"1": make_1d}, example_input=x)
    first, second = model(x)
    assert torch.equal(first, second)


def test_nothing_of_ours_stays_behind_a_refused_place() -> None:
    model = vit().eval()
    keywords = {"pixel_values": torch.randn(1, 3, 64, 64), "output_hidden_states": True}
    model(**keywords)
    before = outline(model)
    with pytest.raises(ValueError, match="channels_first"):
        cgnl.insert_blocks(model, {"layers.1": partial(cgnl.CGNL2d, groups=1)}, example_input=keywords)
    assert outline(model) == before
