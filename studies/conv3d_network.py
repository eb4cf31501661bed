"""C2D ResNets of real 3d convolutions, written apart from the package: a measure for it and a reference for its tests.

Every convolution is an nn.Conv3d with a kernel of one frame, every norm an nn.BatchNorm3d, every pool an nn.MaxPool3d
on [B, C, T, H, W]; the frames stay where they are.
"""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

NUM_RESIDUAL_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


def convolution(channels_in: int, channels: int, size: int, stride: int = 1) -> nn.Conv3d:
    """Return a convolution of each frame."""
    half = size // 2
    return nn.Conv3d(channels_in, channels, (1, size, size), (1, stride, stride), (0, half, half), bias=False)


class ResidualBlock(nn.Module):
    """He et al.'s residual block, basic or bottleneck, with the block after it."""

    def __init__(self, channels_in: int, width: int, stride: int, bottleneck: bool, inserted: nn.Module | None) -> None:
        super().__init__()
        channels = 4 * width if bottleneck else width
        shapes = (
            [(channels_in, width, 1, 1), (width, width, 3, stride), (width, channels, 1, 1)]
            if bottleneck
            else [(channels_in, width, 3, stride), (width, width, 3, 1)]
        )
        self.depth = len(shapes)
        for i, shape in enumerate(shapes, start=1):
            self.add_module(f"conv{i}", convolution(*shape))
            self.add_module(f"bn{i}", nn.BatchNorm3d(shape[1]))
        self.downsample = None
        if stride > 1 or channels_in != channels:
            self.downsample = nn.Sequential(convolution(channels_in, channels, 1, stride), nn.BatchNorm3d(channels))
        self.inserted_block = inserted

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i in range(1, self.depth + 1):
            out = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(out))
            if i < self.depth:
                out = out.relu_()
        out = (out + (x if self.downsample is None else self.downsample(x))).relu_()
        return out if self.inserted_block is None else self.inserted_block(out)


class Conv3dResNet(nn.Module):
    """C2D of real 3d convolutions, with global average pooling and without dropout.

    Args:
        arch: "resnet18", "resnet34" or "resnet50".
        temporal_strides: Those of conv1, pool1 and pool2.
        num_classes: Size of the output.
        blocks: A function that makes the block, by the path of the residual block that it stands after.
    """

    def __init__(
        self,
        arch: str,
        temporal_strides: tuple[int, int, int],
        num_classes: int,
        blocks: Mapping[str, Callable[[int], nn.Module]],
    ) -> None:
        super().__init__()
        stride, stride1, stride2 = temporal_strides
        self.conv1 = nn.Conv3d(3, 64, (1, 7, 7), (stride, 2, 2), (0, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.pool1 = (
            nn.MaxPool3d(3, (stride1, 2, 2), 1) if stride1 > 1 else nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        )
        self.pool2 = nn.MaxPool3d((3, 1, 1), (stride2, 1, 1), (1, 0, 0)) if stride2 > 1 else nn.Identity()
        bottleneck = arch == "resnet50"
        channels = 64
        for stage, count in enumerate(NUM_RESIDUAL_BLOCKS[arch], start=1):
            elements = []
            for i in range(count):
                width = 64 * 2 ** (stage - 1)
                make_block = blocks.get(f"layer{stage}.{i}")
                out_channels = 4 * width if bottleneck else width
                inserted = None if make_block is None else make_block(out_channels)
                elements.append(ResidualBlock(channels, width, 2 if stage > 1 and i == 0 else 1, bottleneck, inserted))
                channels = out_channels
            self.add_module(f"layer{stage}", nn.Sequential(*elements))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, video: Tensor) -> Tensor:
        x = self.pool1(self.bn1(self.conv1(video)).relu_())
        x = self.pool2(self.get_submodule("layer1")(x))
        for stage in ("layer2", "layer3", "layer4"):
            x = self.get_submodule(stage)(x)
        return self.fc(x.mean(dim=(2, 3, 4)))

    def load_frames_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the weights of a network of 2d convolutions: each gets a time axis of length 1."""
        expected = self.state_dict()
        self.load_state_dict({key: value.view(expected[key].shape) for key, value in state_dict.items()})
