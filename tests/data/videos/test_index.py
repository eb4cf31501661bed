"""The index of a data set's videos: built once, kept, and right again after changes, crashes and damage."""

import csv
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from encoding import encode
from PIL import Image

from cgnl.data.decoding import BadFileError
from cgnl.data.videos import index as module
from cgnl.data.videos.decoding import VideoInfo, probe
from cgnl.data.videos.index import index_videos


def ask_again(path: Path) -> VideoInfo:
    """Stand where ``probe`` stands to show which videos are looked into."""
    raise BadFileError(path, "was asked again")


def act(path: Path) -> VideoInfo:
    """Do what the file's name says, unless its folder holds a file ``mended``."""
    if not (path.parent / "mended").exists():
        if "segfault" in path.name:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "hang" in path.name:
            time.sleep(600)
    return VideoInfo(len(path.name), 25.0, 4, 3, None)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("encoded")
    files = (
        encode(folder / "a.mp4", frames=8, width=32, height=24),
        encode(folder / "b.avi", "mpeg4", frames=16, width=48, height=32, rate=10),
    )
    return {file.name: file.read_bytes() for file in files}


@pytest.fixture
def root(tmp_path: Path, encoded: dict[str, bytes]) -> Path:
    root = tmp_path / "videos"
    (root / "x/frames").mkdir(parents=True)
    for name, data in encoded.items():
        (root / "x" / name).write_bytes(data)
    (root / "x/bad, or so.mp4").write_text("<html>gone</html>")
    for number in range(3):
        Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(root / f"x/frames/{number}.png")
    return root


def videos_of(root: Path) -> list[Path]:
    return sorted((root / "x").iterdir())


def rows(file: Path) -> dict[str, list[str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        assert opened.readline() == "# cgnl video index, version 2\n"
        table = list(csv.reader(opened))
    assert ",".join(table[0]) == "path,bytes,mtime_ns,frames,fps,width,height,promised,even,error"
    return {row[0]: row[1:] for row in table[1:]}


def build(root: Path, **options) -> dict[str, VideoInfo | str]:
    infos = index_videos(videos_of(root), root, workers=1, progress=False, **options)
    assert list(infos) == videos_of(root)
    return {path.name: info for path, info in infos.items()}


def test_what_is_found_is_what_probe_says_and_is_kept(root):
    infos = build(root)
    assert infos["a.mp4"] == probe(root / "x/a.mp4") == VideoInfo(8, 25.0, 32, 24, 8)
    assert infos["b.avi"] == probe(root / "x/b.avi") == VideoInfo(16, 10.0, 48, 32, 16)
    assert infos["frames"] == VideoInfo(3, 0.0, 7, 5, None)
    assert "HTML" in infos["bad, or so.mp4"]
    kept = rows(root / "video_index.csv")
    stat = (root / "x/a.mp4").stat()
    assert kept["x/a.mp4"] == [str(stat.st_size), str(stat.st_mtime_ns), "8", "25.0", "32", "24", "8", "1", ""]
    assert kept["x/frames"][0] == "3"
    assert list(kept) == ["x/a.mp4", "x/b.avi", "x/bad, or so.mp4", "x/frames"]
    assert kept["x/bad, or so.mp4"][2:] == ["", "", "", "", "", "", infos["bad, or so.mp4"]]
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []


def test_only_what_changed_is_looked_into_again(root, monkeypatch):
    infos = build(root)
    monkeypatch.setattr(module, "probe", ask_again)
    assert build(root) == infos
    with (root / "x/a.mp4").open("ab") as opened:
        opened.write(b"\0" * 8)
    os.utime(root / "x/bad, or so.mp4", ns=(0, 0))
    Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(root / "x/frames/3.png")
    (root / "x/c.mp4").touch()
    again = build(root)
    assert again.pop("b.avi") == infos["b.avi"]
    assert set(again.values()) == {"was asked again"}
    assert len(again) == 4
    (root / "x/b.avi").unlink()
    assert "b.avi" not in build(root)


def test_other_lists_of_the_same_root_share_the_index(root, monkeypatch):
    first, *others = videos_of(root)
    index_videos([first], root, workers=1, progress=False)
    index_videos(others, root, workers=1, progress=False)
    monkeypatch.setattr(module, "probe", ask_again)
    assert "was asked again" not in build(root).values()


def test_crashes_and_hangs_are_told_and_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "probe", act)
    (tmp_path / "x").mkdir()
    for name in ("good.mp4", "hang.mp4", "segfault.mp4"):
        (tmp_path / "x" / name).write_text("a video")
    errors = {
        "hang.mp4": "takes longer than 3 seconds to decode",
        "segfault.mp4": "ends the process that decodes it (SIGSEGV)",
    }
    good = {"good.mp4": act(Path("good.mp4"))}
    assert build(tmp_path, timeout=3.0) == good | errors
    kept = rows(tmp_path / "video_index.csv")
    assert {name: row[-1] for name, row in kept.items() if row[-1]} == {f"x/{name}": errors[name] for name in errors}
    (tmp_path / "x/good.mp4").unlink()
    (tmp_path / "x/mended").touch()
    infos = build(tmp_path, timeout=60.0)
    assert infos["hang.mp4"] == act(tmp_path / "x/hang.mp4")
    assert infos["segfault.mp4"] == act(tmp_path / "x/segfault.mp4")


def test_a_file_that_is_named_is_the_only_place(root, tmp_path, monkeypatch):
    infos = build(root, file=tmp_path / "elsewhere/index.csv")
    assert len(rows(tmp_path / "elsewhere/index.csv")) == 4
    assert not (root / "video_index.csv").exists()
    monkeypatch.setattr(module, "probe", ask_again)
    assert build(root, file=tmp_path / "elsewhere/index.csv") == infos


def test_of_two_processes_one_looks_and_the_other_waits(root):
    code = (
        "import sys, time; from pathlib import Path; from cgnl.data.videos import index\n"
        "root = Path(sys.argv[1])\n"
        "with index._alone(root / 'video_index.csv'):\n"
        "    print('alone', flush=True); time.sleep(1)\n"
        "    (root / 'done').touch()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "alone\n"
        build(root)
        assert (root / "done").exists()
    assert other.returncode == 0


def test_a_root_that_cannot_be_written_to(root, tmp_path, monkeypatch, caplog):
    # A folder in its place, as root may write anywhere.
    (root / "video_index.csv").mkdir()
    file = tmp_path / "run/video_index.csv"
    infos = build(root, otherwise=file)
    assert len(rows(file)) == 4
    monkeypatch.setattr(module, "probe", ask_again)
    assert build(root, otherwise=file) == infos
    assert (
        caplog.messages.count(
            f"{root / 'video_index.csv'} cannot be used (Is a directory): cgnl reads the videos again"
        )
        == 2
    )
    caplog.clear()
    assert set(build(root).values()) == {"was asked again"}
    assert "cannot save the index of the videos" in caplog.text
    assert list((root).glob(".*")) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version 2", "version 1"),
        ("path,bytes", "path,size"),
        (",8,25.0,32", ",0,25.0,32"),
        (",8,25.0,32", ",8,nan,32"),
        (",8,25.0,32", ",eight,25.0,32"),
        (",8,25.0,32", ",25.0,32"),
        ("x/a.mp4", '"x/a.mp4'),
    ],
)
def test_a_damaged_or_foreign_index_is_built_anew(root, caplog, old, new):
    infos = build(root)
    file = root / "video_index.csv"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with caplog.at_level(logging.WARNING):
        assert build(root) == infos
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"{file} cannot be used (")
    assert file.read_text() == text


def test_an_index_of_bytes_that_are_no_text(root, caplog):
    (root / "video_index.csv").write_bytes(bytes(range(256)))
    assert build(root)["a.mp4"] == probe(root / "x/a.mp4")
    assert "cannot be used (it has another version or none)" in caplog.text
    assert len(rows(root / "video_index.csv")) == 4


def test_an_interruption_keeps_what_is_done(root, monkeypatch):
    scan = module.scan_with_bar

    def interrupted(*arguments, **options):
        for done, result in enumerate(scan(*arguments, **options)):
            if done == 2:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(module, "scan_with_bar", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(root)
    assert len(rows(root / "video_index.csv")) == 2


_KILLED = """
import os, signal, sys
from pathlib import Path
from cgnl.data.videos import index

write = index._write

def write_and_die(file, entries):
    write(file, entries)
    if len(entries) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    root = Path(sys.argv[1])
    index._SECONDS_BETWEEN_WRITES = 0.0
    index._write = write_and_die
    index.index_videos(sorted((root / "x").iterdir()), root, workers=1)
"""


def test_a_killed_process_leaves_what_it_wrote(root, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(_KILLED)
    assert subprocess.run([sys.executable, script, root], check=False).returncode == -signal.SIGKILL
    assert len(rows(root / "video_index.csv")) == 2
    build(root)
    assert len(rows(root / "video_index.csv")) == 4


_ONE_OF_TWO = """
import sys
from pathlib import Path
from cgnl.data.videos import index

if __name__ == "__main__":
    root = Path(sys.argv[1])
    index._SECONDS_BETWEEN_WRITES = 0.0
    index.index_videos(sorted((root / "x").iterdir())[int(sys.argv[2])::2], root, workers=1)
"""


def test_two_processes_at_once_leave_a_good_index(root, tmp_path, caplog):
    script = tmp_path / "one.py"
    script.write_text(_ONE_OF_TWO)
    both = [subprocess.Popen([sys.executable, script, root, str(half)]) for half in (0, 1)]
    assert [process.wait() for process in both] == [0, 0]
    assert set(rows(root / "video_index.csv")) <= {f"x/{path.name}" for path in videos_of(root)}
    assert build(root)["b.avi"] == probe(root / "x/b.avi")
    assert len(rows(root / "video_index.csv")) == 4
    assert not caplog.messages


def test_videos_elsewhere(root, tmp_path):
    with pytest.raises(ValueError, match=r"videos \(.*other.mp4\) must be below root \(.*videos\)"):
        index_videos([tmp_path / "other.mp4"], root)
    assert index_videos([], root) == {}
    assert not (root / "video_index.csv").exists()


def test_a_missing_video_is_told_but_not_kept(root):
    (root / "x/link.mp4").symlink_to("nothing.mp4")
    infos = build(root)
    assert infos["link.mp4"] == "does not exist"
    assert rows(root / "video_index.csv")["x/link.mp4"][:2] == ["", ""]


def test_names_that_are_not_utf8(root, encoded, monkeypatch):
    (root / "x" / os.fsdecode(b"gr\xfcn.avi")).write_bytes(encoded["b.avi"])
    infos = build(root)
    assert infos[os.fsdecode(b"gr\xfcn.avi")] == infos["b.avi"]
    monkeypatch.setattr(module, "probe", ask_again)
    assert build(root) == infos
