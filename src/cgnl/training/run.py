"""A whole training run from a recipe: data, network, Lightning's Trainer, the run folder."""

import logging
import math
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.plugins.environments import SLURMEnvironment
from rich.console import Console
from torch import nn

from cgnl.blocks.diagnosis import without
from cgnl.data.decoding import DataError
from cgnl.insertion import inserted_blocks
from cgnl.settings.image import Recipe
from cgnl.settings.reading import from_dict, to_dict
from cgnl.settings.training import TrainerConfig
from cgnl.settings.words import percent
from cgnl.training.callbacks import FiniteGuard, RunKeeper, RunProgressBar
from cgnl.training.checkpoint import (
    BEST,
    LAST,
    LISTS,
    AtomicCheckpointIO,
    RunState,
    files_of_run,
    find_state,
    remove_parts,
)
from cgnl.training.data import Part, SampleData
from cgnl.training.module import TrainingModule
from cgnl.training.output import Curves, SteadyOutput, quiet_curves
from cgnl.training.processes import end_together, interruptible, is_first_process, locked, reporting_dead_readers
from cgnl.training.task import Task
from cgnl.training.trained import FORMAT
from cgnl.training.watching import BlockWatch


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run.

    Attributes:
        last: The last checkpoint.
        best: The checkpoint with the highest score, or None where none was tested.
        scores: Scores of the last test (%), by name; the first is the score that ``best`` goes by. Empty where none
            was tested.
        best_score: Highest score of any epoch (%), or None.
        chosen_on: The samples that these scores are for, in words: ``validation images``.
    """

    last: Path
    best: Path | None
    scores: dict[str, float]
    best_score: float | None
    chosen_on: str


def train(
    task: Task[Any],
    recipe: Recipe,
    run: Path,
    *,
    name: str = "recipe",
    resume: bool = False,
    progress: bool = True,
    part: Part | None = None,
) -> RunResult:
    """Train a recipe's network; see :func:`cgnl.tasks.train`."""
    quieten()
    _check_can_run(recipe)
    task.check(recipe)
    # the first process keeps the folder for all
    with locked(run) if is_first_process() else nullcontext():
        state = _state_to_resume(recipe, run, resume)
        pl.seed_everything(recipe.trainer.seed, verbose=False)
        data = _checked_data(task, recipe, run, state, part)
        return _fit(task, recipe, run, name, state, data, progress)


def _fit(
    task: Task[Any], recipe: Recipe, run: Path, name: str, state: RunState | None, data: SampleData[Any], progress: bool
) -> RunResult:
    config = recipe.trainer
    # a checkpoint to go on from replaces the start weights, which need not be there any more
    start = recipe if state is None else task.without_start_weights(recipe)
    task.check_start_weights(start, data.classes)
    network = task.build_network(start, len(data.classes))
    module = make_module(task, recipe, network, data)
    if config.compile:
        network.compile()
    output: Any = SteadyOutput(sys.stdout)
    console = Console(file=output)
    say = partial(console.print, soft_wrap=True, highlight=False) if is_first_process() else lambda line: None
    guard = FiniteGuard(run, config.skip_limit, data.names)
    keeper = RunKeeper(
        run,
        data,
        {
            "recipe": to_dict(recipe),
            "name": name,
            "classes": list(data.classes),
            "num_classes": len(data.named_classes),
            "num_samples": len(data.train_samples),
            "files": data.fingerprints,
            **data.normalisation,
        },
        checkpoint_every_n_steps=config.checkpoint_every_n_steps,
        log_every_n_steps=config.log_every_n_steps,
        test_every_n_epochs=config.test_every_n_epochs,
        max_steps=config.max_steps,
        early_stopping=config.early_stopping,
        guard=guard,
        best=(-math.inf, -1) if state is None else (state.best, state.best_step),
        recipe=yaml.safe_dump({"recipe": name, **to_dict(recipe)}, sort_keys=False),
        say=say,
    )
    checkpoint = None if state is None else _take_up(state, keeper)
    say(task.start(start) if checkpoint is None else f"start weights: {checkpoint}")
    say(data.summary())
    if note := task.note(recipe):
        say(note)
    # a compiled network runs without hooks
    watch = BlockWatch(run, {} if config.compile else inserted_blocks(network), config.max_steps)
    callbacks: list[Callback] = [guard, keeper, *[watch] * bool(watch.blocks)]
    if config.ema_decay:
        callbacks.append(EMAWeightAveraging(decay=config.ema_decay))
    if progress and console.is_terminal:
        callbacks.append(RunProgressBar(config.max_steps, file=output))
    trainer = make_trainer(
        config,
        callbacks=callbacks,
        logger=Curves(run, say),
        max_epochs=config.max_epochs,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=recipe.optimizer.clip_norm,
        check_val_every_n_epoch=config.test_every_n_epochs,
        log_every_n_steps=config.log_every_n_steps,
        enable_progress_bar=progress and console.is_terminal,
    )
    with interruptible(), reporting_dead_readers(), quiet_curves():
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        scores = {name: metrics[key] for key, name in module.reported.items() if key in metrics}
        if watch.blocks and (scores or watch.lacks_score(trainer.global_step)):
            _say_what_blocks_do(watch, trainer, module, data, config, say)
    end_together()
    troubles = data.troubles()
    troubles += [f"steps with a non-finite loss or gradient: {guard.skipped}"] * bool(guard.skipped)
    if troubles:
        say(f"problems: {', '.join(troubles)} (lists are in {run})")
    best = run / BEST if (run / BEST).exists() else None
    chosen_on = f"{'validation' if data.has_own_test else 'held-out'} {data.noun}s"
    return RunResult(run / LAST, best, scores, keeper.best if best else None, chosen_on)


def _say_what_blocks_do(
    watch: BlockWatch,
    trainer: pl.Trainer,
    module: TrainingModule,
    data: SampleData[Any],
    config: TrainerConfig,
    say: Callable[[str], None],
) -> None:
    """Test the network once more, without its blocks, and say the score, and which blocks do next to nothing."""
    runner = make_trainer(config, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with without(watch.blocks.values()):
        (found,) = runner.validate(module, datamodule=data, verbose=False)
    key, name = next(iter(module.reported.items()))
    watch.write_score(trainer, found[key])
    blocks, them = ("block", "it") if len(watch.blocks) == 1 else ("blocks", "them")
    known = trainer.callback_metrics.get(key)
    say(
        f"without the {blocks}: {name} {percent(found[key])}"
        + ("" if known is None else f" (with {them} {percent(float(known))})")
    )
    for sentence in watch.idle():
        say(sentence)


def _take_up(state: RunState, keeper: RunKeeper) -> Path:
    """Put a run's folder in order and return the checkpoint to go on from."""
    if state.note:
        keeper.say(state.note)
    if not is_first_process():
        return state.checkpoint
    # an early crash, or a user, may have left it empty
    keeper.write_recipe()
    return state.finish_writing()


def make_module(
    task: Task[Any], recipe: Recipe, network: nn.Module, data: SampleData[Any], *, channels_last: bool | None = None
) -> TrainingModule:
    """Make the Lightning module that trains and tests a recipe's network; ``channels_last`` None is the recipe's."""
    config, batch = recipe.trainer, recipe.optimizer.lr_batch
    return task.make_module(
        recipe,
        network,
        data,
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        lr_scale=recipe.data.batch_size / batch if batch else 1.0,
        freeze=config.freeze,
        max_steps=config.max_steps,
        channels_last=uses_channels_last(config) if channels_last is None else channels_last,
    )


def uses_channels_last(config: TrainerConfig) -> bool:
    """Return whether the network works on channels-last maps: as asked for, or else where that is faster."""
    if config.channels_last is not None:
        return config.channels_last
    return not _uses_gpus(config) or config.precision != "32"


def make_trainer(config: TrainerConfig, **options: Any) -> pl.Trainer:
    """Make Lightning's Trainer for a recipe: devices, precision, DDP over torchrun or SLURM, atomic checkpoints.

    ``options`` are more arguments of ``lightning.pytorch.Trainer``.
    """
    devices, nodes, many = _processes(config)
    precision: Any = "32-true" if config.precision == "32" else config.precision
    return pl.Trainer(
        accelerator=config.accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if many else "auto",
        precision=precision,
        # a job that is started again goes on by --resume, not by a checkpoint that Lightning hides somewhere
        plugins=[AtomicCheckpointIO(), *([SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else [])],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        sync_batchnorm=config.sync_batch_norm,
        enable_model_summary=False,
        **options,
    )


def _uses_gpus(config: TrainerConfig) -> bool:
    return _num_gpus() > 0 and config.accelerator != "cpu"


def _num_gpus() -> int:
    # a Mac has one
    return torch.cuda.device_count() or int(torch.mps.is_available())


def _processes(config: TrainerConfig) -> tuple[int | Literal["auto"], int, bool]:
    """Return the processes on a machine, the machines, and whether the processes are several in all."""
    gpus = _uses_gpus(config)
    if config.accelerator == "gpu" and not gpus:
        raise ValueError("trainer.accelerator is gpu, but PyTorch finds no GPU here")
    if gpus and config.devices and config.devices > _num_gpus():
        raise ValueError(f"trainer.devices is {config.devices}, but PyTorch finds {_num_gpus()} GPUs here")
    devices: int | Literal["auto"] = config.devices or ("auto" if gpus else 1)
    nodes = config.nodes
    if "LOCAL_WORLD_SIZE" in os.environ:
        # torchrun says how many processes it has started, here and in all
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    return devices, nodes, nodes > 1 or (devices != 1 and not (devices == "auto" and _num_gpus() == 1))


def _check_can_run(recipe: Recipe) -> None:
    """Raise ValueError where there is no such device, or several processes would train a SyncBatchNorm on CPUs."""
    config = recipe.trainer
    synchronised = {
        "trainer.sync_batch_norm": config.sync_batch_norm,
        "block.norm sync_batch": getattr(recipe.block, "norm", None) == "sync_batch",
    }
    *_, many = _processes(config)
    for name, used in synchronised.items():
        if used and many and not _uses_gpus(config):
            raise ValueError(f"{name} needs GPUs in several processes: PyTorch has no SyncBatchNorm on CPUs")


def _state_to_resume(recipe: Recipe, run: Path, resume: bool) -> RunState | None:
    """Check the run folder, return the state to go on from."""
    if found := files_of_run(run) if not resume else []:
        raise DataError(
            f"{run} already holds a run ({', '.join(found)}): add --resume to continue it, or choose another --run"
        )
    if is_first_process():
        remove_parts(run)
    state = find_state(run)
    if state is None:
        return None
    checkpoint = state.checkpoint
    if state.entry["format"] != FORMAT:
        raise DataError(
            f"{checkpoint} was written by an earlier version of cgnl: you can test and use it, but not continue its run"
        )
    stored = from_dict(state.entry["recipe"], str(checkpoint))
    if type(stored) is not type(recipe):
        tasks = [to_dict(each)["task"] for each in (stored, recipe)]
        raise DataError(f"{checkpoint} holds a run of the task {tasks[0]}; it cannot continue as {tasks[1]}")
    changed = differences(stored, recipe)
    if stored.schedule.kind == "cosine":
        in_steps = stored.schedule.unit == "step" and max(stored.trainer.max_steps, recipe.trainer.max_steps) > 0
        end = "max_steps" if in_steps else "max_epochs"
        ends = [getattr(config, end) for config in (stored.trainer, recipe.trainer)]
        if ends[0] != ends[1]:
            changed.append(f"trainer.{end}, the end of the cosine, was {ends[0]}, now {ends[1]}")
    if changed:
        raise DataError(f"{checkpoint} was made with another recipe and cannot continue: {'; '.join(changed)}")
    return state


def _checked_data(
    task: Task[Any], recipe: Recipe, run: Path, state: RunState | None, part: Part | None
) -> SampleData[Any]:
    config = recipe.trainer
    if state is None and is_first_process():
        # what an attempt that ended before its first checkpoint has listed
        for listed in LISTS:
            (run / listed).unlink(missing_ok=True)
    data = task.make_data(
        recipe.data,
        seed=config.seed,
        accumulate=config.accumulate,
        run=run,
        inputs=task.inputs(recipe),
        part=part,
        tested="val",
    )
    data.check()
    if state is not None:
        _check_same_data(state, data)
    return data


def _check_same_data(state: RunState, data: SampleData) -> None:
    """Refuse to go on with other classes or files than the run began with."""
    checkpoint, entry = state.checkpoint, state.entry
    root = data.config.root or data.train_samples.root
    if tuple(entry["classes"]) != data.classes:
        other = sorted(set(data.classes) ^ set(entry["classes"]))
        what = f"classes {', '.join(other[:5])}" if other else "the order of the classes"
        raise DataError(f"{checkpoint} was trained on other classes than {root} has: {what} differ")
    found = data.changed_files(entry["files"]) if "files" in entry else []
    if entry["num_samples"] != len(data.train_samples) and not found:
        found = [f"{entry['num_samples']} training {data.noun}s then, {len(data.train_samples)} now"]
    if found:
        raise DataError(
            f"{checkpoint} was trained on other files than {root} has now: {'; '.join(found)}. A run continues on the "
            f"same files only: restore them, or start a new run with --network.weights {checkpoint} and another --run."
        )


def differences(stored: Any, given: Any, prefix: str = "") -> list[str]:
    """Return what differs between two recipes, except fields that may change when a run goes on."""
    found = []
    for field in fields(stored):
        before, now, name = getattr(stored, field.name), getattr(given, field.name), f"{prefix}{field.name}"
        if is_dataclass(before):
            # options of blocks of two kinds have nothing to compare, and the kinds are a difference of their own
            found += differences(before, now, f"{name}.") if type(before) is type(now) else []
        elif before != now and not field.metadata.get("free"):
            found.append(f"{name} was {before}, now {now}")
    return found


def quieten() -> None:
    """Leave out what Lightning says about itself; what concerns the user is said by us."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",
        r".*smaller than the logging interval.*",
        r".*in eval mode at the start of training.*",
        r".*It is recommended to use `.*sync_dist=True\)`.*",
        r".*Trying to infer the `batch_size`.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*isinstance\(treespec, LeafSpec\)` is deprecated.*",
        r".*resuming from a checkpoint that ended before the epoch ended.*",
        r".*custom batch sampler `EpochBatches`.*",
        r".*You called `self.log\('.*but have no logger configured.*",
    ):
        warnings.filterwarnings("ignore", message=message)
