"""Accounts of missing and unreadable files."""

import csv
import os
from pathlib import Path

import pytest

from cgnl.data.decoding import DataError
from cgnl.data.lists import BadFiles, Sample, SampleList, write_missing


def make_list(number: int, *missing: str) -> SampleList:
    samples = tuple(Sample(Path(f"root/{index}.jpg"), 0) for index in range(number))
    return SampleList(Path("root"), samples, ("a",), "list", tuple(Path("root", name) for name in missing))


def rows(file: Path) -> list[list[str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.reader(opened))


def test_each_bad_file_is_written_once(tmp_path):
    bad = BadFiles(make_list(100), tmp_path)
    assert not (tmp_path / "bad_files.csv").exists()
    bad.add([])
    bad.add([(3, Path("root/3.jpg"), "is empty"), (4, Path("root/4.jpg"), "is a page, or so")])
    bad.add([(3, Path("root/3.jpg"), "is empty")])
    expected = [["path", "reason"], ["root/3.jpg", "is empty"], ["root/4.jpg", "is a page, or so"]]
    assert rows(tmp_path / "bad_files.csv") == expected
    assert len(bad) == 2

    resumed = BadFiles(make_list(100), tmp_path)
    resumed.add([(4, Path("root/4.jpg"), "is a page, or so"), (5, Path("root/5.jpg"), "is empty")])
    assert rows(tmp_path / "bad_files.csv") == [*expected, ["root/5.jpg", "is empty"]]


def test_over_the_limit_the_run_stops(tmp_path):
    bad = BadFiles(make_list(40), tmp_path)
    bad.add([(index, Path(f"root/{index}.jpg"), "is empty") for index in (0, 1)])
    for _ in range(3):
        bad.add([(1, Path("root/1.jpg"), "is empty")])
    with pytest.raises(DataError) as caught:
        bad.add([(7, Path("root/7.jpg"), "is empty")])
    assert str(caught.value) == (
        "3 of 40 files of root cannot be read, more than the limit of 5.0% (--data.bad-limit); "
        "the last: root/7.jpg is empty. "
        f"All are listed in {tmp_path / 'bad_files.csv'}."
    )
    assert len(rows(tmp_path / "bad_files.csv")) == 4


def test_the_limit_is_a_setting():
    BadFiles(make_list(4), None, limit=0.5).add([(0, Path("0"), "x"), (1, Path("1"), "x")])
    with pytest.raises(DataError, match=r"limit of 0\.0%"):
        BadFiles(make_list(1000), None, limit=0.0).add([(0, Path("0"), "x")])


def test_missing_files_are_listed(tmp_path):
    write_missing(tmp_path, [make_list(3)])
    assert not (tmp_path / "missing_files.csv").exists()
    lists = [make_list(3, "x, y.jpg", os.fsdecode(b"gr\xfcn.jpg")), make_list(2, "z.jpg", "x, y.jpg")]
    for _ in range(2):
        write_missing(tmp_path, lists)
    reason = "does not exist"
    assert rows(tmp_path / "missing_files.csv") == [
        ["path", "reason"],
        ["root/x, y.jpg", reason],
        ["root/gr\u00fcn.jpg", reason],
        ["root/z.jpg", reason],
    ]
