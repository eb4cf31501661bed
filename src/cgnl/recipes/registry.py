"""The register of recipes by name, and recipes out of files."""

import difflib
from importlib import import_module
from pathlib import Path

try:
    import yaml
except ImportError as error:
    raise ImportError("cgnl.recipes needs pyyaml: pip install 'cgnl[train]'") from error

from cgnl.recipes.rows import PaperRow, RecipeEntry, Table, entries_of
from cgnl.settings.image import Recipe
from cgnl.settings.reading import from_dict, is_whole, override

# in the order in which they are listed
_FILES = (
    *("own", "table2a", "table2b", "table2c", "table2d", "channel_reduction", "table3", "table4a", "table4b"),
    *("table4b_1000_way", "table4c", "table5", "toy"),
)
_MODULES = [import_module(f"cgnl.recipes.{name}") for name in _FILES]
TABLES = [value for module in _MODULES for value in vars(module).values() if isinstance(value, Table)]
RECIPES: dict[str, RecipeEntry] = entries_of(TABLES)


def listed() -> dict[str | None, list[tuple[PaperRow | None, RecipeEntry]]]:
    """Return the recipes by table of the paper, in its order; those that are ours under None."""
    tables: dict[str | None, list[tuple[PaperRow | None, RecipeEntry]]] = {}
    for table in TABLES:
        for line in table.rows:
            entry = RECIPES[line.name]
            row = next((row for row in entry.rows if row.table == table.name), None)
            tables.setdefault(table.name, []).append((row, entry))
    return tables


def load_recipe(source: str) -> tuple[str, Recipe]:
    """Return the recipe of that name, of a YAML file, or of a run folder's ``recipe.yaml``.

    A YAML file holds the fields that it changes, nested as in :class:`Recipe`, and under ``recipe`` the name of
    the recipe that it changes (none: the defaults of its ``task``: image, video or detection).

    Args:
        source: A name out of :data:`RECIPES`, a file, or a folder. A run folder goes before a recipe of its name.

    Returns:
        The recipe's name (a file's own name where it changes none) and the recipe.

    Raises:
        ValueError: No such recipe, or something in the file is wrong.
    """
    if source in RECIPES and not is_run(source):
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
    if is_whole(values, str(path)):
        # a run keeps all fields, and the name of a recipe or of a YAML file, which may be that of a recipe too
        return str(base), from_dict(values, str(path))
    if base in [*RECIPES]:
        return base, override(RECIPES[base].make(), values, str(path))
    raise ValueError(f"{path}: {_unknown(str(base))}")


def is_run(source: str) -> bool:
    """Tell whether a folder holds a run."""
    return any((Path(source) / name).is_file() for name in ("recipe.yaml", "last.ckpt", "best.ckpt"))


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, RECIPES, n=3)
    return f"there is no recipe {name!r}" + (f"; near names: {', '.join(near)}" if near else "")
