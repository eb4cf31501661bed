"""Each kind of block: its options reach its class, in each number of axes."""

import pytest
import torch
from torch import nn

import cgnl
from cgnl.blocks.kinds import KINDS, block_maker, features, kind_of, relates_positions
from cgnl.settings.blocks import OPTIONS


def test_each_kind_has_options_and_classes_with_public_names():
    assert {"none", *KINDS} == set(OPTIONS)
    for name, kind in KINDS.items():
        public = [getattr(cgnl, f"{OPTIONS[name].public_name}{axes}d") for axes in (1, 2, 3)]
        assert [*kind.classes] == public
        assert all(type_.__name__ in cgnl.__all__ for type_ in public)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("num_axes", [1, 2, 3])
def test_a_block_of_each_kind_starts_as_the_identity(name, num_axes):
    block = block_maker(name, {"inner_channels": 8}, num_axes=num_axes)(32)
    assert kind_of(block) == {"cgnlx": "cgnl", "cgnl-correlation": "cgnl"}.get(name, name)
    x = torch.randn(2, 32, *(5,) * num_axes)
    assert torch.equal(block(x), x)
    found = features(block, x)
    assert (found.phi is not None) == relates_positions(block)


@pytest.mark.parametrize(
    ("options", "kernel"),
    [
        ({}, cgnl.DotProduct()),
        ({"kernel": "embedded_gaussian", "order": 5}, cgnl.EmbeddedGaussian(order=5)),
        ({"kernel": "rbf", "gamma": 0.5, "beta": "exact"}, cgnl.GaussianRBF(gamma=0.5, beta="exact")),
        ({"kernel": cgnl.GaussianRBF(gamma=0.5)}, cgnl.GaussianRBF(gamma=0.5)),
    ],
)
def test_kernel_functions_of_options(options, kernel):
    assert block_maker("cgnl", options)(16).kernel == kernel
    assert block_maker("gnl", options)(16).kernel == kernel


def test_own_coefficients_are_a_power_series():
    coefficients = (0.5, 0.0, 2.0)
    compact, exact = (
        block_maker(name, {"kernel": "series", "coefficients": coefficients})(16) for name in ("cgnl", "gnl")
    )
    assert tuple(compact.kernel.coefficients) == coefficients
    t, u = torch.tensor([0.5, -2.0]), torch.tensor([3.0, 1.0])
    torch.testing.assert_close(exact.kernel.exact(t, u), 0.5 + 2 * (t * u) ** 2)
    for block in (compact, exact):
        nn.init.ones_(block.norm.weight)
        for convolution in (block.theta, block.phi, block.g):
            nn.init.normal_(convolution.weight, std=0.3)
    exact.load_state_dict(compact.state_dict())
    x = torch.randn(2, 16, 5, 4)
    torch.testing.assert_close(compact(x), exact(x), rtol=1e-4, atol=1e-4)


def test_a_class_of_ones_own():
    with pytest.raises(ValueError, match=r"torch.nn.Dropout is code from another package"):
        block_maker("torch.nn.Dropout", {})
    assert block_maker("torch.nn.Identity", {}, trust=("torch",)) is nn.Identity
    with pytest.raises(ValueError, match=r"groups is not an option of block torch\.nn\.Identity"):
        block_maker("torch.nn.Identity", {"groups": 2}, trust=("torch",))
