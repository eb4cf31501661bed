"""The ``cgnl`` command: one typed function per command; heavy imports happen inside them.

A user's mistake ends in one plain sentence and exit code 2; a traceback is for bugs.
"""

import dataclasses
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn

try:
    import tyro
    from tyro.conf import Positional
except ImportError:
    sys.exit("cgnl: the command line needs the extra 'train': pip install 'cgnl[train]'")

import cgnl
from cgnl.cli.arguments import check_addresses, parse_fields, parts_of, take_recipe, take_trust
from cgnl.cli.benchmark import benchmark
from cgnl.cli.comparison import compare
from cgnl.cli.conversion import convert
from cgnl.cli.embedding import embed
from cgnl.cli.evaluation import evaluate
from cgnl.cli.explanation import explain
from cgnl.cli.options import (
    CheckedFormat,
    Folder,
    OptionalFile,
    OptionalFolder,
    OptionalInt,
    OptionalPath,
    OptionalText,
)
from cgnl.cli.prediction import predict
from cgnl.settings.image import Recipe
from cgnl.settings.trust import trusting
from cgnl.settings.words import percent


@dataclass(frozen=True)
class RunOptions:
    """The options of `cgnl train` besides a recipe's fields."""

    run: OptionalFolder = None
    """Folder for checkpoints, logs and lists; by default runs/ and the recipe's name."""
    resume: bool = False
    """Continue from the run's last.ckpt, or from the beginning if there is none yet."""
    smoke: bool = False
    """Try the recipe in seconds on a CPU: drawn data in the run folder, and fewer pixels, samples and steps."""


def train(arguments: Sequence[str]) -> None:
    """Train a recipe's network: cgnl train RECIPE [--data.root FOLDER] [--run FOLDER] [--resume] ..."""
    name, recipe, rest = take_recipe("train", arguments)
    options = parse_fields(f"train {name}", RunOptions, recipe, rest)
    recipe = dataclasses.replace(recipe, **parts_of(options))
    given = Path(arguments[0])
    run = options.run or (given if given.is_dir() else Path("runs") / given.stem)
    from cgnl.tasks import train
    from cgnl.training.processes import TrainingStopped, is_first_process

    if options.smoke:
        recipe = _smoke(recipe, run)

    try:
        result = train(recipe, run, name=name, resume=options.resume)
    except TrainingStopped as stopped:
        print(f"cgnl: {stopped}; to continue, repeat the command with --resume", file=sys.stderr)
        sys.exit(128 + stopped.signal_number)
    if not is_first_process():
        return
    if not result.scores:
        print(f"the run was already complete; its last checkpoint is {result.last}")
        return
    print(
        f"last epoch: {', '.join(f'{name} {percent(value)}' for name, value in result.scores.items())}  {result.last}"
    )
    # an average precision is undefined where the test images hold no object
    if result.best_score is not None:
        print(
            f"best epoch (chosen on the {result.chosen_on}): {next(iter(result.scores))} {result.best_score:.2f} %  "
            f"{result.best}"
        )


def _smoke(recipe: Recipe, run: Path) -> Recipe:
    from cgnl.tasks import smoke, task_of
    from cgnl.training.processes import is_first_process

    task = task_of(recipe)
    drawn = run / task.drawn
    if is_first_process() and not drawn.exists():
        task.draw(drawn)
    return smoke(recipe, drawn)


def recipes(smoke: bool = False) -> None:
    """List the recipes by table of the paper, with accuracy, parameters, multiplications and cost.

    Args:
        smoke: List the commands that run the recipes' smoke variants instead.
    """
    from cgnl.cli.listing import list_recipes

    list_recipes(smoke=smoke)


def demo(
    out: OptionalFolder = None, video: bool = False, detection: bool = False, seed: int = 0, smallest: bool = False
) -> None:
    """Draw data, train a network on it with and without a CGNL block, and write a report.

    Args:
        out: Folder for the data, the runs and report.html; by default demo, demo-video or demo-detection.
        video: Classify drawn actions in videos instead of drawn birds.
        detection: Detect drawn birds in flocks instead of classifying single ones.
        seed: Seed of the drawing and of the training.
        smallest: Only check that all parts work, in seconds; the accuracies mean nothing.
    """
    from cgnl.tasks import task_named

    if video and detection:
        raise ValueError("--video and --detection are two demos: choose one")
    name = "video" if video else "detection" if detection else "image"
    folder = out or Path("demo" if name == "image" else f"demo-{name}")
    import_module(f"cgnl.cli.demo.{task_named(name).drawn}").run(folder, seed=seed, smallest=smallest)


def toy_birds(
    out: Positional[Folder],
    num_species: int = 20,
    train_images: int = 40,
    test_images: int = 20,
    size: int = 160,
    seed: int = 0,
    told_by: Literal["all", "part", "relation"] = "all",
) -> None:
    """Draw a data set of birds in the layout of CUB-200-2011.

    Args:
        out: Folder to write.
        num_species: Number of species (classes).
        train_images: Training images of each species.
        test_images: Test images of each species.
        size: Height and width of the images (pixels).
        seed: Seed of the drawing; the same seed gives the same bytes.
        told_by: Keep only the species that differ in one part, or only those that differ in the relation of two parts.
    """
    from cgnl.toy.birds import draw_birds

    images = {"train_images": train_images, "test_images": test_images}
    drawn = draw_birds(out, num_species=num_species, **images, size=size, seed=seed, told_by=told_by)
    print(f"{out}: {drawn} species, {drawn * train_images} training and {drawn * test_images} test images")


def toy_actions(
    out: Positional[Folder],
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
    from cgnl.toy.actions import draw_actions

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


def toy_flock(
    out: Positional[Folder],
    num_species: int = 4,
    train_images: int = 200,
    test_images: int = 50,
    size: tuple[int, int] = (192, 144),
    seed: int = 0,
) -> None:
    """Draw scenes with several birds that overlap, with boxes and masks in COCO's layout.

    Args:
        out: Folder to write; an earlier drawn set in it is replaced.
        num_species: Number of species (categories).
        train_images: Training images.
        test_images: Test images.
        size: Width and height of the images (pixels).
        seed: Seed of the drawing; the same seed gives the same bytes.
    """
    from cgnl.toy.flock import draw_flock

    draw_flock(out, num_species=num_species, train_images=train_images, test_images=test_images, size=size, seed=seed)
    print(f"{out}: {num_species} species, {train_images} training and {test_images} test images")


def check(
    root: Positional[Path],
    format: CheckedFormat = "auto",
    num_classes: OptionalInt = None,
    channels: int = 3,
    list_file: OptionalFile = None,
    train_list: OptionalFile = None,
    val_list: OptionalFile = None,
    test_list: OptionalFile = None,
    annotations: OptionalPath = None,
    fold: int = 1,
    follow_links: bool = False,
    frame_pattern: OptionalText = None,
    workers: OptionalInt = None,
    out: OptionalFile = None,
) -> None:
    """Open every file of a data set and list all that is wrong; the exit code is 1 if anything is.

    Args:
        root: Folder of the data set, or the folder that a list file's paths start from; or one image, video, list file
            or COCO json file.
        format: Layout of the data set; auto recognises it as training does.
        num_classes: Number of classes, if it must be just that.
        channels: Number of channels that images are read with, as data.channels in training.
        list_file: List file with lines `path label` (or `folder frames label`), to check alone.
        train_list: List file for training, to check with the others.
        val_list: List file for validation.
        test_list: List file for testing.
        annotations: The lists of a video data set, if they are not in its folder, or a COCO json file.
        fold: Split of UCF101: 1, 2 or 3.
        follow_links: Follow symbolic links that lead out of the folder.
        frame_pattern: Names of the frames in folders of frames, such as img_{:05d}.jpg.
        workers: Number of processes; by default one for each core.
        out: Write all that is wrong to this CSV file.
    """
    from cgnl.data.checking import NothingToCheckError, check_data
    from cgnl.data.decoding import DataError

    lists = {"train": train_list, "val": val_list, "test": test_list}
    try:
        report = check_data(
            root,
            format=format,
            num_classes=num_classes,
            channels=channels,
            list_file=list_file,
            lists={part: file for part, file in lists.items() if file is not None},
            annotations=annotations,
            fold=fold,
            follow_links=follow_links,
            frame_pattern=frame_pattern,
            workers=workers,
            out=out,
        )
    except NothingToCheckError:
        raise
    except DataError as error:
        # the data set is wrong, not the command
        print(f"{error}\n1 finding; no file was opened")
        sys.exit(1)
    print(report)
    if not report.is_good:
        sys.exit(1)


def data(arguments: Sequence[str]) -> None:
    """Draw data sets (toy-birds, toy-actions, toy-flock), or check one (check)."""
    commands: dict[str, Callable[..., Any]] = {
        "toy-birds": toy_birds,
        "toy-actions": toy_actions,
        "toy-flock": toy_flock,
        "check": check,
    }
    tyro.extras.subcommand_cli_from_dict(commands, prog="cgnl data", args=arguments)


COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "embed": embed,
    "explain": explain,
    "compare": compare,
    "data": data,
    "convert": convert,
    "benchmark": benchmark,
    "recipes": recipes,
}
_PARSING_THEMSELVES = (train, evaluate, compare, data, benchmark)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: What stands behind ``cgnl``; by default that of this process.
    """
    for stream in (sys.stdout, sys.stderr):
        # names of files that the terminal's encoding lacks end no command
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments, trusted = take_trust(sys.argv[1:] if arguments is None else arguments)
        check_addresses(arguments)
        with trusting(*trusted):
            _run(arguments)
    except BrokenPipeError:
        # the reader of the output, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except _stops() as error:
        number = getattr(error, "signal_number", signal.SIGINT)
        print("cgnl: stopped", file=sys.stderr)
        sys.exit(128 + number)
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        _fail(error)


def _run(arguments: list[str]) -> None:
    command = COMMANDS.get(arguments[0]) if arguments else None
    if arguments == ["--version"]:
        print(cgnl.__version__)
    elif command is None:
        _usage(arguments)
    elif command in _PARSING_THEMSELVES:
        command(arguments[1:])
    else:
        tyro.cli(command, prog=f"cgnl {arguments[0]}", args=arguments[1:])


def _stops() -> tuple[type[BaseException], ...]:
    """Return what stops a command: Ctrl-C, and a signal during training, once that is imported."""
    processes = sys.modules.get("cgnl.training.processes")
    return (KeyboardInterrupt, processes.TrainingStopped) if processes else (KeyboardInterrupt,)


def _usage(arguments: Sequence[str]) -> NoReturn:
    asked = not arguments or arguments[0] in ("-h", "--help")
    if not asked:
        print(f"cgnl: there is no command {arguments[0]!r}\n", file=sys.stderr)
    stream = sys.stdout if asked else sys.stderr
    print("usage: cgnl COMMAND ...\n\nCompact generalized non-local networks.\n", file=stream)
    for name, function in COMMANDS.items():
        print(f"  {name:9} {(function.__doc__ or '').splitlines()[0]}", file=stream)
    print("\nOptions of a command: cgnl COMMAND --help", file=stream)
    print("--trust PACKAGE lets a command run blocks and networks from your own package.", file=stream)
    sys.exit(0 if asked else 2)


def _fail(error: Exception) -> NoReturn:
    """End with one sentence where the user can mend it; re-raise what is a bug of ours."""
    from cgnl.data.shortage import is_disk_full, lacks_memory

    ours = _innermost_module(error.__traceback__).startswith("cgnl")
    if isinstance(error, OSError) and error.filename is not None:
        message = f"{error.filename}: {error.strerror}"
    elif (isinstance(error, ValueError) and ours) or (isinstance(error, ImportError) and "cgnl[" in str(error)):
        message = str(error)
    elif is_disk_full(error):
        message = f"a file could not be written: {getattr(error, 'strerror', error)}"
    elif lacks_memory(error):
        message = f"memory ran out: {str(error).strip().splitlines()[-1] if str(error) else type(error).__name__}"
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
