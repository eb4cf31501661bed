"""Mask R-CNN on the feature pyramid of any of torchvision's image classifiers.

Shapes: B batch, C channels, K classes with the background, H and W height and width of the input in pixels.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from cgnl.insertion import undisturbed
from cgnl.insertion.places import find_places
from cgnl.networks.checkpoints import load_checkpoint_file
from cgnl.networks.detection import PREDICTORS, BackboneNorm, limits, load_file, with_pyramid
from cgnl.networks.libraries import library_of
from cgnl.networks.named import BlocksByAxes, NamedNetwork, put_blocks, to_find
from cgnl.networks.weights import Checkpoint, Weights, is_file, load_checked

_STRIDES = (4, 8, 16, 32)
_EXAMPLE = 128
_BODY = "backbone.body."
_IMAGENET_CLASSES = 1000


class PyramidBackbone(nn.Module):
    """A classifier's stages, and the feature pyramid on the last map of each stride.

    ``body`` runs its top-level modules, and the elements of their Sequentials, one after another (else ValueError). It
    keeps its module paths, so that blocks and weights find their places; its layers after the last map are gone.
    """

    out_channels = 256

    def __init__(self, body: nn.Module, name: str) -> None:
        super().__init__()
        row = _row(body)
        last = {size: path for path, (_, size) in row.items()}
        sizes = [_EXAMPLE // stride for stride in _STRIDES]
        if not all(size in last for size in sizes):
            raise ValueError(f"arch ({name}) has no row of modules from stride 4 to 32 for a feature pyramid")
        self.levels = {last[size]: str(level) for level, size in enumerate(sizes)}
        paths = list(row)
        self.row = paths[: paths.index(last[sizes[-1]]) + 1]
        self.body = body
        self._drop_what_follows()
        channels = [row[path][0] for path in self.levels]
        self.fpn = FeaturePyramidNetwork(channels, self.out_channels, extra_blocks=LastLevelMaxPool())

    def _drop_what_follows(self) -> None:
        kept = {path.partition(".")[0] for path in self.row}
        for name, _ in list(self.body.named_children()):
            if name not in kept:
                delattr(self.body, name)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps "0" to "3" and "pool" [B, 256, H/s, W/s] of images [B, 3, H, W], s from 4 to 64."""
        x, maps = images, {}
        for path in self.row:
            x = self.body.get_submodule(path)(x)
            if path in self.levels:
                maps[self.levels[path]] = x
        return self.fpn(maps)


def named_detector(
    name: str,
    num_classes: int,
    *,
    blocks: BlocksByAxes | None = None,
    places: Sequence[str] | Literal["auto"] = "auto",
    num_blocks: int = 1,
    weights: Weights = None,
    backbone_weights: Weights = None,
    new_classifier: bool = False,
    backbone_norm: BackboneNorm = "frozen",
    trust: Sequence[str] = (),
    **sizes: Any,
) -> NamedNetwork:
    """Build a Mask R-CNN on the feature pyramid of a convolutional classifier of images, with blocks in it.

    Arguments and errors are those of :func:`cgnl.networks.named.named_network` (``num_classes`` counts the background),
    those of :func:`cgnl.networks.detection.limits` as ``sizes``, and:

    Args:
        weights: None, or a checkpoint file of such a detector.
        backbone_weights: None, "default", a name or a file for the classifier. Not read if ``weights`` are given.
        new_classifier: Leave the layers of ``weights`` that predict classes, boxes and masks out and start new ones.
        backbone_norm: "frozen" BatchNorm in the classifier, for pre-trained weights, or "batch" for one that is
            trained. Other norms stay as they are.

    Returns:
        The detector, its predictors and the blocks' places; the classifier's weights are under ``backbone.body``.
    """
    if weights is not None and not is_file(weights):
        raise ValueError(f"weights ({weights}) must be a file for {name}; backbone_weights may be a name")
    options = limits(**sizes)
    library = library_of(name, 2, trust)
    body, backbone_checkpoint = library.build(
        _IMAGENET_CLASSES, _EXAMPLE, backbone_weights if weights is None else None, new_classifier=False
    )
    device = next(body.parameters()).device
    example = torch.zeros(1, 3, _EXAMPLE, _EXAMPLE, device=device)
    if blocks is not None and to_find(places):
        places = find_places(body, example, num_blocks, num_axes=2, layout="channels_first").paths
    if backbone_norm == "frozen":
        _freeze_norms(body)
    backbone = PyramidBackbone(body, name)
    inputs = library.inputs(backbone_weights)
    normalisation = {"image_mean": list(inputs.mean), "image_std": list(inputs.std)}
    network = with_pyramid(backbone, num_classes, **options, **normalisation)
    paths: tuple[str, ...] = ()
    if blocks is not None:
        paths = put_blocks(backbone, blocks, example, [f"body.{path}" for path in places])
    if weights is not None:
        load_file(network, Checkpoint(load_checkpoint_file(weights), str(weights), by_name=False), new_classifier)
    elif backbone_checkpoint is not None:
        _load_body(network, backbone_checkpoint)
    return NamedNetwork(network, PREDICTORS, tuple(f"backbone.{path}" for path in paths))


def _freeze_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            _freeze_norms(child)


def _load_body(network: MaskRCNN, checkpoint: Checkpoint) -> None:
    """Load a classifier's weights; what follows its last map is left out."""
    own = network.state_dict()
    kept = {key.removeprefix(_BODY).partition(".")[0] for key in own if key.startswith(_BODY)}
    found = {key: value for key, value in checkpoint.state_dict.items() if key.partition(".")[0] in kept}
    state_dict = {key: value for key, value in own.items() if not key.startswith(_BODY)}
    load_checked(network, state_dict | {f"{_BODY}{key}": value for key, value in found.items()}, checkpoint.source, ())


def _row(network: nn.Module) -> dict[str, tuple[int, int]]:
    """The modules that run one after another from the input on, with channels and height of their maps."""
    example = torch.zeros(1, 3, _EXAMPLE, _EXAMPLE, device=next(network.parameters()).device)
    modules = [module for module in network.modules() if module is not network]
    with undisturbed(network):
        given, outputs = _inputs_and_outputs(network, modules, example)
    row: dict[str, tuple[int, int]] = {}
    current: object = example

    def walk(module: nn.Module, path: str) -> bool:
        """Whether the row goes on after a module."""
        nonlocal current
        if module is network or type(module).forward is nn.Sequential.forward:
            return all(walk(child, f"{path}.{name}" if path else name) for name, child in module.named_children())
        output = outputs.get(module)
        if given.get(module) is not current or not isinstance(output, Tensor) or output.ndim != 4:
            return False
        current = output
        row[path] = (output.shape[1], output.shape[2])
        return True

    walk(network, "")
    return row


def _inputs_and_outputs(
    network: nn.Module, modules: list[nn.Module], example: Tensor
) -> tuple[dict[nn.Module, object], dict[nn.Module, object]]:
    given: dict[nn.Module, object] = {}
    outputs: dict[nn.Module, object] = {}

    def record(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        given[module], outputs[module] = next(iter(args), None), output

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(module.register_forward_hook(record))
        network(example)
    return given, outputs
