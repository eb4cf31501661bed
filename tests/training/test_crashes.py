"""A run that is killed, or fails on a full disk, at any of its writes ends as if it had not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cgnl.tasks import evaluate, load_trained

# At the last write of best.ckpt and of last.ckpt, whose score is the best again; and of logs. All were tried.
POINTS = {"kill": [35, 36, 38], "full": [11, 36, 38]}
LAST_EPOCH = [
    "flush blocks.csv",
    "flush epochs.csv",
    "flush .best.ckpt.part",
    "rename best.ckpt",
    "flush .last.ckpt.part",
    "rename last.ckpt",
    "flush blocks.csv",
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", POINTS)
def test_a_run_stopped_at_a_write_and_resumed_ends_as_an_unbroken_one(class_folders, tmp_path, kind):
    driver = Path(__file__).with_name("crashing.py")
    done = subprocess.run(
        [sys.executable, driver, class_folders, tmp_path, kind, *map(str, POINTS[kind])],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
    )
    reference, *broken = map(json.loads, done.stdout.splitlines())
    assert reference["events"][-7:] == LAST_EPOCH
    assert len(reference["events"]) == 39
    kept = reference["left"]
    assert kept["files"] == ["best.ckpt", "blocks.csv", "epochs.csv", "last.ckpt", "recipe.yaml", "steps.csv"]
    assert len(broken) == len(POINTS[kind])
    for run in broken:
        assert run["code"] == (-9 if kind == "kill" else 2), run["said"]
        assert run["resumed"] == 0, run["then"]
        assert run["left"] == kept, run["at"]
        if kind == "full":
            assert "Traceback" not in run["said"]
            assert "No space left on device" in run["said"].splitlines()[-1]
    trained = load_trained(tmp_path / f"{kind}{POINTS[kind][-1]}")
    assert evaluate(trained, trained.recipe.data).top1 == pytest.approx(kept["best.ckpt"][1])
