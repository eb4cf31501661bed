"""Grey images, multispectral TIFF files, and other means and deviations, from training to the ONNX file."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_distributed import SETTINGS
from test_resume import compare, finish, wait_for_lines

from cgnl.cli import main
from cgnl.compare.maps import cached
from cgnl.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from cgnl.networks.channels import adapted
from cgnl.networks.image import resnet18
from cgnl.recipes import RECIPES
from cgnl.settings.image import DataConfig
from cgnl.settings.reading import is_whole, override, to_dict
from cgnl.tasks import evaluate, load_exported, load_trained, predict, recipe_cost, see, train
from cgnl.training import ImageData
from processes import Command, Group

tifffile = pytest.importorskip("tifffile")

SMALL = [
    *("--data.format=folders", "--data.size=32", "--data.resize=32", "--data.batch-size=6", "--data.workers=0"),
    *("--schedule.kind=constant", "--schedule.warmup=0", "--trainer.log-every-n-steps=1"),
]
KINDS = ("uint8", "uint16", "float32")


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


def draw(root: Path, channels: int, side: int = 32) -> Path:
    """Write train/ and val/ of three classes, which the last channel alone tells, in files of each type and layout."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 4)):
        for label in range(3):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                values = generator.uniform(0, 1, (side, side, channels))
                values[..., -1] = 0.15 + 0.3 * label + generator.normal(0, 0.02, (side, side))
                kind = KINDS[number % 3]
                top = 1 if kind == "float32" else np.iinfo(kind).max
                stored = (np.clip(values, 0, 1) * top).astype(kind)
                planes = number % 2 == 0
                tifffile.imwrite(
                    folder / f"{number}.tif",
                    np.ascontiguousarray(np.moveaxis(stored, -1, 0)) if planes else stored,
                    planarconfig="separate" if planes else "contig",
                    photometric="minisblack",
                )
    return root


@pytest.fixture(scope="module")
def five(tmp_path_factory) -> Path:
    """Eighteen training and twelve validation images of five channels; tests must not change them."""
    return draw(tmp_path_factory.mktemp("five"), 5)


@pytest.fixture(scope="module")
def grey(tmp_path_factory) -> Path:
    """Grey PNG files of 16 and 8 bits, and JPEG files in colour, of two classes; tests must not change them."""
    root, generator = tmp_path_factory.mktemp("grey"), np.random.default_rng(0)
    for split, count in (("train", 15), ("val", 6)):
        for label in range(2):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                values = np.clip(generator.normal(0.3 + 0.4 * label, 0.1, (32, 32)), 0, 1)
                kind = ("uint16", "uint8", "uint8")[number % 3]
                image = Image.fromarray((values * np.iinfo(kind).max).astype(kind))
                if number % 3 == 2:
                    image.convert("RGB").save(folder / f"{number}.jpg", quality=95)
                else:
                    image.save(folder / f"{number}.png")
    return root


def trained_on(root: Path, folder: Path, *options: str) -> Path:
    main(["train", "birds-resnet18-cgnl", f"--data.root={root}", f"--run={folder}", *SMALL, *options])
    return folder


@pytest.fixture(scope="module")
def run_of_five(five, tmp_path_factory) -> Path:
    options = ["--data.channels=5", "--trainer.max-epochs=10"]
    return trained_on(five, tmp_path_factory.mktemp("trained") / "run", *options)


@pytest.fixture(scope="module")
def run_of_grey(grey, tmp_path_factory) -> Path:
    options = ["--data.channels=1", "--data.mean=0.5", "--data.std=0.25", "--trainer.max-epochs=10"]
    return trained_on(grey, tmp_path_factory.mktemp("trained") / "run", *options)


def pixels_of(path: Path) -> torch.Tensor:
    """An image [C, H, W] in 0..1, read without the package."""
    values = tifffile.imread(path) if path.suffix == ".tif" else np.asarray(Image.open(path).copy())
    x = torch.from_numpy(values / (1.0 if values.dtype.kind == "f" else np.iinfo(values.dtype).max)).float()
    return x[None] if x.ndim == 2 else x.movedim(-1, 0) if x.shape[-1] == 5 else x


def probabilities_of(run: Path, path: Path, mean: float, std: float) -> torch.Tensor:
    """What the network says of pixels that were read without the package; the images have the size of its input."""
    with torch.no_grad():
        return load_trained(run).network(((pixels_of(path) - mean) / std)[None]).softmax(-1)[0]


@pytest.mark.slow
def test_five_channels_from_training_to_the_onnx_file(capsys, five, run_of_five, tmp_path):
    code, said, _ = run(capsys, "data", "check", five, "--channels", 5)
    assert code == 0
    assert "nothing is bad in 18 images of train and 12 images of val" in said
    trained = load_trained(run_of_five)
    assert trained.network.conv1.in_channels == 5
    # the average of ImageNet's in each channel
    assert trained.mean == pytest.approx([sum(IMAGENET_MEAN) / 3] * 5)
    assert trained.std == pytest.approx([sum(IMAGENET_STD) / 3] * 5)
    result = evaluate(trained, trained.recipe.data)
    # without the fifth channel a third is right
    assert result.top1 > 60
    files = sorted((five / "val").glob("*/*.tif"))
    for path in files:
        expected = probabilities_of(run_of_five, path, 0.449, 0.226)
        found = dict(predict(trained, path))
        assert [found[name] for name in trained.classes] == pytest.approx(expected.tolist(), abs=1e-5)
    code, said, _ = run(capsys, "convert", run_of_five, tmp_path / "five.onnx")
    assert code == 0, said
    exported = load_exported(tmp_path / "five.onnx")
    assert (exported.mean, exported.recipe.data.channels) == (trained.mean, 5)
    for path in files[:4]:
        assert dict(predict(exported, path)) == pytest.approx(dict(predict(trained, path)), abs=1e-4)
    code, said, _ = run(capsys, "predict", tmp_path / "five.onnx", files[0], "--json", "--top", 1)
    assert (code, json.loads(said)["path"]) == (0, str(files[0]))
    assert run(capsys, "embed", run_of_five, five / "val", "--out", tmp_path / "features.npz")[0] == 0
    with np.load(tmp_path / "features.npz") as arrays:
        assert arrays["features"].shape == (12, 512)


@pytest.mark.slow
def test_five_channels_are_explained_in_the_colours_of_the_first_three(capsys, five, run_of_five, tmp_path):
    words = "The network sees 5 channels, of which the first three are drawn, as red, green and blue"
    path = five / "val" / "class_1" / "0.tif"
    shown = np.asarray(see(load_trained(run_of_five), path).seen_frames()[0])
    np.testing.assert_array_equal(shown, np.moveaxis(tifffile.imread(path)[:3], 0, -1))
    code, said, _ = run(capsys, "explain", run_of_five, path, "--out", tmp_path / "page.html")
    assert (code, "written" in said) == (0, True)
    assert words in (tmp_path / "page.html").read_text()
    for figure in (5, 6):
        code, said, _ = run(capsys, "explain", run_of_five, path, "--figure", figure, "--out", tmp_path / "f.png")
        assert code == 0
        assert words in said


@pytest.mark.slow
def test_grey_images_from_training_to_the_onnx_file(capsys, grey, run_of_grey, tmp_path):
    trained = load_trained(run_of_grey)
    assert (trained.mean, trained.std) == ((0.5,), (0.25,))
    assert evaluate(trained, trained.recipe.data).top1 > 60
    deep = grey / "val" / "class_1" / "0.png"
    assert Image.open(deep).mode == "I;16"
    expected = probabilities_of(run_of_grey, deep, 0.5, 0.25)
    found = dict(predict(trained, deep))
    assert [found[name] for name in trained.classes] == pytest.approx(expected.tolist(), abs=1e-6)
    assert run(capsys, "convert", run_of_grey, tmp_path / "grey.onnx")[0] == 0
    assert dict(predict(load_exported(tmp_path / "grey.onnx"), deep)) == pytest.approx(found, abs=1e-4)
    code, said, _ = run(capsys, "explain", run_of_grey, grey / "val", "--out", tmp_path / "page.html")
    colour = grey / "val" / "class_1" / "2.jpg"
    code, said, _ = run(capsys, "explain", run_of_grey, colour, "--figure", 5, "--out", tmp_path / "f.png")
    assert code == 0
    assert "The network sees 1 channel, drawn in grey" in said
    frame = np.asarray(see(trained, colour).frames[0])
    assert np.array_equal(frame[..., 0], frame[..., 1])


@pytest.mark.slow
def test_a_test_with_other_data_takes_the_checkpoints_channels_mean_and_deviation(capsys, grey, run_of_grey):
    trained = load_trained(run_of_grey)
    data = trained.recipe.data
    code, _, errors = run(capsys, "evaluate", run_of_grey, "--data.channels", 3, "--data.mean", 0.5, "--data.std", 0.25)
    assert code == 2
    assert errors == ("cgnl: data.channels (3) comes from the checkpoint and cannot be changed: its network sees 1\n")
    # an entry of an earlier version, whose recipe does not name them
    plain = dataclasses.replace(trained.recipe, data=dataclasses.replace(data, mean=(), std=()))
    old = dataclasses.replace(trained, recipe=plain)
    assert evaluate(old, plain.data).top1 == evaluate(trained, data).top1
    # others that are asked for
    assert evaluate(trained, dataclasses.replace(data, mean=(90.0,))).top1 == 50
    code, _, errors = run(
        capsys, "train", "birds-resnet18-cgnl", f"--data.root={grey}", f"--run={run_of_grey}", *SMALL,
        "--data.channels=1", "--data.mean=0.4", "--data.std=0.25", "--trainer.max-epochs=10", "--resume",
    )  # fmt: skip
    assert code == 2
    assert "data.mean was (0.5,), now (0.4,)" in errors


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_of_five_channels_is_resumed_with_the_same_bits(five, tmp_path, workers):
    options = [
        "train",
        "birds-resnet18-cgnl",
        f"--data.root={five}",
        *SMALL,
        "--data.channels=5",
        f"--data.workers={workers}",
    ]
    options += ["--trainer.max-epochs=3", "--trainer.checkpoint-every-n-steps=2", "--data.mixup=0.2"]
    finish(Command(*options, f"--run={tmp_path / 'reference'}"))
    folder = tmp_path / "run"
    process = Command(*options, f"--run={folder}")
    wait_for_lines(process, folder / "steps.csv", 4)
    process.kill()
    process.wait()
    finish(Command(*options, f"--run={folder}", "--resume"))
    compare(folder, tmp_path / "reference")


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_and_list_a_bad_file_once(five, tmp_path):
    options = ["train", "birds-resnet18-cgnl", f"--data.root={five}", *SETTINGS, "--data.channels=5"]
    main([*options, f"--run={tmp_path / '1'}"])
    in_two(*options, f"--run={tmp_path / '2'}")
    weights = [torch.load(tmp_path / n / "last.ckpt", weights_only=True)["state_dict"] for n in ("1", "2")]
    for name in ("network.fc.weight", "network.conv1.weight"):
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-5, atol=1e-6)
    root = shutil.copytree(five, tmp_path / "five")
    bad = root / "val" / "class_0" / "0.tif"
    bad.write_bytes(bad.read_bytes()[:-900])
    said = in_two("evaluate", tmp_path / "2", f"--data.root={root}", "--data.bad-limit=0.1")
    assert "11 images" in said
    with (tmp_path / "2" / "evaluation" / "bad_files.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["path"] == str(bad)
    assert "is truncated: its pixels end at byte" in row["reason"]


def in_two(*arguments: object) -> str:
    pair = Group(*arguments, processes=2)
    output, _ = pair.communicate(timeout=300)
    assert pair.returncode == 0, output
    return output


@pytest.mark.slow
def test_files_of_another_number_of_channels_stop_a_run_over_the_limit(capsys, five, tmp_path):
    code, _, errors = run(
        capsys,
        "train",
        "birds-resnet18-cgnl",
        f"--data.root={five}",
        f"--run={tmp_path / 'run'}",
        *SMALL,
        "--data.channels=4",
    )
    assert code == 2
    assert errors.count("\n") == 1
    with (tmp_path / "run" / "bad_files.csv").open(newline="") as file:
        assert all("has 5 channels" in row["reason"] and "but 4 are" in row["reason"] for row in csv.DictReader(file))


@pytest.mark.slow
def test_start_weights_of_rgb_are_adapted_and_those_of_a_run_go_on(five, run_of_five, tmp_path):
    torch.manual_seed(0)
    rgb = tmp_path / "rgb.pth"
    network = RECIPES["image"].make()
    recipe = override(
        network,
        {
            "network": {"arch": "resnet18", "weights": str(rgb), "new_classifier": True},
            "data": {"root": str(five), "channels": 5, "size": 32, "resize": 32, "batch_size": 6, "workers": 0},
            "optimizer": {"lr": 1e-9},
            "schedule": {"kind": "constant", "warmup": 0.0},
            "trainer": {"max_epochs": 1},
        },
        "here",
    )
    start = resnet18(num_classes=7)
    torch.save(start.state_dict(), rgb)
    train(recipe, tmp_path / "run", progress=False)
    found = load_trained(tmp_path / "run" / "last.ckpt").network.conv1.weight
    torch.testing.assert_close(found, adapted(start.conv1.weight.detach(), 5), rtol=0, atol=1e-5)
    again = override(recipe, {"network": {"weights": str(run_of_five / "last.ckpt")}}, "here")
    train(again, tmp_path / "again", progress=False)
    trained = load_trained(run_of_five / "last.ckpt").network.conv1.weight
    torch.testing.assert_close(
        load_trained(tmp_path / "again" / "last.ckpt").network.conv1.weight, trained, rtol=0, atol=1e-5
    )


@pytest.mark.slow
def test_mean_and_deviation_of_videos(tiny_video, tmp_path, actions):
    recipe = override(tiny_video, {"data": {"mean": 0.25, "std": [0.5, 0.25, 1.0]}}, "here")
    train(recipe, tmp_path / "run", progress=False)
    trained = load_trained(tmp_path / "run" / "last.ckpt")
    assert (trained.mean, trained.std) == ((0.25,) * 3, (0.5, 0.25, 1.0))
    video = next(iter(sorted(actions.rglob("*.avi"))))
    x = see(trained, video).x
    plain = dataclasses.replace(trained, mean=(0.0,) * 3, std=(1.0,) * 3)
    std = torch.tensor(trained.std).view(3, 1, 1, 1)
    torch.testing.assert_close(x, (see(plain, video).x - 0.25) / std)
    assert evaluate(trained, trained.recipe.data).count == 4


@pytest.mark.parametrize(("name", "channels"), [("five", 5), ("grey", 1)])
def test_augmentation_of_other_inputs(name, channels, request):
    names = ("vertical-flip", "rotate", "erasing")
    names += ("trivial", "rand", "auto", "augmix", "jitter") if channels == 1 else ()
    config = DataConfig(
        root=request.getfixturevalue(name), channels=channels, augment=names, size=32, resize=32, workers=0,
        batch_size=6,
    )  # fmt: skip
    for batch in ImageData(config).train_dataloader():
        assert batch["image"].shape == (6, channels, 32, 32)
        assert batch["image"].isfinite().all()
        assert not batch["bad"]


@pytest.mark.slow
def test_cached_maps_are_of_one_mean_and_number_of_channels(grey, tmp_path):
    values = {"network": {"arch": "resnet18", "weights": None}, "data": {"size": 32, "resize": 32, "workers": 0}}
    recipe = override(RECIPES["image"].make(), {**values, "data": {**values["data"], "root": str(grey)}}, "here")
    maps = []
    for data in ({}, {"mean": 0.3}, {"std": 0.3}, {"channels": 1}):
        torch.manual_seed(0)
        maps.append(cached(override(recipe, {"data": data}, "here"), tmp_path, say=lambda line: None).train.maps)
    assert len(list(tmp_path.glob("maps-*"))) == 4
    assert not torch.equal(maps[0], maps[1])


def test_a_data_module_alone_normalises_as_its_settings_say(five, grey):
    small = {"size": 32, "resize": 32, "workers": 0, "batch_size": 6}
    for root, settings in ((five, {"channels": 5}), (grey, {"channels": 1, "mean": (0.2,), "std": (0.5,)})):
        data = ImageData(DataConfig(root=root, **small, **settings))
        batch = next(data.tested_batches("val"))
        path = data.val_samples.samples[int(batch["index"][0])].path
        (mean,), (std,) = settings.get("mean", (0.449,)), settings.get("std", (0.226,))
        torch.testing.assert_close(batch["image"][0], (pixels_of(path) - mean) / std, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 5])
def test_the_cost_counts_the_channels(channels):
    recipe = RECIPES["image"].make()
    plain, other = recipe_cost(recipe), recipe_cost(override(recipe, {"data": {"channels": channels}}, "here"))
    # 7 x 7 weights for each of 64 channels out, at 112 x 112 positions
    assert other.parameters - plain.parameters == (channels - 3) * 64 * 49
    assert other.multiplications - plain.multiplications == (channels - 3) * 64 * 49 * 112 * 112


def test_recipes_of_earlier_versions_are_whole():
    for name in ("image", "video"):
        values = to_dict(RECIPES[name].make())
        for field in ("channels", "mean", "std"):
            del values["data"][field]
        assert is_whole(values, "here")


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("image", ["--data.channels", "0"], "data.channels (0) must be at least 1"),
        ("image", ["--data.mean", "0.1", "0.2"], "data.mean (0.1 0.2) must be one number, or one for each channel: 2"),
        ("image", ["--data.channels", "5", "--data.std", "1", "1", "1"], "3 are given, and data.channels is 5"),
        ("image", ["--data.std", "0"], "data.std (0.0) must be above 0"),
        ("image", ["--data.std", "1", "-1", "1"], "data.std (-1.0) must be above 0"),
        ("image", ["--data.mean", "nan"], "data.mean (nan) must be a finite number"),
        (
            "image",
            ["--data.channels", "5", "--data.augment", "rotate", "jitter", "trivial"],
            "data.augment (jitter trivial) must be left out for data.channels 5",
        ),
        ("video", ["--data.channels", "1"], "data.channels (1) must be 3 for videos, which are read in colour"),
        ("video", ["--data.mean", "1", "2"], "data.mean (1 2) must be one number"),
        ("detection", ["--data.channels", "1"], "data.channels is for recipes of the task image or video"),
        ("detection", ["--data.mean=1"], "data.mean is for recipes of the task image or video"),
    ],
)
def test_wrong_settings_end_in_a_sentence(capsys, task, options, words):
    code, out, errors = run(capsys, "train", task, *options)
    assert code == 2
    assert words in " ".join((out + errors).replace("│", " ").split())


def test_settings_in_yaml():
    recipe = RECIPES["image"].make()
    for given, expected in ((0.5, (0.5,)), (1, (1.0,)), ([0.1, 0.2, 0.3], (0.1, 0.2, 0.3)), ([], ())):
        assert override(recipe, {"data": {"mean": given}}, "here").data.mean == expected
    for wrong in ("grey", True, [0.1, "grey"]):
        with pytest.raises(ValueError, match=r"here: data.mean must be"):
            override(recipe, {"data": {"mean": wrong}}, "here")
    with pytest.raises(ValueError, match=r"here: data.std \(0.0\) must be above 0"):
        override(recipe, {"data": {"std": 0}}, "here")


@pytest.mark.parametrize("name", ["actions", "flock"])
def test_checks_of_videos_and_objects_refuse_channels(capsys, name, request):
    code, _, errors = run(capsys, "data", "check", request.getfixturevalue(name), "--channels", 5)
    assert code == 2
    assert errors.startswith("cgnl: channels (5) must be 3 for ")


def test_a_check_names_files_of_another_number_of_channels(capsys, five, grey):
    code, out, _ = run(capsys, "data", "check", five / "val" / "class_0", "--channels", 4, "--workers", 1)
    assert code == 1
    assert out.count("has 5 channels") == 4
    code, out, _ = run(capsys, "data", "check", grey, "--channels", 1, "--workers", 1)
    assert code == 0
    assert run(capsys, "data", "check", five / "val" / "class_0" / "0.tif", "--channels", 5, "--workers", 1)[0] == 0
