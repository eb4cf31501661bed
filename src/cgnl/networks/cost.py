"""What a network costs: its parameters, and the multiplications of one forward."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode


class _SkippedBatchNorm(TorchFunctionMode):
    """Leaves batch norms out: their products are not counted, yet they take most of the time on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is F.batch_norm else func(*args, **(kwargs or {}))


class NetworkCost(NamedTuple):
    """What a network costs: ``parameters`` it holds and ``multiplications`` of one forward of one input."""

    parameters: int
    multiplications: int


def network_cost(build: Callable[[], nn.Module], input_shape: tuple[int, ...]) -> NetworkCost:
    """Count the parameters and multiplications of a network, without memory or time for its tensors.

    Counted are the multiply-adds of convolutions and matrix products, one each; elementwise work is not. ``build``
    returns the network and is called on the meta device, and on the CPU if it computes with numbers; ``input_shape``
    has the batch axis, for instance (1, 3, 224, 224).

    >>> network_cost(lambda: nn.Conv2d(3, 8, kernel_size=5), (1, 3, 14, 14))
    NetworkCost(parameters=608, multiplications=60000)
    """
    with torch.device("meta"), torch.no_grad(), _SkippedBatchNorm():
        network = _built(build).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(input_shape))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return NetworkCost(parameters, counter.get_total_flops() // 2)


def _built(build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except NotImplementedError:  # torchvision's RegNets compute their widths with tensors
        with torch.device("cpu"):
            return build().to("meta")
