import copy
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import cgnl
import tolerances
from cgnl import blocks, ops
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF

GOLDEN = Path(__file__).parent.parent / "golden"
SHAPES = {1: (3, 16, 11), 2: (3, 16, 5, 7), 3: (3, 16, 2, 5, 4)}

# the public code's names of convolutions and norm, and ours
GOLDEN_NAMES = {
    "t": "theta",
    "p": "phi",
    "g": "g",
    "z": "z",
    "gn": "norm",
    "bn": "norm",
    "theta.conv": "theta",
    "phi.conv": "phi",
    "phi.0.conv": "phi",
    "g.conv": "g",
    "g.0.conv": "g",
    "conv_out.conv": "z",
    "conv_out.norm": "norm",
    "concat_project.conv": "concat",
}
GOLDEN_BLOCKS = {
    "cgnl_dot_g1_batchnorm": lambda: cgnl.CGNL2d(32, groups=1),
    "cgnl_dot_g4_batchnorm_scaled": lambda: cgnl.CGNL2d(32, groups=4, scale="sqrt"),
    "cgnl_dot_g8_groupnorm": lambda: cgnl.CGNL2d(32, groups=8, norm="group"),
    "cgnl_rbf_p2_g2_batchnorm": lambda: cgnl.CGNL2d(32, groups=2, kernel=GaussianRBF(order=2)),
    "cgnl_rbf_p3_g8_groupnorm": lambda: cgnl.CGNL2d(32, groups=8, kernel="rbf", norm="group"),
    "nl1d_embedded_gaussian": lambda: cgnl.NonLocal1d(16, bias=True),
    "nl2d_concatenation": lambda: cgnl.NonLocal2d(16, pairwise="concatenation", bias=True),
    "nl2d_dot_product": lambda: cgnl.NonLocal2d(16, pairwise="dot_product", bias=True),
    "nl2d_gaussian": lambda: cgnl.NonLocal2d(8, inner_channels=8, pairwise="gaussian", scale=False, bias=True),
    "nl3d_dot_product_subsampled": lambda: cgnl.NonLocal3d(16, pairwise="dot_product", subsample=True, bias=True),
    "nl3d_embedded_gaussian_subsampled": lambda: cgnl.NonLocal3d(16, subsample=True, bias=True),
    "nl_embedded_gaussian": lambda: cgnl.NonLocal2d(32, scale=False),
    "nl_embedded_gaussian_scaled": lambda: cgnl.NonLocal2d(32),
}
EVERY_BLOCK = {
    **{
        f"{name}{axes}d": (getattr(cgnl, f"{name}{axes}d"), axes)
        for name in ("CGNL", "GeneralizedNonLocal", "NonLocal")
        for axes in (1, 2, 3)
    },
    "ResidualBlock1d": (cgnl.ResidualBlock1d, 1),
    "ResidualBlock2d": (cgnl.ResidualBlock2d, 2),
    "ResidualBlock3d": (cgnl.ResidualBlock3d, 3),
}


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def trained(block, seed=0):
    """The block with weights as after training: none zero, and large enough that the branch matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return block


def step(block, x, dy):
    """Output and every gradient of one training step, on a copy."""
    block, x = copy.deepcopy(block), x.detach().clone().requires_grad_()
    y = block(x)
    y.backward(dy)
    return [y.detach(), x.grad, *(p.grad for p in block.parameters()), *block.buffers()]


@pytest.mark.parametrize("name", GOLDEN_BLOCKS)
def test_golden_data(name):
    data = load_file(GOLDEN / f"{name}.safetensors")

    def of(prefix):
        keys = [key.removeprefix(prefix) for key in data if key.startswith(prefix)]
        split = {key: key.rpartition(".") for key in keys}
        return {f"{GOLDEN_NAMES[module]}.{leaf}": data[prefix + key] for key, (module, _, leaf) in split.items()}

    block = GOLDEN_BLOCKS[name]().double()
    block.load_state_dict(of("param."))
    if "y_eval" in data:
        assert relative(block.eval()(data["x"]), data["y_eval"]) < tolerances.GOLDEN
    x = data["x"].requires_grad_()
    y = block.train()(x)
    y.backward(data["dy"])
    assert relative(y, data["y_train"]) < tolerances.GOLDEN
    assert relative(x.grad, data["dx"]) < tolerances.GOLDEN
    expected = of("grad.")
    assert expected.keys() == dict(block.named_parameters()).keys()
    for key, parameter in block.named_parameters():
        if expected[key].abs().max() < tolerances.ZERO_GOLDEN:  # a bias before a softmax or a norm
            assert parameter.grad.abs().max() < tolerances.ZERO_GOLDEN
        else:
            assert relative(parameter.grad, expected[key]) < tolerances.GOLDEN, key


def test_every_golden_file_of_a_block_is_used():
    assert {path.stem for path in GOLDEN.glob("*.safetensors")} == GOLDEN_BLOCKS.keys()


def norm_with_bias(channels):
    norm = nn.BatchNorm2d(channels)
    nn.init.ones_(norm.bias)
    return norm


@pytest.mark.parametrize(
    "norm",
    ["batch", "sync_batch", "group", None, lambda channels: nn.Identity(), norm_with_bias],
    ids=["batch", "sync_batch", "group", "none", "identity", "with-bias"],
)
@pytest.mark.parametrize("name", [name for name in EVERY_BLOCK if name.endswith("2d")])
def test_starts_as_the_identity_and_can_learn(name, norm):
    block = EVERY_BLOCK[name][0](16, norm=norm)
    x = random(*SHAPES[2]).requires_grad_()
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    gradients = dict(block.named_parameters())
    learner = "norm.weight" if "norm.weight" in gradients else "z.weight"
    assert gradients[learner].grad.abs().max() > 0
    assert torch.equal(block.eval()(x), x)


@pytest.mark.parametrize("name", EVERY_BLOCK)
def test_any_number_of_axes_keeps_shape_strides_and_type(name):
    make, axes = EVERY_BLOCK[name]
    block = trained(make(16))
    formats = {1: [], 2: [torch.channels_last], 3: [torch.channels_last_3d]}[axes]
    contiguous = random(*SHAPES[axes])
    expected = step(block, contiguous, contiguous)
    assert relative(expected[0], contiguous) > 0.01
    for memory_format in formats:
        x = contiguous.contiguous(memory_format=memory_format)
        result = step(block, x, x)
        if name.startswith("CGNL"):
            assert result[0].stride() == x.stride()
        for one, other in zip(result, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_weights_start_small_and_normal():
    block = cgnl.CGNL2d(512)
    for name in ("theta", "phi", "g", "z"):
        weight = getattr(block, name).weight
        assert weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert abs(weight.mean().item()) < 1e-3


def test_state_dicts():
    expected = ["theta.weight", "phi.weight", "g.weight", "z.weight"]
    norm = [f"norm.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    assert list(cgnl.CGNL2d(16).state_dict()) == expected + norm
    assert list(cgnl.GeneralizedNonLocal2d(16).state_dict()) == expected + norm
    assert list(cgnl.CGNL2d(16, norm=None).state_dict()) == expected
    assert cgnl.CGNL3d(16).z.weight.shape == (16, 1, 1, 1, 1)
    assert list(cgnl.NonLocal2d(16).state_dict()) == expected + norm
    assert list(cgnl.NonLocal2d(16, pairwise="gaussian", norm=None).state_dict()) == ["g.weight", "z.weight"]
    biased = cgnl.NonLocal1d(16, pairwise="concatenation", bias=True, norm=None).state_dict()
    assert {key for key in biased if key.endswith("bias")} == {"theta.bias", "phi.bias", "g.bias"}
    assert biased["concat.weight"].shape == (1, 16, 1)
    assert list(cgnl.ResidualBlock2d(16).state_dict()) == ["theta.weight", "z.weight", *norm]


@pytest.mark.parametrize("kernel", ["dot", EmbeddedGaussian(order=2), GaussianRBF(0.3, beta="exact")], ids=str)
@pytest.mark.parametrize("norm", ["batch", "group", None])
@pytest.mark.parametrize("training", [True, False])
def test_eager_block_equals_naive_block(kernel, norm, training):
    options = {"groups": 4, "kernel": kernel, "norm": norm, "scale": "sqrt"}
    eager = trained(cgnl.CGNL3d(16, **options)).double().train(training)
    naive = cgnl.CGNL3d(16, **options, backend="naive").double().train(training)
    naive.load_state_dict(eager.state_dict())
    x, dy = random(*SHAPES[3], dtype=torch.float64), random(*SHAPES[3], seed=1, dtype=torch.float64)
    for one, other in zip(step(eager, x, dy), step(naive, x, dy), strict=True):
        one, other = one.double(), other.double()
        assert (one - other).norm() <= tolerances.EAGER_FLOAT64_GROUP_NORM * other.norm()


@pytest.mark.parametrize("backend", ["eager", "naive"])
@pytest.mark.parametrize("subsample", [False, True])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_the_sum_of_dot_products_is_eq_4_and_the_dot_product_divides_it(axes, subsample, backend):
    """Eq. 4, Y = theta phi^T g, written out; "dot_product" over the positions of phi that sub-sampling leaves."""
    make = getattr(cgnl, f"NonLocal{axes}d")
    pool, size = getattr(nn.functional, f"max_pool{axes}d"), (1, 2, 2) if axes == 3 else 2
    options = {"subsample": subsample, "norm": None, "bias": True, "backend": backend}
    block = trained(make(16, pairwise="dot_product_sum", **options)).double()
    divided = make(16, pairwise="dot_product", **options).double()
    divided.load_state_dict(block.state_dict())
    shape = (2, 16, *(4, 6, 5)[3 - axes :])
    x = random(*shape, dtype=torch.float64).requires_grad_()
    dy = random(*shape, seed=1, dtype=torch.float64)

    def pooled(features):
        return pool(features, size) if subsample else features

    def literal(own):
        theta, phi, g = own.theta(x), pooled(own.phi(x)), pooled(own.g(x))
        y = torch.einsum("bcn,bcm,bdm->bdn", theta.flatten(2), phi.flatten(2), g.flatten(2)).view_as(theta)
        return own.z(y / phi[0, 0].numel() if own.pairwise == "dot_product" else y) + x

    for own in (block, divided):
        inputs = [x, *own.parameters()]
        results = [(out, *torch.autograd.grad(out, inputs, dy)) for out in (own(x), literal(own))]
        for one, other in zip(*results, strict=True):
            assert (one - other).norm() <= tolerances.EAGER_FLOAT64 * other.norm()


def test_compact_block_with_the_dot_product_is_the_generalized_block():
    compact = trained(cgnl.CGNL2d(16, groups=2)).double()
    exact = cgnl.GeneralizedNonLocal2d(16, groups=2).double()
    exact.load_state_dict(compact.state_dict())
    x = random(*SHAPES[2], dtype=torch.float64)
    for one, other in zip(step(compact, x, x), step(exact, x, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_residual_block_is_a_cgnl_block_without_attention():
    block = trained(cgnl.ResidualBlock2d(16, groups=4)).eval()
    x = random(*SHAPES[2])
    expected = x + block.norm(block.z(block.theta(x)))
    assert relative(block(x), expected) < tolerances.BATCH_OF_ONE
    cgnl_block = cgnl.CGNL2d(16, groups=4)
    assert block.theta.weight.shape == cgnl_block.theta.weight.shape
    assert block.z.weight.shape == cgnl_block.z.weight.shape


@pytest.mark.parametrize(("axes", "pooled"), [(1, (5,)), (2, (2, 3)), (3, (2, 2, 2))])
def test_subsampling_pools_space_and_not_time(axes, pooled, monkeypatch):
    seen = []

    def spy(theta, phi, g, **options):
        seen.append((theta.shape[2:], phi.shape[2:], g.shape[2:]))
        return ops.non_local(theta, phi, g, **options)

    monkeypatch.setattr(blocks.non_local, "non_local", spy)
    for pairwise in ("embedded_gaussian", "gaussian"):
        EVERY_BLOCK[f"NonLocal{axes}d"][0](16, pairwise=pairwise, subsample=True)(random(*SHAPES[axes]))
    assert seen == [(SHAPES[axes][2:], pooled, pooled)] * 2


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("track", [True, False])
def test_running_statistics_as_the_norm_module_itself(momentum, track):
    def norm(channels):
        return nn.BatchNorm2d(channels, momentum=momentum, track_running_stats=track)

    fused = trained(cgnl.CGNL2d(16, norm=norm))
    called = copy.deepcopy(fused)
    called.norm.register_forward_hook(lambda *_: None)  # a hook makes the block call its norm
    for seed in range(3):
        x = random(*SHAPES[2], seed=seed)
        assert relative(fused(x), called(x)) < tolerances.BATCH_OF_ONE
    for one, other in zip(fused.norm.buffers(), called.norm.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    x = random(*SHAPES[2], seed=9)
    assert relative(fused.eval()(x), called.eval()(x)) < tolerances.BATCH_OF_ONE
    assert track == (fused.norm.running_mean is not None)


def test_frozen_statistics_are_used_and_kept():
    block = trained(cgnl.CGNL2d(16)).train()
    block.norm.eval()
    before = block.norm.running_mean.clone()
    x = random(*SHAPES[2])
    y = block(x)
    assert torch.equal(block.norm.running_mean, before)
    assert relative(y, copy.deepcopy(block).eval()(x)) < tolerances.BATCH_OF_ONE


def test_hooks_on_children_run_and_change_the_result():
    block = trained(cgnl.CGNL2d(16)).eval()
    x = random(*SHAPES[2])
    expected = block(x)
    seen = []
    for name in ("theta", "phi", "g", "z", "norm"):
        getattr(block, name).register_forward_hook(lambda module, inputs, out, name=name: seen.append(name))
    assert relative(block(x), expected) < tolerances.BATCH_OF_ONE
    assert seen == ["theta", "phi", "g", "z", "norm"]
    block.phi.register_forward_hook(lambda module, inputs, out: 0 * out)
    assert relative(block(x), expected) > 0.01


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("norm", ["batch", None])
@pytest.mark.parametrize("make", [cgnl.CGNL2d, cgnl.GeneralizedNonLocal2d, cgnl.NonLocal2d, cgnl.ResidualBlock2d])
def test_half_precision_is_close_to_float32(make, norm, dtype):
    half_type = getattr(torch, dtype)
    half = trained(make(16, norm=norm)).to(half_type)
    single = copy.deepcopy(half).float()
    x = random(*SHAPES[2], dtype=half_type)
    results, expected = step(half, x, x), step(single, x.float(), x.float())
    assert all(one.dtype == half_type for one in results if one.is_floating_point())
    for one, other in zip(results[:2], expected[:2], strict=True):
        assert relative(one.float(), other) < tolerances.HALF[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("inside_autocast", [True, False])
@pytest.mark.parametrize("make", [cgnl.CGNL2d, cgnl.GeneralizedNonLocal2d])
def test_half_precision_is_finite_where_sums_overflow(make, dtype, norm, training, inside_autocast):
    block = make(16, norm=norm, groups=2).train(training)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(0.5)
    block = block if inside_autocast else block.to(dtype)
    x = (8 + random(2, 16, 10, 10)).to(torch.float32 if inside_autocast else dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=inside_autocast):
        theta = block.theta(x)
        y = block(x)
    assert (theta.float() ** 3).sum() > torch.finfo(torch.float16).max
    if training or norm == "group":  # running statistics of a new block do not scale the branch down
        assert torch.isfinite(y).all()
        y.float().sum().backward()
        assert torch.isfinite(x.grad).all()


def test_autocast_gives_the_type_of_x_and_half_precision_features():
    block = trained(cgnl.CGNL2d(16))
    x = random(*SHAPES[2])
    expected = step(block, x, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = step(block, x, x)
        assert block(x.bfloat16()).dtype == torch.bfloat16
    assert result[0].dtype == torch.float32
    for one, other in zip(result[:2], expected[:2], strict=True):
        assert relative(one, other) < tolerances.HALF["bfloat16"]
    assert relative(result[0], expected[0]) > 1e-5  # it did run in bfloat16


@pytest.mark.parametrize("name", EVERY_BLOCK)
def test_nan_stays_in_its_sample_in_eval_mode(name):
    make, axes = EVERY_BLOCK[name]
    block = trained(make(16)).eval()
    x = random(*SHAPES[axes])
    clean = block(x)
    x[1, 3] = torch.nan
    y = block(x)
    assert torch.equal(y[[0, 2]], clean[[0, 2]])
    assert y[1].isnan().any()


def test_one_sample_in_training_warns_once():
    blocks.grouped._warn_of_single_sample.cache_clear()
    block, x = cgnl.CGNL2d(16), random(1, *SHAPES[2][1:])
    with pytest.warns(blocks.SingleSampleWarning, match="one sample per process"):
        block(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        block(x)
        blocks.grouped._warn_of_single_sample.cache_clear()
        block.eval()(x)
        cgnl.CGNL2d(16)(random(*SHAPES[2]))
        cgnl.CGNL2d(16, norm="group").eval()(x)


def test_group_norm_with_the_dot_product_warns_once_in_training():
    """Where the norm's groups lie within those of the sums, each sample's output keeps only the sign of its sums."""
    x = random(*SHAPES[2])
    others = {
        "another kernel": cgnl.CGNL2d(16, norm="group", kernel="embedded_gaussian"),
        "a norm over several groups": cgnl.CGNL2d(16, groups="channels", z_groups=1, norm="group"),
        "evaluation": cgnl.CGNL2d(16, norm="group").eval(),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for block in others.values():
            block(x)
    for make in (cgnl.CGNL2d, cgnl.GeneralizedNonLocal2d):
        blocks.grouped._warn_of_group_norm.cache_clear()
        block = make(16, norm="group")
        with pytest.warns(blocks.GroupNormWarning, match="GroupNorm and the dot product"):
            block(x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            block(x)
    with torch.no_grad():
        trained(block)
        block.norm.eps = 0.0
        branch = block(x) - x
        block.phi.weight.mul_(3)
        assert torch.allclose(block(x) - x, branch, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", EVERY_BLOCK)
def test_deepcopy_and_pickle(name):
    make, axes = EVERY_BLOCK[name]
    block = trained(make(16)).eval()
    x = random(*SHAPES[axes])
    for twin in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(twin(x), block(x))
        assert repr(twin) == repr(block)
    assert "channels=16, inner_channels=8" in repr(block)


def test_repr_says_what_was_asked_for():
    text = cgnl.CGNL2d(32, groups=4, kernel="rbf", scale="sqrt").extra_repr()
    assert "groups=4, kernel=GaussianRBF(gamma=0.0001, order=3, beta='constant'), scale='sqrt'" in text
    assert "pairwise='gaussian'" in cgnl.NonLocal2d(8, pairwise="gaussian").extra_repr()


def test_compiles_whole_with_gradients_and_changing_sizes():
    block = trained(cgnl.CGNL2d(16, groups=4, kernel=GaussianRBF(gamma=0.3), scale="sqrt"))
    compiled = torch.compile(copy.deepcopy(block), fullgraph=True, dynamic=True)
    for shape in ((3, 16, 5, 7), (2, 16, 6, 9)):
        x, plain = random(*shape).requires_grad_(), random(*shape).requires_grad_()
        block.zero_grad()
        compiled.zero_grad()
        y, expected = compiled(x), block(plain)
        assert relative(y, expected) < tolerances.FLOAT32_OTHER_KERNELS
        y.square().sum().backward()
        expected.square().sum().backward()
        assert relative(x.grad, plain.grad) < tolerances.FLOAT32_OTHER_KERNELS
        for ours, reference in zip(compiled.parameters(), block.parameters(), strict=True):
            assert relative(ours.grad, reference.grad) < tolerances.FLOAT32_OTHER_KERNELS
    assert relative(compiled.norm.running_var, block.norm.running_var) < tolerances.FLOAT32_OTHER_KERNELS


@pytest.mark.parametrize("name", ["CGNL2d", "NonLocal2d", "ResidualBlock2d"])
def test_exports_with_changing_sizes(name):
    block = trained(EVERY_BLOCK[name][0](16)).eval()
    sizes = {
        0: torch.export.Dim("batch", min=2),
        2: torch.export.Dim("height", min=2),
        3: torch.export.Dim("width", min=2),
    }
    exported = torch.export.export(block, (random(*SHAPES[2]),), dynamic_shapes=(sizes,)).module()
    x = random(4, 16, 6, 9)
    assert relative(exported(x), block(x)) < tolerances.FLOAT32_OTHER_KERNELS


@pytest.mark.parametrize("name", ["CGNL2d", "NonLocal2d", "ResidualBlock2d", "GeneralizedNonLocal2d"])
def test_traces_symbolically(name):
    block = trained(EVERY_BLOCK[name][0](16)).eval()
    x = random(*SHAPES[2])
    assert relative(torch.fx.symbolic_trace(block)(x), block(x)) < tolerances.BATCH_OF_ONE


def test_gradient_of_a_gradient_through_the_module():
    block = trained(cgnl.CGNL1d(8, groups=2, kernel="rbf")).double()
    x = random(2, 8, 5, dtype=torch.float64).requires_grad_()

    def gradient_norm(x):
        (gradient,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
        return gradient.square().sum()

    (second,) = torch.autograd.grad(gradient_norm(x), x)
    direction = random(2, 8, 5, seed=1, dtype=torch.float64)
    step_size = 1e-6
    numeric = (gradient_norm(x + step_size * direction) - gradient_norm(x - step_size * direction)) / (2 * step_size)
    assert ((second * direction).sum() / numeric).item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cgnl.CGNL2d(30, groups=8), r"channels \(30\) must be divisible by groups \(8\)"),
        (
            lambda: cgnl.CGNL2d(32, inner_channels=12, groups=8),
            r"inner_channels \(12\) must be divisible by groups \(8\)",
        ),
        (lambda: cgnl.CGNL2d(0), r"channels \(0\) must be an integer of at least 1"),
        (lambda: cgnl.CGNL2d(32, groups=0), r"groups \(0\) must be an integer of at least 1"),
        (lambda: cgnl.CGNL2d(32, kernel="dots"), r"kernel \('dots'\) must be one of"),
        (lambda: cgnl.CGNL2d(32, norm="layer"), r"norm \('layer'\) must be one of 'batch', 'sync_batch', 'group'"),
        (lambda: cgnl.CGNL2d(32, scale="half"), r"scale \('half'\) must be one of None, 'sqrt', 'mean'"),
        (lambda: cgnl.CGNL2d(32, backend="gpu"), r"backend \('gpu'\) must be one of 'auto', 'eager', 'fused', 'naive'"),
        (
            lambda: cgnl.GeneralizedNonLocal2d(32, backend="fused"),
            r"backend \('fused'\) must be one of 'auto', 'eager', 'naive'",
        ),
        (lambda: cgnl.NonLocal2d(32, pairwise="dot"), r"pairwise \('dot'\) must be one of 'embedded_gaussian'"),
        (lambda: cgnl.CGNL2d(16)(torch.zeros(2, 8, 3, 3)), r"x \(2, 8, 3, 3\) has 8 channels, .* channels=16"),
        (lambda: cgnl.CGNL2d(16)(torch.zeros(16, 3, 3)), r"x \(16, 3, 3\) must be \[B, C, H, W\] for CGNL2d"),
        (lambda: cgnl.NonLocal3d(16)(torch.zeros(2, 16, 3, 3)), r"must be \[B, C, T, H, W\] for NonLocal3d"),
        (
            lambda: cgnl.CGNL1d(16)(torch.zeros(2, 16, 3).double()),
            r"x is torch.float64, but theta_weight is torch.float32",
        ),
        (lambda: cgnl.CGNL1d(16)(torch.zeros(1, 16, 1)), r"x \(1, 16, 1\) must have more than 1 value per channel"),
    ],
)
@pytest.mark.filterwarnings("ignore::cgnl.blocks.SingleSampleWarning")
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_default_kernel_is_the_papers_main_configuration():
    block = cgnl.CGNL2d(64)
    assert block.kernel == DotProduct()
    assert (block.inner_channels, block.groups, type(block.norm)) == (32, 8, nn.BatchNorm2d)


def test_group_norm_divides_the_scalar_out_and_batch_norm_does_not(monkeypatch):
    """The measured figure of studies/group_norm.py, at an ordinary scale of the weights."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "studies")
    from group_norm import measure

    (group_change, group_gradient), (batch_change, batch_gradient) = (
        measure(norm, 0.2, 0) for norm in ("group", "batch")
    )
    (single_change, _) = measure("batch", 0.2, 0, batch=1)
    assert group_change < 1e-3
    assert group_gradient < 0.05
    assert single_change < 1e-3
    assert batch_change > 0.2
    assert batch_gradient > 0.2


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel", ["dot", "rbf"])
def test_same_bits_when_repeated_and_a_sample_alone_as_in_a_batch(kernel, memory_format):
    torch.manual_seed(0)
    block = cgnl.CGNL2d(64, groups=4, kernel=kernel)
    nn.init.ones_(block.norm.weight)
    nn.init.normal_(block.theta.weight)
    x = torch.randn(5, 64, 9, 7).contiguous(memory_format=memory_format)

    def step():
        trained = copy.deepcopy(block)
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = trained(leaf)
        y.square().sum().backward()
        return [y.detach(), leaf.grad, *(parameter.grad for parameter in trained.parameters())]

    assert all(torch.equal(a, b) for a, b in zip(step(), step(), strict=True))
    block.eval()
    with torch.no_grad():
        whole = block(x)
        for number in range(len(x)):
            alone = block(x[number : number + 1])[0]
            assert (alone - whole[number]).norm() <= tolerances.BATCH_OF_ONE * whole[number].norm()


@pytest.mark.parametrize("norm", ["batch", None])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_autocast_is_obeyed_in_every_mode(norm, mode):
    block = trained(cgnl.CGNL2d(64, norm=norm)).train(mode == "train")
    x = random(3, 64, 9, 9)
    full = copy.deepcopy(block)(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = copy.deepcopy(block)(x)
    assert half.dtype == torch.float32
    assert 1e-5 < relative(half, full) < tolerances.HALF["bfloat16"]


@pytest.mark.parametrize("name", ["theta", "z"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_convolutions_with_biases_in_their_place_count(name, mode):
    block = trained(cgnl.CGNL2d(16, norm="batch").double())
    setattr(block, name, trained(nn.Conv2d(16, 8, 1) if name == "theta" else nn.Conv2d(8, 16, 1, groups=8)).double())
    block.train(mode == "train")
    x = random(3, 16, 5, 7, dtype=torch.float64)
    theta, phi, g = block.theta(x), block.phi(x), block.g(x)
    y = ops.compact_generalized_non_local(theta, phi, g, groups=8, kernel="dot", backend="naive")
    expected = x + copy.deepcopy(block.norm)(block.z(y))
    assert relative(block(x), expected) < tolerances.EAGER_FLOAT64_BATCH_NORM


def test_a_state_dict_of_normalized_features_from_before_warns_once():
    block = cgnl.CGNL2d(16, kernel=cgnl.GaussianRBF(beta="normalized"))
    network = nn.Sequential(block, nn.Conv2d(16, 4, 1))
    state = network.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network.load_state_dict(state)
        cgnl.CGNL2d(16, kernel=cgnl.GaussianRBF(beta="exact")).load_state_dict(dict(block.state_dict()))
    state._metadata["0"]["version"] = 1
    blocks.compact._warn_of_normalized_features.cache_clear()
    with pytest.warns(UserWarning, match=r"beta=\"normalized\" may come from cgnl 0\.1"):
        network.load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network.load_state_dict(dict(state))  # told once


def test_a_pickled_block_of_normalized_features_from_before_warns():
    block = cgnl.CGNL2d(16, kernel=cgnl.GaussianRBF(beta="normalized"))
    blocks.compact._warn_of_normalized_features.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pickle.loads(pickle.dumps(block))
        copy.deepcopy(block)
    del block._pickled_version  # earlier versions did not have it
    with pytest.warns(UserWarning, match=r"may come from cgnl 0\.1"):
        pickle.loads(pickle.dumps(block))
