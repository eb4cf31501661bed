import pytest

from cgnl.measure import plots

FAILED = {
    "table1": [{"method": "gnl", "channels": 64, "positions": 49, "failed": "OutOfMemoryError: "}],
    "block": [
        {"candidate": "published", "shape": [1], "dtype": "float32", "memory_format": "contiguous", "failed": "no"}
    ],
    # the plain network failed, and so there is nothing to stand over
    "networks": [
        {"network": "resnet50", "num_blocks": 0, "mode": "training", "failed": "no"},
        {"network": "resnet50", "num_blocks": 1, "mode": "training", "seconds": {"median": 1.0}},
        {"network": "resnet50", "num_blocks": 1, "mode": "inference", "seconds": {"median": 1.0}},
    ],
    "accuracy": [
        {"backend": "fused", "dtype": "float32", "case": "few positions", "kernel": "dot", "failed": "no"},
        {"backend": "eager", "dtype": "float32", "case": "few positions", "kernel": "dot", "errors": {}},
    ],
}


@pytest.mark.parametrize("kind", FAILED)
@pytest.mark.parametrize("failed", [True, False], ids=["failed", "no rows"])
def test_where_nothing_was_measured_there_is_no_plot(tmp_path, kind, failed):
    plot = tmp_path / "record.png"
    plot.write_text("of an earlier run")
    assert not plots.draw(kind, {"rows": FAILED[kind] if failed else []}, plot)
    assert not list(tmp_path.iterdir())
