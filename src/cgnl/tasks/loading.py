"""Networks of recipes: built, loaded from a run, or started from weights."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from torch import nn
from torchvision.transforms import InterpolationMode

from cgnl.networks.checkpoints import CheckpointError, read_checkpoint_file
from cgnl.settings.image import Recipe
from cgnl.settings.reading import from_dict
from cgnl.settings.trust import trusting
from cgnl.tasks.registry import task_of
from cgnl.training.trained import TrainedNetwork, find_checkpoint, load_exactly, run_entry


def build_network(recipe: Recipe, num_classes: int) -> nn.Module:
    """Build the network that a recipe describes; ``num_classes`` leaves a detector's background out."""
    task = task_of(recipe)
    return task.build_network(task.sized(recipe), num_classes)


def load_trained(path: str | Path, *, trust: Collection[str] = ()) -> TrainedNetwork:
    """Load the network of a checkpoint that ``cgnl train`` wrote, or the best one of a run folder.

    Args:
        path: A checkpoint, or a run folder (its ``best.ckpt``, or else its ``last.ckpt``).
        trust: Packages of other people whose networks and blocks the checkpoint may name: their code runs.

    Raises:
        ValueError: The checkpoint names a network or block of a package that is not trusted.
        CheckpointError: No such file, a file of another kind, or keys that do not fit the recipe inside.
    """
    path = find_checkpoint(path)
    if path.suffix.lower() == ".onnx":
        raise CheckpointError(f"{path} is an ONNX file, which only cgnl predict uses: name the run that it was made of")
    checkpoint = read_checkpoint_file(path)
    run = run_entry(checkpoint, path)
    recipe = from_dict(run["recipe"], str(path))
    task = task_of(recipe)
    with trusting(*trust):
        network = task.build_network(task.without_start_weights(recipe), len(run["classes"]))
    prefix = "network."
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    load_exactly(network, state, path)
    return TrainedNetwork(
        network.eval(),
        recipe,
        run["name"],
        tuple(run["classes"]),
        tuple(run["mean"]),
        tuple(run["std"]),
        run["epoch"],
        run["step"],
        run.get("num_classes"),
        files=run.get("files"),
    )


def load_exported(path: str | Path) -> TrainedNetwork:
    """Load a network from an ONNX file that ``cgnl convert`` wrote of a run; onnxruntime runs it.

    Its settings are those by which files are read and cut, and otherwise the defaults of its task.

    Raises:
        CheckpointError: No such file, no ONNX file, or one that does not say its classes and how it sees a file.
        ImportError: onnxruntime is not installed.
    """
    from cgnl.networks.exported import ExportedNetwork

    network = ExportedNetwork(Path(path))
    about = network.metadata
    if lacking := [name for name in ("classes", "mean", "std", "interpolation", "settings") if name not in about]:
        raise CheckpointError(
            f"{path} does not say its {', '.join(lacking)}: only files that this version's `cgnl convert` makes of "
            "runs can be used"
        )
    try:
        classes, mean, std, settings = (json.loads(about[name]) for name in ("classes", "mean", "std", "settings"))
        if network.num_outputs not in (None, len(classes)):
            raise ValueError(f"it names {len(classes)} classes and has {network.num_outputs} outputs")
        recipe = from_dict(settings, str(path))
        if not len(mean) == len(std) == recipe.data.channels:
            raise ValueError(f"mean {mean} and std {std} must have {recipe.data.channels} numbers each")
        trained = TrainedNetwork(
            network.eval(),
            recipe,
            about.get("recipe", Path(path).stem),
            tuple(map(str, classes)),
            tuple(map(float, mean)),
            tuple(map(float, std)),
            0,
            0,
            interpolation=InterpolationMode(about["interpolation"]).value,
        )
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise CheckpointError(f"{path} has broken metadata: {error}") from None
    return trained


def from_start_weights(
    recipe: Recipe, name: str, classes: Sequence[str], num_classes: int | None = None
) -> TrainedNetwork:
    """Build a recipe's network with its start weights, those of ``network.weights``, to test it without training.

    ``classes`` names the outputs, the classes first; ``num_classes`` is as :class:`TrainedNetwork` has it. Raises
    CheckpointError where the weights cannot be had, or do not fit, and ValueError where the recipe names none, or
    weights of other classes than the data's.
    """
    if recipe.network.weights is None:
        raise ValueError("network.weights is needed: it names the weights to test")
    task = task_of(recipe)
    recipe = task.sized(recipe)
    task.check_start_weights(recipe, tuple(classes))
    network, inputs = task.build_network(recipe, len(classes)).eval(), task.inputs(recipe)
    return TrainedNetwork(network, recipe, name, tuple(classes), inputs.mean, inputs.std, 0, 0, num_classes)
