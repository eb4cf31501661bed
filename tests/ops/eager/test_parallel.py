"""One input split over two processes gives what one process gives, gradients too.

Each process holds some of the frames of the whole input, or none, and its own copy of the weights. It gets the gradient
of the sum of all processes' losses with respect to its frames; those of the weights, summed over processes, are the
whole's.
"""

import math
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import cgnl
import tolerances
from cgnl import ops
from cgnl.blocks.stream import CGNLStream3d
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF, SeriesKernel
from cgnl.ops.eager import gram
from processes import in_two_processes

NUM_FRAMES = (1, 3)  # of each process; the test sets others
TIMEOUT = timedelta(seconds=60)  # where one process waits for the other in vain
KERNELS = {
    "dot": DotProduct(),
    "gaussian-0": EmbeddedGaussian(order=0),
    "gaussian-3": EmbeddedGaussian(order=3),
    "rbf": GaussianRBF(gamma=0.3, order=3),
    "rbf-normalized": GaussianRBF(gamma=0.3, order=3, beta="normalized"),
    "rbf-exact": GaussianRBF(gamma=0.3, order=2, beta="exact"),
    "own": SeriesKernel(lambda t, u: 1 - (t * u) ** 2, [1, 0, -1]),
}


def relative(a, b):
    assert a.shape == b.shape
    return ((a - b).norm() / b.norm()).item() if b.numel() else 0.0


def random(*shape, seed):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def part_of(whole, rank):
    return whole.split(NUM_FRAMES, dim=2)[rank]


def with_gradients(run, maps, weights, dy):
    """The output and the gradients of the maps and of the weights."""
    maps, weights = ([t.detach().clone().requires_grad_() for t in tensors] for tensors in (maps, weights))
    y = run(*maps, *weights)
    gradients = torch.autograd.grad(y, [*maps, *weights], dy, allow_unused=True, materialize_grads=True)
    return y.detach(), gradients[: len(maps)], gradients[len(maps) :]


def assert_parts_of(expected, actual, rank, case, tolerance=tolerances.EAGER_FLOAT64):
    """Both are outputs, gradients of the maps and of the weights: the whole's, and this process's."""
    y, d_maps, d_weights = expected
    own_y, own_d_maps, own_d_weights = actual
    for own in own_d_weights:
        dist.all_reduce(own)
    names = ["output", *(f"gradient of map {i}" for i in range(len(d_maps)))]
    names += [f"gradient of weight {i}" for i in range(len(d_weights))]
    wholes = [part_of(whole, rank) for whole in (y, *d_maps)] + list(d_weights)
    for name, own, whole in zip(names, (own_y, *own_d_maps, *own_d_weights), wholes, strict=True):
        if whole.numel() and whole.abs().max() < tolerances.ZERO_FLOAT64:
            assert own.abs().max() < tolerances.ZERO_FLOAT64, (case, name)
        else:
            assert relative(own, whole) < tolerance, (case, name)


def check_operation(rank):
    whole = [0.7 * random(2, 8, sum(NUM_FRAMES), 3, 3, seed=i) for i in (1, 2, 3)]
    dy = random(*whole[0].shape, seed=4)
    for name, kernel in KERNELS.items():
        for groups, scale in ((1, None), (4, "sqrt"), (2, "mean")):
            run = partial(ops.compact_generalized_non_local, groups=groups, kernel=kernel, scale=scale)
            expected = with_gradients(partial(run, backend="naive"), whole, [], dy)
            own_maps = [part_of(features, rank) for features in whole]
            actual = with_gradients(partial(run, process_group=dist.group.WORLD), own_maps, [], part_of(dy, rank))
            assert_parts_of(expected, actual, rank, ("operation", name, groups, scale))


def weights_of(channels, inner, groups, num_axes):
    ones = (1,) * num_axes
    weights = [0.3 * random(inner, channels, *ones, seed=i) for i in (1, 2, 3)]
    return [*weights, random(channels, inner // groups, *ones, seed=4)]


def check_block_operation(rank):
    for shape in ((2, 16, 4, 3, 3), (2, 16, 4)):
        whole, dy = random(*shape, seed=0), random(*shape, seed=9)
        if len(shape) == 5:
            whole = whole.contiguous(memory_format=torch.channels_last_3d)
        for name, kernel in KERNELS.items():
            for groups, scale in ((1, None), (4, "sqrt"), (2, "mean")):
                weights = weights_of(16, 8, groups, len(shape) - 2)
                run = partial(ops.cgnl_block, groups=groups, kernel=kernel, scale=scale)
                expected = with_gradients(partial(run, backend="naive"), [whole], weights, dy)
                actual = with_gradients(
                    partial(run, process_group=dist.group.WORLD), [part_of(whole, rank)], weights, part_of(dy, rank)
                )
                assert_parts_of(expected, actual, rank, ("block's operation", shape, name, groups, scale))


def check_second_derivatives(rank):
    whole, dy, direction = (0.7 * random(2, 8, sum(NUM_FRAMES), 3, seed=i) for i in (0, 8, 9))
    weights = weights_of(8, 4, 2, 2)

    def first_derivative(x, *weights, kernel, dy, **more):
        x = x.clone()
        y = ops.cgnl_block(x, *weights, groups=2, kernel=kernel, **more)
        return torch.autograd.grad(y, x, dy, create_graph=True)[0]

    for name in ("gaussian-3", "rbf-normalized"):
        run = partial(first_derivative, kernel=KERNELS[name])
        expected = with_gradients(partial(run, dy=dy, backend="naive"), [whole], weights, direction)
        actual = with_gradients(
            partial(run, dy=part_of(dy, rank), process_group=dist.group.WORLD),
            [part_of(whole, rank)],
            weights,
            part_of(direction, rank),
        )
        assert_parts_of(expected, actual, rank, ("second derivatives", name))


def trained_block(**settings):
    """A float64 block with weights and statistics as after training."""
    block = cgnl.CGNL3d(16, **{"groups": 2, **settings}).double().eval()
    with torch.no_grad():
        for i, (name, tensor) in enumerate(block.state_dict().items()):
            if tensor.is_floating_point():
                values = 0.5 * random(*tensor.shape, seed=i)
                tensor.copy_(values.square() + 0.5 if name == "norm.running_var" else values)
    return block


def check_statistics(rank):
    whole, dy = (random(2, 16, sum(NUM_FRAMES), 3, 3, seed=i) for i in (0, 9))
    whole = whole + 0.5
    for statistic, groups, z_groups, norm, memory_efficient, hooked in (
        ("sum", "channels", 1, "batch", False, False),
        ("covariance", 2, None, "batch", False, False),
        ("covariance", "channels", 1, None, True, False),
        ("correlation", 4, 2, "sync_batch", True, False),
        ("correlation", "channels", 1, "batch", False, True),
        ("correlation", "channels", 1, None, False, False),
    ):
        settings = {"statistic": statistic, "groups": groups, "z_groups": z_groups, "norm": norm}
        one = trained_block(**settings, memory_efficient=memory_efficient)
        split = trained_block(**settings, memory_efficient=memory_efficient, process_group=dist.group.WORLD)
        if hooked:
            split.phi.register_forward_hook(lambda *_: None)
        expected = of_module(one, whole, dy)
        actual = of_module(split, part_of(whole, rank), part_of(dy, rank))
        assert_parts_of(expected, actual, rank, ("statistics", statistic, groups, z_groups, norm, hooked))


def check_blocks(rank):
    whole, dy = (random(2, 16, sum(NUM_FRAMES), 3, 3, seed=i) for i in (0, 9))
    for norm, memory_efficient, hooked in (
        ("batch", False, False),
        (None, True, False),
        ("sync_batch", True, False),
        ("batch", True, True),
    ):
        for name, kernel in KERNELS.items():
            settings = {"kernel": kernel, "scale": "mean", "norm": norm, "memory_efficient": memory_efficient}
            one = trained_block(**settings)
            split = trained_block(**settings, process_group=dist.group.WORLD)
            if hooked:
                split.phi.register_forward_hook(lambda *_: None)
            expected = of_module(one, whole, dy)
            actual = of_module(split, part_of(whole, rank), part_of(dy, rank))
            assert_parts_of(expected, actual, rank, ("block", name, norm, memory_efficient, hooked))


def of_module(block, x, dy):
    x = x.detach().clone().requires_grad_()
    y = block(x)
    d_x, *d_weights = torch.autograd.grad(y, [x, *block.parameters()], dy, allow_unused=True, materialize_grads=True)
    return y.detach(), [d_x], d_weights


def check_data_parallel_averages(rank):
    whole, dy = (random(2, 16, sum(NUM_FRAMES), 3, 3, seed=i) for i in (0, 9))
    one = trained_block()
    one(whole).backward(dy)
    split = DistributedDataParallel(trained_block(process_group=dist.group.WORLD))
    split(part_of(whole, rank)).backward(part_of(dy, rank))
    for expected, actual in zip(one.parameters(), split.parameters(), strict=True):
        assert relative(actual.grad * dist.get_world_size(), expected.grad) < tolerances.EAGER_FLOAT64, "averages"


def check_half_types(rank):
    whole = random(2, 16, sum(NUM_FRAMES), 3, 3, seed=0).float()
    one = trained_block().float()
    split = trained_block(process_group=dist.group.WORLD).float()
    expected = part_of(one(whole), rank)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relative(split(part_of(whole, rank)), expected) < tolerances.HALF["bfloat16"]
    y = split.bfloat16()(part_of(whole, rank).bfloat16())
    assert relative(y.float(), expected) < tolerances.HALF["bfloat16"]


def check_nan_stays_in_its_sample(rank):
    whole = random(2, 16, sum(NUM_FRAMES), 3, 3, seed=0)
    whole[0, 0, -1] = math.nan  # in the last process's frames
    with torch.inference_mode():
        y = trained_block(process_group=dist.group.WORLD)(part_of(whole, rank))
    assert y.isnan().flatten(1).any(1).tolist() == ([True, False] if y.numel() else [False, False])


def check_streams(rank):
    """Each process holds some columns of every frame."""
    frames = random(2, 16, 3, 3, sum(NUM_FRAMES), seed=0)
    own = frames.split(NUM_FRAMES, dim=4)[rank]
    for name, kernel in KERNELS.items():
        if kernel.normalizes_features:
            continue  # a stream refuses it
        settings = {"kernel": kernel, "scale": "mean"}
        one = CGNLStream3d(trained_block(**settings), window=2)
        split = CGNLStream3d(trained_block(**settings, process_group=dist.group.WORLD), window=2)
        expected = one(frames).split(NUM_FRAMES, dim=4)[rank]
        assert relative(split(own), expected) < tolerances.EAGER_FLOAT64, ("stream", name)


def check_refuses_statistics_over_a_part(rank):
    block = trained_block(process_group=dist.group.WORLD).train()
    with pytest.raises(ValueError, match="sync_batch"):
        block(part_of(random(2, 16, sum(NUM_FRAMES), 3, 3, seed=0), rank))


def check_every_gradient_is_made(rank):
    """Also in a process that holds nothing: a wrapper for data parallelism waits for it."""
    x, dy = (part_of(random(2, 16, sum(NUM_FRAMES), 3, 3, seed=i), rank) for i in (0, 9))
    for name, kernel in KERNELS.items():
        block = trained_block(kernel=kernel, process_group=dist.group.WORLD)
        block(x).backward(dy)
        assert all(p.grad is not None for p in block.parameters()), name


def check_some_gradients(rank):
    """Where phi and g are fixed the processes exchange less, all alike."""
    whole, dy = (random(2, 16, sum(NUM_FRAMES), 3, 3, seed=i) for i in (0, 9))
    for name, kernel in KERNELS.items():
        gradients = []
        for block, x, d in (
            (trained_block(kernel=kernel), whole, dy),
            (trained_block(kernel=kernel, process_group=dist.group.WORLD), part_of(whole, rank), part_of(dy, rank)),
        ):
            block.requires_grad_(False)
            for convolution in (block.theta, block.z):
                convolution.requires_grad_()
            block(x).backward(d)
            gradients.append([block.theta.weight.grad, block.z.weight.grad])
        for own, expected in zip(gradients[1], gradients[0], strict=True):
            dist.all_reduce(own)
            assert torch.allclose(own, expected, rtol=1e-10, atol=1e-12), name


def check_batches_that_differ_are_refused(rank):
    for sizes in ((2, 0), (0, 2), (2, 3)):
        x = random(sizes[rank], 16, 1, 3, 3, seed=0)
        for run in (
            trained_block(process_group=dist.group.WORLD),
            CGNLStream3d(trained_block(process_group=dist.group.WORLD)),
            partial(ops.compact_generalized_non_local, x, x, groups=2, kernel="rbf", process_group=dist.group.WORLD),
        ):
            with pytest.raises(ValueError, match=f"the batch has {sizes[rank]} samples here but not on every process"):
                run(x)


def check_no_samples(rank):
    x = random(0, 16, NUM_FRAMES[rank], 3, 3, seed=0).requires_grad_()
    for name, kernel in KERNELS.items():
        block = trained_block(kernel=kernel, scale="sqrt", process_group=dist.group.WORLD)
        y = block(x)
        y.sum().backward()
        assert y.shape == x.shape == x.grad.shape, name


def _check(rank: int, init_file: str, num_frames: tuple[int, int]) -> None:
    global NUM_FRAMES
    NUM_FRAMES = num_frames
    torch.set_num_threads(1)
    # the dot product takes the Gram form in one process only
    gram.pays = lambda *sizes, training: rank == 1
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2, timeout=TIMEOUT)
    try:
        check_operation(rank)
        check_block_operation(rank)
        check_second_derivatives(rank)
        check_blocks(rank)
        check_statistics(rank)
        check_data_parallel_averages(rank)
        check_half_types(rank)
        check_nan_stays_in_its_sample(rank)
        check_streams(rank)
        check_refuses_statistics_over_a_part(rank)
        check_every_gradient_is_made(rank)
        check_some_gradients(rank)
        check_batches_that_differ_are_refused(rank)
        check_no_samples(rank)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("num_frames", [(1, 3), (0, 4)], ids=str)
def test_a_split_input_gives_what_one_process_gives(num_frames: tuple[int, int], tmp_path: Path) -> None:
    in_two_processes(_check, str(tmp_path / "rendezvous"), num_frames)
