"""Trained networks, and what a checkpoint of a run says about itself. Nothing here needs Lightning."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from cgnl.data.decoding import BadFileError
from cgnl.networks.checkpoints import CheckpointError, check_finite, mismatches
from cgnl.settings.image import Recipe

FORMAT = 2
"""Version of the ``cgnl`` entry in our checkpoints; networks of version 1, which knew images only, are used as well."""


NOT_FINITE = "gets an output from the network that is not finite (NaN or infinity)"
"""What is wrong with a file, as the rest of a sentence that begins with its path."""


@dataclass(frozen=True)
class TrainedNetwork:
    """A network from a checkpoint with all that is needed to use it.

    Attributes:
        network: The network in evaluation mode.
        recipe: The recipe that it was trained with.
        name: The name of that recipe.
        classes: Names of the outputs: the classes in their order, then outputs that are no class.
        mean: Mean of the input normalisation (of each channel, images in 0..1).
        std: Standard deviation of the input normalisation.
        epoch: Finished epochs.
        step: Optimizer steps.
        num_classes: Number of classes among the outputs; None in checkpoints that do not say it.
        interpolation: Filter that images are resized with; None for that of the network's weights.
        files: Fingerprints of the parts of the data that it was trained with; None where they are not known.
    """

    network: nn.Module
    recipe: Recipe
    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    epoch: int
    step: int
    num_classes: int | None = None
    interpolation: str | None = None
    files: Mapping[str, torch.Tensor] | None = None

    def digest(self) -> str:
        """Return a short name of the weights: networks with the same one give the same outputs."""
        digest = hashlib.blake2b(digest_size=8)
        for name, tensor in self.network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


@contextmanager
def refusing_outputs_not_finite(detector: nn.Module, path: Path) -> Iterator[None]:
    """Raise BadFileError where a part of a detector gives values that are not finite: it would leave such boxes out."""

    def check(module: nn.Module, arguments: Any, output: Any) -> None:
        if not all(value.isfinite().all() for value in tree_leaves(output) if isinstance(value, torch.Tensor)):
            raise BadFileError(path, NOT_FINITE)

    parts = ("backbone", "rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor")
    with ExitStack() as stack:
        for path_of_part, module in detector.named_modules():
            if path_of_part in parts:
                stack.enter_context(module.register_forward_hook(check))
        yield


def default_device() -> torch.device:
    """Return the GPU where there is one (CUDA, or Apple's mps), else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu")


def run_entry(checkpoint: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """Return what ``cgnl train`` has put into a checkpoint; CheckpointError for that of another program or version."""
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
    """Load a state dict whose keys and shapes must all fit, or list those that do not; the weights must be finite."""
    wrong = mismatches(state, network.state_dict())
    if wrong:
        raise CheckpointError(f"{path} does not fit its recipe's network; nothing was loaded: {'; '.join(wrong)}.")
    check_finite(network, state, path)
    network.load_state_dict(state)
