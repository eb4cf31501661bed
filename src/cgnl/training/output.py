"""Output of a run that must not end it: the terminal, which may be closed, and TensorBoard's curves."""

import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch.loggers import TensorBoardLogger

from cgnl.training.checkpoint import system_error


class SteadyOutput:
    """A stream that outlives its terminal: a closed one shows nothing, and nothing fails."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text if there is somebody to read it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            _without_terminal(error)
            return len(text)

    def flush(self) -> None:
        """Flush what is written if there is somebody to read it."""
        try:
            self._stream.flush()
        except OSError as error:
            _without_terminal(error)


def _without_terminal(error: OSError) -> None:
    if error.errno != errno.EIO:
        raise error
    leave_closed_terminal()


def leave_closed_terminal() -> None:
    """Send to nowhere what standard output and error still get, if they go to a terminal that is closed."""
    for file in (1, 2):
        try:
            os.write(file, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), file)


class Curves(TensorBoardLogger):
    """TensorBoard's curves in a run's folder; where they cannot be written, they end and the run goes on.

    Args:
        run: Folder of the run.
        say: Prints a line for people.
    """

    def __init__(self, run: Path, say: Callable[[str], None]) -> None:
        super().__init__(run, name="", version="tensorboard")
        self._say, self._ended = say, False

    @property
    def experiment(self) -> Any:
        """TensorBoard's writer, which makes its file on first use; None once the curves have ended."""
        if not self._ended:
            with self._writing():
                return super().experiment
        return None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add points to the curves."""
        if not self._ended:
            with self._writing():
                super().log_metrics(metrics, step)

    def save(self) -> None:
        """Write what is logged so far."""
        if not self._ended:
            with self._writing():
                super().save()

    def finalize(self, status: str) -> None:
        """Write the rest and close the file."""
        if not self._ended:
            with self._writing():
                super().finalize(status)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason: object = system_error(error)
            if isinstance(reason, OSError):
                reason = reason.strerror or reason
            elif isinstance(error, UnicodeEncodeError):  # TensorBoard takes no other names
                reason = "the name of the run's folder is not in UTF-8"
            elif not self._ended:
                raise
            if reason is not None:
                self._ended = True
                self._say(f"TensorBoard's curves end here: {reason}")


@contextmanager
def quiet_curves() -> Iterator[None]:
    """Print no traceback of the thread that writes TensorBoard's file: :class:`Curves` says that it failed."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard.")):
            before(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
