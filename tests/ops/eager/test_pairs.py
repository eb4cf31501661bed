import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

import tolerances
from cgnl import ops
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF
from cgnl.ops.eager import pairs

PAIRWISE = ["embedded_gaussian", "gaussian", "dot_product", "dot_product_sum", "concatenation"]


class LargestTensor(TorchDispatchMode):
    """Notes the largest number of elements that any operation gives."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def random(*shape, seed, requires_grad=False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_(requires_grad)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def non_local_inputs(pairwise, shape, phi_shape, **options):
    features = [random(*s, seed=i, **options) for i, s in enumerate((shape, phi_shape, phi_shape))]
    weight = random(1, 2 * shape[1], 1, seed=3, **options) if pairwise == "concatenation" else None
    return features, weight


@pytest.mark.parametrize("pairwise", PAIRWISE)
@pytest.mark.parametrize(
    ("shape", "phi_shape"),
    [
        ((2, 4, 7, 9), (2, 4, 7, 9)),
        ((2, 16, 3, 1), (2, 16, 3, 1)),
        ((2, 4, 3, 6, 5), (2, 4, 3, 3, 2)),
        ((1, 4, 1), (1, 4, 1)),
        ((2, 5, 40), (2, 5, 20)),
    ],
    ids=str,
)
def test_non_local_equals_naive_with_every_gradient(pairwise, shape, phi_shape):
    (theta, phi, g), weight = non_local_inputs(pairwise, shape, phi_shape, requires_grad=True)
    inputs = [t for t in (theta, phi, g, weight) if t is not None]
    dy = random(*shape, seed=9)
    results = {}
    for backend in ("eager", "naive"):
        y = ops.non_local(theta, phi, g, pairwise=pairwise, concat_weight=weight, backend=backend)
        results[backend] = (y, *torch.autograd.grad(y, inputs, dy))
    for eager, naive in zip(results["eager"], results["naive"], strict=True):
        if naive.abs().max() < tolerances.ZERO_FLOAT64:  # a single position: its softmax is constant
            assert eager.abs().max() < tolerances.ZERO_FLOAT64
        else:
            assert relative(eager, naive) < tolerances.EAGER_FLOAT64


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_non_local_gradcheck_and_gradgradcheck(pairwise):
    (theta, phi, g), weight = non_local_inputs(pairwise, (2, 3, 5), (2, 3, 4), requires_grad=True)
    inputs = [t for t in (theta, phi, g, weight) if t is not None]

    def run(theta, phi, g, weight=None):
        return ops.non_local(theta, phi, g, pairwise=pairwise, concat_weight=weight)

    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's fused attention has no second derivative
        assert gradcheck(run, inputs)
        assert gradgradcheck(run, inputs)


@pytest.mark.parametrize("pairwise", ["dot_product", "dot_product_sum", "concatenation"])
def test_the_map_of_all_positions_is_never_made(pairwise):
    (theta, phi, g), weight = non_local_inputs(
        pairwise, (1, 4, 40, 50), (1, 4, 40, 50), requires_grad=True, dtype=torch.float32
    )
    with LargestTensor() as largest:
        ops.non_local(theta, phi, g, pairwise=pairwise, concat_weight=weight).sum().backward()
    assert largest.numel < 3 * theta.numel() < 2000**2


def test_dot_product_takes_the_other_order_where_positions_are_few():
    (theta, phi, g), _ = non_local_inputs("dot_product", (1, 300, 3), (1, 300, 3), requires_grad=True)
    with LargestTensor() as largest:
        ops.non_local(theta, phi, g, pairwise="dot_product").sum().backward()
    assert largest.numel < 2 * theta.numel() < 300**2


def test_concatenation_in_float32_is_as_accurate_as_the_matrix():
    (theta, phi, g), weight = non_local_inputs("concatenation", (2, 8, 30, 30), (2, 8, 30, 30))
    exact = ops.non_local(theta, phi, g, pairwise="concatenation", concat_weight=weight, backend="naive")
    single = [t.float() for t in (theta, phi, g)]
    error = {
        backend: relative(
            ops.non_local(*single, pairwise="concatenation", concat_weight=weight.float(), backend=backend), exact
        )
        for backend in ("eager", "naive")
    }
    assert error["eager"] < 2 * error["naive"]


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_non_local_nan_stays_in_its_sample(pairwise):
    (theta, phi, g), weight = non_local_inputs(pairwise, (3, 4, 5, 5), (3, 4, 5, 5), dtype=torch.float32)
    clean = ops.non_local(theta, phi, g, pairwise=pairwise, concat_weight=weight)
    theta[1, 0, 0, 0] = phi[1, 0, 0, 0] = g[1, 0, 0, 0] = torch.nan
    y = ops.non_local(theta, phi, g, pairwise=pairwise, concat_weight=weight)
    assert torch.equal(y[[0, 2]], clean[[0, 2]])
    assert y[1].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_non_local_dot_product_sums_in_float32(dtype):
    ones = torch.full((1, 2, 300, 300), 16.0, dtype=dtype)  # 300^2 · 256 is past float16's largest number
    y = ops.non_local(ones / 16, ones, ones, pairwise="dot_product")
    torch.testing.assert_close(y, torch.full_like(y, 512.0))


def test_bilinear_pooling_is_a_special_case():
    """Eq. 5, X^T X, is the second-order term theta phi^T of Eq. 3 with theta = phi = X^T (Eq. 6)."""
    x = random(2, 49, 6, seed=0)  # [B, N, C]: with Eq. 6 the channels take the part of the positions
    bilinear = torch.einsum("bnc,bnd->bcd", x, x)
    identity = torch.eye(6, dtype=torch.float64).expand(2, 6, 6)
    pooled = ops.non_local(x, x, identity, pairwise="dot_product_sum")
    assert relative(pooled, bilinear) < tolerances.EAGER_FLOAT64


@pytest.mark.parametrize("kernel", [DotProduct(), EmbeddedGaussian(), GaussianRBF(0.3, beta="normalized")], ids=str)
@pytest.mark.parametrize("pairs_in_chunk", [10**9, 700, 1])
def test_generalized_equals_naive_in_any_chunks(kernel, pairs_in_chunk, monkeypatch):
    monkeypatch.setattr(pairs, "MAX_PAIRS_IN_CHUNK", pairs_in_chunk)
    features = [random(2, 8, 3, 5, seed=i, requires_grad=True) for i in range(3)]
    dy = random(2, 8, 3, 5, seed=9)
    results = {}
    for backend in ("eager", "naive"):
        y = ops.generalized_non_local(*features, groups=2, kernel=kernel, scale="mean", backend=backend)
        results[backend] = (y, *torch.autograd.grad(y, features, dy))
    for eager, naive in zip(results["eager"], results["naive"], strict=True):
        assert relative(eager, naive) < tolerances.EAGER_FLOAT64


def test_generalized_gradgradcheck_through_chunks(monkeypatch):
    monkeypatch.setattr(pairs, "MAX_PAIRS_IN_CHUNK", 12)
    features = [(0.5 * random(1, 4, 3, seed=i)).requires_grad_() for i in range(3)]
    assert gradgradcheck(lambda *f: ops.generalized_non_local(*f, groups=2, kernel=EmbeddedGaussian()), features)


def test_generalized_memory_is_bounded_forward_and_backward(monkeypatch):
    monkeypatch.setattr(pairs, "MAX_PAIRS_IN_CHUNK", 2**16)
    features = [random(1, 4, 25, 16, seed=i, requires_grad=True, dtype=torch.float32) for i in range(3)]
    kept = []
    with LargestTensor() as largest:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            y = ops.generalized_non_local(*features, groups=1, kernel=EmbeddedGaussian())
        y.sum().backward()
    elements = features[0].numel()  # 1600, so the matrix would have 2.56 million pairs
    assert largest.numel <= 2**16
    assert max(kept) <= elements


def test_dot_product_generalized_is_its_compact_form():
    features = [random(2, 8, 5, 5, seed=i) for i in range(3)]
    exact = ops.generalized_non_local(*features, groups=4, kernel="dot")
    compact = ops.compact_generalized_non_local(*features, groups=4, kernel="dot")
    assert relative(compact, exact) < tolerances.EAGER_FLOAT64
