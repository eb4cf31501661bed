import torch
from torch import nn

from cgnl.measure import block
from cgnl.measure.rivals import BareConvolutions


class Greedy(nn.Module):
    """A rival that wants more memory than there is."""

    def forward(self, x):
        return x + torch.empty(2**60)


def test_a_rival_that_cannot_run_says_why_and_the_others_go_on(monkeypatch, capsys):
    def old_version(channels, num_axes):
        raise TypeError("an argument that this version does not know")

    made = {
        "greedy": lambda channels, num_axes: Greedy(),
        "convolutions": lambda channels, num_axes: BareConvolutions(channels, num_axes, groups=block.GROUPS),
        "old": old_version,
    }
    monkeypatch.setattr(block, "candidates", lambda *_, **__: made)
    rooflines = block.measure_rooflines("cpu", ["float32"], smallest=True)
    rows = block._rows((2, 16, 3, 3), "float32", "contiguous", "cpu", 2, 0, False, rooflines)
    by_name = {row["candidate"]: row for row in rows}
    assert by_name["greedy"]["failed"].startswith("RuntimeError: ")
    assert by_name["old"]["failed"] == "TypeError: an argument that this version does not know"
    assert "failed" not in by_name["convolutions"]
    assert by_name["convolutions"]["training"]["over_convolutions"]["median"] == 1
    assert "training" not in by_name["greedy"]
    assert "old cannot run" in capsys.readouterr().out


def test_without_the_bare_convolutions_the_others_are_measured(monkeypatch):
    made = {
        "convolutions": lambda channels, num_axes: Greedy(),
        "published": lambda channels, num_axes: BareConvolutions(channels, num_axes, groups=block.GROUPS),
    }
    monkeypatch.setattr(block, "candidates", lambda *_, **__: made)
    rooflines = block.measure_rooflines("cpu", ["float32"], smallest=True)
    failed, other = block._rows((2, 16, 3, 3), "float32", "contiguous", "cpu", 2, 0, False, rooflines)
    assert "failed" in failed
    assert set(other["training"]) == {"seconds", "over_floor", "published_over_this"}


def test_the_compiled_block_is_the_eager_one():
    assert block._compiled(16, 2).backend == "eager"


def test_a_process_that_dies_leaves_its_reason_in_every_row():
    rows = [{"candidate": "none of them", "shape": [2, 16, 3, 3], "dtype": "float32", "memory_format": "contiguous"}]
    block._add_peaks(rows, "cpu", 0)
    assert "KeyError: 'none of them'" in rows[0]["peak_failed"]


def test_modules_are_awake_and_in_the_inputs_type():
    x = block._input((2, 16, 3, 4, 5), "bfloat16", "channels_last", "cpu", 0)
    assert x.is_contiguous(memory_format=torch.channels_last_3d)
    made = block.candidates("cpu", "contiguous", compiled=False)
    for name in ("cgnl_eager", "published", "nl_softmax"):
        module = block._module(made[name], x)
        assert not torch.equal(module(x), x)
        assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}


def test_the_compiled_block_is_left_out_where_it_is_not_wanted():
    assert "cgnl_compiled" in block.candidates("cpu", "contiguous", compiled=True)
    assert "cgnl_compiled" not in block.candidates("cpu", "contiguous", compiled=False)
    assert not any("fused" in name for name in block.candidates("cpu", "contiguous", compiled=True))
    assert {"cgnl_fused", "cgnl_fused_cuda_graph"} < set(block.candidates("cuda", "channels_last", compiled=True))
