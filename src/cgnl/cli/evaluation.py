"""``cgnl evaluate``."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Any, Literal

from cgnl.cli.arguments import names_recipe, parse_fields, parts_of, take_recipe
from cgnl.cli.options import OptionalFolder
from cgnl.settings.blocks import BlockOptions
from cgnl.settings.detection import DetectionNetworkConfig
from cgnl.settings.image import NetworkConfig
from cgnl.settings.marks import fields_for_tests
from cgnl.settings.training import TrainerConfig
from cgnl.settings.words import decimal, percent


@dataclass(frozen=True)
class TestOptions:
    """The options of `cgnl evaluate` besides a recipe's fields."""

    out: OptionalFolder = None
    """Folder for the tables (predictions.csv or COCO's result files, per_class.csv, ...); by default evaluation/ in the
    run's folder. With several networks, each gets its own folder in it: 1, 2, ...; tables of all samples of folds are
    in the folder itself."""
    split: Literal["test", "val"] = "test"
    """Part of the data: test, or val for the validation samples, which chose best.ckpt. Where there is only one of
    them, either means it."""
    diagnose: bool = False
    """Also test the blocks removed, and with the mean sums or those of other samples; of videos, one view each."""


def evaluate(arguments: Sequence[str]) -> None:
    """Test trained networks, or a recipe's start weights: cgnl evaluate CHECKPOINT ... [--data.root FOLDER] ..."""
    count = next((place for place, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    names, options = arguments[:count], arguments[count:]
    if count < 2:
        _print_evaluation(*_test(arguments))
        return
    if recipes := [name for name in names if names_recipe(name)]:
        raise ValueError(f"to test several networks, give their checkpoints: {recipes[0]} is a recipe")
    from cgnl.tasks import task_of
    from cgnl.training.processes import is_first_process

    results = []
    # all of them first: a mistake in the last shows before the first is tested
    tests = [_test([name, *options], str(k)) for k, name in enumerate(names, start=1)]
    if len({task_of(trained.recipe).scores for trained, *_ in tests}) > 1:
        raise ValueError("networks that are tested together must all classify or all detect")
    missing = _missing_folds(names, tests)
    for name, test in zip(names, tests, strict=True):
        if is_first_process():
            print(name)
        results.append(_print_evaluation(*test, stay=test is not tests[-1]))
    if not is_first_process():
        return
    if missing is not None:
        _print_folds(results, missing, *tests[0][:2])
        return
    means = {name: sum(result.scores[name] for result in results) / count for name in results[0].scores}
    print(f"mean of {count}: {', '.join(f'{name} {percent(mean)}' for name, mean in means.items())}")


def _missing_folds(names: Sequence[str], tests: Sequence[tuple[Any, Any, Path]]) -> list[int] | None:
    """Return the folds that no network is tested on; None unless every network is tested on the fold that it left out.

    Raises ValueError where two are tested on the same fold, or on folds of different divisions or data.
    """
    from cgnl.tasks import task_of

    # which network holds out a fold or a sample
    folds: dict[int, str] = {}
    samples: dict[Path, str] = {}
    divisions: dict[str, str] = {}
    for name, (trained, options, _) in zip(names, tests, strict=True):
        config = options.data
        data = task_of(trained.recipe).make_data(config, tested=options.split)
        if not data.holds_fold_out:
            return None
        divisions.setdefault(f"data.num_folds {config.num_folds} with data.val_seed {config.val_seed}", name)
        if len(divisions) > 1:
            words = ", ".join(f"{of} has {division}" for division, of in divisions.items())
            raise ValueError(f"folds of different divisions cannot be tested together: {words}")
        if config.held_out_fold in folds:
            raise ValueError(
                f"{folds[config.held_out_fold]} and {name} hold out the same fold, {config.held_out_fold} of "
                f"{config.num_folds}: give each fold once"
            )
        folds[config.held_out_fold] = name
        held_out = [sample.path for sample in data.tested_samples.samples]
        if twice := next((path for path in held_out if path in samples), None):
            raise ValueError(f"{samples[twice]} and {name} both hold out {twice}: they are no folds of the same data")
        samples |= dict.fromkeys(held_out, name)
    return [number for number in range(1, config.num_folds + 1) if number not in folds]


def _print_folds(results: Sequence[Any], missing: Sequence[int], trained: Any, options: Any) -> None:
    """Print means and standard deviations over folds, and the result over the samples of all of them."""
    from cgnl.tasks import task_of

    words = []
    for name in results[0].scores:
        values = [result.scores[name] for result in results]
        # an average precision of no object is not a number
        deviation = math.nan if any(map(math.isnan, values)) else statistics.stdev(values)
        words.append(f"{name} {decimal(statistics.fmean(values))} ± {decimal(deviation)} %")
    print(f"mean and standard deviation of {len(results)} folds: {', '.join(words)}")
    if missing:
        print(f"not tested: fold{'s' * (len(missing) > 1)} {', '.join(map(str, missing))} of {options.data.num_folds}")
    pooled = results[0].pooled(results[1:])
    if pooled is None:
        return
    print("their samples together, each tested by the network that was not trained on it:")
    *lines, written = pooled.lines(task_of(trained.recipe).tested(options.data), options.out or Path())
    if options.out is None:
        written = "--out FOLDER writes tables of them"
    else:
        pooled.write(options.out)
    print("\n".join([*lines, written]))


def _test(arguments: Sequence[str], part: str = "") -> tuple[Any, Any, Path]:
    """Return a network, the options of its test, and the folder for tables.

    The folder is `part` of the one that is given.
    """
    trained = None
    if arguments and not arguments[0].startswith("-") and not names_recipe(arguments[0]):
        from cgnl.tasks import load_trained
        from cgnl.training.trained import find_checkpoint

        trained, rest = load_trained(arguments[0]), list(arguments[1:])
        name, recipe = trained.name, dataclasses.replace(trained.recipe, trainer=_here(trained.recipe.trainer))
        out = find_checkpoint(arguments[0]).parent / "evaluation"
    else:
        name, recipe, rest = take_recipe("evaluate", arguments)
        out = Path("runs") / Path(arguments[0]).stem / "evaluation"
    options = parse_fields(f"evaluate {arguments[0]}", TestOptions, recipe, rest)
    if trained is None:
        from cgnl.tasks import from_start_weights, task_of

        start = dataclasses.replace(recipe, **parts_of(options))
        data = task_of(start).make_data(options.data, tested=options.split)
        trained = from_start_weights(start, name, data.classes, len(data.named_classes))
    elif (options.network, options.block) != (recipe.network, recipe.block):
        trained = _tested_as(trained, options.network, options.block)
    return trained, options, options.out / part if options.out else out


def _tested_as(trained: Any, network: NetworkConfig | DetectionNetworkConfig, block: BlockOptions) -> Any:
    """Return the network with other options for tests; options that go with its weights cannot change."""
    from cgnl.tasks import task_of

    options = fields_for_tests(network)
    if (dataclasses.replace(trained.recipe.network, **options), trained.recipe.block) != (network, block):
        names = ", ".join(f"network.{name}" for name in options)
        raise ValueError(
            "the network options come from the checkpoint and cannot be changed" + f", except {names}" * bool(names)
        )
    task_of(trained.recipe).set_test_options(trained.network, options)
    return dataclasses.replace(trained, recipe=dataclasses.replace(trained.recipe, network=network))


def _here(config: TrainerConfig) -> TrainerConfig:
    """Return one device of this machine, wherever the network was trained."""
    return dataclasses.replace(config, devices=1, nodes=1, accelerator="auto", sync_batch_norm=False)


def _print_evaluation(trained: Any, options: Any, out: Path, *, stay: bool = False) -> Any:
    """Test a network, print what came out, and return it."""
    from cgnl.data.lists import SPLIT_WORDS
    from cgnl.tasks import diagnose, evaluate, task_of
    from cgnl.training.processes import is_first_process

    data, split = options.data, options.split
    result = evaluate(trained, data, split=split, trainer=options.trainer, out=out, stay=stay)
    if is_first_process():
        print("\n".join(result.lines(task_of(trained.recipe).tested(data), out)))
        if result.split != split:
            fold = f": fold {data.held_out_fold} of {data.num_folds} was tested" if data.num_folds is not None else ""
            print(f"there is no {SPLIT_WORDS[split]} split{fold}")
        if options.diagnose:
            print("\n".join(starmap(_diagnosis_line, diagnose(trained, data, split=split).items())))
    return result


def _diagnosis_line(blocks: str, found: Mapping[str, Any]) -> str:
    scores = {"removed": "removed", "mean_s": "with s set to its mean", "shuffled_s": "with s shuffled"}
    parts = [f"{found[name]:.2f} % {words}" for name, words in scores.items() if found[name] is not None]
    numbers = {"s_cv": "cv of s", "s_positive": "share of s above 0", "branch_over_x": "branch over x"}
    parts += [f"{words} {found[name]:.2f}" for name, words in numbers.items() if found[name] is not None]
    return f"{blocks}: top-1 {found['as_is']:.2f} %, {', '.join(parts)}"
