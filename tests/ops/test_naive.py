"""The ground truth itself, against loops over single numbers."""

import math

import pytest
import torch

from cgnl import ops
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF

SHAPE = (2, 4, 3, 2)
KERNELS = [
    DotProduct(),
    EmbeddedGaussian(order=2),
    GaussianRBF(gamma=0.3, order=2),
    GaussianRBF(gamma=0.3, order=2, beta="normalized"),
    GaussianRBF(gamma=0.3, order=2, beta="exact"),
]


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, dtype=torch.float64, generator=generator) for _ in range(3)]


def elements_of_group(sample, group, groups):
    width = sample.shape[0] // groups
    return [float(v) for v in sample[group * width : (group + 1) * width].flatten()]


def loop_over_pairs(theta, phi, g, groups, kernel, pair):
    y = torch.empty_like(theta)
    for b in range(theta.shape[0]):
        for group in range(groups):
            t, p, v = (elements_of_group(sample[b], group, groups) for sample in (theta, phi, g))
            if kernel.normalizes_features:
                t, p = ([value / math.sqrt(sum(w * w for w in vector)) for value in vector] for vector in (t, p))
            out = [sum(pair(ti, pj) * gj for pj, gj in zip(p, v, strict=True)) for ti in t]
            width = theta.shape[1] // groups
            part = y[b, group * width : (group + 1) * width]
            part.copy_(torch.tensor(out, dtype=torch.float64).view_as(part))
    return y


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_compact_is_the_sum_over_pairs_of_the_series(features, kernel, groups):
    def pair(t, u):
        value = sum(a2 * (t * u) ** p for p, a2 in enumerate(kernel.coefficients))
        if isinstance(kernel, GaussianRBF) and kernel.beta != "constant":
            value *= math.exp(-kernel.gamma * t * t) * math.exp(-kernel.gamma * u * u)
        return value

    y = ops.compact_generalized_non_local(*features, groups=groups, kernel=kernel, backend="naive")
    torch.testing.assert_close(y, loop_over_pairs(*features, groups, kernel, pair), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_generalized_is_the_sum_over_pairs_of_the_exact_function(features, kernel, groups):
    exact = {
        DotProduct: lambda t, u: t * u,
        EmbeddedGaussian: lambda t, u: math.exp(t * u),
        GaussianRBF: lambda t, u: math.exp(-0.3 * (t - u) ** 2),
    }[type(kernel)]
    y = ops.generalized_non_local(*features, groups=groups, kernel=kernel, backend="naive")
    torch.testing.assert_close(y, loop_over_pairs(*features, groups, kernel, exact), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("scale", "factor"), [(None, 1.0), ("sqrt", 1 / math.sqrt(12)), ("mean", 1 / 12)])
@pytest.mark.parametrize("operation", [ops.compact_generalized_non_local, ops.generalized_non_local])
def test_scale_counts_the_elements_of_a_group(features, operation, scale, factor):
    plain = operation(*features, groups=2, kernel="dot", backend="naive")
    scaled = operation(*features, groups=2, kernel="dot", scale=scale, backend="naive")
    torch.testing.assert_close(scaled, plain * factor, rtol=1e-13, atol=0)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize(
    "pairwise", ["embedded_gaussian", "gaussian", "dot_product", "dot_product_sum", "concatenation"]
)
def test_non_local_is_the_weighted_sum_over_positions(features, pairwise, scale):
    theta, phi, g = (t.flatten(2) for t in features)
    phi, g = phi[..., :4], g[..., :4]
    weight = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.zeros_like(theta)
    for b in range(2):
        for n in range(6):
            pairs = []
            for m in range(4):
                dot = float(theta[b, :, n] @ phi[b, :, m])
                joined = torch.cat([theta[b, :, n], phi[b, :, m]])
                pairs.append(
                    {
                        "dot_product": dot / 4,
                        "dot_product_sum": dot,
                        "concatenation": max(0.0, float(weight @ joined)) / 4,
                    }.get(pairwise, math.exp(dot / 2 if scale else dot))
                )
            total = sum(pairs) if "gaussian" in pairwise else 1.0
            for m in range(4):
                y[b, :, n] += pairs[m] / total * g[b, :, m]
    result = ops.non_local(
        theta,
        phi,
        g,
        pairwise=pairwise,
        scale=scale,
        concat_weight=weight if pairwise == "concatenation" else None,
        backend="naive",
    )
    torch.testing.assert_close(result, y, rtol=1e-12, atol=1e-12)
