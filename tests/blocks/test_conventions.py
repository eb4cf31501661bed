"""Arguments as torch.nn's modules have them, and defaults that fit any number of channels."""

import pytest
import timm
import torch
from torch import nn

import cgnl

BLOCKS = {
    **{
        f"{name}{axes}d": getattr(cgnl, f"{name}{axes}d")
        for name in ("CGNL", "GeneralizedNonLocal", "NonLocal")
        for axes in (1, 2, 3)
    },
    "ResidualBlock1d": cgnl.ResidualBlock1d,
    "ResidualBlock2d": cgnl.ResidualBlock2d,
    "ResidualBlock3d": cgnl.ResidualBlock3d,
}
NORMS = {"batch": "batch", "sync_batch": "sync_batch", "group": "group", "none": None, "callable": nn.BatchNorm2d}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", BLOCKS)
def test_device_and_dtype_reach_every_parameter_and_buffer(name, norm):
    options = {"pairwise": "concatenation", "bias": True} if name.startswith("NonLocal") else {}
    meta = BLOCKS[name](16, norm=NORMS[norm], device="meta", dtype=torch.float64, **options)
    plain = BLOCKS[name](16, norm=NORMS[norm], **options)
    assert meta.state_dict().keys() == plain.state_dict().keys()
    for tensor in [*meta.parameters(), *meta.buffers()]:
        assert tensor.device.type == "meta"
        assert tensor.dtype in (torch.float64, torch.int64)
    double = BLOCKS[name](16, norm=NORMS[norm], dtype=torch.float64, **options)
    if norm != "callable":  # that one is of images
        x = torch.randn(2, 16, *[3] * double.num_axes, dtype=torch.float64)
        assert torch.equal(double.eval()(x), x)


@pytest.mark.parametrize(
    ("channels", "inner_channels", "groups"),
    [(64, None, 8), (24, None, 6), (30, None, 5), (48, None, 8), (2, None, 1), (1, None, 1), (14, None, 7),
     (22, None, 1), (64, 12, 4), (40, 40, 8), (64, 9, 1)],
)  # fmt: skip
@pytest.mark.parametrize("make", [cgnl.CGNL2d, cgnl.GeneralizedNonLocal2d, cgnl.ResidualBlock2d])
def test_groups_fit_by_themselves(make, channels, inner_channels, groups):
    block = make(channels, inner_channels=inner_channels)
    assert block.groups == groups
    assert f"groups={groups}" in repr(block)
    x = torch.randn(2, channels, 3, 3)
    assert torch.equal(block(x), x)
    twin = make(channels, inner_channels=inner_channels, groups=groups)
    assert {key: value.shape for key, value in twin.state_dict().items()} == {
        key: value.shape for key, value in block.state_dict().items()
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 30, "groups": 8}, r"^channels \(30\) must be divisible by groups \(8\); .*: 1, 3, 5, 15$"),
        (
            {"channels": 32, "inner_channels": 12, "groups": 8},
            r"^inner_channels \(12\) must be divisible by groups \(8\); .*: 1, 2, 4$",
        ),
        (
            {"channels": 32, "groups": "all"},
            r"^groups \('all'\) must be an integer of at least 1 or 'auto' or 'channels'$",
        ),
        ({"channels": 32, "groups": 0}, r"^groups \(0\) must be an integer of at least 1 or 'auto' or 'channels'$"),
    ],
)
@pytest.mark.parametrize("make", [cgnl.CGNL1d, cgnl.GeneralizedNonLocal3d, cgnl.ResidualBlock2d])
def test_the_error_of_a_wrong_number_of_groups_names_those_that_fit(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    "pairwise", ["embedded_gaussian", "gaussian", "dot_product", "dot_product_sum", "concatenation"]
)
@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 6), (6, 1), (3, 1, 1), (1, 1, 6)], ids=str)
def test_subsampling_leaves_an_axis_of_one_position_as_it_is(shape, pairwise):
    make = (cgnl.NonLocal1d, cgnl.NonLocal2d, cgnl.NonLocal3d)[len(shape) - 1]
    block = make(16, pairwise=pairwise, subsample=True, norm=None).eval()
    nn.init.normal_(block.z.weight)
    x = torch.randn(2, 16, *shape)
    # where there is one position, repeated, pooling finds what is there
    spatial = range(3, 5) if len(shape) == 3 else range(2, 2 + len(shape))
    doubled = x
    for axis in spatial:
        if x.shape[axis] == 1:
            doubled = doubled.repeat_interleave(2, axis)
    expected = block(doubled)[tuple(slice(None, size) for size in x.shape)]
    torch.testing.assert_close(block(x), expected)
    traced = torch.fx.symbolic_trace(block)
    torch.testing.assert_close(traced(x), expected)


@pytest.mark.parametrize("scale", [None, "sqrt", "mean"])
def test_no_positions_with_a_scale(scale):
    theta = torch.zeros(2, 8, 0, 3)
    for operation in (cgnl.ops.compact_generalized_non_local, cgnl.ops.generalized_non_local):
        assert operation(theta, theta, theta, groups=2, kernel="dot", scale=scale).shape == theta.shape
    for make in (cgnl.CGNL2d, cgnl.GeneralizedNonLocal2d):
        x = torch.zeros(2, 16, 0, 3)
        assert make(16, scale=scale).eval()(x).shape == x.shape


@pytest.mark.parametrize("make", [cgnl.CGNL2d, cgnl.NonLocal2d, cgnl.ResidualBlock2d])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_as_attention_layer_of_a_timm_network(make, dtype):
    torch.manual_seed(0)
    # narrow: convolutions of bfloat16 are slow on many CPUs
    network = timm.create_model(
        "resnet18", num_classes=3, block_args={"attn_layer": make}, channels=(16, 32, 48, 64), dtype=dtype
    )
    blocks = [module for module in network.modules() if isinstance(module, make)]
    assert len(blocks) == 8
    x, labels = torch.randn(3, 3, 64, 64, dtype=dtype), torch.arange(3)
    assert all(torch.equal(block.norm.weight, torch.zeros_like(block.norm.weight)) for block in blocks)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    losses = []
    # timm starts the norm before the block at zero: the map has to move, then the block's norm, then its convolutions
    for _ in range(4):
        loss = nn.functional.cross_entropy(network(x).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        gradients = [parameter.grad for block in blocks for parameter in block.parameters()]
        assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cgnl.NonLocal2d(16, scale="mean"), r"scale \('mean'\) must be one of True, False"),
        (lambda: cgnl.NonLocal2d(16, bias="x"), r"bias \('x'\) must be one of True, False"),
        (
            lambda: cgnl.CGNL2d(16, norm=nn.BatchNorm2d(16)),
            "norm must be a function of the channel count .* BatchNorm2d",
        ),
        (lambda: cgnl.CGNL2d(16, g_std="a"), r"g_std \('a'\) must be a finite number above 0"),
        (lambda: cgnl.GaussianRBF(gamma="a"), r"gamma \('a'\) must be a finite number above 0"),
        (lambda: cgnl.GaussianRBF(order=200), r"order \(200\) must be at most 170"),
        (lambda: cgnl.SeriesKernel(torch.mul, 3), r"coefficients \(3\) must be a sequence of numbers"),
        (lambda: cgnl.SeriesKernel(torch.mul, ["a"]), r"coefficients \(\['a'\]\) must be a sequence of numbers"),
    ],
)
def test_arguments_of_a_wrong_kind(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_function_may_make_no_norm():
    assert cgnl.CGNL2d(16, norm=lambda channels: None).norm is None
