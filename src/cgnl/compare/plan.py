"""What a comparison runs: kinds of blocks, seeds, lengths and rates, written down before the first run."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml

from cgnl.compare.statistics import PLAIN
from cgnl.files import json_text, write_text
from cgnl.settings.image import Recipe
from cgnl.settings.reading import from_dict, override
from cgnl.training.run import differences

# Fields of a recipe that may change when a single run is continued, and not within a comparison.
_MATTER: tuple[str, ...] = ("network.weights", "network.new_classifier", "trainer.max_steps")
_PLACES = ("data.root", "data.train_list", "data.val_list", "data.test_list")
# What a folder may get more of: it touches no run that is there.
_MAY_GROW = ("blocks", "seeds")
# Seeds of runs that tune: none that a report uses.
FIRST_TUNING_SEED = 1_000_000


@dataclass(frozen=True)
class Trial:
    """One run.

    Attributes:
        block: Label of the kind of block, see `with_block`.
        seed: Seed of the classifier, the order of the samples, the flips and dropout; the same for all kinds.
        length: "fixed": the common number of epochs; "own": the kind's own best; "twice": plain for twice the epochs;
            "tuning": a run that only tunes.
        epochs: Epochs.
        rate: Learning rate at the start.
        factor: The block's rate divided by that.
    """

    block: str
    seed: int
    length: str
    epochs: int
    rate: float
    factor: float

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from all others."""
        return dataclasses.astuple(self)


@dataclass(frozen=True)
class Protocol:
    """What a comparison does, as it stands in ``protocol.json``.

    Attributes:
        command: The command line.
        recipe: The recipe as plain values, without block and seed.
        blocks: Labels of the kinds of blocks.
        seeds: Seeds of the report.
        frozen: Whether the network up to the block stays as it is, and its maps are cached.
        epochs: The common number of epochs.
        rate: Learning rate.
        weight_decay: Weight decay.
        dropout: Probability of dropout before the classifier.
        width: Channels of the 1x1 convolution between block and classifier.
        factors: Factors of rates that are tried, and lengths as multiples of the epochs; both empty without tuning.
        tuning_seeds: Seeds of each try.
        head: What follows the block on cached maps: "new" for a new classifier, or "network" for the network's layers.
        block_rate_factor: The blocks' rate divided by the learning rate, without tuning.
        samples: What tells the data set from others, see `cgnl.compare.maps.samples_digest`.
    """

    command: str
    recipe: dict[str, Any]
    blocks: tuple[str, ...]
    seeds: tuple[int, ...]
    frozen: bool
    epochs: int
    rate: float
    weight_decay: float
    dropout: float
    width: int
    factors: tuple[float, ...] = ()
    lengths: tuple[int, ...] = ()
    tuning_seeds: int = 2
    head: str = "new"
    block_rate_factor: float = 1.0
    samples: str = ""

    def write(self, folder: Path, **words: Any) -> None:
        """Write it into a folder, with words for people.

        A folder may get more seeds and kinds of blocks: they touch no run that is there. The file then says under
        ``earlier`` what it had before, since results were known when these were added.

        Raises:
            ValueError: The folder holds another protocol.
        """
        path, values = folder / "protocol.json", json.loads(json.dumps(dataclasses.asdict(self)))
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            if changed := _changes(before, values, str(path)):
                raise ValueError(
                    f"{folder} holds another comparison ({'; '.join(changed)}); give the same options again to "
                    "continue it, or another --out"
                )
            own = {name: before[name] for name in _MAY_GROW}
            if all(own[name] == values[name] for name in _MAY_GROW):
                return
            words["earlier"] = [*before.get("earlier", []), own]
        write_text(path, json_text({**values, **words}, indent=1, ensure_ascii=False) + "\n")


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], path: str) -> list[str]:
    """Return what differs between the values of two protocols and touches the numbers."""
    # a protocol of an earlier version lacks some
    added = {field.name: field.default for field in dataclasses.fields(Protocol) if field.default is not MISSING}
    before = {**json.loads(json.dumps(added)), **before}
    found = [
        f"{name} was {before.get(name)}, now {value}"
        for name, value in now.items()
        if name not in ("command", "recipe", "samples")
        and (before.get(name) != value if name not in _MAY_GROW else not set(before[name]) <= set(value))
    ]
    stored, given = (from_dict(values["recipe"], path) for values in (before, now))
    if type(stored) is not type(given):
        return [*found, "the recipe was one of another task"]
    matter = _MATTER
    if not before["samples"]:
        matter += _PLACES
    elif before["samples"] != now["samples"]:
        found.append("the samples were others")
    pairs = {name: (attrgetter(name)(stored), attrgetter(name)(given)) for name in matter}
    return [*found, *differences(stored, given), *(f"{n} was {a}, now {b}" for n, (a, b) in pairs.items() if a != b)]


def with_block(recipe: Recipe, label: str) -> Recipe:
    """Return a recipe with a kind of block.

    Args:
        recipe: The recipe.
        label: The kind, and options of it behind a colon: ``cgnl:groups=1,norm=group``; ``num_blocks`` is the network's

    Raises:
        ValueError: There is no such kind, option or value.
    """
    kind, _, options = label.partition(":")
    values: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        name, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"--blocks ({label}): {option} must be OPTION=VALUE, such as groups=1")
        values[name] = yaml.safe_load(value)
    count = {"num_blocks": values.pop("num_blocks")} if "num_blocks" in values else {}
    return override(recipe, {"network": {"block": kind, **count}, "block": values}, f"--blocks ({label})")


def planned(protocol: Protocol, tuned: Mapping[str, Mapping[str, Any]]) -> list[Trial]:
    """Return the runs that the report needs, seed by seed, so that an early end leaves whole pairs.

    Args:
        protocol: The protocol.
        tuned: For each label the best ``rate``, ``factor`` of the fixed length, and ``own`` (epochs, rate, factor).
    """
    trials = []
    for seed in protocol.seeds:
        for block in protocol.blocks:
            best = tuned.get(block, {})
            factor = best.get("factor", 1.0 if block == PLAIN else protocol.block_rate_factor)
            rate = best.get("rate", protocol.rate)
            trials.append(Trial(block, seed, "fixed", protocol.epochs, rate, factor))
            if block == PLAIN:
                trials.append(Trial(block, seed, "twice", 2 * protocol.epochs, rate, factor))
            if "own" in best and len(protocol.lengths) > 1:
                trials.append(Trial(block, seed, "own", *best["own"]))
    return trials


def tuning(protocol: Protocol, block: str, rate: float | None = None) -> list[Trial]:
    """Return the runs that tune a kind: plain's rate, or a block's factor at that rate, each at every length."""
    trials = []
    for multiple in protocol.lengths:
        for factor in protocol.factors:
            for number in range(protocol.tuning_seeds):
                seed, epochs = FIRST_TUNING_SEED + number, multiple * protocol.epochs
                if rate is None:
                    trials.append(Trial(block, seed, "tuning", epochs, protocol.rate * factor, 1.0))
                else:
                    trials.append(Trial(block, seed, "tuning", epochs, rate, factor))
    return trials


def best_of(rows: Sequence[Mapping[str, Any]], epochs: int) -> dict[str, Any]:
    """Return the best settings among runs that tuned one kind: at ``epochs``, and at any length.

    The mean top-1 over the seeds decides; of equal ones the shorter and then the smaller.
    """
    scores: dict[tuple[int, float, float], list[float]] = {}
    for row in rows:
        scores.setdefault((row["epochs"], row["rate"], row["block_rate_factor"]), []).append(row["top1"])
    means = {settings: sum(values) / len(values) for settings, values in sorted(scores.items())}
    own = max(means, key=lambda settings: means[settings])
    fixed = max((settings for settings in means if settings[0] == epochs), key=lambda settings: means[settings])
    return {"rate": fixed[1], "factor": fixed[2], "own": own}
