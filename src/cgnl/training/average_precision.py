"""Average precision of detected boxes and masks as COCO defines it, counted by faster-coco-eval.

Shapes: D detections of an image, H x W its pixels; K categories.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Kind = Literal["bbox", "segm"]

_MEASURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def _library() -> ModuleType:
    try:
        import faster_coco_eval
    except ImportError as error:
        raise ImportError("average precision needs faster_coco_eval: pip install 'cgnl[detection]'") from error
    return faster_coco_eval


def coco_results(
    outputs: Iterable[Mapping[str, Tensor]], image_ids: Sequence[int], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Return detections as rows of COCO's result format, ready for ``json.dump``.

    ``outputs`` are what torchvision's detectors return for each image: ``boxes`` [D, 4] (x0, y0, x1, y1 in pixels),
    ``labels`` [D] from 1, ``scores`` [D], and of Mask R-CNN ``masks`` [D, 1, H, W], probabilities in the image's own
    pixels; a pixel from 0.5 on belongs to the mask. Label k becomes ``category_ids[k - 1]``. The rows have
    ``image_id``, ``category_id``, ``bbox`` (x, y, width, height, to a thousandth of a pixel), ``score``, and with masks
    ``segmentation``, a compressed run-length code. Raises ValueError for a label outside 1..K, or other numbers of
    images than of ``image_ids``.

    Example:
        >>> box, label, score = torch.tensor([[2.0, 3.0, 12.0, 8.0]]), torch.tensor([2]), torch.tensor([0.75])
        >>> coco_results([{"boxes": box, "labels": label, "scores": score}], [139], [1, 44])
        [{'image_id': 139, 'category_id': 44, 'bbox': [2.0, 3.0, 10.0, 5.0], 'score': 0.75}]
    """
    rows = []
    for output, image_id in zip(outputs, image_ids, strict=True):
        labels = output["labels"].tolist()
        for label in labels:
            if not 1 <= label <= len(category_ids):
                raise ValueError(f"labels ({label}) must lie in 1..{len(category_ids)}, the number of categories")
        boxes = output["boxes"].detach().double().cpu()
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
        found = [
            {
                "image_id": int(image_id),
                "category_id": int(category_ids[label - 1]),
                "bbox": [round(value, 3) for value in box],
                "score": score,
            }
            for label, box, score in zip(labels, boxes.tolist(), output["scores"].tolist(), strict=True)
        ]
        if "masks" in output:
            for row, code in zip(found, run_lengths(output["masks"][:, 0]), strict=True):
                row["segmentation"] = code
        rows += found
    return rows


def run_lengths(masks: Tensor) -> list[dict[str, Any]]:
    """Return masks [D, H, W], true or from 0.5 on where the object is, as COCO's compressed run lengths, for JSON."""
    if len(masks) == 0:
        return []
    # The encoder reads [H, W, D] in Fortran order, which is [D, W, H] in C's.
    inside = (masks >= 0.5).transpose(1, 2).contiguous().view(torch.uint8).cpu().numpy()
    codes = _library().mask.encode(inside.transpose(2, 1, 0))
    return [{"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")} for code in codes]


def measures_and_classes(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: Kind
) -> tuple[dict[str, float], list[tuple[str, float, int]]]:
    """Return COCO's twelve numbers (%) of detected boxes ("bbox") or masks ("segm") by name, and the AP of each class.

    AP is the mean over IoU thresholds 0.50, 0.55, ..., 0.95, categories and 101 points of recall; AP50 and AP75 keep
    one threshold; APs, APm and APl objects of up to 32^2, of 32^2 to 96^2 and of 96^2 pixels or more. AR1, AR10 and
    AR100 are the recalls at so many detections an image, ARs, ARm and ARl those by size. Crowd regions count neither as
    found nor as missed. A number without objects to find is nan. The classes come in the order of their ids: name, AP
    and number of objects, crowds left out. Neither ``truth``, COCO's own structure, nor ``results``, rows of its result
    format, is changed.

    The size of a detected mask is its own, as in COCO's results; pycocotools' ``loadRes`` takes that of the box where a
    row holds both, which changes APs, APm and APl a little.

    Source: Lin et al. 2014, "Microsoft COCO: common objects in context"; https://cocodataset.org/#detection-eval.
    """
    library = _library()
    categories = sorted(truth["categories"], key=lambda category: category["id"])
    counts = Counter(row["category_id"] for row in truth["annotations"] if not row.get("iscrowd", 0))
    measures, of_classes = dict.fromkeys(_MEASURES, math.nan), [math.nan] * len(categories)
    if any(counts.values()):
        # the library takes the number 0 for no object
        objects = [{**row, "id": number} for number, row in enumerate(truth["annotations"], start=1)]
        other = "segmentation" if kind == "bbox" else "bbox"
        found = [{key: value for key, value in row.items() if key != other} for row in results]
        coco = library.COCO({**truth, "annotations": objects})
        detected = coco.loadRes(found) if found else library.COCO({**truth, "annotations": []})
        evaluator = library.COCOeval_faster(coco, detected, kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
        measures = dict(zip(_MEASURES, map(_percent, evaluator.stats), strict=False))
        of_classes = [_percent(table.mean()) for table in np.moveaxis(evaluator.eval["precision"][..., 0, 2], 2, 0)]
    return measures, [
        (category["name"], ap, counts[category["id"]]) for category, ap in zip(categories, of_classes, strict=True)
    ]


def _percent(value: float) -> float:
    return 100 * float(value) if value > -1 else math.nan  # COCO writes -1 where there is no object
