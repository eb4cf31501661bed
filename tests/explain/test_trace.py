"""Traces against the network's own output and convolutions, and that a trace leaves the network alone."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import cgnl
from cgnl.explain.effect import effect
from cgnl.explain.trace import trace_blocks
from cgnl.networks import detection, image, video


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def awake(network: nn.Module) -> nn.Module:
    """Norms as after training: blocks are no longer the identity."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight.uniform_(0.5, 1)
                module.bias.uniform_(-0.2, 0.2)
                module.running_mean.uniform_(-0.1, 0.1)
    return network


class Recorder(nn.Module):
    """Hands its input on and keeps it, as the ground truth of what a block got."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.clone()
        return x


@pytest.mark.parametrize(
    ("make_block", "kind", "shape"),
    [
        (cgnl.CGNL1d, "cgnl", (9,)),
        (partial(cgnl.CGNL2d, scale="mean"), "cgnl", (5, 4)),
        (partial(cgnl.CGNL3d, kernel="rbf"), "cgnl", (2, 3, 4)),
        (cgnl.GeneralizedNonLocal1d, "gnl", (9,)),
        (partial(cgnl.GeneralizedNonLocal2d, kernel="embedded_gaussian"), "gnl", (4, 3)),
        (cgnl.GeneralizedNonLocal3d, "gnl", (2, 3, 2)),
        (partial(cgnl.NonLocal1d, subsample=True), "nl", (9,)),
        (partial(cgnl.NonLocal2d, pairwise="concatenation", bias=True), "nl", (5, 4)),
        (partial(cgnl.NonLocal3d, pairwise="gaussian", subsample=True), "nl", (3, 5, 4)),
        (cgnl.ResidualBlock2d, "residual", (5, 4)),
        (cgnl.ResidualBlock3d, "residual", (2, 3, 4)),
    ],
)
def test_features_are_those_of_the_block(make_block, kind, shape):
    block = awake(make_block(16)).eval()
    x = torch.randn(1, 16, *shape)
    before = copy.deepcopy(block)
    trace = trace_blocks(block, x)
    assert torch.equal(trace.output, block(x)[0])
    traced = trace.blocks[""]
    assert (traced.kind, traced.shape, traced.groups) == (kind, shape, before.groups)
    assert traced.samples == 1
    gaussian = getattr(block, "pairwise", None) == "gaussian"
    torch.testing.assert_close(traced.theta, (x if gaussian else before.theta(x))[0].detach())
    if kind == "residual":
        assert traced.phi is None
        assert traced.g is None
    elif getattr(block, "subsample", False):
        halves = (*shape[:-2], shape[-2] // 2, shape[-1] // 2) if len(shape) > 1 else (shape[0] // 2,)
        assert traced.phi.shape[1:] == traced.g.shape[1:] == halves
    else:
        torch.testing.assert_close(traced.phi, before.phi(x)[0].detach())
        torch.testing.assert_close(traced.g, before.g(x)[0].detach())


def test_pooling_takes_space_and_never_time():
    block = cgnl.NonLocal3d(8, subsample=True)
    x = torch.randn(1, 8, 3, 5, 4)
    g = block.g(x)[0].detach()
    pooled = trace_blocks(block, x).blocks[""].g
    assert pooled.shape == (4, 3, 2, 2)
    torch.testing.assert_close(pooled[:, 1, 0, 1], g[:, 1, 0:2, 2:4].amax((1, 2)))


def test_image_network():
    network = awake(image.resnet18("cgnl", num_blocks=2, num_classes=7))
    x = torch.randn(1, 3, 64, 96)
    trace = trace_blocks(network, x)
    assert list(trace.blocks) == ["layer2.0", "layer3.0"]
    assert trace.blocks["layer3.0"].theta.shape == (128, 4, 6)
    torch.testing.assert_close(trace.output, network.eval()(x)[0].detach(), rtol=0, atol=0)
    assert not any(t.requires_grad for t in (trace.output, trace.blocks["layer3.0"].theta))


def test_video_network():
    network = awake(video.c2d_resnet18("nl", num_classes=7, subsample=True))
    x = torch.randn(1, 3, 8, 32, 32)
    trace = trace_blocks(network, x)
    (block,) = trace.blocks.values()
    assert trace.output.shape == (7,)
    assert len(block.shape) == 3
    assert block.phi.shape[1:] == (block.shape[0], block.shape[1] // 2, block.shape[2] // 2)


def test_detection_network():
    network = detection.maskrcnn_resnet18("cgnl", num_classes=5, size=64, proposals=12, rois=16, detections=8)
    awake(network)
    trace = trace_blocks(network, [torch.rand(3, 64, 96)])
    assert set(trace.output[0]) >= {"boxes", "labels", "scores"}
    (block,) = trace.blocks.values()
    assert block.shape == (4, 6)


@pytest.mark.parametrize("shape", [(1, 10, 12), (1, 5, 4, 12)])
def test_blocks_among_channels_last(shape):
    host = nn.Sequential(nn.Linear(12, 16), Recorder(), nn.Linear(16, 4))
    x = torch.randn(shape)
    make_block = partial(cgnl.CGNL1d if len(shape) == 3 else cgnl.CGNL2d, groups=4)
    cgnl.insert_blocks(host, {"1": make_block}, example_input=x, layout="channels_last")
    awake(host)
    block = trace_blocks(host, x).blocks["1"]
    assert block.shape == shape[1:-1]
    expected = host[1].seen[0] @ host[1].inserted_block.phi.weight.flatten(1).T
    torch.testing.assert_close(block.phi.movedim(0, -1), expected.detach())


def test_half_networks_are_traced_in_float32():
    network = nn.Sequential(nn.Conv2d(3, 16, 3), cgnl.CGNL2d(16)).bfloat16()
    x = torch.randn(1, 3, 6, 6).bfloat16()
    block = trace_blocks(network, x).blocks["1"]
    with torch.no_grad():
        expected = copy.deepcopy(network[1].theta).float()(network[0](x).float())[0]
    assert block.theta.dtype == torch.float32
    torch.testing.assert_close(block.theta, expected)


def test_features_outlive_a_network_that_goes_on_in_place():
    network = nn.Sequential(nn.Conv2d(3, 16, 3), cgnl.NonLocal2d(16, pairwise="gaussian"), nn.ReLU(inplace=True))
    x = torch.randn(1, 3, 6, 6)
    seen = network[0](x)[0].detach()
    assert torch.equal(trace_blocks(network, x).blocks["1"].theta, seen)


def test_normalized_kernel_functions_get_normalized_features():
    block = cgnl.CGNL2d(16, groups=2, kernel=cgnl.GaussianRBF(beta="normalized"))
    traced = trace_blocks(block, torch.randn(1, 16, 5, 4)).blocks[""]
    norms = torch.stack([traced.theta, traced.phi]).reshape(2, 2, -1).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(2, 2))


def test_a_network_without_blocks_has_no_traces():
    assert trace_blocks(nn.Conv2d(3, 4, 1), torch.randn(1, 3, 2, 2)).blocks == {}


class Regions(nn.Module):
    """A network that passes three crops of its one input through its block, together or one after the other."""

    def __init__(self, *, together: bool) -> None:
        super().__init__()
        self.block = cgnl.CGNL2d(8, groups=2)
        self.together = together

    def forward(self, x: Tensor) -> Tensor:
        crops = [x[..., :4], x[..., 2:6], x[..., 4:]]
        return self.block(torch.cat(crops)) if self.together else torch.cat([self.block(crop) for crop in crops])


@pytest.mark.parametrize("together", [True, False])
def test_of_several_samples_the_first_is_kept_and_all_are_counted(together):
    network = Regions(together=together)
    x = torch.randn(1, 8, 4, 8)
    block = trace_blocks(network, x).blocks["block"]
    torch.testing.assert_close(block.theta, network.block.theta(x[..., :4])[0].detach())
    assert block.samples == 3


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("on purpose")


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_it_was(fails):
    network = nn.Sequential(nn.BatchNorm2d(8), cgnl.CGNL2d(8, groups=2), nn.Dropout(), *([Fails()] if fails else []))
    network[2].eval()
    before = copy.deepcopy(network.state_dict())
    state = torch.get_rng_state()
    try:
        trace_blocks(network, torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(1)))
    except RuntimeError:
        assert fails
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert [module.training for module in network[:3]] == [True, True, False]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_memory_grows_with_positions():
    block = cgnl.CGNL2d(8, groups=2)

    def kept(side: int) -> int:
        traced = trace_blocks(block, torch.randn(1, 8, side, side)).blocks[""]
        return sum(t.untyped_storage().nbytes() for t in (traced.theta, traced.phi, traced.g))

    assert kept(16) == 4 * 3 * 4 * 16**2
    assert kept(32) == 4 * kept(16)


@pytest.mark.parametrize("x", [torch.randn(2, 8, 4, 4), [torch.randn(3, 8, 8)] * 2, []])
def test_one_sample_at_a_time(x):
    with pytest.raises(ValueError, match=rf"x must hold one sample, not {len(x)}"):
        trace_blocks(cgnl.CGNL2d(8, groups=2), x)


def test_a_block_may_be_called_by_name():
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = cgnl.CGNL2d(8, groups=2)

        def forward(self, x):
            return self.block(x=x).mean((2, 3))

    network = ByName()
    x = torch.randn(1, 8, 4, 4)
    expected = network.block.theta(x)[0]
    torch.testing.assert_close(trace_blocks(network, x).blocks["block"].theta, expected)
    assert torch.equal(effect(network, x, "block").logits_bypassed, x.mean((2, 3))[0])
