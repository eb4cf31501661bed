"""COCO's numbers: pycocotools, used plainly, and a slow form of our own give the same."""

import copy
import json
import math
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from faster_coco_eval import mask as faster_mask
from pycocotools import mask as pycocotools_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cgnl.training.average_precision import coco_results, measures_and_classes

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:pycocotools")

NAMES = "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split()
HEIGHT, WIDTH = 150, 200
CATEGORY_IDS = [3, 7, 44]


def rectangle(generator):
    """x, y, width, height of a box of any of COCO's three sizes, in whole pixels inside the image."""
    side = generator.choice([12, 36, 120])
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


def decoded(segmentation):
    code = pycocotools_mask.frPyObjects(segmentation, HEIGHT, WIDTH)
    return pycocotools_mask.decode(pycocotools_mask.merge(code) if isinstance(code, list) else code)


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
    percent = [math.nan if value == -1 else 100 * value for value in evaluator.stats]
    of_classes = [table[table > -1] for table in np.moveaxis(evaluator.eval["precision"][..., 0, 2], 2, 0)]
    return percent, [100 * table.mean() if len(table) else math.nan for table in of_classes]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_numbers_are_pycocotools(tmp_path, capsys, seed, kind):
    truth, results = random_case(seed)
    before = copy.deepcopy((truth, results))
    ours, classes = measures_and_classes(truth, results, kind)
    assert capsys.readouterr().out == ""
    assert (truth, results) == before
    expected, of_classes = plain_pycocotools(tmp_path, truth, results, kind)
    assert list(ours) == NAMES
    assert ours == pytest.approx(dict(zip(NAMES, expected, strict=True)), abs=1e-9)
    assert [ap for _, ap, _ in classes] == pytest.approx(of_classes, abs=1e-9, nan_ok=True)
    wanted = Counter(row["category_id"] for row in truth["annotations"] if not row["iscrowd"])
    assert [(name, count) for name, _, count in classes] == [(f"kind {k}", wanted[k]) for k in CATEGORY_IDS]
    assert 5 < ours["AP"] < ours["AP50"] < 95  # the case tells something
    assert all(0 < ours[name] <= 100 for name in NAMES)
    assert math.isnan(classes[-1][1])


def test_average_precision_of_a_case_by_hand():
    """Objects A and B of 40 x 40; the detections by score: A, a stray one, B at an IoU of 0.825, A once more."""
    truth = {
        "images": [{"id": 5, "width": 200, "height": 100}],
        "categories": [{"id": 9, "name": "robin"}, {"id": 2, "name": "wren"}],
        "annotations": [
            {"id": 0, "image_id": 5, "category_id": 9, "bbox": [0, 0, 40, 40], "area": 1600},
            {"id": 1, "image_id": 5, "category_id": 9, "bbox": [100, 0, 40, 40], "area": 1600},
        ],
    }
    boxes = [([0, 0, 40, 40], 0.9), ([50, 50, 33, 33], 0.8), ([100, 0, 40, 33], 0.7), ([0, 0, 40, 41], 0.6)]
    results = [{"image_id": 5, "category_id": 9, "bbox": box, "score": score} for box, score in boxes]
    # precision 1 up to recall 1/2 (51 of 101 points); then 2/3 where an IoU of 0.825 is enough: 0.50 ... 0.80
    low, high = (51 + 50 * 2 / 3) / 101, 51 / 101
    found, ((wren, no_ap, none), robin) = measures_and_classes(truth, results, "bbox")
    assert found["AP50"] == pytest.approx(100 * low) == found["AP75"]
    assert found["AP"] == pytest.approx(100 * (7 * low + 3 * high) / 10) == found["APm"]
    assert found["AR1"] == pytest.approx(50)
    assert found["AR100"] == pytest.approx(100 * (7 * 1 + 3 * 0.5) / 10)
    assert math.isnan(found["APs"])
    assert math.isnan(found["APl"])
    assert (wren, none) == ("wren", 0)
    assert math.isnan(no_ap)
    assert robin == ("robin", pytest.approx(found["AP"]), 2)


def overlap(a, b):
    """Intersection of two boxes (x, y, width, height), in pixels."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def slow_average_precision(truth, results, threshold, smallest, largest):
    """AP (%) of boxes at one IoU threshold for objects of an area in smallest..largest, as defined, one loop each."""
    averages = []
    for category in CATEGORY_IDS:
        outcomes, wanted = [], 0
        for image in sorted(image["id"] for image in truth["images"]):
            mine = [
                (row, bool(row["iscrowd"]) or not smallest <= row["area"] <= largest)
                for row in truth["annotations"]
                if (row["image_id"], row["category_id"]) == (image, category)
            ]
            wanted += sum(not ignored for _, ignored in mine)
            found = [row for row in results if (row["image_id"], row["category_id"]) == (image, category)]
            taken = set()
            for row in sorted(found, key=lambda row: -row["score"])[:100]:
                area = row["bbox"][2] * row["bbox"][3]
                best = None  # (an object that counts, IoU, position)
                for position, (other, ignored) in enumerate(mine):
                    if position in taken and not other["iscrowd"]:
                        continue
                    shared = overlap(row["bbox"], other["bbox"])
                    union = area if other["iscrowd"] else area + other["bbox"][2] * other["bbox"][3] - shared
                    if shared / union >= threshold:
                        best = max(best or (False, 0, 0), (not ignored, shared / union, position))
                if best is not None:
                    taken.add(best[2])
                    if best[0]:
                        outcomes.append((row["score"], True))
                elif smallest <= area <= largest:
                    outcomes.append((row["score"], False))
        if wanted == 0:
            continue
        outcomes.sort(key=lambda outcome: -outcome[0])
        curve, right = [], 0
        for count, (_, correct) in enumerate(outcomes, start=1):
            right += correct
            curve.append((right / wanted, right / count))
        points = [max((p for r, p in curve if r >= step / 100), default=0.0) for step in range(101)]
        averages.append(100 * sum(points) / 101)
    return sum(averages) / len(averages)


@pytest.mark.parametrize("seed", [3, 4])
def test_average_precision_is_what_its_definition_gives(seed):
    truth, results = random_case(seed, images=6)
    found, _ = measures_and_classes(truth, results, "bbox")
    for name, sizes in {"AP": (0, 1e10), "APs": (0, 1024), "APm": (1024, 9216), "APl": (9216, 1e10)}.items():
        by_threshold = [slow_average_precision(truth, results, step / 100, *sizes) for step in range(50, 100, 5)]
        assert found[name] == pytest.approx(np.mean(by_threshold), abs=1e-9), name
        if name == "AP":
            assert (found["AP50"], found["AP75"]) == pytest.approx((by_threshold[0], by_threshold[5]), abs=1e-9)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_nothing_found_is_zero_and_nothing_to_find_is_undefined(kind):
    truth, results = random_case(0, images=3)
    found, classes = measures_and_classes(truth, [], kind)
    assert found["AP"] == found["AP50"] == found["AR100"] == 0
    assert [(ap, count > 0) for _, ap, count in classes][:2] == [(0, True)] * 2
    crowds = [{**row, "iscrowd": 1} for row in truth["annotations"]]
    nothing = {"images": [], "annotations": [], "categories": truth["categories"]}
    for empty, rows in (({**truth, "annotations": []}, results), ({**truth, "annotations": crowds}, results)):
        found, classes = measures_and_classes(empty, rows, kind)
        assert all(map(math.isnan, found.values()))
        assert [count for *_, count in classes] == [0, 0, 0]
    found, classes = measures_and_classes(nothing, [], kind)
    assert list(found) == NAMES
    assert all(map(math.isnan, found.values()))
    assert [name for name, *_ in classes] == ["kind 3", "kind 7", "kind 44"]


def test_a_missing_library_is_named(monkeypatch):
    truth, results = random_case(0, images=2)
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ImportError, match=r"needs faster_coco_eval: pip install 'cgnl\[detection\]'"):
        measures_and_classes(truth, results, "bbox")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_results_say_what_the_detector_found(dtype):
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(3, 4, generator=generator, dtype=torch.float64) * 50
    boxes[:, 2:] += boxes[:, :2] + 1
    boxes = boxes.to(dtype)
    masks = torch.rand(3, 1, 61, 47, generator=generator).to(dtype)
    masks[0, 0, :2] = 0.5
    masks[2] = 0.25
    labels, scores = torch.tensor([3, 1, 3]), torch.tensor([0.7, 0.5, 0.25], dtype=dtype)
    nothing = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "scores": torch.zeros(0),
        "masks": torch.zeros(0, 1, 9, 8),
    }
    found = {"boxes": boxes, "labels": labels, "scores": scores, "masks": masks}
    rows = coco_results(iter([nothing, found]), [17, 4], CATEGORY_IDS)
    assert json.loads(json.dumps(rows)) == rows
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(4, 44), (4, 3), (4, 44)]
    for row, box, score, mask in zip(rows, boxes.tolist(), scores.tolist(), masks, strict=True):
        x, y, width, height = row["bbox"]
        assert (x, y, x + width, y + height) == pytest.approx(box, abs=2e-3)
        assert row["score"] == score
        # the other library decodes it
        assert np.array_equal(pycocotools_mask.decode(row["segmentation"]), (mask[0] >= 0.5).numpy())


def test_the_truth_as_results_is_found_wholly():
    truth, _ = random_case(5, images=4)
    truth["annotations"] = [row for row in truth["annotations"] if not row["iscrowd"]]
    outputs = []
    for image in truth["images"]:
        rows = [row for row in truth["annotations"] if row["image_id"] == image["id"]]
        boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = [decoded(row["segmentation"]) for row in rows]
        labels = [CATEGORY_IDS.index(row["category_id"]) + 1 for row in rows]
        outputs.append(
            {
                "boxes": boxes,
                "labels": torch.tensor(labels),
                "scores": torch.rand(len(rows)),
                "masks": torch.from_numpy(np.array(masks).reshape(-1, 1, HEIGHT, WIDTH)).float(),
            }
        )
    results = coco_results(outputs, [image["id"] for image in truth["images"]], CATEGORY_IDS)
    for kind in ("bbox", "segm"):
        assert measures_and_classes(truth, results, kind)[0]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("label", [0, 4, -1])
def test_labels_without_a_category_are_refused(label):
    output = {"boxes": torch.zeros(1, 4), "labels": torch.tensor([label]), "scores": torch.ones(1)}
    with pytest.raises(ValueError, match=rf"labels \({label}\) must lie in 1\.\.3"):
        coco_results([output], [1], CATEGORY_IDS)
