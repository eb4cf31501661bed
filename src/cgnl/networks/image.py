"""Image networks: torchvision's ResNets with blocks at the paper's places.

Shapes: B batch, C channels of the input, D of the last map, K classes, H and W height and width of the input in pixels.

Source: Yue et al., "Compact Generalized Non-local Network", NeurIPS 2018, sections 4.2 and 4.3.
"""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cgnl.blocks.kinds import MakeBlock, block_maker
from cgnl.insertion import insert_blocks
from cgnl.networks.channels import fitted, set_channels
from cgnl.networks.weights import Checkpoint, Weights, load_weights, num_classes_of, read_weights
from cgnl.settings.checks import within

try:
    from torchvision import models
    from torchvision.models.resnet import BasicBlock, Bottleneck
except ImportError as error:
    raise ImportError("cgnl.networks.image needs torchvision: pip install 'cgnl[train]'") from error

# Residual blocks (from 0) that the blocks follow, by number of blocks. The paper says res4 for one block, and the
# released code that it stands right before the last residual block there. For five the paper says "every other"
# residual block of res3 and res4; those of ResNet-50 and of ResNet-101, where it is every seventh of res4, are in the
# code of Wang et al. ResNet-18 has only two residual blocks a stage.
_PLACES = {
    "resnet18": {1: ["layer3.0"], 2: ["layer2.0", "layer3.0"]},
    "resnet34": {1: ["layer3.4"], 5: ["layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5"]},
    "resnet50": {1: ["layer3.4"], 5: ["layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5"]},
    "resnet101": {1: ["layer3.21"], 5: ["layer2.1", "layer2.3", "layer3.6", "layer3.13", "layer3.20"]},
    "resnet152": {1: ["layer3.34"], 5: ["layer2.3", "layer2.7", "layer3.11", "layer3.23", "layer3.35"]},
}
ARCHITECTURES = tuple(_PLACES)
_LAYERS: dict[str, tuple[Any, list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
    "resnet152": (Bottleneck, [3, 8, 36, 3]),
}


class ResNet(models.ResNet):
    """torchvision's ResNet, whose last map can be had by itself, as from timm's networks."""

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map [B, D, H / 32, W / 32] of images [B, C, H, W]; its mean over positions is classified."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, K] of images [B, C, H, W]."""
        return self.fc(self.avgpool(self.forward_features(x)).flatten(1))


class DropoutLinear(nn.Linear):
    """A classifier with dropout before it, under the state-dict keys of a bare Linear."""

    def __init__(self, in_features: int, out_features: int, dropout: float) -> None:
        within("dropout", dropout, 0, 1)
        super().__init__(in_features, out_features)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [..., K] of the features ``x`` [..., in_features]."""
        return super().forward(F.dropout(x, self.dropout, self.training))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dropout={self.dropout}"


def block_places(arch: str, num_blocks: int) -> list[str]:
    """Return the module paths, from the input on, of the residual blocks that 1 or 5 blocks (ResNet-18: 1 or 2) follow.

    Raises ValueError where the architecture is unknown, or has no places for this number of blocks.

    Source: section 4.2 of the paper for the stages; the authors' released code for one block (right before the last
    residual block of res4); the code of Wang et al. for five in ResNet-50 and ResNet-101, where those in res4 follow
    every seventh residual block. The other networks follow the same rules.

    >>> block_places("resnet50", 1)
    ['layer3.4']
    """
    if arch not in _PLACES:
        raise ValueError(f"arch ({arch!r}) must be one of {', '.join(ARCHITECTURES)}")
    if num_blocks not in _PLACES[arch]:
        raise ValueError(f"num_blocks ({num_blocks}) must be {' or '.join(map(str, _PLACES[arch]))} for {arch}")
    return list(_PLACES[arch][num_blocks])


def resnet(
    arch: str,
    block: str | MakeBlock | None = None,
    num_blocks: int = 1,
    *,
    num_classes: int | None = None,
    weights: Weights = None,
    new_classifier: bool = False,
    dropout: float = 0.5,
    places: Sequence[str] = (),
    channels: int = 3,
    trust: Collection[str] = (),
    **options: Any,
) -> ResNet:
    """Build a ResNet with blocks after the residual blocks that the paper names.

    ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101`` and ``resnet152`` are this function with ``arch``
    given. A new block is the identity, so the network's output is that of its weights until it is trained.

    Args:
        arch: "resnet18", "resnet34", "resnet50", "resnet101" or "resnet152".
        block: None or "none", the name of a kind in ``cgnl.blocks.kinds`` ("nl", "cgnl", "cgnlx", "residual", ...), the
            dotted name of a class of your own, or a function from the channel count to a module.
        num_blocks: 1 or 5 (ResNet-18: 1 or 2), at the places of :func:`block_places`; unused without a block.
        num_classes: Number of classes K; by default that of the weights, or 1000 without weights.
        weights: None, the name of torchvision's weights ("IMAGENET1K_V1"; "default") or its enum member, or a file
            (``.pth``, ``.pth.tar``, ``.safetensors``), ours or released. A file without blocks leaves the new
            blocks as they start; one with blocks must have all of them.
        new_classifier: Leave the classifier of the weights out and start a new one. Without it a file with
            other classes is an error; named weights get a new classifier for other classes by themselves.
        dropout: Dropout probability between the average pool and the classifier.
        places: Module paths that the blocks follow, in place of the paper's.
        channels: Number of channels C of the images; the first convolution and its weights are adapted to it.
        trust: Packages that ``block`` may name a class of; see :func:`cgnl.settings.trust.import_named`.
        options: Options of that kind of block, such as ``groups`` or ``kernel``; ``cgnl.settings.blocks`` lists them.
            A kernel function may also be an object of ``cgnl.kernel_functions``, and a norm None or a function of the
            channel count.

    Returns:
        The network, from images [B, C, H, W] to logits [B, K]; its ``forward_features`` gives the last map. Its state
        dict is torchvision's and the keys of the blocks, which have ``inserted_block`` in them.

    Raises:
        ValueError: An argument has a value that it must not have.
        CheckpointError: The weights cannot be had, or do not fit; every key that does not is listed.

    Differs from the paper: strides are in the 3x3 convolutions, as in the weights that torchvision gives.

    >>> with torch.device("meta"):
    ...     network = resnet18("cgnl", num_classes=200)
    >>> network.layer3[0].inserted_block.theta.weight.shape
    torch.Size([128, 256, 1, 1])
    """
    within("channels", channels, 1)
    make_block = block_maker(block, options, trust=trust)
    places = [*places] or block_places(arch, num_blocks if make_block else 1)
    network, checkpoint = backbone(arch, num_classes, weights, dropout)
    # Any size does to find the channel counts; 32 pixels leave one position in the last stage.
    example = torch.zeros(1, channels, 32, 32, device=network.conv1.weight.device)
    if channels != 3:
        set_channels(network, tuple(example.shape), arch)
    if make_block:
        insert_blocks(network, dict.fromkeys(places, make_block), example_input=example)
    if checkpoint is not None:
        checkpoint = fitted(checkpoint, network, channels) if channels != 3 else checkpoint
        load_weights(network, checkpoint, new_classifier)
    return network


resnet18 = partial(resnet, "resnet18")
resnet34 = partial(resnet, "resnet34")
resnet50 = partial(resnet, "resnet50")
resnet101 = partial(resnet, "resnet101")
resnet152 = partial(resnet, "resnet152")


def backbone(arch: str, num_classes: int | None, weights: Weights, dropout: float) -> tuple[ResNet, Checkpoint | None]:
    """Return a new ResNet without blocks, and the weights, if any, that :func:`load_weights` has still to load into it.

    Arguments and errors are those of :func:`resnet`.
    """
    within("num_classes", num_classes, 1)
    checkpoint = read_weights(models.get_model_weights(arch), weights, arch)
    num_classes = num_classes or (1000 if checkpoint is None else num_classes_of(checkpoint))
    kind, layers = _LAYERS[arch]
    network = ResNet(kind, layers, num_classes=num_classes)
    network.fc = DropoutLinear(network.fc.in_features, num_classes, dropout)
    return network, checkpoint
