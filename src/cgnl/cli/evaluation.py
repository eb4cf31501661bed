"""``cgnl evaluate``."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgnl.cli.arguments import names_recipe, parse_fields, parts_of, take_recipe
from cgnl.settings.detection import DetectionDataConfig, DetectionNetworkConfig
from cgnl.settings.image import DataConfig, NetworkConfig
from cgnl.settings.training import TrainerConfig
from cgnl.settings.video import VideoDataConfig

AnyDataConfig = DataConfig | DetectionDataConfig


@dataclass(frozen=True)
class TestOptions:
    """What `cgnl evaluate` takes besides a recipe's fields."""

    out: Path | None = None
    """Folder for the tables (predictions.csv or COCO's result files, per_class.csv, ...); by default evaluation/ in the
    run's folder. Of several networks each has a folder in it: 1, 2, ..."""


def evaluate(arguments: Sequence[str]) -> None:
    """Test trained networks, or a recipe's start weights: cgnl evaluate CHECKPOINT ... [--data.root FOLDER] ..."""
    count = next((place for place, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    names, options = arguments[:count], arguments[count:]
    if count < 2:
        _print_evaluation(*_test(arguments))
        return
    if recipes := [name for name in names if names_recipe(name)]:
        raise ValueError(f"several networks are tested by their checkpoints, and {recipes[0]} is a recipe")
    from cgnl.training.processes import is_first_process

    results = []
    # all of them first: a mistake in the last shows before the first is tested
    tests = [_test([name, *options], str(k)) for k, name in enumerate(names, start=1)]
    if len({isinstance(data, DetectionDataConfig) for _, data, _, _ in tests}) > 1:
        raise ValueError("several networks are tested together where all classify or all detect")
    for name, test in zip(names, tests, strict=True):
        if is_first_process():
            print(name)
        results.append(_print_evaluation(*test, stay=test is not tests[-1]))
    if is_first_process():
        means = {name: sum(scores[name] for scores in results) / count for name in results[0]}
        print(f"mean of {count}: {', '.join(f'{name} {mean:.2f} %' for name, mean in means.items())}")


def _test(arguments: Sequence[str], part: str = "") -> tuple[Any, AnyDataConfig, TrainerConfig, Path]:
    """A network, what to test it on and how, and the folder for tables: `part` of the one that is given."""
    trained = None
    if arguments and not arguments[0].startswith("-") and not names_recipe(arguments[0]):
        from cgnl.training.checkpoint import find_checkpoint, load_trained

        trained, rest = load_trained(arguments[0]), list(arguments[1:])
        name, recipe = trained.name, dataclasses.replace(trained.recipe, trainer=_here(trained.recipe.trainer))
        out = find_checkpoint(arguments[0]).parent / "evaluation"
    else:
        name, recipe, rest = take_recipe("evaluate", arguments)
        out = Path("runs") / Path(arguments[0]).stem / "evaluation"
    options = parse_fields(f"evaluate {arguments[0]}", TestOptions, recipe, rest)
    if trained is None:
        from cgnl.training.checkpoint import from_start_weights
        from cgnl.training.data import make_data

        start = dataclasses.replace(recipe, **parts_of(options))
        data = make_data(options.data)
        trained = from_start_weights(start, name, data.classes, len(data.named_classes))
    elif options.network != recipe.network:
        trained = _tested_as(trained, options.network)
    return trained, options.data, options.trainer, options.out / part if options.out else out


def _tested_as(trained: Any, network: NetworkConfig | DetectionNetworkConfig) -> Any:
    """The network with another way to test it; what has weights cannot be changed."""
    names = {"video": ("head",), "detection": ("proposals", "detections", "score_threshold")}
    free = {name: getattr(network, name) for name in names.get(trained.recipe.task, ())}
    if dataclasses.replace(trained.recipe.network, **free) != network:
        options = [f"network.{name}" for name in free]
        raise ValueError(
            "network options are those of the checkpoint and cannot be changed"
            + f", except {', '.join(options)}" * bool(options)
        )
    if isinstance(network, DetectionNetworkConfig):
        from cgnl.networks.detection import set_test_limits

        set_test_limits(trained.network, **free)
    else:
        trained.network.head = free["head"]
    return dataclasses.replace(trained, recipe=dataclasses.replace(trained.recipe, network=network))


def _here(config: TrainerConfig) -> TrainerConfig:
    """One device of this machine, wherever the network was trained."""
    return dataclasses.replace(config, devices=1, nodes=1, accelerator="auto", sync_batch_norm=False)


def _print_evaluation(
    trained: Any, data: AnyDataConfig, trainer: TrainerConfig, out: Path, *, stay: bool = False
) -> dict[str, float]:
    """Test a network, print what came out, and return its scores (%) by name."""
    test = _print_detection if isinstance(data, DetectionDataConfig) else _print_classification
    return test(trained, data, trainer, out, stay)


def _print_classification(trained: Any, data: Any, trainer: TrainerConfig, out: Path, stay: bool) -> dict[str, float]:
    from cgnl.training.evaluation import evaluate
    from cgnl.training.processes import is_first_process

    result = evaluate(trained, data, trainer=trainer, out=out, stay=stay)
    scores = {"top-1": result.top1, "top-5": result.top5}
    if not is_first_process():
        return scores
    noun = "images"
    if isinstance(data, VideoDataConfig):
        noun = f"videos, {data.test_clips} clips x {data.test_crops} crops"
    intervals = result.top1_interval, result.top5_interval
    for (name, value), (low, high) in zip(scores.items(), intervals, strict=True):
        print(f"{name} {value:.2f} %  (95 % interval {low:.2f} to {high:.2f} %, {result.count} {noun})")
    _print_troubles(result.troubles, out)
    for true, predicted, times in result.confused[:5]:
        print(f"{times:5} x {true} taken for {predicted}")
    print(f"written: {out / 'predictions.csv'}, per_class.csv, confusions.csv")
    return scores


def _print_detection(trained: Any, data: Any, trainer: TrainerConfig, out: Path, stay: bool) -> dict[str, float]:
    from cgnl.training.detection_evaluation import evaluate_detection
    from cgnl.training.processes import is_first_process

    result = evaluate_detection(trained, data, trainer=trainer, out=out, stay=stay)
    scores = {"box AP": result.box["AP"], "mask AP": result.mask["AP"]}
    if not is_first_process():
        return scores
    measures = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    print("      " + "".join(f"{measure:>8}" for measure in measures) + f"  (%, {result.count} images)")
    for kind in ("box", "mask"):
        print(f"{kind:6}" + "".join(f"{getattr(result, kind)[measure]:8.2f}" for measure in measures))
    _print_troubles(result.troubles, out)
    print(f"written: {out / 'box_results.json'}, mask_results.json, measures.json, per_class.csv")
    return scores


def _print_troubles(troubles: Sequence[str], out: Path) -> None:
    if troubles:
        print(f"troubles: {', '.join(troubles)} (lists are in {out})")
