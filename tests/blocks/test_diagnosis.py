"""The scores of networks without their blocks and with other sums, against forms that are written out in float64."""

import copy
import itertools
import json

import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F

import cgnl
import tolerances
from cgnl.blocks.diagnosis import ALL, diagnose
from cgnl.blocks.sums import replaced_sums, sums_of
from cgnl.insertion import inserted_blocks

UNCHANGED = 1e-10  # a block with its own sums against itself, float64
WITHOUT_SUMS = ("mean_s", "shuffled_s", "s_cv", "s_positive")


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def random(*shape, seed=1):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.3


def trained(network, seed=0):
    """A network in eval mode and float64 with weights and statistics as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.double().state_dict().items():
            if tensor.is_floating_point():
                values = 0.4 * torch.randn(tensor.shape, dtype=torch.float64, generator=generator)
                tensor.copy_(values.square() + 0.5 if name.endswith("running_var") else values)
    return network.eval()


def written_out_sums(block, x):
    """The sums of each sample and group, [B, G, P + 1], one after the other."""
    order = max(p for p, a2 in enumerate(block.kernel.coefficients) if a2)
    z = torch.zeros(len(x), block.groups, order + 1, dtype=torch.float64)
    phi, g = block.phi(x), block.g(x)
    for sample, group in itertools.product(range(len(x)), range(block.groups)):
        p, q = (t[sample].chunk(block.groups)[group].flatten() for t in (phi, g))
        factor = {None: 1, "sqrt": len(p) ** -0.5, "mean": 1 / len(p)}[block.scale]
        if block.statistic != "sum":
            sizes = [((v - v.mean()).square().sum() + 1e-5 * v.square().sum()).sqrt() for v in (p, q)]
            s = ((p - p.mean()) * (q - q.mean())).sum()
            z[sample, group, 1] = factor * (s if block.statistic == "covariance" else s / sizes[0] / sizes[1])
            continue
        if block.kernel.normalizes_features:
            p = p / p.norm()
        if getattr(block.kernel, "beta", "constant") != "constant":
            q = q * torch.exp(-block.kernel.gamma * p**2)
        for power, a2 in enumerate(block.kernel.coefficients[: order + 1]):
            z[sample, group, power] = factor * a2 * (p**power * q).sum()
    return z


def written_out(block, x, z):
    """The block with these sums: the polynomial in theta, conv_z, norm and residual."""
    groups = []
    for theta, own in zip(block.theta(x).chunk(block.groups, dim=1), z.unbind(1), strict=True):
        own = own.reshape(*own.shape, *(1,) * (x.dim() - 1))
        if block.kernel.normalizes_features:
            theta = theta / theta.flatten(1).norm(dim=1).reshape(-1, *(1,) * (x.dim() - 1))
        y = sum(own[:, power] * theta**power for power in range(z.shape[2]))
        if getattr(block.kernel, "beta", "constant") != "constant":
            y = y * torch.exp(-block.kernel.gamma * theta**2)
        groups.append(y)
    branch = block.z(torch.cat(groups, dim=1))
    return x + (branch if block.norm is None else block.norm(branch))


KERNELS = {
    "dot": {},
    "dot, mean": {"scale": "mean"},
    "dot, sqrt": {"scale": "sqrt"},
    "embedded Gaussian": {"kernel": "embedded_gaussian"},
    "RBF, constant": {"kernel": cgnl.GaussianRBF(gamma=0.3)},
    "RBF, exact": {"kernel": cgnl.GaussianRBF(gamma=0.3, beta="exact")},
    "RBF, normalized": {"kernel": cgnl.GaussianRBF(gamma=0.3, order=2, beta="normalized")},
    "odd series": {"kernel": cgnl.SeriesKernel(lambda t, u: t * u + (t * u) ** 3, [0, 1, 0, 1, 0])},
    "constant": {"kernel": cgnl.EmbeddedGaussian(order=0)},
    "covariance": {"statistic": "covariance"},
    "covariance, mean": {"statistic": "covariance", "scale": "mean"},
    "correlation": {"statistic": "correlation"},
}
GROUPS = [{"groups": 1}, {"groups": 4}, {"groups": "channels", "z_groups": 2}, {"groups": 4, "z_groups": 1}]
SHAPES = {1: (7,), 2: (3, 5), 3: (2, 3, 4)}
BLOCKS = {1: cgnl.CGNL1d, 2: cgnl.CGNL2d, 3: cgnl.CGNL3d}


@torch.no_grad()
@pytest.mark.parametrize("groups", GROUPS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_sums_are_read_and_replaced_as_written_out(kernel, groups):
    for axes, norm in itertools.product(SHAPES, ("batch", "group", None)):
        block = trained(BLOCKS[axes](8, inner_channels=8, norm=norm, **KERNELS[kernel], **groups))
        x = random(3, 8, *SHAPES[axes])
        with replaced_sums(block, lambda z: z):
            assert relative(block(x), written_out(block, x, written_out_sums(block, x))) < UNCHANGED
            unchanged = block(x)
        assert relative(unchanged, block(x)) < UNCHANGED
        assert relative(sums_of(block, x), written_out_sums(block, x)) < UNCHANGED
        given = random(*sums_of(block, x).shape, seed=2) * torch.tensor(
            [1.0 if a2 else 0.0 for a2 in block.kernel.coefficients[: sums_of(block, x).shape[2]]]
        )
        with replaced_sums(block, lambda z, given=given: given):
            replaced = block(x)
        assert relative(replaced, written_out(block, x, given)) < UNCHANGED
        # GroupNorm leaves little of a number that scales a whole group
        assert relative(replaced, unchanged) > (1e-5 if norm == "group" else 1e-3)


@torch.no_grad()
def test_sums_are_replaced_in_fused_hooked_and_naive_blocks_and_half_types():
    x = random(2, 8, 4, 5)
    block = trained(cgnl.CGNL2d(8, groups=2, backend="naive"))
    expected = block(x)
    hooked = copy.deepcopy(block)
    seen = []
    hooked.z.register_forward_hook(lambda *_: seen.append("z"))
    for own in (block, copy.deepcopy(block).fuse(), hooked):
        with replaced_sums(own, lambda z: z):
            assert relative(own(x), expected) < UNCHANGED
    assert seen == ["z"]
    for dtype in (torch.float16, torch.bfloat16):
        half = copy.deepcopy(block).to(dtype)
        with replaced_sums(half, lambda z: z):
            out = half(x.to(dtype))
        assert sums_of(half, x.to(dtype)).dtype == torch.float32
        assert out.dtype == dtype
        assert relative(out, expected) < tolerances.HALF[str(dtype).removeprefix("torch.")]
    block.float()
    with torch.autocast("cpu", dtype=torch.bfloat16), replaced_sums(block, lambda z: z):
        assert relative(block(x.float()), expected) < tolerances.HALF["bfloat16"]


class Host(nn.Module):
    """A network with three blocks, one of which is called twice, and one that never runs."""

    def __init__(self):
        super().__init__()
        self.first = cgnl.CGNL2d(8, groups=2, kernel="embedded_gaussian", norm="group")
        self.shared = cgnl.CGNL2d(8, groups="channels", z_groups=1, statistic="correlation")
        self.other = cgnl.NonLocal2d(8)
        self.idle = cgnl.CGNL2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x.mul_(0.5)  # changes its input
        x = self.shared(self.first(x))
        x = self.other(self.shared(x=x.flip(2)).relu_())
        return self.head(x.mean((2, 3)))


def by_hand(host, x, sums, removed):
    """The host with these sums: of the first block, and of both calls of the shared one."""
    x = 0.5 * x
    if "first" not in removed:
        x = written_out(host.first, x, sums[0] if sums[0] is not None else written_out_sums(host.first, x))
    for call in (1, 2):
        if call == 2:
            x = x.flip(2)
        if "shared" not in removed:
            x = written_out(host.shared, x, sums[call] if sums[call] is not None else written_out_sums(host.shared, x))
    x = x.relu()
    if "other" not in removed:
        x = host.other(x)
    return host.head(x.mean((2, 3)))


def of_target(logits, targets):
    return logits.gather(1, targets[:, None])[:, 0]


def in_batches(x, y, sizes):
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


@torch.no_grad()
def test_scores_are_those_of_networks_written_out():
    host, x, y = trained(Host()), random(5, 8, 4, 3), torch.arange(5) % 3
    x = x * torch.arange(1, 6)[:, None, None, None] / 4
    batches = in_batches(x, y, [2, 1, 2])
    before = copy.deepcopy(batches)
    found = diagnose(host, batches, score=of_target, seed=3)
    assert list(found) == [ALL, "first", "shared", "other"]
    assert all(
        torch.equal(a, b) for one, other in zip(batches, before, strict=True) for a, b in zip(one, other, strict=True)
    )

    first = written_out_sums(host.first, 0.5 * x)
    middle = written_out(host.first, 0.5 * x, first)
    second = written_out_sums(host.shared, middle)
    middle = written_out(host.shared, middle, second).flip(2)
    own = [first, second, written_out_sums(host.shared, middle)]

    def score(sums=(None, None, None), removed=()):
        return of_target(by_hand(host, x, sums, removed), y).mean().item()

    def in_blocks(change):
        changed = [change(z) for z in own]
        return {
            ALL: score(changed),
            "first": score((changed[0], None, None)),
            "shared": score((None, *changed[1:])),
            "other": None,
        }

    mean = in_blocks(lambda z: z.mean(0, keepdim=True).expand_as(z))
    # the permutation is found from the one score of the first block alone
    candidates = {
        score((first[list(order)], None, None)): order
        for order in itertools.permutations(range(5))
        if all(i != j for i, j in enumerate(order))
    }
    closest = min(candidates, key=lambda value: abs(value - found["first"]["shuffled_s"]))
    shuffled = in_blocks(lambda z: z[list(candidates[closest])])
    for name, removed in ((ALL, ("first", "shared", "other")), *((path, (path,)) for path in list(found)[1:])):
        assert found[name]["as_is"] == pytest.approx(score(), rel=1e-9)
        assert found[name]["removed"] == pytest.approx(score(removed=removed), rel=1e-9)
        for key, values in (("mean_s", mean), ("shuffled_s", shuffled)):
            expected = values[name]
            assert found[name][key] == (None if expected is None else pytest.approx(expected, rel=1e-9)), (name, key)
    assert (
        len({found[name][key] for name in ("first", "shared", ALL) for key in ("removed", "mean_s", "shuffled_s")}) == 9
    )


@torch.no_grad()
def test_numbers_of_sums_and_branches():
    network = nn.Sequential(
        cgnl.CGNL2d(8, groups=2, kernel="rbf"), cgnl.ResidualBlock2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    network, x = trained(network), random(6, 8, 4, 3)
    found = diagnose(network, in_batches(x, torch.arange(6), [4, 2]))
    s = written_out_sums(network[0], x)[..., 1]
    cv = sum((column.var(correction=0).sqrt() / column.mean().abs()).item() for column in s.T) / 2
    ratios, inputs = [], x
    for block in network[:2]:
        outputs = block(inputs)
        each = [((b - a).norm() / a.norm()).item() for a, b in zip(inputs, outputs, strict=True)]
        ratios.append(sum(each) / 6)
        inputs = outputs
    assert found["0"]["s_cv"] == pytest.approx(cv, rel=1e-9)
    assert found["0"]["s_positive"] == pytest.approx(sum(value > 0 for value in s.flatten().tolist()) / 12)
    assert 0 < found["0"]["s_positive"] < 1
    assert [found[path]["branch_over_x"] for path in "01"] == pytest.approx(ratios, rel=1e-9)
    assert found[ALL]["branch_over_x"] == pytest.approx(sum(ratios) / 2, rel=1e-9)
    assert found[ALL]["s_cv"] == found["0"]["s_cv"]
    assert [found["1"][key] for key in WITHOUT_SUMS] == [None] * 4
    assert json.loads(json.dumps(found)) == found


@torch.no_grad()
def test_top1_of_a_network_that_needs_its_sums():
    """By hand: x is (u, v, 1) with u = (1, -1) and v = u for class 0, -u for class 1, so s = 2 or -2 is the class."""
    block = cgnl.CGNL1d(3, inner_channels=1, norm=None).eval()
    for convolution, weight in (
        (block.theta, [0, 0, 1]),
        (block.phi, [1, 0, 0]),
        (block.g, [0, 1, 0]),
        (block.z, [1, -1, 0]),
    ):
        convolution.weight.copy_(torch.tensor(weight).reshape(convolution.weight.shape))
    network = nn.Sequential(block, nn.AdaptiveAvgPool1d(1), nn.Flatten()).eval()
    y, u = torch.tensor([0, 0, 1, 0, 0]), torch.tensor([1.0, -1.0])
    x = torch.stack([torch.stack([u, -u if label else u, torch.ones(2)]) for label in y])
    found = diagnose(network, in_batches(x, y, [2, 3]))
    # with the mean of s, 1.2, all samples are of class 0; shuffled, class 1 gets an s of class 0 and gives its own away
    expected = {"as_is": 100, "removed": 0, "mean_s": 80, "shuffled_s": 60, "s_cv": 1.6 / 1.2, "s_positive": 0.8}
    assert {key: found["0"][key] for key in expected} == pytest.approx(expected)
    assert found["0"] == found[ALL]
    # the sums of opposite samples have the mean 0
    found = diagnose(network, in_batches(x[1:3], y[1:3], [1, 1]))["0"]
    assert (found["as_is"], found["mean_s"], found["shuffled_s"], found["s_cv"]) == (100, 0, 0, None)
    # one sample has no other
    found = diagnose(network, [(x[:1], y[:1])])["0"]
    assert (found["mean_s"], found["shuffled_s"], found["s_cv"]) == (100, 100, 0)


@torch.no_grad()
def test_shuffling_follows_the_seed_and_moves_every_sample():
    block = cgnl.CGNL1d(2, inner_channels=1, norm=None).eval()
    for convolution, weight in ((block.theta, [0, 1]), (block.phi, [0, 1]), (block.g, [1, 0]), (block.z, [1, 0])):
        convolution.weight.copy_(torch.tensor(weight).reshape(convolution.weight.shape))
    network, count = nn.Sequential(block).eval(), 5
    # x is (k, 1) of one position, so s = k and the first channel becomes k + s
    x = torch.stack([torch.arange(1.0, count + 1), torch.ones(count)], dim=1)[:, :, None]
    orders = set()
    for seed in range(20):
        given = []

        def score(out, targets, given=given):
            given.extend((out[:, 0, 0] - targets).tolist())
            return out[:, 0, 0]

        for _ in range(2):
            diagnose(network, in_batches(x, x[:, 0, 0], [2, 3]), score=score, seed=seed)
        once, again = given[: len(given) // 2], given[len(given) // 2 :]
        assert once == again
        # as it is and removed, batch by batch, then mean and shuffled
        order = [*once[12:14], *once[17:20]]
        assert sorted(order) == [1, 2, 3, 4, 5]
        assert all(s != k for k, s in enumerate(order, start=1))
        orders.add(tuple(order))
    assert len(orders) > 5


class Tokens(nn.Module):
    """A host of tokens [B, N, C]."""

    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.stages(x).mean(1))


class Doubling(nn.Module):
    """A block of one's own."""

    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return 2 * x


@torch.no_grad()
def test_inserted_blocks_and_blocks_of_ones_own():
    host, x, y = Tokens(), random(5, 6, 4), torch.arange(5) % 3
    makers = {"stages.0": lambda c: cgnl.CGNL1d(c, groups=2), "stages": Doubling}
    cgnl.insert_blocks(host, makers, example_input=torch.randn(2, 6, 4), layout="channels_last")
    trained(host)
    batches = in_batches(x, y, [2, 3])
    (path,) = set(diagnose(host, batches)) - {ALL}
    assert host.get_submodule(path) is inserted_blocks(host)["stages.0"]
    found = diagnose(host, batches, blocks=inserted_blocks(host), score=of_target)
    assert set(found) == {ALL, "stages.0", "stages"}
    assert found["stages"]["branch_over_x"] == pytest.approx(1)
    plain = cgnl.remove_blocks(copy.deepcopy(host))
    assert found[ALL]["removed"] == pytest.approx(of_target(plain(x), y).mean().item(), rel=1e-9)
    assert found[ALL]["mean_s"] == found["stages.0"]["mean_s"] != found[ALL]["as_is"]


@torch.no_grad()
def test_frames_in_the_batch_are_maps_of_their_samples():
    block = trained(cgnl.CGNL2d(4, groups=2, norm=None))

    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, clips):
            return self.block(clips.flatten(0, 1)).unflatten(0, clips.shape[:2]).mean((1, 3, 4))

    clips = random(4, 3, 4, 2, 3)
    found = diagnose(Frames().eval(), in_batches(clips, torch.zeros(4).long(), [1, 3]), score=of_target)["block"]
    z = written_out_sums(block, clips.flatten(0, 1)).unflatten(0, (4, 3)).mean(0).repeat(4, 1, 1)
    expected = written_out(block, clips.flatten(0, 1), z).unflatten(0, (4, 3)).mean((1, 3, 4))[:, 0].mean()
    assert found["mean_s"] == pytest.approx(expected.item(), rel=1e-9)


class Skip(nn.Module):
    """Changes its block's output in place and uses its input again."""

    def __init__(self):
        super().__init__()
        self.block = cgnl.CGNL1d(2)

    def forward(self, x):
        return self.block(x).mul_(3).sum(2) + x.sum(2)


@torch.no_grad()
def test_blocks_that_are_the_identity_change_nothing():
    network, x, y = Skip().eval(), torch.rand(3, 2, 4) + 1, torch.tensor([0, 1, 0])
    x[1] = 0
    found = diagnose(network, [(x, y)], blocks={"one": network.block, "other": network.block}, score=of_target)
    assert list(found) == [ALL, "one"]
    as_is = pytest.approx(found["one"]["as_is"])
    assert [found["one"][key] for key in ("removed", "mean_s", "shuffled_s")] == [as_is] * 3
    assert found["one"]["branch_over_x"] == 0


def attributes(network):
    return [(name, sorted(vars(m)), len(m._forward_hooks), "forward" in vars(m)) for name, m in network.named_modules()]


def test_networks_are_left_as_they_were_also_after_errors():
    host, batches = trained(Host()), [(random(3, 8, 4, 3), torch.arange(3))]
    own = host.first.forward
    host.first.forward = lambda x: own(x)  # somebody else's
    before, state = attributes(host), copy.deepcopy(host.state_dict())
    runs = []

    def broken(logits, targets):
        runs.append(logits.requires_grad)
        if len(runs) == stop:
            raise RuntimeError("broken")
        return of_target(logits, targets)

    for stop in (0, 1, 2, 3, 7, 9):
        runs.clear()
        if stop:
            with pytest.raises(RuntimeError, match="broken"):
                diagnose(host, batches, score=broken)
        else:
            diagnose(host, batches, score=broken)
        assert attributes(host) == before
        assert all(torch.equal(state[name], tensor) for name, tensor in host.state_dict().items())
        assert not any(runs)
    assert len(runs) == 9


class Uneven(nn.Module):
    """Runs its block in some batches more often, or on another number of maps."""

    def __init__(self, runs):
        super().__init__()
        self.block, self.runs = cgnl.CGNL1d(2), runs

    def forward(self, x):
        return self.runs(self.block, x).mean(2)


class OwnWay(cgnl.CGNL1d):
    def forward(self, x):
        return x + 1


def of_one_block(block):
    return nn.Sequential(block, nn.AdaptiveAvgPool1d(1), nn.Flatten()).eval()


def test_refusals():
    x, y = torch.randn(5, 2, 3), torch.tensor([0, 1, 0, 1, 1])
    batches, network = in_batches(x, y, [3, 2]), of_one_block(cgnl.CGNL1d(2))

    def refused(match, network, batches=batches, **options):
        with pytest.raises(ValueError, match=match):
            diagnose(network, batches, **options)

    refused("in evaluation mode, but it is in training: call", copy.deepcopy(network).train())
    partly = copy.deepcopy(network)
    partly[1].train()
    refused("in evaluation mode, but 1 is in training: call", partly)
    refused("must have a block that runs", nn.Sequential(nn.Flatten()).eval())
    refused("must have a block that runs", network, blocks={"elsewhere": cgnl.CGNL1d(2)})
    refused("batches must hold samples, and the same", network, [])
    refused("batches must hold samples, and the same", network, iter(batches))
    refused("batches must hold samples, and the same", network, Changing(batches, batches[::-1]))
    refused("batches must hold samples, and the same", network, Changing(batches, [*batches, batches[0]]))
    refused("batches must hold samples, and the same", network, Changing(batches, batches[:1]))
    refused(r"output must be logits \[B, K\]", network[0])
    refused(r"score must be \[B\], a number for each of 3 samples, not \[\]", network, score=F.cross_entropy)
    refused("'block' must see all samples equally often, not 1 and 2", Uneven(twice_for_two).eval())
    refused("'block' must see all samples equally often, not 2 maps of 3", Uneven(lambda b, x: b(x[:2])).eval())
    refused("'0' .OwnWay. must leave its sums", of_one_block(OwnWay(2)))
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        split = of_one_block(cgnl.CGNL1d(2, process_group=distributed.group.WORLD))
        refused("must see whole samples, but its process_group splits them", split)
    finally:
        distributed.destroy_process_group()


def twice_for_two(block, x):
    return block(block(x)) if len(x) == 2 else block(x)


class Changing:
    """Batches that differ each time they are read."""

    def __init__(self, *readings):
        self.readings = list(readings)

    def __iter__(self):
        return iter(self.readings.pop(0))
