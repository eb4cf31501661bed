"""The parts of a table of recipes: what its rows share, the rows, and what is said about each."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from cgnl.settings.image import Recipe
from cgnl.settings.reading import override

_BLOCKS = {"nl": "NL block", "cgnl": "CGNL block", "cgnlx": "CGNLx block", "residual": "residual block"}
COSTS = Path(__file__).parent / "costs.json"
"""What the recipes' networks cost, counted by ``python docs/update.py``."""


class Base(NamedTuple):
    """What the rows of a table share.

    Attributes:
        recipe: The recipe that the rows change, or a function from a row's changes, nested as
            :func:`cgnl.settings.reading.override` takes them, to it.
        data: The data set in words.
        folder: Its folder in the example command.
        samples: Samples of an epoch, in words; None where the length is said in steps.
        draw: Command that draws the data set, None for one that others made.
        sample: One sample, in words.
        of_paper: Whether the training is the paper's.
        backbone_alone: Whether the multiplications are those of a detector's backbone, for an image of 4 : 3.
    """

    recipe: Recipe | Callable[[Mapping[str, Any]], Recipe]
    data: str
    folder: str
    samples: str | None = None
    draw: str | None = None
    sample: str = "image"
    of_paper: bool = True
    backbone_alone: bool = False


class PaperRow(NamedTuple):
    """One row of one table of the paper.

    Attributes:
        table: The table as the paper numbers it, such as ``"2a"``.
        row: The row's label in the paper, as printed.
        paper: The paper's numbers (%): top-1 and top-5; or the average precisions AP, AP50 and AP75 of the boxes, then
            of the masks. Empty where none are printed.
        released: Those of the authors' released code (%): top-1 and top-5; or AP of boxes and masks.
    """

    table: str
    row: str
    paper: tuple[float, ...] = ()
    released: tuple[float, ...] = ()


class Cost(NamedTuple):
    """Parameters of a network, and its multiplications for one image or clip; of a detector those of the backbone."""

    parameters: int
    multiplications: int


@dataclass(frozen=True)
class RecipeEntry:
    """A named recipe, and the rows of the paper that it serves.

    Attributes:
        name: Its name.
        base: What its table's rows share.
        changes: Nested settings that differ from the base.
        about: What it is, where it is no row of the paper.
        rows: The rows of the paper.
    """

    name: str
    base: Base
    changes: Mapping[str, Any]
    about: str = ""
    rows: tuple[PaperRow, ...] = ()

    def make(self) -> Recipe:
        """Return the recipe."""
        base = self.base.recipe
        return override(base(self.changes) if callable(base) else base, self.changes, "recipes")

    @property
    def words(self) -> str:
        """What it is, in a few words."""
        if self.about:
            return self.about
        network, row = self.changes["network"], self.rows[0]
        detector = "Mask R-CNN with " if self.base.backbone_alone else ""
        words = f"{self.base.data}: {detector}{network['arch'].replace('resnet', 'ResNet-')}"
        label = re.sub(r"^R-\d+\.?\s*", "", row.row)
        if label.startswith("+"):
            words += f" {label}"
        else:
            block = _BLOCKS.get(network["block"])
            words += (f" + {network['num_blocks']} {block}" if block else "") + (f", {label}" if label else "")
        words = re.sub(r"(\+ [2-9] \w+ block)\b", r"\1s", words)
        table = _table_in_words(row.table).replace(" (", ", ").rstrip(")")
        return f"{words} ({table})"

    @property
    def cost(self) -> Cost:
        """What its network costs, as counted once; see ``costs.json``."""
        return Cost(**_costs()[self.name])

    @property
    def doc(self) -> str:
        """What it is, the paper's numbers and ours, the command, and the cost."""
        rows = "; ".join(f'{_table_in_words(row.table)}, "{row.row}"' for row in self.rows)
        lines = [f"{self.about or rows}."]
        command = f"cgnl train {self.name} --data.root {self.base.folder}"
        parameters = f"Cost: {self.cost.parameters / 1e6:.1f} M parameters"
        if self.base.draw:
            return "\n".join([*lines, f"Command: {self.base.draw} && {command}", f"{parameters}; minutes on a CPU."])
        if self.base.of_paper:
            lines.append(f"Paper: {_numbers_in_words(self.rows, self.base.backbone_alone)}.")
            lines.append(f"Ours: not run (needs 8 GPUs and {self.base.data}).")
        return "\n".join([*lines, f"Command: {command}", f"{parameters}, {self._length()}."])

    def _length(self) -> str:
        multiplications, length = f"{self.cost.multiplications / 1e9:.1f} G multiplications", length_of(self.make())
        if self.base.backbone_alone:
            return f"{multiplications} of the backbone for an image of 4 : 3, {length}"
        of_samples = f" of {self.base.samples}" if self.base.samples else ""
        return f"{multiplications} for one {self.base.sample}, {length}{of_samples}"


class Row(NamedTuple):
    """A row of a table: a recipe of its own, or (changes is None) one of another table."""

    name: str
    label: str
    paper: tuple[float, ...] | str = ()
    released: tuple[float, ...] = ()
    changes: Mapping[str, Any] | None = None
    printed: bool = True


class Table(NamedTuple):
    """A table of the paper, or recipes that are ours where it has no name."""

    name: str | None
    base: Base
    rows: tuple[Row, ...]


def table(name: str | None, base: Base, *rows: Row) -> Table:
    """Return a table of the paper, by its number (None for recipes that are ours); ``base`` is what rows share."""
    return Table(name, base, rows)


def row(
    name: str,
    label: str,
    block: str,
    paper: tuple[float, ...] | str = (),
    released: tuple[float, ...] = (),
    *,
    blocks: int = 1,
    changes: Mapping[str, Any] | None = None,
    **options: Any,
) -> Row:
    """Return a row with a recipe of its own.

    Args:
        name: The recipe's name; the ResNet that it names is the network.
        label: The row's label in the paper; of a recipe that is ours what it is, in a few words.
        block: Kind of block.
        paper: As in :class:`PaperRow`; or the name of a recipe whose row has the numbers.
        released: Numbers of the released code.
        blocks: Number of blocks.
        changes: Other settings by their dotted names, such as ``{"trainer.max_steps": 10}``.
        options: Options of the block.
    """
    nested: dict[str, Any] = {"network": {"block": block, "num_blocks": blocks}, "block": options}
    if arch := re.search(r"resnet\d+", name):
        nested["network"]["arch"] = arch[0]
    for dotted, value in (changes or {}).items():
        part, _, setting = dotted.partition(".")
        nested.setdefault(part, {})[setting] = value
    return Row(name, label, paper, released, nested)


def again(name: str, label: str, *, printed: bool = True) -> Row:
    """Return a row whose recipe, and whose numbers where they are printed here too, stand in another table."""
    return Row(name, label, printed=printed)


def entries_of(tables: Iterable[Table]) -> dict[str, RecipeEntry]:
    """Return the recipes of tables by name, in their order."""
    lines = [(table, line) for table in tables for line in table.rows]
    own = {line.name: line for _, line in lines if line.changes is not None}
    assert len(own) == sum(line.changes is not None for _, line in lines), "two recipes have one name"
    entries = {
        line.name: RecipeEntry(line.name, table.base, line.changes, "" if table.name else line.label)
        for table, line in lines
        if line.changes is not None
    }
    for table, line in lines:
        if table.name:
            first = own[line.name] if line.printed else line
            paper = own[first.paper].paper if isinstance(first.paper, str) else first.paper
            assert not isinstance(paper, str)
            made = PaperRow(table.name, line.label, paper, first.released)
            entries[line.name] = replace(entries[line.name], rows=(*entries[line.name].rows, made))
    return entries


def length_of(recipe: Recipe) -> str:
    """Return the length of a recipe's training in words."""
    steps, epochs = recipe.trainer.max_steps, recipe.trainer.max_epochs
    return f"{steps:,} steps of {recipe.data.batch_size} images" if steps > 0 else f"{epochs} epochs"


def _table_in_words(table: str) -> str:
    name, _, more = table.partition(" (text")
    return f"Text of {name}{more.rstrip(')')}" if "(text" in table else f"Table {table}"


def _numbers_in_words(rows: tuple[PaperRow, ...], backbone_alone: bool) -> str:
    numbers = next((row for row in rows if row.paper or row.released), None)
    if numbers is None:
        return "no number printed" if rows else "no such row"
    if len(numbers.paper) == 6:
        box, box50, box75, mask, mask50, mask75 = (f"{value:.2f}" for value in numbers.paper)
        said = f"box AP {box} ({box50} / {box75} at IoU 0.5 / 0.75), mask AP {mask} ({mask50} / {mask75})"
    else:
        said = f"{pair(numbers.paper)} (top-1 / top-5)" if numbers.paper else "no such row"
    # the released code prints average precisions with one digit
    released = pair(numbers.released, 1 if backbone_alone else 2)
    return said + (f", released code {released}" if released else "")


def pair(numbers: tuple[float, ...], digits: int = 2) -> str:
    """Return numbers with a slash between them, empty where there are none."""
    return " / ".join(f"{value:.{digits}f}" for value in numbers)


@cache
def _costs() -> dict[str, dict[str, int]]:
    return json.loads(COSTS.read_text())
