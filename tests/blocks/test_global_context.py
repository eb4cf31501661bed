"""Global context against its equation position by position, and its one map against explain's."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cgnl
from cgnl.explain.maps import affinity
from cgnl.explain.trace import trace_blocks

SHAPES = {1: (7,), 2: (5, 3), 3: (2, 3, 4)}


def trained(num_axes, **options):
    torch.manual_seed(0)
    block = getattr(cgnl, f"GlobalContext{num_axes}d")(12, inner_channels=4, **options)
    nn.init.normal_(block.expand.weight)
    nn.init.normal_(block.expand.bias)
    return block


@pytest.mark.parametrize("num_axes", SHAPES)
def test_the_equation(num_axes):
    block = trained(num_axes, dtype=torch.float64)
    x = torch.randn(3, 12, *SHAPES[num_axes], dtype=torch.float64)
    for sample, out in zip(x.flatten(2), block(x).flatten(2), strict=True):
        logits = torch.stack([block.key.weight[0] @ sample[:, m] + block.key.bias[0] for m in range(sample.shape[1])])
        weights = logits.exp() / logits.exp().sum()
        context = sum(weights[m] * sample[:, m] for m in range(sample.shape[1]))
        hidden = block.squeeze.weight @ context + block.squeeze.bias
        normed = (hidden - hidden.mean()) / (hidden.var(unbiased=False) + 1e-5).sqrt()
        added = block.expand.weight @ normed.clamp(min=0) + block.expand.bias
        torch.testing.assert_close(out, sample + added[:, None])


def test_gradients_memory_formats_and_half_types():
    block = trained(2, dtype=torch.float64)
    x = torch.randn(2, 12, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))
    last = x.detach().to(memory_format=torch.channels_last)
    torch.testing.assert_close(block(last), block(x.detach()))
    half = copy.deepcopy(block).bfloat16()
    out = half(last.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), block(last), rtol=0.05, atol=0.05)


def test_explain_draws_its_one_map():
    block = trained(2)
    x = torch.randn(1, 12, 4, 5)
    trace = trace_blocks(block, x).blocks[""]
    expected = F.softmax(F.conv2d(x, block.key.weight[..., None, None], block.key.bias).flatten(), 0).view(4, 5)
    for position in ((0, 0), (3, 2)):
        torch.testing.assert_close(affinity(trace, position).reshape(4, 5), expected.detach())


@pytest.mark.parametrize("shape", [(2, 12, 5), (2, 11, 5, 5)])
def test_wrong_input(shape):
    with pytest.raises(ValueError, match="x "):
        trained(2)(torch.randn(shape))
