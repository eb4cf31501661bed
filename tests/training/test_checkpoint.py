"""The state of a run is found again, whatever a crash or a hand has left in its folder."""

import math

import pytest
import torch

from cgnl.networks.checkpoints import CheckpointError
from cgnl.training.checkpoint import files_of_run, find_state, remove_parts

NONE = -math.inf


def write(path, step, best, best_step):
    """Write a checkpoint with the entry of a run, as far as the search needs it."""
    entry = {"format": 2, "step": step, "best": best, "best_step": best_step}
    torch.save({"weights": torch.tensor(float(step)), "cgnl": entry}, path)


# step, best score and its step, of last.ckpt and best.ckpt; then the step to go on from, the best score and its step,
# the steps of both files once the writing is finished, and whether best weights are lost
CASES = {
    "nothing was tested yet": ((3, NONE, -1), None, (3, NONE, -1), (3, None), False),
    "both are whole": ((9, 20.0, 6), (6, 20.0, 6), (9, 20.0, 6), (9, 6), False),
    "killed between the two": ((5, 10.0, 3), (6, 20.0, 6), (6, 20.0, 6), (6, 6), False),
    "killed between the two for the first time": (None, (3, 10.0, 3), (3, 10.0, 3), (3, 3), False),
    "an earlier version killed between the two": ((6, 20.0, 6), (3, 10.0, 3), (6, 20.0, 6), (6, 6), False),
    "best.ckpt is gone, and last.ckpt is as good": ((6, 20.0, 6), None, (6, 20.0, 6), (6, 6), False),
    "best.ckpt is gone": ((9, 20.0, 6), None, (9, NONE, -1), (9, None), True),
    "best.ckpt is damaged": ((9, 20.0, 6), "damaged", (9, NONE, -1), (9, "damaged"), True),
    "best.ckpt is stale": ((9, 20.0, 6), (3, 10.0, 3), (9, 10.0, 3), (9, 3), True),
}


@pytest.mark.parametrize("case", CASES)
def test_the_state_of_a_run_is_found_and_its_writing_finished(tmp_path, case):
    *given, state, steps, lost = CASES[case]
    for name, entry in zip(("last.ckpt", "best.ckpt"), given, strict=True):
        if entry == "damaged":
            (tmp_path / name).write_bytes(b"zeros")
        elif entry is not None:
            write(tmp_path / name, *entry)
    found = find_state(tmp_path)
    assert (found.entry["step"], found.best, found.best_step) == state
    assert bool(found.note) == lost
    taken = found.finish_writing()
    assert taken == tmp_path / "last.ckpt"
    for name, step in zip(("last.ckpt", "best.ckpt"), steps, strict=True):
        if isinstance(step, int):
            checkpoint = torch.load(tmp_path / name, weights_only=True)
            assert checkpoint["weights"] == checkpoint["cgnl"]["step"] == step
        else:
            assert (tmp_path / name).exists() == (step == "damaged")
    # and once more, as another process of the run finds it
    again = find_state(tmp_path)
    assert (again.entry["step"], again.best, again.best_step) == state
    assert again.copy is None


def test_a_folder_without_checkpoints_has_no_state(tmp_path):
    assert find_state(tmp_path / "nowhere") is None


def test_a_damaged_last_checkpoint_is_named(tmp_path):
    write(tmp_path / "best.ckpt", 3, 10.0, 3)
    (tmp_path / "last.ckpt").write_bytes(b"zeros")
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        find_state(tmp_path)


def test_the_files_of_a_run_are_known_whole_or_not(tmp_path):
    for name in ("mine.txt", ".lock", "missing_files.csv"):
        (tmp_path / name).touch()
    assert files_of_run(tmp_path) == []
    for name in ("epochs.csv", ".last.ckpt.part", ".bad_annotations.csv.part"):
        (tmp_path / name).touch()
    assert files_of_run(tmp_path) == [".last.ckpt.part", "epochs.csv"]
    remove_parts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", ".lock", "missing_files.csv", "epochs.csv"}
