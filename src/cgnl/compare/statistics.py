"""Paired differences between the runs of a block and those of the plain network, with 95 % intervals.

Runs of one seed have the same samples in the same order, so their difference is free of what the seed changes.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Run = Mapping[str, Any]
"""A line of ``runs.jsonl``."""
Outcome = Literal["better", "worse", "no difference shown", "not enough seeds"]

PLAIN = "none"
_LENGTHS = {"fixed": "", "twice": ", twice as long", "own": ", own length"}


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences.

    Attributes:
        mean: Mean of the differences; NaN without a pair.
        half_width: Half of the 95 % t-interval; None if there is no interval.
        seeds: Seeds that both have.
        unpaired: Seeds that the block has, and the plain network lacks.
    """

    mean: float
    half_width: float | None
    seeds: tuple[int, ...]
    unpaired: tuple[int, ...] = ()

    @property
    def low(self) -> float:
        """The interval's lower end; NaN without an interval."""
        return math.nan if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float:
        """The interval's upper end; NaN without an interval."""
        return math.nan if self.half_width is None else self.mean + self.half_width

    @property
    def outcome(self) -> Outcome:
        """The difference in words, where more is better."""
        if self.half_width is None:
            return "not enough seeds"
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no difference shown"

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "–"
        if self.half_width is None:
            return _signed(self.mean, 1)
        # a second digit where the first would hide on which side of 0 the interval lies
        digits = 2 if self.mean and round(abs(self.mean), 1) == round(self.half_width, 1) else 1
        return f"{_signed(self.mean, digits)} ± {self.half_width:.{digits}f}"


def _signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # a rounded zero has no minus sign


@dataclass(frozen=True)
class Group:
    """The runs of one kind of block at one length.

    Attributes:
        block: Kind of the block.
        length: Number of epochs: "fixed", "own" or "twice".
        runs: Runs by seed.
        plain: Top-1 minus that of the plain network at this length (that of the fixed length for "twice"); None for
            the plain network itself.
        control: Top-1 minus that of the plain network trained for twice the epochs; None without such runs.
    """

    block: str
    length: str
    runs: Mapping[int, Run]
    plain: Difference | None
    control: Difference | None

    @property
    def name(self) -> str:
        """Name for people."""
        return ("plain" if self.block == PLAIN else self.block) + _LENGTHS.get(self.length, f", {self.length}")

    def values(self, key: str) -> dict[int, float]:
        """Return a number of each run by seed; NaN where a run has none."""
        return {seed: math.nan if run.get(key) is None else float(run[key]) for seed, run in self.runs.items()}

    def mean(self, key: str) -> float:
        """Return the mean of a number over the runs."""
        return statistics.fmean(self.values(key).values())


def groups_of(runs: Iterable[Run], order: Sequence[str]) -> list[Group]:
    """Return the runs by length and kind, with their differences from the plain network.

    Args:
        runs: Runs in the order of their ends; of two runs with the same kind, length and seed the later one counts.
        order: Kinds of blocks in the order of the groups; other kinds follow.
    """
    found: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        found.setdefault((run["length"], run["block"]), {})[run["seed"]] = run
    blocks = list(dict.fromkeys([*order, *(block for _, block in found)]))
    lengths = list(dict.fromkeys([*_LENGTHS, *(length for length, _ in found)]))

    def against(own: Mapping[int, Run], length: str) -> Difference:
        plain = found.get((length, PLAIN), {})
        return paired(*({seed: float(run["top1"]) for seed, run in some.items()} for some in (own, plain)))

    groups = []
    for length, block in sorted(found, key=lambda key: (lengths.index(key[0]), blocks.index(key[1]))):
        own = found[length, block]
        plain = control = None
        if block != PLAIN:
            plain = against(own, length)
            control = against(own, "twice") if ("twice", PLAIN) in found else None
        elif length == "twice":
            plain = against(own, "fixed")
        groups.append(Group(block, length, dict(sorted(own.items())), plain, control))
    return groups


def paired(values: Mapping[int, float], plain: Mapping[int, float]) -> Difference:
    """Return the mean of the differences by seed, with its 95 % t-interval.

    There is no interval with fewer than two pairs, or if all differences are the same and not 0: their spread is then
    unknown, not 0.

    Example:
        >>> print(paired({0: 71.0, 1: 73.0, 2: 75.0}, {0: 70.0, 1: 71.0, 2: 72.0}))
        +2.0 ± 2.5
    """
    seeds = tuple(sorted(values.keys() & plain.keys()))
    unpaired = tuple(sorted(values.keys() - plain.keys()))
    differences = [values[seed] - plain[seed] for seed in seeds]
    mean = statistics.fmean(differences) if seeds else math.nan
    if len(seeds) < 2 or not math.isfinite(mean):
        return Difference(mean, None, seeds, unpaired)
    deviation = statistics.stdev(differences)
    if deviation < 1e-9 < abs(mean):
        return Difference(mean, None, seeds, unpaired)
    half_width = t_quantile(len(seeds) - 1) * deviation / math.sqrt(len(seeds))
    return Difference(mean, half_width, seeds, unpaired)


def t_quantile(degrees: int, coverage: float = 0.95) -> float:
    """Return the t between whose negative and itself Student's distribution has a share of its mass.

    The share is a finite sum for whole degrees of freedom, and bisection inverts it.
    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4.

    Args:
        degrees: Degrees of freedom, at least 1.
        coverage: Share of the mass, between 0 and 1.

    Example:
        >>> round(t_quantile(4), 3)
        2.776
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _mass_within(middle, degrees) < coverage:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _mass_within(angle: float, degrees: int) -> float:
    """Return the mass of Student's distribution between -t and t, for t = sqrt(degrees) tan(angle)."""
    odd = degrees % 2
    if degrees == 1:
        return 2 * angle / math.pi
    term = total = math.cos(angle) if odd else 1.0
    for k in range(1 + odd, degrees - 2, 2):
        term *= k / (k + 1) * math.cos(angle) ** 2
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
