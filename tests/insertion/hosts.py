"""Networks of all kinds for blocks to go into, and comparisons."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import (
    convnext,
    densenet,
    mobilenet_v3_small,
    resnet,
    resnet18,
    swin_transformer,
    vision_transformer,
)
from torchvision.models.video import mvit
from torchvision.models.video import resnet as video_resnet

import cgnl
from cgnl.insertion import BLOCK_NAME, inserted_blocks

make_1d = partial(cgnl.CGNL1d, groups=4)
make_2d = partial(cgnl.CGNL2d, groups=4)
make_3d = partial(cgnl.CGNL3d, groups=4)


@dataclass(frozen=True)
class Host:
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    path: str
    make_block: Callable[[int], nn.Module] = make_2d
    layout: str = "channels_first"
    key: str | None = None

    @property
    def block_key(self) -> str:
        return self.key or f"{self.path}.{BLOCK_NAME}"

    def make(self) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        return self.build().eval(), torch.randn(self.shape)

    def insert(self, model: nn.Module, x: Tensor) -> nn.Module:
        torch.manual_seed(1)
        return cgnl.insert_blocks(model, {self.path: self.make_block}, example_input=x, layout=self.layout)

    def make_inserted(self) -> tuple[nn.Module, Tensor]:
        model, x = self.make()
        return awaken(self.insert(model, x)), x


class AudioNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(2, 16, 5, stride=2, bias=False), nn.BatchNorm1d(16), nn.ReLU(inplace=True))
        self.body = nn.Conv1d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(self.stem(x))).mean(-1))


class Mixing(nn.Module):
    """A convolution on [B, C, H, W] and a linear layer on [B, H, W, C], as in ConvNeXt."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def small_resnet() -> nn.Module:
    return resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)


def convnext_host() -> nn.Module:
    stages = [convnext.CNBlockConfig(16, 32, 1), convnext.CNBlockConfig(32, None, 1)]
    return convnext.ConvNeXt(stages, num_classes=10)


def swin_host() -> nn.Module:
    return swin_transformer.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=10)


def vit_host() -> nn.Module:
    model = vision_transformer.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10)
    nn.init.normal_(model.heads.head.weight)  # its classifier starts at zero
    return model


def densenet_host() -> nn.Module:
    return densenet.DenseNet(8, (2, 2), 16, num_classes=10)


def video_host() -> nn.Module:
    conv_makers = [video_resnet.Conv3DSimple] * 4
    return video_resnet.VideoResNet(
        video_resnet.BasicBlock, conv_makers, [1, 1, 1, 1], video_resnet.BasicStem, num_classes=10
    )


def small_mvit(size: int, channels: int, strides: list[list[int]]) -> nn.Module:
    """Blocks with these strides; they return tuples of tokens, of all frames, and sizes."""
    settings = [mvit.MSBlockConfig(1, channels, channels, [3, 3, 3], [], step, []) for step in strides]
    booleans = dict.fromkeys(["residual_pool", "rel_pos_embed", "proj_after_attn"], True)
    return mvit.MViT((size, size), 4, settings, residual_with_cls_embed=False, num_classes=5, **booleans)


def sequential_host() -> nn.Module:
    stage = nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(nn.Conv2d(3, 16, 3), stage, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def timm_host(name: str, **sizes: object) -> Callable[[], nn.Module]:
    return partial(timm.create_model, name, pretrained=False, num_classes=10, **sizes)


timm_convnext = timm_host("convnext_atto", depths=(1, 1, 1, 1), dims=(16, 16, 32, 32))
timm_vit = timm_host("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)
timm_swin = timm_host(
    "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4)
)

IMAGE = (2, 3, 32, 32)
HOSTS = {
    "resnet18": Host(resnet18, IMAGE, "layer3.0"),
    "resnet-stage": Host(small_resnet, IMAGE, "layer3", key=f"{BLOCK_NAME}_after_layer3"),
    "mobilenet_v3": Host(mobilenet_v3_small, (2, 3, 64, 64), "features.3"),
    "convnext": Host(convnext_host, IMAGE, "features.1.0"),
    "densenet-block": Host(
        densenet_host, IMAGE, "features.denseblock1", key=f"{BLOCK_NAME}_after_features_denseblock1"
    ),
    "swin": Host(swin_host, IMAGE, "features.1.1", layout="channels_last"),
    "vit": Host(vit_host, IMAGE, "encoder.layers.encoder_layer_0", make_1d, "channels_last"),
    "r3d": Host(video_host, (2, 3, 4, 16, 16), "layer2.0", make_3d),
    "timm-convnext": Host(timm_convnext, (2, 3, 64, 64), "stages.1.blocks.0"),
    "timm-regnet": Host(timm_host("regnetx_002"), IMAGE, "s3.b2"),
    "timm-regnet-stage": Host(timm_host("regnetx_002"), IMAGE, "s3", key=f"{BLOCK_NAME}_after_s3"),
    "timm-resnext": Host(timm_host("resnext26ts"), IMAGE, "stages.0.1"),
    "timm-vit": Host(timm_vit, IMAGE, "blocks.0", make_1d, "channels_last"),
    "timm-swin": Host(timm_swin, IMAGE, "layers.0", layout="channels_last"),
    "audio": Host(AudioNet, (2, 2, 33), "body", make_1d),
    "sequential-element": Host(sequential_host, IMAGE, "0"),
    "sequential-stage": Host(sequential_host, IMAGE, "1", key=f"1.0.{BLOCK_NAME}_after_1"),
}
# One for each way to hold a block (in its module, around a container, inside one) and each layout.
KINDS = ["resnet-stage", "swin", "vit", "audio", "sequential-stage"]

all_hosts = pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
hosts_of_all_kinds = pytest.mark.parametrize("host", [HOSTS[name] for name in KINDS], ids=KINDS)


def awaken(model: nn.Module) -> nn.Module:
    """Give the inserted blocks weights that move the output, as training does."""
    generator = torch.Generator().manual_seed(2)
    for block in inserted_blocks(model).values():
        for parameter in block.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            nn.init.zeros_(parameter).data += 0.3 * noise.to(parameter)
    return model


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal but for rounding, relative to the largest element: outputs of untrained networks are tiny or huge."""
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-4 * scale)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _hooks(module: nn.Module) -> tuple[dict[int, object], ...]:
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks


def outline(model: nn.Module) -> list[object]:
    """All that insertion could leave behind: names, attributes, children, hooks, flags."""
    return [
        (path, type(module), sorted(vars(module)), list(module._modules), *map(list, _hooks(module)))
        for path, module in model.named_modules()
    ] + [module.training for module in model.modules()]


def assert_same_step(model: nn.Module, other: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Outputs and all gradients of two forms of the same network."""
    results = []
    for forward, network in ((model, model), (other, other if isinstance(other, nn.Module) else model)):
        network.zero_grad()
        output = forward(x)
        output.square().sum().backward()
        of_network = {name.removeprefix("_orig_mod."): grad for name, grad in gradients(network).items()}
        results.append({"output": output.detach(), **of_network})
    assert results[0].keys() == results[1].keys()
    for name, expected in results[0].items():
        assert_close(results[1][name], expected)
