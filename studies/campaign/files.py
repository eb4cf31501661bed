"""Give cgnl faulty files, odd videos, annotations and folders, and compare its words with those that it should say.

    python studies/campaign/files.py images lists checkpoints videos annotations folders

A part is one of these words; without any, all run. Each writes studies/results/reliability/PART.json. Commands run in
this process. `videos` needs the program ffmpeg.
"""

import argparse
import json
import pickle
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "tests"), str(HERE)]

from commands import IMAGES, Row, cgnl, csv_rows, named, text_of, wrong  # noqa: E402
from faulty import GOOD_LISTS, JPEG, LISTS, WHOLE_LISTS, make  # noqa: E402
from faulty import IMAGES as FAULTY_IMAGES  # noqa: E402
from films import videos  # noqa: E402
from folders import folders  # noqa: E402
from objects import annotations  # noqa: E402

from cgnl.measure.record import write_result  # noqa: E402
from conftest import draw_class_folders  # noqa: E402

Rows = list[Row]


def image_data(folder: Path) -> tuple[Path, Path]:
    """Draw images with train/, val/ and test/, train on them, and return their folder and that of the run."""
    root = draw_class_folders(folder / "drawn")
    shutil.copytree(root / "val", root / "test")
    run = folder / "run"
    code, output = cgnl("train", *IMAGES, f"--data.root={root}", f"--run={run}")
    assert code == 0, output
    return root, run


# 6. Images, lists, checkpoints


def images(folder: Path, seed: int) -> Rows:
    """Put a faulty image into train/, test/ and a prediction; then all of them."""
    root, run = image_data(folder)
    rows = {
        name: Row(f"a faulty image {name}", folder) for name in ("in training", "in a test", "predicted", "checked")
    }
    for name, (content, reason) in FAULTY_IMAGES.items():
        bad = make(folder / "bad" / name, content)
        for place, attempt in (
            ("predicted", predicted),
            ("in a test", tested),
            ("in training", trained_on),
            ("checked", checked),
        ):
            rows[place].attempt(name, attempt, folder, root, run, bad, reason)
    together = Row("all of these images at once, over the limit", folder)
    for command, part in (("train", "train"), ("evaluate", "test"), ("train", "val")):
        copy = fresh(root, folder / "copy")
        for name, (content, _) in FAULTY_IMAGES.items():
            make(copy / part / "class_1" / name, content)
        where = ["train", *IMAGES, f"--run={fresh(None, folder / 'new')}"] if command == "train" else ["evaluate", run]
        code, output = cgnl(*where, f"--data.root={copy}")
        problems = wrong(code, output, 2) + named(output, "", "bad-limit")
        together.add(problems, output, case=f"{command} {part}")
    return [*rows.values(), together]


def fresh(source: Path | None, target: Path) -> Path:
    """Return a new copy of a folder, or a path where nothing is."""
    shutil.rmtree(target, ignore_errors=True)
    return target if source is None else shutil.copytree(source, target)


def predicted(folder: Path, root: Path, run: Path, bad: Path, reason: str) -> tuple[list[str], str]:
    """Predict a faulty file between two good ones."""
    good = root / "test" / "class_0" / "0.jpg"
    code, output = cgnl("predict", run, good, bad, good, "--json")
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    problems = wrong(code, output, 2) + named(output, bad, reason)
    if [("top" in row, "error" in row) for row in rows] != [(True, False), (False, True), (True, False)]:
        problems.append(f"the rows are {rows}")
    return problems, output


def tested(folder: Path, root: Path, run: Path, bad: Path, reason: str) -> tuple[list[str], str]:
    """Test on 12 good files and a faulty one."""
    copy, out = fresh(root, folder / "copy"), fresh(None, folder / "out")
    placed = copy / "test" / "class_0" / bad.name
    shutil.move(bad, placed)
    code, output = cgnl("evaluate", run, f"--data.root={copy}", "--data.bad-limit=0.1", f"--out={out}")
    shutil.move(placed, bad)
    problems = wrong(code, output, 0) + named(text_of(out / "bad_files.csv"), placed, reason)
    problems += named(output, "problems", "unreadable images: 1") + named(output, "12 images")
    if len(csv_rows(out / "bad_files.csv")) != 1 or len(csv_rows(out / "predictions.csv")) != 12:
        problems.append(f"the lists are {text_of(out / 'bad_files.csv')}, {text_of(out / 'predictions.csv')}")
    return problems, output


def trained_on(folder: Path, root: Path, run: Path, bad: Path, reason: str) -> tuple[list[str], str]:
    """Train on 24 good files and a faulty one, below the limit."""
    copy, new = fresh(root, folder / "copy"), fresh(None, folder / "new")
    placed = copy / "train" / "class_0" / bad.name
    shutil.move(bad, placed)
    given = [f"--data.root={copy}", f"--run={new}", "--trainer.max-epochs=2"]
    code, output = cgnl("train", *IMAGES, *given)
    shutil.move(placed, bad)
    problems = wrong(code, output, 0) + named(text_of(new / "bad_files.csv"), placed, reason)
    if len(csv_rows(new / "bad_files.csv")) != 1:
        problems.append(f"named more than once: {text_of(new / 'bad_files.csv')}")
    return problems + named(output, "", "unreadable"), output


def checked(folder: Path, root: Path, run: Path, bad: Path, reason: str) -> tuple[list[str], str]:
    """Check 48 good files and a faulty one."""
    copy, out = fresh(root, folder / "copy"), fresh(None, folder / "out.csv")
    placed = copy / "train" / "class_0" / bad.name
    shutil.move(bad, placed)
    code, output = cgnl("data", "check", copy, "--out", out, "--workers", "1")
    shutil.move(placed, bad)
    return wrong(code, output, 1) + named(output, placed, reason) + named(text_of(out), placed, reason), output


def lists(folder: Path, seed: int) -> Rows:
    """Train, test and check with faulty lists; train with odd ones that are right."""
    root, run = image_data(folder)
    outside = make(folder / "outside.jpg", JPEG)
    (root / "out.jpg").symlink_to(outside)
    (root / "outfolder").symlink_to(folder)
    good = [f"train/class_{k}/{n}.jpg {k}" for k in range(3) for n in range(8)]
    held_out = make(folder / "held_out.txt", "\n".join(good).encode())
    file = folder / "list.txt"
    bad = {
        name: (("\n".join([*good[:2], "LINE", *good[2:]])).encode().replace(b"LINE", line), said)
        for name, (line, said) in LISTS.items()
    }
    rows = [Row(f"a faulty list {where}", folder) for where in ("in training", "in a test", "checked")]
    for name, (content, said) in {**bad, **WHOLE_LISTS}.items():
        make(file, content)
        new = fresh(None, folder / "new")
        own = [f"--data.train-list={file}", f"--data.test-list={held_out}"]
        for row, codes, command in (
            (rows[0], (2,), ["train", *IMAGES, f"--data.root={root}", *own, f"--run={new}", "--data.missing-limit=0"]),
            (rows[1], (2,), ["evaluate", run, f"--data.root={root}", f"--data.test-list={file}", "--data.format=list"]),
            (rows[2], (1, 2), ["data", "check", root, "--list-file", file, "--workers", "1"]),
        ):
            more = ["--data.missing-limit=0", f"--out={folder / 'out'}"] if row is rows[1] else []
            code, output = cgnl(*command, *more)
            row.add(wrong(code, output, *codes) + named(output, "", said), output, case=name)
    right = Row("an odd list that is right", folder)
    for k in range(3):
        for n in range(8):
            for name in (f"a b/class_{k} {n}.jpg", f"été/{k}-{n}.jpg"):
                make(root / name, (root / f"train/class_{k}/{n}.jpg").read_bytes())
    for name, content in GOOD_LISTS.items():
        make(file, content)
        own = [f"--data.train-list={file}", f"--data.test-list={held_out}", f"--run={fresh(None, folder / 'new')}"]
        code, output = cgnl("train", *IMAGES, f"--data.root={root}", *own)
        right.add(wrong(code, output, 0) + named(output, "24 training"), output, case=name)
    return [*rows, right]


class Code:
    """A pickle of it runs code."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def checkpoints(folder: Path, seed: int) -> Rows:
    """Damage single bytes of a checkpoint, cut it off, and put code into it; use it in every command."""
    root, run = image_data(folder)
    image = root / "test" / "class_0" / "0.jpg"
    whole = (run / "last.ckpt").read_bytes()
    told = cgnl("predict", run / "last.ckpt", image, "--json")[1]
    chosen = random.Random(seed)
    flipped, cut = Row("a changed byte in a checkpoint", folder), Row("a checkpoint that is cut off", folder)
    # half of them in the directory of the archive, at its end
    places = [chosen.randrange(len(whole)) for _ in range(40)]
    places += [chosen.randrange(len(whole) - 20000, len(whole)) for _ in range(160)]
    damaged = folder / "run2" / "last.ckpt"
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << chosen.randrange(8)
        make(damaged, bytes(changed))
        code, output = cgnl("predict", damaged, image, "--json")
        same = code == 0 and output.replace(str(damaged), "") == told.replace(str(run / "last.ckpt"), "")
        flipped.add([] if same else wrong(code, output, 2) + named(output, damaged), output, case=f"byte {place}")
    for part in [0.0, *(chosen.random() for _ in range(18)), 1 - 1 / len(whole)]:
        make(damaged, whole[: int(len(whole) * part)])
        code, output = cgnl("predict", damaged, image)
        cut.add(wrong(code, output, 2) + named(output, damaged), output, case=f"{part:.3f}")
    return [flipped, cut, damaged_and_resumed(folder, root, run, whole, chosen), with_code(folder, root, run, image)]


def damaged_and_resumed(folder: Path, root: Path, run: Path, whole: bytes, chosen: random.Random) -> Row:
    """Damage last.ckpt, or both checkpoints, of a run and resume it: the damaged file must stay or the run go on."""
    row = Row("a run with a damaged checkpoint, resumed or tested", folder)
    for case in ("last.ckpt", "best.ckpt", "both"):
        for command in ("train", "evaluate"):
            copy = fresh(run, folder / "run3")
            names = ("last.ckpt", "best.ckpt") if case == "both" else (case,)
            for name in names:
                changed = bytearray((copy / name).read_bytes())
                changed[chosen.randrange(len(changed) // 4, len(changed) // 2)] ^= 255
                (copy / name).write_bytes(changed)
            given = ["--resume", "--trainer.max-epochs=2"] if command == "train" else [f"--out={folder / 'out'}"]
            code, output = cgnl(command, copy, *given)
            uses = {"train": "last.ckpt", "evaluate": "best.ckpt"}[command]
            ended_well = case != "both" and case != uses
            problems = wrong(code, output, 0 if ended_well else 2)
            problems += [] if ended_well else named(output, copy / uses)
            row.add(problems, output, case=f"{command} {case}")
    return row


def with_code(folder: Path, root: Path, run: Path, image: Path) -> Row:
    """Give pickles with code in them to every command that reads a checkpoint."""
    row, marker = Row("a checkpoint that is a pickle with code", folder), folder / "marker"
    content = torch.load(run / "last.ckpt", weights_only=True)
    evil = {**content, "code": Code(marker)}
    entry = {**content, "cgnl": {**content["cgnl"], "code": Code(marker)}}
    makers: dict[str, Callable[[Path], object]] = {
        "zip.ckpt": lambda path: torch.save(evil, path),
        "entry.ckpt": lambda path: torch.save(entry, path),
        "old.ckpt": lambda path: torch.save(evil, path, _use_new_zipfile_serialization=False),
        "plain.ckpt": lambda path: path.write_bytes(pickle.dumps(evil["code"])),
        "weights.safetensors": lambda path: torch.save(evil, path),
        "weights.pth": lambda path: torch.save({"fc.weight": Code(marker)}, path),
    }
    for name, maker in makers.items():
        file = make(folder / "evil" / name, maker)
        copy = fresh(run, folder / "run3")
        for checkpoint in ("last.ckpt", "best.ckpt"):
            shutil.copy(file, copy / checkpoint)
        new = fresh(None, folder / "new")
        for command in (
            ("predict", file, image),
            ("evaluate", file, f"--data.root={root}", f"--out={new}"),
            ("explain", file, image, f"--out={new}.html"),
            ("convert", file, f"{new}.safetensors"),
            ("train", copy, "--resume", "--trainer.max-epochs=2"),
            ("train", *IMAGES, f"--data.root={root}", f"--run={new}", f"--network.weights={file}"),
        ):
            code, output = cgnl(*command)
            problems = wrong(code, output, 2) + named(output, copy if command[1] == copy else file)
            if marker.exists():
                problems.append("the code ran")
                marker.unlink()
            row.add(problems, output, case=f"{command[0]} {name}")
    return row


PARTS: dict[str, Callable[[Path, int], Rows]] = {
    function.__name__: function for function in (images, lists, checkpoints, videos, annotations, folders)
}


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help="images, lists, ...; all")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "reliability", help="folder of records")
    parser.add_argument("--folder", type=Path, help="folder to work in; by default one of the system's, removed again")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for part in arguments.parts or PARTS:
        with tempfile.TemporaryDirectory(dir=arguments.folder, prefix=f"campaign-{part}-") as folder:
            rows = [row.record() for row in PARTS[part](Path(folder), arguments.seed)]
        command = f"python studies/campaign/files.py {part} --seed {arguments.seed}"
        settings = {"part": part}
        out = arguments.out / f"{part}.json"
        write_result(out, seed=arguments.seed, settings=settings, rows=rows, command=command)
        tried, right = (sum(row[key] for row in rows) for key in ("tried", "equal"))
        print(f"{part}: {tried} tries, {right} right, {tried - right} wrong")


if __name__ == "__main__":
    main()
