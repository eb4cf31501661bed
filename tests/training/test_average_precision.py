"""COCO's numbers: both libraries, pycocotools used plainly, and a slow form of our own give the same."""

import copy
import json
import math

import numpy as np
import pytest
from faster_coco_eval import mask as faster_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cgnl.training.average_precision import average_precision, per_class

NAMES = "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split()
HEIGHT, WIDTH = 150, 200
CATEGORY_IDS = [3, 7, 44]


def rectangle(generator):
    """x, y, width, height of a box of any of COCO's three sizes, in whole pixels inside the image."""
    side = generator.choice([12, 50, 120])
    width, height = np.clip(generator.normal(side, 4, 2).round(), 4, 130).astype(int).tolist()
    x, y = generator.integers(0, WIDTH - width + 1), generator.integers(0, HEIGHT - height + 1)
    return [int(x), int(y), width, height]


def ellipse(box):
    x, y, width, height = box
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return (((columns - x) / width - 0.5) ** 2 + ((rows - y) / height - 0.5) ** 2) <= 0.25


def counts_of(mask):
    """Uncompressed run lengths, column by column, beginning with zeros."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(np.diff(flat)).tolist()
    edges = [0, *changes, mask.size]
    return [end - begin for begin, end in zip(edges, edges[1:], strict=False)]


def random_case(seed, images=12, detections=14, many=400):
    """A truth with polygons, run lengths and crowds, and detections that are moved objects or stray ones, with ties."""
    generator = np.random.default_rng(seed)
    image_ids = generator.permutation(np.arange(100, 100 + images)).tolist()
    annotations, results = [], []
    for image_id in image_ids[:-1]:  # the last has no truth
        for _ in range(generator.integers(1, 7)):
            box = rectangle(generator)
            x, y, width, height = box
            form = generator.choice(["polygon", "counts", "crowd"], p=[0.5, 0.35, 0.15])
            mask = ellipse(box)
            annotation = {
                "id": len(annotations),  # the first is 0: libraries would take it for no object
                "image_id": image_id,
                "category_id": int(generator.choice(CATEGORY_IDS[:2], p=[0.7, 0.3])),
                "bbox": box,
                "iscrowd": int(form == "crowd"),
                "area": int(mask.sum()),
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts_of(mask)},
            }
            if form == "polygon":
                octagon = [(0.3, 0), (0.7, 0), (1, 0.3), (1, 0.7), (0.7, 1), (0.3, 1), (0, 0.7), (0, 0.3)]
                annotation["area"] = 0.82 * width * height
                annotation["segmentation"] = [[value for u, v in octagon for value in (x + u * width, y + v * height)]]
            annotations.append(annotation)
    for image_id in image_ids:
        mine = [annotation for annotation in annotations if annotation["image_id"] == image_id]
        for _ in range(many if image_id == image_ids[0] else detections):
            box, category = rectangle(generator), int(generator.choice(CATEGORY_IDS))
            if mine and generator.random() < 0.7:
                near = mine[generator.integers(len(mine))]
                moved = np.array(near["bbox"]) + generator.integers(-3, 4, 4)
                box = [max(int(value), low) for value, low in zip(moved, (0, 0, 2, 2), strict=True)]
                category = near["category_id"]
            mask = ellipse(box)
            results.append(
                {
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [float(value) for value in box],
                    "score": round(float(generator.random()), 1),  # many ties
                    "segmentation": compressed(mask),
                }
            )
    truth = {
        "images": [{"id": image_id, "width": WIDTH, "height": HEIGHT} for image_id in image_ids],
        "annotations": annotations,
        "categories": [{"id": number, "name": f"kind {number}"} for number in reversed(CATEGORY_IDS)],
    }
    return truth, results


def compressed(mask):
    code = faster_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": code["size"], "counts": code["counts"].decode()}


def plain_pycocotools(tmp_path, truth, results, kind):
    """What a user of pycocotools sees, who keeps to COCO's formats: files, loadRes, summarize."""
    truth = copy.deepcopy(truth)
    for annotation in truth["annotations"]:
        annotation["id"] += 1
    if kind == "segm":
        results = [{key: value for key, value in row.items() if key != "bbox"} for row in results]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    coco = COCO(str(tmp_path / "truth.json"))
    evaluator = COCOeval(coco, coco.loadRes(str(tmp_path / "results.json")), kind)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return [math.nan if value == -1 else 100 * value for value in evaluator.stats]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_both_libraries_give_what_plain_pycocotools_gives(tmp_path, capsys, seed, kind):
    truth, results = random_case(seed)
    before = copy.deepcopy((truth, results))
    ours = average_precision(truth, results, kind)
    other = average_precision(truth, results, kind, backend="pycocotools")
    assert per_class(truth, results, kind) == per_class(truth, results, kind, backend="pycocotools")
    assert capsys.readouterr().out == ""
    assert (truth, results) == before
    expected = plain_pycocotools(tmp_path, truth, results, kind)
    assert list(ours) == NAMES
    assert ours == pytest.approx(dict(zip(NAMES, expected, strict=True)), abs=1e-9)
    assert other == pytest.approx(ours, abs=1e-9)
    assert 5 < ours["AP"] < ours["AP50"] < 95  # the case tells something
    assert all(0 < ours[name] <= 100 for name in NAMES)


def test_average_precision_of_a_case_by_hand():
    """Objects A and B of 40 x 40; the detections by score: A exactly, a stray one, B at an IoU of 0.8, A once more."""
    truth = {
        "images": [{"id": 5, "width": 200, "height": 100}],
        "categories": [{"id": 9, "name": "robin"}, {"id": 2, "name": "wren"}],
        "annotations": [
            {"id": 0, "image_id": 5, "category_id": 9, "bbox": [0, 0, 40, 40]},
            {"id": 1, "image_id": 5, "category_id": 9, "bbox": [100, 0, 40, 40]},
        ],
    }
    boxes = [([0, 0, 40, 40], 0.9), ([50, 50, 30, 30], 0.8), ([100, 0, 40, 32], 0.7), ([0, 0, 40, 41], 0.6)]
    results = [{"image_id": 5, "category_id": 9, "bbox": box, "score": score} for box, score in boxes]
    # precision 1 up to recall 1/2 (51 of 101 points); then 2/3 where an IoU of 0.8 is enough: 0.50 ... 0.80
    low, high = (51 + 50 * 2 / 3) / 101, 51 / 101
    found = average_precision(truth, results, "bbox")
    assert found["AP50"] == pytest.approx(100 * low) == found["AP75"]
    assert found["AP"] == pytest.approx(100 * (7 * low + 3 * high) / 10) == found["APm"]
    assert found["AR1"] == pytest.approx(50)
    assert found["AR100"] == pytest.approx(100 * (7 * 1 + 3 * 0.5) / 10)
    assert math.isnan(found["APs"])
    assert math.isnan(found["APl"])
    (wren, no_ap, none), robin = per_class(truth, results, "bbox")
    assert (wren, none) == ("wren", 0)
    assert math.isnan(no_ap)
    assert robin == ("robin", pytest.approx(found["AP"]), 2)
