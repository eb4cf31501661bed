"""The fused form against the naive one in float64; in triton's interpreter where there is no CUDA device."""

import pytest
import torch
from fused_cases import (
    CASES,
    DEVICE,
    EPS,
    FORMS,
    KERNELS,
    Case,
    assert_close,
    block_inputs,
    fused_block,
    gradients_of,
    inputs_of,
    naive_block,
    random,
    relative,
    results_of,
)
from torch import nn
from torch.nn import functional as F

from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF, KernelFunction
from cgnl.ops import fused
from cgnl.ops.fused.launching import launches

# float32 against the naive form in float64, relative to the norm: outputs and gradients.
FLOAT32 = 3e-6
# The same through BatchNorm, which takes the mean away.
FLOAT32_BATCH_NORM = 1e-5
# Half types, whose inputs are rounded before both forms; the interpreter truncates to bfloat16 where a GPU rounds.
HALF = {torch.float16: 1e-3, torch.bfloat16: 1e-2}
# A variance of float32 numbers a thousand deviations from zero: their own rounding.
FAR_VARIANCE = 1e-3

SMALL = Case((2, 16, 5, 3), 8, 2)


def tolerance_of(form):
    return FLOAT32_BATCH_NORM if form == "batch_norm" else FLOAT32


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_naive_with_every_gradient(case, form):
    results, expected = results_of(form, case, GaussianRBF(gamma=0.3, beta="exact"), 0.1)
    assert_close(results, expected, tolerance_of(form))


@pytest.mark.parametrize(
    ("form", "kernel"), [pytest.param(f, k, id=f"{n}-{f}") for f in ("plain", "features") for n, k in KERNELS.items()]
)
def test_every_kernel_function_equals_naive(kernel, form):
    results, expected = results_of(form, SMALL, kernel, 0.3)
    assert_close(results, expected, FLOAT32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_types(dtype, form):
    for layout in ("first", "last"):
        case = Case((2, 24, 5, 7), 12, 2, layout, dtype)
        results, expected = results_of(form, case, EmbeddedGaussian(), 0.02)
        assert_close(results, expected, HALF[dtype])
        assert [t.dtype for t in results[1:4]] == 3 * [dtype]


@pytest.mark.parametrize("inner", [8, 260])
def test_float16_stays_finite_with_large_sums(inner):
    case = Case((2, 8, 3, 3), inner, 2, dtype=torch.float16)
    inputs = [t.detach().mul(6).requires_grad_() for t in block_inputs(case)]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    y, expected = (
        form(tensors, case.groups, DotProduct(), 1.0) for form, tensors in ((fused_block, inputs), (naive_block, exact))
    )
    assert expected.abs().max() > 1e6
    scale = 1 / expected.abs().max().item()
    gradients, expected_gradients = (
        torch.autograd.grad((scale * out).sum(), tensors) for out, tensors in ((y, inputs), (expected, exact))
    )
    assert_close([y, *gradients], [expected, *expected_gradients], HALF[torch.float16])


@pytest.mark.parametrize("layout", ["first", "last", "sliced", "transposed"])
def test_results_have_the_strides_of_x(layout):
    for form in ("plain", "affine", "batch_norm"):
        inputs = inputs_of(form, Case((2, 16, 5, 3), 8, 2, layout))
        y = FORMS[form][0](inputs, 2, DotProduct(), 1.0)
        (d_x,) = torch.autograd.grad(y.sum(), inputs[0])
        assert y.stride() == d_x.stride() == torch.empty_like(inputs[0]).stride()


@pytest.mark.parametrize("form", ["plain", "affine", "features"])
def test_nan_stays_in_its_sample(form):
    inputs = [t.detach() for t in inputs_of(form, SMALL)]
    inputs[0][0, 3, 2, 1] = torch.nan
    y = FORMS[form][0](inputs, SMALL.groups, EmbeddedGaussian(2), 1.0)
    assert y[0].isnan().any()
    assert not y[1].isnan().any()


@pytest.mark.parametrize("form", FORMS)
def test_same_bits_when_repeated(form):
    runs = []
    for _ in range(2):
        inputs = inputs_of(form, SMALL)
        y = FORMS[form][0](inputs, SMALL.groups, EmbeddedGaussian(), 0.1)
        runs.append([y, *gradients_of(y, inputs)])
    assert all(map(torch.equal, *runs))


@pytest.mark.parametrize("form", FORMS)
def test_each_gradient_alone_is_the_same(form):
    inputs = inputs_of(form, SMALL)
    together = gradients_of(FORMS[form][0](inputs, SMALL.groups, EmbeddedGaussian(), 0.1), inputs)
    for wanted, gradient in enumerate(together):
        alone = [t if i == wanted else t.detach() for i, t in enumerate(inputs)]
        y = FORMS[form][0](alone, SMALL.groups, EmbeddedGaussian(), 0.1)
        assert torch.equal(gradients_of(y, alone[wanted : wanted + 1])[0], gradient)


@pytest.mark.parametrize(("momentum", "inner"), [(0.1, 8), (0.7, 260)])
def test_running_statistics_are_those_of_batch_norm(momentum, inner):
    case = Case((3, 16, 3, 5), inner, 2)
    inputs = [t.detach() for t in block_inputs(case)]
    norm = nn.BatchNorm2d(16, momentum=momentum, eps=EPS).to(DEVICE, torch.float64)
    norm.running_mean.copy_(random(16, seed=7))
    norm.running_var.copy_(random(16, seed=8).abs())
    running = [norm.running_mean.float(), norm.running_var.float()]
    fused.cgnl_block_batch_norm(
        *inputs, None, None, *running, groups=2, kernel=EmbeddedGaussian(), factor=0.1, eps=EPS, momentum=momentum
    )
    norm(naive_block([t.double() for t in inputs], 2, EmbeddedGaussian(), 0.1))
    assert_close(running, [norm.running_mean, norm.running_var], FLOAT32)


def test_norm_without_weight_and_bias():
    inputs = block_inputs(SMALL)
    plain = [torch.ones(16, device=DEVICE), torch.zeros(16, device=DEVICE)]
    y, expected = (
        FORMS["batch_norm"][0]([*inputs, *norm], SMALL.groups, DotProduct(), 1.0) for norm in ([None, None], plain)
    )
    assert torch.equal(y, expected)
    assert all(map(torch.equal, gradients_of(y, inputs), gradients_of(expected, inputs)))


def test_variance_far_from_zero_is_stable():
    """The tiles' statistics: a difference of mean squares would leave nothing of this variance."""
    case = Case((1, 16, 140), 8, 1)
    inputs = [t.detach() for t in block_inputs(case)]
    exact = [t.double() for t in inputs]
    kernel = EmbeddedGaussian(1)
    # phi small: the constant of the polynomial, the sum of g, stands far above what varies with theta
    inputs[2] *= 1e-4
    exact[2] *= 1e-4
    branch = naive_block(exact, 1, kernel, 1.0)
    variance, mean = torch.var_mean(branch, dim=(0, 2))
    assert (mean.square() / variance).median() > 1e5
    running = [torch.zeros(16, device=DEVICE), torch.zeros(16, device=DEVICE)]
    fused.cgnl_block_batch_norm(
        *inputs, None, None, *running, groups=1, kernel=kernel, factor=1.0, eps=EPS, momentum=1.0
    )
    assert relative(running[0], mean) < FLOAT32
    assert relative(running[1], variance) < FAR_VARIANCE


@pytest.mark.parametrize(
    ("samples", "inner", "beta", "dtype"),
    [
        *((1, 8, "constant", dtype) for dtype in (torch.float32, torch.bfloat16)),
        *((3, 8, "exact", dtype) for dtype in (torch.float32, torch.bfloat16)),
        # every further sample of a wide group takes the interpreter a second
        (2, 260, "constant", torch.float32),
        (1, 260, "exact", torch.bfloat16),
    ],
    ids=str,
)
def test_the_part_that_varies_keeps_its_digits(samples, inner, beta, dtype):
    """At this gamma it is less than 1e-3 of the branch. Of equal samples the norm leaves nothing else."""
    inputs = [t.detach() for t in inputs_of("batch_norm", Case((1, 16, 5, 3), inner, 2, dtype=dtype))]
    inputs[0] = inputs[0].repeat(samples, 1, 1, 1)
    exact = [t.double().requires_grad_() for t in inputs]
    inputs = [t.requires_grad_() for t in inputs]
    options = {"groups": 2, "kernel": GaussianRBF(beta=beta), "factor": 0.1}
    branch = naive_block(exact[:5], **options)
    assert (branch - branch.mean((2, 3), keepdim=True)).norm() < 1e-3 * branch.norm()
    expected = exact[0] + F.batch_norm(branch, None, None, *exact[5:], training=True, eps=1e-20)
    y = fused.cgnl_block_batch_norm(*inputs, None, None, **options, eps=1e-20, momentum=0.0)
    # the gradients of phi's and g's weights, which make z_0, are the norm's own small rest
    wanted = [1, 4, 5, 6]
    results, reference = (
        [out, *gradients_of(out, [t[i] for i in wanted])] for out, t in ((y, inputs), (expected, exact))
    )
    assert_close(results, reference, FLOAT32_BATCH_NORM if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("form", ["plain", "affine", "batch_norm"])
def test_keeps_little_more_than_x(form):
    case = Case((2, 16, 20, 20), 8, 1)
    inputs = inputs_of(form, case)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        FORMS[form][0](inputs, case.groups, EmbeddedGaussian(), 0.1)
    assert sum(kept.values()) < 1.15 * inputs[0].nbytes


def counted(run):
    launches.clear()
    result = run()
    return result, dict(launches)


FORWARD_LAUNCHES = {
    "plain": {"power_sums_kernel": 1, "branch_kernel": 1},
    "affine": {"power_sums_kernel": 1, "branch_kernel": 1},
    "batch_norm": {"power_sums_kernel": 1, "branch_kernel": 1, "finish_kernel": 1},
    "features": {"feature_sums_kernel": 1, "polynomial_kernel": 1},
}
BACKWARD_LAUNCHES = {
    "plain": {"branch_backward_kernel": 1, "power_sums_backward_kernel": 1},
    "affine": {"branch_gradient_sums_kernel": 1, "branch_backward_kernel": 1, "power_sums_backward_kernel": 1},
    "batch_norm": {"branch_gradient_sums_kernel": 1, "branch_backward_kernel": 1, "power_sums_backward_kernel": 1},
    "features": {"polynomial_backward_kernel": 1, "feature_sums_backward_kernel": 1},
}


@pytest.mark.parametrize("form", FORMS)
def test_passes_over_the_input(form):
    inputs = inputs_of(form, SMALL)
    y, forward = counted(lambda: FORMS[form][0](inputs, SMALL.groups, EmbeddedGaussian(), 0.1))
    assert forward == FORWARD_LAUNCHES[form]
    _, backward = counted(lambda: gradients_of(y, inputs))
    assert backward == BACKWARD_LAUNCHES[form]


def test_what_it_cannot_run_is_named():
    class Laplacian(KernelFunction):
        coefficients = (1.0, 1.0)

        def envelope(self, t):
            return torch.exp(-t.abs())

    class Points(torch.Tensor):
        pass

    x = torch.ones(1, 8, 5, device=DEVICE)
    dot = DotProduct()
    assert fused.obstacle(x, x.half(), kernel=dot) is None
    assert fused.obstacle(x, kernel=GaussianRBF(order=5, beta="exact")) is None
    assert fused.obstacle(x.double(), kernel=dot) == "it has no float64"
    assert fused.obstacle(x[:0], kernel=dot) == "it takes no empty tensors"
    assert fused.obstacle(x, kernel=EmbeddedGaussian(6)) == "the series has order 6, above 5"
    assert fused.obstacle(x, kernel=GaussianRBF(beta="normalized")) == "GaussianRBF normalizes its features"
    assert fused.obstacle(x, kernel=Laplacian()) == "Laplacian has an envelope of its own"
    assert fused.obstacle(x.as_subclass(Points), kernel=dot) == "it takes plain tensors, not Points"
    transforms = "function transforms and forward-mode derivatives do not reach into it"
    seen = []
    torch.func.vmap(lambda row: seen.append(fused.obstacle(row[None], kernel=dot)) or row)(x)
    with torch.autograd.forward_ad.dual_level():
        seen.append(fused.obstacle(x, kernel=dot))
    assert seen == [transforms, transforms]


def test_a_cpu_is_named(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    obstacle = fused.obstacle(torch.ones(1, 8, 5), kernel=DotProduct())
    assert obstacle == "it needs a CUDA device, and the tensors are on cpu"


@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives_are_refused(form):
    inputs = inputs_of(form, SMALL)
    y = FORMS[form][0](inputs, SMALL.groups, EmbeddedGaussian(1), 0.1)
    gradients = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match='has no second derivatives; use backend="eager"'):
        torch.autograd.grad(gradients[0].sum(), inputs[0])
