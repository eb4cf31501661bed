import os
from pathlib import Path

import pytest
import torch
from torch import nn

from cgnl.measure import memory


def test_bytes_kept_counts_storages_once_and_can_leave_parameters_out():
    linear = nn.Linear(32, 64, bias=False)
    x = torch.randn(8, 32, requires_grad=True)

    def forward():
        return linear(x) + linear(x[:4]).sum()

    assert memory.bytes_kept(forward) == (x.numel() + linear.weight.numel()) * 4
    assert memory.bytes_kept(forward, without=linear.parameters()) == x.numel() * 4


def test_peak_allocated_is_the_sum_of_what_lives_together():
    def run():
        first = torch.empty(1000)
        second = torch.empty(2000)
        del first
        third = torch.empty(500)
        return second, third

    assert memory.peak_allocated(run, "cpu") == pytest.approx(3000 * 4, abs=256)


def peak_of(numbers):
    """Peaks of filling so many numbers in a row, each let go before the next."""
    return [memory.peak_resident(lambda count=count: torch.ones(count).sum()) for count in numbers]


def test_peak_resident_of_a_fresh_process_is_what_is_filled(monkeypatch):
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", here, prepend=os.pathsep)
    monkeypatch.syspath_prepend(here)
    import test_memory

    (_, large, small) = memory.call_in_a_fresh_process(test_memory.peak_of, numbers=[1000, 4_000_000, 1_000_000])
    assert large == pytest.approx(16e6, rel=0.1)
    assert small == pytest.approx(4e6, rel=0.2)


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match="ended with code 1: ZeroDivisionError: division by zero"):
        memory.output_of_a_fresh_process(["-c", "1 / 0"])
    with pytest.raises(RuntimeError, match="ended with code -9: it printed no error"):
        memory.output_of_a_fresh_process(["-c", "import os; os.kill(os.getpid(), 9)"])
