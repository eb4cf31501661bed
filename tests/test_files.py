"""Files are whole or not there: after an error, a full disk and a kill the earlier one is as it was."""

import csv
import json
import math
import os
import resource
import signal
import stat
import subprocess
import sys

import pytest

from cgnl.files import append_csv, append_lines, json_text, make_folders, whole_file, write_csv, write_text


@pytest.mark.parametrize("mode", ["w", "wb"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_failed_write_leaves_the_earlier_file_alone(tmp_path, mode, shared):
    path = tmp_path / "new" / "page.html"
    earlier, later = ("earlier", "later") if mode == "w" else (b"earlier", b"later")
    with whole_file(path, mode, shared=shared) as file:
        file.write(earlier)

    def fail():
        with whole_file(path, mode, shared=shared) as file:
            file.write(later)
            file.flush()
            assert path.read_text() == "earlier"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert {file.name: file.read_text() for file in path.parent.iterdir()} == {"page.html": "earlier"}


def test_a_full_disk_is_reported_with_the_files_own_name(tmp_path):
    path = tmp_path / "page.html"
    write_text(path, "earlier")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_text(path, "later" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"page.html": "earlier"}


def test_a_kill_leaves_the_earlier_file_and_the_next_write_clears_up(tmp_path):
    path = tmp_path / "steps.csv"
    write_csv(path, [("step",), (1,)])
    script = (
        "import os, signal, sys; from pathlib import Path; from cgnl.files import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as file:\n"
        "    file.write('half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, path], check=False).returncode == -signal.SIGKILL
    assert path.read_bytes() == b"step\r\n1\r\n"
    write_csv(path, [("step",), (2,)])
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [["step"], ["2"]]
    assert [file.name for file in tmp_path.iterdir()] == ["steps.csv"]


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, whole_file(tmp_path / "page.html"):
        (tmp_path / "absent").read_text()
    assert caught.value.filename == str(tmp_path / "absent")
    with pytest.raises(FileNotFoundError) as caught, whole_file(tmp_path / "no" / "page.html", make_folder=False):
        pass
    assert caught.value.filename == str(tmp_path / "no" / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_devices_and_pipes_are_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    # a pipe cannot be flushed to a disk
    write_text(pipe, "row\n")
    assert os.read(reader, 100) == b"row\n"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    script = "from pathlib import Path; from cgnl.files import write_text; write_text(Path('/dev/stdout'), 'row')"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout == b"row"
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "folder", "row")
    assert (tmp_path / "folder").is_dir()


def test_a_log_grows_by_whole_lines(tmp_path):
    path = tmp_path / "log.csv"
    append_csv(path, ["step", "name"], [[1, "a,b"]])
    append_csv(path, ["step", "name"], [[2, "c"], [3, "\udcff"]])
    assert path.read_bytes() == b'step,name\r\n1,"a,b"\r\n2,c\r\n3,\xff\r\n'
    # behind a line that a crash of the system has cut, and in an empty file
    path.write_bytes(b"step,name\r\n1,a")
    append_csv(path, ["step", "name"], [[2, "c"]])
    assert path.read_bytes() == b"step,name\r\n1,a\n2,c\r\n"
    path.write_bytes(b"")
    append_csv(path, ["step", "name"], [[2, "c"]])
    assert path.read_bytes() == b"step,name\r\n2,c\r\n"


def test_a_log_on_a_full_disk_stays_as_it_was(tmp_path):
    path = tmp_path / "log.txt"
    append_lines(path, "earlier\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            append_lines(path, "later\n" * 50)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
    assert path.read_text() == "earlier\n"


@pytest.mark.parametrize("below", ["", "new", "new/folder"])
def test_a_file_where_a_folder_must_be_is_named(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    for write in (make_folders, lambda folder: write_text(folder / "page.html", "text")):
        with pytest.raises(NotADirectoryError, match="this must be a folder, and it is a file") as caught:
            write(tmp_path / "file" / below)
        assert caught.value.filename == str(tmp_path / "file")
    make_folders(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder").is_dir()


def test_json_has_null_for_numbers_that_are_not_finite():
    content = {"a": math.nan, "b": [math.inf, 1.5, (-math.inf, "NaN")], "c": {"d": None, "e": 3}}
    assert json.loads(json_text(content)) == {"a": None, "b": [None, 1.5, [None, "NaN"]], "c": {"d": None, "e": 3}}


def test_half_files_of_killed_writers_go_after_an_hour(tmp_path):
    old, fresh, other = (
        tmp_path / name for name in (".index[1].csv.aa.part", ".index[1].csv.bb.part", ".b.csv.aa.part")
    )
    for path in (old, fresh, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    with whole_file(tmp_path / "index[1].csv", shared=True) as file:
        file.write("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"index[1].csv", fresh.name, other.name}
