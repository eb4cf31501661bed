import itertools
import math

import pytest
import torch

from cgnl import ops
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF, SeriesKernel, resolve_kernel_function


def series(kernel, t, u):
    return sum(a2 * (t * u) ** p for p, a2 in enumerate(kernel.coefficients))


def grid(limit):
    values = torch.linspace(-limit, limit, 41, dtype=torch.float64)
    return values[:, None], values[None, :]


def test_dot_product_is_its_own_series():
    t, u = grid(3.0)
    kernel = DotProduct()
    torch.testing.assert_close(kernel.exact(t, u), t * u, rtol=0, atol=0)
    torch.testing.assert_close(series(kernel, t, u), t * u, rtol=0, atol=0)


@pytest.mark.parametrize("order", range(6))
def test_embedded_gaussian_error_is_below_the_remainder(order):
    t, u = grid(1.5)
    kernel = EmbeddedGaussian(order=order)
    torch.testing.assert_close(kernel.exact(t, u), torch.exp(t * u))
    bound = (t * u).abs() ** (order + 1) / math.factorial(order + 1) * torch.exp((t * u).clamp_min(0))
    error = (series(kernel, t, u) - kernel.exact(t, u)).abs()
    assert (error <= bound + 1e-15).all()
    assert error.max() > 1e-3  # the series is not the function itself


@pytest.mark.parametrize("order", range(6))
def test_rbf_with_exact_beta_is_below_its_bound(order):
    t, u = grid(1.5)
    kernel = GaussianRBF(gamma=0.4, order=order, beta="exact")
    envelope = kernel.envelope(t) * kernel.envelope(u)
    cross = 2 * 0.4 * t * u
    bound = cross.abs() ** (order + 1) / math.factorial(order + 1) * torch.exp(cross.clamp_min(0)) * envelope
    error = (series(kernel, t, u) * envelope - kernel.exact(t, u)).abs()
    assert (error <= bound + 1e-15).all()
    assert error.max() > 1e-6


def test_rbf_series_error_falls_with_the_order():
    t, u = grid(1.0)
    errors = []
    for order in range(6):
        kernel = GaussianRBF(gamma=0.4, order=order, beta="exact")
        approximate = series(kernel, t, u) * kernel.envelope(t) * kernel.envelope(u)
        errors.append((approximate - torch.exp(-0.4 * (t - u) ** 2)).abs().max())
    assert all(later < 0.6 * earlier for earlier, later in itertools.pairwise(errors))


def test_rbf_with_constant_beta_is_the_printed_formula():
    kernel = GaussianRBF(gamma=0.3, order=4, beta="constant")
    expected = [math.exp(-2 * 0.3) * (2 * 0.3) ** p / math.factorial(p) for p in range(5)]
    assert kernel.coefficients == pytest.approx(expected, rel=1e-15)
    assert kernel.envelope(torch.ones(2)) is None
    assert not kernel.normalizes_features


@pytest.mark.parametrize("beta", ["exact", "normalized"])
def test_rbf_with_an_envelope_is_the_series_of_the_cross_term(beta):
    kernel = GaussianRBF(gamma=0.3, order=4, beta=beta)
    assert kernel.coefficients == pytest.approx([(2 * 0.3) ** p / math.factorial(p) for p in range(5)], rel=1e-15)
    assert kernel.normalizes_features == (beta == "normalized")
    t = torch.linspace(-2, 2, 9, dtype=torch.float64)
    torch.testing.assert_close(kernel.envelope(t), torch.exp(-0.3 * t**2))
    torch.testing.assert_close(kernel.envelope_less_one(t), torch.exp(-0.3 * t**2) - 1)
    tiny = torch.tensor(1e-4)  # in float32 the envelope is 1 here
    torch.testing.assert_close(kernel.envelope_less_one(tiny), torch.tensor(-0.3e-8), rtol=1e-5, atol=0.0)


def test_an_envelope_of_ones_own_is_that_of_the_varying_part_too():
    class Wider(GaussianRBF):
        def envelope(self, t):
            return 1 / (1 + t.square())

    t = torch.linspace(-2, 2, 9, dtype=torch.float64)
    torch.testing.assert_close(Wider(beta="exact").envelope_less_one(t), 1 / (1 + t.square()) - 1)


@pytest.mark.parametrize("gamma", [1e-4, 0.5, 4.0])
def test_rbf_with_normalized_features_converges_to_the_exact_kernel(gamma):
    theta, phi, g = torch.randn(3, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theta_, phi_ = (t.reshape(2, 2, -1) / t.reshape(2, 2, -1).norm(dim=2, keepdim=True) for t in (theta, phi))
    pairs = torch.exp(-gamma * (theta_[..., :, None] - phi_[..., None, :]) ** 2)
    expected = (pairs @ g.reshape(2, 2, -1, 1)).reshape(theta.shape)
    errors = []
    for order in range(9):
        kernel = GaussianRBF(gamma=gamma, order=order, beta="normalized")
        exact = ops.generalized_non_local(theta, phi, g, groups=2, kernel=kernel)
        torch.testing.assert_close(exact, expected, rtol=1e-12, atol=1e-12)
        y = ops.compact_generalized_non_local(theta, phi, g, groups=2, kernel=kernel)
        errors.append(((y - expected).norm() / expected.norm()).item())
    assert all(later < 0.7 * earlier or later < 1e-14 for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 1e-3


def test_paper_settings_by_name():
    assert resolve_kernel_function("dot") == DotProduct()
    assert resolve_kernel_function("embedded_gaussian") == EmbeddedGaussian(order=3)
    assert resolve_kernel_function("rbf") == GaussianRBF(gamma=1e-4, order=3, beta="constant")
    own = SeriesKernel(torch.mul, [0, 1])
    assert resolve_kernel_function(own) is own


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EmbeddedGaussian(order=-1), r"order \(-1\) must be an integer of at least 0"),
        (lambda: GaussianRBF(order=2.0), r"order \(2\.0\) must be an integer of at least 0"),
        (lambda: GaussianRBF(gamma=0), r"gamma \(0\) must be a finite number above 0"),
        (lambda: GaussianRBF(gamma=math.nan), r"gamma \(nan\) must be a finite number above 0"),
        (lambda: GaussianRBF(beta="exakt"), r"beta \('exakt'\) must be one of 'constant', 'normalized', 'exact'"),
        (lambda: SeriesKernel("f", [1]), r"function \('f'\) must be callable"),
        (lambda: SeriesKernel(torch.mul, []), r"coefficients \(\[\]\) must hold at least one number that is not 0"),
        (lambda: SeriesKernel(torch.mul, [0, 0]), r"must hold at least one number that is not 0"),
        (lambda: SeriesKernel(torch.mul, [1, math.inf]), r"must be finite"),
        (
            lambda: resolve_kernel_function("gauss"),
            r"kernel \('gauss'\) must be one of 'dot', 'embedded_gaussian', 'rbf'",
        ),
        (lambda: resolve_kernel_function(3), r"kernel \(3\) must be one of"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
