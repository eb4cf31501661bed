"""Whatever follows a block or an operation may change its result in place."""

import copy

import pytest
import torch
from torch import nn

import cgnl
from cgnl import ops
from cgnl.ops.eager import gram

KERNELS = {
    "dot": cgnl.DotProduct(),
    "embedded-gaussian": cgnl.EmbeddedGaussian(),
    "order-0": cgnl.EmbeddedGaussian(order=0),
    "rbf": cgnl.GaussianRBF(gamma=0.3),
    "rbf-exact": cgnl.GaussianRBF(gamma=0.3, beta="exact"),
    "rbf-normalized": cgnl.GaussianRBF(gamma=0.3, beta="normalized"),
}
PAIRWISE = ["embedded_gaussian", "gaussian", "dot_product", "dot_product_sum", "concatenation"]


def add_(y):
    y += torch.ones_like(y).requires_grad_()
    return y


FOLLOWERS = {
    "relu": nn.ReLU(inplace=True),
    "dropout": nn.Dropout(0.5, inplace=True),
    "add": add_,
    "mul": lambda y: y.mul_(2),
}


def cgnl_block(**options):
    return lambda num_axes: getattr(cgnl, f"CGNL{num_axes}d")(8, groups=2, **options)


BLOCKS = {
    **{f"cgnl-{name}": cgnl_block(kernel=kernel) for name, kernel in KERNELS.items()},
    **{
        f"cgnl-{norm}-{name}": cgnl_block(kernel=name, norm=norm) for norm in ("group", None) for name in ("dot", "rbf")
    },
    "cgnl-saving": cgnl_block(kernel="embedded_gaussian", memory_efficient=True),
    "cgnl-saving-exact": cgnl_block(kernel=KERNELS["rbf-exact"], memory_efficient=True),
    "cgnl-naive": cgnl_block(backend="naive"),
    "gnl": lambda num_axes: getattr(cgnl, f"GeneralizedNonLocal{num_axes}d")(8, groups=2),
    **{
        f"nl-{pairwise}": lambda num_axes, pairwise=pairwise: getattr(cgnl, f"NonLocal{num_axes}d")(
            8, pairwise=pairwise
        )
        for pairwise in PAIRWISE
    },
    "residual": lambda num_axes: getattr(cgnl, f"ResidualBlock{num_axes}d")(8, groups=2),
}


def random(*shape, seed):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def laid_out(x, layout):
    if layout == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x.transpose(2, -1).contiguous().transpose(2, -1) if layout == "transposed" else x


def gradients(function, follower, inputs, parameters, *, apart):
    """Every gradient of a function and its follower, with a copy between the two if ``apart``."""
    result = function(*inputs)
    torch.manual_seed(0)
    out = follower(result.clone() if apart else result)
    return torch.autograd.grad(out.square().sum(), [*inputs, *parameters], allow_unused=True, materialize_grads=True)


def assert_follower_works(function, follower, inputs, parameters=()):
    own = gradients(function, follower, inputs, parameters, apart=False)
    expected = gradients(function, follower, inputs, parameters, apart=True)
    torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("follower", FOLLOWERS.values(), ids=FOLLOWERS)
@pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS)
def test_after_a_block(make, follower):
    for shape, layout in (((2, 8, 6), "first"), ((2, 8, 3, 4), "channels_last"), ((2, 8, 2, 3, 2), "transposed")):
        torch.manual_seed(0)
        block = make(len(shape) - 2).double()
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.3)
        x = laid_out(random(*shape, seed=1), layout).requires_grad_()
        for mode in (True, False):
            assert_follower_works(copy.deepcopy(block).train(mode), follower, [x], [])


@pytest.mark.parametrize("gram_form", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_after_a_block_in_each_form_and_type(gram_form, dtype, monkeypatch):
    monkeypatch.setattr(gram, "pays", lambda *sizes, training: gram_form)
    network = nn.Sequential(nn.Conv2d(3, 16, 1), cgnl.CGNL2d(16), nn.ReLU(inplace=True)).to(dtype)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    start = network[1].phi.weight.detach().clone()
    for memory_format in (torch.contiguous_format, torch.channels_last, torch.contiguous_format):
        x = torch.randn(2, 3, 5, 7, dtype=dtype).contiguous(memory_format=memory_format)
        optimizer.zero_grad()
        network(x).float().square().sum().backward()
        optimizer.step()
    assert not torch.equal(start, network[1].phi.weight)


OPERATIONS = {
    **{
        f"{operation.__name__}-{backend}-{name}": lambda *maps, operation=operation, backend=backend, kernel=kernel: (
            operation(*maps, groups=2, kernel=kernel, backend=backend)
        )
        for operation in (ops.compact_generalized_non_local, ops.generalized_non_local)
        for backend in ("eager", "naive")
        for name, kernel in KERNELS.items()
    },
    **{
        f"non_local-{backend}-{pairwise}": lambda *maps, backend=backend, pairwise=pairwise: ops.non_local(
            *maps,
            pairwise=pairwise,
            backend=backend,
            concat_weight=random(16, seed=9) if pairwise == "concatenation" else None,
        )
        for backend in ("eager", "naive")
        for pairwise in PAIRWISE
    },
    **{
        f"cgnl_block-{name}-{saving}": lambda *maps, kernel=kernel, saving=saving: ops.cgnl_block(
            maps[0],
            *(random(4, 8, *(1,) * (maps[0].dim() - 2), seed=i) for i in range(3)),
            random(8, 2, *(1,) * (maps[0].dim() - 2), seed=3),
            groups=2,
            kernel=kernel,
            backend="eager",
            memory_efficient=saving,
        )
        for name, kernel in KERNELS.items()
        for saving in (False, True)
    },
}


@pytest.mark.parametrize("follower", FOLLOWERS.values(), ids=FOLLOWERS)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_after_an_operation(operation, follower):
    for shape, layout in (((2, 8, 6), "channels_last"), ((2, 8, 3, 4), "channels_last"), ((2, 8, 2, 3, 2), "first")):
        maps = [laid_out(random(*shape, seed=i), layout).requires_grad_() for i in range(3)]
        assert_follower_works(operation, follower, maps)


def test_after_a_stream():
    stream = cgnl.CGNLStream3d(cgnl.CGNL3d(8, groups=2).eval())
    for shape in ((1, 8, 3, 4), (1, 8, 2, 3, 4)):
        result = stream(torch.randn(shape))
        add_(result).sum().backward()
