"""`cgnl compare`: cached maps against a hook, runs that are equal but for the block, continued after a kill -9."""

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from cgnl.cli import main
from cgnl.compare.maps import Features, Maps, cached
from cgnl.compare.plan import FIRST_TUNING_SEED, Protocol, Trial, best_of, planned, tuning, with_block
from cgnl.compare.running import rows_of
from cgnl.compare.trials import _batches, _network, _part, _samples, run_on_maps
from cgnl.insertion import inserted_blocks, remove_blocks
from cgnl.recipes import RECIPES
from cgnl.settings.image import DataConfig
from cgnl.settings.reading import from_dict, override, to_dict
from cgnl.settings.trust import trusting
from cgnl.tasks import evaluate, load_trained
from cgnl.toy.birds import draw_birds
from cgnl.training.data import ImageData
from cgnl.training.processes import locked
from processes import Command

NETWORK = ["--network.arch=resnet18", "--network.weights=None", "--data.size=32", "--data.resize=36"]
SMALL = [*NETWORK, "--data.batch-size=4", "--data.workers=0", "--width=8", "--epochs=2", "--freeze=below-block"]
VALUES = {
    "network": {"arch": "resnet18", "weights": None},
    "data": {"size": 32, "resize": 36, "batch_size": 4, "workers": 0},
}


def recipe_of(root):
    return override(RECIPES["image"].make(), {**VALUES, "data": {**VALUES["data"], "root": str(root)}}, "here")


def protocol_of(recipe, **changes):
    values = {
        "command": "", "recipe": to_dict(recipe), "blocks": ("none", "cgnl"), "seeds": (0, 1), "frozen": True,
        "epochs": 2, "rate": 0.1, "weight_decay": 5e-4, "dropout": 0.5, "width": 8,
    }  # fmt: skip
    return Protocol(**{**values, **changes})


def features_of(count=60, classes=3, shape=(16, 4, 4)):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    maps = torch.randn(count, 2, *shape, generator=generator) + labels.view(-1, 1, 1, 1, 1)
    return Features(Maps(maps, labels), Maps(maps[:12], labels[:12]), tuple("abc"), "layer3", "words")


def without_time(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_the_cached_maps_are_what_a_block_gets(class_folders, tmp_path):
    recipe = recipe_of(class_folders)
    features = cached(recipe, tmp_path, say=lambda line: None)
    from cgnl.tasks import build_network, task_of

    torch.manual_seed(0)
    network = build_network(with_block(recipe, "none"), 3).eval()
    kept = []
    network.layer3[0].register_forward_hook(lambda module, args, output: kept.append(output))
    task = task_of(recipe)
    data = task.make_data(recipe.data, inputs=task.inputs(recipe))
    with torch.no_grad():
        for split, maps in (("train", features.train), ("test", features.test)):
            batch = torch.cat([b["image"] for b in data.tested_batches(split)])
            network(batch)
            network(batch.flip(-1))
            assert (maps.maps[:, 0] - kept[-2]).abs().max() < 1e-5
            assert (maps.maps[:, 1] - kept[-1]).abs().max() < 1e-5
            assert len(maps.labels) == len(batch)
    assert features.place.startswith("layer3")


def test_maps_are_computed_anew_when_a_file_or_the_transform_has_changed(class_folders, tmp_path):
    folder = shutil.copytree(class_folders, tmp_path / "photos")
    said = []

    def computed(folder, **data):
        before = len(said)
        values = {**VALUES, "data": {**VALUES["data"], "root": str(folder), **data}}
        cached(override(RECIPES["image"].make(), values, "here"), tmp_path / "out", say=said.append)
        return len(said) - before

    assert computed(folder) == 2
    assert computed(folder, batch_size=3, workers=1, crop_area=(0.5, 1.0)) == 0
    moved = folder.rename(tmp_path / "moved")
    assert computed(moved) == 0
    assert computed(moved, resize=40) == 2
    os.utime(moved / "train" / "class_0" / "0.jpg", (1, 1))
    assert computed(moved) == 2


def test_flips_are_those_of_the_recipe(class_folders, tmp_path):
    values = {**VALUES, "data": {**VALUES["data"], "root": str(class_folders), "flip": 0.0}}
    recipe = override(RECIPES["image"].make(), values, "here")
    mirrored = cached(recipe_of(class_folders), tmp_path, say=print)
    unflipped = cached(recipe, tmp_path, say=print)
    for split in ("train", "test"):
        own = getattr(unflipped, split).maps
        assert own.shape[1] == 1
        assert torch.equal(own[:, 0], getattr(mirrored, split).maps[:, 0])
    sizes = [file.stat().st_size for file in tmp_path.glob("maps-*/train.npy")]
    assert max(sizes) - 128 == 2 * (min(sizes) - 128)  # behind the header
    row = run_on_maps(protocol_of(recipe, epochs=1), Trial("none", 0, "fixed", 1, 0.1, 1.0), unflipped)
    assert row["steps"] == 6
    # maps that say themselves whether they are mirrored, in a known order
    maps = Maps(torch.tensor([0.0, 1.0]).repeat(4000, 1), torch.zeros(4000))

    def drawn_with(flip):
        config = DataConfig(flip=flip, batch_size=10)
        return torch.cat([x for x, _ in _batches(maps, config, torch.Generator().manual_seed(0))])

    for flip in (0.0, 0.25, 1.0):
        drawn = drawn_with(flip)
        assert drawn.mean().item() == pytest.approx(flip, abs=0.03 * (0 < flip < 1))
    order = torch.Generator().manual_seed(0)
    torch.randperm(4000, generator=order)
    assert torch.equal(drawn_with(0.5), torch.randint(2, (4000,), generator=order).float())


def test_unequal_classes_on_cached_maps(class_folders):
    features = features_of()
    chosen = torch.arange(60)[(features.train.labels == 0) | (torch.arange(60) > 50)]
    features = dataclasses.replace(features, train=features.train.of(chosen))

    def run(**values):
        recipe = override(recipe_of(class_folders), values, "here")
        return run_on_maps(protocol_of(recipe), Trial("none", 0, "fixed", 5, 0.05, 1.0), features)

    plain = run()
    # the same loss but for rounding
    assert run(optimizer={"class_weights": [2, 2, 2]})["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-3)
    # nothing is learned but a class that alone weighs
    alone = run(optimizer={"class_weights": [0, 3, 0]})
    assert alone["top1"] == pytest.approx(100 / 3)
    assert alone["test_loss"] > 2 * plain["test_loss"], "losses of tests are not weighted"
    assert run(optimizer={"class_weights": "balanced"})["train_loss"] != plain["train_loss"]
    config = DataConfig(balanced_sampler=True, batch_size=4)
    order = torch.Generator().manual_seed(0)
    drawn = torch.cat([labels for _ in range(60) for _, labels in _batches(features.train, config, order)])
    assert len(drawn) == 60 * (len(chosen) // 4 * 4)
    assert (drawn.bincount() / len(drawn) - 1 / 3).abs().max() < 0.05


def test_kinds_differ_in_the_block_alone(monkeypatch):
    """A block that stays the identity gives the plain network's numbers: same start, order, flips and dropout."""
    features, recipe = features_of(), recipe_of("unused")
    protocol = protocol_of(recipe)
    plain, frozen = (
        run_on_maps(protocol, planned(protocol, {block: {"rate": 0.1, "factor": factor}})[index], features)
        for block, factor, index in (("none", 1.0, 0), ("cgnl", 0.0, 2))
    )
    assert (plain["block"], frozen["block"]) == ("none", "cgnl")
    assert plain["curve"] == frozen["curve"]
    assert frozen["parameters"] > plain["parameters"]
    assert frozen["multiplications"] > plain["multiplications"]
    assert plain["curve"][-1]["top1"] == plain["top1"]


def test_the_losses_are_means_over_whole_splits():
    features = features_of()
    recipe = recipe_of("unused")
    protocol = protocol_of(recipe, dropout=0.0, epochs=1, rate=1e-12, weight_decay=0.0)
    trial = planned(protocol, {})[0]
    row = run_on_maps(protocol, trial, features)
    # at a rate of nothing only the norm's statistics move
    network = _network(with_block(recipe, "none"), (16, 4, 4), 3, protocol, trial.seed).train()
    for x, _ in _batches(features.train, recipe.data, torch.Generator().manual_seed(trial.seed)):
        network(x)
    network.eval()
    for name, maps in (("train_loss", features.train), ("test_loss", features.test)):
        logits = network(maps.maps[:, 0])
        assert row[name] == pytest.approx(F.cross_entropy(logits, maps.labels).item(), rel=1e-5)
    assert row["top1"] == pytest.approx(100 * (logits.argmax(1) == maps.labels).float().mean().item())
    assert row["steps"] == 15


def test_tuning_uses_samples_and_seeds_that_the_report_does_not():
    features = features_of()
    protocol = protocol_of(recipe_of("unused"), factors=(0.1, 1.0), lengths=(1, 2, 3))
    trials = tuning(protocol, "cgnl", 0.1)
    assert len(trials) == 2 * 3 * 2
    assert len(tuning(protocol, "none")) == len(trials)
    assert min(trial.seed for trial in trials) >= FIRST_TUNING_SEED > max(protocol.seeds)
    train, test = _samples(protocol, trials[0], features)
    reported, tested = _samples(protocol, planned(protocol, {})[0], features)

    def rows(maps):
        return {tuple(row.flatten().tolist()) for row in maps.maps}

    assert not (rows(train) | rows(test)) & rows(reported)
    assert not rows(train) & rows(test)
    assert tested is features.test
    assert len(train.labels) + len(test.labels) + len(reported.labels) == len(features.train.labels)


def test_the_best_settings_of_a_kind():
    def row(epochs, factor, top1):
        return {"epochs": epochs, "rate": 0.1, "block_rate_factor": factor, "top1": top1}

    rows = [row(20, 1, 50), row(20, 1, 60), row(20, 4, 70), row(20, 4, 50), row(40, 1, 80), row(40, 1, 70)]
    best = best_of(rows, 20)
    assert best == {"rate": 0.1, "factor": 4, "own": (40, 0.1, 1)}
    for lengths, own in (((1, 2), ["own"]), ((1,), [])):
        protocol = protocol_of(recipe_of("unused"), blocks=("cgnl",), seeds=(0,), factors=(1.0, 4.0), lengths=lengths)
        assert [trial.length for trial in planned(protocol, {"cgnl": best})] == ["fixed", *own]


def test_labels_of_blocks():
    recipe = recipe_of("unused")
    assert with_block(recipe, "cgnl:groups=1,norm=group").block.groups == 1
    assert with_block(recipe, "cgnl-correlation").block.statistic == "correlation"
    five = with_block(recipe, "cgnl:num_blocks=5,groups=4")
    assert (five.network.num_blocks, five.block.groups) == (5, 4)
    for label, message in (
        ("cgnl:groups", "groups must be OPTION=VALUE"),
        ("cgnl:colour=1", "colour is not an option of block cgnl"),
        ("cgml", "block ('cgml') must be one of"),
        ("cgnl:num_blocks=two", "num_blocks"),
    ):
        with pytest.raises(ValueError) as error:
            with_block(recipe, label)
        assert message in str(error.value)


def command(root, out, *more):
    return ["compare", "image", f"--data.root={root}", f"--out={out}", *SMALL, *more]


def kill_and_continue(arguments, folder, count):
    """Start a comparison in a process, kill it after some runs, and continue it here."""
    process = Command(*arguments)
    lines = folder / "runs.jsonl"
    while not lines.exists() or len(lines.read_text().splitlines()) < count:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.kill()
    process.wait()
    with lines.open("a") as file:
        file.write('{"block": "cg')  # a line that was cut
    main(arguments)


def test_a_comparison_is_continued_after_kill_9(class_folders, tmp_path):
    options = ["--blocks", "none", "cgnl", "se", "--seeds=2"]
    main(command(class_folders, tmp_path / "unbroken", *options))
    expected = rows_of(tmp_path / "unbroken")
    # plain, plain for twice as long, and two kinds, with two seeds
    assert [(row["block"], row["seed"], row["length"]) for row in expected] == [
        (block, seed, length)
        for seed in (0, 1)
        for block, length in (("none", "fixed"), ("none", "twice"), ("cgnl", "fixed"), ("se", "fixed"))
    ]
    kill_and_continue(command(class_folders, tmp_path / "killed", *options), tmp_path / "killed", 2)
    assert without_time(rows_of(tmp_path / "killed")) == without_time(expected)
    assert (tmp_path / "killed" / "report.html").stat().st_size > 1000


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A network that trains in no time, as options."""
    (tmp_path / "tiny.py").write_text(
        "from torch import nn\n\n\ndef network(num_classes):\n"
        "    first = nn.Conv2d(3, 16, 3, 4), nn.BatchNorm2d(16), nn.ReLU()\n"
        "    second = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()\n"
        "    return nn.Sequential(*first, *second, nn.Linear(16, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    size = "--data.size=32", "--data.resize=32", "--data.batch-size=2", "--data.workers=0"
    return ["--network.arch=tiny.network", "--network.places=2", "--trainer.accelerator=cpu", *size]


def test_runs_of_the_networks_own_layers_are_continued_after_kill_9(class_folders, tmp_path, tiny):
    options = ["--freeze=below-block", "--head=network", "--block-rate-factor=4", "--blocks", "none", "cgnl"]
    arguments = ["compare", "image", f"--data.root={class_folders}", f"--out={tmp_path}", *tiny, *options]
    kill_and_continue([*arguments, "--seeds=1", "--epochs=1"], tmp_path, 1)
    rows = rows_of(tmp_path)
    assert [(row["block"], row["rate"], row["block_rate_factor"]) for row in rows] == [
        ("none", 0.05, 1), ("none", 0.05, 1), ("cgnl", 0.05, 4)
    ]  # fmt: skip
    # the run of the process that was killed, again in this one
    protocol = json.loads((tmp_path / "protocol.json").read_text())
    protocol = Protocol(**{field.name: protocol[field.name] for field in dataclasses.fields(Protocol)})
    with trusting("tiny"):
        features = cached(from_dict(protocol.recipe, "here"), tmp_path, say=print)
        again = run_on_maps(protocol, Trial("none", 0, "fixed", 1, 0.05, 1.0), features)
    assert without_time([again]) == without_time(rows[:1])


def test_processes_give_the_same_numbers(class_folders, tmp_path):
    options = ["--blocks", "none", "cgnl", "--seeds=2", "--jobs=2"]
    main(command(class_folders, tmp_path / "out", *options))
    rows = sorted(rows_of(tmp_path / "out"), key=lambda row: (row["seed"], row["block"], row["length"]))
    main(command(class_folders, tmp_path / "one", *options[:-1]))
    expected = sorted(rows_of(tmp_path / "one"), key=lambda row: (row["seed"], row["block"], row["length"]))
    for row, other in zip(without_time(rows), without_time(expected), strict=True):
        assert row["top1"] == other["top1"]
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)


def test_mistakes_and_own_blocks_in_processes(class_folders, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("import torch\n\nclass Own(torch.nn.Identity):\n    pass\n")
    options = ["--blocks", "none", "mine.Own", "--seeds=1", "--jobs=2"]
    main(command(class_folders, tmp_path / "own", *options))
    rows = {(row["block"], row["length"]): row for row in rows_of(tmp_path / "own")}
    assert rows["mine.Own", "fixed"]["top1"] == rows["none", "fixed"]["top1"]
    with pytest.raises(SystemExit):
        main(command(class_folders, tmp_path / "large", *options, "--data.batch-size=500"))
    error = capsys.readouterr().err
    assert error.startswith("cgnl: data.batch_size (500) must be at most")
    assert len(error.splitlines()) == 1


def descendants(pid):
    try:
        children = [
            child for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()
        ]
    except OSError:  # it has just ended
        return []
    return [*children, *(other for child in children for other in descendants(child))]


@pytest.mark.parametrize("readers", [0, 1])
def test_processes_end_with_their_parent(readers, class_folders, tmp_path, tiny):
    """Those that train on cached maps, or whole networks with readers of their own."""
    options = ["--blocks", "none", "cgnl", "--seeds=40", "--jobs=2"]
    arguments = command(class_folders, tmp_path / "out", *options)
    if readers:
        network = [option for option in tiny if "workers" not in option] + [f"--data.workers={readers}"]
        data = [f"--data.root={class_folders}", f"--out={tmp_path / 'out'}"]
        arguments = ["compare", "image", *data, *network, *options, "--epochs=3"]
    process = Command(*arguments)
    server_and_workers = 1 + 2
    children = []
    while not (tmp_path / "out" / "runs.jsonl").exists() or len(children) < server_and_workers + readers:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
        children = descendants(process.pid)
    process.kill()
    process.wait()
    until = time.monotonic() + 30

    def lives(child):
        words = Path(f"/proc/{child}/cmdline")
        return words.exists() and words.read_bytes()  # empty once it has ended

    while left := [child for child in children if lives(child)]:
        assert time.monotonic() < until, f"of {children}, {left} outlive their parent"
        time.sleep(0.1)


def test_whole_networks_are_compared_and_diagnosed(class_folders, tmp_path, capsys):
    out = tmp_path / "out"
    # a high rate of the block, so that it is no longer the identity
    own = [
        "--trainer.accelerator=cpu",
        "--epochs=1",
        "--block-rate-factor=100",
        "--blocks",
        "none",
        "cgnl",
        "--seeds=1",
    ]
    main(["compare", "image", f"--data.root={class_folders}", f"--out={out}", *SMALL[:-1], *own])
    rows = rows_of(out)
    assert [(row["block"], row["length"]) for row in rows] == [("none", "fixed"), ("none", "twice"), ("cgnl", "fixed")]
    assert [len(row["curve"]) for row in rows] == [1, 2, 1]
    assert rows[2]["parameters"] > rows[0]["parameters"]
    assert "report:" in capsys.readouterr().out

    trained = load_trained(out / "runs" / "cgnl-fixed-0" / "last.ckpt")
    network, data = trained.network, ImageData(recipe_of(class_folders).data)
    batches = list(data.tested_batches("test"))
    x, labels = (torch.cat([batch[name] for batch in batches]) for name in ("image", "label"))
    (block,) = inserted_blocks(network).values()
    ratios = []
    hook = block.register_forward_hook(
        lambda module, args, z: ratios.extend((z - args[0]).flatten(1).norm(dim=1) / args[0].flatten(1).norm(dim=1))
    )
    with torch.no_grad():
        top1 = 100 * (network(x).argmax(1) == labels).float().mean().item()
        hook.remove()
        removed = 100 * (remove_blocks(network)(x).argmax(1) == labels).float().mean().item()
    found = rows[2]["diagnosis"]
    assert rows[0]["diagnosis"] is rows[1]["diagnosis"] is None
    assert found["removed"] == pytest.approx(removed, abs=1e-4)
    assert found["branch_over_x"] == pytest.approx(torch.stack(ratios).mean().item(), rel=1e-4)
    assert found["branch_over_x"] > 0.01
    assert found.keys() == {"removed", "mean_s", "shuffled_s", "s_cv", "s_positive", "branch_over_x"}

    main(["evaluate", str(out / "runs" / "cgnl-fixed-0" / "last.ckpt"), "--diagnose", "--data.workers=0"])
    said = capsys.readouterr().out
    assert f"top-1 {top1:.2f} %  (95 % interval" in said
    for blocks in ("all blocks", "layer3.0"):
        assert f"{blocks}: top-1 {top1:.2f} %, {removed:.2f} % removed, {found['mean_s']:.2f} % with s set" in said
    main(["evaluate", str(out / "runs" / "none-fixed-0" / "last.ckpt"), "--data.workers=0"])
    assert "removed" not in capsys.readouterr().out


def test_whole_networks_are_tuned_on_samples_that_the_report_does_not_use(tmp_path, tiny):
    birds, out = tmp_path / "birds", tmp_path / "out"
    draw_birds(birds, num_species=2, train_images=9, test_images=3, size=32, workers=1)
    options = ["--blocks", "none", "--seeds=1", "--epochs=1", "--tune", "1"]
    arguments = ["compare", "image", f"--data.root={birds}", f"--out={out}", *tiny, *options]
    kill_and_continue(arguments, out, 2)
    rows = rows_of(out)
    tuned = [
        (row["seed"] - FIRST_TUNING_SEED, row["epochs"], row["steps"]) for row in rows if row["length"] == "tuning"
    ]
    # 18 samples: 6 tune, of which 2 test; the report has the others
    assert tuned == [(seed, epochs, 2 * epochs) for epochs in (1, 2, 3) for seed in (0, 1)]
    reported = {row["length"]: row for row in rows[6:]}
    assert [*reported] == ["fixed", "twice", "own"]
    assert (reported["fixed"]["steps"], reported["twice"]["steps"]) == (6, 12)
    assert {file.name for file in (out / "runs").iterdir()} == {"none-fixed-0", "none-twice-0", "none-own-0"}
    # the lists of the samples themselves
    used = {}
    protocol = protocol_of(recipe_of(birds), frozen=False, factors=(1.0,), lengths=(1,))
    for length in ("tuning", "fixed"):
        data = ImageData(
            recipe_of(birds).data, part=_part(protocol, Trial("none", 0, length, 1, 1.0, 1.0), recipe_of(birds))
        )
        used[length] = [
            {sample.path for sample in samples.samples} for samples in (data.train_samples, data.test_samples)
        ]
    assert [len(paths) for paths in (*used["tuning"], *used["fixed"])] == [4, 2, 12, 6]
    assert len(set.union(*used["tuning"], *used["fixed"])) == 24


def test_a_comparison_reports_the_test_samples_where_there_are_validation_samples_too(class_folders, tmp_path, tiny):
    root, out = shutil.copytree(class_folders, tmp_path / "set"), tmp_path / "out"
    for folder in sorted((root / "val").iterdir()):
        target = root / "test" / folder.name
        target.mkdir(parents=True)
        (folder / "0.jpg").rename(target / "0.jpg")
    main(
        [
            "compare",
            "image",
            f"--data.root={root}",
            f"--out={out}",
            *tiny,
            "--blocks",
            "none",
            "--seeds=1",
            "--epochs=1",
        ]
    )
    with trusting("tiny"):
        trained = load_trained(out / "runs/none-fixed-0/last.ckpt", trust=["tiny"])
    result = evaluate(trained, trained.recipe.data)
    assert (result.split, result.count) == ("test", 3)
    row = next(row for row in rows_of(out) if row["length"] == "fixed")
    assert row["top1"] == pytest.approx(result.top1)
    assert "24 training, 9 validation and 3 test images" in json.loads((out / "protocol.json").read_text())["data"]


def test_minutes_end_it_cleanly(class_folders, tmp_path, capsys):
    options = ["--blocks", "none", "cgnl", "--seeds=1", "--minutes=0.00001"]
    with pytest.raises(SystemExit) as ended:
        main(command(class_folders, tmp_path, *options))
    assert ended.value.code == 3
    assert "the same command continues" in capsys.readouterr().err
    main(command(class_folders, tmp_path, *options[:-1]))
    assert len(rows_of(tmp_path)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--blocks", "cgml"], "block ('cgml') must be one of"),
        (["--seeds=0"], "--seeds (0) must be at least 1"),
        (["--tune", "0"], "--tune (0.0) must be above 0"),
        (["--freeze=none", "--head=network"], "--head network needs --freeze below-block"),
        (["--rate=inf"], "--rate (inf) must be a finite number"),
        (["--weight-decay=nan"], "--weight-decay (nan) must be a finite number"),
        (["--block-rate-factor=0"], "--block-rate-factor (0.0) must be above 0"),
        (["--network.num-blocks=5"], "--freeze below-block needs one block"),
        (["--blocks", "cgnl:num_blocks=2"], "--freeze below-block needs one block, and --blocks has cgnl:num_blocks=2"),
        (["--tune", "1", "--lengths", "2"], "--lengths (2) must be 1 and whole numbers above it"),
        (
            ["--data.augment", "rand", "erasing"],
            "data.augment (rand erasing) must be left out with --freeze below-block",
        ),
        (["--trainer.early-stopping=3"], "trainer.early_stopping (3) must be left out: all runs of a comparison"),
        (["--optimizer.class-weights", "1", "2"], "optimizer.class_weights has 2 numbers, but the data has 3 classes"),
        (["--data.batch-size=500"], "data.batch_size (500) must be at most the number of training samples"),
    ],
)
def test_mistakes_end_in_one_sentence(options, message, class_folders, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command(class_folders, tmp_path), *options])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_comparison_keeps_its_folder(class_folders, tmp_path, capsys):
    with locked(tmp_path), pytest.raises(SystemExit) as ended:
        main(command(class_folders, tmp_path))
    assert ended.value.code == 2
    assert f"is writing into {tmp_path}: wait until it ends" in capsys.readouterr().err


def test_a_folder_holds_one_comparison(class_folders, tmp_path, capsys):
    folder, out = shutil.copytree(class_folders, tmp_path / "photos"), tmp_path / "out"

    def refused(*options, root=folder):
        with pytest.raises(SystemExit):
            main(command(root, out, "--blocks", "none", "--seeds=1", *options))
        error = capsys.readouterr().err
        assert error.startswith(f"cgnl: {out} holds another comparison (")
        assert len(error.splitlines()) == 1
        return error

    def goes_on(*options, root=folder):
        main(command(root, out, "--blocks", "none", "--seeds=1", *options))
        return True

    assert goes_on()
    assert "(rate was 0.1, now 0.2)" in refused("--rate=0.2")
    assert "(data.batch_size was 4, now 3)" in refused("--data.batch-size=3")
    assert "(head was new, now network)" in refused("--head=network", "--rate=0.1")
    assert goes_on("--data.workers=1", "--trainer.log-every-n-steps=3")
    moved = folder.rename(tmp_path / "moved")
    assert goes_on(root=moved)
    (moved / "train" / "class_0" / "0.jpg").rename(moved / "train" / "class_0" / "other.jpg")
    assert "(the samples were others)" in refused(root=moved)
    # a folder of an earlier version goes on as if it had the defaults, where its data was
    protocol = json.loads((out / "protocol.json").read_text())
    assert protocol["rate"] == 0.1
    for name in ("head", "block_rate_factor", "samples"):
        del protocol[name]
    (out / "protocol.json").write_text(json.dumps(protocol))
    assert "(data.root was" in refused(root=moved)
    moved.rename(folder)
    assert goes_on()
    assert len(rows_of(out)) == 2


def test_a_folder_may_get_more_seeds_and_kinds(class_folders, tmp_path, capsys):
    """What is there stays as it is, and the protocol says what was known when these were added."""
    out = tmp_path / "out"
    main(command(class_folders, out, "--blocks", "none", "--seeds=1"))
    before = rows_of(out)
    main(command(class_folders, out, "--blocks", "none", "residual", "--seeds=2"))
    rows = rows_of(out)
    assert rows[:2] == before
    found = {(row["block"], row["length"], row["seed"]) for row in rows}
    assert found == {
        (*kind, seed) for kind in (("none", "fixed"), ("none", "twice"), ("residual", "fixed")) for seed in (0, 1)
    }
    protocol = json.loads((out / "protocol.json").read_text())
    assert (protocol["blocks"], protocol["seeds"]) == (["none", "residual"], [0, 1])
    assert protocol["earlier"] == [{"blocks": ["none"], "seeds": [0]}]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(command(class_folders, out, "--blocks", "none", "residual", "--seeds=1"))
    assert "(seeds was [0, 1], now [0])" in capsys.readouterr().err
