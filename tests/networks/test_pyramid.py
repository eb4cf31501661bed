"""Mask R-CNN on the feature pyramid of any classifier."""

from pathlib import Path

import pytest
import torch
from torchvision import models
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from cgnl import CGNL2d
from cgnl.explain.trace import trace_blocks
from cgnl.networks.checkpoints import CheckpointError
from cgnl.networks.pyramid import PyramidBackbone, named_detector

SIZES = {"size": 64, "max_size": 96, "proposals": 20, "rois": 16, "detections": 5, "score_threshold": 0.0}
NAMES = ["torchvision:regnet_y_400mf", "torchvision:mobilenet_v3_small", "timm:test_convnext"]


def blocks(num_axes: int) -> type[CGNL2d]:
    assert num_axes == 2
    return CGNL2d


def test_the_pyramid_of_a_resnet_is_torchvisions() -> None:
    torch.manual_seed(0)
    expected = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=torch.nn.BatchNorm2d).eval()
    ours = PyramidBackbone(models.resnet18(), "resnet18").eval()
    ours.load_state_dict(expected.state_dict())
    x = torch.randn(2, 3, 64, 96)
    maps, expected_maps = ours(x), expected(x)
    assert list(maps) == list(expected_maps)
    assert all(torch.equal(maps[key], expected_maps[key]) for key in maps)


@pytest.mark.parametrize("name", NAMES)
def test_a_detector_starts_as_its_host_trains_and_comes_back_from_a_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, _, places = named_detector(name, 4, blocks=blocks, **SIZES)
    assert len(places) == 1
    x = torch.rand(3, 64, 80)
    trace = trace_blocks(network, [x])
    assert list(trace.blocks) == list(places)
    plain = named_detector(name, 4, **SIZES).network.eval()
    plain.load_state_dict({key: value for key, value in network.state_dict().items() if "inserted_block" not in key})
    before, after = plain([x])[0], network.eval()([x])[0]
    assert len(before["boxes"])
    assert all(torch.equal(before[key], after[key]) for key in before)

    torch.save(network.state_dict(), tmp_path / "net.pth")
    again = named_detector(name, 4, blocks=blocks, weights=tmp_path / "net.pth", **SIZES).network.eval()
    assert torch.equal(again([x])[0]["boxes"], after["boxes"])
    with pytest.raises(CheckpointError, match="Only the classifier differs"):
        named_detector(name, 6, blocks=blocks, weights=tmp_path / "net.pth", **SIZES)
    new = named_detector(name, 6, blocks=blocks, weights=tmp_path / "net.pth", new_classifier=True, **SIZES).network
    assert new.roi_heads.box_predictor.cls_score.out_features == 6

    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 50.0]]), "labels": torch.tensor([2])}
    target["masks"] = torch.ones(1, 64, 80, dtype=torch.uint8)
    losses = network.train()([x], [target])
    sum(losses.values()).backward()
    unused = [key for key, value in network.named_parameters() if value.requires_grad and value.grad is None]
    assert not unused, "layers after the last map would stop training over several processes"


def test_a_classifiers_weights_start_the_body(tmp_path: Path) -> None:
    torch.manual_seed(0)
    host = models.mobilenet_v3_small(num_classes=7).eval()
    for norm in (module for module in host.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.running_var.uniform_(0.5, 2)
    torch.save(host.state_dict(), tmp_path / "host.pth")
    for norm in ("frozen", "batch"):
        network = named_detector(
            "torchvision:mobilenet_v3_small",
            4,
            blocks=blocks,
            places=["features.7"],
            backbone_weights=tmp_path / "host.pth",
            backbone_norm=norm,
            **SIZES,
        ).network.eval()
        x = torch.randn(1, 3, 64, 64)
        seen = {}
        last = network.backbone.body.get_submodule("features.12")[0]
        last.register_forward_hook(lambda module, args, output, seen=seen: seen.update(ours=args[0]))
        network.backbone(x)
        torch.testing.assert_close(seen["ours"], host.features[:12](x))
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"features.0.0.weight is missing"):
        named_detector("torchvision:mobilenet_v3_small", 4, backbone_weights=tmp_path / "other.pth", **SIZES)


def test_what_no_pyramid_stands_on() -> None:
    with pytest.raises(ValueError, match=r"arch \(timm:test_vit\) has no row of modules from stride 4 to 32"):
        named_detector("timm:test_vit", 4, **SIZES)
    with pytest.raises(ValueError, match=r"size \(0\) must be at least 1"):
        named_detector("torchvision:mobilenet_v3_small", 4, **{**SIZES, "size": 0})
    with pytest.raises(ValueError, match=r"weights \(COCO_V1\) must be a file for torchvision:mobilenet_v3_small"):
        named_detector("torchvision:mobilenet_v3_small", 4, weights="COCO_V1", **SIZES)
