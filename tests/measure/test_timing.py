import statistics
import time

import pytest
import torch
from torch import nn

from cgnl.measure.timing import ratios, reason_of_failure, side_by_side, spread, training_step


def test_spread_is_median_and_quartiles():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert spread(values) == {"median": statistics.median(values), "lower_quartile": 2.0, "upper_quartile": 4.0}


def test_ratios_are_taken_turn_by_turn():
    assert ratios([1.0, 10.0, 100.0], to=[2.0, 20.0, 200.0]) == {
        "median": 0.5,
        "lower_quartile": 0.5,
        "upper_quartile": 0.5,
    }


def test_candidates_take_turns_and_the_warm_up_does_not_count():
    calls = []
    seconds = side_by_side({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_a_short_candidate_is_called_until_its_turn_is_long_enough():
    calls = []

    def run():
        calls.append(time.sleep(0.002))

    (seconds,) = side_by_side({"": run}, repeats=2, warmup=1, least_seconds=0.03).values()
    # the pause lasts 2 ms at least, and the time is that of one call
    assert 3 < len(calls) <= 1 + 2 * 15
    assert min(seconds) >= 0.002


def test_a_failure_is_one_line():
    assert reason_of_failure(lambda: None) is None
    too_large = reason_of_failure(lambda: torch.empty(2**60))
    assert too_large is not None
    assert too_large.startswith("RuntimeError: ")
    assert reason_of_failure(lambda: {}["x"]) == "KeyError: 'x'"
    assert reason_of_failure(lambda: nn.Linear(2, 2).load_state_dict({})) == (
        "RuntimeError: Error(s) in loading state_dict for Linear:"
    )


def test_a_training_step_makes_every_gradient():
    made = []
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    for parameter in module.parameters():
        parameter.register_hook(lambda gradient: made.append(gradient.shape))
    x = torch.randn(5, 3, requires_grad=True)
    x.register_hook(lambda gradient: made.append(gradient.shape))
    step = training_step(module, x)
    assert not made
    step()
    assert sorted(made) == sorted([x.shape, *(parameter.shape for parameter in module.parameters())])
    assert x.grad is None


@pytest.mark.parametrize("warmup", [0, 1])
def test_each_turn_counts_once(warmup):
    assert len(side_by_side({"": lambda: None}, repeats=4, warmup=warmup)[""]) == 4
