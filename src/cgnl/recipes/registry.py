"""The register of recipes by name, and recipes out of files."""

import difflib
from collections.abc import Hashable
from importlib import import_module
from pathlib import Path
from typing import Any

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
    """Return the recipe of that name, of a YAML file, or of a run folder.

    A YAML file holds the fields that it changes, nested as in :class:`Recipe`, and under ``recipe`` the name of
    the recipe that it changes (none: the defaults of its ``task``: image, video or detection). The recipe of a run
    folder is in its ``recipe.yaml``, or if that is missing or empty, in its checkpoint.

    Args:
        source: A name out of :data:`RECIPES`, a file, or a folder. A run folder goes before a recipe of its name.

    Returns:
        The recipe's name (a file's own name where it changes none) and the recipe.

    Raises:
        ValueError: No such recipe, or something in the file is wrong.
    """
    if source in RECIPES and not is_run(source):
        return source, RECIPES[source].make()
    folder = Path(source) if Path(source).is_dir() else None
    path = Path(source) if folder is None else folder / "recipe.yaml"
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"{_unknown(source)} (`cgnl recipes` lists all)")
    checkpoint = None if folder is None else _checkpoint_in(folder)
    # a run folder without the file, or with an empty one, still has the recipe in its checkpoint
    values = None if checkpoint is not None and not path.exists() else _read(path)
    if values is None and checkpoint is not None:
        return _recipe_in(checkpoint)
    if values in (None, {}):
        raise ValueError(f"{path} is empty: it must name a recipe, or the fields that it changes")
    base = values.pop("recipe", None) if isinstance(values, dict) else None
    if base is None:
        return path.stem, from_dict(values, str(path))
    if is_whole(values, str(path)):
        # a run keeps all fields, and the name of a recipe or of a YAML file, which may be that of a recipe too
        return str(base), from_dict(values, str(path))
    if base in [*RECIPES]:
        return base, override(RECIPES[base].make(), values, str(path))
    raise ValueError(f"{path}: {_unknown(str(base))}")


def _read(path: Path) -> Any:
    """Return the content of a YAML file, None if there is none."""
    try:
        # a crash of the system leaves zeros
        return yaml.load(path.read_text(encoding="utf-8").strip("\0"), _UniqueKeys)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the recipe {path}: {' '.join(str(error).split())}") from error


class _UniqueKeys(yaml.SafeLoader):
    """Reads plain values, and refuses a key that stands twice in a mapping: one of its values would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [(self.construct_object(key, deep=True), key) for key, _ in node.value if not key.tag.endswith(":merge")]
        for place, (key, where) in enumerate(keys):
            if key in [earlier for earlier, _ in keys[:place]]:
                raise yaml.YAMLError(f"{key} is given twice, the second time in line {where.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def _recipe_in(checkpoint: Path) -> tuple[str, Recipe]:
    from cgnl.networks.checkpoints import read_checkpoint_file
    from cgnl.training.trained import run_entry

    entry = run_entry(read_checkpoint_file(checkpoint), checkpoint)
    return entry["name"], from_dict(entry["recipe"], str(checkpoint))


def is_run(source: str) -> bool:
    """Tell whether a folder holds a run."""
    return (Path(source) / "recipe.yaml").is_file() or _checkpoint_in(Path(source)) is not None


def _checkpoint_in(folder: Path) -> Path | None:
    return next((folder / name for name in ("last.ckpt", "best.ckpt") if (folder / name).is_file()), None)


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, RECIPES, n=3)
    return f"there is no recipe {name!r}" + (f"; near names: {', '.join(near)}" if near else "")
