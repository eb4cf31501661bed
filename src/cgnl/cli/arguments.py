"""Arguments of commands whose options are the fields of a recipe."""

import re
import sys
from collections.abc import Sequence
from dataclasses import field, fields, make_dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, get_args, get_type_hints

import tyro
from docstring_parser import parse_from_object

from cgnl.settings.blocks import BLOCK_OPTIONS, OPTIONS, check_names
from cgnl.settings.checks import check_local, is_dotted_name
from cgnl.settings.image import Recipe, recipe_with_arch, with_size
from cgnl.settings.reading import check_field

_METAVARS = {
    "block": f"{{{','.join(OPTIONS)}}}|CLASS",
    **dict.fromkeys(["root", "train_images", "val_images", "test_images", "run", "out"], "FOLDER"),
    "annotations": "FILE|FOLDER",
    **dict.fromkeys(["weights", "backbone_weights"], "NAME|FILE"),
    **dict.fromkeys(["places", "freeze"], "[PATH ...]"),
}


_HELP_OF_BLOCK = "Kind of block: {}, or a class of your own such as mypackage.MyBlock.".format(
    ", ".join(f"{name} ({kind.words})" if kind.words else name for name, kind in OPTIONS.items())
)


def parse_fields(command: str, more: type, recipe: Recipe, arguments: Sequence[str]) -> Any:
    """Parse options that are the fields of a recipe, whichever its kind, and those of ``more``.

    The network and the kind of block come first: they decide which values of the recipe stay, and which options of
    blocks there are (ValueError for others). ``--network.groups`` and the like, as earlier versions spelled the options
    of blocks, are read as ``--block.groups``.
    """
    if (arch := _last_value("--network.arch", arguments)) is not None:
        recipe = recipe_with_arch(recipe, arch)
    if (block := _last_value("--network.block", arguments)) is not None:
        recipe = replace(recipe, network=replace(recipe.network, block=block))
    size = _last_value("--data.size", arguments) or ""
    if size.isdecimal() and int(size) and _last_value("--data.resize", arguments) is None:
        recipe = with_size(recipe, int(size))
    arguments = [_option_of_block(argument, recipe) for argument in arguments]
    for argument in arguments:
        part, _, name = argument.partition("=")[0].removeprefix("--").partition(".")
        if argument.startswith("--") and name:
            check_field(recipe, part, name.removeprefix("no-").replace("-", "_"))
    from cgnl.recipes import RECIPES

    verb, name = command.split(maxsplit=1)
    about = {
        "train": "Train a recipe's network",
        "evaluate": "Test a network",
        "compare": "Compare kinds of blocks in a recipe's network",
    }[verb]
    about += ": every field of the recipe is an option."
    if name in RECIPES:
        about = "\n\n".join([*RECIPES[name].doc.splitlines(), about])
    parts = parts_of(recipe)
    shown = {name: _shown(part) for name, part in parts.items()}
    options = [(name, type(part), field(default=part)) for name, part in shown.items()]
    # a dataclass takes its fields from its last base first
    parsed: Any = tyro.cli(
        make_dataclass("Options", options, bases=(type(_shown(more())),), frozen=True),
        prog=f"cgnl {command}",
        description=about,
        args=arguments,
    )
    chosen = {name: type(part)(**vars(getattr(parsed, name))) for name, part in parts.items()}
    return SimpleNamespace(**(vars(parsed) | chosen))


def _shown(config: Any) -> Any:
    """Return settings as the same of a subclass whose options name their values, and no default that is empty."""
    hints = get_type_hints(type(config))
    notes = {
        part.name: tyro.conf.arg(
            metavar=_metavar(part.name, hints[part.name]),
            help=_HELP_OF_BLOCK if part.name == "block" else _help_of(type(config), part.name),
            help_behavior_hint="" if getattr(config, part.name) in (None, ()) else None,
        )
        for part in fields(config)
    }
    kind = make_dataclass(
        type(config).__name__,
        [(name, Annotated[hints[name], note], field(default=getattr(config, name))) for name, note in notes.items()],
        bases=(type(config),),
        namespace={"__doc__": type(config).__doc__},
        frozen=True,
    )
    return kind()


def _help_of(kind: type, name: str) -> str | None:
    """Return the docstring of a field in one line, since tyro would keep its line breaks."""
    return next((help_of[name] for help_of in map(_helps, kind.__mro__) if name in help_of), None)


@cache
def _helps(kind: type) -> dict[str, str]:
    if kind.__module__ == "builtins":
        return {}
    return {part.arg_name: " ".join((part.description or "").split()) for part in parse_from_object(kind).params}


def _metavar(name: str, hint: Any) -> str | None:
    """Return the words for an option's value, None for those of its type."""
    if name in _METAVARS:
        return _METAVARS[name]
    if hint in (Path, Path | None):
        return "FILE"
    optional = [kind for kind in get_args(hint) if kind is not type(None)]
    if type(None) in get_args(hint) and len(optional) == 1 and optional[0] in (int, float, str, bool):
        return {int: "INT", float: "FLOAT", str: "TEXT", bool: "{True,False}"}[optional[0]]
    return None


def _last_value(option: str, arguments: Sequence[str]) -> str | None:
    """Return the value of an option, None where it is not given."""
    value = None
    for place, argument in enumerate(arguments):
        if argument == option and place + 1 < len(arguments):
            value = arguments[place + 1]
        elif argument.startswith(f"{option}="):
            value = argument.partition("=")[2]
    return value


def _option_of_block(argument: str, recipe: Recipe) -> str:
    """Return an argument, an option of a block in its present spelling; refuse one that the kind does not have."""
    match = re.fullmatch(r"--(network|block)\.(no-)?([\w-]+)(=.*)?", argument, re.DOTALL)
    if match is None:
        return argument
    part, name = match[1], match[3].replace("-", "_")
    if part == "network" and name in BLOCK_OPTIONS:
        part = "block"
    if part == "block":
        check_names(recipe.network.block, [name], "block.")
    return f"--{part}.{match[2] or ''}{match[3]}{match[4] or ''}"


def check_addresses(arguments: Sequence[str]) -> None:
    """Raise ValueError for an address on the internet among arguments, whatever it is given for."""
    before = ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument.startswith("-") and equals:
            check_local(name, value)
        else:
            check_local(before, argument)
        before = argument if argument.startswith("-") else ""


def take_trust(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take ``--trust PACKAGE`` out of arguments; return the rest, and the names that this command line trusts.

    These are the packages behind ``--trust`` (ValueError where there is none), and the classes and functions that it
    names itself.
    """
    rest, trusted = [], []
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--trust":
            trusted.append(next(waiting, ""))
        elif argument.startswith("--trust="):
            trusted.append(argument.partition("=")[2])
        else:
            rest.append(argument)
    if wrong := [name for name in trusted if not name or name.startswith("-")]:
        raise ValueError(f"--trust ({wrong[0]}) must be a package, such as mypackage")
    named = (_last_value(option, rest) or "" for option in ("--network.block", "--network.arch"))
    # a name without a dot is one of ours, and no package of that name
    return rest, [*trusted, *filter(is_dotted_name, named)]


def parts_of(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's parts by name."""
    return {part.name: getattr(recipe, part.name) for part in fields(Recipe)}


def take_recipe(command: str, arguments: Sequence[str]) -> tuple[str, Recipe, list[str]]:
    """Take the recipe's name, a YAML file or a run folder off the front of the arguments."""
    from cgnl.recipes import RECIPES, load_recipe

    if not arguments or arguments[0].startswith("-"):
        source = "CHECKPOINT ..." if command == "evaluate" else "RECIPE"
        print(f"usage: cgnl {command} {source} [options]\n")
        if command == "evaluate":
            print("CHECKPOINT is a checkpoint file or a run folder. For several, cgnl also prints the mean.")
            print("If you give a RECIPE instead, cgnl tests its --network.weights.\n")
        print("RECIPE is one of these names, a YAML file, or a run folder:")
        width = max(map(len, RECIPES))
        print("\n".join(f"  {name:{width}}  {entry.words}" for name, entry in RECIPES.items()))
        print(f"\nOptions of a recipe: cgnl {command} RECIPE --help. The paper's tables: cgnl recipes.")
        sys.exit(0 if arguments and arguments[0] in ("-h", "--help") else 2)
    name, recipe = load_recipe(arguments[0])
    return name, recipe, list(arguments[1:])


def names_recipe(argument: str) -> bool:
    """Tell whether an argument is a recipe's name or a YAML file, and no checkpoint."""
    from cgnl.recipes.registry import RECIPES, is_run

    return (argument in RECIPES and not is_run(argument)) or argument.endswith((".yaml", ".yml"))
