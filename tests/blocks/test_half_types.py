"""A block is finite in a half type wherever theta, phi, g and the result are representable in it."""

import copy

import pytest
import torch

import cgnl
import tolerances
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF

KERNELS = {
    "dot": DotProduct(),
    "embedded_gaussian": EmbeddedGaussian(),
    "rbf": GaussianRBF(gamma=0.01),
    "rbf_normalized": GaussianRBF(gamma=0.5, beta="normalized"),
    "rbf_exact": GaussianRBF(gamma=1e-3, beta="exact"),
}
MAKES = {
    **{f"CGNL-{name}": (cgnl.CGNL2d, {"groups": 2, "kernel": kernel}) for name, kernel in KERNELS.items()},
    **{
        f"GNL-{name}": (cgnl.GeneralizedNonLocal2d, {"groups": 2, "kernel": kernel}) for name, kernel in KERNELS.items()
    },
    **{
        f"NL-{pairwise}": (cgnl.NonLocal2d, {"pairwise": pairwise})
        for pairwise in ("embedded_gaussian", "gaussian", "dot_product", "dot_product_sum", "concatenation")
    },
    "residual": (cgnl.ResidualBlock2d, {"groups": 2}),
}
HALF_TYPES = ["float16", "bfloat16"]


def large(name, norm, **options):
    """A block whose sums over a group pass float16's range, and a map for it."""
    make, kind = MAKES[name]
    block = make(16, norm=norm, **kind, **options)
    generator = torch.Generator().manual_seed(0)
    exponential = "gaussian" in name and name[0] != "N"
    with torch.no_grad():
        for key, parameter in block.named_parameters():
            # exp(theta · phi) of an exact block has to stay within float32
            size = 0.03 if exponential and key in ("theta.weight", "phi.weight") else 0.5
            parameter.copy_(size * (1 + 0.2 * torch.randn(parameter.shape, generator=generator)))
    x = 8 + torch.randn(2, 16, 10, 10, generator=generator)
    return block, x


def finite(tensor):
    return bool(torch.isfinite(tensor).all())


@pytest.mark.parametrize("inside_autocast", [True, False], ids=["autocast", "half"])
@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("name", MAKES)
def test_finite_with_every_gradient_where_sums_overflow(name, norm, dtype, inside_autocast):
    half_type = getattr(torch, dtype)
    block, x = large(name, norm)
    with torch.no_grad():
        features = {part: getattr(block, part)(x) for part in ("theta", "phi", "g") if hasattr(block, part)}
        assert all(finite(feature.to(half_type)) for feature in features.values())
        if len(features) == 3:
            sums = (features["phi"] * features["g"]).unflatten(1, (block.groups, -1)).sum((2, 3, 4))
            assert sums.min() > torch.finfo(torch.float16).max
    if not inside_autocast:
        block, x = block.to(half_type), x.to(half_type)
    x.requires_grad_()
    with torch.autocast("cpu", dtype=half_type, enabled=inside_autocast):
        y = block(x)
    assert y.dtype == x.dtype
    assert finite(y)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(dy.to(y.dtype))
    for key, parameter in [("x", x), *block.named_parameters()]:
        assert finite(parameter.grad), key


@pytest.mark.parametrize("name", MAKES)
def test_running_statistics_of_a_float16_block_hold_in_a_float32_norm(name):
    block, x = large(name, "batch")
    with torch.no_grad():
        block.z.weight.mul_(1e3)
    reference = copy.deepcopy(block)
    block.half()
    block.norm.float()
    for _ in range(3):
        reference(x)
        assert finite(block(x.half()))
    assert reference.norm.running_var.max() > torch.finfo(torch.float16).max
    torch.testing.assert_close(block.norm.running_var, reference.norm.running_var, rtol=0.05, atol=0)
    with torch.no_grad():
        expected, found = reference.eval()(x), block.eval()(x.half()).float()
    assert (found - expected).norm() / expected.norm() < 5 * tolerances.HALF["float16"]
