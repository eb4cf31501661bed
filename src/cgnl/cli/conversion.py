"""``cgnl convert``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from cgnl.cli.options import OptionalInt
from cgnl.settings.image import Architecture

if TYPE_CHECKING:
    from torch import nn

    from cgnl.training.task import Export


def convert(
    source: Positional[Annotated[Path, tyro.conf.arg(metavar="SOURCE")]],
    target: Positional[Annotated[Path, tyro.conf.arg(metavar="TARGET")]],
    arch: Annotated[Architecture | None, tyro.conf.arg(help_behavior_hint="")] = None,
    block: Annotated[
        Literal["none", "nl", "cgnl", "cgnlx", "residual"] | None, tyro.conf.arg(help_behavior_hint="")
    ] = None,
    opset: OptionalInt = None,
) -> None:
    """Convert a trained network to ONNX, or a released checkpoint to safetensors under our names.

    Args:
        source: For ONNX, a checkpoint of `cgnl train`, a run folder, or a .safetensors file from this command; for
            safetensors, a released checkpoint (.pth, .pth.tar).
        target: The file to write, .onnx or .safetensors.
        arch: For safetensors, the network in the released checkpoint; by default resnet50.
        block: For safetensors, the block in the network; by default cgnl.
        opset: For ONNX, the version of the operator set, 18 to 23; by default 18.
    """
    if target.suffix == ".onnx":
        for name, value in (("arch", arch), ("block", block)):
            if value is not None:
                raise ValueError(
                    f"{name} ({value}) is for a .safetensors target; for {target} it comes from the source"
                )
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
    network, how = _from_safetensors(source) if source.suffix == ".safetensors" else _from_run(source)
    difference = export_onnx(
        network, target, torch.zeros(how.shape), dynamic=how.dynamic, opset=opset, metadata=how.metadata
    )
    print(f"{target}: opset {opset}, free axes {', '.join(how.dynamic)}")
    print(f"differs from PyTorch by {difference:.1g} of the largest output, in another batch and at other sizes")


def _from_run(source: Path) -> "tuple[nn.Module, Export]":
    from cgnl.tasks import load_trained, task_of

    trained = load_trained(source)
    try:
        return trained.network, task_of(trained.recipe).export(trained)
    except ValueError as error:
        raise ValueError(f"source ({source}) {error}") from error


def _from_safetensors(source: Path) -> "tuple[nn.Module, Export]":
    from safetensors import safe_open

    from cgnl.data.transforms import IMAGENET_MEAN, IMAGENET_STD
    from cgnl.networks.checkpoints import CheckpointError, block_settings, load_checkpoint_file
    from cgnl.networks.image import resnet
    from cgnl.settings.blocks import fitting, options_class
    from cgnl.training.task import Export

    state_dict = load_checkpoint_file(source)
    with safe_open(source, "pt") as file:
        about = file.metadata() or {}
    if not {"arch", "block"} <= about.keys():
        raise CheckpointError(f"{source} does not say which network it holds: it was not written by `cgnl convert`.")
    settings = block_settings(state_dict)
    options = fitting(options_class(about["block"]), settings)
    network = resnet(about["arch"], about["block"], settings["num_blocks"], weights=source, **options).eval()
    metadata = {
        "arch": about["arch"],
        "block": about["block"],
        "mean": json.dumps(IMAGENET_MEAN),
        "std": json.dumps(IMAGENET_STD),
    }
    return network, Export((1, 3, 224, 224), ("batch", "height", "width"), metadata)
