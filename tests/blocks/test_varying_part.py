"""The part of a block's result that varies over the positions keeps its digits beside a much larger constant one."""

import copy

import pytest
import torch

import cgnl
from cgnl import ops


def varying(values):
    return values - values.flatten(2).mean(2)[(..., *(None,) * (values.dim() - 2))]


def trained(block, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in block.parameters():
        mean, std = (0.0, 0.1) if parameter.dim() > 1 else (1.0, 0.1)
        parameter.data = mean + std * torch.randn(parameter.shape, generator=generator)
    return block


def features(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).relu()
    return x * (0.5 + torch.rand(shape[0], *(1,) * (len(shape) - 1), generator=generator))


def exact_result(block, x):
    """The block's result less x, by the explicit matrices in float64."""
    block, x = copy.deepcopy(block).double(), x.double()
    branch = ops.cgnl_block(x, *block._weights(), groups=block.groups, kernel=block.kernel, backend="naive")
    return block.norm(branch)


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("beta", ["constant", "exact", "normalized"])
@pytest.mark.parametrize("form", ["eager", "saving", "compiled", "stream"])
def test_in_float32_at_the_papers_gamma(beta, training, form, layout):
    if form == "stream" and (training or beta == "normalized"):
        pytest.skip("a stream is for inference, and does not normalize features")
    shape = (4, 16, 1, 7, 7) if form == "stream" else (4, 16, 7, 7)
    make = cgnl.CGNL3d if form == "stream" else cgnl.CGNL2d
    block = trained(make(16, groups=2, kernel=cgnl.GaussianRBF(beta=beta), memory_efficient=form == "saving"))
    x = features(*shape)
    if layout == "last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    block.norm.momentum = 1.0
    block(x)  # running statistics that fit
    expected = exact_result(block.train(training), x)
    if form == "compiled":
        torch._dynamo.reset()
        block = torch.compile(block, backend="aot_eager", fullgraph=True)
    elif form == "stream":
        block = cgnl.CGNLStream3d(block)
    result = block(x).detach().double() - x
    # nothing is lost but by adding the parts and x at the end
    rounding = torch.finfo(torch.float32).eps * (x.abs() + expected.abs()).max()
    error = (varying(result) - varying(expected)).abs().max()
    assert error <= rounding + 1e-3 * varying(expected).abs().max()
