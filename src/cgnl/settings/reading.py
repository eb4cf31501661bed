"""Recipes as plain values, for YAML, JSON and checkpoints, and back."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cgnl.settings.detection import DetectionRecipe
from cgnl.settings.image import Recipe
from cgnl.settings.video import VideoDataConfig, VideoRecipe

# Fields that had other names in earlier versions.
_RENAMED = {"schedule.warmup_epochs": "warmup"}
# Fields that earlier versions had: a file may name them, and they change nothing.
_REMOVED = {(VideoDataConfig, "backend")}
# Fields of every task's network that had been there before `g_std`: a file with all of them is a whole recipe.
_FIELDS_BEFORE_G_STD = {
    *("arch", "block", "num_blocks", "groups", "kernel", "norm", "scale", "channel_reduction"),
    *("weights", "new_classifier"),
}
_TASKS: dict[str, type[Recipe]] = {kind.task: kind for kind in (Recipe, VideoRecipe, DetectionRecipe)}


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as nested dictionaries of plain values (for YAML, JSON and checkpoints)."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return value

    return {"task": recipe.task, **plain(dataclasses.asdict(recipe))}


def from_dict(values: Mapping[str, Any], source: str) -> Recipe:
    """Return the recipe that ``values`` describe; what they leave out has its default.

    Args:
        values: Nested mapping, as :func:`to_dict` returns it; ``task`` ("image" where it is left out) tells the kind.
        source: Where the values stand, for the message.

    Raises:
        ValueError: An unknown task or field, or a value of another type than the field's.
    """
    task = values.get("task", "image") if isinstance(values, Mapping) else "image"
    if task not in [*_TASKS]:
        raise ValueError(f"{source}: task must be one of {', '.join(_TASKS)}, got {task!r}")
    return override(_TASKS[task](), values, source)


def override(recipe: Recipe, values: Mapping[str, Any], source: str) -> Recipe:
    """Return ``recipe`` with the fields that ``values`` names replaced.

    Args:
        recipe: The recipe to start from.
        values: Nested mapping such as ``{"trainer": {"max_epochs": 10}}``.
        source: Where the values stand, for the message.

    Raises:
        ValueError: A name that is no field, a value of another type than the field's, or another task.
    """
    if isinstance(values, Mapping) and "task" in values:
        if values["task"] != recipe.task:
            raise ValueError(f"{source}: task must be {recipe.task} for this recipe, got {values['task']!r}")
        values = {key: value for key, value in values.items() if key != "task"}
    return _override(recipe, _with_start_of_blocks(values), source, "")


def _with_start_of_blocks(values: Any) -> Any:
    """The values with the start of g that blocks with a scale had in runs of before `g_std`, which name all fields."""
    network = values.get("network") if isinstance(values, Mapping) else None
    if not isinstance(network, Mapping) or "g_std" in network or not network.keys() >= _FIELDS_BEFORE_G_STD:
        return values
    scaled = network["block"] in ("cgnl", "cgnlx") and network["scale"]
    return {**values, "network": {**network, "g_std": 0.01 if scaled else None}}


def _override(config: Any, values: Any, source: str, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{source}: {prefix.rstrip('.') or 'the file'} must be a mapping of fields, got {values!r}")
    hints = typing.get_type_hints(type(config))
    fields = {field.name: hints[field.name] for field in dataclasses.fields(config)}
    changed = {}
    for given, value in values.items():
        if (type(config), given) in _REMOVED:
            continue
        name = _RENAMED.get(f"{prefix}{given}", given)
        if name not in fields:
            raise ValueError(f"{source}: {prefix}{name} is no field of a recipe; fields here: {', '.join(fields)}")
        if dataclasses.is_dataclass(getattr(config, name)):
            changed[name] = _override(getattr(config, name), value, source, f"{prefix}{name}.")
        else:
            changed[name] = _checked(fields[name], value, f"{source}: {prefix}{name}")
    return dataclasses.replace(config, **changed)


def _checked(kind: Any, value: Any, where: str) -> Any:
    """Convert a plain value to the type of a field, or say what was expected."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        *literals, last = (arg for arg in args if arg is not type(None))
        choices = [choice for literal in literals for choice in typing.get_args(literal)]
        if value in choices:
            return value
        if choices and type(value) is not last:
            raise ValueError(f"{where} must be {', '.join(choices)} or of type {last.__name__}, got {value!r}")
        return _checked(last, value, where)
    if origin is Literal:
        # YAML reads the precision 32 as a number
        match = [choice for choice in args if value == choice or (not isinstance(value, bool) and str(value) == choice)]
        if not match:
            raise ValueError(f"{where} must be one of {', '.join(map(str, args))}, got {value!r}")
        return match[0]
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or (args[-1] is not Ellipsis and len(value) != len(args)):
            raise ValueError(
                f"{where} must be a list{'' if args[-1] is Ellipsis else f' of {len(args)}'}, got {value!r}"
            )
        return tuple(_checked(args[0], item, where) for item in value)
    if kind is Path and isinstance(value, (str, Path)):
        return Path(value)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-4 as text
        try:
            return float(value)
        except ValueError:
            pass
    elif type(value) is kind:
        return value
    raise ValueError(f"{where} must be of type {getattr(kind, '__name__', kind)}, got {value!r}")
