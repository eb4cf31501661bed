"""Faults of annotations in COCO's form, and average precision on what is left compared with that of pycocotools."""

import contextlib
import copy
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from commands import DETECTOR, Row, cgnl, csv_rows, named, text_of, wrong
from faulty import encoded
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cgnl.data.detection import read_coco
from cgnl.toy.flock import draw_flock
from cgnl.training.average_precision import measures_and_classes

Json = dict[str, Any]
WIDTH, HEIGHT, NEW, SAME = 80, 64, 9001, -1
RUNS = {"size": [HEIGHT, WIDTH], "counts": [100, 40, WIDTH * HEIGHT - 140]}
# what a copy of a good annotation is changed to, and the reason that is given; None takes a field away
BAD: dict[str, tuple[Any, str]] = {
    "no id": ({"id": None}, "has the id None"),
    "a text as id": ({"id": "9001"}, "has the id '9001'"),
    "a fraction as id": ({"id": 1.5}, "has the id 1.5"),
    "true as id": ({"id": True}, "has the id True"),
    "an id of 71 bits": ({"id": 2**70}, "has the id"),
    "an id that another has": ({"id": SAME}, "same id"),
    "an unknown image": ({"image_id": 777}, "does not name"),
    "no image": ({"image_id": None}, "does not name"),
    "a text as image": ({"image_id": "1"}, "does not name"),
    "an unknown category": ({"category_id": 999}, "unknown category 999"),
    "a text as category": ({"category_id": "1"}, "unknown category '1'"),
    "a list as category": ({"category_id": [1]}, "unknown category"),
    "no box": ({"bbox": None}, "has no box"),
    "a box of 3 numbers": ({"bbox": [1, 2, 3]}, "expected 4 finite numbers"),
    "a box of texts": ({"bbox": ["1", "2", "3", "4"]}, "expected 4 finite numbers"),
    "a box without width": ({"bbox": [5, 5, 0, 9]}, "no area"),
    "a box of negative height": ({"bbox": [5, 5, 9, -9]}, "no area"),
    "a box outside": ({"bbox": [WIDTH + 5, 5, 9, 9]}, "outside the image"),
    "NaN in a box": ({"bbox": [float("nan"), 5, 9, 9]}, "expected 4 finite numbers"),
    "infinity in a box": ({"bbox": [5, 5, float("inf"), 9]}, "expected 4 finite numbers"),
    "no mask": ({"segmentation": None}, "has no mask"),
    "an empty mask": ({"segmentation": []}, "has no mask"),
    "a text as mask": ({"segmentation": "PYX"}, "neither a list of polygons"),
    "a polygon of 2 points": ({"segmentation": [[1, 1, 9, 9]]}, "polygon of 4 numbers"),
    "a polygon of 7 numbers": ({"segmentation": [[1, 1, 9, 1, 9, 9, 1]]}, "polygon of 7 numbers"),
    "a polygon that is not in a list": ({"segmentation": [1, 1, 9, 1, 9, 9]}, "not a list of polygons"),
    "NaN in a polygon": ({"segmentation": [[1, 1, 9, float("nan"), 9, 9]]}, "not a finite number"),
    "a polygon far out": ({"segmentation": [[1, 1, 10**9, 1, 9, 9]]}, "beyond the image"),
    "a polygon outside": ({"segmentation": [[-9, -9, -5, -9, -5, -5]]}, "covers no pixel"),
    "runs of too many pixels": ({"segmentation": {**RUNS, "counts": [10, 9999]}}, "run-length encoding of"),
    "runs of another size": ({"segmentation": {**RUNS, "size": [WIDTH, HEIGHT]}}, "run-length encoding of size"),
    "negative runs": ({"segmentation": {**RUNS, "counts": [-1, WIDTH * HEIGHT + 1]}}, "broken"),
    "runs of nothing": ({"segmentation": {**RUNS, "counts": [WIDTH * HEIGHT]}}, "covers no pixel"),
    "a string of runs that is cut": ({"segmentation": {**RUNS, "counts": "PPPo"}}, "broken"),
    "a string of runs in Chinese": ({"segmentation": {**RUNS, "counts": "鳥"}}, "broken"),
    "runs without counts": ({"segmentation": {"size": RUNS["size"]}}, "broken"),
    "iscrowd 2": ({"iscrowd": 2}, "iscrowd 2"),
    "a negative area": ({"area": -1}, "area -1"),
    "NaN as area": ({"area": float("nan")}, "area nan"),
    "a text as area": ({"area": "9"}, "area '9'"),
}


def _other_name(content: Json) -> str:
    return content["categories"][1]["name"]


# the json is changed in place, and so is the one of what is expected to be left
ODD: dict[str, Callable[[Json], object]] = {
    "nothing": lambda content: None,
    "ids as floats": lambda content: [row.update(id=float(row["id"])) for row in content["annotations"]],
    "images as floats": lambda content: [row.update(image_id=float(row["image_id"])) for row in content["annotations"]],
    "ids from 0": lambda content: [row.update(id=k) for k, row in enumerate(content["annotations"])],
    "negative ids": lambda content: [row.update(id=-k) for k, row in enumerate(content["annotations"], 5)],
    "annotations backwards": lambda content: content["annotations"].reverse(),
    "images backwards": lambda content: content["images"].reverse(),
    "categories backwards": lambda content: content["categories"].reverse(),
    "more keys": lambda content: [row.update(score=1, attributes={"a": [1]}) for row in content["annotations"]],
    "two categories of one name": lambda content: content["categories"][0].update(
        name=content["categories"][1]["name"]
    ),
    "a category without objects": lambda content: content["categories"].append({"id": 80, "name": "none"}),
    "crowds alone in an image": lambda content: [
        row.update(iscrowd=1) for row in content["annotations"] if row["image_id"] == content["images"][0]["id"]
    ],
    "boxes beyond the border": lambda content: [
        row.update(bbox=[row["bbox"][0] - 20, *row["bbox"][1:]]) for row in content["annotations"][:4]
    ],
    "an image without objects": lambda content: content.update(
        annotations=[row for row in content["annotations"] if row["image_id"] != content["images"][0]["id"]]
    ),
}
# the whole json is refused
REFUSED: dict[str, tuple[Callable[[Json], object], str]] = {
    "no annotations": (lambda content: content.pop("annotations"), 'has no "annotations"'),
    "no categories": (lambda content: content.update(categories=[]), "has no categories"),
    "no images": (lambda content: content.update(images=[]), "names no images"),
    "annotations that are no list": (lambda content: content.update(annotations={}), "expected a list"),
    "two images of one id": (lambda content: content["images"].append(content["images"][0]), "two images have the id"),
    "two categories of one id": (
        lambda content: content["categories"].append(content["categories"][0]),
        "two categories have the id",
    ),
    "a category without a name": (lambda content: content["categories"][0].pop("name"), "expected an id .* and a name"),
    "an image without a name": (lambda content: content["images"][0].pop("file_name"), "file_name"),
    "an image of no width": (lambda content: content["images"][0].update(width=0), "read the width 0"),
    "an image as text": (lambda content: content["images"].append("a.jpg"), "image number"),
    "an image outside": (lambda content: content["images"][0].update(file_name="../../a.jpg"), r"\.\./\.\./a\.jpg"),
    "an absolute image": (lambda content: content["images"][0].update(file_name="/etc/hostname"), "/etc/hostname"),
    "an address as image": (lambda content: content["images"][0].update(coco_url=0, file_name="http://x/a.jpg"), "URL"),
    "images that do not exist": (
        lambda content: [row.update(file_name=f"no/{row['file_name']}") for row in content["images"]],
        "missing",
    ),
}


def detections(truth: Json, seed: int) -> list[Json]:
    """Return shifted copies of most objects, in COCO's result format, and some that are wrong."""
    chosen, rows = np.random.default_rng(seed), []
    for row in truth["annotations"]:
        if chosen.random() < 0.2 or row["iscrowd"]:
            continue
        mask = coco_mask.decode(mask_of(row["segmentation"]))
        shift = [int(value) for value in chosen.integers(-2, 3, 2)]
        moved = coco_mask.encode(np.asfortranarray(np.roll(mask, shift, (0, 1))))
        x, y, width, height = row["bbox"]
        rows.append(
            {
                "image_id": int(row["image_id"]),
                "category_id": row["category_id"],
                "bbox": [x + shift[1], y + shift[0], width, height],
                "score": float(chosen.random()),
                "segmentation": {"size": moved["size"], "counts": moved["counts"].decode()},
            }
        )
    return rows


def mask_of(segmentation: Any) -> Any:
    """Return a segmentation as one compressed run-length encoding, by pycocotools."""
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, HEIGHT, WIDTH))
    return (
        coco_mask.frPyObjects(segmentation, HEIGHT, WIDTH) if isinstance(segmentation["counts"], list) else segmentation
    )


def of_pycocotools(truth: Json, results: list[Json], kind: str) -> list[float]:
    """Return COCO's twelve numbers (%) by pycocotools, nan as -100; ids are made whole numbers from 1."""
    truth = {**truth, "info": {}, "annotations": [dict(row) for row in truth["annotations"]]}
    for number, row in enumerate(truth["annotations"], 1):
        row.update(id=number, image_id=int(row["image_id"]))
    other = "segmentation" if kind == "bbox" else "bbox"
    rows = [{key: value for key, value in row.items() if key != other} for row in results]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(rows) if rows else COCO(), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [100 * float(value) for value in evaluator.stats]


def same_precision(ours: dict[str, float | None], theirs: list[float], kind: str) -> list[str]:
    """Say where COCO's numbers differ by more than rounding."""
    pairs = [(name, -100 if value is None or value != value else value) for name, value in ours.items()]
    return [
        f"{kind} {name}: {value}, of pycocotools {other}"
        for (name, value), other in zip(pairs, theirs, strict=True)
        if abs(value - other) > 1e-6
    ]


def annotations(folder: Path, seed: int) -> list[Row]:
    """Read, check, train on and test with faulty annotations."""
    draw_flock(root := folder / "flock", num_species=3, train_images=4, test_images=8, size=(WIDTH, HEIGHT), workers=1)
    run = folder / "run"
    code, output = cgnl("train", "flock-maskrcnn-resnet18-cgnl", f"--data.root={root}", f"--run={run}", *DETECTOR)
    assert code == 0, output
    whole = json.loads((root / "annotations" / "instances_val.json").read_text())
    rows = [
        Row(f"{what}, {how}", folder)
        for what in ("a bad annotation beside good ones", "odd annotations that are right", "a json that is refused")
        for how in ("average precision", "in a test", "in training", "checked")
    ]
    for name, (change, reason) in BAD.items():
        content = copy.deepcopy(whole)
        first = content["annotations"][0]
        bad = {**first, "id": NEW, **change}
        if bad["id"] == SAME:
            bad["id"] = first["id"]
        content["annotations"].append({key: value for key, value in bad.items() if value is not None})
        tried(rows[:4], name, folder, run, content, copy.deepcopy(whole), reason)
    for name, change in ODD.items():
        content = copy.deepcopy(whole)
        change(content)
        tried(rows[4:8], name, folder, run, content, copy.deepcopy(content), None)
    partial = copy.deepcopy(whole)
    row = next(row for row in partial["annotations"] if isinstance(row["segmentation"], list))
    row["segmentation"].append([1, 1, 2])
    tried(
        rows[:4],
        "a bad polygon beside a good one",
        folder,
        run,
        partial,
        copy.deepcopy(whole),
        "only its other polygons",
    )
    for name, (change, reason) in REFUSED.items():
        content = copy.deepcopy(whole)
        change(content)
        refused(rows[8:], name, folder, run, content, reason)
    return [*(row for row in rows if row.tried), bad_images(folder, run, whole)]


def bad_images(folder: Path, run: Path, whole: Json) -> Row:
    """Test with an image that cannot be used: its objects do not count, and the others count as in pycocotools."""
    row = Row("a bad image beside good ones, in a test", folder)
    first = whole["images"][0]
    left = {
        **whole,
        "images": whole["images"][1:],
        "annotations": [each for each in whole["annotations"] if each["image_id"] != first["id"]],
    }
    makers: dict[str, tuple[Callable[[Path], object], str]] = {
        "missing": (Path.unlink, "missing_files.csv"),
        "cut": (lambda path: path.write_bytes(path.read_bytes()[:200]), "bad_files.csv"),
        "of another size": (lambda path: path.write_bytes(encoded("jpeg", 30, 30)), "bad_files.csv"),
        "a page": (lambda path: path.write_text("<html>"), "bad_files.csv"),
        "a folder": (lambda path: (path.unlink(), path.mkdir()), "bad_files.csv"),
    }
    for name, (make, table) in makers.items():
        images, out = folder / f"val {name}", folder / f"out {name}"
        make(shutil.copytree(folder / "flock" / "val", images) / first["file_name"])
        where = [f"--data.test-annotations={folder / 'flock/annotations/instances_val.json'}", f"--out={out}"]
        limits = ["--data.bad-limit=0.5", "--data.missing-limit=0.5"]
        code, output = cgnl("evaluate", run, *where, f"--data.test-images={images}", *limits)
        problems = wrong(code, output, 0)
        row.add(
            problems or named(text_of(out / table), images / first["file_name"]) + tested_as(out, left),
            output,
            case=name,
        )
    return row


def files_of(folder: Path, content: Json) -> tuple[list[str], Path]:
    """Write a json; return the options that test with it, and its path."""
    file = folder / "own.json"
    file.write_text(json.dumps(content))
    images = folder / "flock" / "val"
    return [f"--data.test-annotations={file}", f"--data.test-images={images}"], file


def tried(rows: list[Row], name: str, folder: Path, run: Path, content: Json, left: Json, reason: str | None) -> None:
    """Use a json in every way: what is left of it counts as its rows do in pycocotools, and the bad one is named."""
    options, file = files_of(folder, content)
    images = folder / "flock" / "val"
    rows[0].attempt(name, precision_of, file, images, left)
    code, output = cgnl("evaluate", run, *options, "--data.bad-limit=0.5", f"--out={folder / 'out'}")
    # the network has learned other names
    renamed = name == "two categories of one name"
    problems = wrong(code, output, 2) + named(output, "other classes") if renamed else wrong(code, output, 0)
    if not problems and not renamed:
        problems = listed(folder / "out", reason) + tested_as(folder / "out", left)
    rows[1].add(problems, output, case=name)
    (folder / "out" / "bad_annotations.csv").unlink(missing_ok=True)
    new = folder / f"new-{name}"
    own = [option.replace("test-", "train-") for option in options]
    held_out = [f"--data.test-annotations={folder / 'flock/annotations/instances_val.json'}", options[1]]
    same = name not in ("two categories of one name", "a category without objects")
    held_out = held_out if same else options
    where = [f"--data.root={folder / 'flock'}", *own, *held_out, f"--run={new}", "--data.bad-limit=0.5"]
    code, output = cgnl("train", "flock-maskrcnn-resnet18-cgnl", *where, *DETECTOR)
    rows[2].add(wrong(code, output, 0) or listed(new, reason), output, case=name)
    code, output = cgnl("data", "check", images, "--annotations", file, "--workers", "1")
    noted = reason or ("of one name" if name == "two categories of one name" else None)
    rows[3].add(wrong(code, output, 1 if noted else 0) + (named(output, "own.json", noted) if noted else []), case=name)


def precision_of(file: Path, images: Path, left: Json) -> tuple[list[str], str]:
    """Compare the average precision of made-up detections with that of pycocotools."""
    read = read_coco(None, annotations=file, images=images).truth()
    results, problems = detections(left, 0), []
    for kind in ("bbox", "segm"):
        theirs = of_pycocotools(left, results, kind)
        problems += same_precision(measures_and_classes(read, results, kind)[0], theirs, kind)
        if theirs[0] < 10:
            problems.append(f"the detections are too bad for a comparison: {theirs}")
    return problems, ""


def listed(folder: Path, reason: str | None) -> list[str]:
    """Say whether bad_annotations.csv names anything but one annotation with its reason."""
    if reason is None:
        found = text_of(folder / "bad_annotations.csv")
        return [f"it lists {found}"] if found else []
    rows = csv_rows(folder / "bad_annotations.csv")
    if len(rows) != 1:
        return [f"it lists {rows}"]
    return named(" ".join(rows[0]), "own.json", reason)


def tested_as(out: Path, left: Json) -> list[str]:
    """Compare the tables of a test with pycocotools on what is left."""
    measures = json.loads((out / "measures.json").read_text())
    problems = []
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        results = json.loads((out / f"{name}_results.json").read_text())
        problems += same_precision(measures[name], of_pycocotools(left, results, kind), kind)
    counts = Counter(row["category_id"] for row in left["annotations"] if not row["iscrowd"])
    objects = [int(row[1]) for row in csv_rows(out / "per_class.csv")]
    # those that the network has not learned are left out
    if objects != [counts[id] for id in sorted(row["id"] for row in left["categories"])][: len(objects)]:
        problems.append(f"it counts {objects} objects, expected {counts}")
    return problems


def refused(rows: list[Row], name: str, folder: Path, run: Path, content: Json, reason: str) -> None:
    """Use a json that has to be refused, with its name and the reason."""
    options, file = files_of(folder, content)
    own = [option.replace("test-", "train-") for option in options]
    new = folder / f"new-{name}"
    train = [
        "train",
        "flock-maskrcnn-resnet18-cgnl",
        f"--data.root={folder / 'flock'}",
        *own,
        f"--run={new}",
        *DETECTOR,
    ]
    for row, codes, command in (
        (rows[1], (2,), ["evaluate", run, *options, f"--out={folder / 'out'}"]),
        (rows[2], (2,), train),
        (rows[3], (1,), ["data", "check", folder / "flock" / "val", "--annotations", file, "--workers", "1"]),
    ):
        code, output = cgnl(*command)
        row.add(wrong(code, output, *codes) + named(output, "", reason), output, case=name)
