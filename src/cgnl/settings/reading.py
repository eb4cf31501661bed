"""Recipes as plain values, for YAML, JSON and checkpoints, and back."""

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgnl.settings.blocks import BLOCK_OPTIONS, check_names, fitting, options_class
from cgnl.settings.checks import converted
from cgnl.settings.detection import DetectionRecipe
from cgnl.settings.image import Recipe, recipe_with_arch, with_size
from cgnl.settings.video import VideoDataConfig, VideoRecipe

# Fields that had other names in earlier versions.
_RENAMED = {"schedule.warmup_epochs": "warmup"}
# Fields that earlier versions had: a file may name them, and they change nothing.
_REMOVED = {(VideoDataConfig, "backend")}
# Earlier versions kept the blocks' options in the network's part. A network with all of these fields is from a whole
# recipe of such a version. `g_std` is missing here, because it was added later.
_OF_OLD_NETWORKS = {
    *("arch", "block", "num_blocks", "groups", "kernel", "norm", "scale", "channel_reduction"),
    *("weights", "new_classifier"),
}
# Fields that runs of earlier versions do not have under these names; those versions behaved as the defaults say.
_NEW_FIELDS = {
    "block": {"z_groups", "statistic"},
    "data": {
        *("num_outputs", "val_list", "val_annotations", "val_images", "val_fraction", "val_seed", "follow_links"),
        *("channels", "mean", "std"),
        *("missing_limit", "fps", "folder_fps", "test_wrap", "frame_pattern", "frame_tolerance"),
        *("num_folds", "held_out_fold", "augment", "balanced_sampler"),
    },
    "network": {"places"},
    "optimizer": {"bias_weight_decay", "bias_lr_factor", "lr_batch", "layer_decay", "class_weights"},
    "schedule": {"unit", "warmup"},
    "trainer": {"best_by", "early_stopping"},
}
TASKS: dict[str, type[Recipe]] = {kind.task: kind for kind in (Recipe, VideoRecipe, DetectionRecipe)}
"""The recipes of each task; ``cgnl/tasks/NAME.py`` has the rest of the task NAME."""


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
    """Return the recipe that ``values`` describe, nested as by :func:`to_dict`; other fields have their defaults.

    Raises ValueError, with ``source``, for an unknown task ("image" by default) or field, or a value of another type.
    """
    task = values.get("task", "image") if isinstance(values, Mapping) else "image"
    if task not in [*TASKS]:
        raise ValueError(f"{source}: task must be one of {', '.join(TASKS)}, got {task!r}")
    return override(TASKS[task](), values, source)


def override(recipe: Recipe, values: Mapping[str, Any], source: str) -> Recipe:
    """Return ``recipe`` with the values of some fields replaced, such as ``{"trainer": {"max_epochs": 10}}``.

    Raises ValueError, with ``source``, for a name that is not a field, a value of another type, or another task.
    """
    if isinstance(values, Mapping) and "task" in values:
        if values["task"] != recipe.task:
            raise ValueError(f"{source}: task must be {recipe.task} for this recipe, got {values['task']!r}")
        values = {key: value for key, value in values.items() if key != "task"}
    if not isinstance(values, Mapping):
        raise ValueError(f"{source}: the file must be a mapping of fields, got {values!r}")
    rest, block = _apart(values, source)
    network = rest.get("network")
    if isinstance(network, Mapping) and isinstance(network.get("arch"), str):
        try:
            recipe = recipe_with_arch(recipe, network["arch"])
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
    data = rest.get("data")
    if isinstance(data, Mapping) and type(data.get("size")) is int and data["size"] > 0 and "resize" not in data:
        recipe = with_size(recipe, data["size"])
    recipe = _override(recipe, rest, source, "")
    if isinstance(block, Mapping):
        # earlier versions accepted `scale: null` for every kind of block, without effect
        kind = type(recipe.block)
        block = {name: value for name, value in block.items() if value is not None or fitting(kind, {name: value})}
        check_names(recipe.network.block, block, f"{source}: block.")
    return dataclasses.replace(recipe, block=_override(recipe.block, block, source, "block."))


def is_whole(values: Mapping[str, Any], source: str) -> bool:
    """Return whether values name every field, except those that an earlier version did not have."""
    network = values.get("network")
    named = {"block": network["block"]} if isinstance(network, Mapping) and "block" in network else {}
    fields = to_dict(from_dict({"task": values.get("task", Recipe.task), "network": named}, source))
    if _is_of_before(values):
        del fields["block"]
    return all(
        isinstance(values.get(part), Mapping) and names.keys() - _NEW_FIELDS.get(part, set()) <= values[part].keys()
        for part, names in fields.items()
        if part != "task"
    )


def check_field(recipe: Recipe, part: str, name: str) -> None:
    """Raise ValueError for a field that only recipes of other tasks have in that part; unknown names pass."""
    if hasattr(getattr(recipe, part, None), name):
        return
    if others := [task for task, kind in TASKS.items() if hasattr(getattr(kind(), part, None), name)]:
        raise ValueError(
            f"{part}.{name} is for recipes of the task {' or '.join(others)}, and this one is of the task {recipe.task}"
        )


def _apart(values: Mapping[str, Any], source: str) -> tuple[dict[str, Any], Any]:
    """Split values into the block's options and the rest; earlier versions kept the options in the network's part."""
    rest = {part: value for part, value in values.items() if part != "block"}
    options, network = values.get("block", {}), values.get("network")
    if not isinstance(network, Mapping) or not isinstance(options, Mapping):
        return rest, options
    old = {name: value for name, value in network.items() if name in BLOCK_OPTIONS}
    if twice := old.keys() & options.keys():
        raise ValueError(f"{source}: block.{min(twice)} is given twice, also as network.{min(twice)}")
    rest["network"] = {name: value for name, value in network.items() if name not in old}
    if _is_of_before(values):
        # such a recipe names every option, whether the block has it or not
        old = fitting(options_class(network["block"]), old)
        if old.get("scale") in ("sqrt", "mean") and "g_std" not in network:
            old["g_std"] = 0.01
    return rest, {**old, **options}


def _is_of_before(values: Mapping[str, Any]) -> bool:
    """Return whether values are a whole recipe of a version that kept the blocks' options in the network's part."""
    network = values.get("network")
    if "block" in values or not isinstance(network, Mapping) or not network.keys() >= _OF_OLD_NETWORKS:
        return False
    return isinstance(network["block"], str)


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
            raise ValueError(f"{source}: {prefix}{name} is not a field of a recipe; fields here: {', '.join(fields)}")
        if name in changed:
            raise ValueError(f"{source}: {prefix}{name} is given twice, also under its earlier name")
        if dataclasses.is_dataclass(getattr(config, name)):
            changed[name] = _override(getattr(config, name), value, source, f"{prefix}{name}.")
        else:
            changed[name] = converted(fields[name], value, f"{source}: {prefix}{name}")
    try:
        return dataclasses.replace(config, **changed)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
