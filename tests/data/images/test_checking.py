"""``check_images`` on a data set with one of each kind of bad file."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cgnl.data.decoding import DataError
from cgnl.data.images import check_images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "birds"
    rng = np.random.default_rng(0)
    for split, numbers in (("train", {"a": 3, "b": 2}), ("val", {"b": 1})):
        for name, number in numbers.items():
            (root / split / name).mkdir(parents=True)
            for index in range(number):
                array = rng.integers(0, 256, (30 + 10 * index, 40, 3), dtype=np.uint8)
                Image.fromarray(array).save(root / split / name / f"{index}.jpg")
    return root


def test_a_good_data_set(root, capfd):
    report = check_images(root, workers=1)
    assert report.bad == ()
    assert report.kind == "folders"
    assert [(split.name, split.per_class, split.unreadable, split.missing) for split in report.splits] == [
        ("train", (("a", 3), ("b", 2)), 0, 0),
        ("val", (("a", 0), ("b", 1)), 0, 0),
    ]
    assert sorted(report.sizes) == [(40, 30)] * 3 + [(40, 40)] * 2 + [(40, 50)]
    assert "height 30 to 50, median 30" in str(report)
    assert "nothing is bad" in str(report)
    assert "6/6" in capfd.readouterr().err


def test_bad_files_are_listed(root, tmp_path):
    whole = (root / "train/a/0.jpg").read_bytes()
    folder = root / "train/a"
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").touch()
    (folder / os.fsdecode(b"caf\xe9.jpg")).touch()
    (folder / "page.jpg").write_text("<html>[bold]404[/bold]</html>")
    os.mkfifo(folder / "pipe.jpg")
    Image.new("RGB", (9, 9)).save(folder / "old.gif")
    out = tmp_path / "bad.csv"
    out.write_text("what was here before")
    report = check_images(root, workers=2, out=out, progress=False)
    reasons = {os.fsencode(path.name).decode("latin-1"): reason for path, reason in report.bad}
    assert sorted(reasons) == ["caf\u00e9.jpg", "cut.jpg", "empty.jpg", "old.gif", "page.jpg", "pipe.jpg"]
    assert "truncated" in reasons["cut.jpg"]
    assert reasons["old.gif"].endswith("but looks like a GIF file")
    assert [split.unreadable for split in report.splits] == [6, 0]
    assert report.splits[0].per_class == (("a", 3), ("b", 2))
    with out.open(newline="") as opened:
        rows = list(csv.reader(opened))
    assert rows[0] == ["path", "reason"]
    assert [Path(path).name for path, _ in rows[1:]] == list(reasons)
    shown = str(report)
    for path, reason in rows[1:]:
        assert f"{path} {reason}" in shown
    shown.encode()
    assert "6 bad files" in str(report)


def test_a_list_with_missing_files(root):
    file = root / "some.list"
    file.write_text("train/a/0.jpg 0\ntrain/a/none.jpg 0\nval/b/0.jpg 1\n")
    report = check_images(root, list_file=file, workers=1, progress=False)
    assert report.bad == ((root / "train/a/none.jpg", "does not exist"),)
    assert str(report).splitlines()[-1] == "1 bad file"
    assert [(split.name, split.per_class, split.missing) for split in report.splits] == [
        ("some.list", (("a", 1), ("b", 1)), 1)
    ]


def test_a_wrong_list_is_an_error_before_any_file_is_opened(root):
    file = root / "some.list"
    file.write_text("train/a/0.jpg zero\n")
    with pytest.raises(DataError, match="line 1: read the label 'zero'"):
        check_images(root, list_file=file)
