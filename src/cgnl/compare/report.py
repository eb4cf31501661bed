"""The report of a comparison: a verdict in words, pictures and a table, from what the folder holds alone."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cgnl.compare import pictures
from cgnl.compare.statistics import PLAIN, Difference, Group, Run, groups_of, paired
from cgnl.data.decoding import DataError
from cgnl.explain import report
from cgnl.files import write_text

_NEEDED = ("block", "seed", "length", "top1")
_PLAIN_WORDS = "the plain network"
_INTERVALS = (
    "A difference is paired: a block's run is compared with the plain network's run of the same seed, which saw the "
    "same samples in the same order. ± is the half width of the 95 % t-interval of the mean difference. It covers the "
    "variation between seeds, not between test sets. "
)
_COSTS = (
    "Parameters and multiplications are those of the part that is trained, the latter for one sample. Seconds are the "
    "mean time of a run."
)
_READING = (
    "s is the sum of phi g over the positions of a sample, or the covariance or correlation in its place; the block "
    "multiplies theta by it. If top-1 stays the same with s set to its mean over the test samples, then the block "
    "ignores the s of each sample, and acts as a residual block. If top-1 falls, the block uses s. cv is the "
    "standard deviation of s over the samples divided by its mean, averaged over the groups. A block without sums can "
    "only be removed."
)
_SCORED = {"fixed": "Compared with", "own": "With each kind's own number of epochs, compared with"}


def write_report(folder: Path) -> str:
    """Write ``report.html`` into a comparison's folder from its ``protocol.json`` and ``runs.jsonl``.

    It can be written at any time: runs that have not finished yet are missing from it, and it says how many.

    Args:
        folder: Folder of a comparison.

    Returns:
        The verdict: one to four sentences, each on a line of its own.

    Raises:
        DataError: The folder has no protocol, or a line of ``runs.jsonl`` lacks a number.
    """
    protocol = _read_protocol(folder / "protocol.json")
    runs, unreadable = read_runs(folder / "runs.jsonl")
    # the tries of a tuning are no results
    groups = groups_of((run for run in runs if run["length"] != "tuning"), protocol.get("blocks", ()))
    words = verdict(groups)
    notes = [*_missing(groups, protocol), *_unpaired(groups)]
    if unreadable:
        lines = "1 line" if unreadable == 1 else f"{unreadable} lines"
        notes.append(f"Skipped {lines} of runs.jsonl that could not be read; a kill can cut a line.")
    top = [*map(report.paragraph, words.splitlines()), *(report.paragraph(note, dim=True) for note in notes)]
    sections = [("", "".join(top))]
    if groups:
        sections += sections_of(groups, protocol.get("blocks", ()))
    settings = [(_title(key), _plain(value)) for key, value in protocol.items()]
    sections.append(("Protocol", report.table(("setting", "value"), settings)))
    title = f"Blocks compared on {protocol.get('data', folder.name)}"
    write_text(folder / "report.html", report.page(title, sections))
    return words


def _read_protocol(path: Path) -> dict[str, Any]:
    try:
        protocol = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path.parent} must be the folder of a comparison, but it has no {path.name}.") from None
    except ValueError:
        protocol = None
    if not isinstance(protocol, dict):
        raise DataError(f"{path} must be a JSON object.")
    return protocol


def read_runs(path: Path) -> tuple[list[Run], int]:
    """Return the runs of a ``runs.jsonl``, and the number of its lines that are no JSON, as a kill leaves them.

    A file that does not exist has no runs. DataError where a line lacks what every run has.
    """
    runs: list[Run] = []
    unreadable = 0
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            run = json.loads(line)
        except ValueError:
            unreadable += 1
            continue
        lacking = [key for key in _NEEDED if not isinstance(run, dict) or run.get(key) is None]
        if lacking:
            raise DataError(f"{path}, line {number}, lacks {', '.join(lacking)}.")
        runs.append(run)
    return runs, unreadable


def verdict(groups: Sequence[Group]) -> str:
    """Return the outcome of the runs in one to four sentences, each on a line of its own."""
    if not groups:
        return "No run has finished yet, so there is nothing to compare."
    plain = {group.length: group for group in groups if group.block == PLAIN}
    others = [group for group in groups if group.block != PLAIN]
    if not others:
        return f"Only {_PLAIN_WORDS} has finished runs, so there is nothing to compare it with."
    if not plain.keys() & {group.length for group in others}:
        return f"No run of {_PLAIN_WORDS} has finished yet, so no block can be compared with it."
    sentences = [
        _outcomes(beginning, [group for group in others if group.length == length], plain[length])
        for length, beginning in _SCORED.items()
        if length in plain and any(group.length == length for group in others)
    ]
    fixed = [group for group in others if group.length == "fixed"]
    if "twice" in plain:
        sentences.append(_against_longer(fixed, plain["twice"]))
    if "fixed" in plain:
        sentences.append(_memorising(fixed, plain["fixed"]))
    return "\n".join(filter(None, sentences))


def _outcomes(beginning: str, groups: Sequence[Group], plain: Group) -> str:
    """Return which kinds are better or worse than the plain network, as a sentence."""
    by_outcome: dict[str, list[str]] = {}
    counts = set()
    for group in groups:
        assert group.plain is not None
        counts.add(len(group.plain.seeds))
        by_outcome.setdefault(group.plain.outcome, []).append(_with(group.block, group.plain))
    clauses = [
        f"{_listed(by_outcome[outcome])} {'is' if len(by_outcome[outcome]) == 1 else 'are'} {outcome}"
        for outcome in ("better", "worse")
        if outcome in by_outcome
    ]
    if same := by_outcome.get("no difference shown"):
        clauses.append(f"no difference is shown for {_listed(same)}")
    if few := by_outcome.get("not enough seeds"):
        clauses.append(f"there are not enough seeds to judge {_listed(few)}")
    seeds = _span(counts) + (" paired seed" if counts == {1} else " paired seeds")
    return (
        f"{beginning} {_PLAIN_WORDS} ({plain.mean('top1'):.1f} % top-1) over {seeds}, in points with 95 % intervals: "
        f"{'; '.join(clauses)}."
    )


def _against_longer(groups: Sequence[Group], twice: Group) -> str:
    """Return whether the plain network closes its gap to better kinds in twice the epochs; empty if none is better."""
    closed, still = [], []
    for group in groups:
        if group.control and group.plain and group.plain.outcome == "better":
            if group.control.outcome == "better":
                still.append(_with(group.name, group.control))
            elif group.control.outcome != "not enough seeds":
                closed.append(_with(group.name, group.control))
    if not closed and not still:
        return ""
    found = []
    if closed:
        found.append(f"closes the gap to {_listed(closed)}")
    if still:
        found.append(f"does not close the gap to {_listed(still)}")
    start = _PLAIN_WORDS.capitalize()
    return f"{start}, trained for twice the epochs, reaches {twice.mean('top1'):.1f} %, which {_listed(found)}."


def _memorising(groups: Sequence[Group], plain: Group) -> str:
    """Return which kinds memorise the training samples; empty if none does.

    A kind does if its training loss is at most half of the plain network's and its test loss is higher, both by their
    intervals.
    """
    found = []
    for group in groups:
        train, test = (paired(group.values(key), plain.values(key)) for key in ("train_loss", "test_loss"))
        if train.high < 0 and test.low > 0 and group.mean("train_loss") <= plain.mean("train_loss") / 2:
            found.append(group)
    if not found:
        return ""
    names = _listed([group.name for group in found])
    train_losses, test_losses = (
        f"{_listed([f'{group.mean(key):.2f}' for group in found])} against {plain.mean(key):.2f}"
        for key in ("train_loss", "test_loss")
    )
    verb, owner = ("memorises", "its") if len(found) == 1 else ("memorise", "their")
    return (
        f"{names} {verb} the training samples: {owner} training loss is far lower than that of {_PLAIN_WORDS} "
        f"({train_losses}), but {owner} test loss is higher ({test_losses})."
    )


def _with(name: str, difference: Difference) -> str:
    return f"{name} ({difference})" if difference.seeds else f"{name} (no paired seed)"


def _listed(items: Sequence[str]) -> str:
    """Return items as a list in words."""
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def _span(numbers: set[int]) -> str:
    return f"{min(numbers)} to {max(numbers)}" if len(numbers) > 1 else str(*numbers)


def _missing(groups: Sequence[Group], protocol: Mapping[str, Any]) -> list[str]:
    """Return a sentence on the planned runs of the fixed length, if some are missing."""
    planned = {(block, seed) for block in protocol.get("blocks", ()) for seed in protocol.get("seeds", ())}
    done = {(group.block, seed) for group in groups if group.length == "fixed" for seed in group.runs}
    count = len(planned & done)
    return [f"Of the runs with equal epochs, {count} of {len(planned)} have finished."] if count < len(planned) else []


def _unpaired(groups: Sequence[Group]) -> list[str]:
    """Return a sentence on each set of seeds that the plain network lacks."""
    found: dict[str, list[str]] = {}
    for group in groups:
        if group.plain and group.plain.unpaired:
            found.setdefault(", ".join(map(str, group.plain.unpaired)), []).append(group.name)
    return [
        f"Not paired, because {_PLAIN_WORDS} has no run of the seed: {seeds} ({'; '.join(names)})."
        for seeds, names in found.items()
    ]


def sections_of(groups: Sequence[Group], order: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pictures and the tables; the epochs that all kinds share come before each kind's own."""
    style = pictures.styles(list(dict.fromkeys([*order, *(group.block for group in groups)])))
    shared = [group for group in groups if group.length != "own"]
    own = [group for group in groups if group.length == "own"]
    count = sum(1 for group in groups if group.block != PLAIN and group.plain and group.plain.half_width is not None)
    accuracy, curves, sums = "", "", ""
    for some, epochs in ((shared, "Equal epochs"), (own, "Each kind's own number of epochs")):
        if not some:
            continue
        accuracy += report.figure(
            pictures.accuracy(some, style),
            f"{epochs}. Left: test accuracy of each seed after the last epoch, and the mean. Right: the mean of the "
            "paired differences, with its 95 % interval.",
        )
        if drawn := pictures.curves(some, style):
            curves += report.figure(drawn, f"{epochs}. Thick: mean over the seeds. Faint: single seeds.")
        if drawn := pictures.sums(some, style):
            caption = f"{epochs}. Test accuracy with the block as trained, changed and removed."
            sums += report.figure(drawn, caption) + _sums_table(some)
    accuracy += _accuracies(groups) + report.paragraph(_INTERVALS + _unadjusted(count), dim=True)
    if sums:
        sums += report.paragraph(_READING, dim=True)
    costs = _costs(groups) + report.paragraph(_COSTS, dim=True)
    sections = [("Accuracy", accuracy), ("Blocks removed, and their sums changed", sums), ("Training", curves)]
    return [section for section in [*sections, ("Cost", costs)] if section[1]]


def _unadjusted(count: int) -> str:
    """Return that several intervals are not adjusted, and what follows from it."""
    if count < 2:
        return ""
    return (
        "As usual in this field, the intervals are not adjusted for the number of comparisons. Even if no block "
        f"differed from the plain network, at least one of the {count} intervals against it would leave out 0 with a "
        f"probability of up to {min(100, 5 * count)} %."
    )


def _accuracies(groups: Sequence[Group]) -> str:
    header = ("kind", "top-1", "against plain (n)", "outcome", "against plain, twice as long (n)")
    rows = [
        (
            group.name,
            f"{group.mean('top1'):.1f} %",
            _counted(group.plain),
            group.plain.outcome if group.plain else "–",
            _counted(group.control),
            *(_number(group.mean(key), ".2f") for key in ("test_loss", "train_loss")),
        )
        for group in groups
    ]
    return report.table((*header, "test loss", "training loss"), rows, numbers=(1, 2, 4, 5, 6))


def _costs(groups: Sequence[Group]) -> str:
    header = ("kind", "parameters", "multiplications", "seconds", "rate", "rate factor of the block", "epochs")
    rows = [
        (
            group.name,
            _number(group.mean("parameters") / 1e6, ".3f", " M"),
            _number(group.mean("multiplications") / 1e6, ".1f", " M"),
            _number(group.mean("seconds"), ".1f"),
            *(_each(group, key) for key in ("rate", "block_rate_factor", "epochs")),
        )
        for group in groups
    ]
    return report.table(header, rows, numbers=range(1, 7))


def _sums_table(groups: Sequence[Group]) -> str:
    columns = {
        "top1": ("as trained", 1, ".1f", " %"),
        "mean_s": ("s set to its mean", 1, ".1f", " %"),
        "shuffled_s": ("s shuffled", 1, ".1f", " %"),
        "removed": ("block removed", 1, ".1f", " %"),
        "s_cv": ("cv of s", 1, ".2f", ""),
        "s_positive": ("s positive", 100, ".0f", " %"),
        "branch_over_x": ("branch over x", 1, ".2f", ""),
    }
    rows = []
    for group in groups:
        if found := pictures.diagnoses(group):
            means = {key: statistics.fmean(found[key]) if key in found else math.nan for key in columns}
            cells = (_number(factor * means[key], form, unit) for key, (_, factor, form, unit) in columns.items())
            rows.append((group.name, *cells))
    return report.table(["kind", *(title for title, *_ in columns.values())], rows, numbers=range(1, 8))


def _counted(difference: Difference | None) -> str:
    return f"{difference} ({len(difference.seeds)})" if difference else "–"


def _number(value: float, form: str, unit: str = "") -> str:
    return f"{value:{form}}{unit}" if math.isfinite(value) else "–"


def _each(group: Group, key: str) -> str:
    """Return the different values of a setting in the runs."""
    return ", ".join(dict.fromkeys("–" if run.get(key) is None else f"{run[key]:g}" for run in group.runs.values()))


def _title(key: str) -> str:
    return key.replace("_", " ")


def _plain(value: Any) -> str:
    """Return a value of the protocol for people."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(map(_plain, value))
        case dict():
            return "; ".join(f"{_title(key)}: {_plain(one)}" for key, one in value.items())
    return str(value)
