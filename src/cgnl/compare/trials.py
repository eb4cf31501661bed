"""One run of a comparison: a block and what is behind it on cached maps, or the whole network.

Legend: B batch, C channels, S spatial or space-time axes, K classes.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cgnl.blocks.diagnosis import ALL, Diagnosis, diagnose
from cgnl.blocks.shell import BATCH_NORMS, CONVOLUTIONS
from cgnl.compare.cut import make_tail, tail_cost
from cgnl.compare.maps import Features, Maps
from cgnl.compare.plan import FIRST_TUNING_SEED, Protocol, Trial, with_block
from cgnl.insertion import inserted_blocks
from cgnl.networks.cost import NetworkCost, network_cost
from cgnl.settings.image import DataConfig, Recipe
from cgnl.settings.reading import from_dict
from cgnl.tasks.registry import task_of
from cgnl.training.class_scores import weighted_cross_entropy, weights_of
from cgnl.training.data import Part, without_no_class
from cgnl.training.sampling import drawn_by_class
from cgnl.training.trained import default_device

# Maps that are tested together.
_TEST_BATCH = 256
# Of the training samples, one in so many only tunes.
_TUNING_SHARE = 3


def run_on_maps(protocol: Protocol, trial: Trial, features: Features) -> dict[str, Any]:
    """Train on cached maps, see `train_on_maps`, and return a line of ``runs.jsonl``."""
    return train_on_maps(protocol, trial, features)[1]


def train_on_maps(protocol: Protocol, trial: Trial, features: Features) -> tuple[nn.Module, dict[str, Any]]:
    """Train a block and a classifier, or the layers behind the block, on cached maps with SGD and a cosine; test them.

    The order of the samples, their flips, dropout and the start of all but the block are the same for every kind.

    Returns:
        The trained part, and a line of ``runs.jsonl``.
    """
    started = time.monotonic()
    train, test = _samples(protocol, trial, features)
    recipe = with_block(from_dict(protocol.recipe, "protocol.json"), trial.block)
    network, block, cost_of = _learner(protocol, trial, recipe, features)
    of_block = list(block.parameters())
    others = [p for p in network.parameters() if p.requires_grad and not any(p is own for own in of_block)]
    groups = [{"params": of_block, "lr": trial.rate * trial.factor}, {"params": others, "lr": trial.rate}]
    batch_size = recipe.data.batch_size
    steps = trial.epochs * (len(train.labels) // batch_size)
    if not steps:
        raise ValueError(f"data.batch_size ({batch_size}) must be at most the number of training samples")
    optimizer = torch.optim.SGD(
        [group for group in groups if group["params"]], momentum=0.9, weight_decay=protocol.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / steps))
    curve: list[dict[str, float]] = []
    order = torch.Generator().manual_seed(trial.seed)
    weights = weights_of(recipe, train.labels.tolist(), len(features.classes), without_no_class(features.classes))
    weights = None if weights is None else weights.to(default_device())
    for epoch in range(1, trial.epochs + 1):
        network.train()
        losses: list[float] = []
        for x, labels in _batches(train, recipe.data, order):
            loss = weighted_cross_entropy(network(x), labels, weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        if epoch == trial.epochs or epoch % max(1, trial.epochs // 10) == 0:
            test_loss, top1 = _tested(network, test)
            curve.append(
                {"epoch": epoch, "train_loss": sum(losses) / len(losses), "test_loss": test_loss, "top1": top1}
            )
    train_loss, _ = _tested(network, train)
    cost = cost_of()
    diagnosis = None
    if trial.length == "fixed" and of_block:
        network.eval()
        diagnosis = _for_row(diagnose(network, lambda: _test_batches(test), blocks={"block": block}))
    return network, {
        **_words(trial), "steps": steps, "top1": curve[-1]["top1"], "test_loss": curve[-1]["test_loss"],
        "train_loss": train_loss, "parameters": cost.parameters, "multiplications": cost.multiplications,
        "seconds": round(time.monotonic() - started, 2), "curve": curve, "diagnosis": diagnosis,
    }  # fmt: skip


def _samples(protocol: Protocol, trial: Trial, features: Features) -> tuple[Maps, Maps]:
    """Return training and test samples; those that tune are none of the report's, and see no test sample."""
    train, test = _numbers(protocol, trial, features.train.labels)
    return (
        features.train if train is None else features.train.of(train),
        features.test if test is None else features.train.of(test),
    )


def _numbers(protocol: Protocol, trial: Trial, labels: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return which training samples a run trains on and is tested on, None for all, and for the test samples."""
    if not protocol.factors:
        return None, None
    kept = torch.ones(len(labels), dtype=torch.bool)
    for label in labels.unique():
        own = (labels == label).nonzero().flatten()
        chosen = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(FIRST_TUNING_SEED))]
        kept[chosen[: len(own) // _TUNING_SHARE]] = False
    if trial.length != "tuning":
        return kept.nonzero().flatten(), None
    tuning = (~kept).nonzero().flatten()
    generator = torch.Generator().manual_seed(FIRST_TUNING_SEED + 1)
    tuning = tuning[torch.randperm(len(tuning), generator=generator)]
    cut = len(tuning) * 2 // 3
    return tuning[:cut], tuning[cut:]


def _learner(
    protocol: Protocol, trial: Trial, recipe: Recipe, features: Features
) -> tuple[nn.Module, nn.Module, Callable[[], NetworkCost]]:
    """Return what a run trains, the block in it, and what counts the cost of that."""
    shape, num_classes = tuple(features.train.maps.shape[2:]), len(features.classes)
    if protocol.head == "network":
        tail = make_tail(recipe, trial.block, num_classes, trial.seed, shape)
        torch.manual_seed(trial.seed)
        return tail, tail.block, lambda: tail_cost(tail, recipe, trial.block, num_classes)

    def build() -> nn.Sequential:
        return _network(recipe, shape, num_classes, protocol, trial.seed)

    network = build().to(default_device())
    return network, network[0], lambda: network_cost(build, (1, *shape))


def _network(recipe: Recipe, shape: tuple[int, ...], num_classes: int, protocol: Protocol, seed: int) -> nn.Sequential:
    """Return block and classifier; the classifier starts the same for every kind of block."""
    channels, num_axes = shape[0], len(shape) - 1
    torch.manual_seed(seed)
    head = nn.Sequential(
        CONVOLUTIONS[num_axes](channels, protocol.width, 1, bias=False),
        BATCH_NORMS[num_axes](protocol.width),
        nn.ReLU(),
        nn.Flatten(2),
        _Mean(),
        nn.Dropout(protocol.dropout),
        nn.Linear(protocol.width, num_classes),
    )
    task: Any = task_of(recipe)
    blocks = task.blocks(recipe)
    block = nn.Identity() if blocks is None else blocks(num_axes)(channels)
    torch.manual_seed(seed)
    return nn.Sequential(block, head)


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1)


def _batches(maps: Maps, config: DataConfig, order: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    device, batch_size, flip = default_device(), config.batch_size, config.flip
    if config.balanced_sampler:
        numbers = drawn_by_class(maps.labels, order)
    else:
        numbers = torch.randperm(len(maps.labels), generator=order)
    if flip == 0.5:
        # as it was when every recipe flipped half of the samples, so that those numbers stay
        flips = torch.randint(2, (len(numbers),), generator=order)
    else:
        flips = (torch.rand(len(numbers), generator=order) < flip).long()
    for own, mirrored in zip(numbers.split(batch_size), flips.split(batch_size), strict=True):
        if len(own) == batch_size:
            yield maps.maps[own, mirrored].to(device), maps.labels[own].to(device)


@torch.inference_mode()
def _tested(network: nn.Module, maps: Maps) -> tuple[float, float]:
    """Return mean loss and top-1 (%)."""
    network.eval()
    loss, right = 0.0, 0
    for x, labels in _test_batches(maps):
        logits = network(x)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(1) == labels).sum())
    count = len(maps.labels)
    return loss / count, 100 * right / count


def _test_batches(maps: Maps) -> Iterator[tuple[Tensor, Tensor]]:
    device = default_device()
    for start in range(0, len(maps.labels), _TEST_BATCH):
        part = slice(start, start + _TEST_BATCH)
        yield maps.maps[part, 0].to(device), maps.labels[part].to(device)


def _for_row(found: Mapping[str, Diagnosis]) -> dict[str, Any]:
    """Return the diagnosis of all blocks for a line, which has the top-1 of the trained network already."""
    return {name: value for name, value in found[ALL].items() if name != "as_is"}


def _words(trial: Trial) -> dict[str, Any]:
    return {
        "block": trial.block,
        "seed": trial.seed,
        "length": trial.length,
        "epochs": trial.epochs,
        "rate": trial.rate,
        "block_rate_factor": trial.factor,
    }


def _part(protocol: Protocol, trial: Trial, recipe: Recipe) -> Part:
    """Return the samples that a whole network is trained and tested on: never the validation samples."""
    if not protocol.factors:
        return {"train": ("train", None), "test": ("test", None)}
    data = task_of(recipe).make_data(recipe.data)
    train, test = _numbers(protocol, trial, torch.tensor([sample.label for sample in data.train_samples.samples]))
    assert train is not None
    return {"train": ("train", train.tolist()), "test": ("test", None) if test is None else ("train", test.tolist())}


def run_whole(protocol: Protocol, trial: Trial, folder: Path) -> dict[str, Any]:
    """Train a whole network with the recipe's own optimizer, or go on with that, and return its line."""
    import csv

    from cgnl.tasks import diagnose as diagnose_trained
    from cgnl.tasks import load_trained, recipe_cost, train

    recipe: Any = with_block(from_dict(protocol.recipe, "protocol.json"), trial.block)
    name = "-".join([trial.block.translate(str.maketrans(":,=", "___")), trial.length, str(trial.seed)])
    recipe = replace(
        recipe,
        trainer=replace(recipe.trainer, seed=trial.seed, max_epochs=trial.epochs),
        optimizer=replace(
            recipe.optimizer, lr=trial.rate, block_lr_factor=recipe.optimizer.block_lr_factor * trial.factor
        ),
    )
    if trial.length == "tuning":
        name += f"-{trial.epochs}-{trial.rate}-{trial.factor}"
    run = folder / "runs" / name
    part = _part(protocol, trial, recipe)
    train(recipe, run, name="compare", resume=True, progress=False, part=part)
    with (run / "epochs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    curve = [
        {
            "epoch": number,
            "train_loss": float(row["train_loss"]),
            # empty for epochs that were not tested
            "test_loss": float(row["test_loss"] or "nan"),
            "top1": float(row["test_top1"] or "nan"),
        }
        for number, row in enumerate(rows, start=1)
    ]
    trained = load_trained(run / "last.ckpt")
    cost = recipe_cost(replace(recipe, data=replace(recipe.data, num_classes=len(trained.classes))))
    diagnosis = None
    if trial.length == "fixed" and any(list(own.parameters()) for own in inserted_blocks(trained.network).values()):
        diagnosis = _for_row(diagnose_trained(trained, recipe.data, part=part))
    if trial.length == "tuning":
        # there are many, and their weights would fill the disk
        shutil.rmtree(run)
    return {
        **_words(trial), "steps": int(rows[-1]["step"]), "top1": curve[-1]["top1"],
        "test_loss": curve[-1]["test_loss"], "train_loss": curve[-1]["train_loss"], "parameters": cost.parameters,
        "multiplications": cost.multiplications, "seconds": round(sum(float(row["seconds"]) for row in rows), 2),
        "curve": curve, "diagnosis": diagnosis,
    }  # fmt: skip
