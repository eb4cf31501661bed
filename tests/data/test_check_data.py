"""``check_data`` finds out by itself whether a data set holds images, images with objects or videos."""

import json
import shutil
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

NO_HELD_OUT = "has no held-out part: add val/ or test/, or train with --data.val-fraction 0.2"


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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no images for the train split"),
        (" \n\t\n", "names no images for the train split"),
        ("a.png,0\n", "line 1: read 'a.png,0', expected `path label`"),
        ("a.png\n", "line 1: read 'a.png', expected `path label`"),
    ],
)
def test_a_faulty_list_of_images_is_not_taken_for_one_of_videos(tmp_path, text, said):
    make_images(tmp_path, "a.png")
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(DataError, match=said):
        check(tmp_path, list_file=tmp_path / "list.txt")


def test_pictures_without_a_suffix_are_known_by_their_content(tmp_path):
    flat, classes = tmp_path / "flat", tmp_path / "classes"
    for root, names in ((flat, ("1.png", "2.png")), (classes, ("train/a/1.png", "train/a/2.png"))):
        make_images(root, *names).joinpath(names[1]).rename((root / names[1]).with_suffix(""))
    make_empty(flat, "LICENSE")
    for root, notes in ((flat, ("files that are no images or videos, not looked at: 1",)), (classes, ())):
        report = check(root)
        assert len(report.sizes) == 2
        assert report.notes == notes


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


def draw(file: Path, value: int) -> Path:
    """An image whose content no other value has."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(file)
    return file


def found(root: Path, report) -> dict[str, str]:
    """The findings, by path below the root."""
    return {str(path.relative_to(root)): reason for path, reason in report.findings}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Two classes in three parts, each image another."""
    names = [f"{part}/{name}/{number}.png" for part in ("train", "val", "test") for name in "ab" for number in (0, 1)]
    for value, name in enumerate(names):
        draw(tmp_path / name, 10 + value)
    return tmp_path


def test_a_good_set_of_three_parts(good):
    report = check(good)
    assert report.is_good
    assert [split.name for split in report.splits] == ["train", "val", "test"]
    assert "nothing is bad in 4 images of train and 4 images of val and 4 images of test" in str(report)


def test_files_of_several_parts_or_classes_are_found_by_content(good):
    shutil.copy(good / "train/a/0.png", good / "test/a/same.png")
    shutil.copy(good / "train/b/0.png", good / "train/a/other.png")
    (good / "val/b/link.png").symlink_to(good / "train/b/1.png")
    report = check(good)
    assert report.bad == ()
    assert found(good, report) == {
        "test/a/same.png": f"is in the test part and has the same content as {good / 'train/a/0.png'}, which is in the "
        "training part",
        "train/b/0.png": f"is of the class b and has the same content as {good / 'train/a/other.png'}, which is of the "
        "class a",
        "val/b/link.png": "is in the validation part and also in the training part",
    }
    assert "3 findings" in str(report)


def test_contradictory_lines_and_labels_far_away_in_a_list(good):
    file = good / "my.txt"
    lines = [f"train/a/0.png {label}" for label in (0, 0, 1)] + ["./train/a/1.png 0", "train/a/1.png 1"]
    lines += [f"train/b/0.png {label}" for label in ()] + [f"val/{'ab'[k % 2]}/{k // 2}.png {k + 2}" for k in range(4)]
    lines += ["test/a/0.png 10"]
    file.write_text("\n".join(lines))
    report = check(good, list_file=file)
    assert found(good, report) == {
        "my.txt": "has labels up to 10, but no file of 4 labels below that: 6, 7, 8, 9",
        "train/a/0.png": "is of the class 1 and also of the class 0",
        "train/a/1.png": "is of the class 1 and also of the class 0",
    }
    # a number that the user gives says that the other classes are meant
    assert "my.txt" not in found(good, check(good, list_file=file, num_classes=11))


def test_lists_of_several_parts(good):
    lists = {}
    for part in ("train", "val", "test"):
        lists[part] = good / f"{part}.txt"
        lists[part].write_text(f"{part}/a/0.png 0\n{part}/b/0.png 1\n")
    assert check(good, lists=lists).is_good
    lists["test"].write_text("test/a/0.png 0\n./train/b/0.png 1\n")
    assert found(good, check(good, lists=lists)) == {
        "train/b/0.png": "is in the test part and also in the training part"
    }
    lists["test"].write_text("test/a/0.png 2\n")
    with pytest.raises(DataError, match="line 1: read label 2, expected 0 to 1"):
        check(good, lists=lists)


def test_folders_that_training_leaves_out(good):
    (good / "train/c").mkdir()
    draw(good / "train/__MACOSX/a/._0.png", 1)
    draw(good / "__MACOSX/x.png", 2)
    draw(good / "train/a/.ipynb_checkpoints/0-checkpoint.png", 3)
    draw(good / "train/lost.png", 4)
    (good / "test").rename(good / "old")
    draw(good / "test/1.png", 5)
    report = check(good)
    assert found(good, report) == {
        "__MACOSX": "is no class folder (ignored)",
        "test": "has no class folders, so that its files have no labels (ignored)",
        "train": "holds 1 file beside the class folders (ignored)",
        "train/__MACOSX": "is no class folder (ignored)",
        "train/a/.ipynb_checkpoints": "is no class folder (ignored)",
        "train/c": "is a class folder without files (ignored)",
    }
    assert [[name for name, _ in split.per_class] for split in report.splits] == [["a", "b"], ["a", "b"]]


def test_parts_that_are_not_there(good):
    shutil.rmtree(good / "test")
    (good / "val").rename(good / "Validation")
    assert check(good).is_good
    shutil.move(good / "Validation", good.parent / f"{good.name}-val")
    assert found(good, check(good)) == {".": NO_HELD_OUT}
    for folder in (good / "train/a", good / "train/b"):
        folder.rename(good / folder.name)
    (good / "train").rmdir()
    assert found(good, check(good)) == {".": NO_HELD_OUT}
    (good / "valid").mkdir()
    (good / "a").rename(good / "valid/a")
    report = check(good)
    assert report.is_good
    assert "there is no training part" in str(report)


def test_videos_with_thumbnails(good, tmp_path):
    for part in ("train", "val"):
        shutil.copytree(good / part, tmp_path / "set" / part)
        make_empty(tmp_path / "set", f"{part}/a/0.mp4", f"{part}/b/0.mp4", f"{part}/b/1.mp4", f"{part}/a/1.mp4")
    report = check(tmp_path / "set")
    assert isinstance(report, VideoReport)
    words = "holds 8 images and 8 videos: the images were not looked at, and training takes the videos alone"
    assert found(tmp_path / "set", report) == {".": words}
    assert len(report.bad) == 8


def test_files_by_themselves(good, tmp_path):
    flat = tmp_path / "flat"
    draw(flat / "1.png", 1)
    bad = make_empty(flat, "2.png") / "2.png"
    (flat / "notes.doc").touch()
    report = check(flat)
    assert "files that are no images or videos, not looked at: 1" in str(report)
    assert isinstance(report, ImageReport)
    assert (report.kind, report.findings, report.bad) == ("files without labels", (), ((bad, "is empty (0 bytes)"),))
    alone = check(flat / "1.png")
    assert alone.is_good
    assert str(alone).endswith("nothing is bad in 1 image")
    assert check(bad).bad == ((bad, "is empty (0 bytes)"),)
    videos = make_empty(tmp_path / "videos", "1.mp4", "2.webm", "deep/3.mkv")
    report = check(videos)
    assert isinstance(report, VideoReport)
    assert (report.kind, len(report.bad)) == ("files without labels", 3)
    assert len(check(videos / "1.mp4").bad) == 1
    file = flat / "list.txt"
    file.write_text("1.png 0\n")
    report = check(file)
    assert report.is_good
    assert [split.name for split in report.splits] == ["list.txt"]


def test_the_layout_and_the_number_of_classes_can_be_forced(good):
    assert check(good, format="folders", num_classes=2).is_good
    with pytest.raises(DataError, match="has 2 classes, but 3 are expected"):
        check(good, num_classes=3)
    with pytest.raises(
        DataError, match=rf"classes.txt does not exist, .* CUB-200-2011 .*{good} holds test/, train/, val/"
    ):
        check(good, format="cub")
    with pytest.raises(DataError, match=r"classInd.txt \(UCF101\): not found .* holds test/, train/, val/"):
        check(good, format="ucf101")
    with pytest.raises(DataError, match=r"has no annotations/instances_train.* holds test/, train/, val/"):
        check(good, format="coco")
    with pytest.raises(ValueError, match="format \\('imagenet'\\) must be one of auto, cub"):
        check(good, format="imagenet")


def test_links_out_of_the_root_are_followed_when_allowed(good, tmp_path):
    root = tmp_path / "linked"
    for part in ("train", "val"):
        (root / part / "a").mkdir(parents=True)
        (root / part / "b").symlink_to(good / part / "b")
        shutil.copy(good / part / "a/0.png", root / part / "a")
    (root / "train/a/loop").symlink_to(root / "train/a")
    with pytest.raises(DataError, match=r"leads out of .*linked; --data.follow-links"):
        check(root)
    report = check(root, follow_links=True)
    assert report.is_good
    assert [[number for _, number in split.per_class] for split in report.splits] == [[1, 2], [1, 2]]
