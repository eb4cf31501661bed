"""Checkpoints of runs: written whole or not at all, read without running code, and found again after a crash.

A step writes its line of ``steps.csv``, and ``last.ckpt`` where that is due. The end of an epoch writes its line of
``epochs.csv``, ``best.ckpt`` if the score is the best so far, then ``last.ckpt``. A kill or a full disk can stop the
run before, in or after any of these writes:

* In a write: the earlier file stays, and the next start removes the ``.part`` file beside it.
* Between a line and its checkpoint: ``last.ckpt`` is older than the last lines of the logs. The resumed run drops these
  lines and takes the steps behind ``last.ckpt`` again.
* Between ``best.ckpt`` and ``last.ckpt``: ``best.ckpt`` is newer. It holds the whole state of the run, so the resumed
  run goes on from it, and first copies it to ``last.ckpt``.
* After ``last.ckpt``: nothing is missing.

So the newer of the two files is the state of the run, and the score inside ``best.ckpt`` is the best score.
``last.ckpt`` keeps score and step of the best epoch as well. They show whether ``best.ckpt`` was removed or damaged, or
is stale: earlier versions wrote it after ``last.ckpt``. If the best epoch is that of ``last.ckpt``, ``best.ckpt`` is
written again from it; otherwise the run says that the best weights are lost, and keeps the best of the epochs to come.
"""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from cgnl.files import part_of, whole_file
from cgnl.networks.checkpoints import CheckpointError, read_checkpoint_file
from cgnl.training.trained import run_entry

LAST, BEST = "last.ckpt", "best.ckpt"
FILES = (LAST, BEST, "recipe.yaml", "steps.csv", "epochs.csv", "blocks.csv", "skipped_steps.csv")
"""Files that show that a folder holds a run."""
LISTS = ("missing_files.csv", "bad_files.csv", "damaged_videos.csv", "bad_annotations.csv")
"""Lists of bad data in a run's folder. They alone are no run: a first try that failed may have left them."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all.

    A kill or a full disk while saving leaves the previous checkpoint whole. Lightning's own writer goes through the
    system's temporary folder, and its last step is a copy where that is another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``; after a CheckpointError (a full disk) the previous one is as it was."""
        path = Path(path)
        try:
            with whole_file(path, "wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            reason = system_error(error)
            if reason is None:
                raise
            kept = " The previous checkpoint is untouched." if path.exists() else ""
            raise CheckpointError(f"could not write the checkpoint {path}: {reason.strerror}.{kept}") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; only tensors and plain values are accepted, whatever ``weights_only`` says."""
        return dict(read_checkpoint_file(path))


def system_error(error: BaseException | None) -> OSError | None:
    """Return the OSError that an error comes from, if any: torch.save and Lightning wrap those of their files."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


@dataclass(frozen=True)
class RunState:
    """A run as its folder holds it.

    Attributes:
        checkpoint: The checkpoint to go on from.
        entry: The ``cgnl`` entry of that checkpoint.
        best: Best score, that of ``best.ckpt`` (%); minus infinity if there is none.
        best_step: Optimizer step of the best score.
        copy: Name of the checkpoint to copy ``checkpoint`` to, since a crash has left that out; or None.
        note: A line for people if ``best.ckpt`` does not hold the best weights, or None.
    """

    checkpoint: Path
    entry: Mapping[str, Any]
    best: float = -math.inf
    best_step: int = -1
    copy: str | None = None
    note: str | None = None

    def finish_writing(self) -> Path:
        """Write the checkpoint that a crash has left out; return the one to go on from."""
        if self.copy is None:
            return self.checkpoint
        path = self.checkpoint.with_name(self.copy)
        with self.checkpoint.open("rb") as source, whole_file(path, "wb") as target:
            shutil.copyfileobj(source, target)
        return self.checkpoint.with_name(LAST)


def find_state(run: Path) -> RunState | None:
    """Return the state of the run in a folder, None if it has no checkpoint yet; see this file's docstring.

    All processes of a run find the same, also while the first one finishes the writing. Raises CheckpointError if
    ``last.ckpt`` is damaged.
    """
    last = _entry(run / LAST) if (run / LAST).exists() else None
    try:
        best = _entry(run / BEST) if (run / BEST).exists() else None
    except CheckpointError:
        best = None
    if best is not None and (last is None or best["step"] > last["step"]):
        return RunState(run / BEST, best, best["best"], best["step"], copy=LAST)
    if last is None:
        return None
    if best is not None and best["best"] >= last["best"]:
        return RunState(run / LAST, last, best["best"], best["step"])
    if last["best"] == -math.inf:
        return RunState(run / LAST, last)
    if last.get("best_step") == last["step"]:
        return RunState(run / LAST, last, last["best"], last["step"], copy=BEST)
    has = "does not exist or is damaged" if best is None else f"holds {best['best']:.2f} % of step {best['step']}"
    note = f"the best weights so far ({last['best']:.2f} %) are lost: {run / BEST} {has}; only better epochs replace it"
    score, step = (best["best"], best["step"]) if best is not None else (-math.inf, -1)
    return RunState(run / LAST, last, score, step, note=note)


def _entry(path: Path) -> Mapping[str, Any]:
    return run_entry(read_checkpoint_file(path), path)


def files_of_run(run: Path) -> list[str]:
    """Return the names of the files in a folder that a run has left there, whole or half written."""
    return [path.name for name in FILES for path in (run / name, part_of(run / name)) if path.exists()]


def remove_parts(run: Path) -> None:
    """Remove the half files that a killed run has left."""
    for name in (*FILES, *LISTS):
        part_of(run / name).unlink(missing_ok=True)
