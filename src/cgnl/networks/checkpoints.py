"""Checkpoints on disk, read weights only, and released names under ours.

A pickle is a program. Every file is therefore read with PyTorch's weights-only reader, which builds tensors
and plain containers and refuses the rest; there is no fall-back.
"""

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cgnl.files import whole_file
from cgnl.insertion import BLOCK_NAME

# Names in the authors' modules and in mmcv's NonLocalNd (whose sub-sampled form wraps phi and g in a
# Sequential), each with the name that our blocks use.
_RELEASED_MODULES = {"t": "theta", "p": "phi", "g": "g", "z": "z", "gn": "norm", "bn": "norm"}
_MMCV_MODULES = {
    "theta.conv": "theta",
    "phi.conv": "phi",
    "phi.0.conv": "phi",
    "g.conv": "g",
    "g.0.conv": "g",
    "conv_out.conv": "z",
    "conv_out.bn": "norm",
    "conv_out.norm": "norm",
    "concat_project.conv": "concat",
}
_STAGE_ELEMENT = re.compile(r"(layer\d+)\.(\d+)\.(.+)")
_REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+)")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, said in one or two plain sentences that name the file."""


def read_checkpoint_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a ``.pth``, ``.pth.tar``, ``.ckpt`` or ``.safetensors`` file onto the CPU, weights only.

    Both PyTorch formats are read, the zip archive, whose checksums are compared, and the older one without. The
    dictionary is a state dict, or a training script's record with one under ``state_dict``. Raises CheckpointError
    where the file does not exist, is damaged, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"Checkpoint {path} does not exist or is not a file.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"Checkpoint {path} holds no state dict: found {type(content).__name__}.")
    return dict(content)


def load_checkpoint_file(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the state dict of a file, also one under the key ``state_dict``; see :func:`read_checkpoint_file`."""
    content = read_checkpoint_file(path)
    if isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not content:
        raise CheckpointError(f"Checkpoint {path} holds no state dict: it is empty.")
    wrong = [str(key) for key, value in content.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if wrong:
        raise CheckpointError(f"Checkpoint {path} holds no state dict: no tensor at {', '.join(wrong)}.")
    return dict(content)


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"Checkpoint {path} is not a readable safetensors file: {error}.") from error


def _read_pickle(path: Path, *, mmap: bool = False) -> Any:
    try:
        if not mmap and (damaged := _damaged_part(path)) is not None:
            raise CheckpointError(
                f"Checkpoint {path} is damaged: the bytes of {damaged} in it do not have the checksum that was stored "
                "with them. Use another copy."
            )
        with warnings.catch_warnings():
            # of pickles that no torch.save wrote; they end in an error of ours
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        refused = _REFUSED_GLOBAL.search(str(error))
        if refused is None:
            raise _unreadable(path) from error
        raise CheckpointError(
            f"Checkpoint {path} is refused: it holds Python objects that are not weights ({refused[1]}), "
            "and loading them would run code from the file."
        ) from error
    except Exception as error:  # bytes of unknown origin make the parsers fail in any way they can
        raise _unreadable(path) from error


def _damaged_part(path: Path) -> str | None:
    """Return the first entry of a PyTorch archive with another checksum than its own; PyTorch does not look at them.

    Archives of ``torch.serialization.set_crc32_options(False)`` hold no checksums, and older files are no archives.
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.testzip() if any(entry.CRC for entry in archive.infolist()) else None


def stored_run(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Return what ``cgnl train`` has put into a file beside the weights, which are not read; {} for other files."""
    path = Path(path)
    if not path.is_file() or not zipfile.is_zipfile(path):
        return {}
    content = _read_pickle(path, mmap=True)
    run = content.get("cgnl") if isinstance(content, Mapping) else None
    return run if isinstance(run, Mapping) else {}


def check_finite(network: nn.Module, state_dict: Mapping[str, Tensor], source: str | os.PathLike[str]) -> None:
    """Raise CheckpointError where a network's weights or norm statistics in a state dict are not finite.

    Other buffers may hold infinities, as masks of attention do. ``source`` is for the message.
    """
    of_norms = ("weight", "bias", "running_mean", "running_var")
    names = [name for name, _ in network.named_parameters()]
    names += [name for name, _ in network.named_buffers() if name.rpartition(".")[2] in of_norms]
    wrong = [name for name in names if name in state_dict and not state_dict[name].isfinite().all()]
    if wrong:
        raise CheckpointError(
            f"Checkpoint {source} cannot be used: {len(wrong)} of its tensors hold values that are not finite (NaN or "
            f"infinity): {', '.join(wrong[:3])}{', ...' * (len(wrong) > 3)}. It is damaged, or its training diverged."
        )


def _unreadable(path: Path) -> CheckpointError:
    return CheckpointError(f"Checkpoint {path} is not a readable PyTorch file: it is cut off, damaged or another kind.")


def from_released(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename a state dict of the authors' released code, or of a block of mmcv's, to our names.

    Blocks alone and whole networks are told apart by their keys. The released ResNets hold a block as one
    more element of a stage's Sequential (in ResNet-50 ``layer3.5``, which moves the last residual block to
    ``layer3.6``); ours hold it in the residual block that it follows (``layer3.4.inserted_block``), whose
    number stays. A state dict that has our names already comes back as it is.

    Args:
        state_dict: Names to tensors, also nested under the key ``state_dict`` and with the prefix ``module.``
            of a DataParallel wrapper or ``network.`` of this project's training.

    Returns:
        The same tensors under our names, in the order given.

    Raises:
        CheckpointError: A block stands where no residual block comes before it, or two keys get one name.

    Source: the authors' code for NeurIPS 2018; mmcv's ``NonLocalNd``.

    >>> weight = torch.zeros(1)
    >>> list(from_released({"module.t.weight": weight, "module.gn.bias": weight}))
    ['theta.weight', 'norm.bias']
    """
    nested = state_dict.get("state_dict")
    tensors: Mapping[str, Tensor] = nested if isinstance(nested, Mapping) else state_dict
    tensors = without_wrapper(tensors)
    if any(_STAGE_ELEMENT.match(key) for key in tensors):
        names = _network_names(list(tensors))
    else:
        names = {key: _block_name(key) for key in tensors}
    if len(set(names.values())) < len(names):
        raise CheckpointError("The checkpoint mixes names of two code bases: two of its keys mean the same weight.")
    return {names[key]: value for key, value in tensors.items()}


def without_wrapper(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without the prefix of a DataParallel wrapper or of this project's training modules."""
    tensors = dict(state_dict)
    if any(key.startswith("network.") for key in tensors):
        # This project's training modules hold the network as `network`, beside the state of their metrics.
        tensors = {
            key.removeprefix("network."): value
            for key, value in tensors.items()
            if not key.startswith(("train_loss.", "test_loss.", "top1.", "top5."))
        }
    if all(key.startswith("module.") for key in tensors):
        return {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def _block_name(key: str) -> str:
    module, dot, parameter = key.rpartition(".")
    ours = _RELEASED_MODULES.get(module) or _MMCV_MODULES.get(module) or module
    return f"{ours}{dot}{parameter}"


def _network_names(keys: list[str]) -> dict[str, str]:
    elements = [match.groups() for match in map(_STAGE_ELEMENT.fullmatch, keys) if match]
    blocks = {(stage, int(index)) for stage, index, rest in elements if rest == "t.weight"}
    names = {}
    for key in keys:
        match = _STAGE_ELEMENT.fullmatch(key)
        if match is None:
            names[key] = key
            continue
        stage, index, rest = match[1], int(match[2]), match[3]
        before = sum((stage, earlier) in blocks for earlier in range(index))
        if (stage, index) not in blocks:
            names[key] = f"{stage}.{index - before}.{rest}"
        elif index - before == 0 or (stage, index - 1) in blocks:
            raise CheckpointError(f"The block {stage}.{index} of the checkpoint follows no residual block.")
        else:
            names[key] = f"{stage}.{index - before - 1}.{BLOCK_NAME}.{_block_name(rest)}"
    return names


def block_settings(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the settings of the blocks off the shapes of the weights of a network, under our names.

    These are ``num_blocks`` and, where there is a block, ``groups``, ``channel_reduction`` and ``norm`` ("batch" or
    "group") of the first one; the kernel function and the scale leave no trace. Raises CheckpointError where the
    weights of the first block are no convolutions'.
    """
    prefixes = [key.removesuffix("z.weight") for key in state_dict if key.endswith(f".{BLOCK_NAME}.z.weight")]
    if not prefixes:
        return {"num_blocks": 0}
    z = state_dict[f"{prefixes[0]}z.weight"]
    theta = state_dict.get(f"{prefixes[0]}theta.weight", z)
    if z.ndim < 2 or theta.ndim < 2 or not (z.numel() and theta.numel()):
        raise CheckpointError(
            f"The checkpoint's theta and z under {prefixes[0]} have shapes {list(theta.shape)} and {list(z.shape)}, "
            "which are no convolutions'."
        )
    (channels, inner_of_group), inner_channels = z.shape[:2], theta.shape[0]
    return {
        "num_blocks": len(prefixes),
        "groups": inner_channels // inner_of_group,
        "channel_reduction": channels // inner_channels,
        "norm": "batch" if f"{prefixes[0]}norm.running_mean" in state_dict else "group",
    }


def mismatches(state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """List every key of a state dict that is missing, unknown or of another shape, as "fc.bias is missing".

    The counters ``num_batches_tracked`` may be missing: files older than PyTorch 0.4.1 do not have them.
    """
    missing = [
        f"{key} is missing" for key in expected if key not in state_dict and not key.endswith(".num_batches_tracked")
    ]
    unknown = [f"{key} is unknown to the network" for key in state_dict if key not in expected]
    misshapen = [
        f"{key} has shape {list(state_dict[key].shape)} instead of {list(value.shape)}"
        for key, value in expected.items()
        if key in state_dict and state_dict[key].shape != value.shape
    ]
    return missing + unknown + misshapen


def write_atomically(path: Path, content: bytes) -> None:
    try:
        with whole_file(path, "wb", make_folder=False) as file:
            file.write(content)
    except OSError as error:
        raise CheckpointError(f"Cannot write {path}: {error.strerror}.") from error
