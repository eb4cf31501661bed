"""The command line as a user meets it: what it prints, its exit codes, and one plain sentence for each mistake."""

import io
import json
import os
import resource
import shutil
import subprocess
import sys

import pytest
import torch

from cgnl.cli import main
from cgnl.networks.image import resnet18
from cgnl.recipes import RECIPES

SMALL = ["--data.size=32", "--data.resize=36", "--data.batch-size=8", "--data.workers=0", "--trainer.max-epochs=1"]


def run(capsys, *arguments):
    """Exit code, output and errors of a command."""
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as exit:
        code = exit.code or 0
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    return code, output.out, output.err


@pytest.fixture(scope="module")
def trained(class_folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    main(
        [
            "train",
            "birds-resnet18-cgnl",
            f"--data.root={class_folders}",
            "--data.format=auto",
            f"--run={folder}",
            *SMALL,
        ]
    )
    return folder


def test_evaluate_prints_accuracies_and_writes_tables(capsys, trained):
    code, out, _ = run(capsys, "evaluate", trained)
    assert code == 0
    assert "top-1 " in out
    assert "95 % interval" in out
    assert "12 images" in out
    assert {"predictions.csv", "per_class.csv", "confusions.csv", "measures.json"} == {
        p.name for p in (trained / "evaluation").iterdir()
    }


def test_evaluate_tells_what_could_not_be_read(capsys, trained, class_folders, tmp_path):
    folders = shutil.copytree(class_folders, tmp_path / "folders")
    bad = folders / "val" / "class_1" / "0.jpg"
    bad.write_bytes(b"<html>not an image</html>")
    out = tmp_path / "new" / "out"
    code, printed, _ = run(capsys, "evaluate", trained, f"--data.root={folders}", "--data.bad-limit=0.1", "--out", out)
    assert code == 0
    assert "11 images" in printed
    assert f"problems: unreadable images: 1 (lists are in {out})" in printed
    assert str(bad) in (out / "bad_files.csv").read_text()


def test_predict_prints_a_table_or_json(capsys, trained, class_folders):
    image = class_folders / "val" / "class_0" / "0.jpg"
    code, out, _ = run(capsys, "predict", trained, image)
    assert code == 0
    assert out.count("%") == 3
    code, out, _ = run(capsys, "predict", trained, image, image, "--json", "--top", "2")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["path"] for row in rows] == [str(image)] * 2
    assert [set(entry) for entry in rows[0]["top"]] == [{"class", "probability"}] * 2


def test_predict_takes_every_image_in_a_folder(capsys, trained, class_folders, tmp_path):
    code, out, _ = run(capsys, "predict", trained, class_folders / "val", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, [row["path"] for row in rows]) == (0, sorted(map(str, (class_folders / "val").rglob("*.jpg"))))
    picture = class_folders / "val" / "class_0" / "0.jpg"
    for name in ("0001", "0001.txt"):
        (tmp_path / "plain" / name).parent.mkdir(exist_ok=True)
        shutil.copy(picture, tmp_path / "plain" / name)
    (tmp_path / "plain" / "LICENSE").touch()
    code, out, _ = run(capsys, "predict", trained, tmp_path / "plain", "--json")
    assert (code, [json.loads(line)["path"] for line in out.splitlines()]) == (0, [str(tmp_path / "plain" / "0001")])
    shutil.rmtree(tmp_path / "plain")
    (tmp_path / "notes.txt").touch()
    code, _, err = run(capsys, "predict", trained, tmp_path)
    assert (code, err) == (2, f"cgnl: {tmp_path} holds no images. {tmp_path} holds notes.txt.\n")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_the_terminal_lacks_end_no_command(monkeypatch, trained, class_folders, tmp_path, encoding):
    names = [os.fsdecode(b"\xe9.jpg"), "🐦.jpg"]
    for name in names:
        shutil.copy(class_folders / "val" / "class_0" / "0.jpg", tmp_path / name)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", terminal)
    main(["predict", str(trained), str(tmp_path)])
    terminal.flush()
    printed = terminal.buffer.getvalue().decode(encoding)
    assert printed.count("%") == 6
    assert all(name.encode(encoding, "backslashreplace").decode(encoding) in printed for name in names)


def test_predict_goes_on_after_a_bad_image(capsys, trained, class_folders, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"GIF89a")
    code, out, err = run(capsys, "predict", trained, bad, class_folders / "val" / "class_0" / "0.jpg")
    assert code == 2
    assert str(bad) in err
    assert "GIF" in err
    assert out.count("%") == 3


@pytest.fixture(scope="module")
def overflowing(trained, tmp_path_factory):
    """The run with finite weights so large that the logits overflow."""
    checkpoint = torch.load(trained / "last.ckpt", weights_only=True)
    checkpoint["state_dict"]["network.fc.weight"].fill_(3e38)
    path = tmp_path_factory.mktemp("overflowing") / "last.ckpt"
    torch.save(checkpoint, path)
    return path


def test_outputs_that_are_not_finite_are_refused_by_every_command(capsys, overflowing, class_folders, tmp_path):
    image = class_folders / "val" / "class_0" / "0.jpg"
    said = f"cgnl: {image} gets an output from the network that is not finite (NaN or infinity)"
    for options in ([], ["--json"]):
        code, out, err = run(capsys, "predict", overflowing, image, *options)
        assert (code, err) == (2, f"{said}\n")
        assert out == "" or json.loads(out)["error"] == said.removeprefix("cgnl: ")
    code, out, err = run(capsys, "explain", overflowing, image, f"--out={tmp_path / 'page.html'}")
    assert (code, err) == (2, f"{said}\n")
    code, out, err = run(capsys, "evaluate", overflowing, f"--out={tmp_path / 'evaluation'}")
    assert (code, err) == (2, f"{said}, as do 12 of 12 images in all\n")
    assert not (tmp_path / "evaluation").exists()


def test_weights_that_are_not_finite_are_refused_by_every_command(capsys, trained, class_folders, tmp_path):
    checkpoint = torch.load(trained / "last.ckpt", weights_only=True)
    checkpoint["state_dict"]["network.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(checkpoint, tmp_path / "last.ckpt")
    image = class_folders / "val" / "class_0" / "0.jpg"
    for command, *arguments in (("predict", image), ("evaluate",), ("explain", image)):
        code, _, err = run(capsys, command, tmp_path, *arguments)
        assert code == 2
        assert "last.ckpt cannot be used: 1 of its tensors hold values that are not finite" in err


def test_convert_then_evaluate_a_recipe_with_converted_weights(capsys, trained, class_folders, tmp_path):
    # a checkpoint as the released code writes them: blocks as elements of the stage, wrapped, in a legacy file
    own = torch.load(trained / "last.ckpt", weights_only=True)["state_dict"]
    state = {}
    for key, value in own.items():
        if key.startswith("network."):
            key = key.removeprefix("network.").replace("layer3.1.", "layer3.2.")
            for ours, theirs in {"theta": "t", "phi": "p", "g": "g", "z": "z", "norm": "bn"}.items():
                key = key.replace(f"layer3.0.inserted_block.{ours}.", f"layer3.1.{theirs}.")
            state[f"module.{key}"] = value
    source, target = tmp_path / "released.pth.tar", tmp_path / "converted.safetensors"
    torch.save({"state_dict": state, "epoch": 3}, source, _use_new_zipfile_serialization=False)
    code, out, _ = run(capsys, "convert", source, target, "--arch", "resnet18", "--block", "cgnl")
    assert code == 0
    assert "groups=8" in out
    code, _direct, _ = run(capsys, "evaluate", trained / "last.ckpt", "--out", tmp_path / "direct")
    options = [f"--data.root={class_folders}", "--data.format=auto", f"--network.weights={target}", *SMALL]
    code, _converted, _ = run(capsys, "evaluate", "birds-resnet18-cgnl", *options, "--out", tmp_path / "converted")
    assert code == 0
    predictions = [(tmp_path / name / "predictions.csv").read_text() for name in ("direct", "converted")]
    assert predictions[0] == predictions[1]
    code, _, err = run(capsys, "convert", source, target, "--arch", "resnet18", "--block", "none")
    assert code == 2
    assert "holds 1 block" in err


def test_recipes_lists_every_recipe_by_table(capsys):
    code, out, _ = run(capsys, "recipes")
    assert code == 0
    for name in RECIPES:
        assert f" {name} " in out
    for table in ("2a", "2c", "3", "4b", "5"):
        assert f"Table {table}" in out
    assert "85.14/96.88" in out
    assert "87.06/96.91" in out
    assert "87.18/97.03" in out  # of a row that the released code alone has
    assert "36.2/31.9" in out


def test_recipes_say_which_test_clips_wrap_around(capsys):
    _, out, _ = run(capsys, "recipes")
    tables = out.split("Table ")
    wrapping = {table.split()[0] for table in tables if "go on with its beginning, as in the Non-local code" in table}
    assert wrapping == {"2b", "2d", "4a"}
    for name, entry in RECIPES.items():
        assert getattr(entry.make().data, "test_wrap", False) == name.startswith(("ucf101", "mini-kinetics")), name


def test_the_smoke_option_needs_no_data(capsys, tmp_path):
    code, out, _ = run(capsys, "train", "cub-resnet50-cgnl", "--smoke", "--run", tmp_path / "run")
    assert code == 0
    assert "last epoch: top-1" in out


@pytest.mark.parametrize("name", ["0.jpg", "cut.jpg", "copy.jpg"])
def test_data_check_lists_what_is_bad(capsys, class_folders, tmp_path, name):
    folders = shutil.copytree(class_folders, tmp_path / "folders")
    path = folders / "train" / "class_0" / name
    good = (folders / "val" / "class_0" / "0.jpg").read_bytes()
    if name != "0.jpg":
        path.write_bytes(good if name == "copy.jpg" else good[: len(good) // 2])
    code, out, _ = run(capsys, "data", "check", folders, "--workers", "1", "--out", tmp_path / "bad.csv")
    assert code == (0 if name == "0.jpg" else 1)
    assert ("nothing is bad" in out) == (name == "0.jpg")
    assert (name in (tmp_path / "bad.csv").read_text()) == (name != "0.jpg")


def test_exit_codes_of_data_check(capsys, class_folders, tmp_path):
    file = tmp_path / "my.list"
    check = ["data", "check", class_folders, "--workers=1"]
    file.write_text("train/class_0/0.jpg 0\ntrain/class_1/0.jpg 9\n")
    code, out, _ = run(capsys, *check, "--list-file", file)
    assert (
        code,
        "only 2 different labels occur. Give the number of classes (--data.num-classes, or --num-" in out,
    ) == (1, True)
    assert run(capsys, *check, "--list-file", file, "--num-classes=10")[0] == 0
    assert run(capsys, *check, "--num-classes=4")[0] == 1
    assert run(capsys, *check, "--format=folders", "--num-classes=3")[0] == 0
    for wrong in (["--format=imagenet"], ["--list-file=none.txt"], [f"--list-file={file}", f"--train-list={file}"]):
        assert run(capsys, *check, *wrong)[0] == 2
    code, _, err = run(capsys, "data", "check", tmp_path)
    assert (code, f"{tmp_path} holds my.list." in err) == (2, True)


MISTAKES = {
    "no such command": (["trian"], "no command 'trian'"),
    "no such recipe": (["train", "cub-resnet50-cgml"], r"no recipe 'cub-resnet50-cgml'; near names: cub-resnet50-cgnl"),
    "no data": (["train", "birds-resnet18"], "data.root is needed"),
    "no such folder": (["train", "birds-resnet18", "--data.root=/no/such", "--data.format=auto"], "/no/such"),
    "no such checkpoint": (["evaluate", "nothing.ckpt"], "nothing.ckpt does not exist"),
    "an empty run": (["predict", "{tmp}", "x.jpg"], "holds neither best.ckpt nor last.ckpt"),
    "no blocks there": (
        [
            "train",
            "birds-resnet18-cgnl",
            "--data.root={folders}",
            "--data.format=auto",
            "--network.num-blocks=7",
            *SMALL,
        ],
        "num_blocks (7) must be 1 or 2 for resnet18",
    ),
    "groups that do not fit": (
        ["train", "birds-resnet18-cgnl", "--data.root={folders}", "--data.format=auto", "--network.groups=7", *SMALL],
        "must be divisible by groups (7)",
    ),
    "options that the block does not have": (
        ["train", "cub-resnet50-nl", "--network.kernel", "rbf", "--network.groups", "32"],
        "block.kernel is not an option of block nl, which has: ",
    ),
    "a batch larger than the data": (
        [
            "train",
            "birds-resnet18",
            "--data.root={folders}",
            "--data.format=auto",
            "--data.size=32",
            "--data.resize=36",
        ],
        "24 samples, fewer than one step takes (data.batch_size 32)",
    ),
    "not CUB": (
        ["train", "birds-resnet18", "--data.root={folders}"],
        "classes.txt does not exist, but the layout was taken for CUB-200-2011 (data.format cub). ",
    ),
    "weights that cannot be had": (
        ["train", "birds-resnet18", "--data.root={folders}", "--data.format=auto", "--network.weights=no.pth", *SMALL],
        "no.pth does not exist",
    ),
    "a full folder for the demo": (["demo", "--out", "{folders}"], "holds other files: empty it"),
    "no test list": (
        ["train", "birds-resnet18", "--data.root={folders}", "--data.format=list", "--data.train-list=x.txt", *SMALL],
        "x.txt does not exist",
    ),
    "a network option for a checkpoint": (["evaluate", "{run}", "--network.groups=4"], "cannot be changed"),
    "a score of a classifier": (["predict", "{run}", "x.jpg", "--score=0.5"], "score (0.5) does nothing here"),
    "no top": (["predict", "{run}", "x.jpg", "--top=-1"], "top (-1) must be at least 1"),
    "a picture from a classifier": (["predict", "{run}", "x.jpg", "--out=x.png"], "out (x.png) does nothing here"),
    "a timeline of images": (["predict", "{run}", "x.jpg", "--timeline=t.csv"], "timeline (t.csv) does nothing here"),
    "a recipe file with a wrong name": (["train", "{yaml}"], "there is no recipe 'cub-resnet50-cgml'; near names"),
    "a crop larger than the image": (
        ["train", "birds-resnet18", "--data.root={folders}", "--data.format=auto", *SMALL, "--data.size=40"],
        "size (40)",
    ),
}
OUT_OF_RANGE = {
    "--data.batch-size=0": "data.batch_size (0) must be at least 1",
    "--data.workers=-1": "data.workers (-1) must be between 0 and 256",
    "--data.flip=2": "data.flip (2.0) must be between 0 and 1",
    "--data.crop-area=1 0.5": "data.crop_area (1.0 0.5) must be two numbers above 0, the smaller one first",
    "--optimizer.lr=0": "optimizer.lr (0.0) must be above 0",
    "--optimizer.lr=nan": "optimizer.lr (nan) must be a finite number",
    "--optimizer.lr=inf": "optimizer.lr (inf) must be a finite number",
    "--optimizer.weight-decay=inf": "optimizer.weight_decay (inf) must be a finite number",
    "--data.crop-aspect=1 inf": "data.crop_aspect (inf) must be a finite number",
    "--data.mixup=nan": "data.mixup (nan) must be a finite number",
    "--block.g-std=inf": "block.g_std (inf) must be a finite number",
    "--optimizer.label-smoothing=2": "optimizer.label_smoothing (2.0) must be between 0 and 1",
    "--schedule.warmup=-1": "schedule.warmup (-1.0) must be at least 0",
    "--trainer.accumulate=0": "trainer.accumulate (0) must be at least 1",
    "--trainer.log-every-n-steps=0": "trainer.log_every_n_steps (0) must be at least 1",
    "--trainer.ema-decay=2": "trainer.ema_decay (2.0) must be between 0 and 1",
    "--network.dropout=-0.1": "network.dropout (-0.1) must be between 0 and 1",
    "--trainer.accelerator=gpu": "trainer.accelerator is gpu, but PyTorch finds no GPU here",
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_ends_in_a_plain_sentence(capsys, class_folders, trained, tmp_path, case):
    arguments, message = MISTAKES[case]
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("recipe: cub-resnet50-cgml")
    places = {"folders": class_folders, "tmp": tmp_path / "empty", "run": trained, "yaml": recipe}
    places["tmp"].mkdir()
    filled = [argument.format(**places) for argument in arguments]
    if filled[0] == "train":
        filled.append(f"--run={tmp_path / 'run'}")
    code, _, err = run(capsys, *filled)
    assert code == 2
    assert message in err
    assert err.startswith("cgnl: ")
    assert not (tmp_path / "run" / "last.ckpt").exists()


@pytest.mark.parametrize("option", OUT_OF_RANGE)
def test_a_number_out_of_range_is_named(capsys, class_folders, tmp_path, option):
    options = [f"--data.root={class_folders}", "--data.format=auto", f"--run={tmp_path / 'run'}", *SMALL]
    code, _, err = run(capsys, "train", "birds-resnet18-cgnl", *options, *option.split(" "))
    assert code == 2
    # without the frame that the argument parser draws around it
    assert OUT_OF_RANGE[option] in " ".join(err.replace("│", " ").split())
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_list_files_train_evaluate_and_predict(capsys, class_folders, tmp_path):
    for split, name in (("train", "train"), ("val", "test")):
        files = sorted((class_folders / split).rglob("*.jpg"))
        lines = [f"{path.relative_to(class_folders)} {path.parent.name[-1]}\r\n" for path in files]
        (tmp_path / f"{name}.list").write_text("".join(lines))
    lists = [f"--data.train-list={tmp_path / 'train.list'}", f"--data.test-list={tmp_path / 'test.list'}"]
    options = [f"--data.root={class_folders}", "--data.format=list", f"--run={tmp_path / 'run'}", *SMALL]
    code, out, err = run(capsys, "train", "birds-resnet18-cgnl", *options, *lists)
    assert code == 0, err
    assert "24 training and 12 held-out images of 3 classes; the held-out images choose best.ckpt and are also" in out
    code, out, _ = run(capsys, "evaluate", tmp_path / "run", "--data.batch-size=5")
    assert code == 0
    assert "12 images" in out
    code, out, _ = run(capsys, "predict", tmp_path / "run", class_folders / "val" / "class_2" / "1.jpg")
    assert code == 0
    assert out.count("%") == 3
    # a label far above the others, in a list that does not say how many classes there are
    (tmp_path / "far.list").write_text((tmp_path / "train.list").read_text() + "train/class_0/0.jpg 5000000\n")
    far = [f"--data.train-list={tmp_path / 'far.list'}", lists[1]]
    code, _, err = run(capsys, "train", "birds-resnet18", *options[:2], f"--run={tmp_path / 'far'}", *SMALL, *far)
    assert (code, "far.list, line 25: read label 5000000, but only 4 different labels occur" in err) == (2, True), err
    # a bad line in the test list is told before anything is trained, as is a list that is not given
    with (tmp_path / "test.list").open("a") as file:
        file.write("val/class_0/0.jpg 3\n")
    code, _, err = run(capsys, "train", "birds-resnet18", *options[:2], f"--run={tmp_path / 'bad'}", *SMALL, *lists)
    assert (code, "test.list, line 13: read label 3, expected 0 to 2" in err) == (2, True), err
    code, _, err = run(capsys, "train", "birds-resnet18", *options[:2], f"--run={tmp_path / 'bad'}", *SMALL, lists[0])
    assert (code, err) == (2, "cgnl: data.test_list is needed: the list file of the test images\n")
    assert not (tmp_path / "bad" / "last.ckpt").exists()


def test_a_pickle_with_code_is_refused(capsys, tmp_path, class_folders):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "trapped"), "w"))

    torch.save({"state_dict": {}, "cgnl": Trap()}, tmp_path / "trap.ckpt")
    code, _, err = run(capsys, "predict", tmp_path / "trap.ckpt", class_folders / "val" / "class_0" / "0.jpg")
    assert code == 2
    assert "refused" in err
    assert not (tmp_path / "trapped").exists()


def test_a_bug_keeps_its_traceback(monkeypatch):
    # an error out of a library is not the user's
    import cgnl.cli

    monkeypatch.setitem(cgnl.cli.COMMANDS, "recipes", lambda: int("xxx"))
    with pytest.raises(ValueError, match="invalid literal"):
        main(["recipes"])


def test_one_class_is_refused_by_every_command(capsys, class_folders, tmp_path):
    for split in ("train", "val"):
        shutil.copytree(class_folders / split / "class_0", tmp_path / "one" / split / "class_0")
    data = [f"--data.root={tmp_path / 'one'}", "--data.format=auto", *SMALL[:4]]
    weights = tmp_path / "weights.pth"
    torch.save(resnet18(num_classes=1).state_dict(), weights)
    for command in (
        ["train", "birds-resnet18", f"--run={tmp_path / 'run'}", *data],
        ["evaluate", "birds-resnet18", f"--network.weights={weights}", *data],
        ["compare", "birds-resnet18", "--blocks=cgnl", f"--out={tmp_path / 'out'}", *data],
    ):
        code, _, err = run(capsys, *command)
        assert code == 2
        assert err == f"cgnl: {tmp_path / 'one'} has one class (class_0), but a classifier needs 2 or more\n"


def test_a_number_of_processes_has_a_limit(capsys, class_folders, tmp_path):
    for command, name in (
        (["train", "birds-resnet18", "--data.workers=1000000"], "data.workers"),
        (["data", "check", class_folders, "--workers=1000000"], "workers"),
        (["compare", "birds-resnet18", "--blocks=cgnl", "--jobs=1000000"], "--jobs"),
    ):
        code, _, err = run(capsys, *command)
        assert code == 2
        assert f"{name} (1000000) must be between" in " ".join(err.replace("│", " ").split())


def test_a_batch_of_bad_files_names_them(capsys, class_folders, tmp_path):
    folders = shutil.copytree(class_folders, tmp_path / "folders")
    bad = sorted(folders.glob("train/*/*.jpg"))[1:]
    for path in bad:
        path.write_bytes(b"")
    options = [f"--data.root={folders}", "--data.format=auto", f"--run={tmp_path / 'run'}", *SMALL]
    options += ["--data.batch-size=24", "--data.bad-limit=1"]
    code, _, err = run(capsys, "train", "birds-resnet18", *options)
    assert code == 2
    assert "only 1 sample of 32 x 32 of a batch of 24 could be read, too few for BatchNorm: " in err
    assert err.count(" is empty (0 bytes)") == 3


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_an_exhausted_address_space_ends_in_a_sentence(class_folders, tmp_path, workers):
    """A size far beyond what is free, under a limit as `ulimit -v` sets it."""
    command = [sys.executable, "-m", "cgnl", "train", "birds-resnet18-cgnl", f"--data.root={class_folders}"]
    command += ["--data.format=auto", "--data.size=4000", "--data.resize=4000", "--data.batch-size=24"]
    command += [f"--data.workers={workers}", f"--run={tmp_path / 'run'}"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)),
    )
    assert done.returncode == 2, done.stderr
    assert "memory ran out with data.size 4000, data.batch_size 24" in done.stderr
    assert "Traceback" not in done.stderr
