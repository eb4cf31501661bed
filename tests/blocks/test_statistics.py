"""Covariance and correlation in place of the sum, and conv_z with groups of its own, against their definitions."""

import copy
import itertools
import pickle
from functools import partial

import pytest
import torch
from torch import nn

import cgnl
import tolerances
from cgnl import ops
from cgnl.blocks.stream import CGNLStream3d
from cgnl.explain.maps import evidence, polynomial, sums
from cgnl.explain.trace import trace_blocks
from cgnl.ops.eager import gram
from cgnl.settings.blocks import options_class

EPS = 1e-5  # of the mean square, added to a variance


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def trained(block, seed=0):
    """A block with weights and statistics as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in block.state_dict().items():
            if tensor.is_floating_point():
                values = 0.4 * torch.randn(tensor.shape, dtype=torch.float64, generator=generator)
                tensor.copy_(values.square() + 0.5 if name == "norm.running_var" else values)
    return block


def random(*shape, seed=1):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.7


def statistic_of(phi, g, statistic):
    """The number of one group of one sample, from two vectors of all its elements."""
    if statistic == "sum":
        return (phi * g).sum()
    products = ((phi - phi.mean()) * (g - g.mean())).sum()
    if statistic == "covariance":
        return products
    variances = [(v - v.mean()).square().mean() + EPS * v.square().mean() for v in (phi, g)]
    return products / len(phi) / (variances[0] * variances[1]).sqrt()


def reference(block, x):
    """The block with each group's number computed on its own."""
    theta, phi, g = block.theta(x), block.phi(x), block.g(x)
    rows = []
    for sample in range(len(x)):
        parts = [t[sample].chunk(block.groups) for t in (theta, phi, g)]
        rows.append(
            torch.cat(
                [t * statistic_of(p.flatten(), q.flatten(), block.statistic) for t, p, q in zip(*parts, strict=True)]
            )
        )
    branch = block.z(torch.stack(rows))
    return x + (branch if block.norm is None else block.norm(branch))


def with_gradients(run, block, x, d):
    x = x.detach().clone().requires_grad_()
    out = run(x)
    named = dict(block.named_parameters())
    return {"output": out, **dict(zip(["x", *named], torch.autograd.grad(out, [x, *named.values()], d), strict=True))}


CASES = [
    (statistic, groups, z_groups, norm)
    for statistic, groups, z_groups, norm in itertools.product(
        ("sum", "covariance", "correlation"), (1, 4, "channels"), (None, 1, 2), ("batch", "evaluated", None)
    )
    if statistic != "sum" or z_groups is not None
]


@pytest.mark.parametrize(("statistic", "groups", "z_groups", "norm"), CASES)
def test_a_block_is_what_its_definition_says(statistic, groups, z_groups, norm):
    options = {"groups": groups, "z_groups": z_groups, "statistic": statistic, "norm": norm and "batch"}
    block = trained(cgnl.CGNL2d(16, **options).double()).train(norm != "evaluated")
    x, d = random(3, 16, 7, 5), random(3, 16, 7, 5, seed=2)
    expected = with_gradients(partial(reference, block), block, x, d)
    for backend, memory_efficient in (("eager", False), ("eager", True), ("naive", False)):
        block.backend, block.memory_efficient = backend, memory_efficient
        found = with_gradients(block, block, x, d)
        for name, value in expected.items():
            scale = max(value.abs().max().item(), 1e-3)  # behind a norm, some gradients are zero in truth
            assert (found[name] - value).abs().max() < 1e-10 * scale, (backend, memory_efficient, name)


def test_a_correlation_is_that_of_pytorch():
    theta, phi, g = (random(2, 6, 40, seed=seed) for seed in (1, 2, 3))
    y = ops.compact_generalized_non_local(theta, phi, g, groups=3, kernel="dot", statistic="correlation")
    s = (y / theta).unflatten(1, (3, 2))
    for sample, group in itertools.product(range(2), range(3)):
        rows = torch.stack([t[sample, 2 * group : 2 * group + 2].flatten() for t in (phi, g)])
        expected = torch.corrcoef(rows)[0, 1].item()
        assert s[sample, group].std() < 1e-12
        assert s[sample, group].mean().item() == pytest.approx(expected, abs=1e-4)


def test_a_correlation_sees_neither_size_nor_offset_nor_resolution():
    phi, g = (random(2, 6, 8, 8, seed=seed) for seed in (1, 2))

    def run(phi, g):
        ones = torch.ones_like(phi)
        return ops.compact_generalized_non_local(ones, phi, g, groups=6, kernel="dot", statistic="correlation")

    expected = run(phi, g)
    assert (run(1e4 * phi, 1e-6 * g) - expected).abs().max() < 1e-12
    assert (run(phi + 3, g - 5) - expected).abs().max() < 1e-3  # the share of the mean square in the variance
    finer = run(*(t.repeat_interleave(3, 2).repeat_interleave(3, 3) for t in (phi, g)))[..., ::3, ::3]
    assert (finer - expected).abs().max() < 1e-12
    opposite = run(phi, -2 * phi)
    assert opposite.min() >= -1
    assert opposite.max() < -0.999


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["zeros", "one value"])
def test_a_map_without_contrast_gives_no_correlation(kind, dtype):
    block = trained(cgnl.CGNL2d(16, groups="channels", z_groups=1, statistic="correlation", norm=None)).to(dtype)
    x = torch.full((2, 16, 9, 9), 0.0 if kind == "zeros" else 30.0, dtype=dtype, requires_grad=True)
    out = block(x)
    out.float().sum().backward()
    assert (out - x).abs().max() < 0.05
    assert all(p.grad is not None and p.grad.isfinite().all() for p in (x, *block.parameters()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_stay_in_range_at_any_resolution(dtype):
    block = trained(cgnl.CGNL2d(32, groups="channels", z_groups=1, statistic="correlation").double()).eval()
    x = 20 * random(1, 32, 96, 96)
    half = copy.deepcopy(block).to(dtype)(x.to(dtype))
    assert relative(half, block(x)) < tolerances.HALF[str(dtype).removeprefix("torch.")]


def kept_bytes(block, x):
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        block(x).sum()
    weights = {p.untyped_storage().data_ptr() for p in block.parameters()}
    return sum(size for place, size in storages.items() if place not in weights)


@pytest.mark.parametrize("takes_gram", [False, True])
@pytest.mark.parametrize("memory_efficient", [False, True])
@pytest.mark.parametrize("shape", [(2, 64, 14, 14), (1, 32, 3, 3), (4, 128, 28, 28)])
def test_it_keeps_no_more_than_the_published_block(shape, memory_efficient, takes_gram, monkeypatch):
    monkeypatch.setattr(gram, "pays", lambda *args, **options: takes_gram)
    x = torch.randn(shape, requires_grad=True)
    published = cgnl.CGNL2d(shape[1], memory_efficient=memory_efficient)
    options = {"groups": "channels", "z_groups": 1, "statistic": "correlation"}
    block = cgnl.CGNL2d(shape[1], memory_efficient=memory_efficient, **options)
    assert kept_bytes(block, x) <= kept_bytes(published, x)


def test_gradients_of_gradients():
    block = trained(cgnl.CGNL1d(4, groups="channels", z_groups=1, statistic="correlation", norm=None).double())
    assert torch.autograd.gradgradcheck(block, random(2, 4, 5).requires_grad_())


def test_it_is_compiled_exported_copied_and_pickled():
    block = trained(cgnl.CGNL2d(16, groups="channels", z_groups=2, statistic="correlation")).eval()
    x = torch.randn(2, 16, 6, 6)
    expected = block(x)
    assert repr(block).count("z_groups=2, statistic='correlation'") == 1
    for other in (
        copy.deepcopy(block),
        pickle.loads(pickle.dumps(block)),
        copy.deepcopy(block).fuse(),
        torch.export.export(block, (x,)).module(),
        torch.jit.trace(block, x),
        torch.fx.symbolic_trace(block),
    ):
        assert relative(other(x), expected) < 1e-5


def test_a_pickle_of_before_has_the_sum():
    block = cgnl.CGNL2d(16)
    state = block.__getstate__()
    old = cgnl.CGNL2d.__new__(cgnl.CGNL2d)
    old.__setstate__({key: value for key, value in state.items() if key not in ("z_groups", "statistic")})
    x = torch.randn(2, 16, 5, 5)
    assert torch.equal(old(x), block(x))


@pytest.mark.parametrize("memory", [{}, {"window": 3}])
@pytest.mark.parametrize("statistic", ["sum", "covariance", "correlation"])
def test_a_stream_is_the_block_on_the_frames_so_far(statistic, memory):
    options = {"groups": "channels", "z_groups": 1, "statistic": statistic}
    block = trained(cgnl.CGNL3d(8, **options).double()).eval()
    clip = random(2, 8, 5, 3, 4)
    stream = CGNLStream3d(block, **memory)
    for t in range(5):
        first = max(0, t + 1 - memory.get("window", 5))
        expected = reference(block, clip[:, :, first : t + 1])[:, :, -1]
        assert relative(stream(clip[:, :, t]), expected) < 1e-11


@pytest.mark.parametrize("statistic", ["sum", "covariance", "correlation"])
def test_the_terms_of_the_evidence_add_up_to_the_number(statistic):
    network = nn.Sequential(trained(cgnl.CGNL2d(8, groups=2, z_groups=1, statistic=statistic).double()).eval())
    x = random(1, 8, 6, 5)
    block = trace_blocks(network, x).blocks["0"]
    phi, g = network[0].phi(x)[0], network[0].g(x)[0]
    for group in range(2):
        channels = slice(2 * group, 2 * group + 2)
        expected = statistic_of(phi[channels].flatten(), g[channels].flatten(), statistic)
        assert sums(block)[group, 1].item() == pytest.approx(expected.item(), rel=1e-10)
        assert evidence(block, group, 1).sum().item() == pytest.approx(expected.item(), rel=1e-10)
        theta = block.theta[channels]
        assert relative(polynomial(block, group, theta), expected * theta) < 1e-10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistic": "cosine"}, r"^statistic \('cosine'\) must be one of 'sum', 'covariance', 'correlation'$"),
        ({"statistic": "correlation", "kernel": "rbf"}, r"^statistic \('correlation'\) must be 'sum' with the kernel "),
        ({"statistic": "correlation", "scale": "mean"}, r"^scale \('mean'\) must be None with statistic 'correlation'"),
        ({"z_groups": 3}, r"^channels \(16\) must be divisible by z_groups \(3\)"),
        ({"z_groups": 0}, r"^z_groups \(0\) must be an integer of at least 1$"),
        ({"groups": 3, "z_groups": 1}, r"^channels \(8\) must be divisible by groups \(3\)"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        cgnl.CGNL2d(16, **options)


def test_channels_need_not_be_divisible_by_the_groups_of_the_sums():
    block = cgnl.CGNL2d(15, inner_channels=8, groups=8, z_groups=1, statistic="correlation")
    x = torch.randn(2, 15, 4, 4)
    assert torch.equal(block(x), x)


def test_the_kind_has_these_defaults():
    options = options_class("cgnl-correlation")()
    assert (options.groups, options.z_groups, options.statistic, options.kernel) == (
        "channels",
        1,
        "correlation",
        "dot",
    )
    for changed in ({"kernel": "rbf"}, {"scale": "sqrt"}, {"z_groups": 0}, {"statistic": "cosine"}):
        with pytest.raises(ValueError, match="block"):
            options_class("cgnl-correlation")(**changed)
