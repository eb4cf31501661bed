import math

import pytest
import torch

from cgnl.kernel_functions import DotProduct
from cgnl.measure import accuracy
from cgnl.ops.eager import gram
from cgnl.ops.fused.series import WIDEST_GROUP


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_unit_is_the_rounding_of_the_largest_element(dtype):
    expected = torch.tensor([-8.0, 1.0, 0.0], dtype=torch.float64)
    eps = torch.finfo(dtype).eps
    assert accuracy.error_in_units(expected.to(dtype), expected, dtype) == 0
    assert accuracy.error_in_units(expected + 8 * 3 * eps, expected, dtype) == pytest.approx(3)
    assert accuracy.error_in_units(expected - torch.tensor([8 * eps, 0, 0]), expected, dtype) == pytest.approx(1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_fails(bad):
    expected = {"output": torch.ones(3).double(), "d_x": torch.ones(2).double()}
    results = {"output": torch.tensor([1.0, bad, 1.0]), "d_x": torch.ones(2)}
    row = accuracy.compared(results, expected, torch.float32)
    assert row == {"errors": {"d_x": 0.0}, "not_finite": ["output: 1 of 3 elements are not finite"]}
    with pytest.raises(accuracy.NotFiniteError):
        accuracy.error_in_units(results["output"], expected["output"], torch.float32)


def test_a_wrong_gradient_shows():
    case = accuracy.SMALLEST_CASES["through features"]
    inputs = accuracy.inputs_of(case, torch.float32, "cpu", 0)
    expected = accuracy.results_of([tensor.double() for tensor in inputs], case, DotProduct(), "naive")
    results = accuracy.results_of(inputs, case, DotProduct(), "eager")
    assert max(accuracy.compared(results, expected, torch.float32)["errors"].values()) < 20
    results["d_phi"] = results["d_phi"] * 1.001
    errors = accuracy.compared(results, expected, torch.float32)["errors"]
    assert list(errors) == list(accuracy.TENSORS)
    assert errors["d_phi"] > 4000


def test_inputs_are_rounded_to_the_type_before_the_reference_sees_them():
    case = accuracy.SMALLEST_CASES["through features"]
    rounded = accuracy.inputs_of(case, torch.bfloat16, "cpu", 0)
    assert all(tensor.dtype == torch.bfloat16 for tensor in rounded)
    exact = accuracy.inputs_of(case, torch.float64, "cpu", 0)
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(rounded, exact, strict=True))


@pytest.mark.parametrize("cases", [accuracy.CASES, accuracy.SMALLEST_CASES], ids=["whole", "smallest"])
def test_the_cases_take_every_way(cases, monkeypatch):
    made = []
    second_moments = gram.second_moments
    monkeypatch.setattr(gram, "second_moments", lambda x, mean: made.append(1) or second_moments(x, mean))
    took_gram_form = {}
    for name, case in cases.items():
        accuracy.results_of(accuracy.inputs_of(case, torch.float32, "cpu", 0), case, DotProduct(), "eager")
        took_gram_form[name] = len(made)
        made.clear()
    assert took_gram_form == {"through features": 0, "Gram form": 1, "memory-efficient": 0, "one wide group": 0}
    in_group = {name: case.shape[1] // 2 // case.groups for name, case in cases.items()}
    assert [name for name, features in in_group.items() if features > WIDEST_GROUP] == ["one wide group"]
