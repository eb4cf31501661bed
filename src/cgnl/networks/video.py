"""Video networks: "C2D", an image ResNet over the frames, with temporal pooling and space-time blocks.

All convolutions act on one frame, so the frames are folded into the batch and the network has the weights, and
the state-dict keys, of the image network. Only temporal pooling and the blocks relate frames with each other.

Shapes: B batch, K classes, C channels, T frames, H and W height and width in pixels.

Source: Wang et al., "Non-local Neural Networks", CVPR 2018, table 1; Yue et al., "Compact Generalized Non-local
Network", NeurIPS 2018, section 4.1.
"""

import math
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from cgnl.blocks.kinds import MakeBlock, block_maker
from cgnl.insertion import attach_without_hook, block_without_hook
from cgnl.insertion.hook import RunsBlocksOfVideos
from cgnl.networks.image import backbone, block_places
from cgnl.networks.weights import Weights, load_weights
from cgnl.settings.video import VideoRecipe

Head = Literal["average", "fully_convolutional"]

STRIDES_32_FRAMES = (2, 2, 2)
"""Temporal strides of conv1, pool1 and pool2 for 32 frames, of which 4 are left in res3."""

STRIDES_8_FRAMES = (1, 1, 2)
"""The same for 8 frames, every eighth one of 64 ("8x8")."""

# Side in pixels of the windows that a fully convolutional head looks at: the whole map of an input of 224 pixels.
_WINDOW = 7


class C2DResNet(RunsBlocksOfVideos, nn.Module):
    """An image ResNet over the frames of a video.

    The stages of ``host`` are walked residual block by residual block (a hook on a whole stage never runs); the child
    ``inserted_block`` of a residual block is applied to that block's output, unfolded to [B, C, T, H, W]. Where a
    temporal stride is 1 there is no temporal pooling; else the pool looks at 3 frames. See :func:`c2d_resnet`.
    """

    def __init__(self, host: models.ResNet, temporal_strides: tuple[int, int, int], head: Head) -> None:
        super().__init__()
        if len(temporal_strides) != 3 or not all(isinstance(s, int) and s >= 1 for s in temporal_strides):
            raise ValueError(f"temporal_strides ({temporal_strides}) must be three integers of at least 1")
        if head not in get_args(Head):
            raise ValueError(f"head ({head!r}) must be one of {', '.join(get_args(Head))}")
        self.temporal_strides = tuple(temporal_strides)
        self.head = head
        _, stride1, stride2 = temporal_strides
        size1, size2 = (3 if stride > 1 else 1 for stride in (stride1, stride2))
        self.conv1 = host.conv1
        self.bn1 = host.bn1
        self.relu = host.relu
        self.pool1 = nn.MaxPool3d((size1, 3, 3), (stride1, 2, 2), (size1 // 2, 1, 1))
        self.layer1 = host.layer1
        self.pool2 = nn.MaxPool3d((size2, 1, 1), (stride2, 1, 1), (size2 // 2, 0, 0)) if stride2 > 1 else nn.Identity()
        self.layer2 = host.layer2
        self.layer3 = host.layer3
        self.layer4 = host.layer4
        self.avgpool = host.avgpool
        self.fc = host.fc

    def forward(self, video: Tensor) -> Tensor:
        """Return the logits [B, K] of videos [B, 3, T, H, W], of any T, H and W from 1 on.

        Those of a fully convolutional head are logarithms of probabilities. Another shape is a ValueError.
        """
        features = self.forward_features(video)
        if self.head == "average":
            return self.fc(self.avgpool(_fold(features)).flatten(1).unflatten(0, (video.shape[0], -1)).mean(1))
        return self._log_mean_probability(features.mean(2))

    def forward_features(self, video: Tensor) -> Tensor:
        """Return the last map [B, C, T', H / 32, W / 32] of videos [B, 3, T, H, W]; another shape is a ValueError."""
        if video.dim() != 5 or video.shape[1] != self.conv1.in_channels or 0 in video.shape:
            raise ValueError(f"video {tuple(video.shape)} must be [B, 3, T, H, W], none of them 0")
        batch = video.shape[0]
        frames = _fold(video[:, :, :: self.temporal_strides[0]])
        frames = self.relu(self.bn1(self.conv1(frames)))
        frames = _fold(self.pool1(_unfold(frames, batch)))
        frames = self._stage(self.layer1, frames, batch)
        frames = _fold(self.pool2(_unfold(frames, batch)))
        for stage in (self.layer2, self.layer3, self.layer4):
            frames = self._stage(stage, frames, batch)
        return _unfold(frames, batch)

    def insert_block(self, path: str, make_block: MakeBlock) -> nn.Module:
        """Put a block that keeps the shape of [B, C, T, H, W] after a residual block such as "layer3.4"; return it."""
        residual_block = self.get_submodule(path)
        norms = [child for child in residual_block.children() if isinstance(child, nn.BatchNorm2d)]
        block = make_block(norms[-1].num_features)
        block.to(next(residual_block.parameters())).train(residual_block.training)
        attach_without_hook(residual_block, block)
        return block

    def _stage(self, stage: nn.Sequential, frames: Tensor, batch: int) -> Tensor:
        for residual_block in stage:
            frames = residual_block(frames)
            block = block_without_hook(residual_block)
            if block is not None:
                video = _unfold(frames, batch)
                refined = block(video)
                if refined.shape != video.shape:
                    raise ValueError(
                        f"block must keep its input's shape, but made {list(refined.shape)} of {list(video.shape)}"
                    )
                frames = _fold(refined)
        return frames

    def _log_mean_probability(self, features: Tensor) -> Tensor:
        """Logarithm of the softmax averaged over the windows of [B, C, H, W]."""
        height, width = features.shape[2:]
        pooled = F.avg_pool2d(features, (min(_WINDOW, height), min(_WINDOW, width)), stride=1)
        log_probability = self.fc(pooled.flatten(2).transpose(1, 2)).log_softmax(2)
        return log_probability.logsumexp(1) - math.log(log_probability.shape[1])

    def to(self, *args: Any, memory_format: torch.memory_format | None = None, **kwargs: Any) -> Self:
        """As ``nn.Module.to``, but ``channels_last`` and ``channels_last_3d`` both mean that frames are channels-last.

        Only the weights of the 2d convolutions are then changed. Those of the blocks have one tap, so that both
        formats are the same, but PyTorch refuses ``channels_last`` for tensors of their number of axes.
        """
        if args or kwargs:
            super().to(*args, **kwargs)
        if memory_format is not None:
            if memory_format == torch.channels_last_3d:
                memory_format = torch.channels_last
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    module.to(memory_format=memory_format)
        return self

    def extra_repr(self) -> str:
        return f"temporal_strides={self.temporal_strides}, head={self.head!r}"


def _fold(video: Tensor) -> Tensor:
    """[B, C, T, H, W] as [B·T, C, H, W]; a view where channels are last."""
    return video.transpose(1, 2).flatten(0, 1)


def _unfold(frames: Tensor, batch: int) -> Tensor:
    """[B·T, C, H, W] as [B, C, T, H, W], a view."""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)


def c2d_resnet(
    arch: str,
    block: str | MakeBlock | None = None,
    num_blocks: int = 1,
    *,
    num_classes: int | None = None,
    weights: Weights = None,
    new_classifier: bool = False,
    dropout: float = 0.5,
    temporal_strides: tuple[int, int, int] = STRIDES_32_FRAMES,
    head: Head = "average",
    places: Sequence[str] = (),
    trust: Collection[str] = (),
    **options: Any,
) -> C2DResNet:
    """Build a C2D ResNet with space-time blocks after the residual blocks that the paper names.

    ``c2d_resnet18``, ``c2d_resnet34``, ``c2d_resnet50``, ``c2d_resnet101`` and ``c2d_resnet152`` are this function with
    ``arch`` given. A new block is the identity, so the network's output is that of its weights until it is trained.
    Arguments that are not listed, and the errors, are those of :func:`cgnl.networks.image.resnet`.

    Args:
        block: As there; its modules keep the shape of [B, C, T, H, W].
        weights: As there: a name, of the image network, or a file of an image or video network. Blocks of images become
            blocks of videos.
        temporal_strides: Strides of conv1, pool1 and pool2 along time: ``STRIDES_32_FRAMES``, ``STRIDES_8_FRAMES`` or
            others.
        head: "average" for the average over time and space before the classifier. "fully_convolutional" for the
            classifier on each window of 7x7 positions (the average over it and over time), the mean of their softmax,
            and of that the logarithm: the softmax of the output is the mean.
        options: By default an NL block max-pools phi and g over space (``subsample``) and has biases, as in the
            Non-local code.

    Returns:
        The network, from videos [B, 3, T, H, W] to logits [B, K]. Its state dict is torchvision's and the keys of the
            blocks, such as ``layer3.4.inserted_block.theta.weight``.

    >>> with torch.device("meta"):
    ...     network = c2d_resnet18("cgnl", num_classes=200)
    ...     logits = network(torch.empty(2, 3, 32, 64, 64))
    >>> logits.shape, network.layer3[0].inserted_block.theta.weight.shape
    (torch.Size([2, 200]), torch.Size([128, 256, 1, 1, 1]))
    """
    make_block = block_maker(block, options, num_axes=3, defaults=VideoRecipe.block_defaults, trust=trust)
    places = [*places] or block_places(arch, num_blocks if make_block else 1)
    host, checkpoint = backbone(arch, num_classes, weights, dropout)
    network = C2DResNet(host, temporal_strides, head)
    if make_block:
        for path in places:
            network.insert_block(path, make_block)
    if checkpoint is not None:
        load_weights(network, checkpoint, new_classifier)
    return network


c2d_resnet18 = partial(c2d_resnet, "resnet18")
c2d_resnet34 = partial(c2d_resnet, "resnet34")
c2d_resnet50 = partial(c2d_resnet, "resnet50")
c2d_resnet101 = partial(c2d_resnet, "resnet101")
c2d_resnet152 = partial(c2d_resnet, "resnet152")
