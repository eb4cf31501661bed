"""The parts of a data set: which one chooses best.ckpt, which one `cgnl evaluate` reports, and where they come from."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score
from test_cli import run

from cgnl.cli import main

SMALL = [
    *("--data.size=32", "--data.resize=36", "--data.batch-size=6", "--data.workers=0", "--trainer.max-epochs=2"),
    "--data.format=auto",
]


def train(capsys, root: Path, folder: Path, *options):
    command = ["train", "birds-resnet18", f"--data.root={root}", f"--run={folder}", *SMALL, *options]
    return run(capsys, *command)


def measured(folder: Path) -> dict:
    return json.loads((folder / "evaluation/measures.json").read_text())


@pytest.fixture(scope="module")
def three_parts(tmp_path_factory) -> Path:
    """Twelve training, four validation and three test images of two classes; tests must not change them."""
    root, generator = tmp_path_factory.mktemp("parts"), np.random.default_rng(0)
    for part, numbers in {"train": (6, 6), "Valid": (2, 2), "test": (2, 1)}.items():
        for label, count in enumerate(numbers):
            # in the test part each image lies in the folder of the other class
            folder = root / part / f"class_{1 - label if part == 'test' else label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(60 + 130 * label + generator.normal(0, 25, (40, 44, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.jpg")
    return root


@pytest.fixture(scope="module")
def trained(three_parts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("splits") / "run"
    main(["train", "birds-resnet18", f"--data.root={three_parts}", f"--run={folder}", *SMALL])
    return folder


@pytest.mark.slow
def test_validation_chooses_and_evaluate_reports_the_test_part(capsys, three_parts, trained, tmp_path):
    code, out, _ = train(capsys, three_parts, tmp_path / "run")
    assert code == 0
    assert "\n12 training, 4 validation and 3 test images of 2 classes\n" in out
    assert "val top-1" in out
    assert "best epoch (chosen on the validation images): top-1" in out
    with (trained / "epochs.csv").open() as file:
        rows = list(csv.DictReader(file))
    code, out, _ = run(capsys, "evaluate", trained / "last.ckpt", "--split", "val")
    assert "4 images) on the validation split\n" in out
    of_val = measured(trained)
    assert (of_val["split"], of_val["samples"]) == ("val", 4)
    # the last epoch was tested on the validation part
    assert of_val["top1"] == pytest.approx(float(rows[-1]["val_top1"]))
    run(capsys, "evaluate", trained, "--split", "val")
    assert measured(trained)["top1"] == pytest.approx(max(float(row["val_top1"]) for row in rows))
    code, out, _ = run(capsys, "evaluate", trained)
    assert code == 0
    assert "3 images) on the test split\n" in out
    assert (measured(trained)["split"], measured(trained)["samples"]) == ("test", 3)
    with (trained / "evaluation/predictions.csv").open() as file:
        assert all("/test/" in row["path"] for row in csv.DictReader(file))


@pytest.mark.slow
def test_a_lone_held_out_part_is_used_for_both_and_said_to_be(capsys, three_parts, tmp_path):
    root = shutil.copytree(three_parts, tmp_path / "set")
    shutil.rmtree(root / "test")
    (root / "Valid").rename(root / "testing")
    code, out, _ = train(capsys, root, tmp_path / "run")
    assert code == 0
    assert (
        "12 training and 4 held-out images of 2 classes; the held-out images choose best.ckpt and are also what "
        "cgnl evaluate reports"
    ) in out
    assert "best epoch (chosen on the held-out images)" in out
    code, out, _ = run(capsys, "evaluate", tmp_path / "run", "--split=val")
    assert "4 images) on the test split\n" in out
    assert "there is no validation split" in out


@pytest.mark.slow
def test_a_fraction_of_the_training_samples_is_held_out(capsys, three_parts, tmp_path):
    root = shutil.copytree(three_parts, tmp_path / "set")
    fraction = "--data.val-fraction=0.34"
    code, _, err = train(capsys, root, tmp_path / "run", fraction)
    assert (code, err) == (
        2,
        "cgnl: data.val_fraction (0.34) must be left out here: the data has a validation and a test part of its own\n",
    )
    shutil.rmtree(root / "Valid")
    code, out, _ = train(capsys, root, tmp_path / "run", fraction)
    assert code == 0
    assert "\n8 training, 4 validation and 3 test images of 2 classes\n" in out
    code, out, err = train(capsys, root, tmp_path / "run", "--data.val-fraction=0.5", "--resume")
    assert (code, "data.val_fraction was 0.34, now 0.5" in err) == (2, True)
    assert train(capsys, root, tmp_path / "run", fraction, "--resume")[0] == 0
    run(capsys, "evaluate", tmp_path / "run", "--split=val")
    with (tmp_path / "run/evaluation/predictions.csv").open() as file:
        first = [(row["path"], row["label"]) for row in csv.DictReader(file)]
    assert [label for _, label in first] == ["class_0", "class_0", "class_1", "class_1"]
    # without any part, and with the class folders right in the root
    shutil.rmtree(root / "test")
    for folder in sorted((root / "train").iterdir()):
        folder.rename(root / folder.name)
    (root / "train").rmdir()
    code, _, err = train(capsys, root, tmp_path / "other")
    assert (code, "--data.val-fraction 0.2 holds a part of the training samples out" in err) == (2, True)
    code, out, _ = train(capsys, root, tmp_path / "other", fraction)
    assert (code, "8 training and 4 held-out images of 2 classes" in out) == (0, True)
    run(capsys, "evaluate", tmp_path / "other")
    with (tmp_path / "other/evaluation/predictions.csv").open() as file:
        assert [Path(row["path"]).name for row in csv.DictReader(file)] == [Path(path).name for path, _ in first]


@pytest.mark.slow
def test_list_files_of_three_parts(capsys, three_parts, tmp_path):
    options = []
    for name, part in (("train", "train"), ("Valid", "val"), ("test", "test")):
        files = sorted((three_parts / name).rglob("*.jpg"))
        lines = [f"{path.relative_to(three_parts)} {path.parent.name[-1]}\n" for path in files]
        if part == "test":
            lines.append("test/class_0/gone.jpg 0\n")
        (tmp_path / f"{part}.txt").write_text("".join(lines))
        options.append(f"--data.{part}-list={tmp_path / part}.txt")
    code, out, err = train(capsys, three_parts, tmp_path / "run", *options, "--data.bad-limit=0.3")
    assert code == 0, err
    assert "12 training, 4 validation and 3 test images of 2 classes; missing files: 1 (" in out
    code, out, _ = run(capsys, "evaluate", tmp_path / "run")
    assert "3 images) on the test split\n" in out
    assert f"problems: missing images: 1 (lists are in {tmp_path / 'run' / 'evaluation'})" in out
    assert "gone.jpg" in (tmp_path / "run/evaluation/missing_files.csv").read_text()


@pytest.mark.slow
def test_evaluate_takes_a_part_alone_and_some_classes_by_their_names(capsys, three_parts, trained, tmp_path):
    whole = run(capsys, "evaluate", trained, "--split=val", "--out", tmp_path / "whole")[1]
    shutil.copytree(three_parts / "Valid", tmp_path / "set/val")
    code, out, _ = run(capsys, "evaluate", trained, f"--data.root={tmp_path / 'set'}", "--out", tmp_path / "alone")
    assert code == 0
    assert "4 images) on the validation split\n" in out
    assert "there is no test split" in out
    assert out.splitlines()[0] == whole.splitlines()[0]
    shutil.rmtree(tmp_path / "set/val/class_0")
    shutil.copytree(tmp_path / "set/val/class_1", tmp_path / "right/class_1")
    shutil.copytree(tmp_path / "set/val/class_1", tmp_path / "right/class_0")
    for root, count in ((tmp_path / "set", 1), (tmp_path / "right", 2)):
        code, out, err = run(capsys, "evaluate", trained, f"--data.root={root}", "--out", tmp_path / "some")
        assert code == 0, err
        with (tmp_path / "some/predictions.csv").open() as file:
            assert all(row["label"] == Path(row["path"]).parent.name for row in csv.DictReader(file))
        assert ("1 of the 2 classes were tested" in out) == (count == 1)
    (tmp_path / "set/val/class_1").rename(tmp_path / "set/val/wren")
    code, _, err = run(capsys, "evaluate", trained, f"--data.root={tmp_path / 'set'}", "--out", tmp_path / "some")
    assert code == 2
    assert f"{tmp_path / 'set'} has other classes than expected; unexpected: wren" in err


@pytest.fixture(scope="module")
def folds(three_parts, tmp_path_factory):
    """Class folders without any part, and a run for each of three folds."""
    root = tmp_path_factory.mktemp("folds")
    shutil.copytree(three_parts / "train", root / "set")
    for number in (1, 2, 3):
        division = ["--data.num-folds=3", f"--data.held-out-fold={number}", "--data.batch-size=4"]
        main(
            ["train", "birds-resnet18", f"--data.root={root / 'set'}", f"--run={root / str(number)}", *SMALL, *division]
        )
    return root


@pytest.mark.slow
def test_folds_are_evaluated_together(capsys, folds, tmp_path):
    runs = [folds / str(number) for number in (1, 2, 3)]
    code, out, _ = run(capsys, "evaluate", *runs, f"--out={tmp_path}")
    assert code == 0
    measures = [json.loads((tmp_path / str(number) / "measures.json").read_text()) for number in (1, 2, 3)]
    top1 = [values["top1"] for values in measures]
    assert f"mean and standard deviation of 3 folds: top-1 {np.mean(top1):.2f} ± {np.std(top1, ddof=1):.2f} %" in out
    assert "not tested" not in out
    together = json.loads((tmp_path / "measures.json").read_text())
    assert together["samples"] == 12
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    # every sample once
    assert {row["path"] for row in rows} == {str(path) for path in (folds / "set").rglob("*.jpg")}
    labels, best = ([row[column] for row in rows] for column in ("label", "class1"))
    assert together["top1"] == pytest.approx(100 * accuracy_score(labels, best)) == pytest.approx(np.mean(top1))
    assert together["macro_f1"] == pytest.approx(100 * f1_score(labels, best, average="macro"))
    assert f"macro-F1 {together['macro_f1']:.2f} %  (12 images)" in out
    code, out, _ = run(capsys, "evaluate", runs[0], runs[2])
    assert "not tested: fold 2 of 3" in out
    assert out.endswith("--out FOLDER writes tables of them\n")


@pytest.mark.slow
def test_folds_that_cannot_be_evaluated_together(capsys, folds, tmp_path):
    one, two = folds / "1", folds / "2"
    code, _, err = run(capsys, "evaluate", one, two, one / "last.ckpt")
    assert (code, err) == (
        2,
        f"cgnl: {one} and {one / 'last.ckpt'} hold out the same fold, 1 of 3: give each fold once\n",
    )
    code, _, err = run(capsys, "evaluate", one, two, "--data.val-seed=1", "--data.held-out-fold=1")
    assert (code, "hold out the same fold" in err) == (2, True)
    other = [*SMALL, f"--data.root={folds / 'set'}", "--data.num-folds=4", "--data.batch-size=4"]
    main(["train", "birds-resnet18", f"--run={tmp_path / 'run'}", *other, "--data.held-out-fold=3"])
    code, _, err = run(capsys, "evaluate", one, tmp_path / "run")
    assert (code, "folds of different divisions cannot be tested together" in err) == (2, True)
    code, _, err = train(capsys, folds / "set", two, "--data.num-folds=3", "--data.held-out-fold=3", "--resume")
    assert (code, "data.held_out_fold was 2, now 3" in err) == (2, True)


@pytest.mark.slow
def test_a_fold_of_changed_data_is_refused_if_the_network_was_trained_on_it(capsys, folds, tmp_path):
    grown = shutil.copytree(folds / "set", tmp_path / "set")
    assert run(capsys, "evaluate", folds / "1", f"--data.root={grown}")[0] == 0
    for number in range(5):
        shutil.copy(grown / "class_0/0.jpg", grown / f"class_0/00{number}.jpg")
    code, _, err = run(capsys, "evaluate", folds / "1", f"--data.root={grown}")
    assert code == 2
    assert "held-out images were training images of this network, such as class_" in err
    code, _, err = run(capsys, "evaluate", folds / "1", "--data.val-seed=1")
    assert (code, "by which data.num_folds (3) divides them, have changed since" in err) == (2, True)
