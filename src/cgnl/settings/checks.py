"""Checks of values that a user gives: one sentence that names the argument, the rule and the value."""

import math
import re
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

MAX_WORKERS = 256
"""Most processes that read samples, or run at once, for one command; each takes memory of its own."""


def within(name: str, value: float | None, low: float, high: float = math.inf) -> None:
    """Raise ValueError unless a number is None, or finite and within bounds, both included."""
    finite(name, value)
    if value is not None and not low <= value <= high:
        allowed = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} ({value}) must be {allowed}")


def positive(name: str, value: float | None) -> None:
    """Raise ValueError unless a number is None, or finite and above 0."""
    finite(name, value)
    if value is not None and value <= 0:
        raise ValueError(f"{name} ({value}) must be above 0")


def check_per_channel(name: str, values: Sequence[float], channels: int) -> None:
    """Raise ValueError unless there are no values, one finite number, or one for each channel."""
    for value in values:
        finite(name, value)
    if len(values) not in (0, 1, channels):
        given = " ".join(f"{value:g}" for value in values)
        raise ValueError(
            f"{name} ({given}) must be one number, or one for each channel: {len(values)} are given, and data.channels "
            f"is {channels}"
        )


def check_division(fraction: float, seed: int, num_folds: int | None, held_out_fold: int | None) -> None:
    """Raise ValueError unless data.val_fraction, data.val_seed, data.num_folds and data.held_out_fold go together."""
    if not 0 <= fraction < 1:
        raise ValueError(f"data.val_fraction ({fraction:g}) must be at least 0 and below 1")
    within("data.val_seed", seed, 0)
    within("data.num_folds", num_folds, 2)
    if num_folds is None and held_out_fold is not None:
        raise ValueError(f"data.held_out_fold ({held_out_fold}) needs data.num_folds, such as 5")
    if num_folds is not None and held_out_fold is None:
        raise ValueError(f"data.num_folds ({num_folds}) needs data.held_out_fold: a number from 1 to {num_folds}")
    within("data.held_out_fold", held_out_fold, 1, num_folds or 1)
    if num_folds is not None and fraction:
        raise ValueError(
            f"data.val_fraction ({fraction:g}) and data.num_folds ({num_folds}) both hold samples out: give one of them"
        )


def finite(name: str, value: float | None) -> None:
    """Raise ValueError unless a number is None or finite."""
    if value is not None and not -math.inf < value < math.inf:
        raise ValueError(f"{name} ({value}) must be a finite number")


def read_none(config: Any, *names: str) -> None:
    """Replace the text "none", in capitals too, by None in fields of a frozen dataclass."""
    for name in names:
        if str(getattr(config, name)).lower() == "none":
            object.__setattr__(config, name, None)


def check_choice(name: str, value: object, choices: Iterable[object], more: str = "") -> None:
    """Raise ValueError unless a value is one of the choices; the message ends with ``more``, such as " or a number"."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name} ({value!r}) must be one of {', '.join(map(repr, choices))}{more}")


def check_local(name: str, value: object) -> None:
    """Raise ValueError for an address on the internet where a file or folder of this machine is needed.

    Args:
        name: Where the value was given; empty for an argument without a name.
        value: A path, or any other value.

    >>> check_local("data.root", "https://example.org/a.zip")
    Traceback (most recent call last):
    ValueError: data.root (https://example.org/a.zip) is an address: cgnl reads files of this machine alone
    """
    # a path that was made of an address has one slash less
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(value)):
        what = f"{name} ({value})" if name else value
        raise ValueError(f"{what} is an address: cgnl reads files of this machine alone")


def name_pattern(name: str, pattern: str) -> re.Pattern[str]:
    """Return the file names that a pattern such as ``img_{:05d}.jpg``, ``img_%05d.jpg`` or ``img_*.jpg`` describes.

    Raises ValueError for a pattern without a place for a number, or with a folder in it.

    >>> bool(name_pattern("frame_pattern", "img_{:05d}.jpg").fullmatch("img_00012.jpg"))
    True
    """
    parts = re.split(r"(\{[^{}]*\}|%0?[0-9]*d|\*)", pattern)
    if len(parts) < 3 or "/" in pattern:
        raise ValueError(
            f"{name} ({pattern}) must be a file name with a place for the number, such as img_{{:05d}}.jpg"
        )
    places = {"*": ".*"}
    return re.compile(
        "".join(places.get(part, "[0-9]+") if place % 2 else re.escape(part) for place, part in enumerate(parts))
    )


def converted(kind: Any, value: Any, where: str) -> Any:
    """Return a value from YAML or JSON in the type of a field; raise ValueError if it has another type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        *literals, last = (arg for arg in args if arg is not type(None))
        choices = [choice for literal in literals for choice in typing.get_args(literal)]
        if value in choices:
            return value
        of_numbers = typing.get_origin(last) is tuple
        if choices and not (isinstance(value, (list, tuple)) if of_numbers else type(value) is last):
            kind = "a list of numbers" if of_numbers else f"of type {last.__name__}"
            raise ValueError(f"{where} must be {', '.join(choices)} or {kind}, got {value!r}")
        return converted(last, value, where)
    if origin is Literal:
        # YAML reads the precision 32 as a number
        match = [choice for choice in args if value == choice or (not isinstance(value, bool) and str(value) == choice)]
        if not match:
            raise ValueError(f"{where} must be one of {', '.join(map(str, args))}, got {value!r}")
        return match[0]
    if origin is tuple:
        if args == (float, ...) and isinstance(value, (int, float)) and not isinstance(value, bool):
            value = (value,)
        if not isinstance(value, (list, tuple)) or (args[-1] is not Ellipsis and len(value) != len(args)):
            raise ValueError(
                f"{where} must be a list{'' if args[-1] is Ellipsis else f' of {len(args)}'}, got {value!r}"
            )
        return tuple(converted(args[0], item, where) for item in value)
    if kind is Path and isinstance(value, (str, Path)):
        check_local(where, value)
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


def is_dotted_name(name: str) -> bool:
    """Return whether a name has the form of a user's function or class, such as ``mypackage.make_network``."""
    parts = name.split(".")
    return len(parts) > 1 and all(part.isidentifier() for part in parts)


def check_arch(arch: str, own: Iterable[str]) -> None:
    """Raise ValueError unless a network's name has a valid form, whether or not a library has the network."""
    own = tuple(own)
    if (
        arch not in own
        and not is_dotted_name(arch)
        and not (arch.startswith(("timm:", "torchvision:")) and arch.partition(":")[2])
    ):
        raise ValueError(
            f"network.arch ({arch}) must be one of {', '.join(own)}, timm:NAME, torchvision:NAME, or a function of "
            "your own such as mypackage.make_network"
        )
