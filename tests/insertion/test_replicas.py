"""Replicas of a network, as DataParallel makes them, run their own blocks; scripted networks are refused."""

import copy
import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hosts import HOSTS, KINDS, AudioNet, awaken, make_1d, make_2d, outline, small_resnet
from torch import Tensor, nn
from torch.nn.parallel import replicate

import cgnl
from cgnl.insertion import inserted_blocks


class Copy(torch.autograd.Function):
    """A broadcast to two places, with the sum of their gradients; PyTorch's own wants GPUs."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for _ in range(2) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        half = len(gradients) // 2
        return tuple(
            b if a is None else a if b is None else a + b
            for a, b in zip(gradients[:half], gradients[half:], strict=True)
        )


def _copy(tensors: Sequence[Tensor], devices: Sequence[int], detach: bool = False) -> list[list[Tensor]]:
    copies = list(Copy.apply(*tensors)) if tensors else []
    return [copies[: len(tensors)], copies[len(tensors) :]]


@pytest.fixture
def _broadcast_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["torch.nn.parallel.replicate"], "_broadcast_coalesced_reshape", _copy)


@pytest.mark.usefixtures("_broadcast_on_cpu")
@pytest.mark.parametrize("name", [*KINDS, "densenet-block", "timm-regnet-stage"])
def test_replicas_run_their_own_blocks(name: str) -> None:
    model, x = HOSTS[name].make_inserted()
    expected = model(x)
    expected.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()

    replicas = replicate(model, [0, 0])
    key = HOSTS[name].block_key
    ran = []
    model.get_submodule(key).register_forward_hook(lambda block, args, output: ran.append(block))
    outputs: list[Tensor | None] = [None, None]

    def run(index: int) -> None:
        outputs[index] = replicas[index](x)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {id(block) for block in ran} == {id(replica.get_submodule(key)) for replica in replicas}
    for output in outputs:
        torch.testing.assert_close(output, expected)
    outputs[0].square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[parameter_name], rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("_broadcast_on_cpu")
def test_replicas_of_copies_and_of_several_blocks_in_one_owner() -> None:
    torch.manual_seed(0)
    model, x = small_resnet().eval(), torch.randn(2, 3, 32, 32)
    before = outline(model)
    paths = ["layer1", "layer2.0", "layer2", "layer3"]
    cgnl.insert_blocks(model, dict.fromkeys(paths, make_2d), example_input=x)
    for block in inserted_blocks(model).values():
        nn.init.normal_(block.norm.weight)
    expected = model(x)
    assert expected.isfinite().all()
    clone = copy.deepcopy(model)
    for block in inserted_blocks(model).values():
        nn.init.zeros_(block.norm.weight)  # the copy has blocks of its own
    for replica in replicate(clone, [0, 0]):
        torch.testing.assert_close(replica(x), expected)
    assert outline(cgnl.remove_blocks(model)) == before
    assert outline(cgnl.remove_blocks(clone)) == before


def _scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Conv1d(2, 16, 3), nn.ReLU()))


def _traced() -> nn.Module:
    return torch.jit.trace(AudioNet().eval(), torch.randn(2, 2, 33))


class PartlyScripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scripted = _scripted()
        self.conv = nn.Conv1d(16, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.scripted(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize(
    ("build", "path"),
    [
        (_scripted, "1"),
        (_scripted, ""),
        (_traced, "body"),
        (PartlyScripted, "scripted"),
        (PartlyScripted, "scripted.0"),
    ],
)
def test_scripted_and_traced_networks_are_refused(build: Any, path: str) -> None:
    with pytest.raises(ValueError, match=r"model: insert blocks before torch\.jit\.script or torch\.jit\.trace"):
        cgnl.insert_blocks(build(), {path: make_1d}, example_input=torch.randn(2, 2, 33))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("name", KINDS)
def test_scripting_a_network_with_blocks_says_what_to_do(name: str) -> None:
    model, _ = HOSTS[name].make_inserted()
    with pytest.raises(AttributeError, match=r"torch\.jit\.script cannot compile inserted blocks; torch\.export"):
        torch.jit.script(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_network_with_a_scripted_part_elsewhere() -> None:
    model, x = PartlyScripted(), torch.randn(2, 2, 33)
    plain = model(x)
    cgnl.insert_blocks(model, {"conv": make_1d}, example_input=x)
    assert torch.equal(model(x), plain)
    assert torch.equal(cgnl.remove_blocks(awaken(model))(x), plain)
