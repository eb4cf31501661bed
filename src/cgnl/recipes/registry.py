"""The register of recipes by name, their smoke variants, and recipes out of files."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import yaml
except ImportError as error:
    raise ImportError("cgnl.recipes needs pyyaml: pip install 'cgnl[train]'") from error

from cgnl.training.recipe import Recipe, VideoRecipe, from_dict, override, to_dict


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
    """

    table: str
    row: str
    top1: float | None = None
    top5: float | None = None
    released_top1: float | None = None
    released_top5: float | None = None


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


def smoke(recipe: Recipe, root: Path, *, size: int = 64, batch_size: int = 4, steps: int = 2) -> Recipe:
    """Shrink a recipe to seconds on a CPU: only pixels, frames, samples, views and steps change.

    The network, its blocks, the transforms and the schedule are the recipe's own. Start weights are left
    out, since there is nothing to download them for.

    Args:
        recipe: The recipe.
        root: Folder of a small data set (drawn birds, or drawn actions for a video recipe).
        size: Input height and width (pixels).
        batch_size: Images or clips in a step.
        steps: Optimizer steps.
    """
    replace = dataclasses.replace
    resize = round(recipe.data.resize / recipe.data.size * size)
    data = replace(recipe.data, root=root, size=size, resize=resize, batch_size=batch_size, workers=0)
    if isinstance(recipe, VideoRecipe):
        # the drawn actions come in the layout of UCF101; strides 2 2 2 leave the blocks two time steps of 16 frames
        data = replace(data, format="ucf101", num_frames=16, frame_step=4, test_clips=2)
    return replace(
        recipe,
        network=replace(recipe.network, weights=None),
        data=data,
        trainer=replace(recipe.trainer, max_steps=steps, devices=1, accelerator="cpu"),
    )


def load_recipe(source: str) -> tuple[str, Recipe]:
    """Return the recipe of that name, of a YAML file, or of a run folder's ``recipe.yaml``.

    A YAML file holds the fields that it changes, nested as in :class:`Recipe`, and under ``recipe`` the name of
    the recipe that it changes (none: the defaults, those of :class:`VideoRecipe` with ``task: video``).

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
    if _is_whole(values):
        # a run of a YAML file keeps all fields, and that file's name
        return str(base), from_dict(values, str(path))
    raise ValueError(f"{path}: {_unknown(str(base))}")


def _is_whole(values: Mapping[str, Any]) -> bool:
    """Whether the values leave no field to a default."""
    kind = VideoRecipe() if values.get("task") == "video" else Recipe()
    return all(
        isinstance(values.get(part), Mapping) and fields.keys() <= values[part].keys()
        for part, fields in to_dict(kind).items()
        if part != "task"
    )


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, RECIPES, n=3)
    return f"there is no recipe {name!r}" + (f"; near names: {', '.join(near)}" if near else "")
