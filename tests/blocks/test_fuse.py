"""Folding the norm into conv_z for inference."""

import copy

import pytest
import torch
from torch import nn

import cgnl
import tolerances

BLOCKS = {
    "CGNL1d": (lambda: cgnl.CGNL1d(16), (3, 16, 11)),
    "CGNL2d": (lambda: cgnl.CGNL2d(16, groups=2, kernel="embedded_gaussian", scale="mean"), (3, 16, 5, 7)),
    "CGNL2d rbf exact": (lambda: cgnl.CGNL2d(16, kernel=cgnl.GaussianRBF(gamma=0.3, beta="exact")), (3, 16, 5, 7)),
    "CGNL2d naive": (lambda: cgnl.CGNL2d(16, backend="naive"), (2, 16, 5, 3)),
    "CGNL2d sync": (lambda: cgnl.CGNL2d(16, norm="sync_batch"), (3, 16, 5, 7)),
    "CGNL2d norm without weight": (
        lambda: cgnl.CGNL2d(16, norm=lambda channels: nn.BatchNorm2d(channels, affine=False)),
        (3, 16, 5, 7),
    ),
    "CGNL3d": (lambda: cgnl.CGNL3d(16), (2, 16, 2, 5, 4)),
    "GeneralizedNonLocal2d": (lambda: cgnl.GeneralizedNonLocal2d(16), (2, 16, 3, 4)),
    "NonLocal2d": (lambda: cgnl.NonLocal2d(16, bias=True), (3, 16, 5, 7)),
    "ResidualBlock3d": (lambda: cgnl.ResidualBlock3d(16), (2, 16, 2, 5, 4)),
}


def trained(block):
    """The block in float64 as after training: no parameter is zero, and the running statistics are no start values."""
    generator = torch.Generator().manual_seed(0)
    for tensor in (*block.double().parameters(), block.norm.running_mean):
        tensor.data.copy_(0.4 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    block.norm.running_var.uniform_(0.5, 2.0, generator=generator)
    return block.eval()


@pytest.mark.parametrize("name", BLOCKS)
def test_a_fused_block_gives_the_same(name):
    make, shape = BLOCKS[name]
    block = trained(make())
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = block(x)
    assert (expected - x).norm() > 0.01 * x.norm()
    fused = copy.deepcopy(block).fuse()
    assert (fused(x) - expected).norm() < tolerances.EAGER_FLOAT64 * expected.norm()
    assert fused.norm is None
    assert fused.z.bias is not None
    assert not any(parameter.requires_grad for parameter in fused.parameters())


def test_half_types_too():
    block = trained(cgnl.CGNL2d(16)).float()
    x = torch.randn(3, 16, 9, 9)
    expected = block(x)
    fused = copy.deepcopy(block).fuse().bfloat16()
    assert (fused(x.bfloat16()).float() - expected).norm() < tolerances.HALF["bfloat16"] * expected.norm()


def test_blocks_of_a_network():
    network = nn.Sequential(cgnl.CGNL2d(16), nn.ReLU(), cgnl.NonLocal2d(16), cgnl.CGNL2d(16, norm="group")).double()
    for block in (network[0], network[2]):
        trained(block)
    network.eval()
    x = torch.randn(2, 16, 5, 5, dtype=torch.float64)
    expected = network(x)
    assert cgnl.fuse_blocks(network) is network
    assert (network(x) - expected).norm() < tolerances.EAGER_FLOAT64 * expected.norm()
    assert network[0].norm is network[2].norm is None
    assert isinstance(network[3].norm, nn.GroupNorm)  # its statistics are those of each input


def test_what_cannot_be_fused_is_named():
    with pytest.raises(ValueError, match="CGNL2d is in training, but fuse is for inference"):
        cgnl.CGNL2d(16).fuse()
    with pytest.raises(ValueError, match="norm is GroupNorm, but only BatchNorm with running statistics"):
        cgnl.CGNL2d(16, norm="group").eval().fuse()
    fused = cgnl.CGNL2d(16).eval().fuse()
    with pytest.raises(ValueError, match="CGNL2d is fused for inference and cannot be trained"):
        nn.Sequential(fused).train()
    assert cgnl.CGNL2d(16, norm=None).eval().fuse().z.bias is None


def test_others_keep_their_conv_z():
    block = trained(cgnl.CGNL3d(16))
    stream = cgnl.CGNLStream3d(block)
    x = torch.randn(1, 16, 1, 5, 5, dtype=torch.float64)
    expected = stream(x)
    block.fuse()
    stream.reset()
    assert torch.equal(stream(x), expected)
    assert (block(x) - expected).norm() < tolerances.EAGER_FLOAT64 * expected.norm()


def with_hook(block):
    block.norm.register_forward_hook(lambda *_: None)


def with_bias(block):
    block.z = nn.Conv2d(16, 16, 1, groups=8)


def with_weight_norm(block):
    nn.utils.parametrizations.weight_norm(block.z)


@pytest.mark.parametrize("change", [with_hook, with_bias, with_weight_norm])
def test_a_changed_block_is_refused_and_left_as_it_was(change):
    network = nn.Sequential(cgnl.CGNL2d(16), cgnl.CGNL2d(16))
    change(network[1])
    network.eval()
    with pytest.raises(ValueError, match="conv_z or the norm of CGNL2d was changed or has hooks"):
        cgnl.fuse_blocks(network)
    assert all(block.norm is not None for block in network)
