"""Blocks and `cgnl.ops` with backend 'fused' against backend 'naive' in float64, and what the backend refuses."""

import copy
from contextlib import nullcontext

import pytest
import torch
from fused_cases import DEVICE, Case, assert_close, block_inputs, feature_inputs, gradients_of, laid_out, random
from torch import nn

from cgnl import CGNL1d, CGNL2d, CGNL3d, ops
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF
from cgnl.ops.fused.launching import launches

# float32 against the naive form in float64, relative to the norm: outputs and gradients.
FLOAT32 = 3e-6
# The same through a norm over the batch, which takes the mean away.
FLOAT32_BATCH_NORM = 1e-5
# Half types, whose inputs are rounded before both forms; the interpreter truncates to bfloat16 where a GPU rounds.
HALF = {torch.float16: 1e-3, torch.bfloat16: 2e-2}

SHAPES = {CGNL1d: (3, 16, 11), CGNL2d: (3, 16, 5, 3), CGNL3d: (2, 16, 2, 3, 3)}
SHAPE = SHAPES[CGNL2d]
SMALL = Case((2, 16, 5, 3), 8, 2)

# The kernels of a forward and a backward pass. Whatever makes y of x makes it again in backward.
OF_BLOCK = {"power_sums_kernel", "branch_kernel", "branch_backward_kernel", "power_sums_backward_kernel"}
PATHS = {
    # conv_z's output with the norm after it, or a scale and a shift inside that nothing is learned of
    "plain": OF_BLOCK,
    # a learned scale and shift and the residual inside
    "affine": OF_BLOCK | {"branch_gradient_sums_kernel"},
    # the norm over the batch and the residual inside
    "batch_norm": OF_BLOCK | {"branch_gradient_sums_kernel", "finish_kernel"},
    # between convolutions that are called as modules
    "features": {
        "feature_sums_kernel",
        "polynomial_kernel",
        "polynomial_backward_kernel",
        "feature_sums_backward_kernel",
    },
}


@pytest.fixture(autouse=True)
def _count_from_zero():
    launches.clear()


def trained(block, dtype=torch.float32):
    """The block as after training: no parameter is zero, and the running statistics are no start values."""
    for seed, (name, tensor) in enumerate(block.state_dict().items()):
        if tensor.is_floating_point():
            values = 0.4 * random(*tensor.shape, seed=seed)
            tensor.copy_((values.abs() + 0.5 if name == "norm.running_var" else values).to(dtype))
    return block.to(DEVICE)


def block_pair(kind=CGNL2d, dtype=torch.float32, **options):
    """A block with backend 'fused', and in float64 with backend 'naive'; their numbers have the digits of ``dtype``."""
    options = {"groups": 2, "kernel": EmbeddedGaussian(), "scale": "mean", **options}
    block = trained(kind(16, backend="fused", **options), dtype)
    exact = kind(16, backend="naive", **options).to(DEVICE, torch.float64)
    exact.load_state_dict(block.state_dict())
    return block, exact


def input_of(kind=CGNL2d, dtype=torch.float32, layout="first"):
    return laid_out(random(*SHAPES[kind], seed=20).to(DEVICE, dtype), layout).requires_grad_()


def check(block, exact, x, path, tolerance, context=None, leaves_out=()):
    """Output, every gradient and every buffer of the two, and the kernels that ran."""
    wanted = [name for name, _ in block.named_parameters() if name not in leaves_out]
    with context or nullcontext():
        y = block(x)
    assert y.dtype == x.dtype
    results = [y, *gradients_of(y, [x, *map(block.get_parameter, wanted)])]
    assert set(launches) == PATHS[path]
    launches.clear()
    exact_x = x.detach().double().requires_grad_()
    expected = exact(exact_x)
    expected = [expected, *gradients_of(expected, [exact_x, *map(exact.get_parameter, wanted)])]
    assert not launches
    assert_close([*results, *block.buffers()], [*expected, *(t.double() for t in exact.buffers())], tolerance)


def set_mode(mode, *blocks):
    for block in blocks:
        block.train(mode != "eval")
        if mode == "frozen":
            block.norm.eval()


@pytest.mark.parametrize(("mode", "path"), [("training", "batch_norm"), ("frozen", "affine"), ("eval", "affine")])
@pytest.mark.parametrize("kind", SHAPES)
def test_block_equals_naive_with_every_gradient(kind, mode, path):
    block, exact = block_pair(kind)
    set_mode(mode, block, exact)
    check(block, exact, input_of(kind), path, FLOAT32_BATCH_NORM if mode == "training" else FLOAT32)


NORMS = {
    "none": (None, "plain"),
    "sync_batch": ("sync_batch", "plain"),
    "without weight": (lambda channels: nn.BatchNorm2d(channels, affine=False), "batch_norm"),
    "without statistics": (lambda channels: nn.BatchNorm2d(channels, track_running_stats=False), "batch_norm"),
    "momentum None": (lambda channels: nn.BatchNorm2d(channels, momentum=None), "batch_norm"),
}


@pytest.mark.parametrize("name", NORMS)
def test_other_norms_in_training(name):
    norm, path = NORMS[name]
    block, exact = block_pair(norm=norm)
    check(block, exact, input_of(), path, FLOAT32_BATCH_NORM)


def test_norms_in_eval():
    for name, path in {"none": "plain", "without weight": "plain", "without statistics": "batch_norm"}.items():
        block, exact = block_pair(norm=NORMS[name][0])
        launches.clear()
        check(block.eval(), exact.eval(), input_of(), path, FLOAT32_BATCH_NORM)


def test_group_norm():
    block, exact = block_pair(norm="group", kernel="dot")
    # GroupNorm divides out the scalar that phi and g make: their gradients are zero in truth but for eps
    check(block, exact, input_of(), "plain", FLOAT32_BATCH_NORM, leaves_out=("phi.weight", "g.weight"))


@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_over_several_steps(momentum):
    block, exact = block_pair(norm=lambda channels: nn.BatchNorm2d(channels, momentum=momentum))
    for step in range(2):
        x = random(*SHAPE, seed=step).to(DEVICE)
        block(x.float())
        exact(x.float().double())
    assert block.norm.num_batches_tracked == 2
    assert_close([*block.norm.buffers()], [t.double() for t in exact.norm.buffers()], FLOAT32_BATCH_NORM)
    assert launches["finish_kernel"] == 2


@pytest.mark.parametrize("kernel", ["dot", GaussianRBF(gamma=0.3, beta="exact")], ids=str)
def test_other_kernel_functions(kernel):
    block, exact = block_pair(kernel=kernel)
    check(block, exact, input_of(), "batch_norm", FLOAT32_BATCH_NORM)


@pytest.mark.parametrize("mode", ["training", "eval"])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(x_dtype, mode):
    """In float32 the residual keeps its digits, and so the norm comes after the operation."""
    block, exact = block_pair(dtype=torch.bfloat16)
    set_mode(mode, block, exact)
    inside = "batch_norm" if mode == "training" else "affine"
    check(
        block,
        exact,
        input_of(dtype=torch.bfloat16).detach().to(x_dtype).requires_grad_(),
        "plain" if x_dtype == torch.float32 else inside,
        HALF[torch.bfloat16],
        torch.autocast(DEVICE, torch.bfloat16),
    )


@pytest.mark.parametrize(("mode", "path"), [("training", "batch_norm"), ("eval", "affine")])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_types(dtype, mode, path):
    block, exact = block_pair(dtype=dtype)
    set_mode(mode, block, exact)
    check(block.to(dtype), exact, input_of(dtype=dtype), path, HALF[dtype])


def test_norm_folded_into_conv_z():
    block, exact = block_pair()
    x = input_of()
    expected = exact.eval()(x.detach().double())
    y = block.eval().fuse()(x)
    assert_close([y], [expected], FLOAT32)
    assert set(launches) == {"power_sums_kernel", "branch_kernel"}


@pytest.mark.parametrize("layout", ["last", "sliced"])
@pytest.mark.parametrize("kind", [CGNL2d, CGNL3d])
def test_memory_formats(kind, layout):
    block, exact = block_pair(kind)
    x = input_of(kind, layout=layout)
    check(block, exact, x, "batch_norm", FLOAT32_BATCH_NORM)
    assert block(x).stride() == torch.empty_like(x).stride()


def test_hooked_convolutions():
    block, exact = block_pair()
    block.theta.register_forward_hook(lambda module, arguments, output: None)
    check(block, exact, input_of(), "features", FLOAT32_BATCH_NORM)


OPERATIONS = {
    "block": (ops.cgnl_block, block_inputs, "plain"),
    "features": (ops.compact_generalized_non_local, feature_inputs, "features"),
}


def options_of(backend, kernel="rbf"):
    return {"groups": SMALL.groups, "kernel": kernel, "scale": "sqrt", "backend": backend}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(
    ("dtype", "out_dtype"),
    [(torch.float32, None), (torch.float16, None), (torch.float16, torch.float32), (torch.float32, torch.float16)],
    ids=str,
)
def test_operations_equal_naive_with_every_gradient(name, dtype, out_dtype):
    operation, make, path = OPERATIONS[name]
    inputs = make(Case(SMALL.shape, SMALL.inner, SMALL.groups, dtype=dtype))
    exact = [t.detach().double().requires_grad_() for t in inputs]
    y = operation(*inputs, **options_of("fused"), out_dtype=out_dtype)
    assert y.dtype == (out_dtype or dtype)
    gradients = gradients_of(y, inputs)
    assert set(launches) == PATHS[path]
    expected = operation(*exact, **options_of("naive"))
    tolerance = FLOAT32 if {dtype, out_dtype} <= {torch.float32, None} else HALF[torch.float16]
    assert_close([y, *gradients], [expected, *gradients_of(expected, exact)], tolerance)


def test_operation_under_autocast():
    inputs = [t.detach().bfloat16().float().requires_grad_() for t in block_inputs(SMALL)]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    with torch.autocast(DEVICE, torch.bfloat16):
        y = ops.cgnl_block(*inputs, **options_of("fused"))
    gradients = gradients_of(y, inputs)
    assert {t.dtype for t in (y, *gradients)} == {torch.float32}
    assert set(launches) == PATHS["plain"]
    expected = ops.cgnl_block(*exact, **options_of("naive"))
    assert_close([y, *gradients], [expected, *gradients_of(expected, exact)], HALF[torch.bfloat16])


def call(name, backend, tensor_device=DEVICE, dtype=torch.float32, samples=2, kernel="dot"):
    """One of the operations or blocks on inputs of this kind."""
    x = torch.ones(samples, 16, 5, 3, device=tensor_device, dtype=dtype)
    if name in OPERATIONS:
        operation, make, _ = OPERATIONS[name]
        inputs = [t.detach().to(tensor_device, dtype) for t in make(SMALL)]
        inputs = [t[:samples] if name == "features" or i == 0 else t for i, t in enumerate(inputs)]
        return operation(*inputs, **options_of(backend, kernel))
    block = CGNL2d(16, groups=2, kernel=kernel, norm="group" if name == "group norm" else "batch", backend=backend)
    if name == "hooked":
        block.theta.register_forward_hook(lambda module, arguments, output: None)
    return block.to(tensor_device, dtype).train(name == "training")(x)


CALLS = [*OPERATIONS, "training", "eval", "group norm", "hooked"]
REFUSED = {
    "float64": ({"dtype": torch.float64}, "it has no float64"),
    "normalized": ({"kernel": GaussianRBF(beta="normalized")}, "GaussianRBF normalizes its features"),
    "order 6": ({"kernel": EmbeddedGaussian(6)}, "the series has order 6, above 5"),
    "empty": ({"samples": 0}, "it takes no empty tensors"),
    "cpu": ({"tensor_device": "cpu"}, "it needs a CUDA device, and the tensors are on cpu"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("reason", REFUSED)
def test_what_it_cannot_run_is_refused(name, reason, monkeypatch):
    """Backend 'fused' never falls back."""
    options, obstacle = REFUSED[reason]
    if reason == "cpu":
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=rf"^backend 'fused' cannot run here: {obstacle}; take backend='auto' or 'ea"):
        call(name, "fused", **options)
    assert not launches


def test_a_refused_step_leaves_the_norm_as_it_was():
    block = trained(CGNL2d(16, groups=2, kernel=EmbeddedGaussian(6), backend="fused"))
    before = copy.deepcopy(block.state_dict())
    with pytest.raises(ValueError, match=r"^backend 'fused' cannot run here"):
        block(input_of())
    assert all(map(torch.equal, before.values(), block.state_dict().values()))


@pytest.mark.parametrize("name", CALLS)
def test_other_backends_on_a_cpu_launch_nothing(name):
    call(name, "fused")
    assert launches
    launches.clear()
    for backend in ("auto", "eager", "naive"):
        call(name, backend, tensor_device="cpu")
        assert not launches


def test_chosen_form():
    x, dot = torch.ones(2, 8, 5, device=DEVICE), DotProduct()
    for backend, form in {"eager": ops.eager, "naive": ops.naive, "fused": ops.fused}.items():
        assert ops.chosen_form(backend, x, x, kernel=dot) is form
    assert ops.chosen_form("auto", x, x, kernel=dot) is (ops.fused if DEVICE == "cuda" else ops.eager)
    assert ops.chosen_form("auto", x.cpu(), x.cpu(), kernel=dot) is ops.eager
    assert ops.chosen_form("auto", x.double(), x.double(), kernel=dot) is ops.eager
    assert ops.chosen_form("auto", x, x, kernel=EmbeddedGaussian(6)) is ops.eager
    for operation in ("features", "branch", "affine", "batch_norm"):
        kernel = GaussianRBF(beta="normalized")
        assert ops.chosen_form("auto", x, x, x, x, x, kernel=kernel, operation=operation) is ops.eager
    with torch.autocast(DEVICE, torch.bfloat16):
        # the type counts in which the operation gets its inputs: autocast leaves float64 alone
        assert ops.chosen_form("fused", x, x.double(), kernel=dot) is ops.fused
        with pytest.raises(ValueError, match="it has no float64"):
            ops.chosen_form("fused", x.double(), x, kernel=dot)
