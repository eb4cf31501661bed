"""Arguments of commands whose options are the fields of a recipe."""

import sys
from collections.abc import Sequence
from dataclasses import fields, make_dataclass
from typing import Any

import tyro

from cgnl.settings.image import Recipe


def parse_fields(command: str, more: type, recipe: Recipe, arguments: Sequence[str]) -> Any:
    """Parse options that are the fields of a recipe, whichever its kind, and those of ``more``."""
    about = {"train": "Train a recipe's network", "evaluate": "Test a network"}[command.split()[0]]
    # the fields of a dataclass come from its last base first
    kind = make_dataclass("Options", (), bases=(more, type(recipe)), frozen=True)
    return tyro.cli(
        kind,
        prog=f"cgnl {command}",
        description=f"{about}: every field of the recipe is an option.",
        default=kind(**parts_of(recipe)),
        args=arguments,
    )


def parts_of(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's parts by name."""
    return {field.name: getattr(recipe, field.name) for field in fields(Recipe)}


def take_recipe(command: str, arguments: Sequence[str]) -> tuple[str, Recipe, list[str]]:
    """Take the recipe's name, a YAML file or a run folder off the front of the arguments."""
    from cgnl.recipes import RECIPES, load_recipe

    if not arguments or arguments[0].startswith("-"):
        source = "CHECKPOINT ..." if command == "evaluate" else "RECIPE"
        print(f"usage: cgnl {command} {source} [options]\n")
        if command == "evaluate":
            print("CHECKPOINT is a file or a run folder; of several the mean is given, too.")
            print("A RECIPE in its place tests its --network.weights.\n")
        print("RECIPE is one of these names, a YAML file, or a run folder:")
        print("\n".join(f"  {name}" for name in RECIPES))
        print(f"\nOptions of one: cgnl {command} RECIPE --help. The paper's tables: cgnl recipes.")
        sys.exit(0 if arguments and arguments[0] in ("-h", "--help") else 2)
    name, recipe = load_recipe(arguments[0])
    return name, recipe, list(arguments[1:])


def names_recipe(argument: str) -> bool:
    """Tell whether an argument is a recipe's name or a YAML file, and no checkpoint."""
    from cgnl.recipes import RECIPES

    return argument in RECIPES or argument.endswith((".yaml", ".yml"))
