"""``cgnl demo``: drawn data, a base network, two equal continuations of it, and a report of what came out."""

import csv
import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from rich.console import Console

from cgnl.cli.demo.maps import maps_section
from cgnl.data.decoding import DataError
from cgnl.explain import report
from cgnl.files import write_text
from cgnl.recipes import RECIPES
from cgnl.settings.image import Recipe
from cgnl.tasks import evaluate, load_trained, train
from cgnl.training.evaluation import Evaluation

# Okabe and Ito's palette, which the common colour blindnesses tell apart
COLOURS = {"base": "#999999", "plain": "#0072B2", "cgnl": "#D55E00"}
_NAMES = {"plain": "plain, continued", "cgnl": "with a CGNL block, continued"}


@dataclass(frozen=True)
class Subject:
    """What a demo draws and trains on.

    Args:
        title: Title of the report.
        folder: Name of the data set's folder.
        plain: Recipe of the plain network.
        cgnl: Recipe of the network with a CGNL block.
        network: What both are, for people.
        data: Changes to the recipes' data.
        base_name: The base in tables.
        base_data: Further changes to the base's data, from the data set's folder, if its task is another one.
        start: Makes the start weights of both continuations from the base's run.
        freeze: Module paths that stay as they are in both continuations.
        base: What the base learns, for people.
        base_epochs: Epochs of the base.
        fork_epochs: Epochs of each continuation.
        fork_lr: Learning rate of the continuations over that of the base.
        drawing: What is drawn, for people.
        draw: Draws the data set into a folder with a seed.
        about: What the classes are, for people.
        class_noun: What a class is, "species" or "class", in the plural.
        noun: What a sample is, in the plural.
        sheet: A picture of the data set, with its caption.
        thumbnail: A picture of one sample.
        more: Further sections of the report, heading and body, from the folders of the runs.
    """

    title: str
    folder: str
    plain: str
    cgnl: str
    network: str
    data: dict[str, Any]
    base: str
    base_epochs: int
    fork_epochs: int
    fork_lr: float
    drawing: str
    draw: Callable[[Path, int], None]
    about: str
    class_noun: str
    noun: str
    sheet: Callable[[Path], tuple[Image.Image, str]]
    thumbnail: Callable[[Path], Image.Image]
    base_name: str = "base"
    base_data: Callable[[Path], dict[str, Any]] = lambda root: {}
    start: Callable[[Path], Path] = lambda run: run / "last.ckpt"
    freeze: tuple[str, ...] = ()
    more: Callable[[dict[str, Path]], list[tuple[str, str]]] = lambda runs: []


def run_demo(subject: Subject, out: Path, *, seed: int = 0, smallest: bool = False) -> Path:
    """Draw the data, train, test, and write ``out/report.html``, which is returned, and ``out/accuracies.json``.

    An earlier demo in the folder is replaced; if it holds anything else, DataError is raised. With ``smallest`` the
    report says that the run only shows that all parts work.
    """
    clear(
        out, {subject.folder, "base", "plain", "cgnl", "accuracies.json", "explain.html", "report.html"}, subject.folder
    )
    console, started = Console(soft_wrap=True), time.monotonic()
    console.print(f"Drawing {subject.drawing} ...")
    subject.draw(out / subject.folder, seed)
    recipes = {"base": _fitted(subject, "base", out, seed, None)}
    console.print(
        f"\nTraining a plain {subject.network} from scratch, as the base of both networks: {subject.base} ..."
    )
    train(recipes["base"], out / "base", name="base")
    start = subject.start(out / "base")
    for key, what in (
        ("plain", "the base for some more epochs, unchanged"),
        ("cgnl", "the base for the same epochs and samples, with one CGNL block"),
    ):
        recipes[key] = _fitted(subject, key, out, seed, start)
        console.print(f"\nTraining {what} ...")
        train(recipes[key], out / key, name=key)
    console.print("\nTesting ...")
    results = {key: _tested(out / key) for key in recipes}
    names = {"base": subject.base_name, **_NAMES}
    for key, result in results.items():
        console.print(f"  {names[key]:30} {_accuracy(result)}")
    path = out / "report.html"
    seconds = time.monotonic() - started
    outcome = {names[key]: asdict(result) for key, result in results.items()}
    write_text(out / "accuracies.json", json.dumps({"seconds": round(seconds), "networks": outcome}, indent=2))
    write_text(path, _page(out, subject, names, recipes, results, seconds, smallest))
    console.print(f"\n{_verdict(results, subject)}\nReport: {path.resolve()}  ({seconds / 60:.1f} minutes in all)")
    return path


def clear(out: Path, written: set[str], data: str) -> None:
    """Empty a demo's folder if it holds nothing but an earlier demo; raise DataError if it holds anything else.

    ``written`` names what a demo writes, and ``data`` is the one of these names that every demo's folder has.
    """
    if not out.exists():
        return
    found = {path.name for path in out.iterdir()}
    if found and (data not in found or found - written):
        raise DataError(f"{out} holds other files: empty it, or choose another folder with --out")
    for path in out.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _fitted(subject: Subject, key: str, out: Path, seed: int, weights: Path | None) -> Recipe:
    """Return the recipe of a run at the demo's size."""
    recipe = RECIPES[subject.cgnl if key == "cgnl" else subject.plain].make()
    base = key == "base"
    root = out / subject.folder
    data = subject.data | (subject.base_data(root) if base else {})
    return replace(
        recipe,
        network=replace(recipe.network, weights=str(weights) if weights else None),
        data=replace(recipe.data, root=root, **data),
        optimizer=replace(recipe.optimizer, lr=recipe.optimizer.lr * (1.0 if base else subject.fork_lr)),
        trainer=replace(
            recipe.trainer,
            max_epochs=subject.base_epochs if base else subject.fork_epochs,
            freeze=() if base else subject.freeze,
            seed=seed,
            devices=1,
            test_every_n_epochs=2,
        ),
    )


def _tested(run: Path) -> Evaluation:
    trained = load_trained(run / "last.ckpt")
    return evaluate(trained, trained.recipe.data, out=run / "evaluation")


def _accuracy(result: Evaluation) -> str:
    low, high = result.top1_interval
    return f"top-1 {result.top1:.1f} % ({low:.1f} to {high:.1f}), top-5 {result.top5:.1f} %"


def _verdict(results: dict[str, Evaluation], subject: Subject) -> str:
    plain, cgnl = results["plain"], results["cgnl"]
    chance = 100 / len(plain.per_class)
    difference = cgnl.top1 - plain.top1
    overlap = cgnl.top1_interval[0] <= plain.top1_interval[1] and plain.top1_interval[0] <= cgnl.top1_interval[1]
    if difference == 0:
        outcome = "The CGNL block made no difference here"
    else:
        outcome = (
            f"The network with the CGNL block is {abs(difference):.1f} points {'better' if difference > 0 else 'worse'}"
        )
        if overlap:
            outcome += f", but with so few test {subject.noun} this may be chance"
    return f"Chance is {chance:.1f} %. {outcome}."


def _page(
    out: Path,
    subject: Subject,
    names: dict[str, str],
    recipes: dict[str, Recipe],
    results: dict[str, Evaluation],
    seconds: float,
    smallest: bool,
) -> str:
    recipe, tested = recipes["cgnl"], results["plain"]
    warning = "This is the smallest form of the demo: it shows that all parts work; its accuracies mean nothing. "
    rows = [
        (names[key], f"{r.top1:.1f} %", "{:.1f} to {:.1f} %".format(*r.top1_interval), f"{r.top5:.1f} %", str(r.count))
        for key, r in results.items()
    ]
    about = (
        f"A plain {subject.network} was trained from scratch on drawn {subject.folder} "
        f"(epochs: {recipes['base'].trainer.max_epochs}): {subject.base}. "
        f"From there, two networks trained on (epochs: {recipe.trainer.max_epochs}) with the same seed, samples and "
        "crops: one unchanged, and one with a compact generalized non-local block in its res4 stage, which starts as "
        f"the identity. {subject.about} Accuracies are those of the last epoch, with 95 % intervals."
    )
    sections = [
        ("", report.paragraph((warning if smallest else "") + _verdict(results, subject))),
        (
            "Accuracy",
            report.table(
                ("network", "top-1", "95 % interval", "top-5", f"test {subject.noun}"), rows, numbers=(1, 2, 3, 4)
            )
            + report.paragraph(about)
            + report.paragraph(
                f"Input {recipe.data.size} pixels, seed {recipe.trainer.seed}, {seconds:.0f} s in all.", dim=True
            ),
        ),
        maps_section(load_trained(out / "cgnl" / "last.ckpt"), _some_samples(out), out / "explain.html"),
        *subject.more({name: out / key for key, name in _NAMES.items()}),
        (
            "Training",
            report.figure(_curves(out, names, recipes), "Loss in training and top-1 accuracy on the test set."),
        ),
        (
            f"Accuracy by {subject.class_noun}",
            report.figure(
                _per_class(results), f"Top-1 accuracy of each of {len(tested.per_class)} {subject.class_noun}."
            ),
        ),
        ("Confused pairs", _confused(results)),
        ("Samples", _samples(out, subject)),
        (f"The {subject.folder}", report.photograph(*subject.sheet(out / subject.folder))),
    ]
    return report.page(subject.title, sections)


def _curves(out: Path, names: dict[str, str], recipes: dict[str, Recipe]) -> Figure:
    drawn = Figure(figsize=(9, 3.4))
    loss, accuracy = drawn.subplots(1, 2)
    offset = recipes["base"].trainer.max_epochs
    for key in recipes:
        with (out / key / "epochs.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        epochs = [int(row["epoch"]) + 1 + (0 if key == "base" else offset) for row in rows]
        marker = "o" if len(rows) < 30 else ""
        for axes, column in ((loss, "train_loss"), (accuracy, "test_top1")):
            known = [
                (epoch, float(row[column])) for epoch, row in zip(epochs, rows, strict=True) if row[column] != "nan"
            ]
            axes.plot(*zip(*known, strict=True), color=COLOURS[key], marker=marker, markersize=3, label=names[key])
    loss.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    accuracy.set(xlabel="epoch", ylabel="test top-1 (%)", ylim=(0, 100))
    for axes in (loss, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    accuracy.legend(frameon=False, fontsize=8)
    return drawn


def _per_class(results: dict[str, Evaluation]) -> Figure:
    names = [name for name, _, _ in results["plain"].per_class]
    drawn = Figure(figsize=(9, 0.5 + 0.36 * len(names)))
    axes = drawn.subplots()
    for shift, key in ((-0.2, "plain"), (0.2, "cgnl")):
        values = [value for _, _, value in results[key].per_class]
        places = [place + shift for place in range(len(names))]
        axes.barh(places, values, height=0.36, color=COLOURS[key], label=_NAMES[key])
    axes.set_yticks(range(len(names)), [_plain_name(name) for name in names])
    axes.invert_yaxis()
    axes.set(xlabel="top-1 (%)", xlim=(0, 100))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return drawn


def _confused(results: dict[str, Evaluation]) -> str:
    pairs: dict[tuple[str, str], dict[str, int]] = {}
    for key in ("plain", "cgnl"):
        for true, predicted, times in results[key].confused:
            pairs.setdefault((true, predicted), {})[key] = times
    worst = sorted(pairs, key=lambda pair: -sum(pairs[pair].values()))[:10]
    rows = [
        (
            _plain_name(true),
            _plain_name(predicted),
            *(str(pairs[true, predicted].get(key, 0)) for key in ("plain", "cgnl")),
        )
        for true, predicted in worst
    ]
    return report.table(("true", "taken for", _NAMES["plain"], _NAMES["cgnl"]), rows, numbers=(2, 3))


def _some_samples(out: Path, count: int = 3) -> list[tuple[Path, str | None]]:
    """Return some test samples with their classes, evenly spread."""
    rows = read_predictions(out / "cgnl")
    return [(Path(rows[place]["path"]), rows[place]["label"]) for place in range(0, len(rows), -(-len(rows) // count))]


def _samples(out: Path, subject: Subject, count: int = 12) -> str:
    predictions = {key: read_predictions(out / key) for key in ("plain", "cgnl")}
    total = len(predictions["plain"])
    chosen = [total * k // count for k in range(min(count, total))]
    return report.cards(
        _card(subject.thumbnail, *(predictions[key][place] for key in ("plain", "cgnl"))) for place in chosen
    )


def read_predictions(run: Path) -> list[dict[str, str]]:
    """Return the lines of ``predictions.csv`` of a tested run."""
    with (run / "evaluation" / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _card(
    thumbnail: Callable[[Path], Image.Image], plain: dict[str, str], cgnl: dict[str, str]
) -> tuple[Image.Image, str, Sequence[tuple[bool, str]]]:
    lines = [
        (
            row["class1"] == row["label"],
            f"{name}: {_plain_name(row['class1'])}, {100 * float(row['probability1']):.0f} %",
        )
        for name, row in (("plain", plain), ("CGNL", cgnl))
    ]
    return thumbnail(Path(plain["path"])), _plain_name(plain["label"]), lines


def _plain_name(name: str) -> str:
    """Return a class's name as words: `001.Grey_tit` and `GreyTit` are both shown with a space."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.split(".", 1)[-1].replace("_", " "))
