"""Released checkpoints of image networks as safetensors files under our names."""

import os
from pathlib import Path

import torch

from cgnl.networks.checkpoints import (
    CheckpointError,
    block_settings,
    check_finite,
    from_released,
    load_checkpoint_file,
    mismatches,
    write_atomically,
)
from cgnl.networks.image import resnet
from cgnl.settings.blocks import fitting, options_class


def convert(
    source: str | os.PathLike[str], target: str | os.PathLike[str], arch: str, block: str | None
) -> dict[str, str]:
    """Convert a released checkpoint of an image network to a ``.safetensors`` file under our names.

    Number of blocks, groups, channel reduction, norm and number of classes are read off the weights; then every key and
    shape is compared with the network that :func:`cgnl.networks.image.resnet` builds from them for ``arch`` and
    ``block``. The target appears whole or not at all. Returns the arguments that build the network again, which its
    metadata has too. Raises CheckpointError where a file cannot be read or written, or keys or shapes (all are listed)
    do not fit, and ValueError for an unknown arch or block or another ending.
    """
    from safetensors.torch import save

    target = Path(target)
    if target.suffix != ".safetensors":
        raise ValueError(f"target ({target}) must end in .safetensors")
    state_dict = from_released(load_checkpoint_file(source))
    if "fc.weight" not in state_dict or state_dict["fc.weight"].ndim != 2:
        raise CheckpointError(f"Checkpoint {source} holds no image network: fc.weight is missing or not a matrix.")
    settings = {**block_settings(state_dict), "num_classes": state_dict["fc.weight"].shape[0]}
    if (settings["num_blocks"] == 0) != (block is None):
        raise CheckpointError(
            f"Checkpoint {source} holds {settings['num_blocks']} blocks, but block is {block or 'none'}."
        )
    options = fitting(options_class(block or "none"), settings)
    with torch.device("meta"):
        network = resnet(arch, block, settings["num_blocks"], num_classes=settings["num_classes"], **options)
    expected = network.state_dict()
    wrong = mismatches(state_dict, expected)
    if wrong:
        raise CheckpointError(
            f"Checkpoint {source} does not fit {arch} with block {block or 'none'}: {'; '.join(wrong)}."
        )
    check_finite(network, state_dict, source)
    for key, value in expected.items():
        if key not in state_dict:
            state_dict[key] = torch.zeros(value.shape, dtype=value.dtype)
    metadata = {"arch": arch, "block": block or "none", **{key: str(value) for key, value in settings.items()}}
    contiguous = {key: state_dict[key].contiguous() for key in expected}
    write_atomically(target, save(contiguous, {"format": "pt", **metadata}))
    return metadata
