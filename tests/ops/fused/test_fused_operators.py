"""The operators as torch.library and torch.compile see them."""

import pytest
import torch
from fused_cases import DEVICE, FORMS, Case, gradients_of, inputs_of, random
from torch.library import opcheck

from cgnl.kernel_functions import GaussianRBF
from cgnl.ops.fused import branches, polynomials, sums

A2 = (1.0, 0.0, 0.5, 0.1)
POWERS = 0b1101
GAMMA = 0.1


def tensor(*shape, seed, wants_gradient=True):
    return random(*shape, seed=seed).to(DEVICE, torch.float32).requires_grad_(wants_gradient)


def map_(seed, wants_gradient=True):
    x = tensor(2, 12, 5, 3, seed=seed, wants_gradient=False).contiguous(memory_format=torch.channels_last)
    return x.requires_grad_(wants_gradient)


def weights(wants_gradient=True):
    return [tensor(8, 12, 1, 1, seed=seed, wants_gradient=wants_gradient) for seed in (1, 2)]


def z(wants_gradient=True):
    return tensor(12, 4, 1, 1, seed=3, wants_gradient=wants_gradient)


def coefficients(wants_gradient=True):
    return tensor(2, 2, 4, seed=4, wants_gradient=wants_gradient)


def vectors(count, wants_gradient=True):
    return [tensor(12, seed=5 + i, wants_gradient=wants_gradient).abs() for i in range(count)]


OPERATORS = {
    "power_sums": lambda: (sums.power_sums, (map_(0), *weights(), 2, A2, GAMMA)),
    "power_sums_backward": lambda: (
        sums.power_sums_backward,
        (coefficients(False), map_(0, False), *weights(False), 2, A2, GAMMA, True, False),
    ),
    "feature_sums": lambda: (sums.feature_sums, (map_(0), map_(1), 2, A2, GAMMA)),
    "feature_sums_backward": lambda: (
        sums.feature_sums_backward,
        (coefficients(False), map_(0, False), map_(1, False), 2, A2, GAMMA),
    ),
    "polynomial": lambda: (polynomials.polynomial, (map_(0), coefficients(), POWERS, GAMMA, torch.float16)),
    "polynomial_backward": lambda: (
        polynomials.polynomial_backward,
        (map_(1, False), map_(0, False), coefficients(False), POWERS, GAMMA),
    ),
    "branch": lambda: (
        branches.branch,
        (map_(0), weights()[0], z(), coefficients(), *vectors(2), POWERS, GAMMA, torch.float32),
    ),
    "branch_batch_norm": lambda: (
        branches.branch_batch_norm,
        (map_(0), weights()[0], z(), coefficients(), *vectors(2), POWERS, GAMMA, 1e-3),
    ),
    "branch_backward": lambda: (
        branches.branch_backward,
        (
            *(map_(1, False), map_(0, False), weights(False)[0], z(False), coefficients(False), *vectors(3, False)),
            *(POWERS, GAMMA, True, True, False, True, True),
        ),
    ),
}


@pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS.keys())
def test_opcheck(make):
    operator, arguments = make()
    opcheck(operator, arguments)


@pytest.mark.parametrize("form", FORMS)
def test_compiles_as_one_graph(form):
    case = Case((2, 16, 5, 3), 8, 2, "last")
    inputs = inputs_of(form, case)

    def run(*tensors):
        return FORMS[form][0](tensors, case.groups, GaussianRBF(gamma=0.3, beta="exact"), 0.1)

    y, expected = torch.compile(run, fullgraph=True, backend="aot_eager")(*inputs), run(*inputs)
    assert torch.equal(y, expected)
    assert all(map(torch.equal, gradients_of(y, inputs), gradients_of(expected, inputs)))
