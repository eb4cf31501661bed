"""Detection networks: torchvision's Mask R-CNN with blocks at the paper's places of its backbone.

Shapes: B batch, C channels, K classes with the background, H and W height and width of a feature map, R regions.

Source: Yue et al., "Compact Generalized Non-local Network", NeurIPS 2018, section 4.4; He et al., "Mask R-CNN",
ICCV 2017, for the two necks. It differs from the paper in that strides are in the 3x3 convolutions, as in the weights
that torchvision gives.
"""

import inspect
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from cgnl.blocks.kinds import MakeBlock, block_maker
from cgnl.insertion import insert_blocks
from cgnl.networks.checkpoints import CheckpointError, check_finite
from cgnl.networks.image import block_places
from cgnl.networks.weights import Checkpoint, Weights, load_checked, named_weights, read_weights
from cgnl.settings.checks import check_choice, within
from cgnl.settings.detection import DetectionRecipe

try:
    from torchvision import models
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.detection import MaskRCNN, MaskRCNN_ResNet50_FPN_Weights
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
    from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
    from torchvision.models.detection.rpn import RPNHead
    from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
except ImportError as error:
    raise ImportError("cgnl.networks.detection needs torchvision: pip install 'cgnl[train]'") from error

Neck = Literal["c4", "fpn"]
BackboneNorm = Literal["frozen", "batch"]

_DEFAULT_NUM_CLASSES = 91  # ids up to 90 and the background, as torchvision counts; 10 of the ids are of no class
_BODY = "backbone.body."
# Proposals that are ranked before suppression, over those that are left: by level, which the res4 map is alone.
_RANKED = {"c4": 6, "fpn": 1}
_RES5 = {"c4": "roi_heads.box_head.layer4.", "fpn": f"{_BODY}layer4."}
PREDICTORS = ("roi_heads.box_predictor", "roi_heads.mask_predictor.mask_fcn_logits")
"""The layers of a Mask R-CNN that predict classes, boxes and masks: those whose shapes follow from the classes."""
_PREDICTORS = tuple(f"{name}." for name in PREDICTORS)
_BACKBONE_NORMS: dict[str, type[nn.Module]] = {"frozen": FrozenBatchNorm2d, "batch": nn.BatchNorm2d}


def maskrcnn(
    arch: str,
    block: str | MakeBlock | None = None,
    num_blocks: int = 1,
    *,
    neck: Neck = "fpn",
    num_classes: int | None = None,
    weights: Weights = None,
    backbone_weights: Weights = None,
    new_classifier: bool = False,
    backbone_norm: BackboneNorm = "frozen",
    places: Sequence[str] = (),
    trust: Collection[str] = (),
    **options: Any,
) -> MaskRCNN:
    """Build a Mask R-CNN with blocks after the residual blocks that the paper names.

    ``maskrcnn_resnet18``, ``maskrcnn_resnet34``, ``maskrcnn_resnet50`` and ``maskrcnn_resnet101`` are this
    function with ``arch`` given. A new block is the identity, so the network's output is that of its weights
    until it is trained. The network is torchvision's: in training it takes images and targets and returns its
    losses, in eval mode it takes images and returns boxes, labels, scores and masks. Every parameter is trainable.

    Args:
        arch: "resnet18", "resnet34", "resnet50", "resnet101" or "resnet152".
        block: As in :func:`cgnl.networks.image.resnet`, like ``num_blocks``, ``places`` and ``trust``.
        num_blocks: Number of blocks.
        neck: "fpn", torchvision's feature pyramid; or "c4", where regions of the res4 map go through res5, which
            the box head and the mask head share.
        num_classes: Number of classes K, the background among them: one more than there are kinds of objects. By
            default that of the weights, or 91 without weights, as in torchvision.
        weights: None; "COCO_V1", torchvision's weights of ResNet-50 with the feature pyramid (or its enum member, or
            a copy of torchvision's file under its own name); or a checkpoint file of such a network of ours. With 81
            classes the named weights give the predictors of COCO's 80 kinds of objects, in the order of their ids.
        backbone_weights: None, the name or enum member of torchvision's ImageNet weights, or the checkpoint file of
            an image network, whose blocks, if it has any, must be those asked for here. Not read if ``weights`` are
            given, as in torchvision.
        new_classifier: Leave the layers of ``weights`` that predict classes, boxes and masks out and start new ones.
        backbone_norm: "frozen" BatchNorm, for pre-trained weights, or "batch" for one that is trained.
        places: Module paths in the residual network.
        trust: Packages that ``block`` may name a class of.
        options: Sizes and counts, see :func:`limits`; and options of that kind of block. A block's default ``norm`` is
            "sync_batch", and it is trained whatever ``backbone_norm`` says; plain BatchNorm with one image in each
            process, and GroupNorm, cancel the attention of a CGNL block.

    Returns:
        The network. Its state dict has the residual network under ``backbone.body``, also the blocks (in their keys
        there is ``inserted_block``). With the neck "c4" layer4 is, once, under ``roi_heads.box_head``.

    Raises:
        ValueError: An argument has a value that it must not have.
        CheckpointError: The weights cannot be had, or do not fit; every key that does not is listed.

    >>> with torch.device("meta"):
    ...     network = maskrcnn_resnet18("cgnl", neck="c4", num_classes=5)
    >>> network.backbone.body.layer3[0].inserted_block.theta.weight.shape
    torch.Size([128, 256, 1, 1])
    """
    sizes = limits(**{name: options.pop(name) for name in LIMITS if name in options})
    make_block = block_maker(block, options, defaults=DetectionRecipe.block_defaults, trust=trust)
    paths = [f"body.{place}" for place in places or block_places(arch, num_blocks if make_block else 1)]
    check_choice("neck", neck, get_args(Neck))
    check_choice("backbone_norm", backbone_norm, get_args(BackboneNorm))
    checkpoint = _read_weights(arch, neck, weights)
    found = _DEFAULT_NUM_CLASSES if checkpoint is None else _num_classes(checkpoint)
    num_classes = found if num_classes is None else num_classes
    network = _WITH_NECK[neck](models.get_model(arch, norm_layer=_BACKBONE_NORMS[backbone_norm]), num_classes, **sizes)
    if checkpoint is not None and checkpoint.by_name:
        _load_named(network, checkpoint, num_classes, new_classifier)
    if make_block:
        _insert(network, dict.fromkeys(paths, make_block))
    if checkpoint is not None and not checkpoint.by_name:
        load_file(network, checkpoint, new_classifier)
    if checkpoint is None and backbone_weights is not None:
        _load_backbone(network, arch, backbone_weights, _RES5[neck])
    return network


maskrcnn_resnet18 = partial(maskrcnn, "resnet18")
maskrcnn_resnet34 = partial(maskrcnn, "resnet34")
maskrcnn_resnet50 = partial(maskrcnn, "resnet50")
maskrcnn_resnet101 = partial(maskrcnn, "resnet101")


def limits(
    size: int = 800,
    max_size: int = 1333,
    rois: int = 512,
    proposals: int = 1000,
    detections: int = 100,
    score_threshold: float = 0.05,
) -> dict[str, Any]:
    """Return torchvision's arguments for a detector's sizes and counts; a bad value is a ValueError.

    Args:
        size: Pixels that the shorter side of an image is resized to.
        max_size: Pixels that the longer side has at most; the shorter side is then shorter.
        rois: Number of regions per image that train the heads.
        proposals: Regions of an image that the region proposal network hands on in eval mode; twice as many in
            training.
        detections: Maximum number of objects kept in an image.
        score_threshold: Minimum score of a detection, from 0 to 1.
    """
    counts = {"size": size, "max_size": max_size, "rois": rois, "proposals": proposals, "detections": detections}
    for name, count in counts.items():
        within(name, count, 1)
    within("score_threshold", score_threshold, 0, 1)
    return {
        "min_size": size,
        "max_size": max_size,
        "box_batch_size_per_image": rois,
        "rpn_post_nms_top_n_train": 2 * proposals,
        "rpn_post_nms_top_n_test": proposals,
        "box_detections_per_img": detections,
        "box_score_thresh": score_threshold,
    }


LIMITS = tuple(inspect.signature(limits).parameters)
"""The names of a detector's sizes and counts."""


def set_test_limits(network: MaskRCNN, *, proposals: int, detections: int, score_threshold: float) -> None:
    """Change how many objects a network looks for in eval mode, as in :func:`limits`; training is left as it is."""
    c4 = isinstance(network.backbone, _Res4Backbone)
    network.rpn._pre_nms_top_n["testing"] = _RANKED["c4" if c4 else "fpn"] * proposals
    network.rpn._post_nms_top_n["testing"] = proposals
    network.roi_heads.detections_per_img = detections
    network.roi_heads.score_thresh = score_threshold


class _Res4Backbone(nn.Module):
    """Stem to res4 of a ResNet, as the one feature map "0" [B, C, H/16, W/16]."""

    def __init__(self, resnet: models.ResNet, out_channels: int) -> None:
        super().__init__()
        self.body = IntermediateLayerGetter(resnet, {"layer3": "0"})
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.body(images)


class _Res5BoxHead(nn.Module):
    """res5 of regions [R, C, 14, 14], averaged: [R, 2C]."""

    def __init__(self, layer4: nn.Sequential) -> None:
        super().__init__()
        self.layer4 = layer4

    def forward(self, regions: Tensor) -> Tensor:
        return self.layer4(regions).mean(dim=(2, 3))


class _Res5MaskHead(nn.Module):
    """The box head's res5 of regions [R, C, 14, 14], not averaged: [R, 2C, 7, 7]."""

    def __init__(self, layer4: nn.Sequential) -> None:
        super().__init__()
        # In a tuple PyTorch does not see it: the parameters have one name, that in the box head. Copying and
        # pickling the network keep the two the same module.
        self._shared = (layer4,)

    def forward(self, regions: Tensor) -> Tensor:
        return self._shared[0](regions)


class _Anchors(AnchorGenerator):
    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        super().set_cell_anchors(torch.float32 if torch.is_autocast_enabled(device.type) else dtype, device)


class _RPNHead(RPNHead):
    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [_unrounded(of_level) for of_level in logits], [_unrounded(of_level) for of_level in deltas]


class _BoxPredictor(FastRCNNPredictor):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = super().forward(x)
        return _unrounded(logits), _unrounded(deltas)


class _MaskPredictor(MaskRCNNPredictor):
    def forward(self, x: Tensor) -> Tensor:
        return _unrounded(super().forward(x))


def _unrounded(x: Tensor) -> Tensor:
    """Return what a head gives as float32 if it is autocast to 16 bits.

    torchvision computes boxes, scores and the regions to train on in the type of what the heads give, and anchors in
    that of the feature maps. bfloat16 has 8 bits: between 512 and 1024 pixels, boxes would be multiples of 4.
    """
    return x.float() if torch.is_autocast_enabled(x.device.type) else x


def with_pyramid(backbone: nn.Module, num_classes: int, **options: Any) -> MaskRCNN:
    """Return torchvision's Mask R-CNN on a feature pyramid; proposals are ranked on each of its levels.

    ``backbone`` makes five maps of 256 channels of the images, "0" to "3" and "pool"; ``num_classes`` counts the
    background; ``options`` are those of :func:`limits`.
    """
    return _mask_rcnn(
        backbone,
        num_classes,
        box_channels=1024,
        mask_channels=256,
        rpn_anchor_generator=_Anchors(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_train=_RANKED["fpn"] * options["rpn_post_nms_top_n_train"],
        rpn_pre_nms_top_n_test=_RANKED["fpn"] * options["rpn_post_nms_top_n_test"],
        **options,
    )


def _with_c4(resnet: models.ResNet, num_classes: int, **options: Any) -> MaskRCNN:
    """Mask R-CNN on the res4 map; all proposals are of one level, hence six times as many before suppression."""
    out_channels = resnet.fc.in_features
    layer4 = resnet.layer4
    return _mask_rcnn(
        _Res4Backbone(resnet, out_channels // 2),
        num_classes,
        box_channels=out_channels,
        mask_channels=out_channels,
        rpn_anchor_generator=_Anchors(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),)),
        rpn_pre_nms_top_n_train=_RANKED["c4"] * options["rpn_post_nms_top_n_train"],
        rpn_pre_nms_top_n_test=_RANKED["c4"] * options["rpn_post_nms_top_n_test"],
        box_roi_pool=MultiScaleRoIAlign(["0"], 14, sampling_ratio=0),
        box_head=_Res5BoxHead(layer4),
        mask_roi_pool=MultiScaleRoIAlign(["0"], 14, sampling_ratio=0),
        mask_head=_Res5MaskHead(layer4),
        **options,
    )


def _mask_rcnn(
    backbone: nn.Module, num_classes: int, *, box_channels: int, mask_channels: int, **options: Any
) -> MaskRCNN:
    """torchvision's Mask R-CNN whose boxes, scores and masks are float32 under autocast, too."""
    if num_classes < 2:
        raise ValueError(f"num_classes ({num_classes}) must be at least 2: one class of objects and the background")
    anchors_per_position = options["rpn_anchor_generator"].num_anchors_per_location()[0]
    return MaskRCNN(
        backbone,
        rpn_head=_RPNHead(backbone.out_channels, anchors_per_position),
        box_predictor=_BoxPredictor(box_channels, num_classes),
        mask_predictor=_MaskPredictor(mask_channels, 256, num_classes),
        **options,
    )


def _with_fpn(resnet: models.ResNet, num_classes: int, **options: Any) -> MaskRCNN:
    return with_pyramid(_resnet_fpn_extractor(resnet, trainable_layers=5), num_classes, **options)


_WITH_NECK: dict[str, Callable[..., MaskRCNN]] = {"c4": _with_c4, "fpn": _with_fpn}


def _insert(network: MaskRCNN, blocks: dict[str, MakeBlock]) -> None:
    # The blocks lie in the backbone, and there is no need to run what comes after it. 64 pixels leave two
    # positions a side in the last stage.
    device = next(network.parameters()).device
    insert_blocks(network.backbone, blocks, example_input=torch.zeros(1, 3, 64, 64, device=device))


def _read_weights(arch: str, neck: str, weights: Weights) -> Checkpoint | None:
    enum = MaskRCNN_ResNet50_FPN_Weights
    named = named_weights(enum, weights) is not None
    known_file = weights is not None and Path(str(weights)).name == Path(enum.COCO_V1.url).name
    if (named or known_file) and (arch, neck) != ("resnet50", "fpn"):
        raise ValueError(f"weights ({weights}) are of resnet50 with neck 'fpn', not of {arch} with neck {neck!r}")
    checkpoint = read_weights(enum, weights, "Mask R-CNN")
    return checkpoint._replace(by_name=True) if checkpoint is not None and known_file else checkpoint


def _num_classes(checkpoint: Checkpoint) -> int:
    bias = checkpoint.state_dict.get("roi_heads.box_predictor.cls_score.bias")
    if bias is None or bias.ndim != 1:
        raise CheckpointError(
            f"Checkpoint {checkpoint.source} holds no Mask R-CNN: roi_heads.box_predictor.cls_score.bias is missing "
            "or no vector."
        )
    return len(bias)


def _load_named(network: MaskRCNN, checkpoint: Checkpoint, num_classes: int, new_classifier: bool) -> None:
    """Load torchvision's weights of COCO into a network without blocks."""
    state_dict = dict(checkpoint.state_dict)
    own = network.state_dict()
    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    kept = torch.tensor([index for index, name in enumerate(names) if name != "N/A"])
    for key in [key for key in own if key.startswith(_PREDICTORS)]:
        if new_classifier:
            state_dict[key] = own[key]
        elif num_classes == len(kept):
            # bbox_pred has four rows a class
            rows = state_dict[key].unflatten(0, (len(names), -1))
            state_dict[key] = rows[kept].flatten(0, 1)
    if not new_classifier and num_classes not in (len(names), len(kept)):
        raise CheckpointError(
            f"The weights {checkpoint.source} have {len(names)} classes with the background, {len(kept)} without the "
            f"unused ids, not num_classes ({num_classes}): new_classifier=True (--network.new-classifier) starts new "
            "predictors."
        )
    try:
        # torchvision's modules know the older names in its file
        network.load_state_dict(state_dict)
    except RuntimeError as error:
        raise CheckpointError(f"The weights {checkpoint.source} do not fit: {error}") from error
    check_finite(network, network.state_dict(), checkpoint.source)
    _keep_without_eps(network)


def _keep_without_eps(network: nn.Module) -> None:
    """Turn frozen norms that are meant for eps = 0 into the same norms for their own eps, bit for bit.

    torchvision sets eps to 0 for these weights, which no state dict would tell.
    """
    for module in network.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.mul_(module.running_var.rsqrt())
            module.running_var.fill_(1 - module.eps)


def load_file(network: MaskRCNN, checkpoint: Checkpoint, new_classifier: bool) -> None:
    """Load a checkpoint file of such a detector; see :func:`maskrcnn` for what it may lack."""
    state_dict = checkpoint.state_dict
    if new_classifier:
        own = network.state_dict()
        state_dict = {
            **{key: value for key, value in state_dict.items() if not key.startswith(_PREDICTORS)},
            **{key: value for key, value in own.items() if key.startswith(_PREDICTORS)},
        }
    load_checked(network, state_dict, checkpoint.source, _PREDICTORS)


def _load_backbone(network: MaskRCNN, arch: str, weights: Weights, res5: str) -> None:
    """Load an image network's weights; what they have no part in stays as it is."""
    checkpoint = read_weights(models.get_model_weights(arch), weights, arch)
    assert checkpoint is not None
    if "conv1.weight" not in checkpoint.state_dict:
        raise CheckpointError(f"Checkpoint {checkpoint.source} holds no ResNet: conv1.weight is missing.")
    own = network.state_dict()
    state_dict = {key: value for key, value in own.items() if not key.startswith((_BODY, res5))}
    for key, value in checkpoint.state_dict.items():
        if not key.startswith("fc."):
            in_res5 = key.startswith("layer4.")
            state_dict[f"{res5}{key.removeprefix('layer4.')}" if in_res5 else f"{_BODY}{key}"] = value
    load_checked(network, state_dict, checkpoint.source, ())
