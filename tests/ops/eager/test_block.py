import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import tolerances
from cgnl import ops
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF
from cgnl.ops.eager import cgnl_block_batch_norm

KERNELS = [DotProduct(), EmbeddedGaussian(order=0), EmbeddedGaussian(order=4), GaussianRBF(gamma=0.3, order=3)]
OTHER_KERNELS = [GaussianRBF(gamma=0.3, order=3, beta="normalized"), GaussianRBF(gamma=0.3, order=3, beta="exact")]
IDS = ["dot", "gaussian-0", "gaussian-4", "rbf", "rbf-normalized", "rbf-exact"]
LAYOUTS = ["first", "last", "sliced", "transposed"]


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def random(*shape, seed):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def laid_out(x, layout):
    if layout == "last" and x.dim() > 3:
        return x.contiguous(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[x.dim()])
    if layout == "sliced":
        return torch.stack([x, x], dim=-1)[..., 0]
    return x.transpose(2, -1).contiguous().transpose(2, -1) if layout == "transposed" else x


def inputs_of(shape, groups, layout="first", inner=8):
    ones = (1,) * (len(shape) - 2)
    x = laid_out(random(*shape, seed=0), layout).requires_grad_()
    weights = [0.3 * random(inner, shape[1], *ones, seed=i) for i in (1, 2, 3)]
    weights.append(random(shape[1], inner // groups, *ones, seed=4))
    return x, [w.requires_grad_() for w in weights]


def assert_equal(results, expected, tolerance=tolerances.EAGER_FLOAT64):
    for result, reference in zip(results, expected, strict=True):
        if reference.abs().max() < tolerances.ZERO_FLOAT64:
            assert result.abs().max() < tolerances.ZERO_FLOAT64
        else:
            assert relative(result, reference) < tolerance


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", KERNELS + OTHER_KERNELS, ids=IDS)
@pytest.mark.parametrize("shape", [(2, 16, 7, 9), (3, 16, 1), (1, 16, 2, 3, 3)], ids=str)
def test_equals_naive_with_every_gradient(shape, kernel, layout):
    for groups in (1, 2, 8):
        x, weights = inputs_of(shape, groups, layout)
        dy = random(*shape, seed=9)
        results = {}
        for backend in ("eager", "naive"):
            y = ops.cgnl_block(x, *weights, groups=groups, kernel=kernel, scale="sqrt", backend=backend)
            gradients = torch.autograd.grad(y, [x, *weights], dy, allow_unused=True, materialize_grads=True)
            results[backend] = (y, *gradients)
        assert_equal(results["eager"], results["naive"])
        assert results["eager"][0].stride() == torch.empty_like(x).stride()


def reference_with_norm(x, weights, weight, bias, groups, kernel):
    branch = ops.cgnl_block(x, *weights, groups=groups, kernel=kernel, backend="naive")
    return x + F.batch_norm(branch, None, None, weight, bias, training=True, eps=1e-3)


def ours_with_norm(x, weights, weight, bias, groups, kernel, running=(None, None), momentum=0.0):
    return cgnl_block_batch_norm(
        x, *weights, weight, bias, *running, groups=groups, kernel=kernel, factor=1.0, eps=1e-3, momentum=momentum
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", [KERNELS[0], *KERNELS[2:]], ids=[IDS[0], *IDS[2:4]])
@pytest.mark.parametrize("shape", [(2, 16, 7, 9), (3, 16, 1), (2, 16, 2, 3, 3)], ids=str)
def test_with_batch_norm_equals_naive_with_every_gradient(shape, kernel, layout):
    for groups in (1, 8):
        x, weights = inputs_of(shape, groups, layout)
        weight, bias = random(16, seed=5).requires_grad_(), random(16, seed=6).requires_grad_()
        inputs = [x, *weights, weight, bias]
        dy = laid_out(random(*shape, seed=9), "last")
        y, expected = (run(x, weights, weight, bias, groups, kernel) for run in (ours_with_norm, reference_with_norm))
        gradients, expected_gradients = (
            torch.autograd.grad(out, inputs, dy, allow_unused=True, materialize_grads=True) for out in (y, expected)
        )
        assert_equal((y, *gradients), (expected, *expected_gradients), tolerances.EAGER_FLOAT64_BATCH_NORM)
        assert y.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("momentum", [0.1, 0.7])
def test_running_statistics_are_those_of_batch_norm(momentum):
    x, weights = inputs_of((3, 16, 5, 5), 2)
    norm = nn.BatchNorm2d(16, momentum=momentum, eps=1e-3).double()
    ours = copy.deepcopy(norm)
    ours_with_norm(x, weights, None, None, 2, DotProduct(), (ours.running_mean, ours.running_var), momentum)
    norm(ops.cgnl_block(x, *weights, groups=2, kernel="dot", backend="naive"))
    assert_equal((ours.running_mean, ours.running_var), (norm.running_mean, norm.running_var))


@pytest.mark.parametrize("kernel", KERNELS, ids=IDS[:4])
@pytest.mark.parametrize("normed", [False, True])
def test_gradcheck_and_gradgradcheck(kernel, normed):
    x, weights = inputs_of((2, 4, 3), 2, inner=2)
    x = (0.5 * x.detach()).requires_grad_()
    more = [random(4, seed=5).requires_grad_(), random(4, seed=6).requires_grad_()] if normed else []

    def run(x, theta, phi, g, z, *more):
        if more:
            return ours_with_norm(x, (theta, phi, g, z), *more, 2, kernel)
        return ops.cgnl_block(x, theta, phi, g, z, groups=2, kernel=kernel)

    assert gradcheck(run, (x, *weights, *more))
    assert gradgradcheck(run, (x, *weights, *more), atol=1e-4)


@pytest.mark.parametrize("wanted", range(7))
def test_each_gradient_alone_is_the_same(wanted):
    x, weights = inputs_of((2, 16, 5, 3), 2)
    inputs = [x, *weights, random(16, seed=5).requires_grad_(), random(16, seed=6).requires_grad_()]

    def run(inputs):
        return ours_with_norm(inputs[0], inputs[1:5], *inputs[5:], 2, KERNELS[2]).square().sum()

    together = torch.autograd.grad(run(inputs), inputs)[wanted]
    alone = [t if i == wanted else t.detach() for i, t in enumerate(inputs)]
    assert torch.equal(torch.autograd.grad(run(alone), inputs[wanted])[0], together)


def test_batch_norm_keeps_x_and_three_maps():
    x, weights = inputs_of((2, 32, 28, 28), 2, inner=16)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        ours_with_norm(x, weights, torch.ones(32, dtype=x.dtype), torch.zeros(32, dtype=x.dtype), 2, KERNELS[3])
    assert sum(kept.values()) < 1.1 * (x.numel() + 3 * x.numel() // 2) * x.element_size()
