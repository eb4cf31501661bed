"""``cgnl compare``."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cgnl.cli.arguments import parse_fields, parts_of, take_recipe
from cgnl.cli.options import OptionalFolder
from cgnl.settings.checks import MAX_WORKERS, is_dotted_name, positive, within
from cgnl.settings.trust import trusting

_DEFAULT_BLOCKS = ("none", "residual", "se", "gc", "nl", "cgnl", "cgnl-correlation")
_FROZEN_RATES = {"new": 0.1, "network": 0.05}


def _words(metavar: str) -> Any:
    return tyro.conf.arg(metavar=metavar)


@dataclass(frozen=True)
class CompareOptions:
    """The options of `cgnl compare` besides a recipe's fields."""

    blocks: Annotated[tuple[str, ...], _words("BLOCK ...")] = _DEFAULT_BLOCKS
    """Kinds of blocks, with options behind a colon if you like: none cgnl cgnl:groups=1,norm=group mypackage.MyBlock.
    cgnl:num_blocks=5 inserts five. none is the plain network, which the others are compared with."""
    seeds: int = 5
    """Number of seeds. Every kind runs with each; their differences are paired."""
    first_seed: int = 0
    """The first of the seeds."""
    out: OptionalFolder = None
    """Folder for the runs, the cached maps and report.html; by default compare/ and the recipe's name. The same command
    again continues what is there."""
    freeze: Literal["none", "below-block"] = "none"
    """below-block keeps the network up to the block as it is, computes its maps once, and trains the block and a new
    classifier on them: minutes instead of hours. none trains whole networks."""
    head: Literal["new", "network"] = "new"
    """With frozen maps, the layers behind the block: a new 1x1 convolution and classifier; or those of the network,
    which go on from their weights, with a new classifier. That takes longer, and is nearer to a whole training."""
    epochs: int = 20
    """Epochs of every run. The plain network also runs for twice as many, as a control."""
    rate: float | None = None
    """Learning rate; by default the recipe's. With frozen maps (SGD with momentum 0.9 and a cosine) 0.1 by default, and
    0.05 with --head network."""
    block_rate_factor: float = 1.0
    """The blocks' learning rate divided by that of the other layers, without --tune."""
    weight_decay: float = 5e-4
    """Weight decay, with frozen maps."""
    dropout: float = 0.5
    """Probability of dropout before a new head's classifier, with frozen maps."""
    width: int = 512
    """Channels of a new head's 1x1 convolution between the block and the classifier, with frozen maps."""
    tune: Annotated[tuple[float, ...], _words("FACTOR ...")] = ()
    """Factors to try, such as 0.1 1 4: of plain's rate, and of each block's rate, each at every length. A third of the
    training samples is kept for that, and never used in the report."""
    lengths: Annotated[tuple[int, ...], _words("MULTIPLE ...")] = (1, 2, 3)
    """Numbers of epochs that --tune tries, as multiples of --epochs. With several, the report also shows each kind at
    its own best."""
    jobs: int = 1
    """Runs at the same time, each in a process and on a GPU of its own, if there are several."""
    minutes: float | None = None
    """End cleanly before so many minutes are over; the same command continues."""


def compare(arguments: Sequence[str]) -> None:
    """Compare kinds of blocks on your data: cgnl compare RECIPE --data.root FOLDER [--blocks none cgnl ...] ..."""
    name, recipe, rest = take_recipe("compare", arguments)
    options = parse_fields(f"compare {name}", CompareOptions, recipe, rest)
    recipe = dataclasses.replace(recipe, **parts_of(options))
    _check(options, recipe)
    kinds = (label.partition(":")[0] for label in options.blocks)
    folder = options.out or Path("compare") / Path(arguments[0]).stem
    from cgnl.training.processes import locked

    with trusting(*filter(is_dotted_name, kinds)), locked(folder):  # they stand on this command line
        _compare(name, recipe, options, arguments, folder)


def _compare(name: str, recipe: Any, options: Any, arguments: Sequence[str], folder: Path) -> None:
    from cgnl.compare.maps import samples_digest
    from cgnl.compare.plan import Protocol, with_block
    from cgnl.compare.report import write_report
    from cgnl.compare.running import run
    from cgnl.settings.reading import to_dict
    from cgnl.tasks.registry import task_of
    from cgnl.training.class_scores import weights_of

    frozen = options.freeze == "below-block"
    labels = dict.fromkeys(("none", *options.blocks))
    for label in labels:
        if with_block(recipe, label).network.num_blocks != 1 and frozen:
            raise ValueError(f"--freeze below-block needs one block, and --blocks has {label}")
    task: Any = task_of(recipe)
    if not task.classifies:
        raise ValueError(f"cgnl compare needs a network that classifies, and {name} is for {task.words}")
    recipe = task.sized(recipe)
    data = task.make_data(recipe.data, inputs=task.inputs(recipe), run=folder)
    # called for what it refuses, which should show before anything is computed
    weights_of(recipe, data.train_labels, len(data.classes), data.named_classes)
    protocol = Protocol(
        command=f"cgnl compare {' '.join(arguments)}",
        recipe=to_dict(with_block(recipe, "none")),
        blocks=tuple(labels),
        seeds=tuple(range(options.first_seed, options.first_seed + options.seeds)),
        frozen=frozen,
        epochs=options.epochs,
        rate=options.rate or (_FROZEN_RATES[options.head] if frozen else recipe.optimizer.lr),
        weight_decay=options.weight_decay,
        dropout=options.dropout,
        width=options.width,
        factors=tuple(options.tune),
        lengths=tuple(options.lengths) if options.tune else (),
        head=options.head,
        block_rate_factor=options.block_rate_factor,
        samples=samples_digest({"train": data.train_samples, "test": data.test_samples}),
    )
    protocol.write(folder, data=data.summary(), network=recipe.network.arch)
    print(data.summary())
    complete = run(
        protocol, folder, jobs=options.jobs, minutes=options.minutes, say=lambda line: print(line, flush=True)
    )
    print(write_report(folder))
    print(f"report: {folder / 'report.html'}")
    if not complete:
        print("not every run is finished; the same command continues", file=sys.stderr)
        sys.exit(3)


def _check(options: Any, recipe: Any) -> None:
    for field in ("seeds", "epochs", "jobs", "width"):
        if getattr(options, field) < 1:
            raise ValueError(f"--{field} ({getattr(options, field)}) must be at least 1")
    within("--jobs", options.jobs, 1, MAX_WORKERS)
    if options.first_seed < 0 or options.first_seed + options.seeds > 1_000_000:
        raise ValueError(f"--first-seed ({options.first_seed}) must be from 0 to 999999")
    for field in ("rate", "block_rate_factor", "minutes"):
        positive(f"--{field.replace('_', '-')}", getattr(options, field))
    within("--weight-decay", options.weight_decay, 0)
    within("--dropout", options.dropout, 0, 1)
    if options.head == "network" and options.freeze == "none":
        raise ValueError("--head network needs --freeze below-block: whole networks train all layers anyway")
    if options.freeze == "below-block" and getattr(recipe.data, "augment", ()):
        raise ValueError(
            f"data.augment ({' '.join(recipe.data.augment)}) must be left out with --freeze below-block, which "
            "computes the maps of each sample once"
        )
    if recipe.trainer.early_stopping is not None:
        raise ValueError(
            f"trainer.early_stopping ({recipe.trainer.early_stopping}) must be left out: all runs of a comparison have "
            "the same number of epochs"
        )
    for factor in options.tune:
        positive("--tune", factor)
    if 1 not in options.lengths or min(options.lengths) < 1:
        raise ValueError(f"--lengths ({' '.join(map(str, options.lengths))}) must be 1 and whole numbers above it")
    if recipe.data.root is None and not hasattr(recipe.data, "train_annotations"):
        raise ValueError("data.root is needed: the folder with the samples")
