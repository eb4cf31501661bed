"""A network with blocks trains on two processes as it does on one."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.resnet import BasicBlock, ResNet

import cgnl
from cgnl.insertion import inserted_blocks
from processes import in_two_processes

WORLD_SIZE = 2
# One block in its module, one around a container.
PATHS = ("layer2.0", "layer3")


def _network() -> nn.Module:
    torch.manual_seed(0)
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10).eval()
    make_block = partial(cgnl.CGNL2d, groups=4)
    cgnl.insert_blocks(model, dict.fromkeys(PATHS, make_block), example_input=torch.randn(1, 3, 32, 32))
    for block in inserted_blocks(model).values():
        nn.init.normal_(block.theta.weight, std=0.1)
        nn.init.ones_(block.norm.weight)
    return model


def _gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(x).square().mean().backward()
    gradients = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    return {name: grad.full_tensor() if isinstance(grad, DTensor) else grad.clone() for name, grad in gradients.items()}


def _data_parallel(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def _sharded(model: nn.Module) -> nn.Module:
    for stage in (model.layer1, model.layer2[0], model.layer4):
        fully_shard(stage)
    return fully_shard(model)


def _compare(rank: int, wrap: Callable[[nn.Module], nn.Module], init_file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=WORLD_SIZE)
    try:
        plain = _network()
        model = wrap(_network())
        chunks = torch.randn(WORLD_SIZE, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        for training in (False, True):
            of_each = [_gradients(copy.deepcopy(plain).train(training), chunk) for chunk in chunks]
            actual = _gradients(model.train(training), chunks[rank])
            assert actual.keys() == of_each[0].keys()
            assert sum(name.endswith("theta.weight") for name in actual) == len(PATHS)
            for name, gradient in actual.items():
                expected = torch.stack([gradients[name] for gradients in of_each]).mean(0)
                scale = expected.abs().max().item()
                assert scale > 0, name
                torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-3 * scale, msg=name)
        if wrap is _data_parallel:
            with pytest.raises(ValueError, match="insert blocks before DistributedDataParallel"):
                cgnl.insert_blocks(model, {"module.layer1": nn.Identity}, example_input=chunks[rank])
        else:
            with pytest.raises(ValueError, match="insert blocks before fully_shard"):
                cgnl.insert_blocks(model, {"layer1": nn.Identity}, example_input=chunks[rank])
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("wrap", [_data_parallel, _sharded])
def test_gradients_are_the_mean_of_those_of_each_process(
    wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    in_two_processes(_compare, wrap, str(tmp_path / "rendezvous"))
