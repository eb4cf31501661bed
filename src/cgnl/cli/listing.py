"""The table behind ``cgnl recipes``."""

from rich.console import Console
from rich.table import Table

from cgnl.recipes import RECIPES, PaperRow, RecipeEntry
from cgnl.recipes.cost import recipe_cost


def list_recipes(*, smoke: bool) -> None:
    """Print every recipe, once for each table of the paper that has a row of it.

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
    costs = {}
    for name, entry in RECIPES.items():
        costs[name] = recipe_cost(entry.make())
    for name in sorted(tables):
        table = Table(title="Our own" if name == "ours" else f"Table {name}", title_justify="left")
        for column in ("row", "recipe"):
            table.add_column(column)
        for column in ("paper top-1/top-5", "released", "parameters", "multiplications", "epochs"):
            table.add_column(column, justify="right")
        for row, entry in tables[name]:
            recipe, cost = entry.make(), costs[entry.name]
            table.add_row(
                row.row if row else "",
                entry.name,
                _pair(row.top1, row.top5) if row else "",
                _pair(row.released_top1, row.released_top5) if row else "",
                f"{cost.parameters / 1e6:.1f} M",
                f"{cost.multiplications / 1e9:.1f} G",
                str(recipe.trainer.max_epochs),
            )
        console.print(table)


def _pair(top1: float | None, top5: float | None) -> str:
    return "/".join(f"{value:.2f}" for value in (top1, top5) if value is not None)
