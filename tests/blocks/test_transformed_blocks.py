"""Blocks inside transforms, traces and wrappers, and on maps with nothing in them.

Everything is in float64 unless the test says otherwise, and compared with ordinary calls of copies of the block.
"""

import copy
import io
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, stack_module_state, vmap
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import cgnl
from cgnl.blocks.stream import CGNLStream3d
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF, SeriesKernel

KERNELS = {
    "dot": DotProduct(),
    "gaussian": EmbeddedGaussian(order=3),
    "rbf-normalized": GaussianRBF(gamma=0.3, order=3, beta="normalized"),
    "rbf-exact": GaussianRBF(gamma=0.3, order=2, beta="exact"),
    "own": SeriesKernel(lambda t, u: 1 - (t * u) ** 2, [1, 0, -1]),
}
BLOCKS = {f"cgnl {name}": partial(cgnl.CGNL2d, groups=2, kernel=kernel) for name, kernel in KERNELS.items()}
BLOCKS |= {
    "cgnl constant": partial(cgnl.CGNL2d, groups=2, kernel=EmbeddedGaussian(order=0)),
    "cgnl without norm": partial(cgnl.CGNL2d, groups=2, kernel="rbf", norm=None),
    "cgnl group norm": partial(cgnl.CGNL2d, groups=2, kernel="embedded_gaussian", norm="group"),
    "cgnl memory-efficient": partial(cgnl.CGNL2d, groups=2, kernel=KERNELS["rbf-exact"], memory_efficient=True),
    "cgnl scaled": partial(cgnl.CGNL2d, groups=2, kernel="embedded_gaussian", scale="sqrt"),
    "gnl": partial(cgnl.GeneralizedNonLocal2d, groups=2, kernel="embedded_gaussian", scale="mean"),
    "gnl normalized": partial(cgnl.GeneralizedNonLocal2d, groups=2, kernel=KERNELS["rbf-normalized"]),
    "nl": cgnl.NonLocal2d,
    "nl dot product": partial(cgnl.NonLocal2d, pairwise="dot_product", bias=True),
    "nl concatenation": partial(cgnl.NonLocal2d, pairwise="concatenation"),
    "nl subsampled": partial(cgnl.NonLocal2d, subsample=True, norm="group"),
    "residual": partial(cgnl.ResidualBlock2d, groups=2),
}
each_block = pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS.keys())
each_mode = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
quiet = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning",
    "ignore::cgnl.blocks.SingleSampleWarning",
    "ignore:.*torch.jit.*is deprecated:FutureWarning",
    "ignore:Anomaly Detection has been enabled",
    "ignore:There is a performance drop",
)


def random(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def trained(block, training=False, seed=0):
    """In float64, with weights and statistics as after training."""
    block.double()
    with torch.no_grad():
        for i, (name, tensor) in enumerate(block.state_dict().items()):
            if tensor.is_floating_point():
                values = 0.5 * random(*tensor.shape, seed=100 * seed + i)
                tensor.copy_(values.square() + 0.5 if name.endswith("running_var") else values)
    return block.train(training)


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def gradients(block, x):
    block(x).square().sum().backward()
    return {name: p.grad for name, p in block.named_parameters()}


@quiet
@each_mode
@each_block
def test_an_ensemble_is_its_members(make, training):
    members = [trained(make(4), training, seed) for seed in range(3)]
    base, x = copy.deepcopy(members[0]), random(2, 4, 3, 2, seed=9)

    def run(parameters, buffers):
        return functional_call(base, (parameters, buffers), (x,))

    stacked = stack_module_state(members)
    of_members = vmap(grad(lambda *state: run(*state).square().sum()))(*copy.deepcopy(stacked))
    y = vmap(run)(*stacked)
    y.square().sum().backward()
    for i, member in enumerate(members):
        expected = gradients(copy.deepcopy(member), x)
        assert_equal(y[i], member(x))
        for name, own in expected.items():
            assert_equal(of_members[name][i], own)
            assert_equal(stacked[0][name].grad[i], own)
        for name, buffer in member.named_buffers():
            assert_equal(stacked[1][name][i], buffer)


@quiet
@each_block
def test_gradients_of_each_sample(make):
    block, x = trained(make(4)), random(3, 4, 3, 2, seed=9)
    parameters = {name: p.detach() for name, p in block.named_parameters()}

    def loss(parameters, sample):
        return functional_call(block, parameters, (sample[None],)).square().sum()

    of_samples = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i in range(len(x)):
        for name, own in gradients(copy.deepcopy(block), x[i : i + 1]).items():
            assert_equal(of_samples[name][i], own)


@quiet
@each_mode
@each_block
def test_jacobians_and_hessians(make, training):
    """In training without running statistics, which torch.func does not change."""
    block = torch.func.replace_all_batch_norm_modules_(trained(make(4), training))
    x = random(2, 4, 2, 2, seed=9)
    expected = torch.autograd.functional.jacobian(block, x)
    for jacobian in (jacrev(block)(x), jacfwd(block)(x), torch.autograd.functional.jacobian(block, x, vectorize=True)):
        assert_equal(jacobian, expected)

    def loss(x):
        return block(x).pow(3).sum()

    expected = torch.autograd.functional.hessian(loss, x)
    assert_equal(torch.func.hessian(loss)(x), expected)
    assert_equal(torch.autograd.functional.hessian(loss, x, vectorize=True), expected)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@each_block
def test_map_over_an_inserted_block_alone(make, layout):
    """The host's parameters are the same for all, so its maps are no part of the mapping."""
    convolution = nn.Conv2d(3, 4, 1) if layout == "channels_first" else nn.Linear(3, 4)
    shape = (2, 3, 4, 5) if layout == "channels_first" else (2, 4, 5, 3)
    x = random(*shape, seed=9)
    host = nn.Sequential(convolution, nn.Flatten()).double()
    cgnl.insert_blocks(host, {"0": make}, example_input=x, layout=layout)
    trained(host)
    blocks = {n: torch.stack([p.detach(), 2 * p.detach()]) for n, p in host.named_parameters() if "inserted" in n}
    y = vmap(lambda own: functional_call(host, own, (x,)))(blocks)
    for i in range(2):
        assert_equal(y[i], functional_call(host, {name: p[i] for name, p in blocks.items()}, (x,)))


@quiet
@each_mode
@each_block
def test_traces_pass_their_check(make, training):
    block, x = trained(make(4), training), random(2, 4, 3, 2, seed=9)
    traced = torch.jit.trace(copy.deepcopy(block), x)
    for other in (x, random(3, 4, 5, 4, seed=8), random(1, 4, 3, 2, seed=7)):
        assert_equal(traced(other), block(other))
    of_traced = torch.autograd.grad(traced(x).square().sum(), list(traced.parameters()))
    assert_equal(of_traced, tuple(gradients(block, x).values()))
    file = io.BytesIO()
    torch.jit.save(traced.eval(), file)
    file.seek(0)
    assert_equal(torch.jit.load(file)(x), traced(x))
    assert_equal(copy.deepcopy(traced)(x), traced(x))


@quiet
@each_mode
@each_block
def test_traces_of_half_types_pass_their_check(make, training):
    block, x = trained(make(4), training).bfloat16(), random(2, 4, 3, 2, seed=9).bfloat16()
    traced = torch.jit.trace(copy.deepcopy(block), x)
    torch.testing.assert_close(traced(x), block(x))


@quiet
@pytest.mark.parametrize("use_reentrant", [False, True])
@each_mode
@each_block
def test_checkpoints_and_saved_tensors_elsewhere(make, training, use_reentrant):
    block, x = trained(make(4), training), random(2, 4, 3, 2, seed=9).requires_grad_()
    found = []
    for run in (lambda own, x: own(x), partial(checkpoint, use_reentrant=use_reentrant)):
        with torch.autograd.graph.save_on_cpu(), torch.autograd.detect_anomaly():
            own = copy.deepcopy(block)
            y = run(own, x)
        inputs = [x, *own.parameters()]
        y.square().sum().backward(retain_graph=not use_reentrant)
        found.append([t.grad for t in inputs])
        if not use_reentrant:
            assert_equal(torch.autograd.grad(y.square().sum(), inputs), tuple(found[-1]))
        x.grad = None
    assert_equal(*found)


def test_tied_weights_through_functional_call():
    block, x = trained(cgnl.CGNL2d(4, groups=2, kernel="embedded_gaussian")), random(2, 4, 3, 2, seed=9)
    block.phi.weight = block.theta.weight
    parameters = {name: p.detach().clone().requires_grad_() for name, p in block.named_parameters()}
    y = functional_call(block, parameters, (x,))
    of_call = torch.autograd.grad(y.square().sum(), list(parameters.values()))
    assert_equal(of_call, tuple(gradients(block, x).values()))


@pytest.fixture(scope="module")
def _one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


CONSTANTS = {
    "gaussian": EmbeddedGaussian(order=0),
    "rbf": GaussianRBF(gamma=0.3, order=0),
    "rbf-normalized": GaussianRBF(gamma=0.3, order=0, beta="normalized"),
    "rbf-exact": GaussianRBF(gamma=0.3, order=0, beta="exact"),
    "own": SeriesKernel(lambda t, u: u.square(), [1.0]),
}


def hooked(block):
    block.z.register_forward_hook(lambda *_: None)
    return block


FORMS = {
    "eager": lambda make: make(4),
    "memory-efficient": lambda make: make(4, memory_efficient=True),
    "without norm": lambda make: make(4, norm=None),
    "group norm": lambda make: make(4, norm="group"),
    "modules": lambda make: hooked(make(4)),
    "naive": lambda make: make(4, backend="naive"),
    "compiled": lambda make: torch.compile(make(4), backend="aot_eager"),
    "exact": lambda make: cgnl.GeneralizedNonLocal2d(4, **make.keywords),
}


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize(
    ("kernel", "form"),
    # a compiler takes seconds
    [(k, f) for k in CONSTANTS for f in FORMS if f != "compiled" or k in ("gaussian", "rbf-normalized")],
)
def test_data_parallelism_gets_every_gradient_of_a_constant(kernel, form):
    """DistributedDataParallel fails in its second step where a parameter got none in the first."""
    block = FORMS[form](partial(cgnl.CGNL2d, groups=2, kernel=CONSTANTS[kernel]))
    wrapped = DistributedDataParallel(trained(block, training=True))
    for seed in range(2):
        wrapped(random(2, 4, 3, 2, seed=seed)).square().sum().backward()
    assert all(p.grad is not None for p in wrapped.parameters())


@quiet
@each_mode
@pytest.mark.parametrize("shape", [(0, 4, 3, 2), (2, 4, 0, 3), (2, 4, 3, 0), (0, 4, 0, 3)], ids=str)
@each_block
def test_nothing_in_nothing_out(make, shape, training):
    block, x = trained(make(4), training), torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    statistics = [b.clone() for b in block.buffers() if b.is_floating_point()]
    y = block(x)
    assert y.shape == shape
    y.sum().backward()
    for t in (x, *block.parameters()):
        assert torch.equal(t.grad, torch.zeros_like(t))
    with torch.no_grad():
        assert block(x).shape == shape
    for kept, before in zip((b for b in block.buffers() if b.is_floating_point()), statistics, strict=True):
        assert torch.equal(kept, before)


def stream():
    return CGNLStream3d(trained(cgnl.CGNL3d(4, groups=2, kernel="embedded_gaussian")))


@pytest.mark.parametrize(
    "transform",
    [
        lambda stream, x: torch.jit.trace(stream, x),
        lambda stream, x: torch.export.export(stream, (x,)),
        lambda stream, x: vmap(stream)(x[None]),
        lambda stream, x: grad(lambda x: stream(x).sum())(x),
    ],
    ids=["trace", "export", "vmap", "grad"],
)
def test_a_stream_refuses_what_cannot_keep_its_sums(transform):
    own, frames = stream(), random(2, 4, 2, 3, 2)
    with pytest.raises(ValueError, match="CGNLStream3d keeps sums from call to call"):
        transform(own, frames)
    assert_equal(own(frames), stream()(frames))


def test_a_stream_of_no_samples():
    own = stream()
    assert own(random(0, 4, 2, 3, 2)).shape == (0, 4, 2, 3, 2)
    assert own(random(0, 4, 3, 2)).shape == (0, 4, 3, 2)
