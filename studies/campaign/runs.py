"""What the campaign's parts share: its folder, commands and their processes, disks, and comparisons of runs."""

import csv
import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cgnl.toy.actions import draw_actions

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "tests"), str(HERE)]

from conftest import draw_class_folders  # noqa: E402
from processes import Command  # noqa: E402

CHECKPOINTS, LOGS = ("best.ckpt", "last.ckpt"), ("epochs.csv", "steps.csv")
SHARED = (
    "--network.weights=None --data.size=32 --data.resize=36 --data.mixup=0.2 --data.bad-limit=0.5 --data.timeout=4 "
    "--optimizer.name=sgd --optimizer.lr=0.05 --schedule.kind=constant --trainer.max-epochs=6 --trainer.ema-decay=0.5 "
    "--trainer.accumulate=2 --trainer.log-every-n-steps=1 --trainer.checkpoint-every-n-steps=1 --network.places body"
).split()
TASKS = {
    "images": "birds-resnet18-cgnl --data.format=folders --data.batch-size=8 --network.arch=user_code.images".split(),
    "videos": (
        "actions-resnet18-cgnl --data.num-frames=4 --data.frame-step=8 --data.batch-size=4 --data.test-clips=1 "
        "--data.test-crops=1 --data.decode-timeout=2 --network.arch=user_code.videos"
    ).split(),
}
# a checkpoint of 90 MB: a disk of 30 MB holds none, one of 150 MB the first, one of 200 MB two and no third
LARGE = (
    "birds-resnet18-cgnl --network.dropout=0.5 --network.weights=None --data.format=folders --data.size=32 "
    "--data.resize=36 --data.batch-size=12 --data.workers=0 --optimizer.lr=0.01 --optimizer.name=sgd "
    "--schedule.kind=constant --trainer.max-epochs=2 --trainer.log-every-n-steps=1 "
    "--trainer.checkpoint-every-n-steps=1"
).split()
# longer than a process that decodes videos has for its start
WAIT = 300


class Place:
    """The folder of a campaign: its data, its unbroken runs, and a new folder for each try."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.tries = 0
        self.unbroken: dict[str, tuple[Path, float]] = {}
        shutil.copy(HERE / "user_code.py", folder)
        draw_class_folders(folder / "images")
        draw_actions(folder / "videos", num_classes=4, groups=3, clips_per_group=1, size=(64, 48), workers=1)

    def new(self) -> Path:
        """Return the path of another run."""
        self.tries += 1
        return self.folder / "runs" / f"{self.tries}"

    def start(self, *arguments: object) -> Command:
        """Start cgnl with arguments, in the campaign's folder."""
        return Command(*arguments, "--trust", "user_code", folder=self.folder, environment={"COLUMNS": "1000"})

    def train(self, task: str, run: Path, *options: str) -> Command:
        """Start a training, or go on with one."""
        data = next((option for option in options if option.startswith("--data.root=")), f"--data.root={task}")
        given = [*LARGE, "--data.root=images"] if task == "large" else [*TASKS[task], *SHARED, data]
        return self.start("train", *given, f"--run={run}", *(option for option in options if option != data))

    def reference(self, task: str) -> tuple[Path, float]:
        """Return an unbroken run without readers, and the seconds that it took."""
        if task not in self.unbroken:
            for _ in range(2):  # the server of the forks starts with the first
                run, began = self.new(), time.monotonic()
                code, output = ended(self.train(task, run, "--data.workers=0"))
                assert code == 0, output
            self.unbroken[task] = run, time.monotonic() - began
        return self.unbroken[task]

    def plain(self, output: str) -> list[str]:
        """Return the lines of an output that say that something is wrong, without paths and numbers of processes."""
        output = output.replace(str(self.folder), "").replace(str(HERE.parents[1]), "")
        lines = [
            line
            for line in output.splitlines()
            if re.match(r"cgnl:|problems|SIG|TensorBoard|Traceback|\w*Error|the best weights", line)
            or "unreadable" in line
        ]
        for found, shown in (
            (r"process \d+ on \S+", "process N on HOST"),
            (r"\(pids? [^)]*\)|\(pid\(s\) [^)]*\)", "(pid N)"),
            (r"/?runs/\d+|/disk\d+/run", "RUN"),
            (r"epoch .*?(unreadable)", r"\1"),
            (r"after step \d+", "after step N"),
            (r"\d+\.\d MB", "N MB"),
        ):
            lines = [re.sub(found, shown, line) for line in lines]
        return lines


def ended(command: Command, seconds: float = WAIT) -> tuple[int, str]:
    """Return the exit code of a command and all that it wrote; one that hangs is killed and has the code 1000."""
    try:
        output, _ = command.communicate(seconds)
    except subprocess.TimeoutExpired:
        command.kill()
        return 1000, command.communicate(10)[0]
    assert command.returncode is not None
    return command.returncode, output


def descendants(pid: int) -> list[int]:
    """Return the processes below one, those of the first generation first."""
    try:
        tasks = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
        children = [int(n) for task in tasks for n in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
    except OSError:
        return []
    return [*children, *(below for child in children for below in descendants(child))]


def alive(pids: list[int]) -> list[int]:
    """Return which processes have not ended."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            found.append(pid)
    return found


def entry(run: Path, name: str) -> dict[str, Any] | None:
    """Return what a run says about itself in a checkpoint, None without one."""
    path = run / name
    return torch.load(path, weights_only=True)["cgnl"] if path.exists() else None


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of nested dictionaries and lists with its place."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from flat(below, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for number, below in enumerate(value):
            yield from flat(below, f"{name}.{number}")
    else:
        yield name, value


def differences(run: Path, reference: Path) -> list[str]:
    """Say in which files a run differs from the unbroken one, up to times."""
    found = []
    for name in CHECKPOINTS:
        if not (run / name).exists():
            return [f"{name} is missing"]
        ours, theirs = (torch.load(folder / name, weights_only=True) for folder in (run, reference))
        # where Lightning's loops stand is counted in other ways in a resumed run
        ours, theirs = ({k: v for k, v in each.items() if k != "loops"} for each in (ours, theirs))
        for each in (ours, theirs):  # where the data is and who reads it may differ
            for key in ("root", "workers"):
                each["cgnl"]["recipe"]["data"].pop(key)
        ours, theirs = dict(flat(ours)), dict(flat(theirs))
        for key in dict.fromkeys([*ours, *theirs]):
            a, b = ours.get(key), theirs.get(key)
            if type(a) is not type(b) or not (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b):
                found.append(f"{name}{key}")
                break
    for name in LOGS:
        rows = [[row[:-1] for row in csv.reader((folder / name).open(newline=""))] for folder in (run, reference)]
        if rows[0] != rows[1]:
            found.append(name)
    return found


def half_files(*folders: Path) -> list[str]:
    """Return the names of half files."""
    return [f"half a file: {path.name}" for folder in folders for path in folder.rglob("*.part")]


def unsound(run: Path) -> list[str]:
    """Say which files of a stopped run are not whole."""
    found = half_files(run) if run.exists() else []
    for name in CHECKPOINTS:
        try:
            entry(run, name)
        except Exception as error:
            found.append(f"{name}: {error}")
    for name in LOGS:
        if (run / name).exists() and (run / name).read_bytes()[-1:] not in (b"", b"\n"):
            found.append(f"{name} ends within a line")
    return found


def resumed(place: Place, task: str, run: Path, *options: str, evaluated: bool = False) -> list[str]:
    """Resume a run to its end; say what differs from an unbroken one."""
    code, output = ended(place.train(task, run, "--resume", *options))
    if code:
        return [f"resume ended with {code}: {output[-300:]}"]
    found = differences(run, place.reference(task)[0])
    found += half_files(run, place.folder / "images", place.folder / "videos")
    if evaluated:
        code, output = ended(place.start("evaluate", run))
        measures = json.loads((run / "evaluation" / "measures.json").read_text()) if not code else {"top1": output}
        stored = torch.load(run / "best.ckpt", weights_only=True)["cgnl"]["best"]
        if measures["top1"] != stored and abs(measures["top1"] - stored) > 1e-4:
            found.append(f"best.ckpt says {stored}, evaluate {measures['top1']}")
    return found


class Row:
    """One line of the record: what was tried, how often, what came of it."""

    def __init__(self, tried: str) -> None:
        self.what, self.tried, self.equal = tried, 0, 0
        self.lost: list[str] = []
        self.said: Counter[str] = Counter()
        self.phases: Counter[str] = Counter()

    def add(self, problems: list[str], said: list[str] | tuple[str, ...] = (), *, phase: str | None = None) -> None:
        """Count a try: its problems, and all that was said."""
        self.tried += 1
        self.equal += not problems
        self.lost += problems
        self.said.update(set(said))
        if phase is not None:
            self.phases[phase] += 1
        print(f"{self.what}, {self.tried}: {phase or ''} {'; '.join(problems) or 'as it should be'}", flush=True)

    def record(self) -> dict[str, Any]:
        """Return the row as the record has it."""
        found = {"what": self.what, "tried": self.tried, "equal": self.equal, "lost": self.lost}
        return {**found, "said": dict(self.said), **({"phases": dict(self.phases)} if self.phases else {})}


def told(code: int, output: str, *codes: int) -> list[str]:
    """Say whether a command ended in another way than with a sentence and one of the codes, by default 0 or 2."""
    problems = []
    if code not in (codes or (0, 2)):
        problems.append(f"exit code {code}: {output[-300:]}")
    if "Traceback" in output:
        problems.append(f"a traceback: {output[-300:]}")
    if code == 2 and not [line for line in output.splitlines() if line.startswith("cgnl: ")]:
        problems.append(f"it ended in silence: {output[-300:]}")
    return problems


@contextmanager
def disk(folder: Path, size: str, *options: str) -> Iterator[Path]:
    """Mount a file system of a size in memory."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder: Path, option: str) -> int:
    """Change a mounted file system; return 0 if that was possible."""
    return subprocess.run(["mount", "-o", f"remount,{option}", folder], capture_output=True).returncode
