"""The table behind ``cgnl recipes``."""

from rich.console import Console
from rich.table import Table

from cgnl.recipes import RECIPES
from cgnl.recipes.registry import PaperRow, RecipeEntry
from cgnl.settings.image import Recipe
from cgnl.tasks import recipe_cost


def list_recipes(*, smoke: bool) -> None:
    """Print every recipe, once for each table of the paper that has a row of it.

    The multiplications of a detector are those of its backbone.

    Args:
        smoke: Print the commands that run the recipes' smoke variants instead.
    """
    # as wide as its content where the output goes to a file or a pipe
    console = Console() if Console().is_terminal else Console(width=160)
    if smoke:
        for name in RECIPES:
            console.print(f"cgnl train {name} --smoke", highlight=False)
        return
    tables: dict[str, list[tuple[PaperRow | None, RecipeEntry]]] = {}
    for entry in RECIPES.values():
        for row in entry.rows or (None,):
            tables.setdefault(row.table if row else "ours", []).append((row, entry))
    recipes = {name: entry.make() for name, entry in RECIPES.items()}
    costs = {name: recipe_cost(recipe) for name, recipe in recipes.items()}
    for name in sorted(tables):
        ours = name == "ours"
        tasks = {recipes[entry.name].task for _, entry in tables[name]}
        table = Table(title="Our own" if ours else f"Table {name}", title_justify="left", caption_justify="left")
        if "detection" in tasks:
            table.caption = "multiplications of a detector: those of its backbone, for an image of 4 : 3"
        for column in ("recipe",) if ours else ("row", "recipe"):
            table.add_column(column)
        paper = "paper box/mask AP" if tasks == {"detection"} else "paper top-1/top-5"
        for column in (*(() if ours else (paper, "released")), "parameters", "multiplications", "length"):
            table.add_column(column, justify="right")
        for row, entry in tables[name]:
            cost = costs[entry.name]
            table.add_row(
                *((row.row, entry.name, *_numbers(row)) if row else (entry.name,)),
                f"{cost.parameters / 1e6:.1f} M",
                f"{cost.multiplications / 1e9:.1f} G",
                _length(recipes[entry.name]),
            )
        console.print(table)


def _numbers(row: PaperRow) -> tuple[str, str]:
    """What the paper and the released code report."""
    if row.box_ap is not None or row.released_box_ap is not None:
        return _pair(row.box_ap, row.mask_ap), _pair(row.released_box_ap, row.released_mask_ap, digits=1)
    return _pair(row.top1, row.top5), _pair(row.released_top1, row.released_top5)


def _pair(first: float | None, second: float | None, digits: int = 2) -> str:
    return "/".join(f"{value:.{digits}f}" for value in (first, second) if value is not None)


def _length(recipe: Recipe) -> str:
    steps = recipe.trainer.max_steps
    return f"{steps} steps" if steps >= 0 else f"{recipe.trainer.max_epochs} epochs"
