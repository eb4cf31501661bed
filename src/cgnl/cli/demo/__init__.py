"""``cgnl demo``: drawn data, a base network that learns to see it, blocks compared on its maps, and a report."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from torch import nn

from cgnl.cli.demo.maps import maps_section
from cgnl.compare import pictures
from cgnl.compare.maps import cached
from cgnl.compare.plan import Protocol, Trial, with_block
from cgnl.compare.report import read_runs, sections_of, verdict
from cgnl.compare.running import run
from cgnl.compare.statistics import PLAIN, Group, groups_of
from cgnl.compare.trials import train_on_maps
from cgnl.data.decoding import DataError
from cgnl.data.scanning import count_workers
from cgnl.explain import report
from cgnl.files import json_text, write_text
from cgnl.insertion import inserted_blocks
from cgnl.settings.reading import to_dict
from cgnl.tasks import load_trained, train
from cgnl.tasks.registry import task_of
from cgnl.training.trained import TrainedNetwork

BLOCKS = (PLAIN, "residual", "cgnl", "cgnl-correlation")
_SHOWN = "cgnl"
# every job holds PyTorch in memory
_MAX_JOBS = 4


@dataclass(frozen=True)
class Question:
    """A data set on which blocks are compared.

    Args:
        folder: Name of its folder.
        title: Its title in the report.
        seeds: Seeds of the comparison.
        epochs: Epochs of each run.
    """

    folder: str
    title: str
    seeds: int
    epochs: int


@dataclass(frozen=True)
class Subject:
    """A demo.

    Args:
        title: Title of the report.
        drawing: What is drawn, for people.
        draw: Draws everything into a folder with a seed.
        folders: Names of the folders that it draws.
        base: Returns the base's recipe, without seed, from that folder.
        base_learns: What the base learns, for people.
        recipe: Recipe of the compared networks, without data root, weights and seed.
        questions: Data sets on which blocks are compared; the first one is the report's first picture.
        rate: Learning rate of the comparison.
        about: What the sets are, for people.
        sheet: A picture of a set, with its caption.
    """

    title: str
    drawing: str
    draw: Callable[[Path, int], None]
    folders: tuple[str, ...]
    base: Callable[[Path], Any]
    base_learns: str
    recipe: Any
    questions: tuple[Question, ...]
    rate: float
    about: str
    sheet: Callable[[Path], tuple[Image.Image, str]]


def run_demo(subject: Subject, out: Path, *, seed: int = 0, smallest: bool = False) -> Path:
    """Draw the data, train the base, compare blocks, and write ``out/report.html``, which is returned.

    ``out/accuracies.json`` has its numbers. An earlier demo in the folder is replaced; if it holds anything else,
    DataError is raised. With ``smallest`` the report says that the run only shows that all parts work.
    """
    written = {*subject.folders, *(_place(out, question).name for question in subject.questions)}
    clear(out, {*written, "base", "accuracies.json", "explain.html", "report.html"}, subject.folders[0])
    console, started = Console(soft_wrap=True, highlight=False), time.monotonic()
    console.print(f"Drawing {subject.drawing} ...")
    subject.draw(out, seed)
    console.print(f"\nTraining the base, {subject.base_learns} ...")
    base = subject.base(out)
    train(replace(base, trainer=replace(base.trainer, seed=seed, devices=1)), out / "base", name="base")
    groups = {}
    for question in subject.questions:
        console.print(f"\nComparing blocks on {question.title} ...")
        groups[question] = _compared(subject, question, out, seed, console)
    seconds = time.monotonic() - started
    write_text(out / "accuracies.json", json_text({"seconds": round(seconds), "sets": _numbers(groups)}, indent=2))
    path = out / "report.html"
    write_text(path, _page(subject, groups, out, seed, seconds, smallest))
    words = "\n".join(f"{_capital(question.title)}: {_words(found)}" for question, found in groups.items())
    console.print(f"\n{words}\nReport: {path.resolve()}  ({seconds / 60:.1f} minutes in all)")
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


def _place(out: Path, question: Question) -> Path:
    return out / f"compare-{question.folder}"


def _recipe(subject: Subject, question: Question, out: Path) -> Any:
    network = replace(subject.recipe.network, weights=str(out / "base" / "last.ckpt"), new_classifier=True)
    return replace(subject.recipe, network=network, data=replace(subject.recipe.data, root=out / question.folder))


def _protocol(subject: Subject, question: Question, out: Path, seed: int) -> Protocol:
    return Protocol(
        command="cgnl demo",
        recipe=to_dict(with_block(_recipe(subject, question, out), PLAIN)),
        blocks=BLOCKS,
        seeds=tuple(range(1000 * seed, 1000 * seed + question.seeds)),
        frozen=True,
        epochs=question.epochs,
        rate=subject.rate,
        weight_decay=5e-4,
        dropout=0.5,
        width=128,
    )


def _compared(subject: Subject, question: Question, out: Path, seed: int, console: Console) -> list[Group]:
    folder = _place(out, question)
    folder.mkdir()
    protocol = _protocol(subject, question, out, seed)
    protocol.write(folder)
    run(protocol, folder, jobs=min(_MAX_JOBS, count_workers(None)), say=console.print)
    return groups_of(read_runs(folder / "runs.jsonl")[0], BLOCKS)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _words(groups: Sequence[Group]) -> str:
    """Return the first sentence of the verdict, on the common number of epochs."""
    return verdict(groups).splitlines()[0]


def _numbers(groups: dict[Question, list[Group]]) -> dict[str, dict[str, Any]]:
    return {
        question.folder: {
            group.name: {
                "top1": group.mean("top1"),
                "against_plain": group.plain.mean if group.plain else None,
                "half_width": group.plain.half_width if group.plain else None,
                "seeds": len(group.runs),
            }
            for group in found
        }
        for question, found in groups.items()
    }


def _page(
    subject: Subject, groups: dict[Question, list[Group]], out: Path, seed: int, seconds: float, smallest: bool
) -> str:
    first, *_ = subject.questions
    style = pictures.styles(BLOCKS)
    warning = "This is the smallest form of the demo: it shows that all parts work; its accuracies mean nothing. "
    opening = f"{_capital(first.title)}. {_words(groups[first])}"
    shown = report.figure(
        pictures.accuracy([group for group in groups[first] if group.length == "fixed"], style),
        f"Test accuracy on {first.title}: each seed, and the paired differences from the plain network.",
    )
    about = (
        f"A plain network trained as the base: {subject.base_learns}. Its layers up to the place of the block then "
        f"stayed as they were, and computed a map of every sample once. On these maps, a block and a new classifier "
        f"trained: the same samples in the same order for all kinds. {subject.about}"
    )
    sections = [
        ("", report.paragraph((warning if smallest else "") + opening) + shown),
        ("How it was done", report.paragraph(about) + report.paragraph(f"Seed {seed}, {seconds:.0f} s.", dim=True)),
    ]
    for question, found in groups.items():
        text = "".join(map(report.paragraph, verdict(found).splitlines()))
        parts = "".join(f"<h3>{heading}</h3>\n{body}" for heading, body in sections_of(found, BLOCKS))
        sections.append((f"Blocks compared on {question.title}", text + parts))
        sections.append((f"The set: {question.title}", report.photograph(*subject.sheet(out / question.folder))))
    trained, samples = _shown(subject, first, out, seed)
    sections.insert(2, maps_section(trained, samples, out / "explain.html"))
    return report.page(subject.title, sections)


def _shown(
    subject: Subject, question: Question, out: Path, seed: int
) -> tuple[TrainedNetwork, list[tuple[Path, str | None]]]:
    """Return the first seed's network with a CGNL block, trained once more to the same bits, and some test samples."""
    protocol = _protocol(subject, question, out, seed)
    recipe = with_block(_recipe(subject, question, out), _SHOWN)
    features = cached(recipe, _place(out, question), lambda line: None)
    trial = Trial(_SHOWN, protocol.seeds[0], "fixed", question.epochs, subject.rate, 1.0)
    task: Any = task_of(recipe)
    learned, _ = train_on_maps(protocol, trial, features)
    network = _whole(task.build_network(recipe, len(features.classes)), learned)
    base = load_trained(out / "base" / "last.ckpt")
    classes = features.classes
    trained = replace(base, network=network, recipe=recipe, name="cgnl", classes=classes, num_classes=len(classes))
    samples = task.make_data(recipe.data, inputs=task.inputs(recipe), run=out).test_samples.samples
    chosen = samples[:: -(-len(samples) // 3)]
    return trained, [(sample.path, classes[sample.label]) for sample in chosen]


def _whole(network: Any, learned: Any) -> nn.Module:
    """Return a ResNet up to its block in layer3, with the trained block and classifier of a comparison behind it."""
    block, head = learned
    ((_, own),) = inserted_blocks(network).items()
    own.load_state_dict(block.state_dict())
    network.layer3 = network.layer3[:1]
    convolution, norm, relu, *_, dropout, linear = head
    # a video network's layers see single frames
    of_frames = nn.Conv2d(convolution.in_channels, convolution.out_channels, 1, bias=False)
    of_frames.weight = nn.Parameter(convolution.weight.detach().reshape(of_frames.weight.shape))
    norm_of_frames = nn.BatchNorm2d(norm.num_features)
    norm_of_frames.load_state_dict(norm.state_dict())
    network.layer4 = nn.Sequential(of_frames, norm_of_frames, relu)
    network.fc = nn.Sequential(dropout, linear)
    whole: nn.Module = network.eval()
    return whole


__all__ = ["BLOCKS", "Question", "Subject", "clear", "run_demo"]
