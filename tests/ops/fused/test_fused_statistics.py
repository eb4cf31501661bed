"""A covariance or correlation, and other groups of conv_z, in the fused form against the naive one in float64."""

import pytest
import torch
from fused_cases import CASES, DEVICE, EPS, Case, assert_close, by_channel, gradients_of, laid_out, random
from torch.nn import functional as F

from cgnl import ops
from cgnl.kernel_functions import DotProduct, SeriesKernel
from cgnl.ops import fused, naive
from cgnl.ops.fused import self_test
from cgnl.ops.fused.launching import launches

FLOAT32 = 3e-6
BATCH_NORM = 1e-5
HALF = {torch.float16: 2e-3, torch.bfloat16: 2e-2}

STATISTICS = {
    # statistic, groups of the sums (None: one for each channel), groups of conv_z
    "correlation": ("correlation", None, 1),
    "correlation of groups": ("correlation", 2, 2),
    "covariance": ("covariance", 2, 1),
    "sum": ("sum", 2, 1),
}


def inputs_of(case, z_groups, with_norm):
    channels, ones = case.shape[1], (1,) * (len(case.shape) - 2)
    x = random(*case.shape, seed=0) + 0.5
    weights = [0.3 * random(case.inner, channels, *ones, seed=seed) for seed in (1, 2, 3)]
    tensors = [x, *weights, random(channels, case.inner // z_groups, *ones, seed=4)]
    typed = [t.to(DEVICE, case.dtype) for t in tensors]
    if with_norm:
        typed += [random(channels, seed=seed).to(DEVICE, torch.float32) for seed in (5, 6)]
    return [laid_out(t, case.layout if i == 0 else "first").requires_grad_() for i, t in enumerate(typed)]


def run_naive(form, inputs, options):
    if form == "plain":
        return naive.cgnl_block(*inputs, **options)
    x, *weights, weight, bias = inputs
    branch = naive.cgnl_block(x, *weights, **options)
    if form == "affine":
        return x + by_channel(weight, x) * branch + by_channel(bias, x)
    return x + F.batch_norm(branch, None, None, weight, bias, training=True, eps=EPS)


def run_fused(form, inputs, options):
    if form == "batch_norm":
        return fused.cgnl_block_batch_norm(*inputs, None, None, eps=EPS, momentum=0.0, **options)
    return fused.cgnl_block(*inputs, out_dtype=torch.float32, **options)


def check(form, case, statistic, tolerance, factor=0.1):
    name, groups, z_groups = STATISTICS[statistic]
    options = {"groups": groups or case.inner, "kernel": DotProduct(), "factor": factor, "statistic": name}
    inputs = inputs_of(case, z_groups, with_norm=form != "plain")
    exact = [t.detach().double().requires_grad_() for t in inputs]
    y, expected = run_fused(form, inputs, options), run_naive(form, exact, options)
    assert_close([y, *gradients_of(y, inputs, "last")], [expected, *gradients_of(expected, exact)], tolerance)


@pytest.mark.parametrize("form", ["plain", "affine", "batch_norm"])
@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("case", [CASES[1], CASES[5], CASES[6]], ids=str)
def test_equals_naive_with_every_gradient(case, statistic, form):
    check(form, case, statistic, BATCH_NORM if form == "batch_norm" else FLOAT32)


@pytest.mark.parametrize("statistic", ["correlation", "covariance"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_types(dtype, statistic):
    for layout in ("first", "last"):
        check("plain", Case((2, 24, 5, 7), 12, 2, layout, dtype), statistic, HALF[dtype], factor=0.02)


def test_a_large_mean_costs_no_digits():
    """The features are a thousand deviations from zero, as an offset of x makes them."""
    theta, phi, g = (random(2, 8, 16, 16, seed=seed).to(DEVICE, torch.float32) for seed in (1, 2, 3))
    far = {"groups": 8, "kernel": DotProduct(), "factor": 1.0, "statistic": "covariance"}
    y = fused.compact_generalized_non_local(theta, phi + 1000, g - 1000, out_dtype=torch.float32, **far)
    expected = naive.compact_generalized_non_local(*(t.double() for t in (theta, phi + 1000, g - 1000)), **far)
    assert ((y - expected).norm() / expected.norm()).item() < 1e-4
    x = torch.cat([theta, torch.ones_like(theta[:, :1])], dim=1)
    weights = [torch.randn(8, 9, 1, 1, generator=torch.Generator().manual_seed(seed)).to(DEVICE) for seed in (1, 2)]
    for weight in weights:
        weight[:, -1] = 1000.0
    found = fused.moments.moments(x, *weights, 8)
    phi, g = (torch.einsum("oc,bcn->bon", w.flatten(1).double(), x.flatten(2).double()) for w in weights)
    products = (phi - phi.mean(-1, keepdim=True)) * (g - g.mean(-1, keepdim=True))
    assert ((found[..., 0] - products.sum(-1)).norm() / products.sum(-1).norm()).item() < 1e-3


@pytest.mark.parametrize("operation", ["branch", "affine", "batch_norm", "features"])
@pytest.mark.parametrize("apart", [False, True])
def test_the_self_test_knows_them(operation, apart):
    if operation == "features" and apart:
        pytest.skip("given features meet no conv_z")
    kind = self_test.Kind(operation, torch.float32, "first", 0b10, False, 16, moments=True, apart=apart)
    assert self_test.outcome_of(kind, torch.device(DEVICE)).reason is None
    launches.clear()
    self_test.outcome_of(kind, torch.device(DEVICE))
    assert launches["moments_kernel"] == (operation != "features")


def test_the_operations_take_the_fused_form():
    inputs = inputs_of(Case((2, 16, 5, 4), 8, 8), 1, with_norm=False)
    options = {"groups": 8, "z_groups": 1, "kernel": "dot", "statistic": "correlation"}
    launches.clear()
    y = ops.cgnl_block(*inputs, backend="fused", **options)
    assert launches["moments_kernel"] == 1
    expected = ops.cgnl_block(*(t.double() for t in inputs), backend="naive", **options)
    assert ((y - expected).norm() / expected.norm()).item() < FLOAT32
    constant = SeriesKernel(lambda t, u: 1 + t * u, [1, 1])
    with pytest.raises(ValueError, match="constant term, and z_groups is not groups"):
        ops.cgnl_block(*inputs, backend="fused", groups=8, z_groups=1, kernel=constant)
