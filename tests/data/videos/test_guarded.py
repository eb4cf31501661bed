"""The reader in a process of its own: the same frames, and an answer whatever becomes of that process."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from encoding import encode
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from cgnl.data.decoding import STOPPING, BadFileError, death_in_words
from cgnl.data.videos import GuardedReader, guarded, probe, read_frames


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return encode(tmp_path_factory.mktemp("videos") / "a.mp4", frames=40, options={"g": "12"})


def child(reader: GuardedReader) -> int:
    assert reader._child is not None
    return reader._child._process.pid


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def test_the_same_frames_from_one_process(video):
    with GuardedReader() as reader:
        for indices in ([3, 1, 1, 39], range(40), [50], [0]):
            frames, lost = reader.read(video, indices)
            expected = read_frames(video, indices)
            np.testing.assert_array_equal(frames, expected[0])
            assert lost == expected[1]
            pid = child(reader)
        assert child(reader) == pid
        frames[:] = 0  # they are the caller's own
        assert reader.read(video, [0])[0].any()
    assert ends(pid)


def test_errors_are_told_as_without_a_process(tmp_path, video):
    (tmp_path / "new\nline \udcff.avi").write_bytes(b"<html>")
    with GuardedReader() as reader:
        for path in (tmp_path / "none.mp4", tmp_path / "new\nline \udcff.avi"):
            with pytest.raises(BadFileError) as guarded:
                reader.read(path, [0])
            with pytest.raises(BadFileError) as direct:
                read_frames(path, [0])
            assert (guarded.value.path, guarded.value.reason) == (direct.value.path, direct.value.reason)
        with pytest.raises(ValueError, match=r"\(-1\) must be at least 0"):
            reader.read(video, [-1])
        assert reader.read(video, [0])[1] == 0
    with pytest.raises(ValueError, match=r"timeout \(0\)"):
        GuardedReader(timeout=0)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_crash_names_the_file_and_the_next_read_works(video, how):
    def crash() -> None:
        os.kill(pid, how)
        os.kill(pid, signal.SIGCONT)

    with GuardedReader() as reader:
        reader.read(video, [0])
        pid = child(reader)
        os.kill(pid, signal.SIGSTOP)  # so that it crashes after it got the request and before it answers
        crashing = threading.Timer(0.2, crash)
        crashing.start()
        with pytest.raises(BadFileError) as caught:
            reader.read(video, [39])
        assert str(caught.value) == f"{video} ends the process that decodes it ({death_in_words(-how)})"
        assert reader.read(video, [0])[1] == 0
        assert child(reader) != pid


def test_a_crash_between_two_reads_is_not_blamed_on_the_second(video):
    with GuardedReader() as reader:
        reader.read(video, [0])
        pid = child(reader)
        os.kill(pid, signal.SIGKILL)
        assert ends(pid)
        assert reader.read(video, [0])[1] == 0
        assert child(reader) != pid


@pytest.mark.parametrize("folder", [False, True])
def test_pieces_of_one_request(video, tmp_path, folder):
    for number, frame in enumerate(read_frames(video, range(20))[0]):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    path = tmp_path if folder else video
    wanted, pieces = [*range(0, 40, 3), 60], []
    with GuardedReader() as reader:
        lost = reader.read_pieces(path, wanted, 4, lambda place, frames: pieces.append((place, frames.copy())))
        expected = read_frames(path, wanted)
        assert [place for place, _ in pieces] == [0, 4, 8, 12]
        np.testing.assert_array_equal(np.concatenate([frames for _, frames in pieces]), expected[0])
        assert lost == expected[1] > 0
        assert reader.read(path, [0])[1] == 0


@pytest.mark.parametrize(
    ("wanted", "size", "rule"),
    [([3, 2], 1, "wanted must hold ascending"), ([3, 3], 1, "wanted must"), ([3], 0, r"size \(0\) must be at least 1")],
)
def test_wrong_pieces(video, wanted, size, rule):
    with pytest.raises(ValueError, match=rule):
        GuardedReader().read_pieces(video, wanted, size, print)


def test_pieces_after_one_of_which_something_happens(video):
    taken = []

    def stop(place: int, frames: np.ndarray) -> None:
        taken.append(place)
        os.kill(child(reader), signal.SIGSTOP)

    def fail(place: int, frames: np.ndarray) -> None:
        raise KeyError(place)

    with GuardedReader(timeout=0.5) as reader:
        with pytest.raises(BadFileError, match="takes longer than"):
            reader.read_pieces(video, range(40), 10, stop)
        assert taken == [0]
        reader.timeout = 60
        with pytest.raises(KeyError):
            reader.read_pieces(video, range(40), 10, fail)
        assert reader.read(video, [7])[1] == 0


def test_probing(video, tmp_path):
    (tmp_path / "page.avi").write_bytes(b"<html>")
    with GuardedReader(timeout=5) as reader:
        assert reader.probe(video) == probe(video)
        with pytest.raises(BadFileError, match=r"page.avi is not an MP4, .* but looks like an HTML or XML page"):
            reader.probe(tmp_path / "page.avi")
        reader._child._unread = b'{"frames": 0, "fps": 25, "width": 4, "height": 4, "promised": null}\n'
        with pytest.raises(BadFileError, match="send invalid data"):
            reader.probe(video)
        reader.timeout = 0.5
        reader.close()
        reader.probe(video)
        os.kill(child(reader), signal.SIGSTOP)
        with pytest.raises(BadFileError, match="takes longer than"):
            reader.probe(video)


def test_a_hang_names_the_file_and_the_next_read_works(video):
    with GuardedReader(timeout=0.5) as reader:
        reader.read(video, [0])
        pid = child(reader)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(BadFileError, match=r"takes longer than 0\.5 seconds to decode"):
            reader.read(video, [0])
        assert ends(pid)
        reader.timeout = 60
        assert reader.read(video, [0])[1] == 0


def test_frames_stay_as_they_are_while_others_are_read(video, monkeypatch):
    monkeypatch.setattr("cgnl.data.videos.guarded._KEPT_BYTES", 1 << 15)
    expected = read_frames(video, range(40))[0]
    with GuardedReader() as reader:
        kept = [reader.read(video, [number])[0][0] for number in range(20)]  # more than there are places for
        row = reader.read(video, [7, 7])[0][1, 3]
        for number in range(20):
            reader.read(video, [39 - number] * 3)
    np.testing.assert_array_equal(kept, expected[:20])
    np.testing.assert_array_equal(row, expected[7, 3])


def test_the_shared_memory_cannot_be_cut_short(video):
    with GuardedReader() as reader:
        reader.read(video, [0])
        with pytest.raises(PermissionError):
            os.truncate(f"/proc/{child(reader)}/fd/{reader._child._frames.file}", 0)


class Clips(Dataset):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.reader = GuardedReader()

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, int]:
        frames, _ = self.reader.read(self.path, [index, index + 20])
        return frames, os.getpid(), child(self.reader)


def test_in_the_workers_of_a_data_loader(video):
    data = Clips(video)
    data[0]  # a process of this one is there already, and stays out of the workers' business
    batches = list(DataLoader(data, num_workers=2, batch_size=None, multiprocessing_context="fork"))
    for index, (frames, _, _) in enumerate(batches):
        np.testing.assert_array_equal(frames, read_frames(video, [index, index + 20])[0])
    pairs = {(worker, pid) for _, worker, pid in batches}
    assert len(pairs) == len({pid for _, pid in pairs}) == 2
    assert child(data.reader) not in {pid for _, pid in pairs}
    assert all(ends(pid) for _, pid in pairs)
    assert data[0][2] == child(data.reader)


def test_a_copy_has_a_process_of_its_own(video):
    with GuardedReader(timeout=7) as reader:
        reader.read(video, [0])
        with pickle.loads(pickle.dumps(reader)) as copy:
            assert copy.timeout == 7
            assert copy.read(video, [0])[1] == 0
            assert child(copy) != child(reader)


PARENT = """
import sys, time
from cgnl.data.videos import GuardedReader
reader = GuardedReader()
reader.read(sys.argv[1], [0])
print(reader._child._process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_process_ends_with_its_parent(video, how):
    with subprocess.Popen([sys.executable, "-c", PARENT, str(video)], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.send_signal(how)
        parent.wait()
    assert ends(pid)


def test_ctrl_c_is_left_to_the_parent(video):
    with GuardedReader() as reader:
        reader.read(video, [0])
        assert os.getsid(child(reader)) != os.getsid(0)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_to_all_processes_of_a_run_is_left_to_the_parent(video, monkeypatch, number):
    """As a cluster sends it to every process of a job; one that starts just then is no exception."""
    wait = guarded._Child._reply

    def send(process, *arguments):
        os.kill(process._process.pid, number)
        return wait(process, *arguments)

    monkeypatch.setattr(guarded._Child, "_reply", send)
    with GuardedReader() as reader:
        for frame in (0, 39):
            assert reader.read(video, [frame])[1] == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_killed_or_stopped_while_it_starts_is_started_again(video, monkeypatch, number):
    wait, started = guarded._Child._reply, []

    def end_the_first(process, seconds, *more):
        if not started:
            os.kill(process._process.pid, number)
        started.append(process)
        return wait(process, 0.2 if len(started) == 1 else seconds, *more)

    monkeypatch.setattr(guarded._Child, "_reply", end_the_first)
    with GuardedReader() as reader:
        assert reader.read(video, [0])[1] == 0
    assert len({id(process) for process in started}) == 2


def test_a_process_whose_parent_is_gone_ends_in_silence():
    command = [sys.executable, "-m", guarded.__name__, "0", "60", ""]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


def test_nothing_is_left_open(video, tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2):
        reader = GuardedReader()
        reader.read(video, [0])
        del reader
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    "reply",
    [
        b"{}",
        b"[]",
        b"not JSON",
        b'{"height": 1000000, "width": 1000000, "lost": 0}',
        b'{"height": -1, "width": -1, "lost": 0}',
        b'{"height": "x", "width": 2, "lost": 0}',
        b'{"bad": "x", "path": 3}',
    ],
)
def test_a_process_that_answers_nonsense(video, reply):
    """What a decoder that was taken over might say is not believed."""
    with GuardedReader() as reader:
        reader.read(video, [0])
        reader._child._unread = reply + b"\n"
        with pytest.raises(BadFileError, match="send invalid data"):
            reader.read(video, [0])
        assert reader.read(video, [0])[1] == 0


def test_the_process_does_not_load_torch(video):
    with GuardedReader() as reader:
        reader.read(video, [0])
        assert "libtorch" not in Path(f"/proc/{child(reader)}/maps").read_text()
    code = "import sys, cgnl.data.videos, cgnl.data.videos.decoding; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_module_in_the_working_folder_is_not_taken_for_another(video, tmp_path, monkeypatch):
    (tmp_path / "av.py").write_text("raise SystemExit('the wrong av')")
    monkeypatch.chdir(tmp_path)
    with GuardedReader() as reader:
        assert reader.read(video, [0])[1] == 0
