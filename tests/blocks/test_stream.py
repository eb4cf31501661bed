"""The stream against the block on whole clips (naive form, float64), and what it keeps from call to call."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

import tolerances
from cgnl import ops
from cgnl.blocks import CGNL2d, CGNL3d
from cgnl.blocks.stream import CGNLStream3d
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF, SeriesKernel

KERNELS = {
    "dot": DotProduct(),
    "gaussian-0": EmbeddedGaussian(order=0),
    "gaussian-3": EmbeddedGaussian(order=3),
    "rbf": GaussianRBF(gamma=0.3, order=3),
    "rbf-exact": GaussianRBF(gamma=0.3, order=2, beta="exact"),
    "own": SeriesKernel(lambda t, u: 1 - (t * u) ** 2, [1, 0, -1]),
}
MEMORIES = {"all": {}, "window": {"window": 3}, "decay": {"decay": 0.7}}
NUM_FRAMES = 6


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def random(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def trained_block(kernel="dot", scale=None, norm="batch", seed=0):
    """A float64 block with weights and statistics as after training."""
    block = CGNL3d(8, groups=2, kernel=kernel, scale=scale, norm=norm).double().eval()
    with torch.no_grad():
        for i, (name, tensor) in enumerate(block.state_dict().items()):
            if tensor.is_floating_point():
                values = 0.5 * random(*tensor.shape, seed=100 * seed + i)
                tensor.copy_(values.square() + 0.5 if name == "norm.running_var" else values)
    return block


def naive(block):
    block = copy.deepcopy(block)
    block.backend = "naive"
    return block


def in_chunks(stream, clip, lengths):
    return torch.cat([stream(frames) for frames in clip.split(lengths, dim=2)], dim=2)


@pytest.mark.parametrize("scale", [None, "sqrt", "mean"])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("window", [None, 1, 3, 50])
def test_each_frame_is_the_last_of_the_block_on_the_frames_remembered(window, kernel, scale):
    block = trained_block(kernel, scale)
    clip = random(2, 8, NUM_FRAMES, 2, 3, seed=1)
    starts = [0 if window is None else max(0, end - window) for end in range(1, NUM_FRAMES + 1)]
    expected = torch.stack([naive(block)(clip[:, :, s:e])[:, :, -1] for e, s in enumerate(starts, 1)], dim=2)
    stream = CGNLStream3d(block, window=window)
    for lengths in ([1] * NUM_FRAMES, [NUM_FRAMES], [1, 3, 2]):
        stream.reset()
        assert relative(in_chunks(stream, clip, lengths), expected) < tolerances.EAGER_FLOAT64


def decayed(block, clip, t, decay, form=ops.naive):
    """Frame t of the block where frame s counts decay^(t - s)."""
    frames = clip[:, :, : t + 1]
    weights = torch.tensor([decay ** (t - s) for s in range(t + 1)], dtype=torch.float64).view(-1, 1, 1)
    theta, phi, g = block.theta(frames), block.phi(frames), block.g(frames)
    kernel = block.kernel
    count = weights.sum() * math.prod(theta[0, : theta.shape[1] // 2, 0].shape)
    factor = {None: 1.0, "sqrt": count**-0.5, "mean": 1 / count}[block.scale]
    y = form.compact_generalized_non_local(theta, phi, g * weights, groups=2, kernel=kernel, factor=factor)
    return clip[:, :, t] + block.norm(block.z(y))[:, :, t]


@pytest.mark.parametrize("scale", [None, "sqrt", "mean"])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_decay_is_a_factor_on_each_sum(kernel, scale):
    block = trained_block(kernel, scale)
    clip = random(2, 8, NUM_FRAMES, 2, 3, seed=1)
    expected = torch.stack([decayed(block, clip, t, 0.7) for t in range(NUM_FRAMES)], dim=2)
    stream = CGNLStream3d(block, decay=0.7)
    for lengths in ([1] * NUM_FRAMES, [NUM_FRAMES], [1, 3, 2]):
        stream.reset()
        assert relative(in_chunks(stream, clip, lengths), expected) < tolerances.EAGER_FLOAT64


@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
def test_a_single_frame_comes_back_as_one(memory):
    stream = CGNLStream3d(trained_block(), **memory)
    clip = random(2, 8, NUM_FRAMES, 2, 3, seed=1)
    expected = stream(clip)
    stream.reset()
    outputs = [stream(frame) for frame in clip.unbind(2)]
    assert relative(torch.stack(outputs, dim=2), expected) < tolerances.EAGER_FLOAT64


def test_frames_may_change_their_size():
    block = trained_block(scale="mean")
    small, large = random(2, 8, 1, 1, 2, seed=1), random(2, 8, 1, 3, 2, seed=2)
    stream = CGNLStream3d(block)
    stream(small)
    # the dot product does not know where an element is: four rows of two positions are one clip of four frames
    rows = torch.cat([small, large.unflatten(3, (3, 1)).squeeze(2)], dim=2)
    expected = naive(block)(rows)[:, :, 1:].transpose(2, 3)
    assert relative(stream(large), expected) < tolerances.EAGER_FLOAT64


@pytest.mark.parametrize(
    ("memory", "brightness"), [({}, 1e4), ({"window": 16}, 1e8), ({"decay": 0.999}, 1e4)], ids=MEMORIES
)
def test_ten_thousand_frames_in_float32_do_not_drift_and_keep_no_more_than_one(memory, brightness):
    block = trained_block(scale="mean").float()
    clip = random(1, 8, 10_000, 1, 2, seed=1).abs().float()
    # a frame next to which a float32 sum loses the others, and of which even float64 keeps a rest if it is subtracted
    clip[:, :, 4000] *= brightness
    stream = CGNLStream3d(copy.deepcopy(block), **memory)
    for frames in clip.split(2500, dim=2):
        last = stream(frames)[:, :, -1]
    block, clip = block.double(), clip.double()
    if "decay" in memory:
        expected = decayed(block, clip, 9999, memory["decay"], form=ops.eager)
    else:
        expected = block(clip[:, :, -memory.get("window", 10_000) :])[:, :, -1]
    residual = clip[:, :, -1]
    assert relative(last - residual, expected - residual) < 3e-7
    assert stream.sums.dtype == torch.float64
    assert stream.sums.shape == (memory.get("window", 1), 1, 2, 2)
    assert stream.sums.untyped_storage().nbytes() <= (stream.sums.numel() + 4) * 8


@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
def test_a_nan_stays_in_its_sample_and_leaves_with_the_window(memory):
    stream = CGNLStream3d(trained_block(), **memory)
    clip = random(2, 8, NUM_FRAMES, 2, 3, seed=1)
    expected = stream(clip)
    stream.reset()
    clip[0, 3, 1, 1, 1] = math.nan
    bad = in_chunks(stream, clip, [1, 3, 2]).isnan().flatten(3).any(3).any(1)
    assert bad[0].tolist() == [False, True, True, True, *[memory.get("window") is None] * 2]
    assert not bad[1].any()
    stream.reset()
    assert relative(stream(clip)[1], expected[1]) < tolerances.EAGER_FLOAT64
    stream.reset()
    assert not stream(clip[:, :, :1]).isnan().any()


@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
def test_goes_on_from_saved_sums(memory):
    block = trained_block("embedded_gaussian")
    stream = CGNLStream3d(block, **memory)
    clip = random(2, 8, NUM_FRAMES, 2, 3, seed=1)
    stream(clip[:, :, :4])
    file = io.BytesIO()
    torch.save(stream.sums, file)
    copies = [copy.deepcopy(stream), pickle.loads(pickle.dumps(stream)), CGNLStream3d(block, **memory)]
    file.seek(0)
    copies[-1].sums = torch.load(file)
    expected = stream(clip[:, :, 4:])
    assert all(torch.equal(copied(clip[:, :, 4:]), expected) for copied in copies)


def test_state_dict_is_that_of_the_block():
    block = trained_block()
    stream = CGNLStream3d(trained_block(seed=1))
    stream(random(2, 8, 1, 2, 3))
    assert stream.state_dict().keys() == block.state_dict().keys()
    stream.load_state_dict(block.state_dict())
    stream.reset()
    clip = random(2, 8, 1, 2, 3, seed=1)
    assert relative(stream(clip), block(clip)) < tolerances.EAGER_FLOAT64


@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
def test_sums_follow_the_frames_to_another_device_and_keep_their_type(memory):
    stream = CGNLStream3d(trained_block(), **memory)
    frames = random(2, 8, 2, 2, 3)
    stream(frames)
    assert stream.to("meta", torch.float16)(frames.to("meta", torch.float16)).device.type == "meta"
    assert (stream.sums.device.type, stream.sums.dtype) == ("meta", torch.float64)


@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
def test_runs_with_and_without_gradients_and_in_inference_mode(memory):
    stream = CGNLStream3d(trained_block(), **memory)
    clip = random(2, 8, NUM_FRAMES, 2, 3, seed=1)
    expected = stream(clip)
    stream.reset()
    outputs = []
    for mode, frames in zip(
        (torch.inference_mode, torch.enable_grad, torch.no_grad), clip.split(2, dim=2), strict=True
    ):
        with mode():
            outputs.append(stream(frames.clone().requires_grad_(mode is torch.enable_grad)))
    assert not outputs[1].requires_grad
    assert relative(torch.cat(outputs, dim=2), expected) < tolerances.EAGER_FLOAT64


@pytest.mark.parametrize("kernel", ["dot", "rbf"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_sum_in_more(dtype, kernel):
    block = trained_block(kernel, scale="mean").float()
    clip = 4 * random(1, 8, 3, 40, 40, seed=1).abs().float() + 4
    stream = CGNLStream3d(block)
    expected = stream(clip)
    assert stream.sums[..., :-1].abs().max() > torch.finfo(torch.float16).max
    outputs = [CGNLStream3d(copy.deepcopy(block).to(dtype))(clip.to(dtype))]
    with torch.autocast("cpu", dtype=dtype):
        outputs.append(CGNLStream3d(block)(clip))
    assert (outputs[0].dtype, outputs[1].dtype) == (dtype, torch.float32)
    for y in outputs:
        assert relative(y, expected) < tolerances.HALF[str(dtype).removeprefix("torch.")]


def test_keeps_the_memory_format():
    stream = CGNLStream3d(trained_block())
    clip = random(2, 8, NUM_FRAMES, 2, 3, seed=1)
    expected = stream(clip)
    stream.reset()
    last = clip.contiguous(memory_format=torch.channels_last_3d)
    y = stream(last)
    assert y.stride() == last.stride()
    assert relative(y, expected) < tolerances.EAGER_FLOAT64


def test_calls_replaced_and_hooked_convolutions():
    block = trained_block()
    clip = random(2, 8, NUM_FRAMES, 2, 3, seed=1)
    expected = CGNLStream3d(block)(clip)
    block.phi = nn.Sequential(block.phi)
    called = []
    block.z.register_forward_hook(lambda *_: called.append(1))
    assert relative(CGNLStream3d(block)(clip), expected) < tolerances.EAGER_FLOAT64
    assert called


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("norm", [None, "sync_batch", "batch"])
def test_norms_with_frozen_statistics(norm, kernel, bias):
    block = trained_block(kernel, norm=norm)
    if bias:
        block.z.bias = nn.Parameter(random(8, seed=2))
    clip = random(2, 8, 1, 2, 3, seed=1)
    assert relative(CGNLStream3d(block)(clip), naive(block)(clip)) < tolerances.EAGER_FLOAT64


@pytest.mark.parametrize(
    ("make_block", "memory", "message"),
    [
        (trained_block, {"window": 0}, r"window \(0\) must be an integer of at least 1"),
        (trained_block, {"decay": 1.0}, r"decay \(1.0\) must be above 0 and below 1"),
        (trained_block, {"decay": 0}, r"decay \(0\) must be above 0 and below 1"),
        (trained_block, {"window": 2, "decay": 0.5}, r"window \(2\) and decay \(0.5\) must not both be given"),
        (lambda: CGNL2d(8, groups=2).eval(), {}, "block must be a CGNL3d, not CGNL2d"),
        (lambda: CGNL3d(8, groups=2), {}, "block must be in evaluation mode"),
        (
            lambda: trained_block(norm="group"),
            {},
            r"block's norm \(GroupNorm.*\) must be BatchNorm with running statistics",
        ),
        (
            lambda: trained_block(norm=lambda channels: nn.BatchNorm3d(channels, track_running_stats=False)),
            {},
            "must be BatchNorm with running statistics",
        ),
        (
            lambda: trained_block(GaussianRBF(beta="normalized")),
            {},
            "must not normalize its features: each frame would change the norm",
        ),
    ],
)
def test_refuses(make_block, memory, message):
    with pytest.raises(ValueError, match=message):
        CGNLStream3d(make_block(), **memory)


def test_refuses_training():
    stream = CGNLStream3d(trained_block())
    frames = random(2, 8, 1, 2, 3)
    with pytest.raises(ValueError, match="must be in evaluation mode"):
        stream.train()(frames)
    stream.eval().norm.train()
    with pytest.raises(ValueError, match="must be in evaluation mode"):
        stream(frames)


def test_refuses_frames_that_do_not_fit():
    stream = CGNLStream3d(trained_block())
    expected = stream(random(2, 8, 1, 2, 3))
    for shape, message in (
        ((2, 8, 3), r"x \(2, 8, 3\) must be \[B, C, T, H, W\]"),
        ((2, 4, 1, 2, 3), "has 4 channels"),
        ((2, 8, 0, 2, 3), r"x \(2, 8, 0, 2, 3\) must hold at least one frame"),
        ((3, 8, 1, 2, 3), r"needs sums of shape \[F, 3, 2, 2\].*call reset\(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            stream(random(*shape))
    stream.reset()
    assert stream(random(3, 8, 1, 2, 3)).shape == (3, *expected.shape[1:])
