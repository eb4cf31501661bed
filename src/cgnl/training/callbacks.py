"""Callbacks of a run: the guard against non-finite steps, checkpoints and logs, stopping and resuming, progress."""

import csv
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, RichProgressBar
from torch import Tensor

from cgnl.data.decoding import HANGUP, STOPPING
from cgnl.files import append_csv, write_csv, write_text
from cgnl.settings.words import counted, percent
from cgnl.training.checkpoint import BEST, LAST
from cgnl.training.data import SampleData
from cgnl.training.module import TrainingModule
from cgnl.training.output import leave_closed_terminal
from cgnl.training.processes import StoppedAtOnce, TrainingStopped, gathered
from cgnl.training.trained import FORMAT

# Steps skipped one after the other that may be due to single samples; more are a sign of ruined weights.
_CHANCE = 2


class NonFiniteError(ValueError):
    """Too many steps had a non-finite loss or gradient, or the weights are ruined."""


class FiniteGuard(Callback):
    """Skips optimizer steps whose loss or gradient is not finite, norm statistics included; at most ``limit`` of them.

    Each such step is counted and its samples, with the names that ``name_samples`` gives for their numbers, are written
    to ``skipped_steps.csv`` in the run's folder. With 16-bit mixed precision an infinite gradient of a finite loss is
    the loss scaler's affair, unless it happens too often in a row.

    The run ends, with the last checkpoint as it was, after an epoch that skipped every step or whose test gave no
    number: then the weights are ruined, as by too high a learning rate.

    Attributes:
        skipped: Steps skipped so far.
        in_a_row: Steps skipped since the last good one.
    """

    def __init__(self, run: Path, limit: int, name_samples: Callable[[Sequence[int]], list[str]]) -> None:
        self.run, self.limit, self.name_samples = run, limit, name_samples
        self.skipped = self.in_a_row = 0
        self._learned = self._tested = False
        self._scaled_down = 0
        self._finite_loss = True
        self._samples: list[int] = []
        self._buffers: list[Tensor] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the norm statistics at the start of each optimizer step."""
        if batch_idx == 0:
            self._learned = self._tested = False
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._buffers = [buffer.clone() for buffer in module.buffers()]
            self._samples, self._finite_loss = [], True
        self._samples += batch["index"].tolist()

    def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, loss: Tensor) -> None:
        """Note whether the loss is finite."""
        self._finite_loss &= bool(loss.isfinite())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Empty the gradients of a bad step, so that the optimizer changes nothing."""
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        finite = bool(torch.nn.utils.get_total_norm(gradients).isfinite()) if gradients else True
        if self._finite_loss and trainer.precision == "16-mixed":
            # the loss scaler leaves the step out and tries a smaller scale
            self._scaled_down = 0 if finite else self._scaled_down + 1
            finite = self._scaled_down <= self.limit
        finite &= self._finite_loss
        if trainer.world_size > 1:
            finite = trainer.strategy.reduce_boolean_decision(finite, all=True)
        if finite:
            self.in_a_row, self._learned = 0, True
            return
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in zip(module.buffers(), self._buffers, strict=True):
                buffer.copy_(before)
        self.skipped += 1
        self.in_a_row += 1
        shares = gathered((self._finite_loss, self.name_samples(self._samples)))
        # with several processes, those whose own loss is not finite; if there is none, all
        blamed = [names for fine, names in shares if not fine]
        reason = "loss" if blamed else "gradient"
        samples = [name for names in blamed or [names for _, names in shares] for name in names]
        if trainer.is_global_zero:
            append_csv(
                self.run / "skipped_steps.csv",
                ["step", "epoch", "not_finite", "samples"],
                [[trainer.global_step, trainer.current_epoch, reason, " ".join(samples)]],
            )
        if self.skipped > self.limit:
            raise self._error(
                f"{counted(self.skipped, 'step')} had a non-finite loss or gradient, more than trainer.skip_limit "
                f"({self.limit}) allows; the last at step {trainer.global_step}, with {', '.join(samples[:4])}",
                module,
            )

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Note that this epoch is tested."""
        self._tested = True

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """End the run after an epoch that has ruined the weights or shows that they are ruined."""
        epoch = trainer.current_epoch + 1
        loss = trainer.callback_metrics.get("test/loss") if self._tested else None
        if loss is not None and loss.isnan():
            raise self._error(f"the test after epoch {epoch} gave a loss that is not a number", module)
        ends = trainer.should_stop or epoch == trainer.max_epochs
        if not self._learned:
            raise self._error(f"all steps of epoch {epoch} had a non-finite loss or gradient", module)
        if ends and not self.sound(module, _CHANCE):
            raise self._error(f"the weights are ruined at the end of epoch {epoch}", module)

    def sound(self, module: pl.LightningModule, allowed: int = 0) -> bool:
        """Return whether the weights are finite, and at most ``allowed`` steps were skipped since a good step or test.

        A good test is one with a finite loss.
        """
        loss = module.trainer.callback_metrics.get("test/loss") if self._tested else None
        good = self.in_a_row <= allowed or (loss is not None and bool(loss.isfinite()))
        return good and all(bool(parameter.isfinite().all()) for parameter in module.parameters())

    def _error(self, reason: str, module: pl.LightningModule) -> NonFiniteError:
        advice = ""
        if isinstance(module, TrainingModule):
            config = module.optimizer_config
            advice = (
                f" If it is no single sample, start again with a lower optimizer.lr ({config.lr:g}"
                + (f" times {module.lr_scale:g}" if module.lr_scale != 1 else "")
                + ")"
                + (", or with optimizer.clip_norm." if config.clip_norm is None else ".")
            )
        listed = f" The skipped steps are in {self.run / 'skipped_steps.csv'}." if self.skipped else ""
        last = self.run / LAST
        kept = f"{last} is the last checkpoint." if last.exists() else "Nothing is saved yet."
        return NonFiniteError(f"{reason}.{listed}{advice} {kept}")

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, for the checkpoint."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "learned": self._learned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the counts out of a checkpoint."""
        self.skipped = state_dict["skipped"]
        self.in_a_row = state_dict.get("in_a_row", 0)
        self._learned = state_dict.get("learned", False)


class RunKeeper(Checkpoint):
    """Keeps a run on disk: checkpoints, CSV logs, a clean stop on signals, and the state to resume from.

    ``last.ckpt`` is written every so many steps, after each epoch's test, and on SIGTERM, SIGHUP, SIGUSR1 or Ctrl-C;
    ``best.ckpt`` when the first of the module's reported metrics rises. Weights that are not :meth:`FiniteGuard.sound`
    are not saved. The logs are cut back to the checkpoint on resuming. :mod:`cgnl.training.checkpoint` says what a
    crash leaves.

    Args:
        run: Folder of the run.
        data: The data that a resumed run goes on with.
        description: What a checkpoint needs to be complete in itself: recipe, classes and normalisation.
        checkpoint_every_n_steps: Optimizer steps between two writes of ``last.ckpt`` within an epoch.
        log_every_n_steps: Steps between two lines of ``steps.csv``.
        test_every_n_epochs: Epochs between two tests; the last epoch is always tested.
        max_steps: Optimizer steps after which the run ends, tested; -1 is no limit. Lightning is not told: with its
            own limit it goes on from the end of an epoch as if that had not ended.
        early_stopping: Tests in a row without a better score after which the run ends; None is no limit. Lightning's
            EarlyStopping would train one more epoch after a resume, and keep the limit of the checkpoint.
        guard: Tells whether the weights are worth saving; without one they always are.
        best: Best score so far (%), and the step that it is of.
        recipe: Content of ``recipe.yaml``; None writes none.
        say: Prints a line for people.
    """

    def __init__(
        self,
        run: Path,
        data: SampleData,
        description: Mapping[str, Any],
        *,
        checkpoint_every_n_steps: int,
        log_every_n_steps: int,
        test_every_n_epochs: int = 1,
        max_steps: int = -1,
        early_stopping: int | None = None,
        guard: FiniteGuard | None = None,
        best: tuple[float, int] = (-math.inf, -1),
        recipe: str | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.run, self.data, self.description, self.say = run, data, dict(description), say
        self.checkpoint_every_n_steps = checkpoint_every_n_steps
        self.log_every_n_steps, self.test_every_n_epochs = log_every_n_steps, test_every_n_epochs
        self.best, self._best_step = best
        self.max_steps, self.early_stopping = max_steps, early_stopping
        self.guard, self.recipe = guard, recipe
        self._without_better = 0
        self._due = False
        self._signal: int | None = None
        self._random_state: Sequence[Tensor] | None = None
        self._tested = False
        self._loop_at_end: dict[str, Any] | None = None
        self._started = self._epoch_started = time.monotonic()
        self._images = 0

    # Signals

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Take over the signals, restore the random state of a resumed run, cut its logs back."""
        trainer.should_stop = 0 <= self.max_steps <= trainer.global_step or self._stops_early(trainer, module)
        # here and not before: Lightning puts its own SIGTERM handler in place while it sets up, and in the end it gives
        # every signal the handler back that it had before
        for number in STOPPING:
            # nohup ignores the end of the terminal, and so does the run then
            if number != HANGUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        if self._random_state is not None:
            _restore_random_state(self._random_state)
            self._random_state = None
        elif trainer.global_rank:
            # all processes have made the same weights; from here on each has dropout of its own
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)
        if trainer.is_global_zero:
            self.write_recipe()
            for name in ("steps.csv", "blocks.csv"):
                _cut_back(self.run / name, trainer.global_step)
            _cut_back(self.run / "epochs.csv", trainer.global_step, self._columns(module))
            # their steps are counted before they are taken
            _cut_back(self.run / "skipped_steps.csv", trainer.global_step - 1)

    def write_recipe(self) -> None:
        """Write ``recipe.yaml``."""
        if self.recipe is not None:
            write_text(self.run / "recipe.yaml", self.recipe)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise StoppedAtOnce(number)
        self._signal = number
        if number == HANGUP:
            leave_closed_terminal()
        self.say(
            f"{signal.Signals(number).name}: stopping after this step or test; a second one stops at once, unsaved"
        )

    def _stop_if_asked(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        asked = self._signal is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if not asked:
            return
        if self._sound(module):
            trainer.save_checkpoint(self.run / LAST)
        elif self._sound(module, _CHANCE):
            # one more step tells whether the weights are ruined or a sample was bad
            return
        else:
            self.say("not saved: the last steps had a non-finite loss or gradient, which may have ruined the weights")
        raise TrainingStopped(self._signal or signal.SIGTERM, trainer.global_step)

    def _sound(self, module: pl.LightningModule, allowed: int = 0) -> bool:
        return self.guard is None or self.guard.sound(module, allowed)

    # Steps and epochs

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the epoch's clock; have the last epoch tested whatever the interval."""
        self._epoch_started = self._started = time.monotonic()
        self._images, self._tested = 0, False
        last = trainer.current_epoch + 1 == trainer.max_epochs
        trainer.check_val_every_n_epoch = 1 if last else self.test_every_n_epochs

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Note that this epoch is tested."""
        self._tested = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the step, save where it is time to, stop where a signal asked for it."""
        self._images += len(batch["index"]) * trainer.world_size
        step, position = trainer.global_step, batch_idx + 1
        last = step == self.max_steps
        if position % trainer.accumulate_grad_batches:
            return
        if step % self.log_every_n_steps == 0:
            now = time.monotonic()
            speed = self._images / max(now - self._started, 1e-9)
            self._images, self._started = 0, now
            # Lightning's step output is the loss over the parts of an accumulated batch
            loss = float(outputs["loss"]) * trainer.accumulate_grad_batches if outputs else math.nan
            assert isinstance(module, TrainingModule)
            rate = module.rate()
            module.log("samples_per_second", speed, prog_bar=True)
            if trainer.is_global_zero:
                append_csv(
                    self.run / "steps.csv",
                    ["step", "epoch", "loss", "lr", "samples_per_second"],
                    [[step, trainer.current_epoch, repr(loss), repr(rate), f"{speed:.1f}"]],
                )
            for logger in trainer.loggers:
                logger.log_metrics({"train/step_loss": loss, "lr": rate}, step)
        if last:
            # the test that ends an epoch also ends a run that its number of steps ends
            trainer.should_stop = True
            trainer.check_val_every_n_epoch = 1
            if position < trainer.num_training_batches:
                # Lightning takes the epoch for a whole one from here on, so that a longer run would leave its rest out
                self._loop_at_end = trainer.fit_loop.state_dict()
        if last or position == trainer.num_training_batches:
            # Lightning cannot resume between a last step and its test: on_train_epoch_end saves
            return
        self._stop_if_asked(trainer, module)
        self._due |= step % self.checkpoint_every_n_steps == 0
        if self._due and self._sound(module):
            trainer.save_checkpoint(self.run / LAST)
            self._due = False

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Log the epoch and save the checkpoints."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        tested = self._tested
        self.data.share_bad_files()
        assert isinstance(module, TrainingModule)
        score = next(iter(module.reported))
        values = {
            name: metrics.get(name, math.nan) if tested or "test" not in name else math.nan for name in module.logged
        }
        seconds = time.monotonic() - self._epoch_started
        if trainer.is_global_zero:
            append_csv(
                self.run / "epochs.csv",
                self._columns(module),
                [[trainer.global_step, trainer.current_epoch, *values.values(), f"{seconds:.1f}"]],
            )
        # without a test, the next steps tell more
        self._due = not self._sound(module, _CHANCE if tested else 0)
        if not self._due:
            improved = tested and values[score] > self.best
            self._without_better = 0 if improved else self._without_better + tested
            if improved:
                self.best, self._best_step = values[score], trainer.global_step
                # before last.ckpt: a crash in between then leaves a best.ckpt that is the newer state of the run
                trainer.save_checkpoint(self.run / BEST)
            trainer.save_checkpoint(self.run / LAST)
        if trainer.is_global_zero:
            parts = [self._place(trainer), f"loss {values['train/loss']:.4f}"]
            if tested:
                told = [f"{name} {percent(values[key])}" for key, name in module.reported.items()]
                parts += [f"{self._tested_on} {told[0]}", *told[1:]]
            parts.append(f"{seconds:.0f} s")
            parts += self.data.troubles()
            self.say("  ".join(parts))
        if not self._due and not trainer.should_stop and trainer.current_epoch + 1 != trainer.max_epochs:
            trainer.should_stop = self._stops_early(trainer, module)
        self._stop_if_asked(trainer, module)

    @property
    def _tested_on(self) -> str:
        # validation samples that are not tested on after training have a name of their own
        return "val" if self.data.has_own_test else "test"

    def _columns(self, module: pl.LightningModule) -> list[str]:
        """Return the header of ``epochs.csv``."""
        assert isinstance(module, TrainingModule)
        tests = (name.replace("test/", f"{self._tested_on}/").replace("/", "_") for name in module.logged)
        return ["step", "epoch", *tests, "seconds"]

    def _stops_early(self, trainer: pl.Trainer, module: pl.LightningModule) -> bool:
        """Return whether there were enough tests without a better score, and say so."""
        if self.early_stopping is None or self._without_better < self.early_stopping:
            return False
        assert isinstance(module, TrainingModule)
        score = next(iter(module.reported.values()))
        steps = trainer.num_training_batches // trainer.accumulate_grad_batches
        better = (
            f"a better {score} than {percent(self.best)}, that of epoch {-(-self._best_step // int(steps))}"
            if self.best > -math.inf
            else f"a number for {score}"
        )
        self.say(f"early stopping: {counted(self._without_better, 'test')} in a row without {better}")
        return True

    def _place(self, trainer: pl.Trainer) -> str:
        if self.max_steps >= 0:
            return f"epoch {trainer.current_epoch + 1}  step {trainer.global_step}/{self.max_steps}"
        return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"

    # What a checkpoint holds beside Lightning's own state

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what makes a checkpoint complete in itself and the state of the run."""
        batches = trainer.fit_loop.epoch_loop.batch_idx + 1
        done = trainer.num_training_batches <= batches
        if self._loop_at_end is not None:
            checkpoint["loops"]["fit_loop"] = self._loop_at_end
        checkpoint["cgnl"] = {
            **self.description,
            "format": FORMAT,
            "epoch": trainer.current_epoch + done,
            "step": trainer.global_step,
            "batch": 0 if done else batches,
            "best": self.best,
            "best_step": self._best_step,
            "without_better": self._without_better,
            "random_states": gathered(_random_state()),
        }

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the state of the run out of a checkpoint, and start the data where it stood."""
        run = checkpoint["cgnl"]
        # earlier versions did not count them
        self._without_better = run.get("without_better", 0)
        # on more processes than before, the samples are the same but dropout is not
        self._random_state = run["random_states"][trainer.global_rank % len(run["random_states"])]
        self.data.resume(run["epoch"], run["batch"])


def _random_state() -> list[Tensor]:
    """Return the states of the generators that dropout draws from: the CPU's and, if there is one, the GPU's."""
    gpu = _gpu()
    return [torch.get_rng_state(), *([gpu.get_rng_state()] if gpu else [])]


def _restore_random_state(states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1 and (gpu := _gpu()):
        gpu.set_rng_state(states[1])


def _gpu() -> Any:
    """Return PyTorch's module for the kind of GPU that is in use, if any."""
    return torch.cuda if torch.cuda.is_initialized() else torch.mps if torch.mps.is_available() else None


class RunProgressBar(RichProgressBar):
    """Lightning's rich progress bar with images per second and the time that the whole run still takes."""

    def __init__(self, max_steps: int = -1, *, file: Any = None) -> None:
        super().__init__(refresh_rate=1, console_kwargs={"file": file})
        self.max_steps = max_steps
        self._first: tuple[int, float] | None = None

    def get_metrics(self, trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
        """Return what stands behind the bar."""
        metrics = super().get_metrics(trainer, module)
        metrics.pop("v_num", None)
        shown: dict[str, Any] = {}
        if "samples_per_second" in metrics:
            shown["samples/s"] = f"{metrics.pop('samples_per_second'):.0f}"
        step, now = trainer.global_step, time.monotonic()
        if self._first is None or step < self._first[0]:
            self._first = step, now
        elif step > self._first[0] and (end := self._end(trainer)) != math.inf:
            left = (end - step) * (now - self._first[1]) / (step - self._first[0])
            shown["run ends in"] = f"{int(left) // 3600}:{int(left) // 60 % 60:02}:{int(left) % 60:02}"
        return {**metrics, **shown}

    def _end(self, trainer: pl.Trainer) -> float:
        return min(trainer.estimated_stepping_batches, self.max_steps if self.max_steps >= 0 else math.inf)


def _cut_back(path: Path, step: int, columns: Sequence[str] = ()) -> None:
    """Drop the lines of a log that were written after a step: a resumed run writes them again.

    The lines of an earlier version, which had other columns, are brought into ``columns``, if these are given.
    """
    if not path.exists():
        return
    with path.open(newline="", errors="replace") as file:
        header, *rows = [*csv.reader(file)] or [[]]
    kept = [row for row in rows if len(row) == len(header) and row[0].isdigit() and int(row[0]) <= step]
    if columns and header != [*columns]:
        kept = [
            [row.get(name, "") for name in columns] for row in (dict(zip(header, row, strict=True)) for row in kept)
        ]
        header = [*columns]
    if kept:
        write_csv(path, [header, *kept])
    else:
        path.unlink()
