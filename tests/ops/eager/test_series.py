import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import tolerances
from cgnl import ops
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF, SeriesKernel

KERNELS = [
    DotProduct(),
    EmbeddedGaussian(order=0),
    EmbeddedGaussian(order=1),
    EmbeddedGaussian(order=5),
    GaussianRBF(gamma=0.3, order=2),
    GaussianRBF(gamma=0.3, order=3),
    GaussianRBF(gamma=0.3, order=4, beta="normalized"),
    GaussianRBF(gamma=0.3, order=4, beta="exact"),
    SeriesKernel(lambda t, u: 2 - (t * u) ** 3, [2, 0, 0, -1, 0]),
]
KERNEL_IDS = ["dot", "gaussian-0", "gaussian-1", "gaussian-5", "rbf-2", "rbf-3", "rbf-normalized", "rbf-exact", "own"]
SHAPES = [(2, 8, 7, 9), (3, 16, 7, 7), (2, 8, 1), (2, 8, 3, 5, 2)]


def features_of(shape, *, seed=0, dtype=torch.float64, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_(requires_grad)
        for _ in range(3)
    ]


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def compact(theta, phi, g, *, groups, kernel, **options):
    return ops.compact_generalized_non_local(theta, phi, g, groups=groups, kernel=kernel, **options)


@pytest.mark.parametrize("kernel", KERNELS, ids=KERNEL_IDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_naive_with_every_gradient(shape, kernel):
    for groups in (1, 2, 8):
        for scale in (None, "mean"):
            features = features_of(shape, requires_grad=True)
            dy = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
            results = {}
            for backend in ("eager", "naive"):
                y = compact(*features, groups=groups, kernel=kernel, scale=scale, backend=backend)
                gradients = torch.autograd.grad(y, features, dy, allow_unused=True, materialize_grads=True)
                results[backend] = (y, *gradients)
            for eager, naive in zip(results["eager"], results["naive"], strict=True):
                # zero in truth: theta and phi in a constant, or normalised vectors of a single element
                if naive.abs().max() < tolerances.ZERO_FLOAT64:
                    assert eager.abs().max() < tolerances.ZERO_FLOAT64
                else:
                    assert relative(eager, naive) < tolerances.EAGER_FLOAT64


def test_a_wrong_coefficient_is_seen():
    features = features_of((2, 8, 7, 9))
    right = compact(*features, groups=2, kernel=EmbeddedGaussian(order=3), backend="naive")
    wrong = compact(*features, groups=2, kernel=SeriesKernel(torch.mul, [1, 1, 1 / 2, 1 / 6 + 1e-9]))
    assert relative(wrong, right) > tolerances.EAGER_FLOAT64


@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_gradcheck_and_gradgradcheck(groups, order):
    features = [0.5 * f.detach() for f in features_of((2, 8, 3))]
    features = [f.requires_grad_() for f in features]

    def run(*features):
        return compact(*features, groups=groups, kernel=EmbeddedGaussian(order=order))

    assert gradcheck(run, features)
    assert gradgradcheck(run, features)


def test_gradgradcheck_of_the_dot_product_with_one_input_fixed():
    theta, phi, g = features_of((2, 4, 3), requires_grad=True)
    assert gradgradcheck(lambda t, v: compact(t, phi.detach(), v, groups=2, kernel="dot"), (theta, g))


def test_groups_are_a_loop_over_consecutive_channels():
    features = features_of((2, 16, 5, 5))
    for kernel in KERNELS:
        grouped = compact(*features, groups=4, kernel=kernel, scale="sqrt")
        parts = [
            compact(*parts, groups=1, kernel=kernel, scale="sqrt")
            for parts in zip(*(f.chunk(4, dim=1) for f in features), strict=True)
        ]
        assert relative(grouped, torch.cat(parts, dim=1)) < tolerances.EAGER_FLOAT64


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_float32_sums_stay_within_rounding(memory_format):
    generator = torch.Generator().manual_seed(0)
    correlated = torch.rand((2, 64, 56, 56), generator=generator).contiguous(memory_format=memory_format)
    theta, phi, g = correlated + 0.5, correlated, correlated * 1.5
    y = compact(theta, phi, g, groups=2, kernel="dot").double()
    exact = compact(theta.double(), phi.double(), g.double(), groups=2, kernel="dot")
    sizes = (phi.double() * g.double()).abs().unflatten(1, (2, -1)).flatten(2).sum(2)
    unit = torch.finfo(torch.float32).eps * theta.double().abs().unflatten(1, (2, -1)) * sizes[:, :, None, None, None]
    assert ((y - exact).abs() <= tolerances.FLOAT32_SUM_UNITS * unit.flatten(1, 2)).all()


def test_half_types_sum_in_float32():
    for dtype in (torch.float16, torch.bfloat16):
        features = [torch.full((1, 2, 200, 250), value, dtype=dtype, requires_grad=True) for value in (1e-3, 4.0, 4.0)]
        y = compact(*features, groups=1, kernel="dot")  # the sum is 1.6e6, past float16's largest number
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), torch.full_like(y, 1600.0).float(), rtol=2e-2, atol=0)
        y.backward(torch.full_like(y, 1e-4))
        assert all(torch.isfinite(f.grad).all() and f.grad.dtype == dtype for f in features)


@pytest.mark.parametrize("kernel", KERNELS, ids=KERNEL_IDS)
def test_nan_stays_in_its_sample(kernel):
    features = features_of((3, 8, 5, 5), dtype=torch.float32)
    clean = compact(*features, groups=2, kernel=kernel)
    for poisoned in features:
        poisoned[1, 3, 2, 2] = torch.nan
    y = compact(*features, groups=2, kernel=kernel)
    assert torch.equal(y[0], clean[0])
    assert torch.equal(y[2], clean[2])
    assert y[1].isnan().any()


def test_batch_of_one_is_a_row_of_a_larger_batch():
    features = features_of((5, 16, 7, 9), dtype=torch.float32)
    whole = compact(*features, groups=4, kernel=EmbeddedGaussian(order=3))
    alone = compact(*(f[2:3] for f in features), groups=4, kernel=EmbeddedGaussian(order=3))
    assert relative(alone, whole[2:3]) < tolerances.BATCH_OF_ONE


def test_same_bits_when_repeated():
    features = features_of((3, 16, 28, 28), dtype=torch.float32)
    first = compact(*features, groups=4, kernel="rbf")
    assert all(torch.equal(first, compact(*features, groups=4, kernel="rbf")) for _ in range(3))


@pytest.mark.parametrize("kernel", KERNELS, ids=KERNEL_IDS)
def test_strides_and_non_contiguous_inputs(kernel):
    features = features_of((2, 8, 6, 7))
    expected = compact(*features, groups=2, kernel=kernel)
    last = [f.contiguous(memory_format=torch.channels_last) for f in features]
    y = compact(*last, groups=2, kernel=kernel)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative(y, expected) < tolerances.EAGER_FLOAT64
    sliced = [torch.stack([f, f], dim=-1)[..., 0] for f in features]
    assert relative(compact(*sliced, groups=2, kernel=kernel), expected) < tolerances.EAGER_FLOAT64


def test_powers_are_not_kept_for_the_backward_pass():
    features = features_of((2, 16, 28, 28), dtype=torch.float32, requires_grad=True)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        compact(*features, groups=2, kernel=EmbeddedGaussian(order=5))
    assert sum(kept.values()) < 1.01 * sum(f.numel() * 4 for f in features)


@pytest.mark.parametrize("order", range(6))
def test_series_error_against_the_exact_operation(order):
    """The bound of a pair, times sum |g|: far above rounding, so a wrong power would be seen."""
    theta, phi, g = (0.8 * f for f in features_of((1, 4, 3, 3)))
    gamma = 0.4
    kernel = GaussianRBF(gamma=gamma, order=order, beta="exact")
    exact = ops.generalized_non_local(theta, phi, g, groups=2, kernel=kernel)
    error = (compact(theta, phi, g, groups=2, kernel=kernel) - exact).abs().flatten().max().item()
    reach = 2 * gamma * theta.abs().max() * phi.abs().max()
    remainder = reach ** (order + 1) / torch.lgamma(torch.tensor(order + 2.0)).exp() * reach.exp()
    assert error <= (remainder * g.abs().sum()).item()
    assert error > 1e-9


def test_transforms_agree_with_plain_autograd():
    features = features_of((4, 8, 5), requires_grad=True)

    def loss(*one_sample):
        return compact(*(f[None] for f in one_sample), groups=2, kernel="rbf").square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(*(f.detach() for f in features))
    compact(*features, groups=2, kernel="rbf").square().sum().backward()
    for mapped, feature in zip(per_sample, features, strict=True):
        assert relative(mapped, feature.grad) < tolerances.EAGER_FLOAT64


def test_forward_mode_is_the_directional_derivative():
    features = features_of((2, 8, 5))
    tangents = features_of((2, 8, 5), seed=1)

    def run(*features):
        return compact(*features, groups=2, kernel=EmbeddedGaussian(order=2))

    _, tangent = torch.func.jvp(run, tuple(features), tuple(tangents))
    step = 1e-6
    plus, minus = (run(*(f + sign * step * t for f, t in zip(features, tangents, strict=True))) for sign in (1, -1))
    assert relative(tangent, (plus - minus) / (2 * step)) < 1e-8
