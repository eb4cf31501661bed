"""Squeeze-and-excitation against torchvision's."""

import pytest
import torch
from torch import nn
from torchvision.ops import SqueezeExcitation

import cgnl

SHAPES = {1: (7,), 2: (5, 3), 3: (2, 3, 4)}


def pair(num_axes, dtype=torch.float64):
    """Our block and torchvision's with the same weights."""
    torch.manual_seed(0)
    ours = getattr(cgnl, f"SqueezeExcitation{num_axes}d")(12, inner_channels=4, dtype=dtype)
    nn.init.normal_(ours.excite.weight)
    nn.init.normal_(ours.excite.bias)
    theirs = SqueezeExcitation(12, 4).to(dtype)
    for own, other in ((ours.squeeze, theirs.fc1), (ours.excite, theirs.fc2)):
        other.weight.data.copy_(own.weight[..., None, None])
        other.bias.data.copy_(own.bias)
    return ours, theirs


@pytest.mark.parametrize("num_axes", SHAPES)
def test_it_is_torchvisions_with_a_factor_of_two(num_axes):
    ours, theirs = pair(num_axes)
    x = torch.randn(3, 12, *SHAPES[num_axes], dtype=torch.float64)
    expected = 2 * theirs(x.reshape(3, 12, -1, 1)).reshape(x.shape)
    torch.testing.assert_close(ours(x), expected)


def test_gradients_memory_formats_and_half_types():
    ours, theirs = pair(2)
    x = torch.randn(2, 12, 3, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(ours(x).square().sum(), x)
    (expected,) = torch.autograd.grad((2 * theirs(x)).square().sum(), x)
    torch.testing.assert_close(gradient, expected)
    last = x.detach().to(memory_format=torch.channels_last)
    out = ours(last)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, ours(x.detach()))
    half = ours.bfloat16()(last.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), out, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("shape", [(2, 12, 5), (2, 11, 5, 5)])
def test_wrong_input(shape):
    with pytest.raises(ValueError, match="x "):
        pair(2)[0](torch.randn(shape))
