"""The ``cgnl`` command: one typed function per command; heavy imports happen inside them.

A user's mistake ends in one plain sentence and exit code 2; a traceback is for bugs.
"""

import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn

try:
    import tyro
except ImportError:
    sys.exit("cgnl: the command line needs the extra 'train': pip install 'cgnl[train]'")

import cgnl
from cgnl.training.processes import TrainingStopped, is_first_process
from cgnl.training.recipe import DataConfig, NetworkConfig, Recipe, TrainerConfig, VideoDataConfig


@dataclass(frozen=True)
class RunOptions:
    """What `cgnl train` takes besides a recipe's fields."""

    run: Path | None = None
    """Folder for checkpoints, logs and lists; by default runs/ and the recipe's name."""
    resume: bool = False
    """Go on from the run's last.ckpt (from the beginning, where there is none yet)."""
    smoke: bool = False
    """See the recipe work in seconds on a CPU, on data drawn into the run folder: fewer pixels, samples and steps."""


@dataclass(frozen=True)
class TestOptions:
    """What `cgnl evaluate` takes besides a recipe's fields."""

    out: Path | None = None
    """Folder for predictions.csv, per_class.csv and confusions.csv; by default evaluation/ in the run's folder.
    Of several networks each has a folder in it: 1, 2, ..."""


def _parse(command: str, more: type, recipe: Recipe, arguments: Sequence[str]) -> Any:
    """Parse options that are the fields of a recipe, whichever its kind, and those of ``more``."""
    about = {"train": "Train a recipe's network", "evaluate": "Test a network"}[command.split()[0]]
    # the fields of a dataclass come from its last base first
    kind = make_dataclass("Options", (), bases=(more, type(recipe)), frozen=True)
    return tyro.cli(
        kind,
        prog=f"cgnl {command}",
        description=f"{about}: every field of the recipe is an option.",
        default=kind(**_parts(recipe)),
        args=arguments,
    )


def train(arguments: Sequence[str]) -> None:
    """Train a recipe's network: cgnl train RECIPE [--data.root FOLDER] [--run FOLDER] [--resume] ..."""
    name, recipe, rest = _recipe_argument("train", arguments)
    options = _parse(f"train {name}", RunOptions, recipe, rest)
    recipe = dataclasses.replace(recipe, **_parts(options))
    given = Path(arguments[0])
    run = options.run or (given if given.is_dir() else Path("runs") / given.stem)
    from cgnl.training.run import train

    if options.smoke:
        recipe = _smoke(recipe, run)

    try:
        result = train(recipe, run, name=name, resume=options.resume)
    except TrainingStopped as stopped:
        print(f"cgnl: {stopped}; the same command with --resume goes on", file=sys.stderr)
        sys.exit(128 + stopped.signal_number)
    if not is_first_process():
        return
    if result.last_top1 is None or result.best_top1 is None:
        print(f"nothing was left to train and test; the last checkpoint is {result.last}")
    else:
        print(f"last epoch: top-1 {result.last_top1:.2f} %, top-5 {result.last_top5:.2f} %  {result.last}")
        print(f"best epoch (chosen on the test set): top-1 {result.best_top1:.2f} %  {result.best}")


def _parts(recipe: Recipe) -> dict[str, Any]:
    return {field.name: getattr(recipe, field.name) for field in fields(Recipe)}


def _smoke(recipe: Recipe, run: Path) -> Recipe:
    from cgnl.recipes import smoke

    drawn = run / ("actions" if recipe.task == "video" else "birds")
    if is_first_process() and not drawn.exists():
        if recipe.task == "video":
            from cgnl.data.toy.actions import draw_actions

            draw_actions(drawn, num_classes=4, groups=3, clips_per_group=1, size=(96, 72))
        else:
            from cgnl.data.toy.birds import draw_birds

            draw_birds(drawn, num_species=4, train_images=2, test_images=1, size=96)
    return smoke(recipe, drawn)


def evaluate(arguments: Sequence[str]) -> None:
    """Test trained networks, or a recipe's start weights: cgnl evaluate CHECKPOINT ... [--data.root FOLDER] ..."""
    count = next((place for place, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    names, options = arguments[:count], arguments[count:]
    if count < 2:
        _print_evaluation(*_test(arguments))
        return
    if recipes := [name for name in names if _names_recipe(name)]:
        raise ValueError(f"several networks are tested by their checkpoints, and {recipes[0]} is a recipe")
    results = []
    # all of them first: a mistake in the last shows before the first is tested
    tests = [_test([name, *options], str(k)) for k, name in enumerate(names, start=1)]
    for name, test in zip(names, tests, strict=True):
        if is_first_process():
            print(name)
        results.append(_print_evaluation(*test, stay=test is not tests[-1]))
    if is_first_process():
        top1, top5 = (sum(getattr(result, top) for result in results) / count for top in ("top1", "top5"))
        print(f"mean of {count}: top-1 {top1:.2f} %, top-5 {top5:.2f} %")


def _test(arguments: Sequence[str], part: str = "") -> tuple[Any, DataConfig, TrainerConfig, Path]:
    """A network, what to test it on and how, and the folder for tables: `part` of the one that is given."""
    from cgnl.training.checkpoint import find_checkpoint, from_start_weights, load_trained

    trained = None
    if arguments and not arguments[0].startswith("-") and not _names_recipe(arguments[0]):
        trained, rest = load_trained(arguments[0]), list(arguments[1:])
        name, recipe = trained.name, dataclasses.replace(trained.recipe, trainer=_here(trained.recipe.trainer))
        out = find_checkpoint(arguments[0]).parent / "evaluation"
    else:
        name, recipe, rest = _recipe_argument("evaluate", arguments)
        out = Path("runs") / Path(arguments[0]).stem / "evaluation"
    options = _parse(f"evaluate {arguments[0]}", TestOptions, recipe, rest)
    if trained is None:
        from cgnl.training.data import make_data

        start = dataclasses.replace(recipe, **_parts(options))
        trained = from_start_weights(start, name, make_data(options.data).classes)
    elif options.network != recipe.network:
        trained = _with_head_of(trained, options.network)
    return trained, options.data, options.trainer, options.out / part if options.out else out


def _with_head_of(trained: Any, network: NetworkConfig) -> Any:
    """The network with another way to test it; what has weights cannot be changed."""
    head = getattr(network, "head", None)
    if head is None or dataclasses.replace(trained.recipe.network, head=head) != network:
        raise ValueError("network options are those of the checkpoint and cannot be changed, except a video's head")
    trained.network.head = head
    return trained


def _here(config: TrainerConfig) -> TrainerConfig:
    """One device of this machine, wherever the network was trained."""
    return dataclasses.replace(config, devices=1, nodes=1, accelerator="auto", sync_batch_norm=False)


def _print_evaluation(trained: Any, data: DataConfig, trainer: TrainerConfig, out: Path, *, stay: bool = False) -> Any:
    from cgnl.training.evaluation import evaluate

    result = evaluate(trained, data, trainer=trainer, out=out, stay=stay)
    if not is_first_process():
        return result
    noun = "images"
    if isinstance(data, VideoDataConfig):
        noun = f"videos, {data.test_clips} clips x {data.test_crops} crops"
    for name, value, (low, high) in (
        ("top-1", result.top1, result.top1_interval),
        ("top-5", result.top5, result.top5_interval),
    ):
        print(f"{name} {value:.2f} %  (95 % interval {low:.2f} to {high:.2f} %, {result.count} {noun})")
    if result.troubles:
        print(f"troubles: {', '.join(result.troubles)} (lists are in {out})")
    for true, predicted, times in result.confused[:5]:
        print(f"{times:5} x {true} taken for {predicted}")
    print(f"written: {out / 'predictions.csv'}, per_class.csv, confusions.csv")
    return result


def predict(
    checkpoint: tyro.conf.Positional[Path],
    files: tyro.conf.Positional[tuple[Path, ...]],
    json: bool = False,
    top: int = 5,
    timeline: Path | None = None,
) -> None:
    """Print the most probable classes of images or videos.

    Args:
        checkpoint: A checkpoint, or a run folder (its best.ckpt, or else last.ckpt).
        files: Image files; for a video network video files, or folders of frames.
        json: Print one JSON object for each file instead of a table.
        top: Number of classes.
        timeline: CSV file for the most probable classes of each second of the videos.
    """
    import json as json_module

    from cgnl.data.decoding import DataError
    from cgnl.training.checkpoint import load_trained
    from cgnl.training.evaluation import predict, predict_timeline, write_timeline

    if not files:
        raise ValueError("files must name at least one image or video")
    if top < 1:
        raise ValueError(f"top ({top}) must be at least 1")
    trained = load_trained(checkpoint)
    if timeline is not None and trained.recipe.task != "video":
        raise ValueError(f"timeline ({timeline}) needs a video network, and {checkpoint} holds an image network")
    bad, seconds = 0, []
    for path in files:
        best = None
        try:
            best = predict(trained, path, top=top)
            if json:
                rows = [{"class": name, "probability": round(p, 6)} for name, p in best]
                print(json_module.dumps({"path": str(path), "top": rows}))
            else:
                print(path)
                for name, p in best:
                    print(f"  {100 * p:6.2f} %  {name}")
            if timeline is not None:
                seconds += [(path, *row) for row in predict_timeline(trained, path, top=top)]
        except DataError as error:
            bad += 1
            print(f"cgnl: {error}", file=sys.stderr)
            if json and best is None:
                print(json_module.dumps({"path": str(path), "error": str(error)}))
    if timeline is not None:
        write_timeline(timeline, seconds)
        print(f"written: {timeline}", file=sys.stderr)
    if bad:
        sys.exit(2)


def convert(
    source: tyro.conf.Positional[Path],
    target: tyro.conf.Positional[Path],
    arch: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = "resnet50",
    block: Literal["none", "nl", "cgnl", "cgnlx", "residual"] = "cgnl",
) -> None:
    """Convert a released checkpoint to safetensors under our names, checking every key.

    Args:
        source: The released checkpoint (.pth, .pth.tar).
        target: The file to write (.safetensors).
        arch: The network in it.
        block: The block in it.
    """
    from cgnl.networks.checkpoints import convert

    settings = convert(source, target, arch, None if block == "none" else block)
    print(f"{target}: " + ", ".join(f"{key}={value}" for key, value in settings.items()))


def recipes(smoke: bool = False) -> None:
    """List the recipes by table of the paper, with accuracy, parameters, multiplications and cost.

    Args:
        smoke: List the command that runs each recipe's smoke variant instead.
    """
    from cgnl.cli.listing import list_recipes

    list_recipes(smoke=smoke)


def demo(
    out: Path | None = None,
    video: bool = False,
    seed: int = 0,
    smallest: bool = False,
) -> None:
    """Draw data, train a network on it with and without a CGNL block, and write a report.

    Args:
        out: Folder for the data, the runs and report.html; by default demo, or demo-video.
        video: Drawn actions and video networks instead of drawn birds and image networks.
        seed: Seed of the drawing and of the training.
        smallest: A run of seconds that only shows that all parts work; its accuracies mean nothing.
    """
    from cgnl.cli.demo import run_demo

    if video:
        from cgnl.cli.demo.actions import actions as subject
    else:
        from cgnl.cli.demo.birds import birds as subject
    folder = out or Path("demo-video" if video else "demo")
    run_demo(subject(smallest=smallest), folder, seed=seed, smallest=smallest)


def toy_birds(
    out: tyro.conf.Positional[Path],
    num_species: int = 20,
    train_images: int = 40,
    test_images: int = 20,
    size: int = 160,
    seed: int = 0,
) -> None:
    """Draw a data set of birds in the layout of CUB-200-2011.

    Args:
        out: Folder to write.
        num_species: Number of species (classes).
        train_images: Training images of each species.
        test_images: Test images of each species.
        size: Height and width of the images (pixels).
        seed: Seed of the drawing; the same seed gives the same bytes.
    """
    from cgnl.data.toy.birds import draw_birds

    draw_birds(out, num_species=num_species, train_images=train_images, test_images=test_images, size=size, seed=seed)
    images = f"{num_species * train_images} training and {num_species * test_images} test images"
    print(f"{out}: {num_species} species, {images}")


def toy_actions(
    out: tyro.conf.Positional[Path],
    num_classes: int = 10,
    groups: int = 25,
    clips_per_group: int = 4,
    size: tuple[int, int] = (160, 120),
    container: Literal["avi", "mp4", "both"] = "avi",
    seed: int = 0,
) -> None:
    """Draw a data set of actions in the layout of UCF101.

    Args:
        out: Folder to write.
        num_classes: Number of classes, which come in pairs.
        groups: Groups of clips that share a figure and a place; training and test lists share no group.
        clips_per_group: Clips of each class in a group.
        size: Width and height of the videos (pixels).
        container: mpeg4 in .avi (as UCF101), h264 in .mp4, or both by turns.
        seed: Seed of the drawing; the same seed gives the same pixels.
    """
    from cgnl.data.toy.actions import draw_actions

    draw_actions(
        out,
        num_classes=num_classes,
        groups=groups,
        clips_per_group=clips_per_group,
        size=size,
        container=container,
        seed=seed,
    )
    print(f"{out}: {num_classes} classes, {num_classes * groups * clips_per_group} videos in {groups} groups")


def check(
    root: tyro.conf.Positional[Path],
    list_file: Path | None = None,
    annotations: Path | None = None,
    fold: int = 1,
    workers: int | None = None,
    out: Path | None = None,
) -> None:
    """Open every file of a data set of images or videos and list what is bad.

    Args:
        root: Folder of the data set, or root of a list file.
        list_file: List file with lines `path label` (or `folder frames label`).
        annotations: Lists of a video data set where they are not in its folder.
        fold: Split of UCF101: 1, 2 or 3.
        workers: Processes; by default one for each core.
        out: CSV file for the bad files.
    """
    from cgnl.data.checking import check_data

    report = check_data(root, list_file=list_file, annotations=annotations, fold=fold, workers=workers, out=out)
    print(report)
    if report.bad:
        sys.exit(1)


def data(arguments: Sequence[str]) -> None:
    """Draw data sets (toy-birds, toy-actions), or check one (check)."""
    commands: dict[str, Callable[..., Any]] = {"toy-birds": toy_birds, "toy-actions": toy_actions, "check": check}
    tyro.extras.subcommand_cli_from_dict(commands, prog="cgnl data", args=arguments)


def _recipe_argument(command: str, arguments: Sequence[str]) -> tuple[str, Recipe, list[str]]:
    """Take the recipe's name, a YAML file or a run folder off the front of the arguments."""
    from cgnl.recipes import RECIPES, load_recipe

    if not arguments or arguments[0].startswith("-"):
        source = "CHECKPOINT ..." if command == "evaluate" else "RECIPE"
        print(f"usage: cgnl {command} {source} [options]\n")
        if command == "evaluate":
            print("CHECKPOINT is a file or a run folder; of several the mean is given, too.")
            print("A RECIPE in its place tests its --network.weights.\n")
        print("RECIPE is one of these names, a YAML file, or a run folder:")
        print("\n".join(f"  {name}" for name in RECIPES))
        print(f"\nOptions of one: cgnl {command} RECIPE --help. The paper's tables: cgnl recipes.")
        sys.exit(0 if arguments and arguments[0] in ("-h", "--help") else 2)
    name, recipe = load_recipe(arguments[0])
    return name, recipe, list(arguments[1:])


def _names_recipe(argument: str) -> bool:
    from cgnl.recipes import RECIPES

    return argument in RECIPES or argument.endswith((".yaml", ".yml"))


COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "data": data,
    "convert": convert,
    "recipes": recipes,
}
_PARSING_THEMSELVES = (train, evaluate, data)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: What stands behind ``cgnl``; by default that of this process.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        command = COMMANDS.get(arguments[0]) if arguments else None
        if arguments == ["--version"]:
            print(cgnl.__version__)
        elif command is None:
            _usage(arguments)
        elif command in _PARSING_THEMSELVES:
            command(arguments[1:])
        else:
            tyro.cli(command, prog=f"cgnl {arguments[0]}", args=arguments[1:])
    except BrokenPipeError:
        # the reader of the output, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (KeyboardInterrupt, TrainingStopped) as error:
        number = error.signal_number if isinstance(error, TrainingStopped) else signal.SIGINT
        print("cgnl: stopped", file=sys.stderr)
        sys.exit(128 + number)
    except (ValueError, OSError, ImportError) as error:
        _fail(error)


def _usage(arguments: Sequence[str]) -> NoReturn:
    asked = not arguments or arguments[0] in ("-h", "--help")
    if not asked:
        print(f"cgnl: no command {arguments[0]!r}\n", file=sys.stderr)
    stream = sys.stdout if asked else sys.stderr
    print("usage: cgnl COMMAND ...\n\nCompact generalized non-local networks.\n", file=stream)
    for name, function in COMMANDS.items():
        print(f"  {name:9} {(function.__doc__ or '').splitlines()[0]}", file=stream)
    print("\nOptions of a command: cgnl COMMAND --help", file=stream)
    sys.exit(0 if asked else 2)


def _fail(error: Exception) -> NoReturn:
    """End with one sentence where the user can mend it; re-raise what is a bug of ours."""
    ours = _innermost_module(error.__traceback__).startswith("cgnl")
    if isinstance(error, OSError) and error.filename is not None:
        message = f"{error.filename}: {error.strerror}"
    elif (isinstance(error, ValueError) and ours) or (isinstance(error, ImportError) and "cgnl[" in str(error)):
        message = str(error)
    else:
        raise error
    print(f"cgnl: {message}", file=sys.stderr)
    sys.exit(2)


def _innermost_module(traceback: TracebackType | None) -> str:
    name = ""
    while traceback is not None:
        name = traceback.tb_frame.f_globals.get("__name__", "")
        traceback = traceback.tb_next
    return name
