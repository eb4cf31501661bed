"""Whether blocks in training do anything: numbers for each block and epoch, and the score without them."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from cgnl.blocks.diagnosis import ALL, Tally
from cgnl.files import append_csv
from cgnl.training.processes import gathered

FILE = "blocks.csv"
_COLUMNS = ("branch_over_x", "s_cv", "norm_weight", "phi_g_over_theta")
_IDLE = 1e-3


class BlockWatch(Callback):
    """Writes what each block does into ``blocks.csv`` and the curves, a line for each block and epoch.

    The columns: ``branch_over_x``, how much the block changes its input in the epoch's test; ``s_cv``, how much the
    sums of a compact block differ between the test samples (both as in :class:`cgnl.blocks.diagnosis.Diagnosis`);
    ``norm_weight``, the mean size of the weights of the block's norm, which start at 0; and ``phi_g_over_theta``, the
    2-norm of the gradients of phi and g over that of theta's, in the epoch's last step. What a block does not have is
    left empty.

    Args:
        run: Folder of the run.
        blocks: The blocks by path.
        max_steps: Optimizer steps after which the run ends; -1 is no limit.
    """

    def __init__(self, run: Path, blocks: Mapping[str, nn.Module], max_steps: int = -1) -> None:
        self.run, self.blocks, self.max_steps = run, dict(blocks), max_steps
        self._gradients: dict[str, float] = {}
        self._tallies = {path: Tally() for path in self.blocks}
        self._watching: list[AbstractContextManager[Any]] = []

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Watch the blocks during a test."""
        self._tallies = {path: Tally() for path in self.blocks}
        self._watching = [tally.watch(self.blocks[path]) for path, tally in self._tallies.items()]

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Stop watching."""
        for context in self._watching:
            context.__exit__(None, None, None)
        self._watching = []

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Compare the gradients in the last step of an epoch."""
        if trainer.is_last_batch or trainer.global_step + 1 == self.max_steps:
            self._gradients = {path: _ratio_of_gradients(block) for path, block in self.blocks.items()}

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Forget the last epoch."""
        self._tallies = {path: Tally() for path in self.blocks}
        self._gradients = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write the epoch's lines."""
        self._tallies = {
            path: reduce(add, tallies) for path, tallies in _transposed(gathered(self._tallies), self.blocks).items()
        }
        found = {path: self._numbers(path, block) for path, block in self.blocks.items()}
        for logger in trainer.loggers:
            logger.log_metrics(
                {
                    f"blocks/{path}/{name}": value
                    for path, values in found.items()
                    for name, value in values.items()
                    if math.isfinite(value)
                },
                trainer.global_step,
            )
        if trainer.is_global_zero:
            self._write(
                trainer, [(path, *(f"{values[name]:.6g}" for name in _COLUMNS), "") for path, values in found.items()]
            )

    def _numbers(self, path: str, block: nn.Module) -> dict[str, float]:
        weight = getattr(getattr(block, "norm", None), "weight", None)
        values = self._tallies[path].numbers()
        values["norm_weight"] = weight.detach().abs().mean().item() if isinstance(weight, Tensor) else math.nan
        values["phi_g_over_theta"] = self._gradients.get(path, math.nan)
        return values

    def _write(self, trainer: pl.Trainer, rows: list[tuple[Any, ...]]) -> None:
        # after the last epoch the trainer has begun another one
        epoch = trainer.current_epoch - (not trainer.training)
        append_csv(
            self.run / FILE,
            ["step", "epoch", "block", *_COLUMNS, "score_without"],
            [[trainer.global_step, epoch, *("" if value == "nan" else value for value in row)] for row in rows],
        )

    def idle(self) -> list[str]:
        """Return a sentence about each block that did next to nothing in the last test."""
        return [
            f"the block at {path} changes its input by less than {100 * _IDLE:g} %: see docs/when-it-helps.md"
            for path, tally in self._tallies.items()
            if tally.numbers()["branch_over_x"] < _IDLE
        ]

    def lacks_score(self, step: int) -> bool:
        """Return whether the run ended at this step, but a crash came before its score without the blocks."""
        if not (self.run / FILE).exists():
            return False
        *_, last = (self.run / FILE).read_text().splitlines()
        return not last.startswith(f"{step},") or f",{ALL}," not in last

    def write_score(self, trainer: pl.Trainer, score: float) -> None:
        """Write the score (%) of the trained network without its blocks."""
        if trainer.is_global_zero:
            self._write(trainer, [(ALL, *("" for _ in _COLUMNS), f"{score:.6g}")])


def _ratio_of_gradients(block: nn.Module) -> float:
    return _gradient(block, "phi", "g") / (_gradient(block, "theta") or math.nan)


def _gradient(block: nn.Module, *names: str) -> float:
    """Return the 2-norm of the gradients of some of a block's parts, NaN where there are none."""
    parts = [getattr(block, name, None) for name in names]
    gradients = [
        p.grad for part in parts if isinstance(part, nn.Module) for p in part.parameters() if p.grad is not None
    ]
    return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients)) if gradients else math.nan


def _transposed(shares: list[dict[str, Tally]], paths: Mapping[str, Any]) -> dict[str, list[Tally]]:
    return {path: [share[path] for share in shares] for path in paths}
