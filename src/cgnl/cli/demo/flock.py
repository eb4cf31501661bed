"""``cgnl demo --detection``: drawn flocks, a backbone trained on drawn birds, two detectors, and a report."""

import csv
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from cgnl.cli.demo import COLOURS, clear
from cgnl.data.decoding import open_image
from cgnl.data.detection import DetectionDataset, read_coco
from cgnl.data.toy.birds import draw_birds
from cgnl.data.toy.flock import contact_sheet, draw_flock
from cgnl.explain import report
from cgnl.explain.detections import draw_objects
from cgnl.recipes import RECIPES, DetectionRecipe, Recipe
from cgnl.training.checkpoint import TrainedNetwork, load_trained
from cgnl.training.detection_evaluation import DetectionEvaluation, detect, evaluate_detection
from cgnl.training.run import train

_NAMES = {"plain": "Mask R-CNN", "cgnl": "Mask R-CNN with a CGNL block"}
_MEASURES = ("AP", "AP50", "AP75")
_MIN_SCORE = 0.5


def run_flock_demo(out: Path, *, seed: int = 0, smallest: bool = False) -> Path:
    """Draw the data, train a backbone and two detectors, test them, and write ``out/report.html``.

    Args:
        out: Folder for everything; an earlier demo in it is replaced.
        seed: Seed of the drawing and of the training.
        smallest: A run of seconds that only shows that all parts work.

    Returns:
        The report.

    Raises:
        DataError: The folder holds something else.
    """
    clear(out, {"birds", "flock", "backbone", *_NAMES, "average_precision.json", "report.html"}, "flock")
    console, started = Console(soft_wrap=True), time.monotonic()
    species, birds = (3, 4) if smallest else (10, 60)
    train_images, test_images = (8, 4) if smallest else (240, 60)
    console.print(f"Drawing {train_images + test_images} flocks, and {species} species of single birds ...")
    draw_flock(out / "flock", train_images=train_images, test_images=test_images, seed=seed)
    draw_birds(out / "birds", num_species=species, train_images=birds, test_images=4, seed=seed)
    console.print("\nTraining the backbone, a ResNet-18, to name single birds ...")
    train(_backbone(out / "birds", seed, smallest), out / "backbone", name="backbone")
    results: dict[str, DetectionEvaluation] = {}
    for key, name in _NAMES.items():
        console.print(f"\nTraining {name} on the flocks ...")
        train(_detector(key, out, seed, smallest), out / key, name=key)
        trained = load_trained(out / key / "last.ckpt")
        results[key] = evaluate_detection(trained, trained.recipe.data, out=out / key / "evaluation")  # type: ignore[arg-type]
    console.print("")
    for key, result in results.items():
        console.print(f"  {_NAMES[key]:30} box AP {result.box['AP']:.1f} %, mask AP {result.mask['AP']:.1f} %")
    seconds = time.monotonic() - started
    outcome = {_NAMES[key]: asdict(result) for key, result in results.items()}
    (out / "average_precision.json").write_text(json.dumps({"seconds": round(seconds), "networks": outcome}, indent=2))
    path = out / "report.html"
    report.write_page(path, _page(out, results, seconds, smallest))
    console.print(f"\n{_verdict(results)}\nReport: {path.resolve()}  ({seconds / 60:.1f} minutes in all)")
    return path


def _backbone(root: Path, seed: int, smallest: bool) -> Recipe:
    recipe = RECIPES["birds-resnet18"].make()
    size = 64 if smallest else 96
    return replace(
        recipe,
        data=replace(recipe.data, root=root, size=size, resize=round(size * 8 / 7), batch_size=4 if smallest else 32),
        trainer=replace(recipe.trainer, max_epochs=1 if smallest else 6, seed=seed, devices=1, test_every_n_epochs=3),
    )


def _detector(key: str, out: Path, seed: int, smallest: bool) -> DetectionRecipe:
    recipe = RECIPES["flock-maskrcnn-resnet18-cgnl" if key == "cgnl" else "flock-maskrcnn-resnet18"].make()
    assert isinstance(recipe, DetectionRecipe)
    data = replace(recipe.data, root=out / "flock")
    if smallest:
        data = replace(data, size=72, max_size=96, batch_size=2)
    return replace(
        recipe,
        network=replace(recipe.network, backbone_weights=str(out / "backbone" / "last.ckpt")),
        data=data,
        trainer=replace(
            recipe.trainer,
            max_steps=2 if smallest else recipe.trainer.max_steps,
            log_every_n_steps=1 if smallest else recipe.trainer.log_every_n_steps,
            seed=seed,
            devices=1,
        ),
    )


def _verdict(results: dict[str, DetectionEvaluation]) -> str:
    plain, cgnl = results["plain"], results["cgnl"]
    changes = [
        f"{kind} AP {getattr(cgnl, kind)['AP'] - getattr(plain, kind)['AP']:+.1f} points" for kind in ("box", "mask")
    ]
    return (
        f"With the CGNL block against without: {', '.join(changes)}, on {plain.count} test images and one seed; "
        "differences of a few points are within what another seed moves."
    )


def _page(out: Path, results: dict[str, DetectionEvaluation], seconds: float, smallest: bool) -> str:
    warning = "This is the smallest form of the demo: it shows that all parts work; its numbers mean nothing. "
    header = ("network", *(f"{kind} {measure}" for kind in ("box", "mask") for measure in _MEASURES))
    rows = [
        (_NAMES[key], *(f"{getattr(r, kind)[m]:.1f} %" for kind in ("box", "mask") for m in _MEASURES))
        for key, r in results.items()
    ]
    networks = {key: load_trained(out / key / "last.ckpt") for key in _NAMES}
    recipe = networks["cgnl"].recipe
    about = (
        "A ResNet-18 first learned to name single drawn birds. With it as their backbone, two detectors (Mask R-CNN "
        f"with a feature pyramid) were trained on drawn flocks for {recipe.trainer.max_steps} steps of "
        f"{recipe.data.batch_size} images, with the same seed and images: one as it is, one with a compact generalized "
        "non-local block right before the last residual block of res4, which starts as the identity. Average "
        "precisions are COCO's, over the test images after the last step."
    )
    sections = [
        ("", report.paragraph((warning if smallest else "") + _verdict(results))),
        (
            "Average precision",
            report.table(header, rows, numbers=range(1, 7))
            + report.paragraph(about)
            + report.paragraph(f"Seed {recipe.trainer.seed}, {seconds:.0f} s in all.", dim=True),
        ),
        ("What they see", _pictures(out, networks)),
        ("Training", report.figure(_curves(out), "Loss in training, and average precision on the test images.")),
        ("By species", _per_class(results)),
        ("The flocks", report.photograph(contact_sheet(out / "flock"), "Some training images, and what is true.")),
    ]
    return report.page("A CGNL block in Mask R-CNN, on drawn flocks", sections)


def _pictures(out: Path, networks: dict[str, TrainedNetwork], count: int = 8) -> str:
    """Show some test images: the truth beside what each network detects."""
    images = read_coco(out / "flock", "test")
    dataset = DetectionDataset(images, flip=0.0)
    rows = []
    for index in range(0, len(images), max(1, len(images) // count)):
        image, target = open_image(images.samples[index].path), dataset[index]["target"]
        drawn = [
            draw_objects(image, target["boxes"], target["labels"], images.classes, masks=target["masks"], min_side=432)
        ]
        for trained in networks.values():
            found = detect(trained, image, min_score=_MIN_SCORE)
            drawn.append(
                draw_objects(
                    image,
                    found["boxes"],
                    found["labels"],
                    trained.classes,
                    scores=found["scores"],
                    masks=found["masks"],
                    min_side=432,
                )
            )
        rows.append(_side_by_side(drawn))
    caption = (
        f"Test images: the truth, {', '.join(_NAMES.values())} (left to right). Detections with a score of at least "
        f"{_MIN_SCORE}."
    )
    gap = 6
    sheet = Image.new("RGB", (rows[0].width, sum(row.height + gap for row in rows) - gap), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + gap
    return report.photograph(sheet, caption)


def _side_by_side(pictures: list[Image.Image], gap: int = 6) -> Image.Image:
    sheet = Image.new("RGB", (sum(p.width + gap for p in pictures) - gap, pictures[0].height), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    return sheet


def _curves(out: Path) -> Figure:
    drawn = Figure(figsize=(9, 3.4))
    loss, precision = drawn.subplots(1, 2)
    for key, name in _NAMES.items():
        for axes, file, column in ((loss, "steps.csv", "loss"), (precision, "epochs.csv", "test_mask_ap")):
            with (out / key / file).open(newline="") as opened:
                rows = [row for row in csv.DictReader(opened) if row[column] != "nan"]
            axes.plot(
                [int(row["step"]) for row in rows],
                [float(row[column]) for row in rows],
                color=COLOURS[key],
                marker="o" if len(rows) < 30 else "",
                markersize=3,
                label=name,
            )
    loss.set(xlabel="step", ylabel="training loss", ylim=(0, None))
    precision.set(xlabel="step", ylabel="test mask AP (%)", ylim=(0, 100))
    for axes in (loss, precision):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    precision.legend(frameon=False, fontsize=8)
    return drawn


def _per_class(results: dict[str, DetectionEvaluation]) -> str:
    rows = [
        (name, str(objects), *(f"{value:.1f} %" for key in _NAMES for value in results[key].per_class[k][2:]))
        for k, (name, objects, _, _) in enumerate(results["plain"].per_class)
    ]
    header = ("species", "birds", *(f"{kind} AP, {name}" for name in _NAMES for kind in ("box", "mask")))
    return report.table(header, rows, numbers=range(1, 6))
