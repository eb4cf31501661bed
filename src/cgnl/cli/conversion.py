"""``cgnl convert``."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import tyro

from cgnl.settings.image import Architecture

if TYPE_CHECKING:
    from torch import nn


def convert(
    source: tyro.conf.Positional[Path],
    target: tyro.conf.Positional[Path],
    arch: Architecture | None = None,
    block: Literal["none", "nl", "cgnl", "cgnlx", "residual"] | None = None,
    opset: int | None = None,
) -> None:
    """Convert a trained network to ONNX, or a released checkpoint to safetensors under our names.

    Args:
        source: For ONNX a checkpoint of `cgnl train`, a run folder, or a .safetensors file that this command wrote; for
            safetensors a released checkpoint (.pth, .pth.tar).
        target: The file to write: .onnx or .safetensors.
        arch: For safetensors, the network in the released checkpoint; by default resnet50.
        block: For safetensors, the block in it; by default cgnl.
        opset: For ONNX, the version of its operator set, 18 to 23; by default 18.
    """
    if target.suffix == ".onnx":
        for name, value in (("arch", arch), ("block", block)):
            if value is not None:
                raise ValueError(f"{name} ({value}) is for a .safetensors target: for {target} the source says it")
        _to_onnx(source, target, opset)
    elif target.suffix == ".safetensors":
        if opset is not None:
            raise ValueError(f"opset ({opset}) is for an .onnx target, not for {target}")
        _to_safetensors(source, target, arch or "resnet50", block or "cgnl")
    else:
        raise ValueError(f"target ({target}) must end in .onnx or .safetensors")


def _to_safetensors(source: Path, target: Path, arch: str, block: str) -> None:
    from cgnl.networks.conversion import convert

    settings = convert(source, target, arch, None if block == "none" else block)
    print(f"{target}: " + ", ".join(f"{key}={value}" for key, value in settings.items()))


def _to_onnx(source: Path, target: Path, opset: int | None) -> None:
    import torch

    from cgnl.networks.export import OPSETS, export_onnx

    opset = OPSETS[0] if opset is None else opset
    found = _from_safetensors(source) if source.suffix == ".safetensors" else _from_run(source)
    difference = export_onnx(
        found.network,
        target,
        torch.zeros(found.shape),
        dynamic=found.dynamic,
        opset=opset,
        metadata=found.metadata,
    )
    print(f"{target}: opset {opset}, free axes {', '.join(found.dynamic)}")
    print(f"differs from PyTorch by {difference:.1g} of the largest output, in another batch and at other sizes")


class _Found(NamedTuple):
    network: "nn.Module"
    shape: tuple[int, ...]
    """To trace the network at."""
    dynamic: tuple[str, ...]
    """The axes that stay free."""
    metadata: dict[str, str]


def _from_run(source: Path) -> _Found:
    from cgnl.settings.detection import DetectionRecipe
    from cgnl.settings.video import VideoRecipe
    from cgnl.training.checkpoint import load_trained
    from cgnl.training.video_data import view_size

    trained = load_trained(source)
    recipe = trained.recipe
    if isinstance(recipe, DetectionRecipe):
        raise ValueError(
            f"source ({source}) holds a detector, and PyTorch's exporter to ONNX cannot follow its choice of boxes"
        )
    size = view_size(recipe.data) if isinstance(recipe, VideoRecipe) else recipe.data.size
    metadata = {
        "recipe": trained.name,
        "classes": json.dumps(trained.classes, ensure_ascii=False),
        "mean": json.dumps(trained.mean),
        "std": json.dumps(trained.std),
        "size": str(size),
        "resize": str(recipe.data.resize),
    }
    # 64 pixels leave 2 positions on the last map; at 1 PyTorch may take the size for a constant
    traced = max(size, 64)
    if not isinstance(recipe, VideoRecipe):
        return _Found(trained.network, (1, 3, traced, traced), ("batch", "height", "width"), metadata)
    metadata |= {"num_frames": str(recipe.data.num_frames), "frame_step": str(recipe.data.frame_step)}
    # likewise 2 of the time steps that the strides leave
    frames = max(recipe.data.num_frames, 2 * math.prod(recipe.network.temporal_strides))
    if recipe.network.head == "fully_convolutional":
        # the number of its windows is a constant in what PyTorch traces
        return _Found(trained.network, (1, 3, frames, size, size), ("batch", "time"), metadata)
    return _Found(trained.network, (1, 3, frames, traced, traced), ("batch", "time", "height", "width"), metadata)


def _from_safetensors(source: Path) -> _Found:
    from safetensors import safe_open

    from cgnl.data.transforms import IMAGENET_MEAN, IMAGENET_STD
    from cgnl.networks.checkpoints import CheckpointError, block_settings, load_checkpoint_file
    from cgnl.networks.image import resnet

    state_dict = load_checkpoint_file(source)
    with safe_open(source, "pt") as file:
        about = file.metadata() or {}
    if not {"arch", "block"} <= about.keys():
        raise CheckpointError(f"{source} does not say which network it holds: it was not written by `cgnl convert`.")
    network = resnet(about["arch"], about["block"], **block_settings(state_dict), weights=source).eval()
    metadata = {
        "arch": about["arch"],
        "block": about["block"],
        "mean": json.dumps(IMAGENET_MEAN),
        "std": json.dumps(IMAGENET_STD),
    }
    return _Found(network, (1, 3, 224, 224), ("batch", "height", "width"), metadata)
