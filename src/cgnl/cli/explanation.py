"""``cgnl explain``."""

import csv
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from cgnl.cli.options import (
    Checkpoint,
    Files,
    OptionalCheckpoint,
    OptionalFile,
    OptionalFolder,
    OptionalInt,
    OptionalText,
)
from cgnl.settings.checks import within


def explain(
    checkpoint: Positional[Checkpoint],
    inputs: Positional[Files] = (),
    beside: OptionalCheckpoint = None,
    at: OptionalText = None,
    figure: Annotated[Literal[1, 5, 6] | None, tyro.conf.arg(help_behavior_hint="")] = None,
    out: OptionalFile = None,
    block: OptionalText = None,
    channel: OptionalInt = None,
    mistakes: int = 0,
    score: bool = False,
    data: OptionalFolder = None,
    limit: OptionalInt = None,
    seed: int = 0,
) -> None:
    """Show which positions the blocks of a network relate: on an interactive page, or in a figure of the paper.

    Args:
        checkpoint: A checkpoint, or a run folder (its best.ckpt, or else its last.ckpt).
        inputs: Image files; for a video classifier, video files or folders of frames.
        beside: Show a second network beside the first, for instance one with an NL block.
        at: Start at this position, x,y (pixels of the image) or x,y,frame (frame of the clip, from 0); by default
            where the block's g is strongest, in a figure of a video in its first frame.
        figure: Draw this figure of the paper instead of the page: 5 (image), 1 (regions in a video) or 6 (heat maps).
        out: Write this file: the page (by default explain.html), or the figure (explain.png; also .svg and .pdf).
        block: Draw or score the block at this path; by default the last block.
        channel: Take this reference channel of a CGNL block in the figure; by default the one with the strongest g.
        mistakes: Add this many of the most confident mistakes that the last `cgnl evaluate` of the run found.
        score: Measure how well the maps cover the annotated parts of a data set (CUB or the drawn birds).
        data: Folder of that data set; by default the recipe's.
        limit: Number of test images to score; by default all.
        seed: Seed of the bootstrap that gives the scores their intervals.
    """
    # everything that is wrong with the arguments is said before the work
    if out is not None:
        _check_out(out, page=figure is None and not score)
    if figure is None:
        _refuse("without --figure", {"--channel": channel is not None, "--block": block is not None and not score})
    if score:
        given = {"--at": at is not None, "--mistakes": mistakes != 0, "--figure": figure is not None}
        _refuse("with --score", {**given, "an input": bool(inputs)})
    else:
        _refuse("without --score", {"--data": data is not None, "--limit": limit is not None, "--seed": seed != 0})
    within("mistakes", mistakes, 0)
    networks = _load(checkpoint, beside)
    if score:
        _score(networks, data, block, limit, seed, out)
        return
    truths: dict[Path, str | None] = dict.fromkeys(inputs)
    if mistakes:
        truths |= _mistakes(checkpoint, networks, mistakes)
    if not truths:
        raise ValueError("inputs must name at least one image or video (or give --mistakes or --score)")
    if figure is not None:
        if len(truths) > 1:
            raise ValueError(f"inputs: a figure shows one image or video, not {len(truths)}")
        _draw(networks, next(iter(truths)), at, figure, block, channel, out or Path("explain.png"))
    elif write_maps_page(networks, truths, at, out or Path("explain.html")):
        sys.exit(2)


def _load(checkpoint: Path, beside: Path | None) -> dict[str, Any]:
    """Return the networks by the names that they have beside each other."""
    from cgnl.tasks import load_trained

    loaded = [(path, load_trained(path)) for path in (checkpoint, beside) if path is not None]
    for what, values in (
        ("kind of input", {type(trained.recipe) for _, trained in loaded}),
        ("classes", {trained.classes for _, trained in loaded}),
    ):
        if len(values) > 1:
            raise ValueError(f"beside ({beside}) must hold a network for the same {what} as {checkpoint}")
    return dict(zip(_names(loaded), [trained for _, trained in loaded], strict=True))


def _refuse(when: str, given: dict[str, bool]) -> None:
    """Refuse options that would do nothing: their names, and whether they are given."""
    for name, is_given in given.items():
        if is_given:
            raise ValueError(f"{name} does nothing {when}")


def _check_out(out: Path, *, page: bool) -> None:
    if out.is_dir():
        raise ValueError(f"out ({out}) must be a file, not a folder")
    wanted: tuple[str, ...] = (".html", ".htm")
    if not page:
        from cgnl.explain.figures import SUFFIXES as wanted
    if out.suffix.lower() not in wanted:
        raise ValueError(f"out ({out}) must end in {' or '.join(wanted)}, as {'the page' if page else 'a figure'} does")


def _names(loaded: Sequence[tuple[Path, Any]]) -> list[str]:
    """Return names for networks beside each other: those of their blocks, with their runs where names are equal."""
    from cgnl.blocks.kinds import words_of

    blocks = [words_of(trained.recipe.network.block) for _, trained in loaded]
    runs = [path.name if path.is_dir() else f"{path.absolute().parent.name}/{path.name}" for path, _ in loaded]
    whole = [str(path) for path, _ in loaded]
    for names in (blocks, _joined(blocks, runs), _joined(blocks, whole)):
        if len(set(names)) == len(loaded):
            return names
    raise ValueError(f"beside ({whole[-1]}) must be another network than the first")


def _joined(blocks: Sequence[str], others: Sequence[str]) -> list[str]:
    return [f"{block} ({other})" for block, other in zip(blocks, others, strict=True)]


def _mistakes(checkpoint: Path, networks: dict[str, Any], count: int) -> dict[Path, str | None]:
    """Return the samples that a run got wrong with the highest probability, and their classes."""
    from cgnl.tasks import task_of

    task = task_of(next(iter(networks.values())).recipe)
    if not task.classifies:
        raise ValueError(f"mistakes needs a network that classifies, and {checkpoint} is {task.words}")
    file = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / "evaluation" / "predictions.csv"
    if not file.is_file():
        raise ValueError(f"mistakes: there is no {file}; `cgnl evaluate {checkpoint}` writes it")
    columns = ("path", "label", "class1", "probability1")
    with file.open(newline="") as opened:
        reader = csv.DictReader(opened)
        if lacking := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise ValueError(
                f"mistakes: {file} has no column {lacking[0]}; `cgnl evaluate {checkpoint}` writes it again"
            )
        rows = list(reader)
    try:
        wrong = sorted(
            (row for row in rows if row["label"] != row["class1"]), key=lambda row: -float(row["probability1"])
        )
    except ValueError as error:
        raise ValueError(f"mistakes: {file}: {error}; `cgnl evaluate {checkpoint}` writes it again") from None
    if not wrong:
        raise ValueError(f"mistakes: {file} has none")
    return {Path(row["path"]): row["label"] for row in wrong[:count]}


def _position(at: str, seen: Any, frame: int | None = None) -> tuple[float, float, int]:
    """Read x,y or x,y,frame of an input; without a frame it is ``frame``, by default the middle one."""
    num_frames = len(seen.frames)
    try:
        x, y, *rest = at.split(",")
        point = float(x), float(y)
        (frame,) = [int(part) for part in rest] or [num_frames // 2 if frame is None else frame]
    except ValueError:
        raise ValueError(f"at ({at}) must be x,y or x,y,frame, for example 320,200") from None
    if rest and num_frames == 1:
        raise ValueError(f"at ({at}) must be x,y for an image, which has no frames")
    if not 0 <= frame < num_frames:
        raise ValueError(f"at ({at}) must name a frame from 0 to {num_frames - 1}")
    try:
        seen.view.position(*point, (1, 1))
    except ValueError as error:
        raise ValueError(f"at: in {seen.path}, {error}") from None
    return *point, frame


def _draw(
    networks: dict[str, Any], path: Path, at: str | None, number: int, block: str | None, channel: int | None, out: Path
) -> None:
    from cgnl.explain.figures import figure1, figure5, figure6, save_figure
    from cgnl.explain.inputs import parts_of, strongest_position
    from cgnl.tasks import trace_file

    seen, traces = trace_file(networks, path)
    chosen = {name: (trace, _block(trace, block, name)) for name, trace in traces.items()}
    grouped = any(trace.blocks[where].kind != "nl" for trace, where in chosen.values())
    if not grouped:
        _refuse("for a block that has one map for all channels", {"--channel": channel is not None})
    first, where = next(iter(chosen.values()))
    # a figure begins with its reference, as in the paper
    strongest = partial(strongest_position, first.blocks[where], seen, first_step=True)
    place = strongest() if at is None else _position(at, seen, 0)
    if number == 5:
        if len(seen.frames) > 1:
            raise ValueError(f"figure 5 shows an image, and {path} is a video: choose figure 1 or 6")
        drawn = figure5(seen.frames[0], chosen, place[:2], seen.view, channel=channel, parts=parts_of(path))
    elif number == 1:
        drawn = figure1(seen.frames, chosen, place, seen.view, channel=channel)
    else:
        drawn = figure6(seen.frames, chosen, place, seen.view, channel=channel)
    print(f"written: {save_figure(drawn, out)}")
    if seen.colours is not None:
        print(seen.colours)


def _block(trace: Any, block: str | None, name: str) -> str:
    if not trace.blocks:
        raise ValueError(f"the network {name} has no block: there is nothing to explain in it")
    block = list(trace.blocks)[-1] if block is None else block
    if block not in trace.blocks:
        raise ValueError(f"block ({block}) must be one of {', '.join(trace.blocks)}")
    if trace.blocks[block].kind == "residual":
        phrase = trace.blocks[block].phrase
        raise ValueError(f"the network {name} has a {phrase} after {block}, which has no affinity to show")
    return block


def write_maps_page(networks: dict[str, Any], truths: dict[Path, str | None], at: str | None, out: Path) -> int:
    """Write the page of some files; a file that cannot be read is skipped and reported.

    Args:
        networks: Trained networks by name.
        truths: The files, and their classes where they are known; a file in a folder of a class's name is of it.
        at: Where to start, as x,y or x,y,frame; None for the strongest position of each.
        out: The page; not written where no file could be read.

    Returns:
        The number of files that could not be read.
    """
    from cgnl.data.decoding import DataError
    from cgnl.explain.page import write_explain_page

    classes = next(iter(networks.values())).classes
    short = len({path.name for path in truths}) == len(truths)
    bad = 0

    def items() -> Iterator[Any]:
        nonlocal bad
        for path, truth in truths.items():
            known = truth or (path.absolute().parent.name if path.absolute().parent.name in classes else None)
            try:
                yield _item(networks, path, path.name if short else str(path), known, at)
            except DataError as error:
                print(f"cgnl: {error}", file=sys.stderr)
                bad += 1

    try:
        write_explain_page(out, items(), "Maps of the blocks", class_names=classes, notes=_notes(networks))
    except ValueError:
        if bad < len(truths):
            raise
    else:
        print(f"written: {out}")
    return bad


def _notes(networks: dict[str, Any]) -> list[str]:
    """Return what the page shows, and what its reader should know about the inputs."""
    from cgnl.tasks import task_of

    notes = [
        "; ".join(f"{name}: {trained.name}, after {trained.step} steps" for name, trained in networks.items()) + "."
    ]
    recipe = next(iter(networks.values())).recipe
    if note := task_of(recipe).page_note(recipe):
        notes.append(note)
    return notes


def _item(networks: dict[str, Any], path: Path, name: str, truth: str | None, at: str | None) -> Any:
    from cgnl.explain.inputs import strongest_position
    from cgnl.explain.page import PageBlock, PageItem
    from cgnl.tasks import task_of, trace_file

    seen, traces = trace_file(networks, path)
    classifies = task_of(next(iter(networks.values())).recipe).classifies
    blocks = [
        PageBlock(network, trace.blocks[where], _effect(networks[network], seen.x, where) if classifies else None)
        for network, trace in traces.items()
        for where in trace.blocks
        if classifies or trace.blocks[where].kind != "residual"
    ]
    if not blocks:
        raise ValueError("none of the networks has a block with maps or effect: there is nothing to explain")
    related = [block.trace for block in blocks if block.trace.kind != "residual"]
    start = _position(at, seen) if at is not None else strongest_position(related[0], seen) if related else None
    view = seen.view
    logits = {network: trace.output for network, trace in traces.items()} if classifies else {}
    return PageItem(
        name,
        seen.seen_frames(),
        blocks,
        {network: _best(networks[network].classes, output) for network, output in logits.items()},
        truth if classifies else None,
        start and _share(start, seen),
        truth_probability={
            network: _probability_of(truth, networks[network].classes, output) for network, output in logits.items()
        },
        to_file=(view.scale_x, view.scale_y, view.left, view.top),
    )


def _effect(trained: Any, x: Any, where: str) -> Any:
    from cgnl.explain.effect import effect
    from cgnl.explain.inputs import on
    from cgnl.training.trained import default_device

    return effect(trained.network, on(default_device(), x), where)


def _share(start: tuple[float, float, int], seen: Any) -> tuple[float, float, float]:
    """Return a point of the file and its frame as shares of the input's time, height and width."""
    x, y = seen.view.to_input(*start[:2])
    return (start[2] + 0.5) / len(seen.frames), y / seen.view.input_height, x / seen.view.input_width


def _probability_of(truth: str | None, classes: Sequence[str], logits: Any) -> float | None:
    return float(logits.softmax(-1)[classes.index(truth)]) if truth in classes else None


def _best(classes: Sequence[str], logits: Any, count: int = 3) -> list[tuple[str, float]]:
    values, places = logits.softmax(-1).topk(min(count, len(classes)))
    return [(classes[k], value) for k, value in zip(places.tolist(), values.tolist(), strict=True)]


def _score(
    networks: dict[str, Any], data: Path | None, block: str | None, limit: int | None, seed: int, out: Path | None
) -> None:
    from cgnl.explain.figures import save_figure
    from cgnl.explain.score import scores_figure, scores_table
    from cgnl.files import json_text, write_text
    from cgnl.tasks import score_parts, scored_block

    root = data or next(iter(networks.values())).recipe.data.root
    if root is None:
        raise ValueError("data is needed: the folder of a data set with annotated parts")
    for trained in networks.values():
        scored_block(trained, block)  # told before the work, not after it
    scores = [
        (name, score_parts(trained, root, path=block, limit=limit, seed=seed)) for name, trained in networks.items()
    ]
    print(scores_table(scores))
    picture = out or Path("scores.png")
    save_figure(scores_figure(scores), picture)
    table = picture.with_suffix(".json")
    write_text(table, json_text({name: score.as_dict() for name, score in scores}, indent=2) + "\n")
    print(f"written: {picture}, {table}")
