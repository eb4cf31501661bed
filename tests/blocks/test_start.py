"""A new block learns with every scale of its sums, and what older versions wrote is read as before."""

from functools import partial
from pathlib import Path

import pytest
import torch

import cgnl


@pytest.fixture
def final_loss(monkeypatch):
    """The loss after the training of studies/start.py."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "studies")
    from start import final_loss

    return final_loss


@pytest.mark.parametrize("kernel", ["dot", "embedded_gaussian"])
def test_every_scale_learns_as_well_as_none(kernel, final_loss):
    options = {"shape": (8, 64, 49), "seed": 0, "steps": 300}
    losses = {
        scale: final_loss(partial(cgnl.CGNL1d, kernel=kernel, scale=scale), **options)
        for scale in (None, "sqrt", "mean")
    }
    assert max(losses.values()) < 1.3 * losses[None]
    if kernel == "dot":  # with all weights alike it hardly learns
        before = final_loss(partial(cgnl.CGNL1d, scale="mean", g_std=0.01), **options)
        assert before > 2 * losses[None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "shape", "kernel"),
    [
        *((cgnl.CGNL2d, (8, 64, 14, 14), kernel) for kernel in ("dot", "embedded_gaussian", "rbf")),
        (cgnl.CGNL2d, (8, 16, 7, 7), "dot"),
        (cgnl.CGNL1d, (8, 64, 49), "rbf"),
        (cgnl.CGNL3d, (8, 64, 2, 5, 5), "dot"),
        (cgnl.GeneralizedNonLocal2d, (8, 64, 4, 4), "embedded_gaussian"),
    ],
)
def test_every_scale_learns_as_well_as_none_in_every_block(make, shape, kernel, final_loss):
    losses = {
        scale: final_loss(partial(make, kernel=kernel, scale=scale), shape, seed=0, steps=300)
        for scale in (None, "sqrt", "mean")
    }
    assert max(losses.values()) < 1.3 * losses[None]


@pytest.mark.parametrize("make", [cgnl.CGNL1d, cgnl.CGNL2d, cgnl.CGNL3d, cgnl.GeneralizedNonLocal2d])
@pytest.mark.parametrize("norm", ["batch", "group", None])
def test_only_the_first_weights_of_g_depend_on_the_scale(make, norm):
    x = torch.randn(2, 64, *[5] * make.num_axes)
    for scale, std in ((None, 0.01), ("sqrt", 0.2), ("mean", 2.0)):
        block = make(64, norm=norm, scale=scale)
        assert torch.equal(block(x), x)
        assert block.g.weight.std().item() == pytest.approx(std, rel=0.1)
        assert block.phi.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert norm is None or block.norm.eps == 1e-5
        chosen = make(64, norm=norm, scale=scale, g_std=0.5)
        assert chosen.g.weight.std().item() == pytest.approx(0.5, rel=0.1)


def test_a_start_without_numbers_is_refused():
    for g_std in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=rf"g_std \({g_std}\) must be a finite number above 0"):
            cgnl.CGNL2d(16, g_std=g_std)


def test_weights_of_an_earlier_version_are_read_as_before():
    """The branch of a trained block, from its weights alone: eps is that of all versions, M that of the input."""
    torch.manual_seed(0)
    state = {
        **{f"{name}.weight": 0.3 * torch.randn(8, 16, 1, 1) for name in ("theta", "phi", "g")},
        **{"z.weight": torch.randn(16, 4, 1, 1), "norm.weight": torch.rand(16), "norm.bias": torch.randn(16)},
        **{"norm.running_mean": 1e-6 * torch.randn(16), "norm.running_var": 1e-6 * torch.rand(16)},
        "norm.num_batches_tracked": torch.tensor(7),
    }
    block = cgnl.CGNL2d(16, groups=2, scale="mean")
    block.load_state_dict(state)
    x = torch.randn(3, 16, 5, 5)
    theta, phi, g = (
        torch.einsum("bchw,dc->bdhw", x, state[f"{name}.weight"][:, :, 0, 0]).unflatten(1, (2, 4))
        for name in ("theta", "phi", "g")
    )
    y = (phi * g).mean((2, 3, 4), keepdim=True) * theta
    branch = torch.einsum("bgchw,gdc->bgdhw", y, state["z.weight"][:, :, 0, 0].unflatten(0, (2, 8))).flatten(1, 2)
    weight, bias, mean, var = (
        state[f"norm.{name}"][:, None, None] for name in ("weight", "bias", "running_mean", "running_var")
    )
    expected = x + (branch - mean) / (var + 1e-5).sqrt() * weight + bias
    torch.testing.assert_close(block.eval()(x), expected, rtol=1e-4, atol=1e-4)
