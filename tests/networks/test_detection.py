"""Mask R-CNN: torchvision's own network, a composition by hand, weights, blocks, one set of res5's weights."""

import copy
import io
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torchvision import models
from torchvision.models.detection import MaskRCNN, MaskRCNN_ResNet50_FPN_Weights, maskrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d, roi_align

import cgnl
from cgnl.blocks import SingleSampleWarning
from cgnl.insertion import inserted_blocks, remove_blocks
from cgnl.networks import detection, image
from cgnl.networks.checkpoints import CheckpointError

NECKS = ["c4", "fpn"]
# ids up to 90 that COCO's 80 kinds of objects leave out
UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
PREDICTORS = ["roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"]
PREDICTORS += ["roi_heads.mask_predictor.mask_fcn_logits"]

# scores of untrained networks are low
small = partial(
    detection.maskrcnn_resnet18, num_classes=5, size=64, proposals=12, rois=16, detections=8, score_threshold=0.0
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def objects(height: int = 64, width: int = 96) -> dict[str, Tensor]:
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    masks[0, 10:40, 10:40] = 1
    masks[1, 20:60, 30:90] = 1
    boxes = torch.tensor([[10.0, 10, 40, 40], [30, 20, 90, 60]])
    return {"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks}


def randomize_norms(network: nn.Module) -> None:
    """Statistics and affine weights as after training, some variances tiny."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(1e-6, 2.0)
            module.weight.data.uniform_(0.2, 0.6)
            module.bias.data.uniform_(-0.2, 0.2)


def assert_same(a: list[dict[str, Tensor]], b: list[dict[str, Tensor]]) -> None:
    assert len(a) == len(b)
    for of_a, of_b in zip(a, b, strict=True):
        assert len(of_a["boxes"]) > 0, "nothing was compared"
        assert all(torch.equal(of_a[key], of_b[key]) for key in ("boxes", "labels", "scores", "masks"))


@pytest.fixture(scope="module")
def coco_weights() -> dict[str, Tensor]:
    """A state dict as in torchvision's file of COCO: no counters of batches, older names of some layers."""
    torch.manual_seed(1)
    network = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    randomize_norms(network)
    older = [
        (r"(fpn\.\w+\.\d)\.0\.", r"\1."),
        (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
        (r"mask_head\.(\d)\.0\.", lambda match: f"mask_head.mask_fcn{int(match[1]) + 1}."),
    ]
    state_dict = {}
    for key, value in network.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            for pattern, name in older:
                key = re.sub(pattern, name, key)
            state_dict[key] = value
    assert "backbone.fpn.inner_blocks.0.weight" in state_dict
    assert "roi_heads.mask_head.mask_fcn4.bias" in state_dict
    return state_dict


@pytest.fixture
def coco_file(torch_home: Path, coco_weights: dict[str, Tensor]) -> Path:
    path = torch_home / MaskRCNN_ResNet50_FPN_Weights.COCO_V1.url.rpartition("/")[2]
    torch.save(coco_weights, path)
    return path


def test_coco_weights_make_torchvisions_network(coco_file: Path) -> None:
    few = {"rpn_pre_nms_top_n_test": 20, "rpn_post_nms_top_n_test": 20, "box_detections_per_img": 30}
    theirs = maskrcnn_resnet50_fpn(weights="COCO_V1", min_size=64, box_score_thresh=0.0, **few).eval()
    few_of_ours = partial(detection.maskrcnn_resnet50, size=64, score_threshold=0.0, proposals=20, detections=30)
    x = [torch.rand(3, 64, 96), torch.rand(3, 72, 64)]
    expected = theirs(x)
    ours = few_of_ours("cgnl", weights=MaskRCNN_ResNet50_FPN_Weights.COCO_V1).eval()
    assert_same(ours(x), expected)
    assert list(remove_blocks(ours).state_dict()) == list(theirs.state_dict())

    # nothing but the state dict is needed to build it again
    again = few_of_ours().eval()
    again.load_state_dict(ours.state_dict())
    assert_same(again(x), expected)

    # torchvision's defaults are ours
    with torch.device("meta"):
        default, built = detection.maskrcnn_resnet50("none"), maskrcnn_resnet50_fpn(weights_backbone=None)
    assert repr(default.transform) == repr(built.transform)
    anchors, expected_anchors = default.rpn.anchor_generator, built.rpn.anchor_generator
    assert (anchors.sizes, anchors.aspect_ratios) == (expected_anchors.sizes, expected_anchors.aspect_ratios)
    for part in ("rpn", "roi_heads"):
        settings = [
            {key: value for key, value in vars(getattr(network, part)).items() if isinstance(value, int | float | dict)}
            for network in (default, built)
        ]
        for values in settings:
            values.pop("_modules")
        assert settings[0] == settings[1]


def test_coco_weights_of_the_used_ids(coco_file: Path, coco_weights: dict[str, Tensor]) -> None:
    network = detection.maskrcnn_resnet50(weights="COCO_V1", num_classes=81).state_dict()
    kept = [row for row in range(91) if row not in UNUSED_IDS]
    for name in PREDICTORS:
        a_class = 4 if name.endswith("bbox_pred") else 1
        rows = [a_class * row + i for row in kept for i in range(a_class)]
        for key in (f"{name}.weight", f"{name}.bias"):
            assert torch.equal(network[key], coco_weights[key][rows])
    assert torch.equal(network["roi_heads.box_head.fc6.weight"], coco_weights["roi_heads.box_head.fc6.weight"])

    with pytest.raises(CheckpointError, match=r"91 classes .*, 81 without .*num_classes \(7\): new_classifier=True"):
        detection.maskrcnn_resnet50(weights="COCO_V1", num_classes=7)
    new = detection.maskrcnn_resnet50(weights=coco_file, num_classes=7, new_classifier=True).state_dict()
    assert [len(new[f"{name}.bias"]) for name in PREDICTORS] == [7, 28, 7]
    for key in ("roi_heads.mask_predictor.conv5_mask.weight", "backbone.body.layer1.0.bn1.weight"):
        assert torch.equal(new[key], network[key])
    new = detection.maskrcnn_resnet50(weights="COCO_V1", new_classifier=True).state_dict()
    assert not any(torch.equal(new[f"{name}.weight"], coco_weights[f"{name}.weight"]) for name in PREDICTORS)

    torch.save({key: value for key, value in coco_weights.items() if "fc6" not in key}, coco_file)
    with pytest.raises(CheckpointError, match=r"(?s)COCO_V1 do not fit: .*box_head\.fc6\.weight"):
        detection.maskrcnn_resnet50(weights="COCO_V1")


def test_c4_is_the_composition_by_hand() -> None:
    network = small(neck="c4").eval()
    randomize_norms(network)
    resnet = models.resnet18(norm_layer=FrozenBatchNorm2d).eval()
    own = network.state_dict()
    resnet.load_state_dict(
        {
            key: own[key.replace("layer4", "roi_heads.box_head.layer4") if "layer4" in key else f"backbone.body.{key}"]
            for key in resnet.state_dict()
            if not key.startswith("fc.")
        },
        strict=False,
    )
    seen: dict[str, Any] = {}
    for name in ("rpn", "roi_heads.box_predictor", "roi_heads.mask_predictor"):
        module = network.get_submodule(name)
        module.register_forward_hook(lambda module, args, output, name=name: seen.update({name: output}))
    x = [torch.rand(3, 64, 96)]
    (found,) = network(x)

    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    y = (x[0] - mean[:, None, None]) / std[:, None, None]
    y = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(y[None]))))
    res4 = resnet.layer3(resnet.layer2(resnet.layer1(y)))
    assert res4.shape == (1, 256, 4, 6)

    def res5(boxes: Tensor) -> Tensor:
        return resnet.layer4(roi_align(res4, [boxes], 14, spatial_scale=1 / 16, sampling_ratio=0))

    ((proposals,), _) = seen["rpn"]
    assert len(proposals) == 12
    pooled = F.adaptive_avg_pool2d(res5(proposals), 1).flatten(1)
    logits = pooled @ own[f"{PREDICTORS[0]}.weight"].T + own[f"{PREDICTORS[0]}.bias"]
    torch.testing.assert_close(seen["roi_heads.box_predictor"][0], logits)

    mask = F.relu(
        F.conv_transpose2d(
            res5(found["boxes"]),
            own["roi_heads.mask_predictor.conv5_mask.weight"],
            own["roi_heads.mask_predictor.conv5_mask.bias"],
            stride=2,
        )
    )
    mask = F.conv2d(mask, own[f"{PREDICTORS[2]}.weight"], own[f"{PREDICTORS[2]}.bias"])
    assert mask.shape[1:] == (5, 14, 14)
    torch.testing.assert_close(seen["roi_heads.mask_predictor"], mask, rtol=1e-4, atol=1e-4)

    anchors = network.rpn.anchor_generator
    assert (anchors.sizes, anchors.aspect_ratios) == (((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),))
    assert own["rpn.head.cls_logits.weight"].shape == (15, 256, 1, 1)


@pytest.mark.parametrize("arch", ["resnet50", "resnet101"])
def test_c4_of_deeper_networks(arch: str) -> None:
    with torch.device("meta"):
        network = detection.maskrcnn(arch, "cgnl", 5, neck="c4", num_classes=81)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert shapes["rpn.head.conv.0.0.weight"] == (1024, 1024, 3, 3)
    assert shapes[f"{PREDICTORS[0]}.weight"] == (81, 2048)
    assert shapes["roi_heads.mask_predictor.conv5_mask.weight"] == (2048, 256, 2, 2)
    assert list(inserted_blocks(network)) == [f"backbone.body.{place}" for place in image.block_places(arch, 5)]
    assert network.rpn._pre_nms_top_n == {"training": 12000, "testing": 6000}
    assert network.rpn._post_nms_top_n == {"training": 2000, "testing": 1000}


@pytest.mark.parametrize(
    ("neck", "block"),
    [("c4", "nl"), ("fpn", "nl"), ("c4", "cgnl"), ("fpn", "cgnl"), ("c4", "cgnlx"), ("fpn", "residual")],
)
def test_new_blocks_leave_the_network_as_it_is(neck: str, block: str, tmp_path: Path) -> None:
    plain = small(neck=neck).eval()
    randomize_norms(plain)
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    network = small(block, 2, neck=neck, weights=tmp_path / "plain.pth").eval()
    assert list(inserted_blocks(network)) == ["backbone.body.layer2.0", "backbone.body.layer3.0"]
    x = [torch.rand(3, 64, 96)]
    before = plain(x)
    assert_same(network(x), before)
    nn.init.ones_(inserted_blocks(network)["backbone.body.layer3.0"].norm.weight)
    assert not torch.equal(network(x)[0]["scores"], before[0]["scores"])


@pytest.mark.parametrize("neck", NECKS)
def test_training_reaches_all_but_the_frozen_norms(neck: str) -> None:
    network = small("cgnl", neck=neck)
    nn.init.ones_(network.get_submodule("backbone.body.layer3.0.inserted_block.norm").weight)
    norms = {name: module for name, module in network.named_modules() if isinstance(module, FrozenBatchNorm2d)}
    assert len(norms) == 20
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    losses = network([torch.rand(3, 64, 96), torch.rand(3, 64, 96)], [objects(), objects()])
    assert set(losses) == {
        "loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"
    }  # fmt: skip
    total = torch.stack(list(losses.values())).sum()
    assert total.isfinite()
    total.backward()
    assert not [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert all(p.grad.any() for p in network.get_submodule("backbone.body.layer3.0.inserted_block").parameters())
    optimizer.step()
    unchanged = {key for key, value in network.state_dict().items() if torch.equal(value, before[key])}
    assert unchanged >= {f"{name}.{key}" for name, norm in norms.items() for key in norm.state_dict()}
    assert not {key for key in unchanged if "inserted_block" in key}


def test_trained_norms_of_the_backbone() -> None:
    network = small("cgnl", neck="c4", backbone_norm="batch", norm="batch")
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in network.modules())
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 64, 96, dtype=torch.uint8),
    }
    losses = network([torch.rand(3, 64, 96), torch.rand(3, 64, 96)], [empty, empty])
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert all(value.isfinite().all() for value in network.state_dict().values()), "res5 sees no region for the masks"


@pytest.mark.parametrize("norm", ["batch", "sync_batch"])
def test_one_image_in_all_warns(norm: str) -> None:
    # the warning comes once a process
    cgnl.blocks.grouped._warn_of_single_sample.cache_clear()
    x, targets = [torch.rand(3, 64, 96)] * 2, [objects()] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", SingleSampleWarning)
        small("cgnl", norm=norm)(x, targets)
        small("cgnl", norm="group")(x[:1], targets[:1])
    with pytest.warns(SingleSampleWarning):
        small("cgnl", norm=norm)(x[:1], targets[:1])


@pytest.mark.parametrize("neck", ["c4", "fpn"])
def test_limits_that_are_set_are_those_of_a_network_made_with_them(neck: detection.Neck) -> None:
    limits = {"proposals": 7, "detections": 4, "score_threshold": 0.2}
    expected, network = small("cgnl", neck=neck, **limits).eval(), small("cgnl", neck=neck).eval()
    network.load_state_dict(expected.state_dict())
    x = [torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))]
    assert len(network(x)[0]["scores"]) != len(expected(x)[0]["scores"])
    detection.set_test_limits(network, **limits)
    assert_same(network(x), expected(x))
    assert vars(network.rpn)["_pre_nms_top_n"]["testing"] == vars(expected.rpn)["_pre_nms_top_n"]["testing"]


# "batch": the feature map of res4 is of 16 bits, too. In the pyramid, one region of eight that changed places moved the
# loss of the boxes by a quarter on one CPU; a hundred regions, all of them trained on, move it less.
@pytest.mark.parametrize(
    ("neck", "backbone_norm", "proposals", "rois"),
    [("c4", "frozen", 8, 64), ("c4", "batch", 8, 64), ("fpn", "frozen", 100, 512)],
)
def test_mixed_precision_leaves_boxes_and_scores_in_float32(
    neck: str, backbone_norm: str, proposals: int, rois: int
) -> None:
    network = small("cgnl", neck=neck, backbone_norm=backbone_norm, proposals=proposals, rois=rois, detections=12)
    # convolutions of bfloat16 are slow on many CPUs: fewer positions of each region
    network.roi_heads.mask_roi_pool.output_size = (4, 4)
    if neck == "c4":
        network.roi_heads.box_roi_pool.output_size = (4, 4)
    autocast = partial(torch.autocast, "cpu", torch.bfloat16)
    seen: dict[str, Any] = {}
    for name in ("rpn.anchor_generator", "rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor"):
        network.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: output})
        )
    network.roi_heads.box_roi_pool.register_forward_hook(lambda module, args, output: seen.update(regions=args[1]))

    x, target = [torch.rand(3, 64, 96), torch.rand(3, 64, 96)], objects()
    target["boxes"] += torch.tensor([0.37, 0.11, 0.23, 0.19])
    losses, anchors = [], []
    for enabled in (False, True):
        torch.manual_seed(0)
        with autocast(enabled=enabled):
            losses.append(network(x, [target, target]))
        anchors.append(seen["rpn.anchor_generator"])
        for regions in seen["regions"]:
            of_truth = (regions[:, None] == target["boxes"]).all(dim=2).any(dim=0)
            assert of_truth.all(), "true boxes are among the regions that are trained on, not rounded"
    torch.testing.assert_close(*anchors, rtol=0.0, atol=0.0)  # checks the type, too
    # scores near each other change places, so some of the regions are others
    torch.testing.assert_close(losses[1], losses[0], rtol=0.25, atol=0.0)
    torch.stack(list(losses[1].values())).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())

    with torch.no_grad(), autocast():
        assert network.backbone(torch.rand(1, 3, 64, 64))["0"].dtype == (
            torch.float32 if (neck, backbone_norm) == ("c4", "frozen") else torch.bfloat16
        )
        found = network.eval()(x)
    outputs = [*seen["rpn.head"][0], *seen["rpn.head"][1], *seen["roi_heads.box_predictor"]]
    outputs += [seen["roi_heads.mask_predictor"]]
    assert {output.dtype for output in outputs} == {torch.float32}
    for of_image in found:
        assert {of_image[key].dtype for key in ("boxes", "scores", "masks")} == {torch.float32}
        boxes = of_image["boxes"]
        inside = boxes[(boxes > 0) & (boxes < 64)]
        for values in (inside, of_image["scores"]):
            assert len(values) > 10
            assert (values == values.bfloat16()).float().mean() < 0.1, "values are rounded to 16 bits"


def test_res5_is_one_set_of_weights() -> None:
    network = small("cgnl", neck="c4")
    res5 = [key for key in network.state_dict() if "layer4" in key]
    with torch.device("meta"):
        layer4 = models.resnet18(norm_layer=FrozenBatchNorm2d).layer4
    assert res5 == [f"roi_heads.box_head.layer4.{key}" for key in layer4.state_dict()]

    x, targets = [torch.rand(3, 64, 96)], [objects()]
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    copies = [copy.deepcopy(network), torch.load(file, weights_only=False), network]
    for made in copies:
        made.double().float()
        heads = made.roi_heads
        assert heads.mask_head._shared[0] is heads.box_head.layer4
        made.zero_grad()
        made.train()(x, targets)["loss_mask"].backward()
        weight = heads.box_head.layer4[1].conv2.weight
        assert weight.grad.any(), "the masks train res5 of the boxes"
    assert copies[0].roi_heads.box_head.layer4 is not network.roi_heads.box_head.layer4

    again = small("cgnl", neck="c4").eval()
    again.load_state_dict(network.state_dict())
    assert_same(again(x), network.eval()(x))


def test_res5_is_reduced_once_over_processes() -> None:
    # PyTorch's SyncBatchNorm runs in several processes on GPUs alone
    network = small("cgnl", neck="c4", norm="batch")
    alone = copy.deepcopy(network)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        gradients = []
        for trained in (alone, DistributedDataParallel(network)):
            torch.manual_seed(0)
            losses = trained([torch.rand(3, 64, 96)] * 2, [objects()] * 2)
            torch.stack(list(losses.values())).sum().backward()
            module = getattr(trained, "module", trained)
            gradients.append(module.roi_heads.box_head.layer4[1].conv2.weight.grad)
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("neck", NECKS)
def test_backbone_weights(neck: str, tmp_path: Path) -> None:
    source = image.resnet18("cgnl", num_classes=3)
    randomize_norms(source)
    nn.init.normal_(source.layer3[0].inserted_block.norm.weight)
    path = tmp_path / "birds.ckpt"
    # as this project's training writes it
    torch.save({"state_dict": {f"network.{key}": value for key, value in source.state_dict().items()}}, path)

    network = small("cgnl", neck=neck, backbone_weights=path)
    own = network.state_dict()
    res5 = "roi_heads.box_head." if neck == "c4" else "backbone.body."
    for key, value in source.state_dict().items():
        if not key.startswith("fc."):
            name = f"{res5 if key.startswith('layer4') else 'backbone.body.'}{key}"
            assert name in own or (key.endswith("num_batches_tracked") and "inserted" not in key)
            assert name not in own or torch.equal(own[name], value)

    x = torch.rand(1, 3, 64, 64)
    features = network.eval().backbone(x)
    if neck == "c4":
        source.eval().layer3.register_forward_hook(lambda module, args, output: features.update(res4=output))
        source(x)
        torch.testing.assert_close(features["0"], features["res4"])

    trained = small("cgnl", neck=neck, backbone_weights=path, backbone_norm="batch").state_dict()
    key = "backbone.body.layer1.0.bn1.running_var"
    assert torch.equal(trained[key], own[key])

    with pytest.raises(
        CheckpointError, match=r"body\.layer3\.0\.inserted_block\.theta\.weight is unknown .* file: num"
    ):
        small(neck=neck, backbone_weights=path)
    with pytest.raises(CheckpointError, match=r"body\.layer2\.0\.inserted_block\.theta\.weight is missing"):
        small("cgnl", 2, neck=neck, backbone_weights=path)
    with pytest.raises(CheckpointError, match=r"layer4\.2\.conv1\.weight is missing"):
        detection.maskrcnn_resnet34("cgnl", neck=neck, num_classes=2, backbone_weights=path)
    torch.save(network.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"birds\.ckpt holds no ResNet: conv1\.weight is missing"):
        small("cgnl", neck=neck, backbone_weights=path)


def test_backbone_weights_by_name(torch_home: Path) -> None:
    host = models.resnet18()
    randomize_norms(host)
    torch.save(host.state_dict(), torch_home / models.ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2])
    network = small("cgnl", backbone_weights="IMAGENET1K_V1")
    body = network.backbone.body
    assert torch.equal(body.layer4[1].conv2.weight, host.layer4[1].conv2.weight)
    x = torch.rand(1, 3, 64, 64)
    y = host.eval().maxpool(host.relu(host.bn1(host.conv1(x))))
    torch.testing.assert_close(body.eval()(x)["3"], host.layer4(host.layer3(host.layer2(host.layer1(y)))))


@pytest.mark.parametrize("neck", NECKS)
def test_weights_from_a_file(neck: str, tmp_path: Path) -> None:
    path = tmp_path / "five.pth"
    source = small("cgnl", neck=neck, backbone_norm="batch")
    randomize_norms(source)
    torch.save(source.state_dict(), path)
    kept = source.state_dict()

    same = small("cgnl", neck=neck, num_classes=None, weights=path, backbone_weights=tmp_path / "not_read.pth")
    own = same.state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in own.items())
    assert {key.rpartition(".")[2] for key in kept.keys() - own.keys()} == {"num_batches_tracked"}

    with pytest.raises(CheckpointError, match=r"cls_score\.weight has shape \[5, .* new_classifier=True .* starts"):
        small("cgnl", neck=neck, num_classes=9, weights=path)
    new = small("cgnl", neck=neck, num_classes=9, weights=path, new_classifier=True).state_dict()
    assert {key for key in new if not torch.equal(new[key], kept[key])} == {
        f"{name}.{key}" for name in PREDICTORS for key in ("weight", "bias")
    }
    with pytest.raises(CheckpointError, match=r"inserted_block\.theta\.weight is unknown"):
        small(neck=neck, weights=path)
    other = NECKS[NECKS.index(neck) - 1]
    with pytest.raises(
        CheckpointError, match=r"layer4\.0\.conv1\.weight is missing.*rpn\.head\.cls_logits\.weight has"
    ):
        small("cgnl", neck=other, weights=path)
    torch.save(models.resnet18().state_dict(), path)
    with pytest.raises(CheckpointError, match=r"five\.pth holds no Mask R-CNN"):
        small("cgnl", neck=neck, weights=path)
    with pytest.raises(CheckpointError, match="does not exist"):
        small(weights=tmp_path / "absent.pth")


def test_settings_reach_the_network() -> None:
    with torch.device("meta"):
        network = detection.maskrcnn_resnet18(
            "cgnl",
            groups=4,
            norm="group",
            channel_reduction=4,
            num_classes=3,
            size=333,
            max_size=444,
            rois=64,
            proposals=50,
            detections=7,
            score_threshold=0.3,
        )
    assert (network.transform.min_size, network.transform.max_size) == ((333,), 444)
    assert network.roi_heads.fg_bg_sampler.batch_size_per_image == 64
    assert (network.roi_heads.detections_per_img, network.roi_heads.score_thresh) == (7, 0.3)
    assert network.rpn._post_nms_top_n == {"training": 100, "testing": 50}
    block = network.get_submodule("backbone.body.layer3.0.inserted_block")
    assert (block.groups, block.inner_channels, type(block.norm)) == (4, 64, nn.GroupNorm)
    assert isinstance(network, MaskRCNN)
    assert isinstance(small("cgnl").get_submodule("backbone.body.layer3.0.inserted_block.norm"), nn.SyncBatchNorm)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neck": "c5"}, r"neck \('c5'\) must be one of 'c4', 'fpn'"),
        ({"backbone_norm": "sync"}, r"backbone_norm \('sync'\) must be one of 'frozen', 'batch'"),
        ({"num_classes": 1}, r"num_classes \(1\) must be at least 2"),
        ({"size": 0}, r"size \(0\) must be at least 1"),
        ({"max_size": 0}, r"max_size \(0\) must be"),
        ({"rois": 0}, r"rois \(0\) must be"),
        ({"proposals": -1}, r"proposals \(-1\) must be"),
        ({"detections": 0}, r"detections \(0\) must be"),
        ({"score_threshold": 1.5}, r"score_threshold \(1\.5\) must be between 0 and 1"),
        ({"block": "cgln"}, r"block \('cgln'\) must be one of"),
        ({"block": "nl", "num_blocks": 5}, r"num_blocks \(5\) must be 1 or 2 for resnet18"),
        ({"weights": "COCO_V9"}, r"weights \(COCO_V9\) must be a file or one of COCO_V1, DEFAULT for Mask R-CNN"),
        ({"backbone_weights": "COCO_V1"}, r"must be a file or one of IMAGENET1K_V1, DEFAULT for resnet18"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detection.maskrcnn_resnet18(**options)


@pytest.mark.parametrize(("arch", "neck"), [("resnet18", "fpn"), ("resnet50", "c4")])
def test_coco_weights_are_of_one_network(coco_file: Path, arch: str, neck: str) -> None:
    with pytest.raises(ValueError, match=rf"are of resnet50 with neck 'fpn', not of {arch} with neck '{neck}'"):
        detection.maskrcnn(arch, neck=neck, weights="COCO_V1")
    with pytest.raises(ValueError, match="are of resnet50 with neck 'fpn'"):
        detection.maskrcnn(arch, neck=neck, weights="default")
