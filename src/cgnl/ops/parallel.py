"""Sums over the processes that share a sample's positions.

Where each process of a group holds a part of a map, the sums over a group's elements are the sums of the parts'.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
else:
    ProcessGroup = object  # builds of PyTorch without torch.distributed have no such name


def sum_over_processes(tensor: Tensor, process_group: ProcessGroup) -> Tensor:
    """Add the tensors of all processes, float32 or float64 (else ValueError); the gradient is the sum of theirs.

    Each process uses the sum, so a change of one process's tensor reaches the loss of every process: backward adds the
    gradients of all processes.
    """
    if tensor.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"tensor is {tensor.dtype}, but sums over processes run in float32 or float64")
    return _Sum.apply(tensor, process_group)


def over_processes(sums: Tensor, process_group: ProcessGroup | None) -> Tensor:
    """Return the sums over the parts of an input that the processes of a group hold; the own ones without a group."""
    return sums if process_group is None else sum_over_processes(sums, process_group)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, process_group: ProcessGroup) -> Tensor:
        ctx.process_group = process_group
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, dist.ReduceOp.SUM, process_group)
        return total

    @staticmethod
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor, None]:
        # through the function itself, so that second derivatives are right
        return _Sum.apply(d_total, ctx.process_group), None


def count_over_processes(count: int, features: Tensor, process_group: ProcessGroup) -> int:
    """Add the numbers of all processes; ValueError where they hold different numbers of samples (features [B, ...])."""
    batch = features.shape[0]
    numbers = torch.tensor([count, batch, batch**2], device=features.device)
    dist.all_reduce(numbers, dist.ReduceOp.SUM, process_group)
    total, batches, squares = numbers.tolist()
    if dist.get_world_size(process_group) * squares != batches**2:
        raise ValueError(
            f"the batch has {batch} samples here but not on every process of process_group: each process must hold a "
            "part, possibly empty, of the same samples"
        )
    return total
