"""Annotations that cannot be used are named, counted and kept out; the others are COCO's own truth."""

import contextlib
import csv
import io
import json

import numpy as np
import pycocotools.mask
import pytest
from coco_files import CATEGORIES, HEIGHT, WIDTH, annotation, image_row, make_coco, make_image, write_json
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cgnl.data.decoding import DataError
from cgnl.data.detection import BadAnnotation, check_annotations, check_detection, read_coco, write_bad_annotations
from cgnl.data.detection.masks import decode

RUNS = {"size": [HEIGHT, WIDTH], "counts": [65, 5, HEIGHT * WIDTH - 70]}

BAD = [
    ({"box": (2, 3, 0, 8)}, "has a box of 0 x 8 pixels, which has no area"),
    ({"box": (2, 3, 5, -8)}, "has a box of 5 x -8 pixels, which has no area"),
    ({"box": (2, 3, 1e-7, 5)}, "which has no area"),
    ({"bbox": [31, 3, 5, 5]}, "has the box [31, 3, 5, 5] outside the image of 30 x 20 pixels"),
    ({"bbox": [-9, 3, 9, 5]}, "outside the image"),
    ({"bbox": [29.995, 3, 9, 5]}, "with no area inside the image"),
    ({"bbox": None}, "has no box"),
    ({"bbox": []}, "has no box"),
    ({"bbox": [1, 2, 3]}, "expected 4 finite numbers"),
    ({"bbox": "1 2 3 4"}, "expected 4 finite numbers"),
    ({"bbox": [1, 2, "3", 4]}, "expected 4 finite numbers"),
    ({"bbox": [1, 2, 10**400, 4]}, "expected 4 finite numbers"),
    ({"bbox": [1, 2, float("nan"), 4]}, "expected 4 finite numbers"),
    ({"area": float("inf")}, "has the area inf"),
    ({"area": -1}, "has the area -1"),
    ({"area": "big"}, "has the area 'big'"),
    ({"category_id": 1}, "has the unknown category 1"),
    ({"category_id": None}, "has the unknown category None"),
    ({"category_id": [18]}, "has the unknown category [18]"),
    ({"image_id": 99}, "belongs to an image that the file does not name"),
    ({"image_id": None}, "belongs to an image that the file does not name"),
    ({"image_id": {}}, "belongs to an image that the file does not name"),
    ({"iscrowd": 2}, "has the iscrowd 2"),
    ({"iscrowd": []}, "has the iscrowd []"),
    ({"segmentation": None}, "has no mask"),
    ({"segmentation": []}, "has no mask"),
    ({"segmentation": [[40, 1, 50, 1, 50, 9]]}, "has a mask that covers no pixel of the image"),
    ({"segmentation": [[2, 2, 8, 2.2, 8, 2.3]]}, "has a mask that covers no pixel of the image"),
    ({"segmentation": [[1, 1, 5, 5]]}, "has a polygon of 4 numbers"),
    ({"segmentation": {**RUNS, "size": [WIDTH, HEIGHT]}}, "has a run-length encoding of size"),
    ({"segmentation": {**RUNS, "counts": "no!"}}, "has a run-length encoding that is broken"),
]


@pytest.mark.parametrize(("changes", "reason"), BAD)
def test_a_bad_annotation_is_named_and_kept_out(tmp_path, changes, reason):
    make_coco(tmp_path, [annotation(4), annotation(5, **changes), annotation(6)])
    images = read_coco(tmp_path)
    [bad] = images.bad_annotations
    assert bad.id == 5
    assert bad.image == ("0001.png" if "image_id" not in changes else f"image id {changes['image_id']}")
    assert reason in bad.reason
    assert [row["id"] for row in images.objects(0)] == [4, 6]
    assert [row["id"] for row in images.truth()["annotations"]] == [4, 6]


def test_ids_are_whole_numbers_and_given_once(tmp_path):
    rows = [annotation(4), annotation(4), annotation("5"), 7, annotation(True), annotation(2**70)]
    make_coco(tmp_path, rows)
    images = read_coco(tmp_path)
    assert images.bad_annotations == (
        BadAnnotation(4, "0001.png", "has the same id as an earlier annotation"),
        BadAnnotation("number 3 of the list", "0001.png", "has the id '5', expected a whole number"),
        BadAnnotation("number 4 of the list", "image id None", "has the id None, expected a whole number"),
        BadAnnotation("number 5 of the list", "0001.png", "has the id True, expected a whole number"),
        BadAnnotation("number 6 of the list", "0001.png", f"has the id {2**70}, expected a whole number"),
    )
    assert len(images.objects(0)) == 1


def test_the_limit_is_on_all_annotations(tmp_path):
    make_coco(
        tmp_path,
        [*map(annotation, range(1, 8)), annotation(8, iscrowd=1), annotation(9, area=-1), annotation(10, area=-2)],
    )
    images = read_coco(tmp_path)
    check_annotations(images, 0.2)
    with pytest.raises(DataError) as caught:
        check_annotations(images, 0.19)
    assert str(caught.value) == (
        f"2 of 10 annotations of {images.source} are bad, more than the limit of 19.0% (--data.bad-limit): "
        "annotation 9 (0001.png) has the area -1, expected a number from 0; "
        "annotation 10 (0001.png) has the area -2, expected a number from 0"
    )


def test_the_list_in_the_run_folder(tmp_path):
    make_coco(tmp_path, [annotation(1)])
    make_coco(tmp_path, [annotation(5, area=-1), annotation(6, image_id="a, b")], "val2017")
    lists = [read_coco(tmp_path, split) for split in ("train", "test")]
    write_bad_annotations(tmp_path / "run", lists[:1])
    assert not (tmp_path / "run").exists()
    for _ in range(2):
        write_bad_annotations(tmp_path / "run", lists)
    with (tmp_path / "run/bad_annotations.csv").open(newline="", encoding="utf-8") as opened:
        rows = list(csv.reader(opened))
    source = str(lists[1].source)
    assert rows == [
        ["file", "id", "image", "reason"],
        [source, "5", "0001.png", "has the area -1, expected a number from 0"],
        [source, "6", "image id 'a, b'", "belongs to an image that the file does not name"],
    ]


GOOD_POLYGON = [2, 2, 10, 2, 10, 8, 2, 8]


@pytest.mark.parametrize("bad", [[12, 3, 20, 9], [3, 3], [], [12, 3, 20], [12, 3, 20, 9, 13]])
@pytest.mark.parametrize("first", [False, True])
def test_an_object_keeps_its_good_polygons_as_in_pycocotools(tmp_path, bad, first):
    polygons = [bad, GOOD_POLYGON] if first else [GOOD_POLYGON, bad]
    make_coco(tmp_path, [annotation(5, segmentation=polygons)])
    images = read_coco(tmp_path)
    # pycocotools takes the kind of all polygons from the first one
    runs = pycocotools.mask.frPyObjects([GOOD_POLYGON, bad], HEIGHT, WIDTH)
    [row] = images.objects(0)
    np.testing.assert_array_equal(
        decode([row["segmentation"]], WIDTH, HEIGHT)[0], pycocotools.mask.decode(pycocotools.mask.merge(runs))
    )
    assert images.bad_annotations == ()
    [partial] = images.partial_annotations
    assert str(partial) == (
        f"annotation 5 (0001.png) has a polygon of {len(bad)} numbers, but needs x and y of 3 points or more: "
        "only its other polygons are used"
    )
    write_bad_annotations(tmp_path / "run", [images])
    assert "only its other polygons" in (tmp_path / "run/bad_annotations.csv").read_text()
    report = check_detection(tmp_path, workers=1, progress=False)
    assert "1 annotation without some of its polygons" in str(report)


@pytest.mark.parametrize("bad", [[1, 1, 5, 1, 5, 5, 1], [1, 1, 5, 1, 5, float("nan")], [1, 1, 5, 1, 5, 10**9], None])
def test_an_object_without_some_of_its_polygons_is_named(tmp_path, bad):
    make_coco(tmp_path, [annotation(5, segmentation=[GOOD_POLYGON, bad])])
    images = read_coco(tmp_path)
    assert images.objects(0)[0]["segmentation"] == [GOOD_POLYGON]
    assert [partial.id for partial in images.partial_annotations] == [5]


def as_floats(value):
    if isinstance(value, dict):
        return {name: as_floats(each) for name, each in value.items()}
    if isinstance(value, list):
        return [as_floats(each) for each in value]
    return float(value) if isinstance(value, int) else value


def test_whole_floats_are_whole_numbers_wherever_they_stand(tmp_path):
    make_image(tmp_path / "train/a.png")
    rows = [annotation(1, 7), annotation(2, 7, iscrowd=1, segmentation=RUNS, area=5), annotation(3, 7, area=None)]
    found = []
    for convert in (lambda value: value, as_floats):
        file = write_json(
            tmp_path / "train/_annotations.coco.json",
            *([convert(row) for row in part] for part in ([image_row(7, "a.png")], rows, CATEGORIES)),
        )
        found.append(read_coco(tmp_path))
    assert '"id": 7.0' in file.read_text()
    assert '"counts": [65.0' in file.read_text()
    assert found[0] == found[1]
    texts = [json.dumps({**images.truth(), "annotations": []}) for images in found]
    assert texts[0] == texts[1]
    for ours, theirs in zip(*(images.objects(0) for images in found), strict=True):
        assert ours == theirs
        whole = ("id", "image_id", "category_id", "iscrowd")
        assert {type(theirs[name]) for name in whole} == {int}
        masks = [decode([row["segmentation"]], WIDTH, HEIGHT) for row in (ours, theirs)]
        np.testing.assert_array_equal(*masks)
    assert found[1].num_crowds == (1,)


@pytest.mark.parametrize("id", [3.5, float("inf"), float("nan"), 1e300, True, "3"])
def test_other_numbers_are_no_ids(tmp_path, id):
    make_coco(tmp_path, [annotation(4), annotation(id)])
    assert [bad.id for bad in read_coco(tmp_path).bad_annotations] == ["number 2 of the list"]


@pytest.mark.parametrize("name", ["id", "image_id", "category_id", "area", "iscrowd", "bbox", "segmentation"])
def test_a_number_of_thousands_of_digits_spoils_its_annotation_alone(tmp_path, name):
    make_coco(tmp_path, [annotation(4), annotation(5)])
    file = tmp_path / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    row = content["annotations"][1]
    row[name] = {"bbox": [1, 1, "BIG", 5], "segmentation": [[1, 1, 5, 1, "BIG", 5]]}.get(name, "BIG")
    file.write_text(json.dumps(content).replace('"BIG"', "1" * 5000))
    images = read_coco(tmp_path)
    assert [row["id"] for row in images.objects(0)] == [4]
    [bad] = images.bad_annotations
    assert "digits" not in str(bad) or "(5000 digits)" in str(bad)
    assert len(str(bad)) < 300


def test_what_tools_leave_out_is_filled_in(tmp_path):
    make_coco(tmp_path, [annotation(1, area=None, iscrowd=None), annotation(2, area=None, segmentation=RUNS)])
    first, second = read_coco(tmp_path).objects(0)
    assert (first["area"], first["iscrowd"]) == (80, 0)
    assert second["area"] == 5


def test_boxes_that_stick_out_are_kept_as_they_are_in_the_truth(tmp_path):
    make_coco(tmp_path, [annotation(1, box=(-3, 15, 10, 20))])
    [row] = read_coco(tmp_path).truth()["annotations"]
    assert row["bbox"] == [-3, 15, 10, 20]


def quietly(function, *arguments):
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments)


def test_the_truth_is_what_pycocotools_reads(tmp_path):
    """Detections that are the objects themselves have an AP of 100 %, with a crowd and with an annotation id of 0."""
    for number in (1, 2):
        make_image(tmp_path / "train" / f"{number}.png")
    rows = [
        annotation(0, 10),
        annotation(1, 10, (15, 5, 12, 12), category_id=3),
        annotation(2, 20, iscrowd=1, segmentation=RUNS),
        annotation(3, 20, (1, 1, 6, 6), segmentation=[[1, 1, 7, 1, 7, 7]]),
        annotation(4, 20, area=-1),
    ]
    images = [image_row(10, "1.png"), image_row(20, "2.png")]
    file = write_json(tmp_path / "train/_annotations.coco.json", images, rows)
    truth = read_coco(tmp_path).truth()
    ours, theirs = COCO.__new__(COCO), quietly(COCO, str(file))
    ours.__init__()
    ours.dataset = json.loads(json.dumps(truth))
    quietly(ours.createIndex)
    assert sorted(ours.getCatIds()) == sorted(theirs.getCatIds()) == [3, 18]
    assert ours.getImgIds() == [10, 20]
    assert sorted(ours.getAnnIds()) == [1, 2, 3, 4]
    for ours_row, theirs_row in zip(ours.loadAnns([1, 2, 3]), theirs.loadAnns([1, 2, 3]), strict=True):
        np.testing.assert_array_equal(ours.annToMask(ours_row), theirs.annToMask(theirs_row))
        np.testing.assert_array_equal(
            decode([ours_row["segmentation"]], WIDTH, HEIGHT)[0], theirs.annToMask(theirs_row)
        )
    objects = [row for row in ours.loadAnns(ours.getAnnIds()) if not row["iscrowd"]]
    results = [{**{name: row[name] for name in ("image_id", "category_id", "bbox")}, "score": 0.9} for row in objects]
    evaluation = COCOeval(ours, quietly(ours.loadRes, results), "bbox")
    for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
        quietly(step)
    assert evaluation.stats[0] == pytest.approx(1.0)
