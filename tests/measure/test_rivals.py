import pytest
import torch
from torch import nn

import cgnl
import tolerances
from cgnl.measure.memory import bytes_kept
from cgnl.measure.rivals import BareConvolutions, NonLocal, PublishedCGNL

SHAPES = [(2, 16, 7), (3, 16, 5, 4), (2, 16, 3, 2, 5)]
CGNL = {1: cgnl.CGNL1d, 2: cgnl.CGNL2d, 3: cgnl.CGNL3d}
NON_LOCAL = {1: cgnl.NonLocal1d, 2: cgnl.NonLocal2d, 3: cgnl.NonLocal3d}


def input_of(shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def with_weights_of_a_trained_block(block):
    generator = torch.Generator().manual_seed(1)
    block = block.double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return block


def assert_same_with_every_gradient(module, expected, x, tolerance):
    """The same output, and the same gradients by the parameters' names."""
    outputs = [m(x) for m in (module, expected)]
    dy = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    gradients = []
    for m, output in zip((module, expected), outputs, strict=True):
        names, parameters = zip(*m.named_parameters(), strict=True)
        gradients.append(dict(zip(("x", *names), torch.autograd.grad(output, [x, *parameters], dy), strict=True)))
    assert (outputs[0] - outputs[1]).norm() < tolerance * outputs[1].norm()
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert (gradient - gradients[1][name]).norm() < tolerance * gradients[1][name].norm(), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("order", [None, 1, 3])
def test_published_cgnl_equals_our_block_by_explicit_matrices(shape, order):
    gamma = 0.2
    kernel = "dot" if order is None else cgnl.GaussianRBF(gamma=gamma, order=order)
    ours = with_weights_of_a_trained_block(CGNL[len(shape) - 2](16, groups=4, kernel=kernel, backend="naive"))
    published = PublishedCGNL(16, len(shape) - 2, groups=4, order=order, gamma=gamma).double()
    published.load_state_dict(ours.state_dict())
    assert_same_with_every_gradient(published, ours, input_of(shape), tolerances.EAGER_FLOAT64_BATCH_NORM)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", ["attention", "map", "dot_product"])
def test_non_local_equals_ours_by_explicit_matrices(shape, form):
    pairwise = "dot_product" if form == "dot_product" else "embedded_gaussian"
    ours = with_weights_of_a_trained_block(NON_LOCAL[len(shape) - 2](16, pairwise=pairwise, backend="naive"))
    rival = NonLocal(16, len(shape) - 2, form=form).double()
    rival.load_state_dict(ours.state_dict())
    assert_same_with_every_gradient(rival, ours, input_of(shape), tolerances.EAGER_FLOAT64_BATCH_NORM)


def test_attention_is_fused_and_keeps_no_map():
    x = torch.randn(1, 16, 24, 24, requires_grad=True)
    kept = {form: bytes_kept(lambda form=form: NonLocal(16, form=form)(x)) for form in ("attention", "map")}
    the_map = 4 * (24 * 24) ** 2
    assert kept["attention"] < the_map < kept["map"]
    assert NonLocal(16, form="attention").attention_in_use(x) == "FLASH_ATTENTION"


def test_bare_convolutions_have_the_weights_of_a_block():
    ours = {name: p.shape for name, p in cgnl.CGNL3d(16, groups=4).named_parameters() if "norm" not in name}
    bare = BareConvolutions(16, 3, groups=4)
    assert sorted(p.shape for p in bare.parameters()) == sorted(ours.values())
    z, phi, g = bare(torch.randn(2, 16, 2, 3, 4))
    assert z.shape == (2, 16, 2, 3, 4)
    assert phi.shape == g.shape == (2, 8, 2, 3, 4)
