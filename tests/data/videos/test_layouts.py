"""Layouts of video data sets on disk, right and wrong, as real (empty) files."""

from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image

from cgnl.data.decoding import DataError
from cgnl.data.lists import Sample, check_missing, write_missing
from cgnl.data.reports import read_splits
from cgnl.data.videos.layouts import LAYOUTS, read_ucf101, read_videos
from cgnl.settings.video import VideoDataConfig

HANDSTAND = "HandstandPushups/v_HandStandPushups_g01_c01.avi"
UCF101 = {
    "classInd.txt": ["1 ApplyEyeMakeup", "2 BalanceBeam", "3 HandstandPushups"],
    "trainlist01.txt": ["ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1", f"{HANDSTAND} 3"],
    "testlist01.txt": ["ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", "BalanceBeam/v_BalanceBeam_g01_c02.avi"],
    "trainlist03.txt": ["BalanceBeam/v_BalanceBeam_g01_c02.avi 2"],
    "testlist03.txt": [HANDSTAND],
}


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def make_ucf101(
    root: Path, *, videos: str = "UCF-101", lists: str = "ucfTrainTestlist", newline: str = "\n", **changes: list[str]
) -> Path:
    for name, lines in (UCF101 | {f"{name}.txt": lines for name, lines in changes.items()}).items():
        touch(root / lists, name)
        (root / lists / name).write_bytes(newline.join([*lines, ""]).encode())
    names = {line.split()[0] for name, lines in UCF101.items() if name != "classInd.txt" for line in lines}
    touch(root / videos, *names)
    return root


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(("videos", "lists"), [("UCF-101", "ucfTrainTestlist"), ("UCF101", "."), (".", ".")])
def test_ucf101(tmp_path, videos, lists, newline):
    root = make_ucf101(tmp_path, videos=videos, lists=lists, newline=newline)
    folder = tmp_path / videos
    train = read_videos(root, "train")
    assert train.kind == "ucf101"
    assert train.classes == ("ApplyEyeMakeup", "BalanceBeam", "HandstandPushups")
    assert train.samples == (
        Sample(folder / "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", 0),
        Sample(folder / HANDSTAND, 2),
    )
    for split in ("test", "val"):
        assert [sample.label for sample in read_videos(root, split).samples] == [0, 1]
    assert read_videos(root, "train", fold=3).samples == (Sample(folder / "BalanceBeam/v_BalanceBeam_g01_c02.avi", 1),)
    assert read_videos(root, "test", fold=3).samples == (Sample(folder / HANDSTAND, 2),)


def test_ucf101_with_its_lists_elsewhere(tmp_path):
    root = make_ucf101(tmp_path / "data", videos=".", lists="../lists")
    assert len(read_videos(root, annotations=tmp_path / "lists")) == 2
    with pytest.raises(DataError, match="is not a video data set in a known layout"):
        read_videos(root)
    with pytest.raises(DataError, match=r"classInd.txt \(UCF101\): not found in .*data, .*--data.annotations"):
        read_videos(root, format="ucf101")


def test_ucf101_as_it_is_unzipped(tmp_path, monkeypatch):
    """Archives of the videos and of the lists, unpacked side by side."""
    make_ucf101(tmp_path)
    expected = read_videos(tmp_path, "train").samples
    assert read_videos(tmp_path / "UCF-101", "train").samples == expected
    monkeypatch.chdir(tmp_path / "UCF-101")
    assert len(read_videos(".", "test")) == 2
    # The lists are no other data set's business.
    touch(tmp_path, "mine/train/a/1.mp4")
    assert read_videos(tmp_path / "mine").kind == "folders"


def test_converted_videos_of_ucf101(tmp_path):
    root = make_ucf101(tmp_path, trainlist01=["BalanceBeam/one.avi 2", "BalanceBeam/two.avi 2", f"{HANDSTAND} 3"])
    folder = root / "UCF-101"
    touch(folder, "BalanceBeam/one.mp4", "BalanceBeam/one.txt", "BalanceBeam/two/img_1.jpg", "HandstandPushups/x.mp4")
    assert read_videos(root).samples == (
        Sample(folder / "BalanceBeam/one.mp4", 1),
        Sample(folder / "BalanceBeam/two", 1),
        Sample(folder / HANDSTAND, 2),
    )
    touch(folder, "BalanceBeam/one.mkv")  # which of the two it is, nobody knows
    assert read_videos(root, missing_limit=0.5).missing == (folder / "BalanceBeam/one.avi",)
    (folder / "BalanceBeam/one.mkv").unlink()
    (folder / "BalanceBeam/one.mp4").unlink()
    touch(tmp_path.parent, f"{tmp_path.name}-secret.mp4")
    (folder / "BalanceBeam/one.mp4").symlink_to(tmp_path.parent / f"{tmp_path.name}-secret.mp4")
    with pytest.raises(DataError, match=r"trainlist01.txt, line 1: the path 'BalanceBeam/one.mp4' is or passes a symb"):
        read_videos(root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"trainlist01": ["BalanceBeam/v.avi 1"]},
            "trainlist01.txt, line 1: read label 1, but classInd.txt numbers Ba",
        ),
        ({"trainlist01": ["BalanceBeam/v.avi"]}, "trainlist01.txt, line 1: read 'BalanceBeam/v.avi', expected `path l"),
        ({"trainlist01": ["BalanceBeam/v.avi 0"]}, "trainlist01.txt, line 1: read label 0, but classInd.txt numbers"),
        ({"trainlist01": ["BalanceBeam/v.avi x"]}, "line 1: read the label 'x', expected a whole number from 1."),
        ({"trainlist01": ["", "Nothing/v.avi 1"]}, "trainlist01.txt, line 2: the folder 'Nothing' is not a class of"),
        ({"trainlist01": ["../v.avi 1"]}, "trainlist01.txt, line 1: the path '../v.avi' holds '..'"),
        ({"trainlist01": ["/etc/passwd 1"]}, "trainlist01.txt, line 1: the path '/etc/passwd' is absolute"),
        ({"trainlist01": ["rtsp://a.b/c.avi 1"]}, "trainlist01.txt, line 1: the path 'rtsp://a.b/c.avi' is a URL"),
        ({"trainlist01": ["a/b\0.avi 1"]}, "trainlist01.txt, line 1: the path 'a/b\\x00.avi' holds a NUL character"),
        ({"classInd": ["1 a", "3 b", "4 c"]}, "classInd.txt, line 3: read class id 4, expected 1 to 3 once each"),
        ({"classInd": ["1 a", "2 a"]}, "classInd.txt gives a class name twice"),
        ({"classInd": ["ApplyEyeMakeup"]}, "classInd.txt, line 1: read 'ApplyEyeMakeup', expected `<class id> <name>`"),
    ],
)
def test_wrong_ucf101_files(tmp_path, changes, message):
    root = make_ucf101(tmp_path, **changes)
    with pytest.raises(DataError) as caught:
        read_videos(root)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


def test_wrong_ucf101_test_list(tmp_path):
    root = make_ucf101(tmp_path, testlist01=["BalanceBeam/v_BalanceBeam_g01_c02.avi 3"], testlist02=["a b"])
    with pytest.raises(
        DataError, match=r"testlist01.txt, line 1: read label 3, but classInd.txt numbers BalanceBeam 2"
    ):
        read_videos(root, "test")
    with pytest.raises(DataError, match=r"testlist02.txt, line 1: read 'a b', expected the path alone"):
        read_videos(root, "test", fold=2)
    with pytest.raises(DataError, match=r"trainlist02.txt does not exist"):
        read_videos(root, "train", fold=2)
    with pytest.raises(ValueError, match=r"fold \(4\) must be 1, 2 or 3"):
        read_videos(root, fold=4)


def test_links_out_of_ucf101(tmp_path):
    root = make_ucf101(tmp_path / "root")
    touch(tmp_path, "secret.avi")
    video = root / "UCF-101" / HANDSTAND
    video.unlink()
    video.symlink_to(tmp_path / "secret.avi")
    with pytest.raises(DataError, match=r"trainlist01.txt, line 2: the path .* is or passes a symbolic link"):
        read_videos(root)
    (root / "UCF-101").rename(tmp_path / "elsewhere")
    (root / "UCF-101").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="the path 'UCF-101' is or passes a symbolic link"):
        read_videos(root)


def test_missing_videos_of_ucf101_are_counted_and_named(tmp_path):
    root = make_ucf101(tmp_path)
    (root / "UCF-101" / HANDSTAND).unlink()
    assert read_ucf101(root, lists=root / "ucfTrainTestlist").missing == (root / "UCF-101" / HANDSTAND,)
    missing = r"1 of 2 files of .* is missing, more than the limit of 5\.0% \(--data.missing-limit\): .*HandStand"
    with pytest.raises(DataError, match=missing):
        read_videos(root)


HEADER = "label,youtube_id,time_start,time_end,split,is_cc"
TRAIN = [
    HEADER,
    "tai chi,-abc_DEF-12,5,15,train,0",
    '"catching, or throwing ball",__dashes--_9,0,10,train,0',
    "abseiling,abcdefghijk,100,110,train,1",
]
VAL = [HEADER, "abseiling,ABCDEFGHIJK,1,11,val,0", "zumba,0_1_2_3_4_5,12,22,val,0"]
VIDEOS = (
    "train/tai chi/-abc_DEF-12_000005_000015.mp4",
    "train/catching,_or_throwing_ball/__dashes--_9.webm",
    "train/abseiling/abcdefghijk_000100_000110.mkv",
    "val/ABCDEFGHIJK_000001_000011.MP4",
    "0_1_2_3_4_5_000012_000022.avi",
)


def write_csv(file: Path, lines: list[str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes("\r\n".join([*lines, ""]).encode())
    return file


def make_kinetics(root: Path, train: str = "kinetics-400_train.csv", val: str = "validate.csv") -> Path:
    write_csv(root / train, TRAIN)
    write_csv(root / val, VAL)
    return touch(root, *VIDEOS)


@pytest.mark.parametrize(
    ("train", "val"), [("kinetics-400_train.csv", "validate.csv"), ("annotations/train.csv", "annotations/val.csv")]
)
def test_kinetics(tmp_path, train, val):
    root = make_kinetics(tmp_path, train, val)
    (root / "video_index.csv").write_text("path,bytes\n")
    classes = ("abseiling", "catching, or throwing ball", "tai chi", "zumba")
    videos = read_videos(root, "train")
    assert videos.kind == "kinetics"
    assert videos.classes == classes
    assert videos.samples == (Sample(root / VIDEOS[0], 2), Sample(root / VIDEOS[1], 1), Sample(root / VIDEOS[2], 0))
    assert videos.missing == ()
    for split in ("val", "test"):
        videos = read_videos(root, split)
        assert videos.classes == classes
        assert videos.samples == (Sample(root / VIDEOS[3], 0), Sample(root / VIDEOS[4], 3))


def test_kinetics_by_one_file_whose_columns_are_in_another_order(tmp_path):
    lines = ["split,time_end,youtube_id,label,time_start", "test,15,-abc_DEF-12,tai chi,5", "test,9,heldbackxxx,,0"]
    file = write_csv(tmp_path / "lists/my.csv", lines)
    root = touch(tmp_path / "videos", VIDEOS[0])
    assert read_videos(root, "val", annotations=file).samples == (Sample(root / VIDEOS[0], 0),)
    with pytest.raises(DataError, match=r"my.csv has no clip of the train split"):
        read_videos(root, "train", annotations=file)


@pytest.mark.parametrize("given", ["file", "folder"])
@pytest.mark.parametrize(("split", "lines", "other"), [("train", TRAIN, "test"), ("val", VAL, "train")])
def test_kinetics_with_the_csv_file_of_one_split(tmp_path, given, split, lines, other):
    root = touch(tmp_path / "videos", *VIDEOS)
    file = write_csv(tmp_path / f"lists/{split}.csv", lines)
    annotations = file if given == "file" else file.parent
    videos = read_videos(root, split, annotations=annotations)
    assert len(videos) == len(lines) - 1
    assert len(videos.classes) == len(lines) - 1
    with pytest.raises(DataError) as caught:
        read_videos(root, other, annotations=annotations)
    assert str(caught.value).startswith(f"{file} has no clip of the {other} split, only of {split}; expected the csv")
    found = read_splits(lambda name: read_videos(root, name, annotations=annotations), root, None)
    assert found == {"train" if split == "train" else "test": videos}


def test_missing_kinetics_videos(tmp_path):
    root = make_kinetics(tmp_path)
    (root / VIDEOS[0]).unlink()
    with pytest.raises(DataError, match=r"1 of 3 files .* more than the limit of 20.0% \(--data.missing-limit\)"):
        read_videos(root)
    videos = read_videos(root, missing_limit=0.5)
    assert videos.missing == (root / "-abc_DEF-12_000005_000015.mp4",)
    assert len(videos) == 2


@pytest.mark.parametrize(("there", "is_enough"), [(20, True), (17, True), (16, True), (15, False)])
def test_a_fifth_of_kinetics_may_be_gone(tmp_path, there, is_enough):
    """As is usual of its copies; of other data sets a twentieth."""
    ids = [f"{number:011d}" for number in range(20)]
    write_csv(tmp_path / "train.csv", [HEADER.removesuffix(",is_cc"), *(f"a,{id},0.0,10.0,train" for id in ids)])
    touch(tmp_path, *(f"{id}_000000_000010.mp4" for id in ids[:there]))
    if is_enough:
        assert len(read_videos(tmp_path)) == there
    else:
        with pytest.raises(DataError, match=r"limit of 20.0%"):
            read_videos(tmp_path)
    file = tmp_path / "my.txt"
    file.write_text("".join(f"{id}_000000_000010.mp4 0\n" for id in ids))
    if there == 20:
        assert len(read_videos(tmp_path, list_file=file)) == 20
    else:
        with pytest.raises(DataError, match=r"limit of 5.0%"):
            read_videos(tmp_path, list_file=file)


@pytest.mark.parametrize("times", ["5,15", "5.0,15.0", "5.,15.000", "005,015"])
def test_kinetics_times_that_are_written_as_fractions(tmp_path, times):
    write_csv(tmp_path / "train.csv", [HEADER, f"a,abc,{times},train,0"])
    touch(tmp_path, "abc_000005_000015.mp4")
    assert [sample.path.name for sample in read_videos(tmp_path).samples] == ["abc_000005_000015.mp4"]


def test_a_file_named_by_the_id_alone_is_used_only_where_the_id_occurs_once(tmp_path):
    clips = ["a,__dashes--_9,0,10,train", "b,__dashes--_9,20,30,train"]
    write_csv(tmp_path / "train.csv", [HEADER.removesuffix(",is_cc"), *clips])
    touch(tmp_path, "__dashes--_9.mp4", "__dashes--_9_000020_000030.mp4")
    videos = read_videos(tmp_path, missing_limit=1)
    assert videos.samples == (Sample(tmp_path / "__dashes--_9_000020_000030.mp4", 1),)
    assert len(videos.missing) == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,b,c,1,train"], "line 2: read 5 columns, expected 6 as in the header"),
        (["a,../../x,0,10,train,0"], "line 2: read the YouTube id '../../x', expected letters, digits"),
        (["a,https://x,0,10,train,0"], "line 2: read the YouTube id 'https://x', expected letters, digits"),
        (["a,abc,zero,10,train,0"], "line 2: read the times 'zero,10', expected whole seconds"),
        (["a,abc,0.5,10,train,0"], "line 2: read the times '0.5,10', expected whole seconds"),
        (["a,abc,0,10,holdout,0"], "line 2: read the split 'holdout', expected train, val or test"),
        ([",abc,0,10,train,0"], "line 2: abc has no label"),
        (["a,abc,0,10,train,0", "", "b,abc,0,10,train,0"], "line 4: abc_000000_000010 is 'b' of train, but 'a' of tr"),
        (["a,abc,0,10,train,0", "a,abc,0,10,val,0"], "line 3: abc_000000_000010 is 'a' of val, but 'a' of train in"),
    ],
)
def test_wrong_kinetics_lines(tmp_path, lines, message):
    file = write_csv(tmp_path / "train.csv", [HEADER, *lines])
    with pytest.raises(DataError) as caught:
        read_videos(tmp_path)
    assert str(caught.value).startswith(f"{file}, {message}")


def test_a_kinetics_file_without_its_header(tmp_path):
    file = write_csv(tmp_path / "lists/train.csv", TRAIN[1:])
    with pytest.raises(DataError, match=r"train.csv, line 1: the header lacks label, youtube_id, time_start"):
        read_videos(tmp_path, annotations=file)


def test_links_out_of_a_folder_of_kinetics(tmp_path):
    root = make_kinetics(tmp_path / "root")
    (root / "train").rename(tmp_path / "elsewhere")
    (root / "train").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="the path 'train' is or passes a symbolic link that leads out"):
        read_videos(root)


def make_mini_kinetics(root: Path, train: list[str], val: list[str]) -> Path:
    write_csv(root / "lists/kinetics_train.csv", TRAIN)
    write_csv(root / "lists/kinetics_val.csv", VAL)
    write_csv(root / "lists/train_ytid_list.txt", train)
    write_csv(root / "lists/val_ytid_list.txt", val)
    return touch(root / "videos", *VIDEOS)


def test_mini_kinetics(tmp_path):
    root = make_mini_kinetics(tmp_path, ["-abc_DEF-12", "ABCDEFGHIJK"], ["abcdefghijk"])
    videos = read_videos(root, annotations=tmp_path / "lists")
    assert videos.kind == "mini_kinetics"
    # Of the four classes of the csv files, two occur; the lists' split counts, not that of the csv files.
    assert videos.classes == ("abseiling", "tai chi")
    assert videos.samples == (Sample(root / VIDEOS[0], 1), Sample(root / VIDEOS[3], 0))
    for split in ("val", "test"):
        assert read_videos(root, split, annotations=tmp_path / "lists").samples == (Sample(root / VIDEOS[2], 0),)


def test_mini_kinetics_ids_without_a_label_or_a_video(tmp_path):
    root = make_mini_kinetics(tmp_path, ["-abc_DEF-12", "nolabel_-_x", "__dashes--_9"], ["abcdefghijk"])
    (root / VIDEOS[1]).unlink()
    videos = read_videos(root, annotations=tmp_path / "lists", missing_limit=1)
    assert videos.missing == (root / "__dashes--_9_000000_000010.mp4", root / "nolabel_-_x.mp4")
    with pytest.raises(DataError, match=r"2 of 3 files of .* are missing.*nolabel_-_x.mp4 has no label: no line of"):
        check_missing(videos, 0.5)
    write_missing(tmp_path, [videos])
    rows = (tmp_path / "missing_files.csv").read_text().splitlines()
    assert rows[1].endswith("__dashes--_9_000000_000010.mp4,does not exist")
    assert 'nolabel_-_x.mp4,"has no label: no line of' in rows[2]


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (["-abc_DEF-12 3"], [], "train_ytid_list.txt, line 1: read '-abc_DEF-12 3', expected a YouTube id alone"),
        (["abcdefghijk", "abcdefghijk"], [], "line 2: the id abcdefghijk was given in train_ytid_list.txt already"),
        (["abcdefghijk"], ["abcdefghijk"], "val_ytid_list.txt, line 1: the id abcdefghijk was given in train_ytid"),
        (["twolabelsxx"], [], "line 1: the id twolabelsxx has the labels 'a', 'b' in"),
    ],
)
def test_wrong_mini_kinetics_lists(tmp_path, train, val, message):
    root = make_mini_kinetics(tmp_path, train, val)
    write_csv(tmp_path / "lists/more.csv", [HEADER, "a,twolabelsxx,0,10,train,0", "b,twolabelsxx,5,15,train,0"])
    with pytest.raises(DataError) as caught:
        read_videos(root, annotations=tmp_path / "lists")
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "lists"))


def test_mini_kinetics_without_labels_or_without_its_second_list(tmp_path):
    root = make_mini_kinetics(tmp_path, ["-abc_DEF-12"], ["abcdefghijk"])
    (tmp_path / "lists/val_ytid_list.txt").unlink()
    with pytest.raises(DataError, match=r"val_ytid_list.txt does not exist"):
        read_videos(root, annotations=tmp_path / "lists")
    for file in (tmp_path / "lists").glob("*.csv"):
        file.unlink()
    with pytest.raises(
        DataError, match=r"lists holds no csv file with .* the id lists of Mini-Kinetics have no labels"
    ):
        read_videos(root, annotations=tmp_path / "lists")


@pytest.mark.parametrize("text", ["a b.mp4 0\nc.avi 1\n", "a b.mp4,0\r\nc.avi, 1\r\n", "a b.mp4\t0\n\nc.avi\t 1"])
def test_lists(tmp_path, text):
    touch(tmp_path, "a b.mp4", "c.avi")
    file = tmp_path / "my.csv"
    file.write_text(text)
    videos = read_videos(tmp_path, list_file=file)
    assert videos.kind == "list"
    assert videos.samples == (Sample(tmp_path / "a b.mp4", 0), Sample(tmp_path / "c.avi", 1))


def test_a_list_of_folders_of_frames(tmp_path):
    touch(tmp_path, "x/1/img_1.jpg", "y/2/img_1.jpg")
    file = tmp_path / "my.csv"
    file.write_text("x/1 0\ny/2 1\ny/3 1\n")
    videos = read_videos(tmp_path, list_file=file, missing_limit=0.5)
    assert videos.samples == (Sample(tmp_path / "x/1", 0), Sample(tmp_path / "y/2", 1))
    assert videos.classes == ("x", "y")
    assert videos.missing == (tmp_path / "y/3",)


@pytest.mark.parametrize(
    ("text", "classes", "message"),
    [
        ("a.mp4 0\nb.mp4\n", None, "line 2: read 'b.mp4', expected `path label`"),
        ("path,label\n", None, "line 1: read the label 'label', expected a whole number from 0"),
        ("a.mp4,3\n", 3, "line 1: read label 3, expected 0 to 2"),
        ("a.mp4 1\nb.mp4 2\n", None, "line 1: read label 1, the lowest of all, but expected labels from 0"),
        ("../a.mp4,0\n", None, "line 1: the path '../a.mp4' holds '..'"),
        ("concat:/etc/passwd 0\n", None, "line 1: the path 'concat:/etc/passwd' is a URL"),
    ],
)
def test_wrong_lines_of_a_list(tmp_path, text, classes, message):
    file = tmp_path / "my.list"
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        read_videos(tmp_path, list_file=file, num_classes=classes)
    assert str(caught.value).startswith(f"{file}, {message}")


def test_a_name_that_is_too_long_is_missing(tmp_path):
    file = tmp_path / "my.list"
    touch(tmp_path, "a.mp4")
    file.write_text(f"a.mp4 0\n{'x' * 300}.mp4 0\n")
    assert len(read_videos(tmp_path, list_file=file, missing_limit=0.5).missing) == 1


def make_frames(folder: Path, number: int) -> None:
    folder.mkdir(parents=True)
    for index in range(number):
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / f"img_{index:05d}.jpg")


def test_frame_lists(tmp_path):
    make_frames(tmp_path / "run/first one", 3)
    make_frames(tmp_path / "run/second", 5)
    touch(tmp_path, "walk/file", "run/second/list.txt")
    (tmp_path / "walk/empty").mkdir()
    file = tmp_path / "my.txt"
    file.write_text("run/first one 3 0\nrun/second,6,0\nwalk/gone 2 1\nwalk/file\t2\t1\nwalk/empty 2 1\n")
    with pytest.raises(DataError, match=r"3 of 5 files .* more than the limit of 5.0% \(--data.missing-limit\)"):
        read_videos(tmp_path, list_file=file)
    videos = read_videos(tmp_path, list_file=file, missing_limit=1)
    assert videos.kind == "frame_list"
    assert videos.samples == (Sample(tmp_path / "run/first one", 0), Sample(tmp_path / "run/second", 0))
    assert videos.remarks == {tmp_path / "run/second": "count differs: holds 5 frames, but the list says 6"}
    assert {path.name: videos.why_missing(path) for path in videos.missing} == {
        "gone": "does not exist",
        "file": "is not a folder of frames",
        "empty": "is a folder without frames (JPEG, PNG, WebP or BMP files)",
    }
    strict = read_videos(tmp_path, list_file=file, missing_limit=1, frame_tolerance=0)
    assert [sample.path.name for sample in strict.samples] == ["first one"]
    assert strict.remarks == {}
    assert strict.why_missing(tmp_path / "run/second") == (
        "holds 5 frames, but the list says 6, more than --data.frame-tolerance (0) apart"
    )
    file.write_text("run/second 5 0\nwalk/file 1\n")
    with pytest.raises(DataError, match="line 2: read 'walk/file 1', expected `folder frames label`"):
        read_videos(tmp_path, list_file=file, format="frame_list")


def test_folders_of_classes(tmp_path):
    camera = [".ts", ".mts", ".m2ts", ".asf", ".ogv"]
    root = touch(
        tmp_path,
        "train/b/1.MP4",
        "train/b/deep/0.webm",
        "train/a/2.mov",
        "train/a/note.txt",
        "train/a/picture.jpg",
        "train/a/.hidden.mp4",
        "val/b/9.3gp",
        *(f"train/c/{number}{suffix}" for number, suffix in enumerate(camera)),
    )
    train = read_videos(root)
    assert train.kind == "folders"
    assert train.classes == ("a", "b", "c")
    named = [(str(sample.path.relative_to(root)), sample.label) for sample in train.samples]
    assert named == [("train/a/2.mov", 0), ("train/b/1.MP4", 1), ("train/b/deep/0.webm", 1)] + [
        (f"train/c/{number}{suffix}", 2) for number, suffix in enumerate(camera)
    ]
    for split in ("val", "test"):
        assert read_videos(root, split).samples == (Sample(root / "val/b/9.3gp", 1),)
    with pytest.raises(DataError, match="has 3 classes, but 4 are expected"):
        read_videos(root, num_classes=4)


def test_what_is_recognised_nowhere_says_what_was_looked_for(tmp_path):
    touch(tmp_path, "a.mp4", "other.csv")
    with pytest.raises(DataError) as caught:
        read_videos(tmp_path)
    for text in ("train_ytid_list.txt", "classInd.txt", "label,youtube_id", "ucfTrainTestlist", "train (folders of"):
        assert text in str(caught.value)
    with pytest.raises(DataError, match="none is not a folder"):
        read_videos(tmp_path / "none")
    with pytest.raises(DataError, match="none, which should hold the annotations, does not exist"):
        read_videos(tmp_path, annotations=tmp_path / "none")


def test_format_and_list_file_must_agree(tmp_path):
    for format in ("list", "frame_list"):
        with pytest.raises(ValueError, match="list_file"):
            read_videos(tmp_path, format=format)
    with pytest.raises(ValueError, match="list_file"):
        read_videos(tmp_path, format="ucf101", list_file=tmp_path / "my.list")


def test_settings_name_every_layout(tmp_path):
    names = get_args(get_type_hints(VideoDataConfig)["format"])
    assert sorted(names) == sorted([*LAYOUTS, "auto", "list", "frame_list", "folders"])
    with pytest.raises(ValueError, match=r"format \('ucf11'\) must be auto, list, frame_list, folders or "):
        read_videos(tmp_path, format="ucf11")
