"""One input split over two processes gives what one process gives, gradients too.

Gradients are those of the sum of both processes' losses, so a weight's are the sum of what the processes get.
"""

import os

import pytest
import torch
import torch.distributed as dist
from fused_cases import DEVICE, Case, assert_close, block_inputs, feature_inputs, random

from cgnl.blocks import CGNL2d
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF
from cgnl.ops import fused
from processes import in_two_processes

CASE = Case((2, 16, 3, 5), 8, 2)
NUM_ROWS = (1, 2)
KERNELS = [DotProduct(), EmbeddedGaussian(2), GaussianRBF(gamma=0.3, beta="exact")]
# float32, relative to the norm
TOLERANCE = 3e-6


def with_gradients(kernel, rank, process_group):
    """Output and gradients of the block and of the operation; of all positions, or of a process's own."""

    def part(t):
        return t if rank is None else t.split(NUM_ROWS, dim=2)[rank]

    results = []
    for inputs, dy in (
        (block_inputs(CASE), random(*CASE.shape, seed=9)),
        (feature_inputs(CASE), random(2, 8, 3, 5, seed=9)),
    ):
        own = [part(t) if t.shape[2] == 3 else t for t in inputs]
        run = fused.cgnl_block if len(own) == 5 else fused.compact_generalized_non_local
        y = run(*own, groups=2, kernel=kernel, factor=0.1, out_dtype=torch.float32, process_group=process_group)
        results.append([y, *torch.autograd.grad(y, own, part(dy).to(y))])
    return results


def of_blocks(kernel, rank, process_group):
    """Output and gradients of a block with fixed statistics, where the first process holds no position."""
    torch.manual_seed(0)
    block = CGNL2d(16, groups=2, kernel=kernel, scale="sqrt", backend="fused", process_group=process_group).eval()
    with torch.no_grad():
        for i, p in enumerate(block.parameters()):
            p.copy_(random(*p.shape, seed=i))
    x, dy = (random(2, 16, 3, 5, seed=i).float() for i in (8, 9))
    if rank is not None:
        x, dy = (t.split((0, 3), dim=2)[rank] for t in (x, dy))
    x.requires_grad_()
    y = block(x)
    y.backward(dy)
    return [y.detach(), x.grad, *(p.grad for p in block.parameters())]


def run_process(rank, path, interpreted):
    if interpreted:
        os.environ["TRITON_INTERPRET"] = "1"
    dist.init_process_group("gloo", init_method=f"file://{path}/rendezvous", rank=rank, world_size=2)
    results = [(*with_gradients(k, rank, dist.group.WORLD), of_blocks(k, rank, dist.group.WORLD)) for k in KERNELS]
    torch.save(results, f"{path}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    in_two_processes(run_process, str(tmp_path), DEVICE == "cpu")
    of_processes = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for kernel, *parts in zip(KERNELS, *of_processes, strict=True):
        wholes = (*with_gradients(kernel, None, None), of_blocks(kernel, None, None))
        for whole, first, second in zip(wholes, *parts, strict=True):
            joined = [
                torch.cat([a, b], dim=2) if a.shape != expected.shape else a + b
                for a, b, expected in zip(first, second, whole, strict=True)
            ]
            assert_close(joined, [t.double() for t in whole], TOLERANCE)
