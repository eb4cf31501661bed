"""The table behind ``cgnl recipes``."""

from rich.console import Console
from rich.table import Table

from cgnl.recipes.registry import RECIPES, listed
from cgnl.recipes.rows import length_of, pair


def list_recipes(*, smoke: bool) -> None:
    """Print every recipe, or the command of its smoke variant, for each table of the paper that has a row of it."""
    # as wide as its content where the output goes to a file or a pipe
    console = Console() if Console().is_terminal else Console(width=160)
    if smoke:
        for name in RECIPES:
            console.print(f"cgnl train {name} --smoke", highlight=False)
        return
    for title, lines in listed().items():
        detection = any(entry.base.backbone_alone for _, entry in lines)
        table = Table(title=f"Table {title}" if title else "Our own", title_justify="left", caption_justify="left")
        if detection:
            table.caption = "multiplications of a detector: its backbone alone, for an image with sides 4 : 3"
        elif any(getattr(entry.make().data, "test_wrap", False) for _, entry in lines):
            table.caption = "test clips near the end of a video go on with its beginning, as in the Non-local code"
        table.add_column("row" if title else "what it is")
        table.add_column("recipe")
        of_paper = ("paper box/mask AP" if detection else "paper top-1/top-5", "released")
        for column in (*(of_paper if title else ()), "parameters", "multiplications", "length"):
            table.add_column(column, justify="right")
        for row, entry in lines:
            # AP of boxes and masks out of the six numbers
            numbers = (
                (pair(row.paper[::3] if detection else row.paper), pair(row.released, 1 if detection else 2))
                if row
                else ()
            )
            table.add_row(
                row.row if row else entry.about,
                entry.name,
                *(text.replace(" ", "") for text in numbers),
                f"{entry.cost.parameters / 1e6:.1f} M",
                f"{entry.cost.multiplications / 1e9:.1f} G",
                length_of(entry.make()),
            )
        console.print(table)
