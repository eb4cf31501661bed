"""``cgnl demo --detection``: drawn flocks, a backbone trained on drawn birds, a detector, and a report."""

import csv
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from cgnl.cli.demo import clear
from cgnl.cli.demo.maps import maps_section
from cgnl.data.decoding import open_image
from cgnl.data.detection import DetectionDataset, read_coco
from cgnl.explain import report
from cgnl.explain.detections import draw_objects
from cgnl.files import json_text, write_text
from cgnl.recipes import RECIPES
from cgnl.settings.image import Recipe
from cgnl.tasks import detect, load_trained, train
from cgnl.tasks import evaluate as evaluate_detection
from cgnl.toy.birds import draw_birds
from cgnl.toy.flock import contact_sheet, draw_flock
from cgnl.training.detection_evaluation import DetectionEvaluation
from cgnl.training.trained import TrainedNetwork

_KINDS = ("box", "mask")
_MEASURES = ("AP", "AP50", "AP75")
_MIN_SCORE = 0.5


def run(out: Path, *, seed: int = 0, smallest: bool = False) -> Path:
    """Draw the data, train a backbone and a detector, test it, and write ``out/report.html``.

    Args:
        out: Folder for everything; an earlier demo in it is replaced.
        seed: Seed of the drawing and of the training.
        smallest: A run of seconds that only shows that all parts work.

    Returns:
        The report.

    Raises:
        DataError: The folder holds something else.
    """
    clear(
        out,
        {"birds", "flock", "backbone", "detector", "average_precision.json", "explain.html", "report.html"},
        "flock",
    )
    console, started = Console(soft_wrap=True), time.monotonic()
    species, birds = (3, 4) if smallest else (10, 60)
    train_images, test_images = (8, 4) if smallest else (300, 60)
    console.print(f"Drawing {train_images + test_images} flocks, and {species} species of single birds ...")
    draw_flock(out / "flock", train_images=train_images, test_images=test_images, seed=seed)
    draw_birds(out / "birds", num_species=species, train_images=birds, test_images=4, seed=seed)
    console.print("\nTraining the backbone, a ResNet-18, to name single birds ...")
    train(_backbone(out / "birds", seed, smallest), out / "backbone", name="backbone")
    console.print("\nTraining Mask R-CNN with this backbone and a CGNL block in it on the flocks ...")
    recipe = _detector(out, seed, smallest)
    train(recipe, out / "detector", name="detector")
    trained = load_trained(out / "detector" / "last.ckpt")
    result = evaluate_detection(trained, recipe.data, out=out / "detector" / "evaluation")
    seconds = time.monotonic() - started
    outcome = {"count": result.count, **result.measures()}
    record = {"seconds": round(seconds), "networks": {"Mask R-CNN with a CGNL block": outcome}}
    write_text(out / "average_precision.json", json_text(record, indent=2))
    path = out / "report.html"
    write_text(path, _page(out, trained, result, seconds, smallest))
    console.print(f"\n{_outcome(result)}\nReport: {path.resolve()}  ({seconds / 60:.1f} minutes in all)")
    return path


def _backbone(root: Path, seed: int, smallest: bool) -> Recipe:
    recipe = RECIPES["birds-resnet18"].make()
    size = 64 if smallest else 96
    return replace(
        recipe,
        data=replace(recipe.data, root=root, size=size, resize=round(size * 8 / 7), batch_size=4 if smallest else 32),
        trainer=replace(recipe.trainer, max_epochs=1 if smallest else 6, seed=seed, devices=1, test_every_n_epochs=3),
    )


def _detector(out: Path, seed: int, smallest: bool) -> Recipe:
    recipe: Any = RECIPES["flock-maskrcnn-resnet18-cgnl"].make()
    data, trainer = replace(recipe.data, root=out / "flock"), replace(recipe.trainer, seed=seed, devices=1)
    if smallest:
        data = replace(data, size=72, max_size=96, batch_size=2)
        trainer = replace(trainer, max_steps=2, log_every_n_steps=1)
    network = replace(recipe.network, backbone_weights=str(out / "backbone" / "last.ckpt"))
    detector: Recipe = replace(recipe, network=network, data=data, trainer=trainer)
    return detector


def _outcome(result: DetectionEvaluation) -> str:
    measures = [f"{kind} AP {getattr(result, kind)['AP']:.1f} %" for kind in _KINDS]
    return f"{' and '.join(measures)} on {result.count} test images."


def _page(out: Path, trained: TrainedNetwork, result: DetectionEvaluation, seconds: float, smallest: bool) -> str:
    warning = "This is the smallest form of the demo: it shows that all parts work; its numbers mean nothing. "
    recipe = trained.recipe
    about = (
        "A ResNet-18 first learned to name single drawn birds. With it as the backbone, Mask R-CNN with a feature "
        f"pyramid was trained on drawn flocks for {recipe.trainer.max_steps} steps of {recipe.data.batch_size} images. "
        "A compact generalized non-local block stands right before the last residual block of res4; it starts as the "
        "identity. Average precisions are COCO's, over the test images after the last step: AP is the mean over "
        "thresholds of the overlap from 0.5 to 0.95, AP50 and AP75 are those at 0.5 and 0.75. The demo does not "
        "measure what the block adds."
    )
    rows = [(kind, *(f"{getattr(result, kind)[measure]:.1f} %" for measure in _MEASURES)) for kind in _KINDS]
    sections = [
        ("", report.paragraph((warning if smallest else "") + _outcome(result))),
        (
            "Average precision",
            report.table(("", *_MEASURES), rows, numbers=(1, 2, 3))
            + report.paragraph(about)
            + report.paragraph(f"Seed {recipe.trainer.seed}, {seconds:.0f} s in all.", dim=True),
        ),
        ("What it sees", _pictures(out, trained)),
        maps_section(trained, _some_images(out), out / "explain.html"),
        ("Training", report.figure(_curves(out), "Loss in training, and average precision on the test images.")),
        ("By species", _per_class(result)),
        ("The flocks", report.photograph(contact_sheet(out / "flock"), "Some test images and their annotations.")),
    ]
    return report.page("Mask R-CNN with a CGNL block, on drawn flocks", sections)


def _some_images(out: Path, count: int = 3) -> list[tuple[Path, str | None]]:
    """Return some test images, evenly spread; they have no class."""
    samples = read_coco(out / "flock", "test").samples
    return [(samples[place].path, None) for place in range(0, len(samples), -(-len(samples) // count))]


def _pictures(out: Path, trained: TrainedNetwork, count: int = 10) -> str:
    """Show some test images: the truth beside what the network detects."""
    images = read_coco(out / "flock", "test")
    dataset = DetectionDataset(images)
    pairs = []
    for index in range(0, len(images), max(1, len(images) // count))[:count]:
        image, target = open_image(images.samples[index].path), dataset[index]["target"]
        found = detect(trained, image, min_score=_MIN_SCORE)
        scores = found.pop("scores")
        pairs.append(
            [
                draw_objects(image, names=images.classes, min_side=432, **objects)
                for objects in ({key: target[key] for key in ("boxes", "labels", "masks")}, {**found, "scores": scores})
            ]
        )
    width, height = (
        6 + max(getattr(picture, side) for pair in pairs for picture in pair) for side in ("width", "height")
    )
    sheet = Image.new("RGB", (2 * width - 6, len(pairs) * height - 6), "white")
    for row, pair in enumerate(pairs):
        for column, picture in enumerate(pair):
            sheet.paste(picture, (column * width, row * height))
    caption = f"Test images: annotations on the left, detections with a score of at least {_MIN_SCORE} on the right."
    return report.photograph(sheet, caption)


def _curves(out: Path) -> Figure:
    drawn = Figure(figsize=(9, 3.4))
    loss, precision = drawn.subplots(1, 2)
    with (out / "detector" / "steps.csv").open(newline="") as file:
        steps = list(csv.DictReader(file))
    loss.plot([int(row["step"]) for row in steps], [float(row["loss"]) for row in steps], color=report.COLOURS[2])
    with (out / "detector" / "epochs.csv").open(newline="") as file:
        epochs = [row for row in csv.DictReader(file) if row["test_mask_ap"]]
    for kind, colour in (("box", report.COLOURS[0]), ("mask", report.COLOURS[2])):
        values = [float(row[f"test_{kind}_ap"]) for row in epochs]
        precision.plot([int(row["step"]) for row in epochs], values, color=colour, marker="o", markersize=3, label=kind)
    loss.set(xlabel="step", ylabel="training loss", ylim=(0, None))
    precision.set(xlabel="step", ylabel="test AP (%)", ylim=(0, 100))
    for axes in (loss, precision):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    precision.legend(frameon=False, fontsize=8)
    return drawn


def _per_class(result: DetectionEvaluation) -> str:
    rows = [(name, str(count), f"{box:.1f} %", f"{mask:.1f} %") for name, count, box, mask in result.per_class]
    return report.table(("species", "birds", "box AP", "mask AP"), rows, numbers=(1, 2, 3))
