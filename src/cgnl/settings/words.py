"""Numbers in sentences and tables for people."""

import math


def counted(number: int, noun: str, nouns: str | None = None) -> str:
    """Return a number with its noun, in the plural (by default with an s) unless there is one.

    >>> counted(1, "bad file"), counted(20, "bad file")
    ('1 bad file', '20 bad files')
    """
    return f"{number} {noun if number == 1 else nouns or f'{noun}s'}"


def decimal(value: float) -> str:
    """Return a number with two digits, or a dash for nan: a score of nothing."""
    return "–" if math.isnan(value) else f"{value:.2f}"


def percent(value: float) -> str:
    """Return a score (%) with its unit, or a dash for nan.

    >>> percent(12.345), percent(math.nan)
    ('12.35 %', '–')
    """
    return "–" if math.isnan(value) else f"{value:.2f} %"
