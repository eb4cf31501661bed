"""Training, testing and using networks of any task. Each function asks the recipe's task for what is its own."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgnl.data.shortage import reporting_full_disk, reporting_lack_of_memory
from cgnl.insertion import inserted_blocks
from cgnl.networks.cost import NetworkCost
from cgnl.settings.image import Recipe
from cgnl.settings.training import TrainerConfig
from cgnl.tasks.classification import ClassificationTask, most_probable
from cgnl.tasks.registry import task_of
from cgnl.training.trained import TrainedNetwork

if TYPE_CHECKING:
    from cgnl.blocks.diagnosis import Diagnosis
    from cgnl.data.lists import Split
    from cgnl.training.data import Part
    from cgnl.training.run import RunResult


def train(
    recipe: Recipe,
    run: Path,
    *,
    name: str = "recipe",
    resume: bool = False,
    progress: bool = True,
    part: "Part | None" = None,
) -> "RunResult":
    """Train a recipe's network, or go on with a run that was stopped.

    Args:
        recipe: The run's recipe.
        run: Folder for checkpoints, logs and lists; it must be new or empty unless ``resume`` is set.
        name: Name of the recipe.
        resume: Go on from ``run/last.ckpt``; a run that has none yet starts from the beginning.
        progress: Whether to show a progress bar.
        part: Samples to train and test on, as :class:`cgnl.training.data.SampleData` takes them; by default all.

    Returns:
        The checkpoints and scores.

    Raises:
        DataError: Something is wrong with the files.
        ValueError: Something is wrong with the recipe.
        NonFiniteError: Too many steps had a non-finite loss or gradient.
        TrainingStopped: A signal stopped the run; its state is saved.
    """
    from cgnl.training.run import train

    task = task_of(recipe)
    with reporting_lack_of_memory(recipe.data), reporting_full_disk(run):
        return train(task, task.sized(recipe), run, name=name, resume=resume, progress=progress, part=part)


def evaluate(
    trained: TrainedNetwork,
    data: Any,
    *,
    split: "Split" = "test",
    trainer: TrainerConfig | None = None,
    out: Path | None = None,
    stay: bool = False,
) -> Any:
    """Test a network: every sample of a split once, over all processes.

    Args:
        trained: The network, from :func:`cgnl.tasks.load_trained`.
        data: Where the samples are, as a recipe's ``data``; what the network's recipe has unless changed here.
        split: ``test``, or ``val`` for the samples that best.ckpt was chosen on; where there is only one of them,
            either means it.
        trainer: Devices and precision; by default one device (torchrun's processes), the recipe's precision.
        out: Folder for the tables (predictions.csv or COCO's result files, per_class.csv, ...) and the lists of bad
            files, or None.
        stay: Whether the processes stay together, to test another network: a group that ends cannot begin again.

    Returns:
        An :class:`cgnl.training.Evaluation`, or for a detector a :class:`cgnl.training.DetectionEvaluation`.

    Raises:
        DataError: Something is wrong with the data set, or its classes are not the network's.
        ValueError: Another process is writing into ``out``.
    """
    from cgnl.training.processes import is_first_process, locked

    # two tests at once would mix their tables; the first process keeps the folder for all
    kept = locked(out, inside=False) if out is not None and is_first_process() else nullcontext()
    with reporting_lack_of_memory(data), kept:
        return task_of(trained.recipe).evaluate(trained, data, split=split, trainer=trainer, out=out, stay=stay)


def diagnose(
    trained: TrainedNetwork, data: Any, *, split: "Split" = "test", part: "Part | None" = None
) -> "dict[str, Diagnosis]":
    """Test a classifier with its blocks as they are, removed, and with other sums; each test video has one view.

    Args:
        trained: The network; it is moved to the GPU where there is one.
        data: As :func:`evaluate` takes it.
        split: As :func:`evaluate` takes it.
        part: Samples to test on, as :class:`cgnl.training.data.SampleData` takes them; by default all of the
            split.

    Returns:
        As :func:`cgnl.blocks.diagnosis.diagnose`, with the module path that each block follows.

    Raises:
        DataError: Something is wrong with the data set, or its classes are not the network's.
        ValueError: The network does not classify, or has no block.
    """
    task = task_of(trained.recipe)
    if not isinstance(task, ClassificationTask):
        raise ValueError(f"a diagnosis needs a network that classifies, and {trained.name} is {task.words}")
    if not inserted_blocks(trained.network):
        raise ValueError(f"a diagnosis needs a network with blocks, and {trained.name} has none")
    return task.diagnose(trained, data, split=split, part=part)


def predict(trained: TrainedNetwork, path: Path, *, top: int = 5) -> list[tuple[str, float]]:
    """Return the most probable classes of one image or video and their probabilities.

    Those of a video are the mean over its views, ``test_clips`` x ``test_crops`` of the recipe. Damage in it is logged.

    Args:
        trained: The network; it is moved to the GPU where there is one.
        path: The image file, video file, or folder of frames.
        top: Number of classes.

    Raises:
        DataError: The file is no image or video that is opened.
        ValueError: The network does not classify.
    """
    task = task_of(trained.recipe)
    if not isinstance(task, ClassificationTask):
        raise ValueError(f"predict needs a network that classifies, and {trained.name} is {task.words}")
    return most_probable(trained, task.probabilities(trained, path), top)


def predict_timeline(
    trained: TrainedNetwork, path: Path, *, top: int = 5, progress: bool = False
) -> Iterator[tuple[int, list[tuple[str, float]]]]:
    """Give the most probable classes of each second of a video: those of one clip and crop around its middle.

    Args:
        trained: The network; it is moved to the GPU where there is one.
        path: The video file, or folder of frames.
        top: Number of classes.
        progress: Whether to show a progress bar.

    Yields:
        The second, by the video's own clock, and classes with probabilities.

    Raises:
        DataError: The file is no video that is opened, or a folder of frames without ``data.folder_fps``.
        ValueError: The network does not classify videos.
    """
    task: Any = task_of(trained.recipe)
    if "timeline" not in task.prediction_options:
        raise ValueError(f"a timeline needs a video classifier, and {trained.name} is {task.words}")
    yield from task.timeline(trained, path, top, progress=progress)


def smoke(
    recipe: Recipe, root: Path, *, size: int | None = None, batch_size: int | None = None, steps: int = 2
) -> Recipe:
    """Shrink a recipe to seconds on a CPU: only pixels, frames, samples, views, regions and steps change.

    The network, its blocks, the transforms and the schedule are the recipe's own. Start weights are left out, since
    there is nothing to download them for. ``root`` holds a small data set (drawn birds, drawn actions for a video
    recipe, a drawn flock for detection); the input's height and width (of detection the shorter side) are by default 64
    pixels, of detection 96, and the batch is 4 images or clips, of detection 2.
    """
    task = task_of(recipe)
    return task.smoke(task.sized(recipe), root, size=size, batch_size=batch_size, steps=steps)


def recipe_cost(recipe: Recipe) -> NetworkCost:
    """Count the parameters of a recipe's network and its multiplications for one image or clip as in training.

    Without ``data.num_outputs`` and ``data.num_classes`` the classes are those of the data set that the recipe names,
    else ImageNet's 1000. The parameters of a detector are all of them, for COCO's 80 classes and the background; its
    multiplications are those of the backbone with its blocks and neck for an image of 4 : 3, since those of the heads
    depend on the regions that it proposes.

    Args:
        recipe: The recipe; its start weights are not looked at.

    Returns:
        The two counts; see :func:`cgnl.networks.cost.network_cost`.
    """
    task = task_of(recipe)
    return task.cost(task.sized(recipe))
