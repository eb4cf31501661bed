"""Kill, fill, double, signal and change small runs, resume them, and compare them with an unbroken run, bit by bit.

    python studies/campaign/processes.py kills disks two signals data

A part is one of these words; without any, all run. Each writes studies/results/reliability/PART.json. Commands are real
processes, which start as forks (tests/processes.py). `disks` mounts file systems in memory and needs root.
"""

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from runs import (
    CHECKPOINTS,
    HERE,
    SHARED,
    TASKS,
    WAIT,
    Command,
    Place,
    Row,
    alive,
    descendants,
    differences,
    disk,
    ended,
    entry,
    half_files,
    remount,
    resumed,
    told,
    unsound,
)  # fmt: skip

from cgnl.measure.record import write_result

# 1. Kills


def phase_of(run: Path, over: bool) -> str:
    """Say where in a run its end came, from what it has left."""
    if over:
        return "after the end"
    parts = [path.name.removeprefix(".").removesuffix(".part") for path in run.glob(".*.part")]
    if parts:
        return f"in a write of {parts[0]}"
    last, best = entry(run, "last.ckpt"), entry(run, "best.ckpt")
    if last is None and best is None:
        return "before the first checkpoint"
    if best is not None and (last is None or best["step"] > last["step"]):
        return "between best.ckpt and last.ckpt"
    assert last is not None
    epochs = [*csv.reader((run / "epochs.csv").open(newline=""))][1:] if (run / "epochs.csv").exists() else []
    if epochs and int(epochs[-1][0]) > last["step"]:
        return "between epochs.csv and a checkpoint"
    return "in a step or test" if last["batch"] else "after an epoch"


def kill(place: Place, task: str, run: Path, options: list[str], *, at_a_write: bool) -> tuple[str, list[int]]:
    """Start or go on with a run and kill it; return where it was, and the processes that it had."""
    seconds = place.random.uniform(0, place.reference(task)[1] * 1.1)
    writes, seen, before = place.random.randrange(1, 20), 0, False
    command = place.train(task, run, *options)
    began = time.monotonic()
    while command.poll() is None and (at_a_write or time.monotonic() - began < seconds):
        if at_a_write:
            now = any((run / f".{name}.part").exists() for name in CHECKPOINTS)
            seen, before = seen + (now and not before), now
            if seen >= writes:
                break
        else:
            time.sleep(0.001)
    others = descendants(command.pid)
    over = command.poll() is not None
    if not over:
        command.kill()
    command.wait()
    return phase_of(run, over), others


def kills(place: Place) -> list[dict[str, Any]]:
    """Kill runs at random moments, some of them twice, a third of them while they write a checkpoint."""
    rows = []
    for task in TASKS:
        for workers in (0, 1):
            row = Row(f"{task}, {workers} readers: SIGKILL at a random moment, resume")
            for number in range(11):
                run, options, others, phases = place.new(), [f"--data.workers={workers}"], [], []
                while len(phases) < 1 + number % 2:
                    phase, left = kill(place, task, run, options, at_a_write=number % 3 == 2)
                    if phase == "after the end":  # it was faster than the first: another run
                        run, options, phases = place.new(), [f"--data.workers={workers}"], []
                        continue
                    others += left
                    phases.append(phase)
                    options = [f"--data.workers={workers}", "--resume"]
                problems = resumed(place, task, run, f"--data.workers={workers}", evaluated=True)
                deadline = time.monotonic() + 20
                while alive(others) and time.monotonic() < deadline:
                    time.sleep(0.1)
                problems += [f"a process of a killed run lives on: {pid}" for pid in alive(others)]
                row.add(problems, phase=phases[-1])
                for phase in phases[:-1]:
                    row.phases[phase] += 1
            rows.append(row.record())
    return rows


# 2. Disks


def on_a_full_disk(place: Place, row: Row, task: str, size: str) -> None:
    """Train on a disk of a size, enlarge it, resume."""
    with disk(place.folder / f"disk{place.tries}", size) as folder:
        run = folder / "run"
        code, output = ended(place.train(task, run, "--data.workers=0"))
        problems = unsound(run) + told(code, output)
        remount(folder, "size=900M")
        place.tries += 1
        problems += resumed(place, task, run, "--data.workers=0")
        row.add(problems, place.plain(output), phase="it was full" if code else "there was room")


def disks(place: Place) -> list[dict[str, Any]]:
    """Fill the disk of runs, at first or while they run, and make room again."""
    rows = []
    for size in ("30M", "150M", "200M"):
        row = Row(f"a disk of {size[:-1]} MB, checkpoints of 90 MB; enlarge it, resume")
        on_a_full_disk(place, row, "large", size)
        rows.append(row.record())
    row = Row("disks of 4 to 280 KB, checkpoints of 57 KB; enlarge it, resume")
    for pages in (*range(1, 12), *range(12, 71, 4)):
        on_a_full_disk(place, row, "images", f"{4 * pages}k")
    rows.append(row.record())
    row = Row("videos, disks of 4 to 300 KB, checkpoints of 90 KB; enlarge it, resume")
    for pages in (*range(1, 8), *range(8, 76, 8)):
        on_a_full_disk(place, row, "videos", f"{4 * pages}k")
    rows.append(row.record())
    rows.append(filled_by_others(place).record())
    rows.append(evaluated_on_a_full_disk(place).record())
    return rows


def filled_by_others(place: Place) -> Row:
    """Fill a disk while runs write, at a random moment; make room, resume."""
    row = Row("another program fills the disk while a run writes; make room, resume")
    for _ in range(10):
        with disk(place.folder / f"disk{place.tries}", "2M") as folder:
            run, seconds = folder / "run", place.random.uniform(0, place.reference("images")[1])
            command = place.train("images", run, "--data.workers=1")
            time.sleep(seconds)
            subprocess.run(["dd", "if=/dev/zero", f"of={folder / 'other'}", "bs=4k"], capture_output=True)
            code, output = ended(command)
            problems = unsound(run) + told(code, output)
            (folder / "other").unlink()
            place.tries += 1
            problems += resumed(place, "images", run, "--data.workers=1")
            row.add(problems, place.plain(output), phase="it was full" if code else "there was room")
    return row


def evaluated_on_a_full_disk(place: Place) -> Row:
    """Write the tables of a test on disks too small for them."""
    row = Row("cgnl evaluate --out on a disk of 4 to 16 KB")
    run, _ = place.reference("images")
    for pages in range(1, 5):
        with disk(place.folder / f"disk{place.tries}", f"{4 * pages}k") as folder:
            place.tries += 1
            code, output = ended(place.start("evaluate", run, f"--out={folder / 'tables'}"))
            row.add(told(code, output) + half_files(folder), place.plain(output))
    return row


# 3. Two at once


def two(place: Place) -> list[dict[str, Any]]:
    """Start commands that want the same folder at the same time."""
    rows = [together(place, stopped) for stopped in (False, True)]
    rows.append(resume_of_a_live_run(place))
    rows.append(tests_together(place))
    rows.append(tests_of_a_live_run(place))
    rows.append(videos_without_index(place))
    rows.append(impossible_folders(place))
    return [row.record() for row in rows]


def together(place: Place, stopped: bool) -> Row:
    """Start two trainings in one folder, new or of a killed run."""
    row = Row("two --resume of a killed run at once" if stopped else "two trainings at once into one new folder")
    for number in range(10):
        task = ("images", "videos")[number % 2]
        run = place.new()
        options = ["--resume"] if stopped else []
        if stopped:
            kill(place, task, run, [], at_a_write=True)
        commands = [place.train(task, run, "--data.workers=0", *options) for _ in range(2)]
        results = [ended(command) for command in commands]
        codes = sorted(code for code, _ in results)
        problems = [problem for code, output in results for problem in told(code, output)]
        # the second may find the run of the first complete
        if codes != [0, 2] and not (stopped and codes == [0, 0]):
            problems.append(f"exit codes {codes}")
        problems += differences(run, place.reference(task)[0]) + half_files(run)
        row.add(problems, [line for _, output in results for line in place.plain(output)])
    return row


def resume_of_a_live_run(place: Place) -> Row:
    """Resume a run that is running."""
    row = Row("--resume of a run that is running")
    for number in range(6):
        task, run = ("images", "videos")[number % 2], place.new()
        command = place.train(task, run, "--data.workers=1")
        while not (run / "steps.csv").exists() and command.poll() is None:
            time.sleep(0.001)
        code, output = ended(place.train(task, run, "--resume", "--data.workers=1"))
        problems = told(code, output, 2) if "already" not in output else []
        problems += told(*ended(command), 0) + differences(run, place.reference(task)[0]) + half_files(run)
        row.add(problems, place.plain(output))
    return row


def tests_together(place: Place) -> Row:
    """Test a run twice at the same time, with the same folder for the tables."""
    row = Row("two cgnl evaluate of a run at once")
    for number in range(10):
        run, _ = place.reference(("images", "videos")[number % 2])
        shutil.rmtree(run / "evaluation", ignore_errors=True)
        results = [ended(command) for command in [place.start("evaluate", run) for _ in range(2)]]
        problems = [problem for code, output in results for problem in told(code, output)]
        problems += half_files(run) + ["none of the two was done"] * all(code for code, _ in results)
        json.loads((run / "evaluation" / "measures.json").read_text())
        row.add(problems, [line for _, output in results for line in place.plain(output)])
    return row


def tests_of_a_live_run(place: Place) -> Row:
    """Test a run at random moments while it is training."""
    row = Row("cgnl evaluate of a run that is training")
    for _ in range(6):
        run = place.new()
        command = place.train("images", run, "--data.workers=0")
        time.sleep(place.random.uniform(0, place.reference("images")[1]))
        code, output = ended(place.start("evaluate", run))
        problems = told(code, output) + told(*ended(command), 0)
        problems += differences(run, place.reference("images")[0]) + half_files(run)
        row.add(problems, place.plain(output))
    return row


def videos_without_index(place: Place) -> Row:
    """Start two trainings on videos of which nobody has made the index yet; kill one of a second pair."""
    row = Row("two trainings at once on videos without an index, one of them killed or not")
    for number in range(8):
        data = shutil.copytree(place.folder / "videos", place.folder / f"videos{place.tries}")
        for index in data.rglob("*video_index*"):
            index.unlink()
        runs = [place.new(), place.new()]
        option = f"--data.root={data.name}"
        commands = [place.train("videos", run, "--data.workers=0", option) for run in runs]
        if number % 2:
            time.sleep(place.random.uniform(0, 0.5))
            commands[0].kill()
            commands[0].wait()
        problems = [problem for command in commands[number % 2 :] for problem in told(*ended(command), 0)]
        problems += [problem for run in runs for problem in resumed(place, "videos", run, "--data.workers=0", option)]
        problems += half_files(data)
        row.add(problems)
        shutil.rmtree(data)
    return row


def impossible_folders(place: Place) -> Row:
    """Train into a file, below a file, and on a read-only disk."""
    row = Row("a run folder that is a file, lies below one, or is read-only")
    file = place.folder / "file"
    file.write_text("mine")
    for run in (file, file / "run"):
        for option in ([], ["--resume"]):
            code, output = ended(place.train("images", run, *option))
            row.add(told(code, output, 2), place.plain(output))
    if file.read_text() != "mine":
        row.lost.append("the file was written to")
    with disk(place.folder / f"disk{place.tries}", "10M") as folder:
        shutil.copytree(place.reference("images")[0], folder / "run")
        if remount(folder, "ro"):
            row.lost.append("the disk could not be made read-only")
        place.tries += 1
        for run, command in (
            ("new", place.train("images", folder / "new")),
            ("run", place.train("images", folder / "run", "--resume")),
            ("run", place.start("evaluate", folder / "run")),
        ):
            code, output = ended(command)
            row.add(told(code, output, 2), place.plain(output), phase=run)
    return row


# 4. Signals


def signals(place: Place) -> list[dict[str, Any]]:
    """Send signals to the training process, its readers and their decoders."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    rows = [signalled(place, number, twice=twice) for number in numbers for twice in (False, True)]
    rows.append(paused(place))
    rows += [reader(place, fate) for fate in ("killed", "stopped", "holding Python's lock")]
    rows += [decoder(place, fate) for fate in ("killed", "stopped")]
    rows.append(while_importing(place))
    return [row.record() for row in rows]


def signalled(place: Place, number: signal.Signals, *, twice: bool) -> Row:
    """Send a signal at random moments, to the training process or to all of its processes; resume."""
    row = Row(f"{number.name}{' twice' if twice else ''} at a random moment, resume")
    for trial in range(4 if twice else 8):
        task, workers, run = ("images", "videos")[trial % 2], trial // 2 % 2, place.new()
        command = place.train(task, run, f"--data.workers={workers}")
        time.sleep(place.random.uniform(0.1, place.reference(task)[1]))
        # as Ctrl-C in a terminal, to all
        targets = [command.pid, *(descendants(command.pid) if trial >= 4 else [])]
        for _ in range(1 + twice):
            for pid in alive(targets):
                os.kill(pid, number)
            time.sleep(0.02 * twice)
        code, output = ended(command)
        # without its handler a process dies of the signal, before there is anything to save
        problems = told(code, output, 0, 128 + number, -number)
        problems += unsound(run) if code >= 0 else []
        problems += resumed(place, task, run, f"--data.workers={workers}")
        ends = {0: "it had ended", -number: "before the training"}.get(code, "stopped and saved")
        row.add(problems, place.plain(output), phase=ends)
    return row


def paused(place: Place) -> Row:
    """Stop a run with its readers for longer than they may take, and let it go on."""
    row = Row("a run and its readers stopped for 6 seconds (Ctrl-Z, fg), longer than data.timeout")
    for task in TASKS:
        run = place.new()
        command = place.train(task, run, "--data.workers=1")
        wait_for(run / "steps.csv", command)
        pids = [command.pid, *descendants(command.pid)]
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in alive(pids):
                os.kill(pid, number)
            time.sleep(6 * (number == signal.SIGSTOP))
        code, output = ended(command)
        row.add(told(code, output, 0) + (differences(run, place.reference(task)[0]) if not code else []))
    return row


def wait_for(path: Path, command: Command) -> None:
    """Wait until a file is there, or the command over."""
    while not path.exists() and command.poll() is None:
        time.sleep(0.001)


def reader(place: Place, fate: str) -> Row:
    """Do something to a reader while a run trains; resume."""
    row = Row(f"a reader {fate}, resume")
    for trial in range(8):
        task, run = ("images", "videos")[trial % 2], place.new()
        command = place.train(task, run, f"--data.workers={1 + trial // 4}")
        while not (pids := readers_of(command)) and command.poll() is None:
            time.sleep(0.001)
        time.sleep(place.random.uniform(0, place.reference(task)[1] / 3))
        pids = alive(readers_of(command))
        if fate == "holding Python's lock":
            (place.folder / "hold").touch()
        elif pids:
            os.kill(place.random.choice(pids), signal.SIGKILL if fate == "killed" else signal.SIGSTOP)
        code, output = ended(command)
        (place.folder / "hold").unlink(missing_ok=True)
        problems = told(code, output) + unsound(run)
        if code == 2 and "died or hangs" not in output:
            problems.append(f"the reader is not named: {output[-300:]}")
        problems += resumed(place, task, run, "--data.workers=1")
        problems += [f"a process lives on: {pid}" for pid in alive(pids)]
        row.add(problems, place.plain(output), phase="told" if code else "it had ended")
    return row


def readers_of(command: Command) -> list[int]:
    """Return the readers of a training process: its forks."""
    return [pid for pid in descendants(command.pid) if b"guarded" not in command_line(pid)]


def decoders_of(command: Command, *, loaded: bool = False) -> list[int]:
    """Return the processes that decode videos for a training process, or those that have loaded the decoders."""
    pids = [pid for pid in descendants(command.pid) if b"guarded" in command_line(pid)]
    return [pid for pid in pids if not loaded or "avcodec" in maps(pid)]


def maps(pid: int) -> str:
    """Return which files a process has in memory."""
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""


def command_line(pid: int) -> bytes:
    """Return the command of a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def decoder(place: Place, fate: str) -> Row:
    """Kill or stop a process that decodes videos while a run trains."""
    row = Row(f"a decoder of videos {fate}")
    for trial in range(8):
        run = place.new()
        command = place.train("videos", run, f"--data.workers={trial % 2}")
        # one that is stopped while it starts has two minutes
        while not (pids := decoders_of(command, loaded=fate == "stopped")) and command.poll() is None:
            time.sleep(0.001)
        time.sleep(place.random.uniform(0, 0.3))
        pids = alive(decoders_of(command))
        for pid in pids[:1]:
            os.kill(pid, signal.SIGKILL if fate == "killed" else signal.SIGSTOP)
        code, output = ended(command)
        problems = told(code, output) + unsound(run)
        if code == 0:
            differing = differences(run, place.reference("videos")[0])
            # a video that is left out for once changes the run, and must be named
            named = (run / "bad_files.csv").exists() and "unreadable" in output
            problems += differing if not named else []
        else:
            problems += resumed(place, "videos", run, f"--data.workers={trial % 2}")
        ends = "no decoder was there" if not pids else "told" if place.plain(output) else "nothing was lost"
        row.add(problems, place.plain(output), phase=ends)
    return row


def while_importing(place: Place) -> Row:
    """Send SIGINT while Python still imports: here the command is a Python of its own."""
    row = Row("SIGINT while the command still imports")
    for seconds in (0.3, 0.6, 1.2, 2.0, 3.0, 4.0):
        run = place.new()
        command = [
            sys.executable,
            "-m",
            "cgnl",
            "train",
            *TASKS["images"],
            *SHARED,
            "--data.root=images",
            f"--run={run}",
        ]
        process = subprocess.Popen(
            [*command, "--trust", "user_code"],
            cwd=place.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=WAIT)[0]
        row.add(told(process.returncode, output, 130, -2), place.plain(output))
    return row


# 5. Other data


def _remove(data: Path, files: list[Path]) -> None:
    files[0].unlink()


def _add(data: Path, files: list[Path]) -> None:
    shutil.copy(files[0], files[0].with_name(f"new{files[0].suffix}"))


def _rename(data: Path, files: list[Path]) -> None:
    files[0].rename(files[0].with_name(f"other{files[0].suffix}"))


def _move(data: Path, files: list[Path]) -> None:
    there = next(path.parent for path in files if path.parent != files[0].parent)
    files[0].rename(there / f"moved{files[0].suffix}")


def _swap(data: Path, files: list[Path]) -> None:
    there = next(path for path in files if path.parent != files[0].parent)
    files[0].rename(data / "between")
    there.rename(files[0])
    (data / "between").rename(there)


def _change(data: Path, files: list[Path]) -> None:
    content = bytearray(files[0].read_bytes())
    # the same size and the same date
    state = files[0].stat()
    content[len(content) // 2] ^= 1
    files[0].write_bytes(content)
    os.utime(files[0], ns=(state.st_atime_ns, state.st_mtime_ns))


def _empty(data: Path, files: list[Path]) -> None:
    files[0].write_bytes(b"")


def _add_class(data: Path, files: list[Path]) -> None:
    folder = files[0].parent.with_name("another")
    folder.mkdir()
    shutil.copy(files[0], folder)


def _rename_class(data: Path, files: list[Path]) -> None:
    files[0].parent.rename(files[0].parent.with_name("another"))


def _remove_split(data: Path, files: list[Path]) -> None:
    for path in files:
        path.unlink()


CHANGES: dict[str, Callable[[Path, list[Path]], None]] = {
    "removed": _remove,
    "added": _add,
    "renamed": _rename,
    "moved to another class": _move,
    "exchanged between two classes": _swap,
    "with one other bit, size and date as before": _change,
    "emptied": _empty,
}
CLASS_CHANGES: dict[str, Callable[[Path, list[Path]], None]] = {
    "a class added": _add_class,
    "a class renamed": _rename_class,
    "all files of the split removed": _remove_split,
}


def data(place: Place) -> list[dict[str, Any]]:
    """Change the data of stopped runs; put it back, and resume."""
    rows = []
    for words, change in {**CHANGES, **CLASS_CHANGES}.items():
        row = Row(f"{words if words in CLASS_CHANGES else f'a file {words}'} after a stop; put back, resume")
        for sort in TASKS:
            for split in ("train", "val", "test"):
                changed(place, row, sort, split, change)
        rows.append(row.record())
    row = Row("a copy of the data elsewhere, with other dates, after a stop; resume")
    for sort in TASKS:
        changed(place, row, sort, "train", None)
    return [*rows, row.record()]


def folders_of(place: Place, sort: str) -> Path:
    """Return a data set with folders for its three splits."""
    root = place.folder / f"{sort}-in-three"
    if not root.exists():
        for number, path in enumerate(sorted((place.folder / sort).rglob("*.avi" if sort == "videos" else "*.jpg"))):
            split = ("train", "train", "val", "test")[number % 4] if sort == "images" else None
            label = path.parent.name
            for each in [split] if split else ["train", "val", "test"]:
                folder = root / each / label
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder / f"{number}{path.suffix}")
                if sort == "videos":  # three videos of each class: all three splits have them, with other ends
                    with (folder / f"{number}{path.suffix}").open("ab") as file:
                        file.write(each.encode())
    return root


def changed(place: Place, row: Row, sort: str, split: str, change: Callable[[Path, list[Path]], None] | None) -> None:
    """Stop a run, change its data, resume; then put the data back and resume again."""
    root = folders_of(place, sort)
    given = [option for option in TASKS[sort] if "format" not in option]
    options = [*given, *SHARED, "--data.format=folders", "--data.workers=0", "--data.missing-limit=0.5"]
    whole = place.folder / "runs" / f"{sort}-unbroken"
    if not whole.exists():
        code, output = ended(place.start("train", *options, f"--data.root={root}", f"--run={whole}"))
        assert code == 0, output
    run = place.new()
    copy = shutil.copytree(root, place.folder / f"copy{place.tries}")
    command = place.start("train", *options, f"--data.root={copy}", f"--run={run}")
    wait_for(run / "last.ckpt", command)
    command.kill()
    command.wait()
    if change is not None:
        change(copy, sorted((copy / split).rglob("*.*")))
        kept = {path.name: path.read_bytes() for path in run.glob("*.ckpt")}
        code, output = ended(place.start("train", *options, f"--data.root={copy}", f"--run={run}", "--resume"))
        problems = told(code, output, 2)
        if {path.name: path.read_bytes() for path in run.glob("*.ckpt")} != kept:
            problems.append("a checkpoint was written")
    else:
        problems, output = [], ""
        for path in copy.rglob("*.*"):
            os.utime(path, (0, 0))
    if change is not None:
        shutil.rmtree(copy)
        shutil.copytree(root, copy)
    code, then = ended(place.start("train", *options, f"--data.root={copy}", f"--run={run}", "--resume"))
    problems += told(code, then, 0) or differences(run, whole)
    row.add(problems, [line.replace(f"/{copy.name}", "DATA") for line in place.plain(output)])
    shutil.rmtree(copy)


PARTS: dict[str, Callable[[Place], list[dict[str, Any]]]] = {
    function.__name__: function for function in (kills, disks, two, signals, data)
}


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help="kills, disks, two, ...; all")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "reliability", help="folder of records")
    parser.add_argument("--folder", type=Path, help="folder to work in; by default one of the system's, removed again")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # a shell ignores it for commands in the background, and so would those that start here
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for part in arguments.parts or PARTS:
        with tempfile.TemporaryDirectory(dir=arguments.folder, prefix=f"campaign-{part}-") as folder:
            rows = PARTS[part](Place(Path(folder), arguments.seed))
        write_result(arguments.out / f"{part}.json", seed=arguments.seed, settings={"part": part}, rows=rows)
        tried, equal = (sum(row[key] for row in rows) for key in ("tried", "equal"))
        print(f"{part}: {tried} tries, {equal} as they should be")
        for row in rows:
            for problem in row["lost"]:
                print(f"  {row['what']}: {problem}")


if __name__ == "__main__":
    main()
