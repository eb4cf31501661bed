"""Checkpoints of runs: written whole or not at all, and read without running code."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from cgnl.files import whole_file
from cgnl.networks.checkpoints import CheckpointError, read_checkpoint_file


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
            reason = _system_error(error)
            if reason is None:
                raise
            kept = " The previous checkpoint is untouched." if path.exists() else ""
            raise CheckpointError(f"could not write the checkpoint {path}: {reason.strerror}.{kept}") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; only tensors and plain values are accepted, whatever ``weights_only`` says."""
        return dict(read_checkpoint_file(path))


def _system_error(error: BaseException | None) -> OSError | None:
    # torch.save wraps an OSError while it closes its archive
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error
