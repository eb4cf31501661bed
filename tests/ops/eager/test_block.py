import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import tolerances
from cgnl import ops
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF
from cgnl.ops import maps
from cgnl.ops.eager import cgnl_block_affine, cgnl_block_batch_norm, gram

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


def take_gram_form(monkeypatch, taken=True):
    """The dot product takes the Gram form, or does not, whatever pays; in several bands, the last one smaller."""
    monkeypatch.setattr(gram, "pays", lambda *sizes, training: taken)
    monkeypatch.setattr(gram, "_ROWS_OF_A_BAND", 6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 16, 7, 9), (3, 16, 1), (1, 16, 2, 3, 3)], ids=str)
def test_the_gram_form_equals_naive_with_every_gradient(shape, layout, monkeypatch):
    take_gram_form(monkeypatch)
    test_equals_naive_with_every_gradient(shape, KERNELS[0], layout)


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
@pytest.mark.parametrize("kernel", [KERNELS[0], KERNELS[2]], ids=["gram", "gaussian-4"])
def test_each_gradient_alone_is_the_same(wanted, kernel, monkeypatch):
    take_gram_form(monkeypatch)
    x, weights = inputs_of((2, 16, 5, 3), 2)
    inputs = [x, *weights, random(16, seed=5).requires_grad_(), random(16, seed=6).requires_grad_()]

    def run(inputs):
        return ours_with_norm(inputs[0], inputs[1:5], *inputs[5:], 2, kernel).square().sum()

    together = torch.autograd.grad(run(inputs), inputs)[wanted]
    alone = [t if i == wanted else t.detach() for i, t in enumerate(inputs)]
    assert torch.equal(torch.autograd.grad(run(alone), inputs[wanted])[0], together)


@pytest.fixture(params=["gram", "direct"])
def form(request, monkeypatch):
    """Either way to the dot product's sums, whatever pays."""
    take_gram_form(monkeypatch, request.param == "gram")
    return request.param


@pytest.mark.parametrize("shape", [(2, 16, 7, 9), (3, 16, 1), (5, 16, 3, 2)], ids=str)
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("memory_efficient", [False, True])
def test_both_ways_to_the_sums_equal_naive(form, shape, layout, memory_efficient, monkeypatch):
    # several parts of the batch, of x's positions, of K's rows and of the groups, the last one smaller
    monkeypatch.setattr(maps, "_ELEMENTS_OF_A_PART", 2 * 16 * shape[-1])
    monkeypatch.setattr(gram, "_ELEMENTS_OF_A_CHUNK", 16 * 5)
    monkeypatch.setattr(gram, "_ELEMENTS_OF_MATRICES", 3 * 6 * 16)
    for groups in (1, 8):
        x, weights = inputs_of(shape, groups, layout)
        weight, bias = random(16, seed=5).requires_grad_(), random(16, seed=6).requires_grad_()
        inputs, dy = [x, *weights, weight, bias], random(*shape, seed=9)
        y = cgnl_block_batch_norm(
            x,
            *weights,
            weight,
            bias,
            None,
            None,
            groups=groups,
            kernel=DotProduct(),
            factor=1.0,
            eps=1e-3,
            momentum=0.0,
            memory_efficient=memory_efficient,
        )
        expected = reference_with_norm(x, weights, weight, bias, groups, DotProduct())
        gradients, expected_gradients = (torch.autograd.grad(out, inputs, dy) for out in (y, expected))
        assert_equal((y, *gradients), (expected, *expected_gradients), tolerances.EAGER_FLOAT64_BATCH_NORM)


def features_of(kind, channels, positions):
    """Maps [2, C, N] on which sums lose digits, and weights that suit them; both in float32."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    weights = [draw(channels // 2, channels) * channels**-0.5 for _ in range(2)]
    if kind == "relu":
        return draw(2, channels, positions).relu(), weights
    if kind == "one pattern":
        return (3 * draw(2, channels, 1) * draw(2, 1, positions) + 0.1 * draw(2, channels, positions)).relu(), weights
    # a mean that the weights cancel
    return draw(2, channels, positions) + 100, [weight - weight.mean(1, keepdim=True) for weight in weights]


@pytest.mark.parametrize("kind", ["relu", "one pattern", "large mean"])
@pytest.mark.parametrize(("channels", "positions"), [(256, 400), (512, 784)])
def test_gram_form_keeps_the_digits_of_float32(kind, channels, positions):
    groups = 8
    x, (phi_weight, g_weight) = features_of(kind, channels, positions)
    products = (phi_weight.double() @ x.double()) * (g_weight.double() @ x.double())
    by_group = products.unflatten(1, (groups, -1))
    mean = x.mean(-1)
    sums = gram.sums(gram.second_moments(x, mean), mean, phi_weight, g_weight, groups, positions)
    bound = tolerances.FLOAT32_SUM_UNITS * torch.finfo(torch.float32).eps * by_group.abs().sum((2, 3))
    assert ((sums.double() - by_group.sum((2, 3))).abs() <= bound).all()


@pytest.mark.parametrize("given", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_affine_in_the_gram_form_equals_naive_with_every_gradient(given, monkeypatch):
    take_gram_form(monkeypatch)
    test_affine_equals_naive_with_every_gradient(KERNELS[0], given)


@pytest.mark.parametrize("given", [(True, True), (True, False), (False, True), (False, False)], ids=str)
@pytest.mark.parametrize("kernel", KERNELS + OTHER_KERNELS, ids=IDS)
def test_affine_equals_naive_with_every_gradient(kernel, given):
    x, weights = inputs_of((3, 16, 5, 7), 2)
    scale, shift = (random(16, seed=s).requires_grad_() if on else None for s, on in zip((5, 6), given, strict=True))
    y = cgnl_block_affine(x, *weights, scale, shift, groups=2, kernel=kernel, factor=1.0)
    expected = ops.cgnl_block(x, *weights, groups=2, kernel=kernel, backend="naive")
    for vector, apply in ((scale, torch.mul), (shift, torch.add)):
        expected = expected if vector is None else apply(expected, vector[:, None, None])
    expected = expected + x
    inputs, dy = [t for t in (x, *weights, scale, shift) if t is not None], random(3, 16, 5, 7, seed=9)
    gradients, expected_gradients = (
        torch.autograd.grad(out, inputs, dy, allow_unused=True, materialize_grads=True) for out in (y, expected)
    )
    assert_equal((y, *gradients), (expected, *expected_gradients))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", [KERNELS[0], KERNELS[3]], ids=["dot", "rbf"])
def test_saving_memory_changes_no_bit(kernel, dtype):
    x, weights = inputs_of((3, 16, 5, 7), 2)
    x, *weights = (t.detach().to(dtype).requires_grad_() for t in (x, *weights))
    found = []
    for memory_efficient in (False, True):
        y = ops.cgnl_block(x, *weights, groups=2, kernel=kernel, memory_efficient=memory_efficient)
        found.append((y, *torch.autograd.grad(y, [x, *weights], torch.ones_like(y))))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("kernel", OTHER_KERNELS, ids=IDS[4:])
def test_saving_memory_with_a_kernel_function_that_is_no_plain_series(kernel):
    x, weights = inputs_of((3, 16, 9, 9), 2)
    found, kept = [], []
    for memory_efficient in (False, True):
        storages = {}

        def pack(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = ops.cgnl_block(x, *weights, groups=2, kernel=kernel, memory_efficient=memory_efficient)
        kept.append(sum(storages.values()))
        found.append((y, *torch.autograd.grad(y, [x, *weights], torch.ones_like(y))))
    assert kept[1] < 1.2 * x.numel() * x.element_size() < kept[0]
    assert all(map(torch.equal, *found))


def test_the_gram_form_keeps_half_of_k():
    x = torch.randn(2, 1024, 3)
    assert gram.second_moments(x, x.mean(-1)).shape == (2, 1024**2 * 9 / 16)


@pytest.mark.parametrize(
    ("sizes", "training", "inference"),
    [
        # B, C, C', N, G
        ((4, 1024, 512, 784, 8), True, False),
        ((8, 512, 256, 784, 8), True, True),
        ((2, 512, 256, 12544, 8), True, True),
        ((1, 1024, 512, 784, 8), False, False),
        ((8, 1024, 512, 49, 8), False, False),
        ((8, 64, 32, 784, 8), False, False),
        # few inner channels, and many groups
        ((4, 512, 64, 3136, 8), False, False),
        ((8, 512, 256, 784, 256), False, False),
    ],
    ids=str,
)
def test_where_the_gram_form_pays(sizes, training, inference):
    assert gram.pays(*sizes, training=True) is training
    assert gram.pays(*sizes, training=False) is inference


@pytest.mark.parametrize(
    ("grad_enabled", "wanted", "training"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_the_gram_form_is_chosen_by_what_is_wanted(grad_enabled, wanted, training, monkeypatch):
    asked = []
    monkeypatch.setattr(gram, "pays", lambda *sizes, training: asked.append((*sizes, training)) or False)
    x, weights = inputs_of((2, 16, 7, 9), 2)
    inputs = [t.requires_grad_(wanted) for t in (x, *weights)]
    with torch.set_grad_enabled(grad_enabled):
        ops.cgnl_block(*inputs, groups=2, kernel="dot")
    assert asked == [(2, 16, 8, 63, 2, training)]


def test_float32_gradients_where_y_is_nearly_constant():
    """exp's constant term is a large number at every position, which a norm takes out again."""
    kernel = EmbeddedGaussian(order=3)
    x, weights = inputs_of((4, 16, 12, 12), 2)
    x = x + 1
    weight, bias = random(16, seed=5), random(16, seed=6)
    weights = [0.05 * w.detach() for w in weights]
    dy = random(4, 16, 12, 12, seed=9)
    gradients = []
    for dtype in (torch.float64, torch.float32):
        inputs = [t.detach().to(dtype).requires_grad_() for t in (x, *weights, weight, bias)]
        y = ours_with_norm(inputs[0], inputs[1:5], *inputs[5:], 2, kernel)
        gradients.append([d.double() for d in torch.autograd.grad(y, inputs, dy.to(dtype))])
    for exact, single in zip(*gradients, strict=True):
        assert relative(single, exact) < tolerances.FLOAT32_SMALL_DEVIATIONS


@pytest.mark.parametrize(
    ("kernel", "memory_efficient", "maps_kept"),
    [
        (KERNELS[3], False, 1.5),  # theta, phi, g
        (KERNELS[3], True, 1),  # theta, phi
        (KERNELS[0], False, 0.5),  # theta; and half of K, small here
        (KERNELS[0], True, 0.5),  # the same
    ],
)
def test_batch_norm_keeps_x_and_few_maps(kernel, memory_efficient, maps_kept, monkeypatch):
    take_gram_form(monkeypatch)
    x, weights = inputs_of((2, 32, 28, 28), 2, inner=16)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        cgnl_block_batch_norm(
            x,
            *weights,
            torch.ones(32, dtype=x.dtype),
            torch.zeros(32, dtype=x.dtype),
            None,
            None,
            groups=2,
            kernel=kernel,
            factor=1.0,
            eps=1e-3,
            momentum=0.0,
            memory_efficient=memory_efficient,
        )
    assert sum(kept.values()) < 1.1 * (1 + maps_kept) * x.numel() * x.element_size()
