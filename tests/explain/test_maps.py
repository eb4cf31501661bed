"""Maps against rows and columns of the explicit matrices of `cgnl.ops.naive`, in float64."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import cgnl
from cgnl import ops
from cgnl.explain.maps import (
    affinity,
    affinity_group,
    evidence,
    normalised,
    polynomial,
    reference_channel,
    strongest_channels,
    sums,
)
from cgnl.explain.trace import BlockTrace, trace_blocks
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF, KernelFunction, SeriesKernel
from cgnl.ops.eager.series import power_sums, scaled_coefficients

SQUARE = SeriesKernel(lambda t, u: (1 + t * u) ** 2, [1, 2, 1])
KERNELS = [
    DotProduct(),
    *(EmbeddedGaussian(order) for order in range(4)),
    *(GaussianRBF(0.3, order, beta) for beta in ("constant", "normalized", "exact") for order in (0, 3)),
    SQUARE,
]
CHANNELS, GROUPS, SHAPE = 8, 2, (2, 3)


def name_of(kernel):
    """The same in every process; the kernel's repr holds the address of its function."""
    return "square" if kernel is SQUARE else repr(kernel)


INNER = CHANNELS // 2


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def vivid(block: nn.Module) -> nn.Module:
    """Weights large enough for every power to matter."""
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    return block.double().eval()


def traced(block: nn.Module, x: Tensor) -> BlockTrace:
    return trace_blocks(block, x).blocks[""]


def matrix_of_elements(operation, block: nn.Module, x: Tensor, kernel: KernelFunction) -> Tensor:
    """What the operation multiplies g with, [C', *S, C', *S]: its result for each g that is 1 at one element."""
    theta, phi = block.theta(x).detach(), block.phi(x).detach()
    count = theta[0].numel()
    units = torch.eye(count, dtype=x.dtype).view(count, *theta.shape[1:])
    columns = operation(
        theta.expand_as(units), phi.expand_as(units), units, groups=block.groups, kernel=kernel, backend="naive"
    )
    return columns.movedim(0, -1).reshape(*theta.shape[1:], *theta.shape[1:])


def constants(kernel: KernelFunction, of_exact: bool) -> KernelFunction:
    """A kernel function whose compact operation is the p = 0 term alone."""
    if isinstance(kernel, GaussianRBF):
        beta = "exact" if of_exact else kernel.beta
        return replace(kernel, order=0, beta=beta)
    return EmbeddedGaussian(order=0)


@pytest.mark.parametrize("kernel", KERNELS, ids=name_of)
@pytest.mark.parametrize("exact", [False, True], ids=["cgnl", "gnl"])
def test_affinity_of_elements(kernel, exact):
    block_type = cgnl.GeneralizedNonLocal2d if exact else cgnl.CGNL2d
    operation = ops.generalized_non_local if exact else ops.compact_generalized_non_local
    block = vivid(block_type(CHANNELS, groups=GROUPS, kernel=kernel, scale="mean"))
    x = torch.randn(1, CHANNELS, *SHAPE, dtype=torch.float64)
    whole = matrix_of_elements(operation, block, x, kernel)
    varying = whole
    if not isinstance(kernel, DotProduct):
        normalizes = exact and kernel.normalizes_features
        features = vivid(cgnl.CGNL2d(CHANNELS, groups=GROUPS))
        features.load_state_dict(block.state_dict())
        zeroth = matrix_of_elements(
            ops.compact_generalized_non_local, features, x, constants(kernel, exact and not normalizes)
        )
        if normalizes:  # the exact constant of normalised features: their own envelopes, not the mean ones
            ours, theirs = (traced(block, x).theta, traced(block, x).phi)
            envelope = ours.square()[..., None, None, None] + theirs.square()
            zeroth = (zeroth != 0) * torch.exp(-kernel.gamma * envelope)
        varying = whole - zeroth
    trace = traced(block, x)
    for channel in range(INNER):
        group = affinity_group(trace, channel)
        for position in [(0, 0), (1, 2)]:
            for constant, expected in ((True, whole), (False, varying)):
                row = affinity(trace, position, channel, constant=constant)
                column = affinity(trace, position, channel, view="column", constant=constant)
                row_expected = expected[(channel, *position)]
                column_expected = expected[..., channel, position[0], position[1]]
                torch.testing.assert_close(row, row_expected[group.start : group.stop], rtol=1e-12, atol=1e-13)
                torch.testing.assert_close(column, column_expected[group.start : group.stop], rtol=1e-12, atol=1e-13)
        outside = [other for other in range(INNER) if other not in group]
        assert not whole[channel, 0, 0][outside].any()


@pytest.mark.parametrize(
    "pairwise", ["embedded_gaussian", "gaussian", "dot_product", "dot_product_sum", "concatenation"]
)
@pytest.mark.parametrize("subsample", [False, True])
@pytest.mark.parametrize("scale", [False, True])
def test_affinity_of_positions(pairwise, subsample, scale, monkeypatch):
    monkeypatch.setattr("cgnl.explain.maps._ENTRIES_AT_ONCE", 7)
    shape = (4, 5)
    block = vivid(cgnl.NonLocal2d(CHANNELS, pairwise=pairwise, subsample=subsample, scale=scale, bias=True))
    x = torch.randn(1, CHANNELS, *shape, dtype=torch.float64)
    theta, phi = (x, x) if pairwise == "gaussian" else (block.theta(x).detach(), block.phi(x).detach())
    if subsample:
        phi = nn.functional.max_pool2d(phi, 2)
    count = phi[0, 0].numel()
    units = torch.eye(count, dtype=x.dtype).view(count, 1, *phi.shape[2:])
    concat_weight = block.concat.weight.detach() if pairwise == "concatenation" else None
    matrix = ops.non_local(
        theta.expand(count, -1, -1, -1),
        phi.expand(count, -1, -1, -1),
        units,
        pairwise=pairwise,
        scale=scale,
        concat_weight=concat_weight,
        backend="naive",
    )[:, 0].permute(1, 2, 0)
    trace = traced(block, x)
    for position in [(0, 0), (2, 1), (3, 4)]:
        torch.testing.assert_close(affinity(trace, position).flatten(), matrix[position], rtol=1e-12, atol=1e-13)
        # of five columns the last is pooled nowhere: it counts to the last cell
        cell = (position[0] // 2, min(position[1] // 2, 1)) if subsample else position
        column = matrix[..., cell[0] * phi.shape[3] + cell[1]]
        torch.testing.assert_close(affinity(trace, position, view="column"), column, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kernel", KERNELS, ids=name_of)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("scale", [None, "sqrt", "mean"])
def test_evidence_adds_up_to_what_the_operation_applied(kernel, groups, scale):
    block = vivid(cgnl.CGNL3d(CHANNELS, groups=groups, kernel=kernel, scale=scale))
    x = torch.randn(1, CHANNELS, 2, *SHAPE, dtype=torch.float64)
    trace = traced(block, x)
    theta, phi, g = (convolution(x).detach() for convolution in (block.theta, block.phi, block.g))
    y = ops.compact_generalized_non_local(theta, phi, g, groups=groups, kernel=kernel, scale=scale, backend="naive")[0]
    size = INNER // groups
    for group in range(groups):
        part = slice(group * size, (group + 1) * size)
        torch.testing.assert_close(polynomial(trace, group, trace.theta[part]), y[part], rtol=1e-11, atol=1e-12)
        terms = [evidence(trace, group, power) for power in range(len(kernel.coefficients))]
        assert all(term.shape == (size, 2, *SHAPE) for term in terms)
        torch.testing.assert_close(sums(trace)[group], torch.stack([term.sum() for term in terms]))
    if kernel.is_plain_series:
        z = power_sums(phi.flatten(2), g.flatten(2), groups, scaled_coefficients(kernel, trace.factor))
        for power, expected in enumerate(z):
            expected = torch.zeros(1, INNER, 1) if expected is None else expected
            torch.testing.assert_close(sums(trace)[:, power], expected[0, ::size, 0].double(), rtol=1e-12, atol=1e-13)


def test_dot_product_gives_one_map_a_group_and_sign_of_theta():
    block = vivid(cgnl.CGNL2d(32, groups=4))
    trace = traced(block, torch.randn(1, 32, 5, 6, dtype=torch.float64))
    references = [(n, m, c) for n in range(5) for m in range(6) for c in range(16)]
    for group in range(4):
        maps = {True: [], False: []}
        for n, m, c in references[group * 7 :: 11]:
            if c in range(group * 4, group * 4 + 4):
                maps[bool(trace.theta[c, n, m] > 0)].append(normalised(affinity(trace, (n, m), c)))
        assert min(map(len, maps.values())) > 2
        for same in maps.values():
            torch.testing.assert_close(torch.stack(same), same[0].expand(len(same), -1, -1, -1))
        torch.testing.assert_close(maps[True][0], -maps[False][0])
        torch.testing.assert_close(maps[True][0], normalised(trace.phi[group * 4 : group * 4 + 4]))


def test_softmax_rows_differ_between_positions():
    trace = traced(vivid(cgnl.NonLocal2d(32)), torch.randn(1, 32, 5, 6, dtype=torch.float64))
    one, other = (normalised(affinity(trace, position)) for position in ((0, 0), (4, 5)))
    assert (one - other).abs().max() > 0.1


@pytest.mark.parametrize(
    ("kernel", "product"),
    [(GaussianRBF(), 1000.0), (GaussianRBF(), 10.0), (EmbeddedGaussian(), 0.1), (EmbeddedGaussian(order=1), 100.0)],
)
def test_how_far_a_series_is_from_one_map(kernel, product):
    """The bound of the docs: an error of at most e^s - 1 - s over s, s the largest |2 gamma t u| or |t u|."""
    theta = torch.full((1, 1), math.sqrt(product), dtype=torch.float64)
    phi = torch.linspace(-1, 1, 101, dtype=torch.float64)[None] * math.sqrt(product)
    trace = BlockTrace("", "cgnl", None, kernel, 1, 1.0, theta.expand(1, 101), phi, phi, None)
    s = product * (2 * kernel.gamma if isinstance(kernel, GaussianRBF) else 1)
    map_ = affinity(trace, (0,), 0)
    linear = kernel.coefficients[1] * product * torch.linspace(-1, 1, 101, dtype=torch.float64)
    difference = (map_[0] - linear).abs().max() / linear.abs().max()
    if kernel == EmbeddedGaussian(order=1):
        assert difference < 1e-14
    else:
        assert 0 < difference <= (math.exp(s) - 1 - s) / s


def test_reference_channel_is_the_strongest_of_g():
    block = traced(vivid(cgnl.CGNL2d(16)), torch.randn(1, 16, 3, 3, dtype=torch.float64))
    block.g[:, 1, 2] = torch.tensor([1, -3, 2, 3, 0, 0, -3, 1], dtype=torch.float64)
    assert reference_channel(block, (1, 2)) == 1
    torch.testing.assert_close(affinity(block, (1, 2)), affinity(block, (1, 2), 1))


def test_reference_channel_of_sub_sampled_features():
    block = traced(vivid(cgnl.NonLocal3d(8, subsample=True)), torch.randn(1, 8, 3, 5, 4, dtype=torch.float64))
    block.g[:, 2, 1, 0] = torch.tensor([0, 0, 9, 0], dtype=torch.float64)
    assert reference_channel(block, (2, 4, 1)) == 2


def test_strongest_channels():
    maps = torch.zeros(7, 3, 3)
    maps[[1, 2, 4, 5], [0, 1, 2, 0], [0, 2, 1, 1]] = torch.tensor([2.0, -5.0, 2.0, 3.0])
    assert strongest_channels(maps) == [2, 5, 1, 4, 0]
    assert len(strongest_channels(maps, 20)) == 7
    with pytest.raises(ValueError, match=r"count \(0\) must be at least 1"):
        strongest_channels(maps, 0)


def test_normalised_keeps_zeros():
    assert torch.equal(normalised(torch.zeros(2, 2)), torch.zeros(2, 2))


def test_a_changed_coefficient_is_seen():
    block = vivid(cgnl.CGNL2d(CHANNELS, groups=GROUPS, kernel=EmbeddedGaussian(2)))
    trace = traced(block, torch.randn(1, CHANNELS, *SHAPE, dtype=torch.float64))
    wrong = replace(trace, kernel=SeriesKernel(lambda t, u: torch.exp(t * u), [1, 1, 0.501]))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(affinity(trace, (0, 0)), affinity(wrong, (0, 0)), rtol=1e-12, atol=1e-13)


@pytest.fixture
def image_block() -> BlockTrace:
    return traced(cgnl.CGNL2d(16, groups=2), torch.randn(1, 16, 3, 4))


@pytest.mark.parametrize("position", [(0,), (3, 0), (0, 4), (-1, 0), (0, 0, 0)])
def test_positions_outside_the_map(image_block, position):
    with pytest.raises(ValueError, match=r"position \(.*\) must be an index into the block's axes \(3, 4\)"):
        affinity(image_block, position)


def test_arguments_outside_their_range(image_block):
    with pytest.raises(ValueError, match=r"channel \(8\) must be from 0 to 7"):
        affinity(image_block, (0, 0), 8)
    with pytest.raises(ValueError, match=r"view \('rows'\) must be"):
        affinity(image_block, (0, 0), view="rows")
    with pytest.raises(ValueError, match=r"group \(2\) must be from 0 to 1"):
        evidence(image_block, 2, 1)
    with pytest.raises(ValueError, match=r"power \(2\) must be from 0 to 1"):
        evidence(image_block, 0, 2)


def test_blocks_without_what_is_asked_for():
    residual = traced(cgnl.ResidualBlock2d(16), torch.randn(1, 16, 3, 4))
    with pytest.raises(ValueError, match="residual block"):
        affinity(residual, (0, 0))
    exact = traced(cgnl.GeneralizedNonLocal2d(16), torch.randn(1, 16, 3, 4))
    for call in (sums, lambda block: evidence(block, 0, 1), lambda block: polynomial(block, 0, block.theta)):
        with pytest.raises(ValueError, match="must be a compact generalized non-local block"):
            call(exact)
