import csv
import dataclasses
import gc
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
import weakref
from contextlib import nullcontext
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from scipy.stats import binomtest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchmetrics.functional.classification import multiclass_accuracy

from cgnl.data.decoding import DataError, open_image
from cgnl.data.transforms import test_transform as centre_crop
from cgnl.networks.checkpoints import CheckpointError
from cgnl.recipes import RECIPES, load_recipe
from cgnl.settings.reading import from_dict, override, to_dict
from cgnl.settings.training import OptimizerConfig
from cgnl.settings.trust import trusting
from cgnl.tasks import build_network, evaluate, load_trained, predict, train
from cgnl.training.callbacks import RunKeeper
from cgnl.training.evaluation import wilson_interval
from processes import Command


def tiny(folders, **trainer):
    recipe = RECIPES["birds-resnet18-cgnl"].make()
    return dataclasses.replace(
        recipe,
        # a ResNet of a thirtieth of ResNet-18's weights: these tests are about runs
        network=dataclasses.replace(recipe.network, arch="timm:test_resnet"),
        data=dataclasses.replace(
            recipe.data, root=folders, format="folders", size=32, resize=36, batch_size=8, workers=0
        ),
        optimizer=dataclasses.replace(recipe.optimizer, lr=0.01),
        schedule=dataclasses.replace(recipe.schedule, kind="constant"),
        trainer=dataclasses.replace(recipe.trainer, **{"max_epochs": 1, "log_every_n_steps": 1, **trainer}),
    )


@pytest.fixture(scope="module")
def finished(class_folders, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "first"
    return train(tiny(class_folders, max_epochs=2), run, name="birds", progress=False), run


def test_a_run_in_steps_that_stops_after_an_untested_epoch_goes_on_as_if_it_had_not(
    class_folders, tmp_path, monkeypatch
):
    recipe = tiny(class_folders, max_epochs=50, max_steps=8, test_every_n_epochs=4)
    train(recipe, tmp_path / "unbroken", progress=False)
    ends = RunKeeper.on_train_epoch_end

    def stop(keeper, trainer, module):
        ends(keeper, trainer, module)
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(RunKeeper, "on_train_epoch_end", stop)
        with pytest.raises(SystemExit):
            train(recipe, tmp_path / "run", progress=False)
    result = train(recipe, tmp_path / "run", resume=True, progress=False)
    steps = [
        [row[:4] for row in csv.reader((tmp_path / name / "steps.csv").read_text().splitlines())]
        for name in ("unbroken", "run")
    ]
    assert steps[0] == steps[1]
    assert [row[0] for row in steps[0][1:]] == list("12345678")
    assert len({row[1] for row in steps[0][1:]}) > 1, "several epochs"
    assert list(result.scores) == ["top-1", "top-5", "balanced accuracy", "macro-F1"], "tested after the last step"


def test_a_run_learns_and_leaves_a_whole_folder(finished, class_folders):
    result, run = finished
    assert {"recipe.yaml", "last.ckpt", "best.ckpt", "epochs.csv", "tensorboard"} <= {p.name for p in run.iterdir()}
    name, recipe = load_recipe(str(run))
    assert name == "birds"
    assert recipe == tiny(class_folders, max_epochs=2)
    assert list(result.scores) == ["top-1", "top-5", "balanced accuracy", "macro-F1"]
    assert result.best_score >= result.scores["top-1"]
    with (run / "epochs.csv").open(newline="") as file:
        first, second = (float(row["train_loss"]) for row in csv.DictReader(file))
    assert second < 0.7 * first


@pytest.mark.parametrize("breaks", [False, True])
def test_a_run_gives_the_signals_back_and_keeps_nothing_of_its_network(class_folders, tmp_path, monkeypatch, breaks):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
    ours = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
    before = {number: signal.getsignal(number) for number in numbers}
    networks = []
    starts = RunKeeper.on_train_start

    def start(keeper, trainer, module):
        starts(keeper, trainer, module)
        assert all(signal.getsignal(number) == keeper._on_signal for number in numbers)
        networks.append(weakref.ref(module.network))
        if breaks:
            raise ValueError("no more")

    monkeypatch.setattr(RunKeeper, "on_train_start", start)
    with pytest.raises(ValueError, match="no more") if breaks else nullcontext():
        train(tiny(class_folders, max_epochs=1), tmp_path / "run", progress=False)
    assert {number: signal.getsignal(number) for number in numbers} == before
    signal.signal(signal.SIGHUP, ours)
    gc.collect()
    if not breaks:
        # a broken run's error holds on to the frames it came from
        assert [network() for network in networks] == [None]


def test_a_checkpoint_is_enough_to_predict(finished, class_folders, tmp_path):
    _, run = finished
    alone = shutil.copy(run / "last.ckpt", tmp_path / "alone.ckpt")
    trained = load_trained(alone)
    assert trained.classes == ("class_0", "class_1", "class_2")
    path = class_folders / "val" / "class_1" / "0.jpg"
    best = predict(trained, path)
    # timm's test_resnet was trained with values from -1 to 1
    image = centre_crop(32, 36, mean=(0.5,) * 3, std=(0.5,) * 3)(open_image(path))[None]
    expected = trained.network(image).softmax(-1)[0].detach()
    assert sum(p for _, p in best) == pytest.approx(1, abs=1e-5)
    for name, probability in best:
        assert probability == pytest.approx(float(expected[trained.classes.index(name)]), rel=1e-5)


def test_evaluation_counts_each_image_once_and_agrees_with_torchmetrics(finished, tmp_path):
    _, run = finished
    trained = load_trained(run / "last.ckpt")
    result = evaluate(trained, dataclasses.replace(trained.recipe.data, batch_size=5), out=tmp_path)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert result.count == len(rows) == len({row["path"] for row in rows}) == 12
    labels, best = (
        torch.tensor([trained.classes.index(row[column]) for row in rows]) for column in ("label", "class1")
    )
    assert result.top1 == pytest.approx(
        100 * float(multiclass_accuracy(best, labels, num_classes=3, average="micro")), rel=1e-6
    )
    per_class = multiclass_accuracy(best, labels, num_classes=3, average="none")
    assert [value for _, _, value, *_ in result.per_class] == pytest.approx((100 * per_class).tolist())
    assert sum(times for *_, times in result.confused) == sum(best != labels)
    assert result.top5 == 100


@pytest.mark.parametrize(("correct", "count"), [(0, 7), (3, 7), (7, 7), (512, 1000)])
def test_the_interval_is_scipys_wilson_interval(correct, count):
    interval = binomtest(correct, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, count) == pytest.approx((100 * interval.low, 100 * interval.high), abs=1e-9)


def test_a_run_folder_is_not_overwritten_and_a_changed_recipe_does_not_resume(finished, class_folders):
    _, run = finished
    with pytest.raises(DataError, match="add --resume"):
        train(tiny(class_folders), run)
    changed = dataclasses.replace(tiny(class_folders), optimizer=OptimizerConfig(lr=0.5))
    with pytest.raises(DataError, match=r"another recipe.*optimizer.lr was 0.01, now 0.5"):
        train(changed, run, resume=True)


def test_the_end_of_a_cosine_cannot_move(class_folders, tmp_path):
    recipe = override(tiny(class_folders), {"schedule": {"kind": "cosine"}}, "test")
    train(recipe, tmp_path / "run", progress=False)
    with pytest.raises(DataError, match="the end of the cosine, was 1, now 2"):
        train(override(recipe, {"trainer": {"max_epochs": 2}}, "test"), tmp_path / "run", resume=True)


def test_the_end_of_a_cosine_in_steps_cannot_move(class_folders, tmp_path):
    recipe = override(tiny(class_folders, max_steps=2), {"schedule": {"kind": "cosine", "unit": "step"}}, "test")
    train(recipe, tmp_path / "run", progress=False)
    for steps in (3, -1):
        longer = override(recipe, {"trainer": {"max_steps": steps, "max_epochs": 5}}, "test")
        with pytest.raises(DataError, match=f"and cannot continue: trainer.max_steps, the .* was 2, now {steps}$"):
            train(longer, tmp_path / "run", resume=True)
    # epochs do not end it
    train(override(recipe, {"trainer": {"max_epochs": 5}}, "test"), tmp_path / "run", resume=True, progress=False)


NORMS_OVER_PROCESSES = {
    "trainer.sync_batch_norm": {"trainer": {"sync_batch_norm": True}},
    "block.norm sync_batch": {"network": {"norm": "sync_batch"}},
}


@pytest.mark.parametrize("name", NORMS_OVER_PROCESSES)
def test_norms_over_processes_are_refused_on_cpus(class_folders, tmp_path, name):
    recipe = override(tiny(class_folders, accelerator="cpu", devices=2), NORMS_OVER_PROCESSES[name], "test")
    with pytest.raises(ValueError, match=f"{name} needs GPUs in several processes"):
        train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    train(override(recipe, {"trainer": {"devices": 1, "max_steps": 1}}, "test"), tmp_path / "run", progress=False)


def test_resuming_does_not_need_the_start_weights(finished, class_folders, tmp_path):
    _, run = finished
    weights = shutil.copy(run / "last.ckpt", tmp_path / "weights.ckpt")
    recipe = override(tiny(class_folders), {"network": {"weights": str(weights)}}, "test")
    train(recipe, tmp_path / "run", progress=False)
    weights.unlink()
    train(override(recipe, {"trainer": {"max_epochs": 2}}, "test"), tmp_path / "run", resume=True, progress=False)


@pytest.mark.parametrize(("epochs", "tested"), [(3, [False, True, True]), (4, [False, True, False, True])])
def test_the_last_epoch_is_tested_whatever_the_interval(class_folders, tmp_path, epochs, tested):
    recipe = override(tiny(class_folders, max_epochs=epochs), {"trainer": {"test_every_n_epochs": 2}}, "test")
    train(recipe, tmp_path / "run", progress=False)
    with (tmp_path / "run" / "epochs.csv").open(newline="") as file:
        assert [row["test_top1"] != "" for row in csv.DictReader(file)] == tested


def test_a_run_does_not_go_on_with_other_classes_or_images(finished, class_folders, tmp_path):
    _, run = finished
    for split in ("train", "val"):
        for number in range(3):
            name = "zebra" if number == 2 else f"class_{number}"
            shutil.copytree(class_folders / split / f"class_{number}", tmp_path / "renamed" / split / name)
    with pytest.raises(DataError, match=r"trained on other classes .* classes class_2, zebra differ"):
        train(tiny(tmp_path / "renamed", max_epochs=3), run, resume=True, progress=False)
    changed = shutil.copytree(class_folders, tmp_path / "changed")
    (changed / "train" / "class_0" / "0.jpg").unlink()
    shutil.copy(class_folders / "val" / "class_0" / "0.jpg", changed / "val" / "class_0" / "1.jpg")
    (changed / "train" / "class_1" / "3.jpg").rename(changed / "train" / "class_2" / "three.jpg")
    with pytest.raises(DataError) as refused:
        train(tiny(changed, max_epochs=3), run, resume=True, progress=False)
    for words in (
        "validation images: 1 with other contents (val/class_0/1.jpg)",
        "training images: 1 moved to another class (train/class_1/3.jpg, now train/class_2/three.jpg, from class_1 to "
        "class_2), 1 removed (train/class_0/0.jpg)",
        f"--network.weights {run / 'last.ckpt'} and another --run",
    ):
        assert words in str(refused.value)


def test_a_checkpoint_without_fingerprints_tells_the_number_of_images(finished, class_folders, tmp_path):
    run = shutil.copytree(finished[1], tmp_path / "run")
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    del checkpoint["cgnl"]["files"]
    checkpoint["cgnl"]["num_samples"] = 23
    torch.save(checkpoint, run / "last.ckpt")
    with pytest.raises(DataError, match="23 training images then, 24 now"):
        train(tiny(class_folders, max_epochs=3), run, resume=True, progress=False)


def test_a_finished_run_resumes_for_more_epochs(finished, class_folders, tmp_path):
    _, run = finished
    copy = shutil.copytree(run, tmp_path / "copy")
    train(tiny(class_folders, max_epochs=3), copy, resume=True, progress=False)
    with (copy / "epochs.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2"]


def test_weights_of_another_network_are_refused_with_every_key(finished, tmp_path):
    _, run = finished
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    removed = checkpoint["state_dict"].pop("network.layer3.0.inserted_block.theta.weight")
    checkpoint["state_dict"]["network.extra"] = removed
    torch.save(checkpoint, tmp_path / "changed.ckpt")
    with pytest.raises(CheckpointError, match=r"theta.weight is missing; extra is unknown"):
        load_trained(tmp_path / "changed.ckpt")


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"name": "adamw", "label_smoothing": 0.1, "clip_norm": 1.0, "block_lr_factor": 2.0}},
        {"trainer": {"ema_decay": 0.9, "freeze": ["conv1", "bn1", "layer1"], "accumulate": 2}},
        # one step: convolutions of bfloat16 are slow on many CPUs
        {
            "data": {"mixup": 0.2, "cutmix": 1.0},
            "trainer": {"precision": "bf16-mixed", "channels_last": False, "max_steps": 1},
        },
    ],
)
def test_options_train(class_folders, tmp_path, changes):
    recipe = override(tiny(class_folders), changes, "test")
    train(recipe, tmp_path / "run", progress=False)
    rows = list(csv.DictReader((tmp_path / "run" / "epochs.csv").open(newline="")))
    assert float(rows[0]["train_loss"]) > 0
    load_trained(tmp_path / "run")


FEW_LAYERS = """
from torch import nn
def make_network(num_classes):
    body = [nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 2), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))
"""


@pytest.mark.slow
def test_a_compiled_network_trains_as_a_plain_one(class_folders, tmp_path, monkeypatch):
    # each layer takes the compiler seconds
    (tmp_path / "fewlayers.py").write_text(FEW_LAYERS)
    monkeypatch.syspath_prepend(tmp_path)
    losses = []
    for compiled in (False, True):
        run = tmp_path / str(compiled)
        recipe = tiny(class_folders, compile=compiled)
        network = dataclasses.replace(recipe.network, arch="fewlayers.make_network", places=("4",))
        with trusting("fewlayers"):
            train(dataclasses.replace(recipe, network=network), run, progress=False)
            load_trained(run, trust=("fewlayers",))
        with (run / "epochs.csv").open(newline="") as file:
            losses.append(float(next(csv.DictReader(file))["train_loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_clipping_bounds_the_step(class_folders, tmp_path):
    # one step of plain SGD moves the weights by lr times the clipped gradient at most
    recipe = override(
        tiny(class_folders, max_steps=1),
        {
            "optimizer": {"clip_norm": 0.01, "momentum": 0.0, "weight_decay": 0.0, "lr": 1.0, "block_lr_factor": 1.0},
            "schedule": {"warmup": 0.0},
            "data": {"batch_size": 24},
        },
        "test",
    )
    train(recipe, tmp_path / "run", progress=False)
    moved = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    pl.seed_everything(recipe.trainer.seed, verbose=False)
    start = build_network(recipe, 3).state_dict()
    squares = sum(
        (moved[f"network.{name}"] - value).square().sum()
        for name, value in start.items()
        if value.is_floating_point() and "running" not in name
    )
    assert 0.009 < float(squares) ** 0.5 < 0.0101


def test_tensorboard_has_the_curves(finished):
    _, run = finished
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert {"train/loss", "test/top1", "test/top5", "lr"} <= set(events.Tags()["scalars"])
    with (run / "epochs.csv").open(newline="") as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses, rel=1e-6)


def test_ema_checkpoints_hold_the_average(class_folders, tmp_path):
    # an average that hardly moves stays at the start weights
    recipe = tiny(class_folders, ema_decay=0.999999)
    train(recipe, tmp_path / "run", progress=False)
    train(tiny(class_folders), tmp_path / "plain", progress=False)
    moved = torch.load(tmp_path / "plain" / "last.ckpt", weights_only=True)["state_dict"]["network.conv1.0.weight"]
    checkpoint = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert torch.equal(checkpoint["current_model_state"]["network.conv1.0.weight"], moved)
    kept = checkpoint["state_dict"]["network.conv1.0.weight"]
    assert (kept - moved).abs().max() > 1e-5


def test_bad_images_are_skipped_listed_and_limited(class_folders, tmp_path):
    folders = shutil.copytree(class_folders, tmp_path / "folders")
    (folders / "train" / "class_0" / "0.jpg").write_bytes(b"<html>not an image</html>")
    (folders / "train" / "class_1" / "1.jpg").write_bytes(b"")
    recipe = override(tiny(folders), {"data": {"bad_limit": 0.1}}, "test")
    train(recipe, tmp_path / "run", progress=False)
    with (tmp_path / "run" / "bad_files.csv").open(newline="") as file:
        named = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert {path.rsplit("/", 2)[1] for path in named} == {"class_0", "class_1"}
    assert any("HTML" in reason for reason in named.values())
    with pytest.raises(DataError, match=r"2 of 24 files .* limit of 5.0%"):
        train(tiny(folders), tmp_path / "limited", progress=False)


def test_a_reader_that_dies_ends_the_run_with_a_plain_error(class_folders, tmp_path):
    process = Command(
        *["train", "birds-resnet18", f"--data.root={class_folders}", "--data.format=folders", "--data.size=32"],
        *["--data.resize=36", "--data.batch-size=4", "--data.workers=1", f"--run={tmp_path / 'run'}"],
        *["--trainer.max-epochs=1000", "--trainer.log-every-n-steps=1"],
    )
    while not (tmp_path / "run" / "steps.csv").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert "being read" in output
    assert "a process that reads samples died or hangs" in output
    assert "the system kills processes when memory runs out: lower data.workers, data.batch_size or data.size" in output
    assert "Traceback" not in output


def test_yaml_files_override_and_name_what_is_wrong(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: cub-resnet50-cgnl\noptimizer:\n  lr: 1e-3\ndata:\n  crop_area: [0.5, 1]\n")
    name, recipe = load_recipe(str(path))
    assert name == "cub-resnet50-cgnl"
    assert recipe.optimizer.lr == 1e-3
    assert recipe.data.crop_area == (0.5, 1.0)
    assert recipe.network == RECIPES["cub-resnet50-cgnl"].make().network
    for text, message in (
        ("recipe: cub-resnet50-cgml", "there is no recipe 'cub-resnet50-cgml'; near names: cub-resnet50-cgnl"),
        ("recipe: [1]", "there is no recipe '[1]'"),
        ("optimizer: {lr: 0}", "optimizer.lr (0.0) must be above 0"),
        ("optimiser: {lr: 1}", "optimiser is not a field of a recipe; fields here: network, block, data"),
        ("data: {size: big}", "data.size must be of type int, got 'big'"),
        (
            "network: {block: cgn}",
            "block ('cgn') must be one of none, nl, cgnl, cgnlx, residual, gnl, gc, se, cgnl-correlation, or a class "
            "of your own",
        ),
        ("data: 3", "data must be a mapping"),
        ("- 1", "must be a mapping"),
        ("trainer: {max_steps: 0}", "trainer.max_steps (0) must be -1 or at least 1"),
        ("task: detection\noptimizer: {label_smoothing: 0.1}", "optimizer.label_smoothing (0.1) is for classifiers"),
        ("task: sound", "task must be one of image, video, detection, got 'sound'"),
        ("data: {num_frames: 8}", "data.num_frames is not a field of a recipe"),
        ("task: video\ndata: {num_frames: 0}", "data.num_frames (0) must be at least 1"),
        ("recipe: ucf101-resnet50\ntask: image", "task must be video for this recipe, got 'image'"),
        ("a: [", "cannot read the recipe"),
        ("", "mine.yaml is empty"),
        ("# nothing\n{}", "mine.yaml is empty"),
        ("[]", "must be a mapping"),
        ("optimizer: {lr: .inf}", "optimizer.lr (inf) must be a finite number"),
        ("data: {size: 32}\ndata: {resize: 36}", "data is given twice, the second time in line 2"),
        ("optimizer: {lr: 0.1, name: sgd, 'lr': 0.2}", "lr is given twice, the second time in line 1"),
        ("schedule: {warmup: 1, warmup_epochs: 2}", "schedule.warmup is given twice, also under its earlier name"),
        ("network: {groups: 4}\nblock: {groups: 8}", "block.groups is given twice, also as network.groups"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=re.escape(message)):
            load_recipe(str(path))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_yaml(name, tmp_path):
    recipe = RECIPES[name].make()
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(recipe))), name) == recipe


def test_a_reader_that_is_stopped_ends_the_run_and_the_checkpoint_stays_whole(class_folders, tmp_path):
    recipe = override(
        tiny(class_folders, max_epochs=1000, checkpoint_every_n_steps=1), {"data": {"workers": 2, "timeout": 2}}, "test"
    )

    def stop() -> None:
        while not (tmp_path / "run" / "last.ckpt").exists():
            time.sleep(0.01)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGSTOP)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(DataError, match=r"no batch came for 2 seconds \(data.timeout\); it is stopped \(SIGSTOP\)"):
        train(recipe, tmp_path / "run", progress=False)
    thread.join()
    assert not multiprocessing.active_children()
    step = load_trained(tmp_path / "run" / "last.ckpt").step
    more = override(recipe, {"trainer": {"max_steps": step + 1}, "data": {"workers": 0}}, "test")
    train(more, tmp_path / "run", resume=True, progress=False)
    assert load_trained(tmp_path / "run" / "last.ckpt").step == step + 1
