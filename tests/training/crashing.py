"""Train a tiny run again and again, each time stopped at another of its writes, then resumed; print what is left.

    python crashing.py DATA FOLDER kill | full POINT ...

Every training is a fork of this process, which has imported PyTorch but not used it. A write is a flush to the disk
(the file is written, and not yet in its place) or a rename; `full` lets it fail as on a full disk.
"""

import csv
import errno
import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch

import cgnl.files
from cgnl.cli import main
from cgnl.tasks import train  # noqa: F401 - before the forks
from cgnl.training import run as _run  # noqa: F401

OPTIONS = (
    "--network.arch=timm:test_resnet --network.dropout=0.5 --network.weights=None --data.format=folders "
    "--data.size=32 --data.resize=36 --data.batch-size=12 --data.workers=0 --data.mixup=0.2 --optimizer.lr=0.01 "
    "--schedule.kind=constant --trainer.max-epochs=4 --trainer.log-every-n-steps=1 "
    "--trainer.checkpoint-every-n-steps=1 --trainer.ema-decay=0.5"
).split()


def in_a_fork(work, log: Path) -> int:
    """Do some work in a process of its own; return its exit code, minus the signal that ended it."""
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = 1
        try:
            work()
            code = 0
        except SystemExit as exit:
            code = exit.code
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def command(data: Path, run: Path, *options: str):
    return lambda: main(["train", "birds-resnet18-cgnl", f"--data.root={data}", f"--run={run}", *OPTIONS, *options])


def counted(work, happens, events: Path | None = None):
    """Return work that calls ``happens`` with the number of each write, before it ends."""

    def counting():
        number = 0

        def count(name: str) -> None:
            nonlocal number
            if events is not None:
                with events.open("a") as file:
                    file.write(f"{name}\n")
            happens(number)
            number += 1

        fsync, replace = os.fsync, Path.replace

        def flushing(file: int) -> None:
            count(f"flush {Path(f'/proc/self/fd/{file}').readlink().name}")
            fsync(file)

        def renaming(path: Path, target: Path) -> Path:
            count(f"rename {Path(target).name}")
            return replace(path, target)

        cgnl.files.os.fsync, Path.replace = flushing, renaming
        work()

    return counting


def left(run: Path) -> dict:
    """Return what a run has left, without times."""
    found: dict = {"files": sorted(path.name for path in run.iterdir() if path.name not in (".lock", "tensorboard"))}
    for name in ("best.ckpt", "last.ckpt"):
        checkpoint = torch.load(run / name, weights_only=True)
        digest = hashlib.sha256()
        for key, value in sorted(checkpoint["state_dict"].items()):
            digest.update(key.encode() + value.numpy().tobytes())
        found[name] = [digest.hexdigest(), checkpoint["cgnl"]["best"], checkpoint["cgnl"]["step"]]
    for name in ("epochs.csv", "steps.csv", "blocks.csv"):
        with (run / name).open(newline="") as file:
            found[name] = [row if name == "blocks.csv" else row[:-1] for row in csv.reader(file)]
    return found


def stop(kind: str, at: int):
    def happens(number: int) -> None:
        if number == at and kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if number >= at and kind == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return happens


def crash(data: Path, folder: Path, kind: str, *points: str) -> None:
    reference = folder / "reference"
    events = folder / "events"
    assert in_a_fork(counted(command(data, reference), lambda number: None, events), folder / "log") == 0
    names = events.read_text().splitlines()
    print(json.dumps({"events": names, "left": left(reference)}))
    for at in map(int, points):
        run, log = folder / f"{kind}{at}", folder / "log"
        code = in_a_fork(counted(command(data, run), stop(kind, at)), log)
        said = log.read_text()
        again = in_a_fork(command(data, run, "--resume"), log)
        outcome = {"at": names[at], "code": code, "said": said, "resumed": again, "then": log.read_text()}
        print(json.dumps({**outcome, "left": left(run) if again == 0 else None}))


if __name__ == "__main__":
    crash(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
