"""Writing a drawn set: a folder that becomes whole at once or not at all."""

import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from cgnl.data.decoding import DataError


@contextmanager
def replacing(root: Path, what: str, settings_file: str, contents: Collection[str]) -> Iterator[Path]:
    """Give a folder beside root to write into; it takes root's place if all went well and vanishes if not.

    An earlier set in root may hold ``contents`` alone, among them the settings file that marks a whole set. ``what`` is
    the plural noun of the drawn things, for errors.

    Raises:
        DataError: If root is a file or a link, or a folder that holds anything else.
    """
    _refuse_foreign(root, what, settings_file, contents)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as scratch:
        folder = Path(scratch) / "new"
        folder.mkdir()
        yield folder
        _refuse_foreign(root, what, settings_file, contents)
        if root.exists():
            root.rename(Path(scratch) / "old")
        folder.rename(root)


def count_workers(workers: int | None) -> int:
    """Return the number of processes to use: as many as there are usable cores if None.

    Raises:
        ValueError: If it is below 1.
    """
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 1:
        raise ValueError(f"workers ({workers}) must be at least 1")
    return workers


def _refuse_foreign(root: Path, what: str, settings_file: str, contents: Collection[str]) -> None:
    if root.is_symlink() or (root.exists() and not root.is_dir()):
        raise DataError(f"{root} is a file or a link; it must be a folder to draw the {what} into.")
    names = {path.name for path in root.iterdir()} if root.exists() else set()
    if names and not (settings_file in names and names <= set(contents)):
        raise DataError(
            f"{root} holds {len(names)} files or folders that are not a drawn set of {what}. "
            "Name a new or an empty folder."
        )
