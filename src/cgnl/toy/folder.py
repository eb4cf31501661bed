"""Writing a drawn set: a folder that becomes whole at once or not at all."""

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from PIL import Image

from cgnl.data.decoding import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")


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


def in_processes(draw: Callable[[Item], Result], items: Sequence[Item], workers: int) -> list[Result]:
    """Call a function on each item, in several processes if there is more than one worker."""
    if workers == 1 or len(items) < 2:
        return list(map(draw, items))
    with ProcessPoolExecutor(min(workers, len(items))) as pool:
        return list(pool.map(draw, items, chunksize=max(1, min(8, len(items) // workers))))


def write_lines(file: Path, lines: Iterable[str]) -> None:
    """Write a text file of these lines, the same bytes on every system."""
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def tiled(pictures: Sequence[Image.Image], columns: int, gap: tuple[int, int]) -> Image.Image:
    """Return pictures in rows on white, each in a cell of the largest width and height, with gaps (x, y) between."""
    width, height = (max((picture.size[axis] for picture in pictures), default=1) + gap[axis] for axis in (0, 1))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width - gap[0], max(1, rows * height - gap[1])), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    return sheet


def _refuse_foreign(root: Path, what: str, settings_file: str, contents: Collection[str]) -> None:
    if root.is_symlink() or (root.exists() and not root.is_dir()):
        raise DataError(f"{root} is a file or a link; it must be a folder to draw the {what} into.")
    names = {path.name for path in root.iterdir()} if root.exists() else set()
    if names and not (settings_file in names and names <= set(contents)):
        raise DataError(
            f"{root} holds {len(names)} files or folders that are not a drawn set of {what}. "
            "Name a new or an empty folder."
        )
