"""Start weights: by a library's name for them or from a file, checked key by key, into networks with blocks."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from cgnl.insertion import BLOCK_NAME
from cgnl.networks.checkpoints import (
    CheckpointError,
    block_settings,
    check_finite,
    from_released,
    load_checkpoint_file,
    mismatches,
)

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

_logger = logging.getLogger(__name__)

Weights: TypeAlias = "str | os.PathLike[str] | WeightsEnum | None"


class Checkpoint(NamedTuple):
    """Tensors under our names, where they come from (for messages), and whether torchvision names them."""

    state_dict: dict[str, Tensor]
    source: str
    by_name: bool


def read_weights(enum: type["WeightsEnum"], weights: Weights, network: str) -> Checkpoint | None:
    """Read weights by torchvision's name for them ("default" for the newest), from a file, or None.

    Raises ValueError where there is neither such a name nor such a file, CheckpointError where they cannot be had.
    """
    if weights is None:
        return None
    if isinstance(weights, (str, os.PathLike)):
        if (member := named_weights(enum, weights)) is not None:
            weights = member
        elif is_file(weights):
            return Checkpoint(from_released(load_checkpoint_file(weights)), str(weights), by_name=False)
    if not isinstance(weights, enum):
        raise ValueError(f"weights ({weights}) must be a file or one of {', '.join(enum.__members__)} for {network}")
    return Checkpoint(_download(weights), str(weights), by_name=True)


def named_weights(enum: "type[WeightsEnum]", weights: Weights) -> "WeightsEnum | None":
    """Return the member of torchvision's enum that a name means, "default" among them; None for other weights."""
    name = "DEFAULT" if weights == "default" else str(weights).removeprefix(f"{enum.__name__}.")
    return enum[name] if name in enum.__members__ else None


def is_file(weights: Weights) -> bool:
    """Return whether weights are a file, or look like one that is missing, and no name."""
    return isinstance(weights, (str, os.PathLike)) and bool(Path(weights).suffix or Path(weights).exists())


def _download(weights: "WeightsEnum") -> dict[str, Tensor]:
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # urllib, SSL, the hash check, a full disk and a damaged cache all have their own
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"Cannot get the weights {weights} from {weights.url} into {folder}: {reason}. "
            "Without a connection, put the file into that folder, or give the path of a file as weights."
        ) from error


def num_classes_of(checkpoint: Checkpoint) -> int:
    """Return the number of classes K of a ResNet's weights."""
    classifier = checkpoint.state_dict.get("fc.weight")
    if classifier is None or classifier.ndim != 2:
        raise CheckpointError(f"Checkpoint {checkpoint.source} holds no ResNet: fc.weight is missing or not a matrix.")
    return classifier.shape[0]


def load_weights(network: nn.Module, checkpoint: Checkpoint, new_classifier: bool) -> None:
    """Load weights into a ResNet with blocks, in place, an image network's blocks also into a video network's.

    Named weights of other classes get a new classifier in any case. Raises CheckpointError with every key that does not
    fit.
    """
    state_dict, source, by_name = checkpoint
    expected = network.state_dict()
    classifier = network.get_submodule("fc")
    assert isinstance(classifier, nn.Linear)
    if new_classifier or (by_name and classifier.out_features != num_classes_of(checkpoint)):
        # As in the released code. Without weights PyTorch's own start is kept: these logits are too large
        # for features that are not trained.
        nn.init.kaiming_normal_(classifier.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(classifier.bias)
        state_dict = {**state_dict, "fc.weight": expected["fc.weight"], "fc.bias": expected["fc.bias"]}
    load_checked(network, state_dict, source, classifier=("fc.",))


def load_checked(network: nn.Module, state_dict: dict[str, Tensor], source: str, classifier: tuple[str, ...]) -> None:
    """Load a state dict of which every key fits, in place; one without blocks leaves the network's blocks as they are.

    The counters of batches may be missing, and those of norms that are frozen in the network fall away. ``source`` and
    the beginnings of the classifier's names, ``classifier``, are for messages. Raises CheckpointError with every key
    that does not fit, or with weights that are not finite.
    """
    expected = network.state_dict()
    in_blocks = {key for key in expected if f".{BLOCK_NAME}." in key}
    if in_blocks and not any(f".{BLOCK_NAME}." in key for key in state_dict):
        _logger.info("%s has no blocks: the new ones start as the identity", source)
        state_dict = {**state_dict, **{key: expected[key] for key in in_blocks}}
    state_dict = {
        key: value[:, :, None] if key in in_blocks and (value.ndim, expected[key].ndim) == (4, 5) else value
        for key, value in state_dict.items()
        if key in expected or not _counts_batches_of(key, expected)
    }
    wrong = mismatches(state_dict, expected)
    if wrong:
        hint = ""
        if all(phrase.startswith(classifier) for phrase in wrong):
            hint = " Only the classifier differs: new_classifier=True (--network.new-classifier) starts a new one."
        elif any(f".{BLOCK_NAME}." in phrase for phrase in wrong):
            found = ", ".join(f"{key}={value!r}" for key, value in block_settings(state_dict).items())
            # of other blocks than those with a shell nothing is known
            hint = "" if found == "num_blocks=0" else f" The blocks in the file: {found}."
        raise CheckpointError(f"Checkpoint {source} does not fit the network: {'; '.join(wrong)}.{hint}")
    # Nothing but the counters of batches can be missing here, and those keep their zeros.
    check_finite(network, state_dict, source)
    network.load_state_dict(state_dict, strict=False)


def _counts_batches_of(key: str, expected: Mapping[str, Tensor]) -> bool:
    """Whether a key is the counter of a norm that is among the expected."""
    return key.endswith(".num_batches_tracked") and f"{key.removesuffix('num_batches_tracked')}running_var" in expected
