"""``cgnl data check`` on a folder in COCO's layout with one of each kind of bad file and annotation."""

import csv

import pytest
from coco_files import annotation, make_coco, make_image, write_json

from cgnl.data.decoding import DataError
from cgnl.data.detection import check_detection

NO_HELD_OUT = "has no held-out part: add val/ or test/, or train with --data.val-fraction 0.2"


def make_mixed(root):
    rows = [annotation(id, id) for id in range(1, 7)]
    rows += [annotation(10, 1, category_id=3), annotation(11, 1, iscrowd=1)]
    rows += [annotation(20, 1, (1, 1, 0, 5)), annotation(21, 1, category_id=5), annotation("x", 1), annotation(None, 1)]
    make_coco(root, rows, images=7)
    make_coco(root, [annotation(1)], "val2017")
    folder = root / "train2017"
    (folder / "0002.png").write_bytes((folder / "0001.png").read_bytes()[:300])
    (folder / "0003.png").write_text("<html>")
    (folder / "0004.png").unlink()
    make_image(folder / "0005.png", 31, 20)
    return root


def test_bad_files_and_annotations_are_listed(tmp_path):
    root = make_mixed(tmp_path / "birds")
    out = tmp_path / "bad.csv"
    report = check_detection(root, workers=2, out=out, progress=False)
    source = root / "annotations/instances_train2017.json"
    bad = dict(report.bad)
    assert [path.name for path in bad] == [
        "0002.png",
        "0003.png",
        "0004.png",
        "0005.png",
        f"{source.name}, annotation 4",
        f"{source.name}, annotation 20",
        f"{source.name}, annotation 21",
        f"{source.name}, annotation number 11 of the list",
        f"{source.name}, annotation number 12 of the list",
    ]
    assert bad[root / "train2017/0004.png"] == "does not exist"
    assert bad[root / "train2017/0005.png"] == "is 31 x 20 pixels, but its annotations say 30 x 20"
    assert bad[source.with_name(f"{source.name}, annotation 21")] == "(0001.png) has the unknown category 5"
    train, test = report.splits
    assert (train.name, train.per_class, train.unreadable, train.missing) == ("train", (("car", 1), ("dog", 2)), 3, 1)
    assert (test.name, test.per_class, test.unreadable, test.missing) == ("val", (("car", 0), ("dog", 1)), 0, 0)
    text = str(report)
    assert "train: 6 images, 1 of them without objects; 1 crowd; 5 bad annotations; width 30 to 30" in text
    assert "9 bad files and annotations" in text
    with out.open(newline="") as opened:
        rows = list(csv.reader(opened))
    assert rows == [["path", "reason"], *([str(path), reason] for path, reason in (*report.findings, *report.bad))]


def test_images_of_training_in_validation_are_found(tmp_path):
    first, second = tmp_path / "train2017/0001.png", tmp_path / "val2017/0001.png"
    make_coco(tmp_path, [annotation(1)])
    make_coco(tmp_path, [annotation(1)], "val2017")
    report = check_detection(tmp_path, workers=1, progress=False)
    reason = f"is in the validation part and has the same content as {first}, which is in the training part"
    assert report.findings == ((second, reason),)
    assert not report.is_good


def test_a_json_that_says_nothing_or_two_things(tmp_path):
    source = make_coco(tmp_path, [annotation(1, iscrowd=1)])
    report = check_detection(tmp_path, workers=1, progress=False)
    source = tmp_path / "annotations/instances_train2017.json"
    words = "has 1 annotation of crowds (iscrowd) alone, and no object to learn or to find"
    assert report.findings == ((tmp_path, NO_HELD_OUT), (source, words))
    text = source.read_text()
    source.write_text(text[: text.rindex("}")] + ', "annotations": []}')
    report = check_detection(tmp_path, annotations=source, workers=1, progress=False)
    assert report.findings == (
        (source, "has several lists 'annotations', of which only the last is read"),
        (source, "has no annotations, so there is no object to learn or to find"),
    )


def test_one_json_alone(tmp_path):
    make_mixed(tmp_path)
    file = tmp_path / "annotations/instances_val2017.json"
    report = check_detection(tmp_path, annotations=file, workers=1, progress=False)
    assert report.bad == ()
    assert [(split.name, split.per_class) for split in report.splits] == [(file.name, (("car", 0), ("dog", 1)))]
    assert "nothing is bad" in str(report)


def test_categories_are_compared(tmp_path):
    make_coco(tmp_path, [annotation(1)])
    with pytest.raises(DataError, match="has 2 categories, but 3 are expected"):
        check_detection(tmp_path, num_classes=3, progress=False)
    make_image(tmp_path / "val2017/a.png")
    rows = [{"id": 1, "file_name": "a.png", "width": 30, "height": 20}]
    write_json(tmp_path / "annotations/instances_val2017.json", rows, [], [{"id": 3, "name": "car"}])
    with pytest.raises(DataError, match="both must have the same categories"):
        check_detection(tmp_path, progress=False)
