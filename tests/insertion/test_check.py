"""Blocks train with whatever follows them, and a place where one cannot train is refused before training."""

import copy
import random
import weakref
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hosts import AudioNet, assert_close, awaken, make_1d, make_2d, outline
from torch import Tensor, nn
from torchvision import models

import cgnl
from cgnl.insertion import inserted_blocks
from cgnl.networks.detection import maskrcnn_resnet50


def small_vgg() -> nn.Module:
    model = models.vgg11_bn(init_weights=False)
    model.classifier = nn.Linear(512 * 7 * 7, 10)  # its own has 120 million weights
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": models.resnet50,
    "vgg11_bn": small_vgg,
    "densenet121": models.densenet121,
    "googlenet": lambda: models.googlenet(aux_logits=False, init_weights=False),
    "shufflenet": models.shufflenet_v2_x1_0,
    "timm-resnet50": lambda: timm.create_model("resnet50", zero_init_last=False),
}
# an in-place operation comes next
PLACES = [
    ("resnet50", "bn1"),
    ("resnet50", "layer3.4.bn1"),
    ("resnet50", "layer3.0.bn3"),
    ("vgg11_bn", "features.9"),
    ("densenet121", "features.norm0"),
    ("googlenet", "conv3.bn"),
    ("shufflenet", "stage3.1.branch2.1"),
    ("timm-resnet50", "layer3.4.bn3"),
]


def _train(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Two steps on the block alone; the loss before each, and after both."""
    (block,) = inserted_blocks(model).values()
    optimizer = torch.optim.SGD(block.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in block.parameters())
        assert block.norm.weight.grad.any()
        losses.append(loss.detach())
        optimizer.step()
    assert block.theta.weight.grad.any()  # the first step woke the block
    return [*losses, model(x).square().mean().detach()]


@pytest.mark.parametrize(("name", "path"), PLACES, ids=[f"{name}-{path}" for name, path in PLACES])
def test_two_training_steps_before_an_in_place_operation(name: str, path: str) -> None:
    torch.manual_seed(0)
    model, x = NETWORKS[name](), torch.randn(2, 3, 32, 32)
    cgnl.insert_blocks(model, {path: partial(cgnl.CGNL2d, groups=2)}, example_input=x[:1])
    out_of_place = copy.deepcopy(model)
    for module in out_of_place.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    losses = []
    for network in (model.train(), out_of_place.train()):
        torch.manual_seed(1)  # for dropout
        losses.append(_train(network, x))
    assert losses[0][2] != losses[0][0]
    for actual, expected in zip(*losses, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=0)


class TokenNet(nn.Module):
    """Changes its tokens in place after the norm, as some transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        y += x
        return self.head(y.mul_(2))


@pytest.mark.parametrize("training", [False, True])
def test_tokens_that_are_changed_in_place(training: bool) -> None:
    torch.manual_seed(0)
    model, x = TokenNet(), torch.randn(2, 5, 16)
    awaken(cgnl.insert_blocks(model, {"norm": make_1d}, example_input=x, layout="channels_last")).train(training)
    block = copy.deepcopy(inserted_blocks(model)["norm"])
    expected = model.head(2 * (block(model.norm.forward(x).transpose(1, 2)).transpose(1, 2) + x))
    actual = model(x)
    assert_close(actual, expected)
    actual.sum().backward()
    gradients = {name: parameter.grad for name, parameter in inserted_blocks(model)["norm"].named_parameters()}
    for name, parameter in block.named_parameters():
        assert parameter.grad is None
        expected_gradient = torch.autograd.grad(expected.sum(), parameter, retain_graph=True)[0]
        torch.testing.assert_close(gradients[name], expected_gradient, rtol=1e-4, atol=1e-5)


class Sigmoid(nn.Module):
    """A block whose backward pass needs its own output."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x).sigmoid()


def in_place_net() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 16, 3), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Conv1d(16, 16, 3))


def test_a_block_that_breaks_before_an_in_place_operation_is_refused_by_its_path() -> None:
    model, x = in_place_net(), torch.randn(2, 2, 9)
    before = outline(model)
    with pytest.raises(ValueError, match=r"blocks\['1'\]: the network cannot be differentiated .* inplace") as caught:
        cgnl.insert_blocks(model, {"0": Sigmoid, "1": Sigmoid, "3": Sigmoid}, example_input=x)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert outline(model) == before
    cgnl.insert_blocks(model, {"0": Sigmoid, "3": Sigmoid}, example_input=x)


class DeadEnd(AudioNet):
    """Runs a layer whose map it throws away, or uses without a gradient."""

    def __init__(self, use: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.side = nn.Conv1d(16, 16, 1)
        self.use = use

    def forward(self, x: Tensor) -> Any:
        features = self.stem(x)
        return self.use(self.head(torch.relu(self.body(features)).mean(-1)), self.side(features))


@torch.no_grad()
def thrown_away_without_gradients(output: Tensor, side: Tensor) -> Tensor:
    side.add_(1)
    return output.clone()


def thrown_away(output: Tensor, side: Tensor) -> Tensor:
    return output


def chosen_by(output: Tensor, side: Tensor) -> Tensor:
    return output[side.mean((1, 2)).argsort()]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("use", [thrown_away, thrown_away_without_gradients, lambda output, side: [output, None, 3]])
def test_a_block_without_effect_is_refused(use: Callable[[Tensor, Tensor], Any], frozen: bool) -> None:
    model, x = DeadEnd(use).requires_grad_(not frozen), torch.randn(4, 2, 33)
    before = outline(model)
    with pytest.raises(ValueError, match=r"blocks\['side'\]: the network's output .* does not depend on the block"):
        cgnl.insert_blocks(model, {"body": make_1d, "side": make_1d}, example_input=x)
    assert outline(model) == before


@pytest.mark.parametrize(
    "use",
    [
        chosen_by,
        lambda output, side: side.argmax(1),
        lambda output, side: (output, side.detach()),
        lambda output, side: output + torch.from_numpy(side.detach().numpy()).mean(),
        lambda output, side: output + torch.tensor(np.asarray(side.detach()).mean().item()),
        lambda output, side: output + torch.tensor(side.flatten().tolist()).mean(),
        lambda output, side: output + side.mean().item(),
        lambda output, side: output.detach() + torch.zeros(8, 3).copy_(side.detach()[:, :3, 0]),
        lambda output, side: output if side.sum() > 0 else 2 * output,
        lambda output, side: output.detach().index_fill_(0, side.argmax(2)[:1, 0] % 8, 0.0) + output,
    ],
)
def test_a_block_that_acts_without_a_gradient_is_not_refused(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    model, x = DeadEnd(use), torch.randn(8, 2, 33)
    cgnl.insert_blocks(model, {"side": make_1d}, example_input=x)
    assert list(inserted_blocks(model)) == ["side"]


class Wrapped(nn.Module):
    def __init__(self, wrap: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.net = AudioNet()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.net, x)


class Attributes:
    def __init__(self, value: Tensor) -> None:
        self.value = value


@torch.no_grad()
def without_gradients(net: nn.Module, x: Tensor) -> Tensor:
    return net(x)


@torch.inference_mode()
def in_inference_mode(net: nn.Module, x: Tensor) -> Tensor:
    return net(x)


def in_numpy(net: nn.Module, x: Tensor) -> Any:
    return net(x).numpy()  # fails with gradients, with a block and without


def never_with_gradients(net: nn.Module, x: Tensor) -> Tensor:
    assert not torch.is_grad_enabled()
    return net(x)


@pytest.mark.parametrize(
    "wrap",
    [
        without_gradients,
        in_inference_mode,
        in_numpy,
        never_with_gradients,
        lambda net, x: net(x).argmax(1),
        lambda net, x: [{"scores": net(x).detach()}, None, 3],
        lambda net, x: Attributes(net(x)),
        lambda net, x: (net(x), None)[1],
    ],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_hosts_without_gradients_are_not_refused(wrap: Callable[[nn.Module, Tensor], Any], frozen: bool) -> None:
    model, x = Wrapped(wrap).requires_grad_(not frozen), torch.randn(2, 2, 33)
    cgnl.insert_blocks(model, {"net.body": make_1d}, example_input=x)
    block = inserted_blocks(model)["net.body"]
    assert all(parameter.requires_grad for parameter in block.parameters())
    model.net(x).sum().backward()
    assert block.norm.weight.grad.any()


def test_places_in_a_detector_that_gradients_do_not_reach_in_eval_mode() -> None:
    torch.manual_seed(0)
    detector = maskrcnn_resnet50(None, neck="c4", num_classes=3, size=64).eval()
    # boxes are chosen by scores without a gradient, and on noise there are no objects, and no maps of them
    for count in (detector.rpn._pre_nms_top_n, detector.rpn._post_nms_top_n):
        count["testing"] = 5
    paths = ["rpn.head.conv.0.0", "rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.mask_roi_pool"]
    for path in paths:
        cgnl.insert_blocks(detector, {path: partial(cgnl.CGNL2d, groups=1)}, example_input=([torch.rand(3, 64, 64)],))
    assert set(inserted_blocks(detector)) == set(paths)


def test_a_host_without_values() -> None:
    with torch.device("meta"):
        model, x = DeadEnd(thrown_away), torch.randn(4, 2, 33)
        cgnl.insert_blocks(model, {"body": make_1d}, example_input=x)
        with pytest.raises(ValueError, match=r"blocks\['side'\]: the network's output"):
            cgnl.insert_blocks(model, {"side": make_1d}, example_input=x)


def test_the_callers_no_grad_does_not_switch_the_check_off() -> None:
    x = torch.randn(2, 2, 9)
    with torch.no_grad(), pytest.raises(ValueError, match="cannot be differentiated"):
        cgnl.insert_blocks(in_place_net(), {"1": Sigmoid}, example_input=x)


class Keeping(AudioNet):
    """Keeps a map as an attribute, and some in a list."""

    def forward(self, x: Tensor) -> Tensor:
        features = self.stem(x)
        self.kept = [features]
        self.output = super().forward(x)
        return self.output


def test_the_check_leaves_gradients_and_kept_maps_alone() -> None:
    model, x = Keeping(), torch.randn(2, 2, 33, requires_grad=True)
    model.eval()(x).square().sum().backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    of_input = x.grad.clone()
    accumulated = []
    model.head.weight.register_post_accumulate_grad_hook(accumulated.append)
    cgnl.insert_blocks(model, {"body": make_1d}, example_input=x)
    assert not accumulated
    assert torch.equal(x.grad, of_input)
    assert all(torch.equal(model.get_parameter(name).grad, grad) for name, grad in before.items())
    assert all(parameter.grad is None for parameter in inserted_blocks(model)["body"].parameters())
    assert model.output.grad_fn is None
    assert model.kept[0].grad_fn is None
    copy.deepcopy(model)


def test_a_frozen_host_trains_the_block_alone() -> None:
    model = models.resnet18().requires_grad_(False)
    x = torch.randn(2, 3, 32, 32)
    cgnl.insert_blocks(model, {"layer3.0": make_2d}, example_input=x[:1])
    _train(model.train(), x)
    assert all(p.grad is None for name, p in model.named_parameters() if "inserted_block" not in name)


class LazyFiles(dict[str, Tensor]):
    def values(self) -> Any:
        raise OSError("the file is gone")


def test_attributes_of_the_host_are_not_looked_into() -> None:
    model, x = AudioNet(), torch.randn(2, 2, 33)
    model.circle = {}
    model.circle["self"] = model.circle
    model.lazy = LazyFiles(a=x)
    cgnl.insert_blocks(model, {"body": make_1d}, example_input=x)
    assert list(inserted_blocks(model)) == ["body"]


def test_maps_kept_in_objects_hold_no_graph() -> None:
    model, x = AudioNet(), torch.randn(2, 2, 33)
    model.state = SimpleNamespace(map=None)
    model.register_forward_hook(lambda module, args, output: setattr(model.state, "map", output))
    cgnl.insert_blocks(model, {"body": make_1d}, example_input=x)
    assert model.state.map.grad_fn is None
    copy.deepcopy(model.state)


class Fails(AudioNet):
    """Fails with gradients; in other runs tells whether the map of the failed run is still there."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: list[bool] = []
        self.failed: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.alive += [map_of_run() is not None for map_of_run in self.failed]
        features = self.stem(x)
        if torch.is_grad_enabled():
            self.failed.append(weakref.ref(features))
            raise torch.OutOfMemoryError("out of memory")
        return self.head(torch.relu(self.body(features)).mean(-1))


def test_a_failed_run_is_forgotten_before_the_next() -> None:
    model = Fails()
    cgnl.insert_blocks(model, {"body": make_1d}, example_input=torch.randn(2, 2, 33))
    assert model.alive
    assert not any(model.alive)


class Remembers(AudioNet):
    """A buffer that is changed in place, and a part of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        features = self.stem(x)
        self.memory.mul_(0.9).add_(features.mean((0, 2)) * 0.1)
        return self.head(torch.relu(self.body(features)).mean(-1) + self.memory)


def test_a_buffer_that_is_changed_in_place_with_a_gradient() -> None:
    model, x = Remembers(), torch.randn(2, 2, 33)
    cgnl.insert_blocks(model, {"body": make_1d}, example_input=x)
    assert not model.memory.requires_grad
    assert not model.memory.any()
    model(x).sum().backward()  # not through the graph of the check, which is gone


class KeepsGradients(AudioNet):
    """Counts the gradients of its own parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[str] = []
        for name, parameter in self.named_parameters():
            parameter.register_hook(lambda gradient, name=name: self.counts.append(name))


def test_the_check_takes_few_gradients_of_the_host() -> None:
    model = KeepsGradients()
    cgnl.insert_blocks(model, {"body": make_1d}, example_input=torch.randn(2, 2, 33))
    assert set(model.counts) == {"stem.0.weight"}


def test_a_block_without_parameters_that_breaks_is_refused_too() -> None:
    with pytest.raises(ValueError, match=r"blocks\['1'\]: the network cannot be differentiated"):
        cgnl.insert_blocks(in_place_net(), {"1": lambda channels: nn.Sigmoid()}, example_input=torch.randn(2, 2, 9))


def test_random_numbers_of_python_are_left_alone() -> None:
    model, x = AudioNet(), torch.randn(2, 2, 33)
    model.register_forward_pre_hook(lambda module, args: random.random() and None)
    before = random.getstate()
    cgnl.insert_blocks(model, {"body": make_1d}, example_input=x)
    assert random.getstate() == before
