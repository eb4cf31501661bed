"""Image networks: torchvision's ResNets with blocks at the paper's places.

Shapes: B batch, K classes, H and W height and width of the input in pixels.

Source: Yue et al., "Compact Generalized Non-local Network", NeurIPS 2018, sections 4.2 and 4.3.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cgnl.blocks import CGNL2d, CGNL3d, Groups, NonLocal2d, NonLocal3d, Norm, ResidualBlock2d, ResidualBlock3d
from cgnl.insertion import insert_blocks
from cgnl.kernel_functions import GaussianRBF, KernelFunction
from cgnl.networks.weights import Checkpoint, Weights, load_weights, num_classes_of, read_weights
from cgnl.ops import Pairwise, Scale

try:
    from torchvision import models
except ImportError as error:
    raise ImportError("cgnl.networks.image needs torchvision: pip install 'cgnl[train]'") from error

MakeBlock = Callable[[int], nn.Module]

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
# The classes behind the names, for images and for videos.
_BLOCK_TYPES: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "nl": (NonLocal2d, NonLocal3d),
    "cgnl": (CGNL2d, CGNL3d),
    "cgnlx": (CGNL2d, CGNL3d),
    "residual": (ResidualBlock2d, ResidualBlock3d),
}
BLOCKS = tuple(_BLOCK_TYPES)


class DropoutLinear(nn.Linear):
    """A classifier with dropout before it, under the state-dict keys of a bare Linear.

    Args:
        in_features: Size of the pooled features.
        out_features: Number of classes K.
        dropout: Probability with which a feature is dropped in training.

    Raises:
        ValueError: dropout lies outside 0 to 1.
    """

    def __init__(self, in_features: int, out_features: int, dropout: float) -> None:
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout ({dropout}) must be between 0 and 1")
        super().__init__(in_features, out_features)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [..., K] of the features ``x`` [..., in_features]."""
        return super().forward(F.dropout(x, self.dropout, self.training))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dropout={self.dropout}"


def block_places(arch: str, num_blocks: int) -> list[str]:
    """Return the module paths of the residual blocks that the blocks follow.

    Args:
        arch: "resnet18", "resnet34", "resnet50", "resnet101" or "resnet152".
        num_blocks: 1 or 5; for ResNet-18, which has fewer residual blocks, 1 or 2.

    Returns:
        Paths in the torchvision network, from the input on.

    Raises:
        ValueError: The architecture is unknown, or it has no places for this number of blocks.

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
    groups: Groups = 8,
    kernel: str | KernelFunction = "dot",
    norm: Norm = "batch",
    scale: Scale | bool | None = None,
    g_std: float | None = None,
    channel_reduction: int = 2,
    pairwise: Pairwise = "embedded_gaussian",
    subsample: bool = False,
    dropout: float = 0.5,
) -> models.ResNet:
    """Build a ResNet with blocks after the residual blocks that the paper names.

    ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101`` and ``resnet152`` are this function with ``arch``
    given. A new block is the identity, so the network's output is that of its weights until it is trained.

    Args:
        arch: "resnet18", "resnet34", "resnet50", "resnet101" or "resnet152".
        block: None or "none", "nl", "cgnl", "cgnlx" (CGNL with the Gaussian RBF kernel function), "residual"
            (no attention, Table 3), or a function from the channel count to a module.
        num_blocks: 1 or 5 (ResNet-18: 1 or 2), at the places of :func:`block_places`; no block, no say.
        num_classes: Number of classes K; by default that of the weights, or 1000 without weights.
        weights: None, the name of torchvision's weights ("IMAGENET1K_V1") or its enum member, or a file
            (``.pth``, ``.pth.tar``, ``.safetensors``), ours or released. A file without blocks leaves the new
            blocks as they start; one with blocks must have all of them.
        new_classifier: Leave the classifier of the weights out and start a new one. Without it a file with
            other classes is an error; named weights get a new classifier for other classes by themselves.
        groups: Groups G of a CGNL block; of a residual block's conv_z; "auto" as in the blocks.
        kernel: Kernel function of a "cgnl" block, "dot", "embedded_gaussian", "rbf" or an object of
            ``cgnl.kernel_functions``. "cgnlx" is always the RBF; a GaussianRBF given here sets it.
        norm: Norm of the block: "batch", "sync_batch", "group" (released CGNL checkpoints), None, or a
            function of the channel count.
        scale: Scale of a CGNL block's sums, None, "sqrt" or "mean"; whether an NL block divides its logits by
            sqrt(C'), True (also None) or False.
        g_std: Standard deviation of the first weights of g in a CGNL block; None: as the scale needs.
        channel_reduction: C/C', channels of the stage over inner channels of the block.
        pairwise: Pairwise function of an NL block.
        subsample: Whether an NL block max-pools phi and g.
        dropout: Dropout probability between the average pool and the classifier.

    Returns:
        The network, from images [B, 3, H, W] to logits [B, K]. Its state dict is torchvision's and the keys
        of the blocks, which have ``inserted_block`` in them.

    Raises:
        ValueError: An argument has a value that it must not have.
        CheckpointError: The weights cannot be had, or do not fit; every key that does not is listed.

    Differs from the paper: strides are in the 3x3 convolutions, as in the weights that torchvision gives.

    >>> with torch.device("meta"):
    ...     network = resnet18("cgnl", num_classes=200)
    >>> network.layer3[0].inserted_block.theta.weight.shape
    torch.Size([128, 256, 1, 1])
    """
    make_block = block_maker(
        block,
        groups=groups,
        kernel=kernel,
        norm=norm,
        scale=scale,
        g_std=g_std,
        channel_reduction=channel_reduction,
        pairwise=pairwise,
        subsample=subsample,
    )
    places = block_places(arch, num_blocks if make_block else 1)
    network, checkpoint = backbone(arch, num_classes, weights, dropout)
    if make_block:
        # Any size does to find the channel counts; 32 pixels leave one position in the last stage.
        example = torch.zeros(1, 3, 32, 32, device=network.conv1.weight.device)
        insert_blocks(network, dict.fromkeys(places, make_block), example_input=example)
    if checkpoint is not None:
        load_weights(network, checkpoint, new_classifier)
    return network


resnet18 = partial(resnet, "resnet18")
resnet34 = partial(resnet, "resnet34")
resnet50 = partial(resnet, "resnet50")
resnet101 = partial(resnet, "resnet101")
resnet152 = partial(resnet, "resnet152")


def block_maker(
    block: str | MakeBlock | None,
    *,
    groups: Groups,
    kernel: str | KernelFunction,
    norm: Norm,
    scale: Scale | bool | None,
    g_std: float | None,
    channel_reduction: int,
    pairwise: Pairwise,
    subsample: bool,
    bias: bool = False,
    of_videos: bool = False,
) -> MakeBlock | None:
    """Return the function from the channel count to a new block, or None for no block.

    Args:
        block: As in :func:`resnet`, like all that follow but the last two.
        groups: Groups G of a CGNL block; of a residual block's conv_z.
        kernel: Kernel function of a "cgnl" block.
        norm: Norm of the block.
        scale: Scale of a CGNL block's sums; whether an NL block divides its logits by sqrt(C').
        g_std: Standard deviation of the first weights of g in a CGNL block.
        channel_reduction: C/C'.
        pairwise: Pairwise function of an NL block.
        subsample: Whether an NL block max-pools phi and g.
        bias: Whether an NL block's theta, phi and g have biases.
        of_videos: Whether blocks take videos [B, C, T, H, W] and not images [B, C, H, W].

    Returns:
        The function; one that was given as ``block`` comes back as it is.

    Raises:
        ValueError: A name is unknown, or the scale or ``g_std`` is none of that block's.
    """
    if g_std is not None and block in (None, "none", "nl", "residual"):
        raise ValueError(f"g_std ({g_std!r}) must be None for block {block!r}: it is for CGNL blocks")
    if block is None or block == "none":
        return None
    if not isinstance(block, str):
        return block
    if block not in BLOCKS:
        raise ValueError(f"block ({block!r}) must be None, one of {', '.join(BLOCKS)}, or a function")
    block_type = _BLOCK_TYPES[block][of_videos]
    block_of: Callable[..., nn.Module]
    if block == "nl":
        if isinstance(scale, str):
            raise ValueError(f"scale ({scale!r}) must be None, True or False for block 'nl'")
        block_of = partial(block_type, pairwise=pairwise, scale=scale is not False, subsample=subsample, bias=bias)
    elif block == "residual":
        if scale is not None:
            raise ValueError(f"scale ({scale!r}) must be None for block 'residual', which has no sums")
        block_of = partial(block_type, groups=groups)
    else:
        if isinstance(scale, bool):
            raise ValueError(f"scale ({scale}) must be None, 'sqrt' or 'mean' for block {block!r}")
        if block == "cgnlx" and not isinstance(kernel, GaussianRBF):
            kernel = GaussianRBF()
        block_of = partial(block_type, groups=groups, kernel=kernel, scale=scale, g_std=g_std)

    def make(channels: int) -> nn.Module:
        if channel_reduction < 1 or channels % channel_reduction:
            raise ValueError(f"channels ({channels}) must be divisible by channel_reduction ({channel_reduction})")
        return block_of(channels, inner_channels=channels // channel_reduction, norm=norm)

    return make


def backbone(
    arch: str, num_classes: int | None, weights: Weights, dropout: float
) -> tuple[models.ResNet, Checkpoint | None]:
    """Return a new ResNet without blocks, and the weights that are still to be loaded into it.

    Args:
        arch: As in :func:`resnet`, like all that follow.
        num_classes: Number of classes K; by default that of the weights, or 1000 without weights.
        weights: A name, an enum member or a file.
        dropout: Dropout probability before the classifier.

    Returns:
        The network with a new classifier, and what :func:`load_weights` takes, None where there is nothing.

    Raises:
        ValueError: An argument has a value that it must not have.
        CheckpointError: The weights cannot be had.
    """
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes ({num_classes}) must be at least 1")
    checkpoint = read_weights(models.get_model_weights(arch), weights, arch)
    num_classes = num_classes or (1000 if checkpoint is None else num_classes_of(checkpoint))
    network: models.ResNet = models.get_model(arch, num_classes=num_classes)
    network.fc = DropoutLinear(network.fc.in_features, num_classes, dropout)
    return network, checkpoint
