"""Layouts of data sets on disk, right and wrong, as real files."""

import os
from pathlib import Path

import pytest

from cgnl.data.decoding import DataError
from cgnl.data.images import read_class_folders, read_cub, read_cub_boxes, read_cub_parts, read_image_list, read_images
from cgnl.data.lists import Sample

CUB = {
    "classes.txt": ["1 001.Black_footed_Albatross", "2 002.Laysan_Albatross", "3 003.Sooty_Albatross"],
    "images.txt": [
        "1 001.Black_footed_Albatross/a.jpg",
        "2 001.Black_footed_Albatross/b c.jpg",
        "3 002.Laysan_Albatross/d.jpg",
        "10 003.Sooty_Albatross/e.jpg",
    ],
    "image_class_labels.txt": ["1 1", "2 1", "3 2", "10 3"],
    "train_test_split.txt": ["1 1", "2 0", "3 1", "10 0"],
    "bounding_boxes.txt": ["1 60.0 27.0 325.0 304.0", "2 1 2 3 4", "3 1.5 2 3 4", "10 0 0 9 9"],
    "parts/parts.txt": ["1 back", "2 beak", "3 left eye"],
    "parts/part_locs.txt": ["1 1 0.0 0.0 0", "1 2 312.0 182.0 1", "1 3 5.5 6.0 1", "10 3 1 2 1"],
}


def make_cub(root: Path, newline: str = "\n", **changes: list[str]) -> Path:
    files = CUB | {name.replace("__", "/") + ".txt": lines for name, lines in changes.items()}
    for name, lines in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(newline.join([*lines, ""]).encode("utf-8", "surrogateescape"))
    for line in CUB["images.txt"]:
        path = root / "images" / line.split(" ", 1)[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_cub(tmp_path, newline):
    images = tmp_path / "images"
    make_cub(tmp_path, newline)
    train = read_images(tmp_path, "train")
    assert train.kind == "cub"
    assert train.samples == (
        Sample(images / "001.Black_footed_Albatross/a.jpg", 0),
        Sample(images / "002.Laysan_Albatross/d.jpg", 1),
    )
    assert train.classes == ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
    for split in ("test", "val"):
        assert read_images(tmp_path, split).samples == (
            Sample(images / "001.Black_footed_Albatross/b c.jpg", 0),
            Sample(images / "003.Sooty_Albatross/e.jpg", 2),
        )


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_cub_boxes_and_parts(tmp_path, newline):
    make_cub(tmp_path, newline)
    first = tmp_path / "images/001.Black_footed_Albatross/a.jpg"
    last = tmp_path / "images/003.Sooty_Albatross/e.jpg"
    boxes = read_cub_boxes(tmp_path)
    assert len(boxes) == 4
    assert boxes[first] == (60.0, 27.0, 325.0, 304.0)
    names, locations = read_cub_parts(tmp_path)
    assert names == ("back", "beak", "left eye")
    assert locations[first] == {"beak": (312.0, 182.0), "left eye": (5.5, 6.0)}
    assert locations[last] == {"left eye": (1.0, 2.0)}
    assert locations[tmp_path / "images/002.Laysan_Albatross/d.jpg"] == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": ["1 a.jpg", "2"]}, "images.txt, line 2: read '2', expected `<image id> <path>`"),
        ({"images": ["1 a.jpg", "x b.jpg"]}, "images.txt, line 2: read 'x b.jpg', expected `<image id> <path>`"),
        ({"images": ["1 a.jpg", "", "1 b.jpg"]}, "images.txt, line 3: id 1 was given in line 1 already"),
        ({"images": ["5 a.jpg"]}, "images.txt, line 1: image 5 has no line in image_class_labels.txt"),
        ({"images": ["1 ../a.jpg"]}, "images.txt, line 1: the path '../a.jpg' holds '..'"),
        ({"images": ["1 /etc/passwd"]}, "images.txt, line 1: the path '/etc/passwd' is absolute"),
        ({"images": ["1 http://a.b/c.jpg"]}, "images.txt, line 1: the path 'http://a.b/c.jpg' is a URL"),
        ({"image_class_labels": ["1 0"]}, "image_class_labels.txt, line 1: read class id 0, expected 1 to 3"),
        ({"image_class_labels": ["1 1", "2 4"]}, "labels.txt, line 2: read class id 4, expected 1 to 3"),
        ({"image_class_labels": ["1 one"]}, "labels.txt, line 1: read '1 one', expected `<image id> <class id>`"),
        ({"train_test_split": ["1 2"]}, "split.txt, line 1: read '1 2', expected `<image id> <1 for training"),
        ({"train_test_split": ["1 1"]}, "images.txt, line 2: image 2 has no line in train_test_split.txt"),
        ({"classes": ["1 a", "3 b", "4 c"]}, "classes.txt, line 3: read class id 4, expected 1 to 3 once each"),
    ],
)
def test_wrong_cub_files(tmp_path, changes, message):
    make_cub(tmp_path, **changes)
    with pytest.raises(DataError) as caught:
        read_images(tmp_path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


def test_wrong_cub_boxes_and_parts(tmp_path):
    make_cub(tmp_path, bounding_boxes=["1 2 3 4"], parts__part_locs=["1 4 0 0 1"])
    with pytest.raises(DataError, match=r"bounding_boxes.txt, line 1: read '1 2 3 4', expected `<image id> <x>"):
        read_cub_boxes(tmp_path)
    with pytest.raises(DataError, match=r"part_locs.txt, line 1: read part id 4, which parts.txt does not have"):
        read_cub_parts(tmp_path)
    make_cub(tmp_path, bounding_boxes=["1 2 nan 4 5"], parts__part_locs=["1 1 0 0 1", "7 1 0 0 1"])
    with pytest.raises(DataError, match=r"line 1: read '1 2 nan 4 5'"):
        read_cub_boxes(tmp_path)
    with pytest.raises(DataError, match=r"part_locs.txt, line 2: read image id 7, which images.txt does not have"):
        read_cub_parts(tmp_path)


def test_links_out_of_a_cub_folder(tmp_path):
    root = make_cub(tmp_path / "root")
    (tmp_path / "secret.jpg").touch()
    path = root / "images/002.Laysan_Albatross/d.jpg"
    path.unlink()
    path.symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(DataError, match=r"images.txt, line 3: the path .*d.jpg' is or passes a symbolic link"):
        read_cub(root)
    (root / "images").rename(tmp_path / "elsewhere")
    (root / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"the path 'images' is or passes a symbolic link"):
        read_cub(root)


def test_a_link_inside_the_root_is_followed(tmp_path):
    make_cub(tmp_path)
    path = tmp_path / "images/002.Laysan_Albatross/d.jpg"
    path.unlink()
    path.symlink_to("../001.Black_footed_Albatross/a.jpg")
    assert path in {sample.path for sample in read_cub(tmp_path).samples}


def make_list(root: Path, text: str | bytes, touch: tuple[str, ...] = ("a.jpg", "b.jpg", "c.jpg")) -> Path:
    for name in touch:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    file = root / "train.list"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize(
    "text",
    ["a.jpg 0\nb.jpg 1\nc.jpg 1\n", "a.jpg 0\r\nb.jpg 1\r\nc.jpg 1", "\ufeffa.jpg\t0\n\n  b.jpg   1  \nc.jpg \t 1\n\n"],
)
def test_list_files(tmp_path, text):
    images = read_images(tmp_path, list_file=make_list(tmp_path, text))
    assert images.kind == "list"
    assert images.samples == tuple(
        Sample(tmp_path / name, label) for name, label in (("a.jpg", 0), ("b.jpg", 1), ("c.jpg", 1))
    )
    assert images.classes == ("0", "1")


def test_a_path_in_a_list_may_hold_spaces(tmp_path):
    names = ("my birds/a 1.jpg", "my birds/b  2.jpg")
    file = make_list(tmp_path, f"{names[0]} 0\n{names[1]} 1\n", names)
    assert [sample.path for sample in read_image_list(file, tmp_path).samples] == [tmp_path / name for name in names]


def test_class_names_of_a_list_come_from_its_folders(tmp_path):
    file = make_list(tmp_path, "x/a.jpg 0\ny/b.jpg 2\nx/c.jpg 0\n", ("x/a.jpg", "y/b.jpg", "x/c.jpg"))
    assert read_image_list(file, tmp_path).classes == ("x", "1", "y")
    assert read_image_list(file, tmp_path, classes=["p", "q", "r"]).classes == ("p", "q", "r")
    file.write_text("x/a.jpg 0\ny/b.jpg 0\nx/c.jpg 1\n")
    assert read_image_list(file, tmp_path).classes == ("0", "1")


@pytest.mark.parametrize("name", ["gr\u00fcn/\u00e9.jpg", "\u9ce5.jpg"])
def test_utf8_names(tmp_path, name):
    images = read_image_list(make_list(tmp_path, f"{name} 0\n", (name,)), tmp_path)
    assert [sample.path for sample in images.samples] == [tmp_path / name]


def test_latin1_names(tmp_path):
    latin1 = "gr\u00fcn.jpg".encode("latin-1")
    (tmp_path / os.fsdecode(latin1)).touch()
    images = read_image_list(make_list(tmp_path, latin1 + b" 0\n"), tmp_path)
    assert [os.fsencode(sample.path.name) for sample in images.samples] == [latin1]
    # The same list where the names on disk have been turned into UTF-8.
    (tmp_path / os.fsdecode(latin1)).rename(tmp_path / "gr\u00fcn.jpg")
    images = read_image_list(tmp_path / "train.list", tmp_path)
    assert [sample.path for sample in images.samples] == [tmp_path / "gr\u00fcn.jpg"]


@pytest.mark.parametrize(
    ("text", "classes", "message"),
    [
        ("a.jpg 0\nb.jpg\n", None, "line 2: read 'b.jpg', expected `path label`"),
        ("a.jpg 0\nb.jpg x\n", None, "line 2: read the label 'x', expected a whole number from 0"),
        ("a.jpg 0\n\nb.jpg 1.0\n", None, "line 3: read the label '1.0', expected a whole number from 0"),
        ("my bird.jpg\n", None, "line 1: read the label 'bird.jpg', expected a whole number"),
        ("a.jpg \u0661\n", None, "line 1: read the label '\u0661', expected a whole number"),
        ("a.jpg 0\nb.jpg -1\n", None, "line 2: read label -1, expected 0 or above"),
        ("a.jpg 0\nb.jpg 3\n", 3, "line 2: read label 3, expected 0 to 2."),
        ("a.jpg 1\nb.jpg 3\nc.jpg 2\n", 3, "line 2: read label 3, expected 0 to 2. No line has label 0: the labels"),
        ("a.jpg 2\nb.jpg 1\nc.jpg 2\n", None, "line 2: read label 1, the lowest of all, but expected labels from 0"),
        ("../a.jpg 0\n", None, "line 1: the path '../a.jpg' holds '..'"),
        ("a.jpg 0\nsub/../b.jpg 0\n", None, "line 2: the path 'sub/../b.jpg' holds '..'"),
        ("a.jpg 0\n.. 0\n", None, "line 2: the path '..' holds '..'"),
        ("/etc/passwd 0\n", None, "line 1: the path '/etc/passwd' is absolute"),
        ("a.jpg 0\nhttps://example.com/b.jpg 0\n", None, "line 2: the path 'https://example.com/b.jpg' is a URL"),
        ("a.jpg 0\nb\0.jpg 1\n", None, "line 2: the path 'b\\x00.jpg' holds a NUL character"),
    ],
)
def test_wrong_lines_of_a_list(tmp_path, text, classes, message):
    file = make_list(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read_images(tmp_path, list_file=file, num_classes=classes)
    assert str(caught.value).startswith(f"{file}, {message}")


def test_a_list_that_leaves_class_0_out_is_fine_if_the_number_of_classes_says_so(tmp_path):
    file = make_list(tmp_path, "a.jpg 1\nb.jpg 2\n")
    images = read_image_list(file, tmp_path, num_classes=4)
    assert [sample.label for sample in images.samples] == [1, 2]
    assert images.classes == ("0", "1", "2", "3")


def test_links_out_of_the_root_of_a_list(tmp_path):
    root = tmp_path / "root"
    file = make_list(root, "x/a.jpg 0\nx/b.jpg 0\n", ("x/a.jpg",))
    (tmp_path / "b.jpg").touch()
    (root / "x/b.jpg").symlink_to(tmp_path / "b.jpg")
    with pytest.raises(DataError, match=r"line 2: the path 'x/b.jpg' is or passes a symbolic link"):
        read_image_list(file, root)
    # A folder outside whose first file links back in must not vouch for its other files.
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.jpg").symlink_to(root / "x/a.jpg")
    (tmp_path / "out/b.jpg").touch()
    (root / "y").symlink_to(tmp_path / "out")
    file.write_text("y/a.jpg 0\ny/b.jpg 0\n")
    with pytest.raises(DataError, match=r"the path 'y.* is or passes a symbolic link"):
        read_image_list(file, root)


def test_missing_files_are_counted_and_named(tmp_path):
    names = [f"{number}.jpg" for number in range(20)]
    file = make_list(tmp_path, "".join(f"{name} 0\n" for name in names), tuple(names))
    (tmp_path / "3.jpg").unlink()
    images = read_images(tmp_path, list_file=file)
    assert images.missing == (tmp_path / "3.jpg",)
    assert len(images) == 19
    (tmp_path / "4.jpg").unlink()
    with pytest.raises(DataError) as caught:
        read_images(tmp_path, list_file=file)
    assert f"2 of 20 files of {tmp_path} are missing, more than the limit of 5.0%" in str(caught.value)
    assert str(tmp_path / "4.jpg") in str(caught.value)
    assert len(read_images(tmp_path, list_file=file, missing_limit=0.1).missing) == 2


def test_missing_files_of_cub(tmp_path):
    make_cub(tmp_path)
    (tmp_path / "images/002.Laysan_Albatross/d.jpg").unlink()
    assert read_cub(tmp_path).missing == (tmp_path / "images/002.Laysan_Albatross/d.jpg",)
    assert read_cub(tmp_path, "test").missing == ()


def make_folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_folders_of_classes(tmp_path):
    make_folders(
        tmp_path,
        "train/b/1.jpg",
        "train/b/0.JPEG",
        "train/a/images/2.png",
        "train/a/note.txt",
        "train/a/.hidden.jpg",
        "train/.cache/x.jpg",
        "train/a/3",
        "train/loose.jpg",
        "val/b/9.bmp",
    )
    train = read_images(tmp_path)
    assert train.kind == "folders"
    assert train.classes == ("a", "b")
    named = [(str(sample.path.relative_to(tmp_path)), sample.label) for sample in train.samples]
    assert named == [("train/a/3", 0), ("train/a/images/2.png", 0), ("train/b/0.JPEG", 1), ("train/b/1.jpg", 1)]
    for split in ("val", "test"):
        assert read_images(tmp_path, split).samples == (Sample(tmp_path / "val/b/9.bmp", 1),)


def test_a_class_that_training_does_not_have(tmp_path):
    make_folders(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/c/1.jpg")
    with pytest.raises(DataError, match=r"test/c is a class that .*train does not have"):
        read_images(tmp_path, "test")


def test_folders_without_classes_or_splits(tmp_path):
    make_folders(tmp_path, "train/1.jpg", "other/CUB_200_2011/images.txt")
    with pytest.raises(DataError, match=r"train has no folders in it"):
        read_images(tmp_path)
    make_folders(tmp_path, "train/a/1.jpg")
    with pytest.raises(DataError, match=r"test is not a folder|val is not a folder"):
        read_images(tmp_path, "test")
    with pytest.raises(DataError, match=r"other holds neither images.txt .* Did you mean .*CUB_200_2011\?"):
        read_images(tmp_path / "other")
    with pytest.raises(DataError, match=r"none is not a folder"):
        read_images(tmp_path / "none")
    (tmp_path / "train/a/1.jpg").unlink()
    with pytest.raises(DataError, match=r"names no images for the train split"):
        read_images(tmp_path)


@pytest.mark.parametrize("link", ["train/a/x.jpg", "train/b", "train"])
def test_links_out_of_folders_of_classes(tmp_path, link):
    root, outside = make_folders(tmp_path / "root", "other"), tmp_path / "outside"
    make_folders(outside, "a/1.jpg", "secret.jpg")
    if link != "train":
        make_folders(root, "train/a/1.jpg")
    target = {"train/a/x.jpg": "secret.jpg", "train/b": "a", "train": "."}[link]
    (root / link).symlink_to(outside / target)
    with pytest.raises(DataError, match=f"the path '{link}' is or passes a symbolic link that leads out of {root}"):
        read_class_folders(root)


def test_a_number_of_classes_that_does_not_fit(tmp_path):
    make_cub(tmp_path)
    assert len(read_images(tmp_path, num_classes=3).classes) == 3
    with pytest.raises(DataError, match=r"has 3 classes, but 4 are expected"):
        read_images(tmp_path, num_classes=4)


def test_format_and_list_file_must_agree(tmp_path):
    with pytest.raises(ValueError, match=r"list_file"):
        read_images(tmp_path, format="list")
    with pytest.raises(ValueError, match=r"list_file"):
        read_images(tmp_path, format="cub", list_file=tmp_path / "train.list")


def test_a_list_that_is_a_pipe_or_missing_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.list")
    with pytest.raises(DataError, match=r"pipe.list is not a regular file"):
        read_images(tmp_path, list_file=tmp_path / "pipe.list")
    with pytest.raises(DataError, match=r"none.list does not exist"):
        read_images(tmp_path, list_file=tmp_path / "none.list")
