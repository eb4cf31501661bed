"""Checks of values that a user gives: one sentence that names the argument, the rule and the value."""

import math
from collections.abc import Iterable


def within(name: str, value: float | None, low: float, high: float = math.inf) -> None:
    """Raise ValueError unless a number is None or lies between two others, these included.

    Args:
        name: Name of the argument, for the message.
        value: The number.
        low: Smallest number that is allowed.
        high: Largest number that is allowed.
    """
    if value is not None and not low <= value <= high:
        allowed = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} ({value}) must be {allowed}")


def positive(name: str, value: float | None) -> None:
    """Raise ValueError unless a number is None, or finite and above 0.

    Args:
        name: Name of the argument, for the message.
        value: The number.
    """
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"{name} ({value}) must be above 0")


def check_choice(name: str, value: object, choices: Iterable[object], more: str = "") -> None:
    """Raise ValueError unless a value is one of several.

    Args:
        name: Name of the argument, for the message.
        value: The value.
        choices: The values that are allowed.
        more: Anything else that is allowed, for the message, such as ``" or a function"``.
    """
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name} ({value!r}) must be one of {', '.join(map(repr, choices))}{more}")
