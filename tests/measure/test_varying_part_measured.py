import pytest
import torch

from cgnl.kernel_functions import GaussianRBF
from cgnl.measure import varying_part


def test_varying_is_what_is_left_of_the_mean_over_positions():
    values = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    torch.testing.assert_close(varying_part.varying(values), torch.tensor([[[[-2.0, -1.0], [0.0, 3.0]]]]))


def test_rounding_the_result_is_nearly_all_that_is_lost():
    rows = varying_part.measure("cpu", seed=0, smallest=True)
    assert [row["kernel"] for row in rows if row["backend"] == "eager"] == [repr(k) for k in varying_part.KERNELS]
    for row in rows:
        assert row["error"] < 3 * row["rounding"] + 2e-6
        assert row["rounding"] == pytest.approx(6e-8 / row["share_of_result"], rel=3)
    share = {row["kernel"]: row["share"] for row in rows}
    assert share[repr(GaussianRBF())] < 0.01 < share[repr(GaussianRBF(gamma=0.1))]
