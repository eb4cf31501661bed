"""The fused form on a CUDA device at sizes that the interpreter is too slow for. `test_fused` runs there too."""

import pytest
import torch
from fused_cases import EPS, FORMS, Case, assert_close, gradients_of, inputs_of

from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF, KernelFunction
from cgnl.ops import eager

pytestmark = pytest.mark.gpu

# Relative to the norm, against the eager form in float64: outputs and gradients.
TOLERANCES = {"ieee": 2e-5, "tf32": 5e-3, "float16": 5e-3, "bfloat16": 2e-2}
CASES = [
    Case((4, 256, 28, 28), 128, 8),
    Case((4, 256, 14, 14), 128, 1, "last"),
    Case((2, 512, 4, 14, 14), 256, 8, "last"),
    Case((2, 200, 33, 31), 144, 4),
    Case((2, 512, 14, 14), 512, 1),
]
KERNELS = [DotProduct(), EmbeddedGaussian(5), GaussianRBF(gamma=0.01, beta="exact")]


def exact_form(form: str, inputs: list[torch.Tensor], groups: int, kernel: KernelFunction, factor: float):
    if form == "features":
        return eager.compact_generalized_non_local(*inputs, groups=groups, kernel=kernel, factor=factor)
    x, *weights = inputs[:5]
    branch = eager.cgnl_block(x, *weights, groups=groups, kernel=kernel, factor=factor)
    if form == "plain":
        return branch
    scale, shift = (t.view(-1, *(1,) * (x.dim() - 2)) for t in inputs[5:])
    if form == "batch_norm":
        axes = [axis for axis in range(x.dim()) if axis != 1]
        variance, mean = torch.var_mean(branch, axes, correction=0, keepdim=True)
        branch = (branch - mean) / (variance + EPS).sqrt()
    return x + scale * branch + shift


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_eager_in_float64(case, precision, form, monkeypatch):
    dtype = getattr(torch, precision, torch.float32)
    if dtype == torch.float32:
        monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", precision)
    case = Case(case.shape, case.inner, case.groups, case.layout, dtype)
    # features of about 1, as trained networks have them, and sums of about their own size
    inputs = [t.detach() for t in inputs_of(form, case)]
    if form != "features":
        inputs[1:4] = [t / t.shape[1] ** 0.5 for t in inputs[1:4]]
    inputs = [t.requires_grad_() for t in inputs]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    factor = (case.inner // case.groups * inputs[0][0, 0].numel()) ** -0.5
    for kernel in KERNELS:
        y = FORMS[form][0](inputs, case.groups, kernel, factor)
        expected = exact_form(form, exact, case.groups, kernel, factor)
        results, references = [y, *gradients_of(y, inputs, "last")], [expected, *gradients_of(expected, exact)]
        assert_close(results, references, TOLERANCES[precision])


def test_same_bits_when_repeated():
    case = Case((8, 512, 28, 28), 256, 8, "last", torch.bfloat16)
    runs = []
    for _ in range(3):
        inputs = inputs_of("batch_norm", case)
        y = FORMS["batch_norm"][0](inputs, case.groups, EmbeddedGaussian(), 1e-4)
        runs.append([y, *gradients_of(y, inputs)])
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))
