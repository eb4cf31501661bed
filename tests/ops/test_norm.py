"""The block with its norm inside against conv_z's output, PyTorch's batch norm and the residual, in float64."""

import pytest
import torch
import torch.nn.functional as F

from cgnl import DotProduct, ops

RUNNING = [torch.linspace(-1, 1, 8).double(), torch.linspace(1, 2, 8).double()]


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("training", [True, False])
def test_block_with_norm_is_block_then_batch_norm(training, momentum):
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 8, 5, 7), (4, 8, 1, 1), (4, 8, 1, 1), (4, 8, 1, 1), (8, 2, 1, 1), (8,), (8,))
    x, *weights, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    mean, variance = (t.clone() for t in RUNNING)
    num_batches = torch.tensor(3)
    norm = ops.BatchNorm(weight, bias, mean, variance, num_batches, 1e-3, momentum, training, False)
    options = {"groups": 2, "kernel": DotProduct(), "scale": None}
    out = ops.cgnl_block_with_norm(
        x, *weights, None, norm, **options, backend="auto", memory_efficient=False, process_group=None
    )
    expected_running = [t.clone() for t in RUNNING]
    branch = ops.cgnl_block(x, *weights, **options, backend="naive")
    part = 1 / 4 if momentum is None else momentum
    normed = F.batch_norm(branch, *expected_running, weight, bias, training, part, 1e-3)
    torch.testing.assert_close(out, normed + x)
    torch.testing.assert_close([mean, variance], expected_running)
    assert num_batches == (4 if training else 3)
