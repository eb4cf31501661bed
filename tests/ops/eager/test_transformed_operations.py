"""Operations inside transforms: batched gradients, torch.func, forward mode, traces; and inputs with nothing in them.

Everything is in float64, and compared with a loop of ordinary calls, or with the naive form.
"""

from functools import partial

import pytest
import torch
import torch.autograd.forward_ad as fwd
from torch.autograd import gradcheck
from torch.func import grad, jacfwd, jacrev, vmap

from cgnl import ops
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF, SeriesKernel
from cgnl.ops.eager import cgnl_block_affine, cgnl_block_batch_norm, gram

KERNELS = {
    "dot": DotProduct(),
    "gaussian-0": EmbeddedGaussian(order=0),
    "gaussian-3": EmbeddedGaussian(order=3),
    "rbf-normalized": GaussianRBF(gamma=0.3, order=3, beta="normalized"),
    "rbf-exact": GaussianRBF(gamma=0.3, order=2, beta="exact"),
    "own": SeriesKernel(lambda t, u: 1 - (t * u) ** 2, [1, 0, -1]),
}
CONSTANTS = {
    "gaussian": EmbeddedGaussian(order=0),
    "rbf": GaussianRBF(gamma=0.3, order=0),
    "rbf-normalized": GaussianRBF(gamma=0.3, order=0, beta="normalized"),
    "rbf-exact": GaussianRBF(gamma=0.3, order=0, beta="exact"),
    "own": SeriesKernel(lambda t, u: torch.ones_like(t * u), [1.0]),
    "own-of-phi": SeriesKernel(lambda t, u: u.square(), [1.0]),
}
PAIRWISE = ["embedded_gaussian", "gaussian", "dot_product", "dot_product_sum", "concatenation"]


def random(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def features(*shape):
    return [0.7 * random(*shape, seed=seed) for seed in (1, 2, 3)]


def block_inputs(*shape):
    ones = (1,) * (len(shape) - 2)
    weights = [0.4 * random(4, shape[1], *ones, seed=seed) for seed in (1, 2, 3)]
    return [random(*shape, seed=4), *weights, random(shape[1], 2, *ones, seed=5)]


def block_with_norm(x, theta, phi, g, z, weight, bias, *, norm, kernel, **options):
    """The block with its ending inside the operation."""
    options |= {"groups": 2, "kernel": kernel, "factor": 0.5}
    if norm == "affine":
        return cgnl_block_affine(x, theta, phi, g, z, weight, bias, **options)
    return cgnl_block_batch_norm(x, theta, phi, g, z, weight, bias, None, None, **options, eps=1e-3, momentum=0.0)


def cases():
    """Name, operation, inputs: small ones, on which all forms of the eager backend run."""
    for name, kernel in KERNELS.items():
        options = {"groups": 2, "kernel": kernel, "scale": "sqrt"}
        yield f"compact {name}", partial(ops.compact_generalized_non_local, **options), features(2, 4, 3)
        yield f"exact {name}", partial(ops.generalized_non_local, **options), features(2, 4, 3, 1)
        yield f"block {name}", partial(ops.cgnl_block, **options), block_inputs(2, 4, 3, 2)
        for norm in ("affine", "batch_norm"):
            run = partial(block_with_norm, norm=norm, kernel=kernel, memory_efficient=norm == "affine")
            yield f"{norm} {name}", run, [*block_inputs(2, 4, 3), random(4, seed=6), random(4, seed=7)]
    for pairwise in PAIRWISE:
        options = {"concat_weight": random(8, seed=8)} if pairwise == "concatenation" else {}
        yield f"non-local {pairwise}", partial(ops.non_local, pairwise=pairwise, **options), features(2, 4, 3, 2)


CASES = list(cases())
each_case = pytest.mark.parametrize(("run", "inputs"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])


def with_gradients(inputs):
    return [t.clone().requires_grad_() for t in inputs]


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


def gradients_in_a_loop(y, inputs, directions, **options):
    columns = zip(*(torch.autograd.grad(y, inputs, d, retain_graph=True, **options) for d in directions), strict=True)
    return tuple(map(torch.stack, columns))


@each_case
def test_batched_gradients_are_those_of_a_loop(run, inputs):
    inputs = with_gradients(inputs)
    y = run(*inputs)
    directions = random(3, *y.shape, seed=9)
    expected = gradients_in_a_loop(y, inputs, directions)
    batched = torch.autograd.grad(y, inputs, directions, is_grads_batched=True, retain_graph=True)
    mapped = vmap(lambda d: torch.autograd.grad(y, inputs, d, retain_graph=True))(directions)
    assert_equal(batched, expected)
    assert_equal(mapped, expected)
    assert not any(d.requires_grad for d in batched)


@each_case
def test_batched_gradients_with_a_graph_are_those_of_a_loop(run, inputs):
    inputs = with_gradients(inputs)
    y = run(*inputs)
    directions = random(2, *y.shape, seed=9)
    batched = torch.autograd.grad(y, inputs, directions, is_grads_batched=True, create_graph=True)
    looped = gradients_in_a_loop(y, inputs, directions, create_graph=True)
    assert_equal(batched, looped)
    if not looped[0].requires_grad:
        return  # a linear function
    second, expected = (
        torch.autograd.grad(sum(d.square().sum() for d in first), inputs, retain_graph=True, materialize_grads=True)
        for first in (batched, looped)
    )
    assert_equal(second, expected)


@pytest.mark.parametrize("kernel", ["dot", "gaussian-3"])
def test_the_gram_form_and_channels_last_maps_too(kernel, monkeypatch):
    monkeypatch.setattr(gram, "pays", lambda *sizes, training: True)
    run = partial(ops.cgnl_block, groups=2, kernel=KERNELS[kernel])
    x, *weights = block_inputs(2, 4, 3, 2)
    test_batched_gradients_are_those_of_a_loop(run, [x.contiguous(memory_format=torch.channels_last), *weights])


@each_case
def test_gradcheck_with_batched_gradients(run, inputs):
    assert gradcheck(run, with_gradients(inputs), check_batched_grad=True, fast_mode=True)


@each_case
def test_jacobians_are_the_same_in_every_way(run, inputs):
    def of_first(first):
        return run(first, *inputs[1:])

    expected = torch.autograd.functional.jacobian(of_first, inputs[0])
    assert_equal(torch.autograd.functional.jacobian(of_first, inputs[0], vectorize=True), expected)
    assert_equal(
        torch.autograd.functional.jacobian(of_first, inputs[0], vectorize=True, strategy="forward-mode"), expected
    )
    assert_equal(jacrev(of_first)(inputs[0]), expected)
    assert_equal(jacfwd(of_first)(inputs[0]), expected)


@each_case
def test_hessians_are_the_same_in_every_way(run, inputs):
    def loss(first):
        return run(first, *inputs[1:]).pow(3).sum()

    first, direction = inputs[0], random(*inputs[0].shape, seed=9)
    hessian = torch.autograd.functional.hessian(loss, first)
    assert_equal(torch.autograd.functional.hessian(loss, first, vectorize=True), hessian)
    assert_equal(jacfwd(jacrev(loss))(first), hessian)
    expected = torch.tensordot(hessian, direction, dims=first.dim())
    assert_equal(torch.autograd.functional.hvp(loss, first, direction)[1], expected)
    assert_equal(torch.autograd.functional.vhp(loss, first, direction)[1], expected)
    assert_equal(torch.func.jvp(grad(loss), (first,), (direction,))[1], expected)


@each_case
def test_a_tangent_of_the_gradient_goes_through_backward(run, inputs):
    inputs = with_gradients(inputs)
    y = run(*inputs)
    direction, tangent = random(2, *y.shape, seed=9)
    expected = torch.autograd.grad(y, inputs, tangent, retain_graph=True)
    with fwd.dual_level():
        duals = torch.autograd.grad(y, inputs, fwd.make_dual(direction, tangent))
        assert_equal(tuple(fwd.unpack_dual(d).tangent for d in duals), expected)


@each_case
def test_transforms_of_each_sample_are_those_of_a_loop(run, inputs):
    if run.keywords.get("norm") == "batch_norm":
        pytest.skip("a norm of the batch has no samples")
    if len(inputs) == 3:
        samples, rest = tuple(torch.stack([t, 2 * t]) for t in inputs), ()
    else:
        samples, rest = (torch.stack([inputs[0], 2 * inputs[0]]),), tuple(inputs[1:])

    def loss(sample, rest):
        return run(*sample, *rest).square().sum()

    mapped = vmap(grad(loss, argnums=(0, 1)), in_dims=(0, None))(samples, rest)
    looped = [grad(loss, argnums=(0, 1))(tuple(t[i] for t in samples), rest) for i in range(2)]
    for own, expected in zip(mapped, zip(*looped, strict=True), strict=True):
        assert_equal(own, tuple(map(torch.stack, zip(*expected, strict=True))))


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
def test_a_graph_changes_no_gradient_of_inputs_that_depend_on_each_other(kernel):
    """theta, phi and g of one tensor; a block twice with the same weights."""
    t, (x, *weights) = random(2, 4, 3, seed=1).requires_grad_(), block_inputs(2, 4, 3)
    weights = with_gradients(weights)
    block = partial(ops.cgnl_block, groups=2, kernel=kernel)
    of_one = ops.compact_generalized_non_local(t, t * t, t.sin(), groups=2, kernel=kernel)
    for y, inputs in ((of_one, [t]), (block(block(x, *weights), *weights), weights)):
        expected = torch.autograd.grad(y.square().sum(), inputs, retain_graph=True)
        assert_equal(torch.autograd.grad(y.square().sum(), inputs, create_graph=True), expected)


def test_the_softmax_forms_have_a_forward_mode_in_every_memory_format():
    """PyTorch's fast attention, which runs where the channels are last, has none."""
    theta, phi, g = (t.contiguous(memory_format=torch.channels_last) for t in features(2, 4, 3, 3))

    def run(theta):
        return ops.non_local(theta, phi, g, pairwise="embedded_gaussian")

    expected = torch.autograd.functional.jacobian(run, theta)
    assert_equal(jacfwd(run)(theta), expected)


@each_case
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*is deprecated:FutureWarning")
def test_traces_pass_their_check_and_take_other_sizes(run, inputs):
    maps = 3 if len(inputs) == 3 else 1
    traced = torch.jit.trace(lambda *inputs: run(*inputs), tuple(inputs))  # it wants a function's name
    for size in (inputs[0].shape[2], 5):
        own = [random(3, 4, size, *t.shape[3:], seed=i) for i, t in enumerate(inputs[:maps])] + inputs[maps:]
        if run.keywords.get("norm") is None:
            assert_equal(traced(*own), run(*own))
    assert_equal(traced(*inputs), run(*inputs))


@pytest.mark.parametrize("operation", [ops.compact_generalized_non_local, ops.generalized_non_local, ops.cgnl_block])
@pytest.mark.parametrize("kernel", CONSTANTS.values(), ids=CONSTANTS.keys())
def test_every_input_of_a_constant_gets_a_gradient(kernel, operation):
    """Zeros mostly: a wrapper for data parallelism waits for every one."""
    inputs = block_inputs(2, 4, 3) if operation is ops.cgnl_block else features(2, 4, 3)
    run = partial(operation, groups=2, kernel=kernel)
    own = with_gradients(inputs)
    dy = random(2, 4, 3, seed=9)
    y, expected = run(*own), run(*own, backend="naive") if kernel.coefficients != (1.0,) else run(*own)
    gradients = torch.autograd.grad(y, own, dy, retain_graph=True)
    naive = torch.autograd.grad(expected, own, dy, allow_unused=True, materialize_grads=True)
    assert_equal((y, gradients), (expected, naive))
    recorded = torch.autograd.grad(y, own, dy, create_graph=True)
    plain = torch.func.vjp(run, *inputs)[1](dy)
    assert_equal(tuple(recorded), gradients)
    assert_equal(plain, gradients)


@pytest.mark.parametrize("kernel", CONSTANTS.values(), ids=CONSTANTS.keys())
def test_a_constant_does_not_look_at_theta(kernel):
    """Nothing in it may make a NaN of an infinity."""
    theta, phi, g = features(2, 4, 3)
    theta[0, 0, 0] = float("inf")
    if kernel.normalizes_features or kernel.envelope(theta) is not None:
        pytest.skip("it looks at theta")
    assert ops.compact_generalized_non_local(theta, phi, g, groups=2, kernel=kernel).isfinite().all()
    y = torch.func.vmap(partial(ops.compact_generalized_non_local, groups=2, kernel=kernel))(
        *(t[None] for t in (theta, phi, g))
    )
    assert y.isfinite().all()


EMPTY = [(0, 4, 3, 2), (2, 4, 0, 3), (2, 4, 3, 0), (0, 4, 0, 3)]


@pytest.mark.parametrize("scale", [None, "sqrt", "mean"])
@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
def test_nothing_in_nothing_out(kernel, shape, scale):
    options = {"groups": 2, "kernel": kernel, "scale": scale}
    for operation, inputs in (
        (ops.compact_generalized_non_local, features(*shape)),
        (ops.generalized_non_local, features(*shape)),
        (ops.cgnl_block, block_inputs(*shape)),
    ):
        inputs = with_gradients(inputs)
        y = operation(*inputs, **options)
        assert y.shape == shape
        for d, t in zip(torch.autograd.grad(y.sum(), inputs), inputs, strict=True):
            assert torch.equal(d, torch.zeros_like(t))


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_nothing_in_nothing_out_of_the_non_local_operation(pairwise, shape):
    inputs = with_gradients(features(*shape))
    options = {"concat_weight": random(8, seed=8)} if pairwise == "concatenation" else {}
    y = ops.non_local(*inputs, pairwise=pairwise, **options)
    assert y.shape == shape
    torch.autograd.grad(y.sum(), inputs)
