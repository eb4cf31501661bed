"""Checkpoints of runs: written whole or not at all, read without running code, complete in themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import nn
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from cgnl.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from cgnl.files import whole_file
from cgnl.networks.checkpoints import CheckpointError, mismatches, read_checkpoint_file
from cgnl.networks.detection import maskrcnn
from cgnl.networks.image import resnet
from cgnl.networks.video import c2d_resnet
from cgnl.settings.detection import DetectionRecipe
from cgnl.settings.image import Recipe
from cgnl.settings.reading import from_dict
from cgnl.settings.video import VideoRecipe

FORMAT = 2
"""Version of the ``cgnl`` entry in our checkpoints; networks of version 1, which knew images only, are used as well."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all.

    A kill or a full disk while saving leaves the previous checkpoint whole. Lightning's own writer goes through the
    system's temporary folder, and its last step is a copy where that is another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``.

        Raises:
            CheckpointError: The file could not be written (a full disk, for example); the previous one is as it was.
        """
        path = Path(path)
        try:
            with whole_file(path, "wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            reason = _system_error(error)
            if reason is None:
                raise
            kept = " The previous checkpoint is untouched." if path.exists() else ""
            raise CheckpointError(f"could not write the checkpoint {path}: {reason.strerror}.{kept}") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; only tensors and plain values are accepted, whatever ``weights_only`` says."""
        return dict(read_checkpoint_file(path))


def _system_error(error: BaseException | None) -> OSError | None:
    # torch.save wraps an OSError while it closes its archive
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


@dataclass(frozen=True)
class TrainedNetwork:
    """A network out of a checkpoint with all that is needed to use it.

    Attributes:
        network: The network in evaluation mode.
        recipe: The recipe that it was trained with.
        name: The name of that recipe.
        classes: Names of the outputs: the classes in their order, then outputs that are no class.
        mean: Mean of the input normalisation (RGB, images in 0..1).
        std: Standard deviation of the input normalisation (RGB).
        epoch: Finished epochs.
        step: Optimizer steps.
        num_classes: Number of classes among the outputs; None in checkpoints that do not say it.
    """

    network: nn.Module
    recipe: Recipe
    name: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    epoch: int
    step: int
    num_classes: int | None = None


def build_network(recipe: Recipe, num_classes: int) -> nn.Module:
    """Build the network that a recipe describes.

    Args:
        recipe: The recipe.
        num_classes: Number of classes, without a detector's background.
    """
    config = recipe.network
    settings = {field.name: getattr(config, field.name) for field in fields(config)}
    if config.weights is None:
        settings["new_classifier"] = False
    if isinstance(recipe, DetectionRecipe):
        # Mask R-CNN resizes the images itself
        return maskrcnn(**settings, size=recipe.data.size, max_size=recipe.data.max_size, num_classes=num_classes + 1)
    build = c2d_resnet if isinstance(recipe, VideoRecipe) else resnet
    return build(**settings, num_classes=num_classes)


def without_start_weights(recipe: Recipe) -> Recipe:
    """Return a recipe whose network starts from nothing: other weights are about to be loaded into it."""
    none: dict[str, Any] = {"weights": None, "new_classifier": False}
    if isinstance(recipe, DetectionRecipe):
        none["backbone_weights"] = None
    return replace(recipe, network=replace(recipe.network, **none))


def load_trained(path: str | Path) -> TrainedNetwork:
    """Load the network of a checkpoint that ``cgnl train`` wrote, or the best one of a run folder.

    Args:
        path: A checkpoint, or a run folder (its ``best.ckpt``, or else its ``last.ckpt``).

    Raises:
        CheckpointError: No such file, a file of another kind, or keys that do not fit the recipe inside.
    """
    path = find_checkpoint(path)
    checkpoint = read_checkpoint_file(path)
    run = run_entry(checkpoint, path)
    recipe = from_dict(run["recipe"], str(path))
    network = build_network(without_start_weights(recipe), len(run["classes"]))
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
    )


def run_entry(checkpoint: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """Return what ``cgnl train`` has put into a checkpoint, or say that it is another's."""
    run = checkpoint.get("cgnl")
    if not isinstance(run, Mapping) or "format" not in run:
        raise CheckpointError(f"{path} is not a checkpoint of `cgnl train` (it has no 'cgnl' entry)")
    if run["format"] not in (1, FORMAT):
        raise CheckpointError(
            f"{path} has a 'cgnl' entry of format {run['format']}; this version of cgnl reads formats 1 to {FORMAT}"
        )
    return run


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint itself, or the one to use in a run folder: ``best.ckpt``, or else ``last.ckpt``."""
    path = Path(path)
    if not path.is_dir():
        return path
    for name in ("best.ckpt", "last.ckpt"):
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{path} holds neither best.ckpt nor last.ckpt")


def load_exactly(network: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Load a state dict of which every key and shape must fit, or list all that do not."""
    wrong = mismatches(state, network.state_dict())
    if wrong:
        raise CheckpointError(f"{path} does not fit its recipe's network; nothing was loaded: {'; '.join(wrong)}.")
    network.load_state_dict(state)


def from_start_weights(
    recipe: Recipe, name: str, classes: Sequence[str], num_classes: int | None = None
) -> TrainedNetwork:
    """Build a recipe's network with its start weights, to test it without training.

    Args:
        recipe: The recipe; ``network.weights`` names the weights.
        name: Name of the recipe.
        classes: Names of the outputs, the classes first.
        num_classes: Number of classes, as :class:`TrainedNetwork` has it.

    Raises:
        CheckpointError: The weights cannot be had, or do not fit.
        ValueError: The recipe names no weights, or weights of other classes than the data's.
    """
    if recipe.network.weights is None:
        raise ValueError("network.weights is needed: the weights to test")
    if isinstance(recipe, DetectionRecipe):
        _check_classes_of_named(recipe.network.weights, classes)
    network = build_network(recipe, len(classes)).eval()
    return TrainedNetwork(network, recipe, name, tuple(classes), IMAGENET_MEAN, IMAGENET_STD, 0, 0, num_classes)


def _check_classes_of_named(weights: str, classes: Sequence[str]) -> None:
    """Refuse data whose labels mean other kinds of objects than the outputs of torchvision's weights do."""
    named = MaskRCNN_ResNet50_FPN_Weights
    if weights.rpartition(".")[2] not in named.__members__ and Path(weights).name != Path(named.COCO_V1.url).name:
        return
    every = named.COCO_V1.meta["categories"][1:]
    names = every if len(classes) == len(every) else [name for name in every if name != "N/A"]
    if list(classes) == names:
        return
    new, gone = ([name for name in ours if name not in other] for ours, other in ((classes, names), (names, classes)))
    lists = [f"{what}: {', '.join(some[:5])}" for what, some in (("not among them", new), ("lacking", gone)) if some]
    raise ValueError(
        f"network.weights {weights} are of COCO's {len(names)} classes, and the data has {len(classes)} others; "
        f"{'; '.join(lists) or 'their order differs'}"
    )
