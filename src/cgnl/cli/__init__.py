"""The ``cgnl`` command: one typed function per command; heavy imports happen inside them.

A user's mistake ends in one plain sentence and exit code 2; a traceback is for bugs.
"""

import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn

try:
    import tyro
except ImportError:
    sys.exit("cgnl: the command line needs the extra 'train': pip install 'cgnl[train]'")

import cgnl
from cgnl.training.processes import TrainingStopped, is_first_process
from cgnl.training.recipe import DataConfig, Recipe, TrainerConfig


@dataclass(frozen=True)
class TrainOptions(Recipe):
    """Train a recipe's network: every field of the recipe is an option."""

    run: Path | None = None
    """Folder for checkpoints, logs and lists; by default runs/ and the recipe's name."""
    resume: bool = False
    """Go on from the run's last.ckpt (from the beginning, where there is none yet)."""
    smoke: bool = False
    """See the recipe work in seconds on a CPU, on birds drawn into the run folder: fewer pixels, images and steps."""


@dataclass(frozen=True)
class EvaluateOptions(Recipe):
    """Test a network: the options are those of its recipe."""

    out: Path | None = None
    """Folder for predictions.csv, per_class.csv and confusions.csv; by default evaluation/ in the run's folder."""


def train(arguments: Sequence[str]) -> None:
    """Train a recipe's network: cgnl train RECIPE [--data.root FOLDER] [--run FOLDER] [--resume] ..."""
    name, recipe, rest = _recipe_argument("train", arguments)
    options = tyro.cli(TrainOptions, prog=f"cgnl train {name}", default=TrainOptions(**_parts(recipe)), args=rest)
    recipe = Recipe(**_parts(options))
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
    from cgnl.data.toy.birds import draw_birds
    from cgnl.recipes import smoke

    birds = run / "birds"
    if is_first_process() and not birds.exists():
        draw_birds(birds, num_species=4, train_images=2, test_images=1, size=96)
    return smoke(recipe, birds)


def evaluate(arguments: Sequence[str]) -> None:
    """Test a trained network, or a recipe's start weights: cgnl evaluate CHECKPOINT [--data.root FOLDER] ..."""
    from cgnl.training.checkpoint import find_checkpoint, from_start_weights, load_trained

    trained = None
    if arguments and not arguments[0].startswith("-") and not _names_recipe(arguments[0]):
        trained, rest = load_trained(arguments[0]), list(arguments[1:])
        name, recipe = trained.name, dataclasses.replace(trained.recipe, trainer=_here(trained.recipe.trainer))
        out = find_checkpoint(arguments[0]).parent / "evaluation"
    else:
        name, recipe, rest = _recipe_argument("evaluate", arguments)
        out = Path("runs") / Path(arguments[0]).stem / "evaluation"
    options = tyro.cli(
        EvaluateOptions, prog=f"cgnl evaluate {arguments[0]}", default=EvaluateOptions(**_parts(recipe)), args=rest
    )
    if trained is None:
        from cgnl.training.data import ImageData

        trained = from_start_weights(Recipe(**_parts(options)), name, ImageData(options.data).classes)
    elif options.network != recipe.network:
        raise ValueError("network options are those of the checkpoint and cannot be changed")
    _print_evaluation(trained, options.data, options.trainer, options.out or out)


def _here(config: TrainerConfig) -> TrainerConfig:
    """One device of this machine, wherever the network was trained."""
    return dataclasses.replace(config, devices=1, nodes=1, accelerator="auto", sync_batch_norm=False)


def _print_evaluation(trained: Any, data: DataConfig, trainer: TrainerConfig, out: Path) -> None:
    from cgnl.training.evaluation import evaluate

    result = evaluate(trained, data, trainer=trainer, out=out)
    if not is_first_process():
        return
    for name, value, (low, high) in (
        ("top-1", result.top1, result.top1_interval),
        ("top-5", result.top5, result.top5_interval),
    ):
        print(f"{name} {value:.2f} %  (95 % interval {low:.2f} to {high:.2f} %, {result.count} images)")
    if result.bad:
        print(f"{result.bad} images could not be read; see {out / 'bad_files.csv'}")
    for true, predicted, times in result.confused[:5]:
        print(f"{times:5} x {true} taken for {predicted}")
    print(f"written: {out / 'predictions.csv'}, per_class.csv, confusions.csv")


def predict(
    checkpoint: tyro.conf.Positional[Path],
    images: tyro.conf.Positional[tuple[Path, ...]],
    json: bool = False,
    top: int = 5,
) -> None:
    """Print the most probable classes of images.

    Args:
        checkpoint: A checkpoint, or a run folder (its best.ckpt, or else last.ckpt).
        images: Image files.
        json: Print one JSON object for each image instead of a table.
        top: Number of classes.
    """
    import json as json_module

    from cgnl.data.decoding import DataError
    from cgnl.training.checkpoint import load_trained
    from cgnl.training.evaluation import predict

    if not images:
        raise ValueError("images must name at least one image file")
    if top < 1:
        raise ValueError(f"top ({top}) must be at least 1")
    trained = load_trained(checkpoint)
    bad = 0
    for path in images:
        try:
            best = predict(trained, path, top=top)
        except DataError as error:
            bad += 1
            print(f"cgnl: {error}", file=sys.stderr)
            continue
        if json:
            rows = [{"class": name, "probability": round(p, 6)} for name, p in best]
            print(json_module.dumps({"path": str(path), "top": rows}))
        else:
            print(path)
            for name, p in best:
                print(f"  {100 * p:6.2f} %  {name}")
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
    out: Path = Path("demo"),
    seed: int = 0,
    smallest: bool = False,
) -> None:
    """Draw birds, train a network on them with and without a CGNL block, and write a report.

    Args:
        out: Folder for the birds, the runs and report.html.
        seed: Seed of the drawing and of the training.
        smallest: A run of seconds that only shows that all parts work; its accuracies mean nothing.
    """
    from cgnl.cli.demo import run_demo

    run_demo(out, seed=seed, smallest=smallest)


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


def check(
    root: tyro.conf.Positional[Path],
    list_file: Path | None = None,
    workers: int | None = None,
    out: Path | None = None,
) -> None:
    """Open every file of an image data set and list what is bad.

    Args:
        root: Folder of the data set, or image root of a list file.
        list_file: List file with lines `path label`.
        workers: Processes; by default one for each core.
        out: CSV file for the bad files.
    """
    from cgnl.data.images import check_images

    report = check_images(root, list_file=list_file, workers=workers, out=out)
    print(report)
    if report.bad:
        sys.exit(1)


def data(arguments: Sequence[str]) -> None:
    """Draw data sets (toy-birds), or check one (check)."""
    tyro.extras.subcommand_cli_from_dict({"toy-birds": toy_birds, "check": check}, prog="cgnl data", args=arguments)


def _recipe_argument(command: str, arguments: Sequence[str]) -> tuple[str, Recipe, list[str]]:
    """Take the recipe's name, a YAML file or a run folder off the front of the arguments."""
    from cgnl.recipes import RECIPES, load_recipe

    if not arguments or arguments[0].startswith("-"):
        source = "CHECKPOINT" if command == "evaluate" else "RECIPE"
        print(f"usage: cgnl {command} {source} [options]\n")
        if command == "evaluate":
            print("CHECKPOINT is a file or a run folder; a RECIPE in its place tests its --network.weights.\n")
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
