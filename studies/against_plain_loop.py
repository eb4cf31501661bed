"""How many images a second does `cgnl train` train, beside Lightning's bare Trainer and beside a plain PyTorch loop?

All three train the same ResNet-50 without blocks on the same drawn birds: the same data loader and batches, the same
random weights, SGD with momentum in float32, and channels-last maps. `cgnl train` runs as a user runs it, with its
guard against non-finite steps, its logs and its checkpoints. The bare Trainer has a module of one method, and no
logger, no checkpoint and no progress bar. The three take turns within one process. Each turn trains a new network
for some steps, and the clock runs from the end of the last warm-up step to the end of the last step: making network,
data and Trainer does not count, nor does the test at the end. Run on a machine that does nothing else:

    python studies/against_plain_loop.py
"""

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from cgnl.measure.timing import in_turns, ratios, spread
from cgnl.networks.image import resnet
from cgnl.settings.image import DataConfig, NetworkConfig, Recipe
from cgnl.settings.training import OptimizerConfig, ScheduleConfig, TrainerConfig
from cgnl.tasks import train
from cgnl.toy.birds import draw_birds
from cgnl.training import ImageData
from script import begin, study, write

WARMUP = 3
NUM_CLASSES = 4
LR, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-4
LIMIT = 0.97


class BareModule(pl.LightningModule):
    """A network, cross entropy, and SGD with momentum."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the batch's mean loss."""
        return F.cross_entropy(self.network(channels_last(batch["image"])), batch["label"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return optimizer_of(self.network)


def channels_last(images: Tensor) -> Tensor:
    """Return the images in the channels-last memory format."""
    return images.contiguous(memory_format=torch.channels_last)


def optimizer_of(network: nn.Module) -> torch.optim.Optimizer:
    """Return SGD with momentum."""
    return torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


def network_of(arguments: argparse.Namespace) -> nn.Module:
    """Return the network with weights drawn from the seed."""
    torch.manual_seed(arguments.seed)
    network = resnet(arguments.arch, None, num_classes=NUM_CLASSES, dropout=0.0)
    return network.to(arguments.device, memory_format=torch.channels_last)


def recipe_of(arguments: argparse.Namespace, root: Path) -> Recipe:
    """Return the recipe that `cgnl train` runs."""
    return Recipe(
        network=NetworkConfig(arch=arguments.arch, block="none", dropout=0.0, weights=None),
        data=DataConfig(
            root=root,
            size=arguments.size,
            resize=arguments.size,
            batch_size=arguments.batch_size,
            workers=arguments.workers,
        ),
        optimizer=OptimizerConfig(lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY),
        schedule=ScheduleConfig(kind="constant"),
        trainer=TrainerConfig(
            max_steps=WARMUP + arguments.steps,
            seed=arguments.seed,
            devices=1,
            accelerator="gpu" if arguments.device == "cuda" else "cpu",
            channels_last=True,
        ),
    )


def loader_of(recipe: Recipe) -> Any:
    """Return the training loader of a recipe, as `cgnl train` makes it."""
    data = ImageData(recipe.data, seed=recipe.trainer.seed)
    data.setup("fit")
    return data.train_dataloader()


def train_ours(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Train with `cgnl train`."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        train(recipe, Path(folder) / "run", progress=False)


def train_with_bare_trainer(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Train with Lightning's Trainer alone."""
    trainer = pl.Trainer(
        max_steps=recipe.trainer.max_steps,
        accelerator=recipe.trainer.accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(BareModule(network_of(arguments)), loader_of(recipe))


def train_in_plain_loop(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Train in a loop of PyTorch's calls."""
    network = network_of(arguments).train()
    optimizer = optimizer_of(network)
    batches: Iterator[Mapping[str, Tensor]] = iter(loader_of(recipe))
    for _, batch in zip(range(recipe.trainer.max_steps), batches, strict=False):
        images, labels = (batch[key].to(arguments.device, non_blocking=True) for key in ("image", "label"))
        optimizer.zero_grad()
        F.cross_entropy(network(channels_last(images)), labels).backward()
        optimizer.step()


TRAININGS: dict[str, Callable[[Recipe, argparse.Namespace], None]] = {
    "cgnl train": train_ours,
    "bare Trainer": train_with_bare_trainer,
    "plain loop": train_in_plain_loop,
}


def seconds_of_training(name: str, recipe: Recipe, arguments: argparse.Namespace) -> tuple[float, float]:
    """Train once; return the seconds that the steps after the warm-up took, and those of this process on its CPUs."""
    ends: list[tuple[float, float]] = []

    def note(optimizer: Any, args: Any, kwargs: Any) -> None:
        if len(ends) in (WARMUP - 1, recipe.trainer.max_steps - 1) and arguments.device == "cuda":
            torch.cuda.synchronize()
        ends.append((time.perf_counter(), time.process_time()))

    hook = register_optimizer_step_post_hook(note)
    try:
        TRAININGS[name](recipe, arguments)
    finally:
        hook.remove()
    assert len(ends) == recipe.trainer.max_steps, f"{name} took {len(ends)} steps"
    return ends[-1][0] - ends[WARMUP - 1][0], ends[-1][1] - ends[WARMUP - 1][1]


def main() -> None:
    """Train in turns and write the record."""
    parser = study(__file__, __doc__, repeats=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--arch", choices=("resnet18", "resnet50"), default="resnet50")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of a turn that count")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    arguments = begin(parser)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "birds"
        # all steps lie within the first epoch
        images = (WARMUP + arguments.steps) * arguments.batch_size // NUM_CLASSES + arguments.batch_size
        draw_birds(root, num_species=NUM_CLASSES, train_images=images, test_images=1, seed=arguments.seed, workers=1)
        recipe = recipe_of(arguments, root)
        turns = {name: partial(seconds_of_training, name, recipe, arguments) for name in TRAININGS}
        in_turns(turns, repeats=1)
        measured = in_turns(turns, repeats=arguments.repeats)
    seconds, cpu_seconds = (
        {name: [turn[which] for turn in of_turns] for name, of_turns in measured.items()} for which in (0, 1)
    )
    images = arguments.steps * arguments.batch_size
    rows = []
    for name, values in seconds.items():
        row: dict[str, Any] = {
            "training": name,
            "images_per_second": spread([images / value for value in values]),
            "speed_over_plain_loop": ratios(seconds["plain loop"], values),
            "cpu_seconds_over_plain_loop": ratios(cpu_seconds[name], cpu_seconds["plain loop"]),
        }
        if name == "cgnl train":
            row["limit"] = {"at_least": LIMIT, "met": row["speed_over_plain_loop"]["median"] >= LIMIT}
        rows.append(row)
        print(
            f"{name}: {row['images_per_second']['median']:.2f} images/s, {row['speed_over_plain_loop']['median']:.3f} "
            f"times the plain loop's, with {row['cpu_seconds_over_plain_loop']['median']:.3f} times its CPU seconds"
        )
    names = ("device", "arch", "batch_size", "size", "steps", "workers", "repeats")
    settings = {name: getattr(arguments, name) for name in names}
    write(arguments, rows, **settings, warmup=WARMUP, dtype="float32", optimizer="SGD with momentum")


if __name__ == "__main__":
    main()
