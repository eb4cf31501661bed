"""Blocks in torchvision's own detectors, by ``insert_blocks`` alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection

import cgnl
from cgnl.insertion import inserted_blocks

PLACE = "backbone.body.layer3.4"
# few candidates, all of them kept: scores of untrained networks are low
FEW = {"min_size": 64, "max_size": 96, "weights": None, "weights_backbone": None}
RPN = {
    **{f"rpn_{when}_nms_top_n_{mode}": 10 for when in ("pre", "post") for mode in ("train", "test")},
    "box_batch_size_per_image": 8,
    "box_score_thresh": 0.0,
    "box_detections_per_img": 3,
}
TOP = {"score_thresh": 0.0, "topk_candidates": 20, "detections_per_img": 3}
DETECTORS: dict[str, Callable[..., nn.Module]] = {
    "faster_rcnn": partial(detection.fasterrcnn_resnet50_fpn, num_classes=4, **FEW, **RPN),
    "faster_rcnn_v2": partial(detection.fasterrcnn_resnet50_fpn_v2, num_classes=4, **FEW, **RPN),
    "retinanet": partial(detection.retinanet_resnet50_fpn, num_classes=4, **FEW, **TOP),
    "fcos": partial(detection.fcos_resnet50_fpn, num_classes=4, **FEW, **TOP),
    "keypoint_rcnn": partial(detection.keypointrcnn_resnet50_fpn, num_classes=2, num_keypoints=3, **FEW, **RPN),
    "mask_rcnn": partial(detection.maskrcnn_resnet50_fpn, num_classes=4, **FEW, **RPN),
}


def target(name: str) -> dict[str, Tensor]:
    boxes = torch.tensor([[8.0, 8, 50, 50], [30, 20, 90, 60]])
    objects: dict[str, Tensor] = {"boxes": boxes, "labels": torch.tensor([1, 1])}
    if name == "mask_rcnn":
        objects["masks"] = torch.ones(2, 64, 96, dtype=torch.uint8)
    if name == "keypoint_rcnn":
        objects["keypoints"] = torch.tensor([[[20.0, 20, 1], [30, 30, 1], [40, 40, 1]]] * 2)
    return objects


def assert_equal_outputs(a: list[dict[str, Tensor]], b: list[dict[str, Tensor]]) -> None:
    for of_a, of_b in zip(a, b, strict=True):
        assert len(of_a["boxes"]) > 0, "nothing was compared"
        assert of_a.keys() == of_b.keys()
        assert all(torch.equal(of_a[key], of_b[key]) for key in of_a)


# Mask R-CNN, which is quicker than the one and tells more than the other, runs the same parts
SLOW = {"faster_rcnn", "keypoint_rcnn"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in DETECTORS]
)
def test_insertion_into_torchvisions_detectors(name: str) -> None:
    torch.manual_seed(0)
    detector = DETECTORS[name]().eval()
    images = [torch.rand(3, 64, 96), torch.rand(3, 72, 64)]
    before, keys = detector(images), list(detector.state_dict())

    cgnl.insert_blocks(detector, {PLACE: cgnl.CGNL2d}, example_input=([images[0]],))
    assert list(inserted_blocks(detector)) == [PLACE]
    assert [key for key in detector.state_dict() if "inserted_block" not in key] == keys
    assert_equal_outputs(detector(images), before)

    block: Any = detector.get_submodule(f"{PLACE}.inserted_block")
    nn.init.ones_(block.norm.weight)
    assert not torch.equal(detector(images)[0]["scores"], before[0]["scores"])

    # torchvision freezes stages of a pre-trained backbone; the block in them is trained all the same
    detector.requires_grad_(False)
    block.requires_grad_(True)
    losses = detector.train()([images[0]] * 2, [target(name)] * 2)
    total = torch.stack(list(losses.values())).sum()
    assert total.isfinite()
    total.backward()
    assert all(parameter.grad.any() and parameter.grad.isfinite().all() for parameter in block.parameters())

    # training mode has moved the statistics of norms: compare in the state that is left
    nn.init.zeros_(block.norm.weight)
    nn.init.zeros_(block.norm.bias)
    as_identity = detector.eval()(images)
    cgnl.remove_blocks(detector)
    assert list(detector.state_dict()) == keys
    assert_equal_outputs(detector(images), as_identity)


def test_a_module_that_runs_once_a_level_is_refused() -> None:
    detector = DETECTORS["retinanet"]()
    with pytest.raises(ValueError, match=r"must run exactly once in a forward pass, but ran 5 times"):
        cgnl.insert_blocks(
            detector, {"head.classification_head.cls_logits": cgnl.CGNL2d}, example_input=([torch.rand(3, 64, 96)],)
        )
    assert not inserted_blocks(detector)
