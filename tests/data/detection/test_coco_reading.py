"""``read_coco``: layouts, ids and names, missing images, and files that are not in COCO's form."""

import json
import pickle
import re
import tracemalloc

import numpy as np
import pytest
from coco_files import HEIGHT, WIDTH, annotation, image_row, make_coco, make_image, write_json

from cgnl.data.decoding import DataError
from cgnl.data.detection import (
    DetectionList,
    check_annotations,
    check_categories,
    check_detection,
    read_coco,
    reading,
    with_objects,
)
from cgnl.data.lists import NoSplitError, Sample, check_missing


def ids(images: DetectionList) -> list[list[int]]:
    return [[row["id"] for row in images.objects(index)] for index in range(len(images))]


def test_coco_2017(tmp_path):
    rows = [annotation(7, 2), annotation(8, 1, category_id=3), annotation(9, 2, iscrowd=1)]
    make_coco(tmp_path, rows, images=3)
    make_coco(tmp_path, [annotation(1)], "val2017")
    train = read_coco(tmp_path, "train")
    assert train.kind == "coco"
    assert train.root == tmp_path / "train2017"
    assert train.source == tmp_path / "annotations/instances_train2017.json"
    assert train.samples == tuple(Sample(tmp_path / f"train2017/000{number}.png", 0) for number in (1, 2, 3))
    assert train.image_ids == (1, 2, 3)
    assert train.sizes == ((WIDTH, HEIGHT),) * 3
    assert (train.category_ids, train.classes) == ((3, 18), ("car", "dog"))
    assert ids(train) == [[8], [7, 9], []]
    assert (train.num_objects, train.num_crowds) == ((1, 1, 0), (0, 1, 0))
    assert train.objects(1)[0] == rows[0]
    assert (train.bad_annotations, train.missing) == ((), ())
    for split in ("test", "val"):
        assert read_coco(tmp_path, split).root == tmp_path / "val2017"


@pytest.mark.parametrize(
    ("file", "folder", "split"),
    [
        ("annotations/instances_train.json", "train", "train"),
        ("annotations/instances_train2014.json", "train", "train"),
        ("annotations/instances_train2017.json", "images/train2017", "train"),
        ("annotations/instances_val2017.json", "images/val", "test"),
        ("annotations/instances_test.json", "test", "test"),
        ("train/_annotations.coco.json", "train", "train"),
        ("valid/_annotations.coco.json", "valid", "test"),
        ("val/_annotations.coco.json", "val", "test"),
        ("test/_annotations.coco.json", "test", "test"),
    ],
)
def test_layouts(tmp_path, file, folder, split):
    path = make_image(tmp_path / folder / "below" / "a.png")
    write_json(tmp_path / file, [image_row(5, "below/a.png")], [annotation(1, 5)])
    images = read_coco(tmp_path, split)
    assert images.samples == (Sample(path, 0),)
    assert images.source == tmp_path / file
    assert ids(images) == [[1]]
    other = "test" if split == "train" else "train"
    with pytest.raises(NoSplitError, match=f"for the {other} split"):
        read_coco(tmp_path, other)


def test_files_that_are_given(tmp_path):
    path = make_image(tmp_path / "pictures" / "a.png")
    file = write_json(tmp_path / "mine" / "2017.json", [image_row(5, "a.png")], [annotation(1, 5)])
    for root in (tmp_path, None):
        assert read_coco(root, annotations=file, images=path.parent).samples == (Sample(path, 0),)
    assert read_coco(None, annotations=file).missing == (file.parent / "a.png",)
    beside = make_image(file.parent / "a.png")
    for root in (tmp_path, None):
        assert read_coco(root, annotations=str(file)).samples == (Sample(beside, 0),)
    with pytest.raises(DataError, match="nowhere, where the images of"):
        read_coco(None, annotations=file, images=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"none\.json does not exist"):
        read_coco(tmp_path, annotations=tmp_path / "none.json", images=tmp_path)
    with pytest.raises(ValueError, match=r"annotations \(None\) must be given"):
        read_coco(None)


def test_the_images_of_a_json_elsewhere_may_be_in_the_root(tmp_path):
    path = make_image(tmp_path / "pictures" / "below" / "b.png")
    rows = [image_row(5, "gone.png"), image_row(6, "below/b.png")]
    file = write_json(tmp_path / "mine" / "2017.json", rows, [annotation(1, 6)])
    assert read_coco(path.parents[1], annotations=file).samples == (Sample(path, 0),)
    # those beside the json come first, and without any they are missing there
    assert read_coco(tmp_path, annotations=file).missing == (file.parent / "gone.png", file.parent / "below/b.png")
    beside = make_image(file.parent / "gone.png")
    assert read_coco(path.parents[1], annotations=file).samples == (Sample(beside, 0),)
    # nothing outside is taken
    write_json(file, [image_row(5, "../pictures/below/b.png")], [])
    with pytest.raises(DataError, match=r"holds '\.\.'"):
        read_coco(path.parents[1], annotations=file)


def test_what_is_no_coco_folder(tmp_path):
    with pytest.raises(DataError, match="none is not a folder"):
        read_coco(tmp_path / "none")
    with pytest.raises(NoSplitError, match=r"has no annotations/instances_train\*\.json or train/_annotations"):
        read_coco(tmp_path)
    write_json(tmp_path / "annotations/instances_train2017.json", [image_row(1, "a.png")], [])
    with pytest.raises(DataError, match="has no folder train2017 or images/train2017"):
        read_coco(tmp_path)


def test_of_two_years_the_one_with_images_is_meant(tmp_path):
    make_coco(tmp_path, [], "train2014")
    file = write_json(tmp_path / "annotations/instances_train2017.json", [image_row(1, "a.png")], [])
    assert read_coco(tmp_path).root == tmp_path / "train2014"
    (tmp_path / "train2017").mkdir()
    with pytest.raises(DataError, match=r"several .*: instances_train2014\.json, instances_train2017\.json"):
        read_coco(tmp_path)
    assert read_coco(tmp_path, annotations=file).root == tmp_path / "train2017"


def test_missing_images_and_their_annotations(tmp_path):
    make_coco(tmp_path, [annotation(1, 1), annotation(2, 2), annotation(3, 2)], images=2)
    (tmp_path / "train2017/0002.png").unlink()
    images = read_coco(tmp_path)
    assert images.image_ids == (1,)
    assert images.missing == (tmp_path / "train2017/0002.png",)
    assert [str(bad) for bad in images.bad_annotations] == [
        f"annotation {id} (0002.png) belongs to an image that is missing" for id in (2, 3)
    ]
    with pytest.raises(DataError, match=r"1 of 2 files .* is missing"):
        check_missing(images, 0.4)


def test_images_of_too_many_pixels_are_not_used(tmp_path):
    make_image(tmp_path / "train" / "a.png")
    rows = [image_row(1, "a.png", 20000, 20000), image_row(2, "a b.png")]
    write_json(tmp_path / "train/_annotations.coco.json", rows, [annotation(1)])
    images = read_coco(tmp_path)
    reasons = [images.why_missing(path) for path in images.missing]
    assert reasons[0].startswith("is 20000 x 20000 pixels, more than 100 megapixels, says")
    assert reasons[1] == "does not exist"


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("../outside.png", "holds '..'"),
        ("/etc/passwd", "is absolute"),
        ("C:\\a.png", "is absolute"),
        ("http://host/a.png", "is a URL"),
        ("a\0.png", "NUL"),
        ("", "is empty"),
        ("link.png", "symbolic link that leads out"),
        ("folder/a.png", "symbolic link that leads out"),
    ],
)
def test_names_that_lead_out_of_the_folder(tmp_path, name, rule):
    outside = make_image(tmp_path / "outside" / "a.png")
    root = tmp_path / "root"
    make_coco(root, [])
    (root / "train2017/link.png").symlink_to(outside)
    (root / "train2017/folder").symlink_to(outside.parent)
    file = root / "annotations/instances_train2017.json"
    write_json(file, [image_row(1, "0001.png"), image_row(17, name)], [])
    with pytest.raises(DataError) as caught:
        read_coco(root)
    assert str(caught.value).startswith(f"{file}, image 17: the path {name!r}")
    assert rule in str(caught.value)


def test_a_folder_that_leads_out_must_be_given(tmp_path):
    elsewhere = make_coco(tmp_path / "elsewhere", [annotation(1)])
    root = tmp_path / "root"
    root.mkdir()
    (root / "annotations").symlink_to(elsewhere / "annotations")
    (root / "train2017").symlink_to(elsewhere / "train2017")
    with pytest.raises(DataError, match="symbolic link that leads out"):
        read_coco(root)
    file = root / "annotations/instances_train2017.json"
    with pytest.raises(DataError, match="the path 'train2017' is or passes a symbolic link that leads out"):
        read_coco(root, annotations=file)
    assert len(read_coco(root, annotations=file, images=root / "train2017")) == 1


BAD_JSON = {
    "": "is not JSON: Expecting value",
    '{"images": [': "is not JSON: Expecting value",
    "<html>": "is not JSON",
    "\udcff": "is not JSON: 'utf-8' codec can't decode",
    "[" * 100000: "is not JSON: maximum recursion depth",
    "[]": "holds a JSON list, expected an object with images, annotations, categories",
    "3": "holds a JSON int",
    '{"annotations": [], "categories": []}': 'has no "images"',
    '{"images": [], "categories": []}': 'has no "annotations"',
    '{"images": [], "annotations": []}': 'has no "categories"',
    '{"images": {}, "annotations": [], "categories": []}': '"images" is {}, expected a list',
}


@pytest.mark.parametrize("text", BAD_JSON, ids=lambda text: text[:20])
def test_what_is_not_cocos_json(tmp_path, text):
    file = tmp_path / "a.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError) as caught:
        read_coco(None, annotations=file)
    assert str(file) in str(caught.value)
    assert BAD_JSON[text] in str(caught.value)


GOOD_IMAGE, GOOD_CATEGORY = image_row(1, "a.png"), {"id": 1, "name": "a"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"images": []}, "names no images."),
        ({"categories": []}, "has no categories."),
        ({"images": [GOOD_IMAGE, 5]}, "image number 2: read 5, expected an id"),
        ({"images": [{**GOOD_IMAGE, "id": "1"}]}, "image number 1: read {'id': '1'"),
        ({"images": [{**GOOD_IMAGE, "id": 2**63}]}, "image number 1: read {'id': 9223372036854775808"),
        ({"images": [{**GOOD_IMAGE, "file_name": 3}]}, "image 1: read the file_name 3, expected text"),
        ({"images": [{**GOOD_IMAGE, "file_name": "\ud800"}]}, r"image 1: read the file_name '\ud800'"),
        ({"images": [{**GOOD_IMAGE, "width": None}]}, "image 1: read the width None, expected a whole number from 1"),
        ({"images": [{**GOOD_IMAGE, "height": 0}]}, "image 1: read the height 0"),
        ({"images": [{**GOOD_IMAGE, "height": 9.5}]}, "image 1: read the height 9.5"),
        ({"images": [{**GOOD_IMAGE, "height": True}]}, "image 1: read the height True"),
        ({"images": [GOOD_IMAGE, GOOD_IMAGE]}, "two images have the id 1."),
        ({"categories": [GOOD_CATEGORY, GOOD_CATEGORY]}, "two categories have the id 1."),
        ({"categories": [{"id": 1}]}, "category number 1: read {'id': 1}"),
        ({"categories": [GOOD_CATEGORY, "a"]}, "category number 2: read 'a'"),
        ({"categories": [{"id": 1.5, "name": "a"}]}, "category number 1: read {'id': 1.5"),
    ],
)
def test_images_and_categories_must_be_whole(tmp_path, rows, message):
    file = tmp_path / "a.json"
    write_json(file, **{"images": [GOOD_IMAGE], "annotations": [], "categories": [GOOD_CATEGORY], **rows})
    with pytest.raises(DataError) as caught:
        read_coco(None, annotations=file)
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


def test_names_of_categories(tmp_path):
    names = {4: "dog", 90: "crane", 2: "crane", 3: "Möwe"}
    make_coco(tmp_path, [])
    file = tmp_path / "annotations/instances_train2017.json"
    categories = [{"id": id, "name": name} for id, name in names.items()]
    write_json(file, [image_row(1, "0001.png")], [annotation(1, category_id=90)], categories)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    images = read_coco(tmp_path)
    assert images.category_ids == (2, 3, 4, 90)
    assert images.classes == ("crane (2)", "Möwe", "dog", "crane (90)")
    assert ids(images) == [[1]]


def test_categories_of_one_name_are_reported(tmp_path):
    names = {4: "dog", 90: "crane", 2: "crane", 5: " Dog ", 6: "cow"}
    make_coco(tmp_path, [])
    file = tmp_path / "annotations/instances_train2017.json"
    categories = [{"id": id, "name": name} for id, name in names.items()]
    write_json(file, [image_row(1, "0001.png")], [annotation(1, category_id=90)], categories)
    assert read_coco(tmp_path).notes == (
        "has 2 categories of one name, 'crane' (id 2), 'crane' (id 90): they are learned as different classes",
        "has 2 categories of one name, 'dog' (id 4), ' Dog ' (id 5): they are learned as different classes",
    )
    report = check_detection(tmp_path, workers=1, progress=False)
    assert [path for path, _ in report.bad] == [file, file]
    assert f"{file} has 2 categories of one name, 'crane' (id 2)" in str(report)


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("train2017/0001.png", "0001.png"),
        ("images/train2017/0001.png", "0001.png"),
        ("train2017\\0001.png", "0001.png"),
        ("below\\a.png", "below/a.png"),
        ("data/train2017/below/a.png", "below/a.png"),
        ("/home/me/data/train2017/below/a.png", "below/a.png"),
        ("C:\\data\\train2017\\0001.png", "0001.png"),
        ("http://images.example/train2017/0001.png", "0001.png"),
    ],
)
def test_a_name_with_folders_in_front_gets_a_hint(tmp_path, name, end):
    folder = make_coco(tmp_path, [annotation(1)]) / "train2017"
    make_image(folder / "below/a.png")
    file = tmp_path / "annotations/instances_train2017.json"
    write_json(file, [image_row(1, name), image_row(2, "train2017/none.png")], [annotation(1)])
    with pytest.raises(DataError) as caught:
        check_annotations(read_coco(tmp_path), 0.05)
    assert f"{folder / end}" in str(caught.value)
    assert str(caught.value).count(f"the file_name should be {end!r}") == 1


@pytest.mark.parametrize("name", ["train2017/none.png", "none/0001.jpg", "0001.png/none"])
def test_a_name_of_no_file_gets_no_hint(tmp_path, name):
    make_coco(tmp_path, [])
    write_json(tmp_path / "annotations/instances_train2017.json", [image_row(1, name)], [])
    images = read_coco(tmp_path)
    assert [images.why_missing(path) for path in images.missing] == ["does not exist"]


def test_reading_takes_little_memory(tmp_path):
    """Less than half of it took eight times the file."""
    numbers = np.random.default_rng(0).uniform(1, 19, (3000, 60)).round(2).tolist()
    make_coco(tmp_path, [annotation(id, segmentation=[row]) for id, row in enumerate(numbers, 1)])
    file = tmp_path / "annotations/instances_train2017.json"
    read_coco(tmp_path)  # whatever is made once
    tracemalloc.start()
    try:
        images = read_coco(tmp_path)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert images.num_objects == (3000,)
    assert peak < 3.5 * file.stat().st_size
    assert kept < 2 * file.stat().st_size
    assert images.objects(0)[7]["segmentation"] == [numbers[7]]


def test_reading_a_large_file_says_how_long_it_takes(tmp_path, monkeypatch, capsys):
    make_coco(tmp_path, [annotation(1)])
    read_coco(tmp_path)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(reading, "_LARGE", 100)
    read_coco(tmp_path)
    assert re.search(r"^reading .*train2017\.json \(0 MB\): about 0 seconds and 0\.0 GB", capsys.readouterr().err)


def test_splits_must_have_the_same_categories(tmp_path):
    make_coco(tmp_path, [])
    make_coco(tmp_path, [], "val2017")
    train, test = read_coco(tmp_path), read_coco(tmp_path, "test")
    check_categories(train, test)
    file = tmp_path / "annotations/instances_val2017.json"
    write_json(file, [image_row(1, "0001.png")], [], [{"id": 3, "name": "car"}, {"id": 18, "name": "cat"}])
    with pytest.raises(DataError, match=r"val2017\.json has the category 18 'cat', but .*train2017\.json does not"):
        check_categories(train, read_coco(tmp_path, "test"))


def test_images_without_objects_teach_nothing(tmp_path):
    rows = [annotation(1, 2), annotation(2, 3, iscrowd=1), annotation(3, 4, (0, 0, 0, 5)), annotation(4, 5)]
    make_coco(tmp_path, [*rows, annotation(5, 5)], images=5)
    images = read_coco(tmp_path)
    kept = with_objects(images)
    assert kept.image_ids == (2, 5)
    assert [sample.path.name for sample in kept.samples] == ["0002.png", "0005.png"]
    assert ids(kept) == [[1], [4, 5]]
    assert (len(kept.sizes), kept.num_objects, kept.num_crowds) == (2, (1, 2), (0, 0))
    assert (kept.classes, kept.bad_annotations) == (images.classes, images.bad_annotations)
    assert len(with_objects(kept)) == 2
    again = pickle.loads(pickle.dumps(kept))
    assert (again, ids(again)) == (kept, ids(kept))


def test_nan_in_a_json_is_no_number(tmp_path):
    make_coco(tmp_path, [annotation(1, area=float("nan")), annotation(2, box=(float("inf"), 1, 2, 3))])
    assert "NaN" in (tmp_path / "annotations/instances_train2017.json").read_text()
    assert [bad.id for bad in read_coco(tmp_path).bad_annotations] == [1, 2]
    json.dumps(read_coco(tmp_path).truth(), allow_nan=False)
