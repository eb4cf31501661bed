"""Average precision of detected boxes and masks as COCO defines it.

Shapes: D detections of an image, H x W its pixels; T IoU thresholds, R points of recall, K categories, A ranges of
area, M numbers of detections of an image.
"""

import contextlib
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

Kind = Literal["bbox", "segm"]
Backend = Literal["faster_coco_eval", "pycocotools"]

_INSTALL = {"faster_coco_eval": "'cgnl[detection]'", "pycocotools": "pycocotools"}
# Which entries along T, A and M a number is the mean over; None is all of them.
_PRECISIONS: dict[str, tuple[int | None, int, int]] = {
    "AP": (None, 0, 2),
    "AP50": (0, 0, 2),
    "AP75": (5, 0, 2),
    "APs": (None, 1, 2),
    "APm": (None, 2, 2),
    "APl": (None, 3, 2),
}
_RECALLS = {"AR1": (0, 0), "AR10": (0, 1), "AR100": (0, 2), "ARs": (1, 2), "ARm": (2, 2), "ARl": (3, 2)}


class _Library(NamedTuple):
    COCO: Any
    COCOeval: Any
    mask: Any


def _library(backend: Backend) -> _Library:
    try:
        if backend == "pycocotools":
            from pycocotools import mask
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
        else:
            from faster_coco_eval import COCO, mask
            from faster_coco_eval import COCOeval_faster as COCOeval
    except ImportError as error:
        raise ImportError(f"average precision needs {backend}: pip install {_INSTALL[backend]}") from error
    return _Library(COCO, COCOeval, mask)


def coco_results(
    outputs: Iterable[Mapping[str, Tensor]], image_ids: Sequence[int], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Return detections as rows of COCO's result format, ready for ``json.dump``.

    Args:
        outputs: What torchvision's detectors return for each image: ``boxes`` [D, 4] (x0, y0, x1, y1 in pixels),
            ``labels`` [D] from 1, ``scores`` [D], and of Mask R-CNN ``masks`` [D, 1, H, W], probabilities in the
            image's own pixels; a pixel from 0.5 on belongs to the mask.
        image_ids: COCO's number of each image.
        category_ids: COCO's numbers of the K categories; label k is ``category_ids[k - 1]``.

    Returns:
        ``image_id``, ``category_id``, ``bbox`` (x, y, width, height, to a thousandth of a pixel), ``score``, and with
        masks ``segmentation``, a compressed run-length code.

    Raises:
        ValueError: A label lies outside 1..K, or there are more or fewer images than numbers of them.
        ImportError: There are masks, and faster-coco-eval is missing.

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
    """Return masks as COCO's compressed run lengths, ready for ``json.dump``.

    Args:
        masks: [D, H, W], true or from 0.5 on where the object is.

    Returns:
        ``size`` (H, W) and ``counts`` of each mask.

    Raises:
        ImportError: faster-coco-eval is missing.
    """
    if len(masks) == 0:
        return []
    # The encoder reads [H, W, D] in Fortran order, which is [D, W, H] in C's.
    inside = (masks >= 0.5).transpose(1, 2).contiguous().view(torch.uint8).cpu().numpy()
    codes = _library("faster_coco_eval").mask.encode(inside.transpose(2, 1, 0))
    return [{"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")} for code in codes]


def average_precision(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    kind: Kind,
    *,
    backend: Backend = "faster_coco_eval",
) -> dict[str, float]:
    """Return COCO's twelve numbers (%) of detected boxes or masks.

    AP is the mean over IoU thresholds 0.50, 0.55, ..., 0.95, categories and 101 points of recall; AP50 and AP75 keep
    one threshold; APs, APm and APl objects of up to 32^2, of 32^2 to 96^2 and of 96^2 pixels or more. AR1, AR10 and
    AR100 are the recalls at so many detections an image, ARs, ARm and ARl those by size. Crowd regions count neither
    as found nor as missed. What is undefined, for want of objects, is nan.

    For masks the size of a detection is that of its mask, as in COCO's own results of masks; pycocotools' ``loadRes``
    takes the box where a row holds both, which changes APs, APm and APl a little.

    Source: Lin et al. 2014, "Microsoft COCO: common objects in context"; https://cocodataset.org/#detection-eval.

    Args:
        truth: COCO's own structure: ``images``, ``annotations`` and ``categories``; it is not changed.
        results: Rows of COCO's result format; they are not changed.
        kind: "bbox" or "segm".
        backend: Which library computes them; the numbers are the same.

    Raises:
        ValueError: A row names an image or category that is not in the truth, or lacks the box or mask it is tested on.
        ImportError: The library is missing.
    """
    return measures_and_classes(truth, results, kind, backend=backend)[0]


def measures_and_classes(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    kind: Kind,
    *,
    backend: Backend = "faster_coco_eval",
) -> tuple[dict[str, float], list[tuple[str, float, int]]]:
    """Return COCO's numbers (%) of :func:`average_precision`, and of each category, in the order of the ids, its name,
    AP (%; nan without objects) and number of objects without crowds.

    Args:
        truth: As in :func:`average_precision`.
        results: As in :func:`average_precision`.
        kind: "bbox" or "segm".
        backend: Which library computes them.

    Raises:
        ValueError: As in :func:`average_precision`.
        ImportError: The library is missing.
    """
    precision, recall = _tables(truth, results, kind, backend)
    measures = {
        name: _mean(precision[slice(None) if t is None else t, ..., a, m]) for name, (t, a, m) in _PRECISIONS.items()
    }
    measures |= {name: _mean(recall[..., a, m]) for name, (a, m) in _RECALLS.items()}
    categories = sorted(truth["categories"], key=lambda category: category["id"])
    counts = Counter(row["category_id"] for row in truth["annotations"] if not row.get("iscrowd", 0))
    classes = [
        (category["name"], _mean(precision[:, :, k, 0, 2]), counts[category["id"]])
        for k, category in enumerate(categories)
    ]
    return measures, classes


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]  # COCO writes -1 where there is no object
    return 100 * float(defined.mean()) if defined.size else math.nan


def _tables(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: Kind, backend: Backend
) -> tuple[np.ndarray, np.ndarray]:
    """Return COCO's tables: precision [T, R, K, A, M] and recall [T, K, A, M]."""
    if kind not in ("bbox", "segm"):
        raise ValueError(f"kind ({kind!r}) must be 'bbox' or 'segm'")
    if backend not in _INSTALL:
        raise ValueError(f"backend ({backend!r}) must be one of {', '.join(map(repr, _INSTALL))}")
    library = _library(backend)
    images = {image["id"]: image for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    objects = [_object(number, row, images, kind, library) for number, row in enumerate(truth["annotations"], start=1)]
    found = [_detection(number, row, images, categories, kind, library) for number, row in enumerate(results, start=1)]
    if not (images and categories):
        return np.full((10, 101, len(categories), 4, 3), -1.0), np.full((10, len(categories), 4, 3), -1.0)
    # pycocotools tells its progress by print
    with contextlib.redirect_stdout(io.StringIO()):
        both = []
        for annotations in (objects, found):
            coco = library.COCO()
            coco.dataset = {"images": truth["images"], "categories": truth["categories"], "annotations": annotations}
            coco.createIndex()
            both.append(coco)
        evaluator = library.COCOeval(*both, kind)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"], evaluator.eval["recall"]


def _object(
    number: int, row: Mapping[str, Any], images: Mapping[int, Any], kind: Kind, library: _Library
) -> dict[str, Any]:
    """Return a true object as the libraries want it.

    They mark what is not found by the number 0, so objects are numbered anew, from 1.
    """
    which = f"annotation {row.get('id', number)}"
    if row["image_id"] not in images:
        raise ValueError(f"{which} of the truth is of image {row['image_id']}, which is not in the truth")
    needed = "segmentation" if kind == "segm" else "bbox"
    if not row.get(needed):
        raise ValueError(f"{which} of the truth has no {needed}")
    whole = {**row, "id": number, "iscrowd": int(row.get("iscrowd", 0))}
    if "area" not in row:
        shape = row.get("segmentation")
        whole["area"] = _area(shape, images[row["image_id"]], library) if shape else row["bbox"][2] * row["bbox"][3]
    return whole


def _detection(
    number: int, row: Mapping[str, Any], images: Mapping[int, Any], categories: set[int], kind: Kind, library: _Library
) -> dict[str, Any]:
    """Return a detection as the libraries want it: with its area, and without what is not tested."""
    if row["image_id"] not in images:
        raise ValueError(f"result {number} is of image {row['image_id']}, which is not in the truth")
    if row["category_id"] not in categories:
        raise ValueError(f"result {number} is of category {row['category_id']}, which is not in the truth")
    if not math.isfinite(row["score"]):
        raise ValueError(f"result {number} has the score {row['score']}, which must be finite")
    needed = "segmentation" if kind == "segm" else "bbox"
    if not row.get(needed):
        raise ValueError(f"result {number} has no {needed}")
    if kind == "bbox":
        area = row["bbox"][2] * row["bbox"][3]
    else:
        image, code = images[row["image_id"]], row["segmentation"]
        height_width = [image["height"], image["width"]]
        if not isinstance(code, Mapping) or list(code["size"]) != height_width:
            raise ValueError(
                f"result {number} must have a run-length code of its image's height and width {height_width} as "
                f"segmentation, not {str(code)[:60]}"
            )
        area = _area(row["segmentation"], image, library)
    kept = {key: row[key] for key in ("image_id", "category_id", "score", needed)}
    return kept | {"id": number, "iscrowd": 0, "area": area}


def _area(shape: Any, image: Mapping[str, Any], library: _Library) -> int:
    """Return the number of pixels of COCO's polygons or run-length code."""
    if isinstance(shape, Mapping) and not isinstance(shape["counts"], list):
        return int(library.mask.area(dict(shape)))
    code = library.mask.frPyObjects(shape, image["height"], image["width"])
    return int(library.mask.area(library.mask.merge(code) if isinstance(code, list) else code))
