"""``python -m cgnl`` in processes of their own that start within a moment.

A server imports PyTorch, Lightning and the package once for each process of pytest, and forks itself for each command.
The command is a real process: it is killed, gets signals and has an exit code as one that a user starts, with an
environment, a folder and an output of its own. Tests of imports start Python themselves.
"""

import gc
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["cgnl.cli", "cgnl.training.run", "cgnl.tasks.running", "cgnl.compare.running"])


def _running() -> multiprocessing.context.ForkServerContext:
    """Return the server, which has imported Triton without its interpreter."""
    interpreted = os.environ.pop("TRITON_INTERPRET", None)
    forkserver.ensure_running()
    if interpreted is not None:
        os.environ["TRITON_INTERPRET"] = interpreted
    return _SERVER


class Command:
    """``cgnl`` with its arguments, used as a ``subprocess.Popen``; ``communicate`` returns all it wrote, and errors."""

    def __init__(
        self, *arguments: object, folder: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._output = Path(self._folder.name)
        for name in ("output", "errors"):
            # a command may be killed before it writes
            (self._output / name).touch()
        given = [str(argument) for argument in arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        self._process = _running().Process(target=_run, args=(given, folder or Path.cwd(), environment, self._output))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("cgnl", timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        output, errors = ((self._output / name).read_text() for name in ("output", "errors"))
        return output + errors, errors


class Group:
    """A command in several processes of the CPU, with the variables that torchrun sets for each."""

    def __init__(self, *arguments: object, processes: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        count, shared = str(processes), {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        shared |= {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "TORCHELASTIC_RUN_ID": "a test"}
        shared["CUDA_VISIBLE_DEVICES"] = ""
        self._commands = [
            Command(*arguments, environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(processes)
        ]

    @property
    def returncode(self) -> int | None:
        codes = [command.returncode for command in self._commands]
        return next((code for code in codes if code), None if None in codes else 0)

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        for command in self._commands:
            command.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        outputs, errors = zip(*(command.communicate(timeout) for command in self._commands), strict=True)
        return "".join(outputs), "".join(errors)


def in_two_processes(function: Callable[..., None], *arguments: object) -> None:
    """Call a function of a test file with the process's number, 0 or 1, and the arguments; raise what it raises."""
    _running()
    torch.multiprocessing.start_processes(function, arguments, nprocs=2, start_method="forkserver")


def in_a_process(function: Callable[..., Any], *arguments: object, environment: Mapping[str, str]) -> Any:
    """Return the result of a function of a test file, whose module is imported in that environment."""
    with ProcessPoolExecutor(1, _running(), _take_environment, (dict(environment),)) as pool:
        return pool.submit(function, *arguments).result()


def _take_environment(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def _run(arguments: list[str], folder: Path, environment: Mapping[str, str], output: Path) -> None:
    # a child of the server would have readers of the server's, which outlive a command that is killed
    multiprocessing.set_start_method(None, force=True)
    gc.freeze()  # as in conftest.py
    _take_environment(environment)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    for number, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT), number)
    # a shell ignores some of them for commands in the background, as nohup does
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    from cgnl.cli import main

    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = ["cgnl", *arguments]
    main()
