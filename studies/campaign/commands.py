"""What the parts on files share: commands in this process, small settings, and rows of a record."""

import contextlib
import csv
import io
import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cgnl.cli import main

SMALL = (
    "--network.weights=None --network.arch=timm:test_resnet --network.places=auto --data.size=32 --data.resize=36 "
    "--data.batch-size=8 --data.workers=0 --schedule.kind=constant "
    "--trainer.max-epochs=1"
).split()
IMAGES = ["birds-resnet18-cgnl", "--data.format=auto", *SMALL]
VIDEOS = (
    "actions-resnet18-cgnl --data.format=folders --network.weights=None --data.size=32 --data.resize=36 "
    "--data.batch-size=4 --data.num-frames=4 --data.frame-step=4 --data.test-clips=3 --data.test-crops=1 "
    "--data.workers=0 --data.bad-limit=0.2 --trainer.max-epochs=1"
).split()
DETECTOR = (
    "--network.neck=c4 --network.rois=8 --network.proposals=20 --network.detections=10 --network.score-threshold=0 "
    "--data.size=64 --data.max-size=80 --data.batch-size=2 --data.workers=0 --trainer.max-steps=1"
).split()

_SHOWN = 400  # characters of a sentence


def cgnl(*arguments: object) -> tuple[int, str]:
    """Run a command in this process; return its exit code, 1 for a traceback, and all that it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
        except BaseException:
            code = 1
            traceback.print_exc()
    return code, printed.getvalue()


def wrong(code: int, output: str, *codes: int) -> list[str]:
    """Say whether a command ended in another way than with one of the codes, or in silence."""
    problems = []
    if code not in codes or "Traceback" in output:
        problems.append(f"exit code {code}: {output[-400:]}")
    if code == 2 and not re.search("^cgnl: ", output, re.MULTILINE):
        problems.append(f"it ended in silence: {output[-300:]}")
    return problems


def named(text: str, path: Path | str, reason: str = "") -> list[str]:
    """Say whether a text does not name a file with its reason (a pattern), on one line."""
    lines = [line for line in text.splitlines() if str(path) in line]
    if not lines:
        return [f"{path} is not named in: {text[-300:]}"]
    return [] if any(re.search(reason, line) for line in lines) else [f"the reason is not {reason!r}: {lines[0]}"]


def text_of(file: Path) -> str:
    """Return the text of a file, nothing if there is none."""
    return file.read_bytes().decode(errors="surrogateescape") if file.exists() else ""


def csv_rows(file: Path) -> list[list[str]]:
    """Return the rows of a table, without its header."""
    return list(csv.reader(io.StringIO(text_of(file), newline="")))[1:]


class Row:
    """One line of the record: what was tried, how often, how often the result was right, and the sentences."""

    def __init__(self, what: str, folder: Path) -> None:
        self.what, self.folder, self.tried, self.equal = what, folder, 0, 0
        self.lost: list[str] = []
        self.said: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}

    def add(self, problems: Iterable[str], output: str = "", *, case: str = "") -> None:
        """Count a try: its problems, and the sentences in its output."""
        problems = [f"{case}: {problem}" if case else problem for problem in problems]
        self.tried += 1
        self.equal += not problems
        self.lost += problems
        plain = output.replace(f"{self.folder}/", "").replace(str(self.folder), "FOLDER")
        self.said.update({line[:_SHOWN] for line in plain.splitlines() if line.startswith(("cgnl: ", "problems"))})
        if problems:
            print(f"WRONG {self.what}: {'; '.join(problems)}", flush=True)

    def attempt(self, case: str, attempt: Callable[..., tuple[list[str], str]], *arguments: object) -> None:
        """Call a function that returns problems and output, and count it; its own error is a problem too."""
        try:
            problems, output = attempt(*arguments)
        except Exception:
            problems, output = [traceback.format_exc()[-600:]], ""
        self.add(problems, output, case=case)

    def record(self) -> dict[str, Any]:
        """Return the row as the record has it."""
        return {
            "what": self.what,
            "tried": self.tried,
            "equal": self.equal,
            "lost": self.lost,
            "said": dict(sorted(self.said.items())),
            **({"seconds": self.seconds} if self.seconds else {}),
        }
