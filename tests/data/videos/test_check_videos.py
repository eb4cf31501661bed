"""``check_videos`` on a data set with one of each kind of bad video."""

import csv
import os
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest
from encoding import encode
from PIL import Image

from cgnl.data.decoding import DataError
from cgnl.data.videos.checking import check_videos


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "actions"
    for split, names in (("train", ("a", "b")), ("val", ("b",))):
        for name in names:
            (root / split / name).mkdir(parents=True)
    encode(root / "train/a/0.mp4", frames=8, width=32, height=24)
    encode(root / "train/a/1.mp4", frames=16, width=32, height=24, rate=10)
    encode(root / "train/b/0.avi", "mpeg4", frames=20, width=48, height=32, options={"g": "4"})
    encode(root / "val/b/0.mp4", frames=9, width=32, height=24)
    return root


def _decodable(path: Path) -> int:
    """The number of frames that come out where packets that cannot be decoded are passed over."""
    frames = 0
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            with suppress(av.error.InvalidDataError):
                frames += len(packet.decode())
    return frames


def _chunks(avi: bytes) -> list[int]:
    """Where the frames of an .avi begin."""
    places, place = [], avi.index(b"movi")
    while (place := avi.find(b"00dc", place + 1)) >= 0 and place < avi.index(b"idx1"):
        places.append(place)
    return places


def make_frames(folder: Path, number: int) -> Path:
    folder.mkdir(parents=True)
    for index in range(number):
        Image.fromarray(np.full((5, 7, 3), index, np.uint8)).save(folder / f"{index}.jpg")
    return folder


def test_a_good_data_set(root, capfd):
    report = check_videos(root, workers=1)
    assert report.bad == report.damaged == ()
    assert report.kind == "folders"
    assert [(split.name, split.per_class, split.unreadable, split.missing) for split in report.splits] == [
        ("train", (("a", 2), ("b", 1)), 0, 0),
        ("val", (("a", 0), ("b", 1)), 0, 0),
    ]
    assert [(info.frames, info.fps, info.width) for info in report.infos] == [
        (8, 25.0, 32),
        (16, 10.0, 32),
        (20, 25.0, 48),
        (9, 25.0, 32),
    ]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in str(report).splitlines()]
    bar = "█" * 30
    assert ["32 x 24", "3", bar] in rows
    assert ["48 x 32", "1", "█" * 10] in rows
    assert ["25", "3", bar] in rows
    assert ["10", "1", "█" * 10] in rows
    assert ["8 to 15", "2", bar] in rows
    assert ["16 to 31", "2", bar] in rows
    assert ["0.25 to 0.5", "2", bar] in rows
    assert ["1 to 2", "1", "█" * 15] in rows
    assert "nothing is bad" in str(report)
    assert "4/4" in capfd.readouterr().err


def test_bad_and_damaged_videos_are_listed(root, tmp_path):
    folder = root / "train/a"
    whole = (root / "train/b/0.avi").read_bytes()
    data = bytearray(whole)
    first, last = _chunks(whole)[8:10]
    data[first + 8 : last] = bytes(last - first - 8)
    (folder / "damaged.avi").write_bytes(data)
    whole = encode(tmp_path / "whole.mp4", frames=20, muxer={"movflags": "faststart"}).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "empty.mp4").touch()
    (folder / "page.mp4").write_text("<html>404</html>")
    (folder / "playlist.avi").write_text("#EXTM3U\n/etc/passwd\n")
    os.mkfifo(folder / "pipe.mp4")
    out = tmp_path / "bad.csv"
    out.write_text("what was here before")
    report = check_videos(root, workers=2, out=out, progress=False)
    assert [path.name for path, _ in report.bad] == ["empty.mp4", "page.mp4", "pipe.mp4", "playlist.avi"]
    counts = [(path, _decodable(path)) for path in (folder / "cut.mp4", folder / "damaged.avi")]
    assert all(0 < number < 20 for _, number in counts)
    assert report.damaged == tuple((path, f"gives {number} frames, but promises 20") for path, number in counts)
    assert [split.unreadable for split in report.splits] == [4, 0]
    assert report.splits[0].per_class == (("a", 4), ("b", 1))
    with out.open(newline="") as opened:
        rows = list(csv.reader(opened))
    assert sorted(Path(path).name for path, _ in rows[1:]) == [
        "cut.mp4",
        "damaged.avi",
        "empty.mp4",
        "page.mp4",
        "pipe.mp4",
        "playlist.avi",
    ]
    text = str(report)
    for path, reason in rows[1:]:
        assert f"{path} {reason}" in text
    assert "2 damaged files" in text
    assert "4 bad files" in text


def test_a_video_of_one_damaged_frame_is_listed(tmp_path):
    (tmp_path / "train/a").mkdir(parents=True)
    path = encode(tmp_path / "train/a/1.mpg", "mpeg2video", frames=1, width=192, height=128)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    report = check_videos(tmp_path, workers=1, progress=False)
    assert report.damaged == ((path, "gives 0 frames, but promises 1"),)
    assert "gives 0 frames" in str(report)


def test_folders_of_frames(tmp_path):
    make_frames(tmp_path / "x/good", 3)
    bad = make_frames(tmp_path / "x/bad", 4)
    (bad / "2.jpg").write_text("gone")
    make_frames(tmp_path / "y/short", 2)
    file = tmp_path / "my.txt"
    file.write_text("x/good 3 0\nx/bad 4 0\ny/short 3 1\ny/none 3 1\n")
    report = check_videos(tmp_path, list_file=file, workers=1, progress=False)
    assert report.kind == "frame_list"
    assert [(split.name, split.per_class, split.unreadable, split.missing) for split in report.splits] == [
        ("my.txt", (("x", 1), ("y", 1)), 1, 1)
    ]
    reasons = {path.name: reason for path, reason in report.bad}
    assert set(reasons) == {"bad", "none"}
    assert reasons["bad"].startswith(f"holds a bad file: {bad / '2.jpg'} is not a JPEG")
    assert report.damaged == ((tmp_path / "y/short", "count differs: holds 2 frames, but the list says 3"),)
    assert "\n1 damaged file\n" in str(report)
    assert reasons["none"] == "does not exist"
    assert "unknown" in str(report)


def test_a_wrong_list_is_an_error_before_any_file_is_opened(root):
    file = root / "some.list"
    file.write_text("train/a/0.mp4 zero\n")
    with pytest.raises(DataError, match="line 1: read the label 'zero'"):
        check_videos(root, list_file=file)
