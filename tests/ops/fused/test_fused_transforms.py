"""Backend 'fused' inside transforms: batched gradients run, what it cannot do it refuses, constants have gradients."""

import pytest
import torch
from fused_cases import DEVICE, Case, block_inputs, random

from cgnl import CGNL2d, ops
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF
from cgnl.ops.fused.launching import launches

SMALL = Case((2, 16, 2, 3), 8, 2)


def block_of(kernel, backend="fused", training=False):
    block = CGNL2d(16, groups=2, kernel=kernel, backend=backend)
    with torch.no_grad():
        for i, p in enumerate(block.parameters()):
            p.copy_(0.4 * random(*p.shape, seed=i))
    return block.to(DEVICE).train(training)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("kernel", [DotProduct(), EmbeddedGaussian(order=2)], ids=["dot", "gaussian"])
def test_batched_gradients_are_those_of_a_loop(kernel, training):
    block, x = block_of(kernel, training=training), random(2, 16, 2, 3, seed=8).float().to(DEVICE).requires_grad_()
    inputs = [x, *block.parameters()]
    y = block(x)
    directions = random(2, *y.shape, seed=9).float().to(DEVICE)
    looped = [torch.autograd.grad(y, inputs, d, retain_graph=True) for d in directions]
    launches.clear()
    batched = torch.autograd.grad(y, inputs, directions, is_grads_batched=True)
    assert launches
    for own, expected in zip(batched, zip(*looped, strict=True), strict=True):
        torch.testing.assert_close(own, torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("transform", "obstacle"),
    [
        (lambda run, x: torch.func.vmap(run)(x[None]), "function transforms"),
        (lambda run, x: torch.func.grad(lambda x: run(x).sum())(x), "function transforms"),
        (torch.jit.trace, "torch.jit cannot trace it"),
    ],
    ids=["vmap", "grad", "trace"],
)
def test_transforms_are_refused_and_auto_takes_the_eager_form(transform, obstacle):
    x = random(2, 16, 2, 3, seed=8).float().to(DEVICE)
    with pytest.raises(ValueError, match=rf"^backend 'fused' cannot run here: {obstacle}"):
        transform(block_of("dot"), x)
    launches.clear()
    transform(block_of("dot", "auto"), x)
    assert not launches


@pytest.mark.parametrize(
    "kernel", [EmbeddedGaussian(order=0), GaussianRBF(0.3, 0), GaussianRBF(0.3, 0, "exact")], ids=repr
)
def test_every_input_of_a_constant_gets_a_gradient(kernel):
    x, *weights = (t.detach().float().requires_grad_() for t in block_inputs(SMALL))
    y = ops.cgnl_block(x, *weights, groups=2, kernel=kernel, backend="fused")
    torch.autograd.grad(y.sum(), [x, *weights])
