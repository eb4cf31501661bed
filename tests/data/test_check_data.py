"""``check_data`` finds out by itself whether a data set holds images, images with objects or videos."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cgnl.data.checking import check_data
from cgnl.data.decoding import DataError
from cgnl.data.detection import DetectionReport
from cgnl.data.images import ImageReport
from cgnl.data.videos.checking import VideoReport


def make_images(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(root / name)
    return root


def make_empty(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def check(root: Path, **options) -> ImageReport | DetectionReport | VideoReport:
    return check_data(root, workers=1, progress=False, **options)


def test_folders_of_classes(tmp_path):
    images = make_images(tmp_path / "images", "train/a/1.png", "val/a/2.png")
    make_empty(images, "train/a/.hidden.mp4", "train/a/0.txt")
    report = check(images)
    assert isinstance(report, ImageReport)
    assert len(report.sizes) == 2
    videos = make_empty(tmp_path / "videos", "train/a/1.mp4", "val/a/2.mp4")
    report = check(videos)
    assert isinstance(report, VideoReport)
    assert {path.name for path, _ in report.bad} == {"1.mp4", "2.mp4"}


def test_lists(tmp_path):
    make_images(tmp_path, "x/a b.png", "frames/1.png", "frames/2.png")
    file = tmp_path / "my.list"
    for line, kind in (("x/a b.png 0", ImageReport), ("frames 2 0", VideoReport), ("frames 0", VideoReport)):
        file.write_text(f"{line}\n")
        report = check(tmp_path, list_file=file)
        assert isinstance(report, kind)
        assert report.bad == ()


def test_annotations_are_those_of_videos(tmp_path):
    make_images(tmp_path, "train/a/1.png")
    file = tmp_path / "lists.csv"
    file.write_text("label,youtube_id,time_start,time_end,split\na,abc,0,10,train\na,def,0,10,val\n")
    report = check(tmp_path, annotations=file)
    assert isinstance(report, VideoReport)
    assert [split.missing for split in report.splits] == [1, 1]


def test_coco(tmp_path):
    rows = {
        "images": [{"id": 1, "file_name": "1.png", "width": 6, "height": 4}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "bbox": [1, 1, 2, 2]}],
        "categories": [{"id": 5, "name": "a"}],
    }
    coco = make_images(tmp_path / "coco", "train2017/1.png")
    export = make_images(tmp_path / "export", "valid/1.png")
    mine = make_images(tmp_path / "mine", "1.png")
    files = [coco / "annotations/instances_train2017.json", export / "valid/_annotations.coco.json", mine / "my.json"]
    for root, file in zip((coco, export, mine), files, strict=True):
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(rows))
        report = check(root, **({"annotations": file} if root == mine else {}))
        assert isinstance(report, DetectionReport)
        assert report.bad == ((Path(f"{file}, annotation 1"), "(1.png) has no mask"),)


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(DataError, match="none is not a folder"):
        check(tmp_path / "none")
    with pytest.raises(DataError, match="is not a data set in a known layout: it has no annotations"):
        check(tmp_path)
    make_empty(tmp_path, "CUB_200_2011/images.txt")
    with pytest.raises(DataError, match=r"Did you mean .*CUB_200_2011\?"):
        check(tmp_path)


def test_images_are_checked_without_the_packages_of_others(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cgnl.data.videos.checking", None)
    monkeypatch.setitem(sys.modules, "cgnl.data.detection.checking", None)
    assert isinstance(check(make_images(tmp_path, "train/a/1.png", "val/a/1.png")), ImageReport)
