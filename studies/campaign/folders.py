"""Odd folders of images: odd names, few and many files, hidden ones, links."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from commands import DETECTOR, IMAGES, VIDEOS, Row, cgnl, csv_rows, named, wrong
from faulty import encoded
from films import H264, encode

from cgnl.toy.flock import draw_flock

Codes = tuple[int, int, int, int]
FINE: Codes = (0, 0, 0, 0)
PARTS = ("train", "val", "test")
NAMES = {
    "emoji": ("🐦‍⬛", "🦉.jpg"),
    "a newline": ("two\nlines", "a\nb.jpg"),
    "Latin-1": (os.fsdecode(b"m\xe9sange"), os.fsdecode(b"\xe9t\xe9.jpg")),
    "right to left": ("\u202eطائر", "\u202eصورة.jpg"),
    "quotes and commas": ('a "b", c;d', 'it\'s, "x".jpg'),
    "markup": ("[bold]red[/bold]", "[b]{.jpg"),
    "dashes and equals": ("--help", "=1+1.jpg"),
    "percent and braces": ("%s %d {0}", "%(x)s{}.jpg"),
    "control characters": ("\x1b[31mred\x07", "\t\x1b.jpg"),
    "spaces at the ends": (" a ", " b .jpg"),
    "255 bytes": ("c" * 255, "f" * 251 + ".jpg"),
    "combined accents": ("e\u0301", "e\u0301.jpg"),
    "backslashes": ("a\\b", "c\\d.jpg"),
    "an upper-case suffix": ("plain", "A.JPG"),
    "no suffix": ("plain", "0001"),
    "two dots": ("a.b", "..c.jpg"),
}


def fill(folder: Path, count: int = 4, first: int = 0, suffix: str = ".jpg") -> None:
    """Write pictures of noise into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        (folder / f"{number}{suffix}").write_bytes(encoded("jpeg", 24, 24, seed=number))


def plain(root: Path, classes: tuple[str, ...] = ("a", "b"), parts: tuple[str, ...] = PARTS) -> None:
    """Write parts of classes of four pictures."""
    for place, part in enumerate(parts):
        for number, name in enumerate(classes):
            fill(root / part / name, first=1000 * place + 10 * number)


def _named(class_name: str, file_name: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        plain(root, (class_name, "other"))
        for place, part in enumerate(PARTS):
            (root / part / class_name / file_name).write_bytes(encoded("jpeg", 24, 24, seed=50 + 1000 * place))

    return make


def _one_image(root: Path) -> None:
    for number, part in enumerate(PARTS):
        fill(root / part / "a", 1, number)


def _many_classes(root: Path) -> None:
    for number in range(100):
        fill(root / "train" / f"class {number}", 1, number)
        fill(root / "test" / f"class {number}", 1, 100 + number)


def _hidden(root: Path) -> None:
    plain(root)
    for part in PARTS:
        for name in (".DS_Store", "._0.jpg", "Thumbs.db", "desktop.ini", ".nfs0001", "0.jpg~", "notes.txt"):
            (root / part / "a" / name).write_bytes(b"\0\0\0\1")
        for name in (".ipynb_checkpoints", "__MACOSX", ".git"):
            fill(root / part / name, 1, 900)


def _linked_inside(root: Path) -> None:
    plain(root, ("a",))
    (root / "store").mkdir()
    for part in PARTS:
        shutil.move(root / part / "a", root / "store" / part)
        (root / part / "a").symlink_to(root / "store" / part)
        fill(root / part / "b", first=40 + 10 * PARTS.index(part))
        (root / part / "b" / "link.jpg").symlink_to(
            "43.jpg" if part == "train" else f"{40 + 10 * PARTS.index(part)}.jpg"
        )


def _linked_outside(root: Path) -> None:
    plain(root)
    fill(root.parent / "outside", first=500)
    (root / "train" / "c").symlink_to(root.parent / "outside")


def _file_outside(root: Path) -> None:
    plain(root)
    fill(root.parent / "outside", first=500)
    (root / "train" / "a" / "out.jpg").symlink_to(root.parent / "outside" / "500.jpg")


def _loop(root: Path) -> None:
    plain(root)
    (root / "train" / "a" / "again").symlink_to(root / "train")
    (root / "train" / "b" / "self.jpg").symlink_to("self.jpg")


def _empty_class(root: Path) -> None:
    plain(root)
    (root / "train" / "none").mkdir()


def _nested(root: Path) -> None:
    plain(root)
    fill(root / "train" / "a" / "deep" / "deeper", 3, 700)


def _files_beside(root: Path) -> None:
    plain(root)
    fill(root / "train", 3, 700)


# name: how the folder is made, the exit codes of check, train, evaluate and predict, and what one of them says
FOLDERS: dict[str, tuple[Callable[[Path], None], Codes, str]] = {
    **{f"names with {what}": (_named(*names), FINE, "") for what, names in NAMES.items()},
    "one class": (lambda root: plain(root, ("a",)), (0, 2, -1, -1), "class"),
    "one image of one class": (_one_image, (0, 2, -1, -1), "class"),
    "100 classes of one image": (_many_classes, FINE, ""),
    "hidden files and those of other programs": (_hidden, (1, 0, 0, 0), "is no class folder"),
    "links inside": (_linked_inside, FINE, ""),
    "a class that is a link out": (_linked_outside, (1, 2, -1, -1), "symbolic link that leads out"),
    "a file that is a link out": (_file_outside, (1, 2, -1, -1), "symbolic link that leads out"),
    "links in a circle": (_loop, (1, 0, 0, 0), "self.jpg"),
    "an empty class": (_empty_class, (1, 0, 0, 0), "none"),
    "folders in a class": (_nested, FINE, ""),
    "files beside the classes": (_files_beside, (1, 0, 0, 0), "3 files beside"),
    "train/ alone": (lambda root: plain(root, parts=("train",)), (1, 2, -1, -1), "held"),
    "a class of val/ that train/ lacks": (
        lambda root: (plain(root), fill(root / "val" / "c", first=800))[0],
        (1, 2, -1, -1),
        "c",
    ),
    "classes that differ in case": (lambda root: plain(root, ("Bird", "bird")), FINE, ""),
    "numbers as classes": (lambda root: plain(root, tuple(map(str, range(1, 12)))), FINE, ""),
    "a class named train": (lambda root: plain(root, ("train", "val")), FINE, ""),
    "parts in capitals": (lambda root: plain(root, parts=("TRAIN", "Val", "TEST")), FINE, ""),
    "training, validation and testing": (
        lambda root: plain(root, parts=("training", "validation", "testing")),
        FINE,
        "",
    ),
    "train and training": (lambda root: plain(root, parts=("train", "training")), (1, 2, -1, -1), "several folders"),
    "an empty folder": (lambda root: root.mkdir(parents=True), (2, 2, -1, -1), "holds nothing"),
}


def used(folder: Path, root: Path, codes: Codes, said: str) -> tuple[list[str], str]:
    """Check, train on, test with and predict a folder."""
    run = folder / "runs" / root.name
    outputs, problems = [], []
    commands = (
        ["data", "check", root, "--workers", "1"],
        ["train", *IMAGES, f"--data.root={root}", f"--run={run}", "--data.bad-limit=0.2"],
        ["evaluate", run],
        ["predict", run, tests_of(root), "--json"],
    )
    for command, code in zip(commands, codes, strict=True):
        if code < 0:
            continue
        found, output = cgnl(*command)
        problems += wrong(found, output, code)
        outputs.append(output)
    if said:
        problems += named("\n".join(outputs), "", said)
    if codes[2] == 0 and not problems:
        problems += all_tested(root, run, outputs[-1])
    return problems, "\n".join(outputs)


def tests_of(root: Path) -> Path:
    """Return the folder of test files, or the root."""
    return next((path for path in sorted(root.glob("*")) if path.name.lower() in ("test", "testing")), root)


def all_tested(root: Path, run: Path, predicted: str) -> list[str]:
    """Say whether the predictions of a test and of a prediction lack files."""
    folder = tests_of(root)
    pictures = (path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in (".jpg", "", ".mp4"))
    files = {str(path) for path in pictures if visible(path)}
    files |= {str(path) for link in folder.iterdir() if link.is_symlink() for path in link.glob("*.jpg")}
    readable = {os.fsencode(file).decode("utf-8", "replace") for file in files}
    tested = {row[0] for row in csv_rows(run / "evaluation" / "predictions.csv")}
    rows = [json.loads(line)["path"] for line in predicted.splitlines() if line.startswith("{")]
    problems = []
    if len(tested) != len(files) or ("\ufffd" not in "".join(readable) and tested != files):
        problems.append(f"the test lists {sorted(tested)}, not {sorted(files)}")
    if len(rows) != len(files) or ("\ufffd" not in "".join(readable) and set(rows) != files):
        problems.append(f"the prediction lists {sorted(rows)}, not {sorted(files)}")
    return problems


def visible(path: Path) -> bool:
    """Tell whether no part of a path is hidden."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def folders(folder: Path, seed: int) -> list[Row]:
    """Use odd folders, folders below odd folders, and one of 20,000 images."""
    odd = Row("an odd folder, checked, trained on, tested and predicted", folder)
    for number, (name, (make, codes, said)) in enumerate(FOLDERS.items()):
        make(root := folder / "data" / str(number))
        odd.attempt(name, used, folder, root, codes, said)
    below = Row("a plain folder below a folder with an odd name", folder)
    for name in (
        "emoji",
        "a newline",
        "Latin-1",
        "quotes and commas",
        "markup",
        "percent and braces",
        "spaces at the ends",
    ):
        plain(root := folder / NAMES[name][0] / "data")
        below.attempt(name, used, folder / NAMES[name][0], root, FINE, "")
    return [odd, below, odd_videos(folder), odd_objects(folder), many(folder)]


def odd_videos(folder: Path) -> Row:
    """Use videos with all of the odd names, two times: the second time with their index."""
    row = Row("videos with odd names", folder)
    root, run = folder / "videos", folder / "videos-run"
    for part in PARTS[::2]:
        for class_name, file_name in NAMES.values():
            path = root / part / class_name / f"{Path(file_name).stem[:240]}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            encode(path.with_name("a.mp4"), H264, frames=4 + (part == "test"), width=32, height=32).rename(path)
    commands = (
        ["data", "check", root, "--workers", "1"],
        ["train", *VIDEOS, f"--data.root={root}", f"--run={run}"],
        ["evaluate", run],
        ["evaluate", run],
        ["predict", run, root / "test", "--json"],
    )
    for command in commands:
        code, output = cgnl(*command)
        # the content is the same in all classes, which a check names
        problems = wrong(code, output, int(command[0] == "data"))
        row.add(problems + ([] if problems or command[0] != "predict" else all_tested(root, run, output)), output)
    return row


def odd_objects(folder: Path) -> Row:
    """Check, train on, and test with images in COCO's form that have odd names."""
    row = Row("images in COCO's form with odd names", folder)
    draw_flock(root := folder / "flock", num_species=2, train_images=16, test_images=2, size=(80, 64), workers=1)
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    for image, (folder_name, name) in zip(content["images"], NAMES.values(), strict=False):
        # JSON holds no bytes that are not UTF-8
        new = f"{folder_name}/{name}".encode("utf-8", "replace").decode()
        (root / "train" / new).parent.mkdir(exist_ok=True, parents=True)
        (root / "train" / image["file_name"]).rename(root / "train" / new)
        image["file_name"] = new
    file.write_text(json.dumps(content))
    for command in (
        ["data", "check", root, "--workers", "1"],
        ["train", "flock-maskrcnn-resnet18-cgnl", f"--data.root={root}", f"--run={folder / 'odd'}", *DETECTOR],
        ["evaluate", folder / "odd"],
        ["predict", folder / "odd", root / "train", "--json"],
    ):
        code, output = cgnl(*command)
        problems = wrong(code, output, 0)
        # a name that begins with a dot is hidden: the json names it, but a walk through the folder leaves it out
        if command[0] == "predict" and output.count('"path"') != 15:
            problems.append(f"it predicts {output.count('path')} images, not 15")
        row.add(problems, output)
    return row


def many(folder: Path) -> Row:
    """Use 20,000 tiny images, and note the seconds."""
    row = Row("20,000 tiny images", folder)
    root, run = folder / "many", folder / "many-run"
    pictures = [encoded("jpeg", 12, 12, seed=number) for number in range(200)]
    for part, count in (("train", 1900), ("val", 50), ("test", 50)):
        for label in range(10):
            (root / part / str(label)).mkdir(parents=True)
            for number in range(count):
                # bytes behind the end of a picture make each file another
                content = pictures[number % 200] + f"{part} {label} {number}".encode()
                (root / part / str(label) / f"{number}.jpg").write_bytes(content)
    for name, command in (
        ("checked", ["data", "check", root]),
        ("trained on", ["train", *IMAGES, f"--data.root={root}", f"--run={run}", "--data.batch-size=100"]),
        ("tested", ["evaluate", run]),
        ("predicted", ["predict", run, root / "test", "--json"]),
        ("resumed", ["train", run, "--resume", "--trainer.max-epochs=2"]),
    ):
        began = time.monotonic()
        code, output = cgnl(*command)
        row.add(wrong(code, output, 0), output, case=name)
        row.seconds[name] = round(time.monotonic() - began, 1)
    return row
