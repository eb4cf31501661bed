"""Systems that lack some of Linux's names: files open, videos decode, networks train and are used."""

import subprocess
import sys
from pathlib import Path

import pytest

# what macOS or Windows do not have
PRELUDE = """
import os, select, signal, sys, types
import filelock, torch.utils.data
import lightning.pytorch.trainer.connectors.signal_connector as connector
# libraries know by the system's name what is not there, and these two are made for this system
filelock.FileLock = filelock.SoftFileLock
connector.signal = types.SimpleNamespace(**vars(signal))
for module in ("fcntl", "resource"):
    sys.modules[module] = None
for owner, names in {
    os: ("O_NONBLOCK", "O_CLOEXEC", "memfd_create", "sched_getaffinity", "register_at_fork"),
    signal: ("SIGUSR1", "SIGUSR2", "SIGHUP", "setitimer", "ITIMER_REAL", "alarm"),
    select: ("poll",),
}.items():
    for name in names:
        if hasattr(owner, name):
            delattr(owner, name)
from cgnl.cli import main
"""


def run(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", PRELUDE + code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_images_are_read_trained_on_and_explained(tmp_path):
    said = run(
        """
main("train birds-resnet18-cgnl --smoke --run run".split())
main("train birds-resnet18-cgnl --smoke --run run --resume".split())
main("evaluate run --data.workers 1".split())
image = next(str(path) for path in __import__("pathlib").Path("run/birds").rglob("*.jpg"))
main(["predict", "run", image])
main(["data", "check", "run/birds"])
import cgnl.measure.memory
""",
        tmp_path,
    )
    assert "the run was already complete" in said
    assert "top-1" in said
    assert "nothing" in said.lower() or "no finding" in said.lower() or "good" in said.lower()


@pytest.mark.slow
def test_videos_are_indexed_and_decoded(tmp_path):
    from cgnl.data.videos import GuardedReader
    from cgnl.toy.actions import draw_actions

    draw_actions(tmp_path / "drawn", num_classes=2, groups=3, clips_per_group=1, size=(64, 48), seed=0)
    video = next((tmp_path / "drawn").rglob("*.avi"))
    said = run(
        f"""
from pathlib import Path
from cgnl.data.videos import GuardedReader, index_videos
import numpy as np
path = Path({str(video)!r})
info = index_videos([path], path.parent)[path]
with GuardedReader() as reader:
    assert reader.probe(path) == info
    frames, lost = reader.read(path, [5, 2, 2])
    pieces = []
    reader.read_pieces(path, [1, 2, 3], 2, lambda first, some: pieces.append((first, some.copy())))
    np.savez("read.npz", frames=frames, times=reader.times(path), first=pieces[0][1], lost=lost)
main("train actions-resnet18-cgnl --smoke --run run".split())
""",
        tmp_path,
    )
    assert "last epoch" in said
    import numpy as np

    read = np.load(tmp_path / "read.npz")
    with GuardedReader() as reader:
        frames, _ = reader.read(video, [5, 2, 2])
        assert (read["frames"] == frames).all()
        assert (read["times"] == reader.times(video)).all()
        assert (read["first"] == reader.read(video, [1, 2])[0]).all()
