"""The register of recipes by name, and recipes out of files."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

try:
    import yaml
except ImportError as error:
    raise ImportError("cgnl.recipes needs pyyaml: pip install 'cgnl[train]'") from error

from cgnl.settings.image import Recipe
from cgnl.settings.reading import from_dict, is_whole, override


@dataclass(frozen=True)
class PaperRow:
    """One row of one table of the paper.

    Args:
        table: The table as the paper numbers it, such as ``"2a"``.
        row: The row's label in the paper, as printed.
        top1: Top-1 accuracy in the paper (%).
        top5: Top-5 accuracy in the paper (%), or None where none is printed.
        released_top1: Top-1 accuracy that the authors' released code reports (%), where it does.
        released_top5: Top-5 accuracy likewise (%).
        box_ap: Average precision of the boxes in the paper, the mean over IoU 0.5 to 0.95 (%).
        box_ap50: Average precision of the boxes at IoU 0.5 in the paper (%).
        box_ap75: Average precision of the boxes at IoU 0.75 in the paper (%).
        mask_ap: Average precision of the masks, as ``box_ap``.
        mask_ap50: Average precision of the masks, as ``box_ap50``.
        mask_ap75: Average precision of the masks, as ``box_ap75``.
        released_box_ap: Average precision of the boxes that the authors' released code reports (%), where it does.
        released_mask_ap: Average precision of the masks likewise (%).
    """

    table: str
    row: str
    top1: float | None = None
    top5: float | None = None
    released_top1: float | None = None
    released_top5: float | None = None
    box_ap: float | None = None
    box_ap50: float | None = None
    box_ap75: float | None = None
    mask_ap: float | None = None
    mask_ap50: float | None = None
    mask_ap75: float | None = None
    released_box_ap: float | None = None
    released_mask_ap: float | None = None


@dataclass(frozen=True)
class RecipeEntry:
    """A named recipe: the function that makes it and the rows of the paper that it serves."""

    name: str
    make: Callable[[], Recipe]
    rows: tuple[PaperRow, ...]


RECIPES: dict[str, RecipeEntry] = {}


def register(*rows: PaperRow) -> Callable[[Callable[[], Recipe]], Callable[[], Recipe]]:
    """Put a function that makes a recipe into :data:`RECIPES`, under its own name with dashes.

    Args:
        rows: The rows of the paper that the recipe serves; none for a recipe that is ours.
    """

    def add(make: Callable[[], Recipe]) -> Callable[[], Recipe]:
        name = make.__name__.replace("_", "-")
        assert name not in RECIPES, f"two recipes are named {name}"
        RECIPES[name] = RecipeEntry(name, make, rows)
        return make

    return add


def load_recipe(source: str) -> tuple[str, Recipe]:
    """Return the recipe of that name, of a YAML file, or of a run folder's ``recipe.yaml``.

    A YAML file holds the fields that it changes, nested as in :class:`Recipe`, and under ``recipe`` the name of
    the recipe that it changes (none: the defaults of its ``task``: image, video or detection).

    Args:
        source: A name out of :data:`RECIPES`, a file, or a folder.

    Returns:
        The recipe's name (a file's own name where it changes none) and the recipe.

    Raises:
        ValueError: No such recipe, or something in the file is wrong.
    """
    if source in RECIPES:
        return source, RECIPES[source].make()
    path = Path(source) / "recipe.yaml" if Path(source).is_dir() else Path(source)
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"{_unknown(source)} (`cgnl recipes` lists all)")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the recipe {path}: {' '.join(str(error).split())}") from error
    base = values.pop("recipe", None) if isinstance(values, dict) else None
    if base is None:
        return path.stem, from_dict(values, str(path))
    if base in [*RECIPES]:
        return base, override(RECIPES[base].make(), values, str(path))
    if is_whole(values, str(path)):
        # a run of a YAML file keeps all fields, and that file's name
        return str(base), from_dict(values, str(path))
    raise ValueError(f"{path}: {_unknown(str(base))}")


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, RECIPES, n=3)
    return f"there is no recipe {name!r}" + (f"; near names: {', '.join(near)}" if near else "")
