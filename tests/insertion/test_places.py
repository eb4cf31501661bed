"""A callable alone goes to the paper's place, in networks of all kinds."""

import logging
import re
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from hosts import IMAGE, Mixing, make_1d, make_2d, make_3d, small_mvit, small_resnet, timm_host, timm_swin, timm_vit
from torch import Tensor, nn
from torchvision.models import convnext, densenet, swin_transformer, vgg, vision_transformer
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

import cgnl
from cgnl.insertion import inserted_blocks
from cgnl.insertion.places import find_places
from cgnl.networks.image import ARCHITECTURES, block_places
from cgnl.networks.video import c2d_resnet18

SMALL_VIT = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


def tv(name: str, **options: Any) -> Callable[[], nn.Module]:
    return partial(torchvision.models.get_model, name, weights=None, num_classes=10, **options)


def tv_convnext() -> nn.Module:
    sizes = [8, 16, 32, 64, None]
    return convnext.ConvNeXt([convnext.CNBlockConfig(*sizes[n : n + 2], 2) for n in range(4)], num_classes=10)


def tv_swin() -> nn.Module:
    return swin_transformer.SwinTransformer([4, 4], 16, [2, 2, 4, 2], [2, 2, 4, 4], [2, 2], num_classes=10)


def tv_vit() -> nn.Module:
    model = vision_transformer.VisionTransformer(32, 8, 4, 2, 32, 64, num_classes=10)
    nn.init.normal_(model.heads.head.weight)  # its classifier starts at zero
    return model


def hf_vit() -> nn.Module:
    return transformers.ViTForImageClassification(transformers.ViTConfig(intermediate_size=64, **SMALL_VIT))


def hf_convnext() -> nn.Module:
    config = transformers.ConvNextConfig(hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 3, 1])
    return transformers.ConvNextForImageClassification(config)


def hf_swin() -> nn.Module:
    """Its layers return tuples, and a stage ends with the map of the next."""
    config = transformers.SwinConfig(
        image_size=64, embed_dim=16, depths=[1, 2, 4, 2], num_heads=[2, 2, 4, 4], window_size=2
    )
    return transformers.SwinForImageClassification(config)


def sequential(*channels: int) -> nn.Module:
    """Convolutions with stride 2 and two without; the network is nothing but one nn.Sequential."""
    layers: list[nn.Module] = []
    for old, new in zip((3, *channels[:-1]), channels, strict=True):
        layers += [nn.Conv2d(old, new, 3, stride=2, padding=1), nn.BatchNorm2d(new), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(new, new, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10))


class DoubleConv(nn.Sequential):
    def __init__(self, old: int, new: int) -> None:
        super().__init__(nn.Conv2d(old, new, 3, padding=1), nn.ReLU(), nn.Conv2d(new, new, 3, padding=1), nn.ReLU())


class UNet(nn.Module):
    """Down to 1/32 and up again: the decoder has maps of all sizes too."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [8, 8, 16, 16, 24, 32]
        self.down = nn.ModuleList(DoubleConv(*pair) for pair in zip([3, *sizes[:-1]], sizes, strict=True))
        self.up = nn.ModuleList(DoubleConv(sizes[n] + sizes[n + 1], sizes[n]) for n in range(4, -1, -1))
        self.head = nn.Conv2d(sizes[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, stage in enumerate(self.down):
            x = stage(nn.functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for stage, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = stage(torch.cat([skip, nn.functional.interpolate(x, scale_factor=2)], 1))
        return self.head(x)


class Residual1d(nn.Module):
    def __init__(self, old: int, new: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(old, new, 9, stride, 4)
        self.norm = nn.BatchNorm1d(new)
        self.pool = nn.Conv1d(old, new, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)) + self.pool(x))


def cnn_1d() -> nn.Module:
    body = [Residual1d(4, 16, 4), Residual1d(16, 16, 1), Residual1d(16, 32, 4), Residual1d(32, 32, 1)]
    return nn.Sequential(*body, Residual1d(32, 32, 1), Residual1d(32, 64, 4), nn.AdaptiveAvgPool1d(1), nn.Flatten())


class Wrapped(nn.Module):
    """A network in another, called with a dict, with a module that never runs and an activation that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model("resnet18", num_classes=0)
        self.unused = nn.Conv2d(3, 16, 1)
        self.act = nn.ReLU()
        self.head = nn.Linear(512, 10)

    def forward(self, image: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.act(self.backbone(self.act(image))) * scale)}


def vgg_host() -> nn.Module:
    """A VGG-11 with thin layers."""
    layers = vgg.make_layers([8, "M", 16, "M", 16, 16, "M", 16, 16, "M", 16, 16, "M"])
    return nn.Sequential(OrderedDict(features=layers, flatten=nn.Flatten(), head=nn.Linear(16, 10)))


def pooled_mvit() -> nn.Module:
    """Two blocks a stage from 1/4 to 1/32; they return tuples of tokens, of all frames, and sizes."""
    return small_mvit(64, 8, [[1, 1, 1], [1, 1, 1], *([1, 2, 2], [1, 1, 1]) * 3])


def fasterrcnn() -> nn.Module:
    """It resizes its input from 64 to 128 pixels."""
    backbone = mobilenet_backbone(backbone_name="mobilenet_v3_small", weights=None, fpn=True, trainable_layers=6)
    sizes = {"min_size": 128, "max_size": 128, "rpn_post_nms_top_n_train": 20, "rpn_post_nms_top_n_test": 20}
    anchors = AnchorGenerator(((16,), (32,), (64,)), ((1.0,),) * 3)
    return FasterRCNN(
        backbone,
        None,
        rpn_anchor_generator=anchors,
        box_head=TwoMLPHead(256 * 49, 16),
        box_predictor=FastRCNNPredictor(16, 3),
        **sizes,
    )


class Residual(nn.Module):
    """A residual block of one convolution; its result is that of its activation."""

    def __init__(self, channels: int, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels) if norm else None
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return x + y if self.norm is None else self.act(self.norm(y) + x)


def residuals(norm: bool) -> nn.Module:
    """Stages of a layer with stride and residual blocks; no two are alike in shape."""
    stages = [(3, 8, 4, 2), (8, 16, 2, 2), (16, 16, 2, 3), (16, 16, 2, 2)]
    rows = [
        nn.Sequential(nn.Conv2d(old, new, stride, stride), *(Residual(new, norm) for _ in range(depth)))
        for old, new, stride, depth in stages
    ]
    return nn.Sequential(OrderedDict(zip("abcd", rows, strict=True)))


def convmixer() -> nn.Module:
    """Each block is a row of a residual block of one convolution and of another convolution."""
    blocks = [nn.Sequential(Residual(16, norm=False), nn.Conv2d(16, 16, 1)) for _ in range(4)]
    return nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 16, 8, 8), blocks=nn.Sequential(*blocks)))


class Unit(nn.Module):
    """A residual unit of two convolutions and one around them."""

    def __init__(self, old: int, new: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(old, new, 3, stride, 1), nn.ReLU(), nn.Conv2d(new, new, 3, padding=1))
        self.pool = nn.Conv2d(old, new, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.pool(x)


class Skip(nn.Module):
    """A level of a U-Net: around the levels below it, with a gate of the skipped map where it has one."""

    def __init__(self, inner: nn.Module, gate: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.gate = inner, gate

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x if self.gate is None else self.gate(x), self.inner(x)], 1)


def nested_unet(*channels: int, gated: bool = False) -> nn.Module:
    """A U-Net whose levels stand inside one another; the innermost is at 1/16."""

    def level(old: int, new: int, *more: int) -> nn.Module:
        if not more:
            return nn.Sequential(Unit(old, new, 2), nn.ConvTranspose2d(new, old, 2, 2))
        below = Skip(level(new, *more), Unit(new, new) if gated else None)
        return nn.Sequential(Unit(old, new, 2), below, nn.ConvTranspose2d(2 * new, old, 2, 2))

    return nn.Sequential(OrderedDict(model=level(3, *channels), head=nn.Conv2d(3, 2, 1)))


def clip() -> nn.Module:
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**SMALL_VIT, "intermediate_size": 64}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision))


def test_the_place_is_among_the_images_and_not_in_the_text() -> None:
    example = {"input_ids": torch.randint(0, 99, (2, 7)), "pixel_values": torch.randn(IMAGE)}
    assert find_places(clip().eval(), example).paths == ["vision_model.encoder.layers.1"]
    text = {"input_ids": example["input_ids"]}
    assert find_places(clip().text_model.eval(), text, layout="channels_last").paths[0].endswith("layers.0")


class Weighted(nn.Module):
    """A layer, and weights of its channels from two modules of squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.low, self.high = (
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, channels, 1))
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * (self.low(x) + self.high(x)).sigmoid()


def squeezing() -> nn.Module:
    """Layers alone, and squeeze and excitation behind them."""
    layers = sequential(8, 16, 16, 32, 64)[:25]
    return nn.Sequential(OrderedDict(features=layers, head=Weighted(64), out=nn.Conv2d(64, 2, 1)))


class Pyramid(nn.Module):
    """Branches of one input, with several dilations, side by side, as in the heads of DeepLab."""

    def __init__(self, old: int, new: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Sequential(nn.Conv2d(old, old, 3, padding=n, dilation=n), nn.Conv2d(old, new, 1)), nn.ReLU()
            )
            for n in (1, 2, 3)
        )
        self.join = nn.Conv2d(3 * new, new, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.cat([branch(x) for branch in self.branches], 1))


def pyramid() -> nn.Module:
    """A ResNet with dilation instead of stride in its last stage, and a head that goes on at 1/16."""
    body = torchvision.models.resnet18(weights=None)
    body.layer4[0].conv1.stride = body.layer4[0].downsample[0].stride = (1, 1)
    separable = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 1))
    head = nn.Sequential(Pyramid(512, 32), separable, nn.ReLU())
    return nn.Sequential(OrderedDict([*list(body.named_children())[:-2], ("head", head)]))


DEEPEST, NEXT, GATE = "model.1.inner.1.inner.1.inner.0", "model.1.inner.1.inner.0", "model.1.inner.1.inner.1.gate"
BIG = (2, 3, 64, 64)
VIDEO = (2, 3, 2, 32, 32)
# For each network: how it is built, its input, the block, and the places of one block and of five.
NETWORKS: dict[str, tuple[Any, Any, Any, list[str], list[str]]] = {
    "resnet18": (tv("resnet18"), IMAGE, make_2d, ["layer3.0"], ["layer2.0", "layer3.0"]),
    "resnet50": (
        tv("resnet50"),
        IMAGE,
        make_2d,
        ["layer3.4"],
        ["layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5"],
    ),
    "one residual block a stage": (small_resnet, IMAGE, make_2d, ["layer3.0"], ["layer2.0", "layer3.0"]),
    "resnext": (timm_host("resnext26ts"), BIG, make_2d, ["stages.2.0"], ["stages.1.0", "stages.2.0"]),
    "convnext": (tv_convnext, BIG, make_2d, ["features.5.0"], ["features.3.0", "features.5.0"]),
    "timm convnext": (
        timm_host("convnext_atto", dims=(16, 16, 32, 32)),
        BIG,
        make_2d,
        ["stages.2.blocks.4"],
        ["stages.1.blocks.0", "stages.2.blocks.1", "stages.2.blocks.3", "stages.2.blocks.5"],
    ),
    "hf convnext": (
        hf_convnext,
        BIG,
        make_2d,
        ["convnext.encoder.stages.2.layers.1"],
        ["convnext.encoder.stages.1.layers.0", "convnext.encoder.stages.2.layers.1"],
    ),
    "regnet": (
        tv("regnet_y_400mf"),
        BIG,
        make_2d,
        ["trunk_output.block3.block3-4"],
        ["trunk_output.block2.block2-1", *(f"trunk_output.block3.block3-{n}" for n in (1, 3, 5))],
    ),
    "timm regnet": (timm_host("regnetx_002"), BIG, make_2d, ["s3.b3"], ["s2.b1", "s3.b2", "s3.b4"]),
    "efficientnet": (tv("efficientnet_b0"), BIG, make_2d, ["features.5.1"], ["features.4.1", "features.5.1"]),
    "timm efficientnet": (timm_host("efficientnet_b0"), BIG, make_2d, ["blocks.4.1"], ["blocks.3.1", "blocks.4.1"]),
    "mobilenet": (tv("mobilenet_v3_small"), BIG, make_2d, ["features.7"], ["features.2", "features.5", "features.7"]),
    "shufflenet": (
        tv("shufflenet_v2_x0_5"),
        BIG,
        make_2d,
        ["stage3.6"],
        ["stage2.1", "stage2.3", "stage3.1", "stage3.3", "stage3.5"],
    ),
    "densenet": (
        lambda: densenet.DenseNet(8, (2, 2, 3, 2), 16, num_classes=10),
        BIG,
        partial(cgnl.CGNL2d, groups=1),
        ["features.denseblock3"],
        ["features.denseblock2", "features.denseblock3"],
    ),
    "inception": (
        tv("googlenet", aux_logits=False, init_weights=False),
        BIG,
        make_2d,
        ["inception4d"],
        ["inception3a", "inception4b", "inception4d"],
    ),
    "swin": (tv_swin, BIG, make_2d, ["features.5.2"], ["features.3.0", "features.5.1", "features.5.3"]),
    "timm swin": (timm_swin, IMAGE, make_2d, ["layers.0.blocks.0"], ["layers.0.blocks.0"]),
    "hf swin": (
        hf_swin,
        BIG,
        make_1d,
        ["swin.encoder.layers.2.blocks.2"],
        ["swin.encoder.layers.1.blocks.0", "swin.encoder.layers.2.blocks.1", "swin.encoder.layers.2.blocks.3"],
    ),
    "vit": (
        tv_vit,
        IMAGE,
        make_1d,
        ["encoder.layers.encoder_layer_2"],
        [f"encoder.layers.encoder_layer_{n}" for n in (1, 3)],
    ),
    "timm vit": (timm_vit, IMAGE, make_1d, ["blocks.0"], ["blocks.0"]),
    "hf vit": (hf_vit, IMAGE, make_1d, ["vit.layers.1"], ["vit.layers.1"]),
    "c2d": (c2d_resnet18, VIDEO, make_2d, ["layer3.0"], ["layer2.0", "layer3.0"]),
    "c2d of videos": (c2d_resnet18, VIDEO, make_3d, ["layer3.0"], ["layer2.0", "layer3.0"]),
    # The stem halves space alone: layer4 is at 1/16 of it, and layer3 of the number of positions.
    "r3d": (tv("r3d_18"), VIDEO, make_3d, ["layer4.0"], ["layer3.0", "layer4.0"]),
    "r2plus1d": (tv("r2plus1d_18"), VIDEO, make_3d, ["layer4.0"], ["layer3.0", "layer4.0"]),
    "mc3": (tv("mc3_18"), (2, 3, 4, 32, 32), make_3d, ["layer4.0"], ["layer3.0", "layer4.0"]),
    "mvit": (pooled_mvit, (2, 3, 4, 64, 64), make_1d, ["blocks.4"], ["blocks.2", "blocks.4"]),
    "one sequential": (lambda: sequential(8, 16, 16, 32, 64), IMAGE, make_2d, ["17"], ["12", "17"]),
    "vgg": (vgg_host, IMAGE, make_2d, ["features.17"], ["features.12", "features.17"]),
    "unet": (UNet, BIG, make_2d, ["down.4"], ["down.3", "down.4"]),
    "1d": (cnn_1d, (2, 4, 256), make_1d, ["3"], ["0", "3"]),
    "squeezing": (squeezing, BIG, make_2d, ["features.17"], ["features.12", "features.17"]),
    "pyramid": (pyramid, BIG, make_2d, ["layer4.0"], ["layer3.0", "layer4.0"]),
    "residuals of one layer": (partial(residuals, norm=False), BIG, make_2d, ["c.2"], ["b.1", "c.2"]),
    "with a norm": (partial(residuals, norm=True), BIG, make_2d, ["c.2"], ["b.1", "c.2"]),
    "convmixer": (convmixer, IMAGE, make_2d, ["blocks.2"], ["blocks.1", "blocks.3"]),
    "nested unet": (partial(nested_unet, 8, 16, 32, 64), BIG, make_2d, [DEEPEST], [NEXT, DEEPEST]),
    "gated unet": (partial(nested_unet, 8, 16, 32, 64, gated=True), BIG, make_2d, [DEEPEST], [GATE, DEEPEST]),
    "last stage but one": (lambda: sequential(8, 16, 32), IMAGE, make_2d, ["7"], ["2", "7"]),
    "faster r-cnn": (
        fasterrcnn,
        ([torch.rand(3, 64, 64), torch.rand(3, 64, 64)],),
        make_2d,
        ["backbone.body.7"],
        ["backbone.body.2", "backbone.body.5", "backbone.body.7"],
    ),
    "wrapped": (
        Wrapped,
        {"image": torch.randn(IMAGE), "scale": torch.ones(1)},
        make_2d,
        ["backbone.layer3.0"],
        ["backbone.layer2.0", "backbone.layer3.0"],
    ),
}
networks = pytest.mark.parametrize(("build", "example", "make_block", "one", "five"), NETWORKS.values(), ids=NETWORKS)


def _input(example: Any) -> Any:
    if isinstance(example, tuple) and isinstance(example[0], int):
        return torch.randn(example)
    return example


def _call(model: nn.Module, example: Any) -> Any:
    if isinstance(example, dict):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def _tensors(output: Any) -> list[Tensor]:
    return list(torch.utils._pytree.tree_leaves(dict(output) if isinstance(output, dict) else output))


def _loss(model: nn.Module, example: Any) -> Tensor:
    if isinstance(example, tuple):  # a detector
        target = {"boxes": torch.tensor([[8.0, 8, 60, 60]]), "labels": torch.tensor([1])}
        return sum(model(*example, [target] * len(example[0])).values())
    return sum(output.square().sum() for output in _tensors(_call(model, example)))


@networks
def test_place_output_and_gradients(build, example, make_block, one, five) -> None:
    torch.manual_seed(0)
    model, example = build().eval(), _input(example)
    before = _tensors(_call(model, example))
    assert cgnl.insert_blocks(model, make_block, example_input=example) is model
    assert list(inserted_blocks(model)) == one
    for after, plain in zip(_tensors(_call(model, example)), before, strict=True):
        assert torch.equal(after, plain)

    cgnl.remove_blocks(model)
    cgnl.insert_blocks(model, make_block, example_input=example, num_blocks=5)
    assert sorted(inserted_blocks(model)) == sorted(five)
    _loss(model.train(), example).backward()
    for block in inserted_blocks(model).values():
        assert all(parameter.grad is not None for parameter in block.parameters())
        assert block.norm.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_places_are_those_of_the_papers_networks(arch: str) -> None:
    host = torchvision.models.get_model(arch, weights=None)
    for num_blocks in (1, 2) if arch == "resnet18" else (1, 5):
        assert find_places(host, torch.randn(1, 3, 32, 32), num_blocks).paths == block_places(arch, num_blocks)


def test_says_which_place_it_took(capsys: Any, caplog: Any) -> None:
    x = torch.randn(IMAGE)
    cgnl.insert_blocks(small_resnet(), make_2d, example_input=x)
    expected = "put 1 block after layer3.0, on the map [B, C, H, W] = [2, 256, 2, 2] (channels_first)"
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"cgnl: {expected}\n")
    with caplog.at_level(logging.INFO):
        cgnl.insert_blocks(small_resnet(), make_2d, example_input=x)
    assert [(record.name, record.getMessage()) for record in caplog.records] == [("cgnl.insertion", expected)]
    assert capsys.readouterr().err == ""
    cgnl.insert_blocks(small_resnet(), make_2d, example_input=x, num_blocks=5)
    assert capsys.readouterr().err == (
        "cgnl: put 2 blocks after layer2.0, layer3.0, on maps [B, C, H, W] (channels_first); "
        "only 2 of 5 fit into the stages\n"
    )
    cgnl.insert_blocks(timm_vit(), make_1d, example_input=x)
    assert "put 1 block after blocks.0, on the tokens [B, N, C] = [2, 17, 32] (" in capsys.readouterr().err
    cgnl.insert_blocks(small_resnet(), {"layer1": make_2d}, example_input=x)
    assert capsys.readouterr().err == ""


def test_says_nothing_of_a_block_that_did_not_go_in(capsys: Any) -> None:
    host, x = small_resnet(), torch.randn(IMAGE)
    with pytest.raises(ValueError, match="keep its input's shape"):
        cgnl.insert_blocks(host, lambda channels: nn.Conv2d(channels, channels, 2), example_input=x)
    assert capsys.readouterr().err == ""


def test_says_it_on_stderr_where_no_handler_would_show_a_log_line(capsys: Any) -> None:
    logger = logging.getLogger("cgnl.insertion")
    try:
        logger.propagate = False  # to the handlers of pytest
        logger.setLevel(logging.INFO)
        cgnl.insert_blocks(small_resnet(), make_2d, example_input=torch.randn(IMAGE))
    finally:
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    assert "put 1 block after layer3.0" in capsys.readouterr().err


class Foreign(nn.Module):
    """A host with a method of its own that is called like one of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torchvision.models.video.r3d_18(num_classes=3)

    def insert_block(self, index: int) -> None:
        raise KeyError(index)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_a_method_of_the_host_is_not_taken_for_ours() -> None:
    host = Foreign()
    cgnl.insert_blocks(host, cgnl.CGNL3d, example_input=torch.randn(VIDEO))
    assert list(inserted_blocks(host)) == ["net.layer4.0"]


def test_the_blocks_are_those_of_the_path() -> None:
    host, x = small_resnet(), torch.randn(IMAGE)
    torch.manual_seed(1)
    found = cgnl.insert_blocks(host, make_2d, example_input=x).state_dict()
    cgnl.remove_blocks(host)
    torch.manual_seed(1)
    at_path = cgnl.insert_blocks(host, {"layer3.0": make_2d}, example_input=x).state_dict()
    assert found.keys() == at_path.keys()
    assert all(torch.equal(found[key], at_path[key]) for key in found)


def test_five_places_in_a_network_of_one_stage() -> None:
    host = timm_host("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=12, num_heads=2)()
    assert find_places(host, torch.randn(IMAGE), 5).paths == [
        "blocks.1",
        "blocks.3",
        "blocks.5",
        "blocks.7",
        "blocks.9",
    ]


def test_timm_names_the_stage() -> None:
    """Its map of 20 pixels is 2 x 2, which is nearer to 1/8."""
    x = torch.randn(1, 3, 20, 20)
    assert find_places(timm_host("resnet18")(), x).paths == ["layer3.0"]
    assert find_places(nn.Sequential(timm_host("resnet18")()), x).paths == ["0.layer3.0"]


def test_a_layout_that_cannot_be_told_is_refused_or_given() -> None:
    host, x = nn.Sequential(nn.Conv2d(3, 8, 2, 2), Mixing(8), Mixing(8)), torch.randn(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"layout: .* such as \[1, 8, 8, 8\] after '1'; give layout="):
        cgnl.insert_blocks(host, make_2d, example_input=x)
    cgnl.insert_blocks(host, make_2d, example_input=x, layout="channels_first")
    assert list(inserted_blocks(host)) == ["1"]
    # Not square, or with blocks elsewhere that do tell, it is found.
    host = cgnl.remove_blocks(host)
    assert find_places(host, torch.randn(1, 3, 16, 20)).layout == "channels_first"
    more = nn.Sequential(*host, nn.Conv2d(8, 16, 2, 2), Mixing(16), Mixing(16))
    assert find_places(more, x)[:2] == (["1"], "channels_first")


class SequenceFirst(nn.Module):
    """A transformer of tokens [N, B, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        layers = (nn.TransformerEncoderLayer(16, 2, 32, batch_first=False) for _ in range(3))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.embed(x).transpose(0, 1))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = small_resnet()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) - self.body(x.flip(-1))


@pytest.mark.parametrize(
    ("build", "x", "make_block", "message"),
    [
        (tv_vit, IMAGE, make_2d, r"they take 2 axes .* have 1, such as tokens \[B, N, C\] = .*; give .* cgnl\.CGNL1d"),
        (small_resnet, IMAGE, make_1d, r"they take 1 axis .* have 2, such as \[B, C, H, W\] .*; give .* cgnl\.CGNL2d"),
        (
            small_resnet,
            (1, 3, 16, 16),
            make_2d,
            r"example_input is too small .* after 'layer4\.0' has a single position",
        ),
        (SequenceFirst, (2, 5, 8), make_1d, r"no place was found in SequenceFirst; give paths"),
        (Twice, IMAGE, make_2d, r"no place was found in Twice; give paths"),
        (lambda: nn.Sequential(nn.Flatten(2), nn.Linear(64, 8)), (2, 3, 8, 8), make_2d, r"no place .* 1 \[2, 3, 8\]"),
    ],
)
def test_where_nothing_can_be_found(build: Any, x: Any, make_block: Any, message: str) -> None:
    model = build()
    with pytest.raises(ValueError, match=message) as caught:
        cgnl.insert_blocks(model, make_block, example_input=torch.randn(x))
    assert "\n" not in str(caught.value)
    assert not inserted_blocks(model)


def test_arguments_of_a_callable_alone() -> None:
    host, x = small_resnet(), torch.randn(IMAGE)
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=re.escape(f"num_blocks ({wrong!r}) must be an integer of at least 1")):
            cgnl.insert_blocks(host, make_2d, example_input=x, num_blocks=wrong)
    with pytest.raises(ValueError, match=r"num_blocks \(5\) applies only where blocks is a callable"):
        cgnl.insert_blocks(host, {"layer3.0": make_2d}, example_input=x, num_blocks=5)
    with pytest.raises(ValueError, match=r"select .* must be left out where blocks is a callable"):
        cgnl.insert_blocks(host, make_2d, example_input=x, select=0)
    with pytest.raises(ValueError, match="such as the class CGNL2d itself, not a block"):
        cgnl.insert_blocks(host, cgnl.CGNL2d(16), example_input=x)
    with pytest.raises(ValueError, match=r"insert blocks before torch\.compile"):
        cgnl.insert_blocks(torch.compile(host), make_2d, example_input=x)
    cgnl.insert_blocks(host, make_2d, example_input=x)
    with pytest.raises(ValueError, match=r"blocks\['layer3\.0'\]: a block is already inserted there"):
        cgnl.insert_blocks(host, make_2d, example_input=x)
