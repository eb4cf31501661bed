"""Two processes, with and without torchrun, train and test as one does."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_resume import DETECTION_SETTINGS, compare, wait_for_lines

from cgnl.cli import main
from cgnl.training.processes import locked
from processes import Command, Group

SETTINGS = (
    "--data.format=folders --data.size=48 --data.resize=54 --data.batch-size=8 --data.workers=0 --optimizer.lr=0.01 "
    "--trainer.max-epochs=2 --trainer.log-every-n-steps=1 --trainer.seed=3 "
    # each process has statistics of its own in a BatchNorm that trains
    "--trainer.freeze conv1 bn1 layer1 layer2 layer3 layer4"
).split()


def start(*arguments: str, processes: int) -> Command | Group:
    return Group(*arguments, processes=processes) if processes > 1 else Command(*arguments)


def command(*arguments: str, processes: int) -> str:
    process = start(*arguments, processes=processes)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "sync_dist" not in output
    return output


def by_torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in two processes as a user does."""
    # the dashes keep torchrun from taking --run for its own --run-path
    torchrun = ["torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "--", "cgnl"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", *torchrun, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def runs(class_folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    # one test image too many for equal shares
    extra = class_folders / "val" / "class_2" / "3.jpg"
    extra.rename(folder / "moved.jpg")
    train = ["train", "birds-resnet18-cgnl", f"--data.root={class_folders}", *SETTINGS]
    main([*train, f"--run={folder / '1'}"])
    ended = by_torchrun(*train, f"--run={folder / '2'}")
    assert ended.returncode == 0, ended.stderr
    assert "sync_dist" not in ended.stderr
    yield folder
    (folder / "moved.jpg").rename(extra)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(runs):
    alone, pair = (torch.load(runs / str(n) / "last.ckpt", weights_only=True)["state_dict"] for n in (1, 2))
    assert alone.keys() == pair.keys()
    torch.testing.assert_close(pair["network.fc.weight"], alone["network.fc.weight"], rtol=1e-5, atol=1e-6)
    assert torch.equal(pair["network.conv1.weight"], alone["network.conv1.weight"])
    losses = [[float(row["train_loss"]) for row in rows(runs / str(n) / "epochs.csv")] for n in (1, 2)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][1] < losses[0][0]
    blocks = [rows(runs / str(n) / "blocks.csv") for n in (1, 2)]
    assert [row["block"] for row in blocks[0]] == [row["block"] for row in blocks[1]]
    for name in ("branch_over_x", "s_cv", "norm_weight", "score_without"):
        found, expected = ([float(row[name]) for row in some if row[name]] for some in blocks)
        assert found == pytest.approx(expected, rel=1e-2)
        assert found


@pytest.mark.slow
def test_two_processes_keep_their_folder(class_folders, runs):
    with locked(runs / "2"):
        options = [f"--data.root={class_folders}", f"--run={runs / '2'}", *SETTINGS, "--resume"]
        ended = by_torchrun("train", "birds-resnet18-cgnl", *options)
    assert ended.returncode != 0
    assert f"cgnl: process {os.getpid()} on " in ended.stderr
    assert ended.stderr.count("is writing into") == 1


@pytest.mark.slow
def test_two_processes_count_each_test_image_once(runs):
    for processes in (1, 2):
        out = runs / f"evaluation{processes}"
        printed = command("evaluate", str(runs / "1"), f"--out={out}", processes=processes)
        assert printed.count("top-1") == 1
        assert "11 images" in printed
    alone, pair = (rows(runs / f"evaluation{n}" / "predictions.csv") for n in (1, 2))
    assert len(alone) == 11
    assert [(row["path"], row["class1"]) for row in alone] == [(row["path"], row["class1"]) for row in pair]


@pytest.mark.slow
def test_two_processes_draw_weigh_and_score_unequal_classes_as_one(unequal, tmp_path):
    options = (
        f"--data.root={unequal} --data.balanced-sampler --optimizer.class-weights 1 2 4 --data.augment rand erasing"
    )
    options += " --optimizer.layer-decay=0.5 --trainer.best-by=macro-f1 --trainer.early-stopping=1 --data.batch-size=4"
    options = ["train", "birds-resnet18-cgnl", *SETTINGS, *options.split(), "--trainer.max-epochs=9"]
    printed = [command(*options, f"--run={tmp_path / str(processes)}", processes=processes) for processes in (1, 2)]
    alone, pair = (torch.load(tmp_path / str(n) / "last.ckpt", weights_only=True)["state_dict"] for n in (1, 2))
    torch.testing.assert_close(pair["network.fc.weight"], alone["network.fc.weight"], rtol=1e-4, atol=1e-6)
    logs = [rows(tmp_path / str(processes) / "epochs.csv") for processes in (1, 2)]
    assert len(logs[0]) == len(logs[1]) < 9
    for one, two in zip(*logs, strict=True):
        for name in ("train_loss", "test_balanced_accuracy", "test_macro_f1"):
            assert float(one[name]) == pytest.approx(float(two[name]), rel=1e-4)
    for text in printed:
        assert text.count("early stopping: 1 test in a row without a better macro-F1 than") == 1


@pytest.mark.slow
def test_two_processes_killed_and_resumed_end_with_the_same_bits_and_list_a_bad_file_once(class_folders, tmp_path):
    folders = shutil.copytree(class_folders, tmp_path / "folders")
    bad = folders / "train" / "class_0" / "0.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    # the whole network trains, block and dropout included, in accumulated parts
    options = ["birds-resnet18-cgnl", f"--data.root={folders}", *SETTINGS[:-7], "--trainer.accumulate=2"]
    options += ["--network.dropout=0.5", "--trainer.checkpoint-every-n-steps=2"]
    command("train", *options, f"--run={tmp_path / 'reference'}", processes=2)
    run = tmp_path / "run"
    process = start("train", *options, f"--run={run}", processes=2)
    wait_for_lines(process, run / "steps.csv", 4)
    process.kill()
    process.communicate()
    command("train", *options, f"--run={run}", "--resume", processes=2)
    compare(run, tmp_path / "reference")
    assert [row["path"] for row in rows(run / "bad_files.csv")] == [str(bad)]
    state = torch.load(run / "last.ckpt", weights_only=True)
    assert state["state_dict"]["network.layer3.0.inserted_block.norm.weight"].abs().max() > 0
    states = state["cgnl"]["random_states"]
    assert len(states) == 2
    assert not torch.equal(states[0][0], states[1][0]), "each process has dropout of its own"


@pytest.mark.slow
def test_two_processes_test_the_views_of_each_video_once(actions, tmp_path):
    # three test videos: unequal shares
    root = shutil.copytree(actions, tmp_path / "actions")
    test_list = root / "testlist01.txt"
    test_list.write_text("".join(test_list.read_text().splitlines(keepends=True)[:3]))
    run = tmp_path / "run"
    settings = "--data.size=32 --data.resize=36 --data.num-frames=4 --data.frame-step=8 --data.batch-size=4 "
    settings += "--data.test-clips=2 --data.test-crops=3 --data.views-per-step=4 --data.workers=0 "
    settings += "--trainer.max-epochs=1 --schedule.warmup=0 --optimizer.name=sgd --optimizer.lr=0.01"
    options = ["actions-resnet18-cgnl", f"--data.root={root}", f"--run={run}", *settings.split()]
    command("train", *options, processes=2)
    last = str(run / "last.ckpt")
    # twice, since the group of processes can begin only once
    printed = command("evaluate", last, last, f"--out={tmp_path / 'evaluation2'}", processes=2)
    assert printed.count("3 videos") == 8
    assert printed.count("mean of 2") == 1
    main(["evaluate", last, last, f"--out={tmp_path / 'evaluation1'}"])
    for part in ("1", "2"):
        alone, pair = (rows(tmp_path / f"evaluation{n}" / part / "predictions.csv") for n in (1, 2))
        assert len(alone) == 3
        assert [row["path"] for row in alone] == [row["path"] for row in pair]
        for ours, theirs in zip(pair, alone, strict=True):
            for k in range(1, 5):
                assert ours[f"class{k}"] == theirs[f"class{k}"]
                assert float(ours[f"probability{k}"]) == pytest.approx(float(theirs[f"probability{k}"]), abs=2e-6)


@pytest.mark.slow
def test_two_processes_train_a_detector_and_test_each_image_once(flock, tmp_path):
    # four of eight images a step, and three test images: unequal shares
    run = tmp_path / "run"
    settings = [option for option in DETECTION_SETTINGS if "batch-size" not in option and "max-steps" not in option]
    settings += ["--data.batch-size=4", "--trainer.max-steps=3", f"--data.root={flock}", "--data.workers=0"]
    command("train", "flock-maskrcnn-resnet18-cgnl", *settings, f"--run={run}", processes=2)
    assert [row["step"] for row in rows(run / "steps.csv")] == ["1", "2", "3"]
    (*_, tested) = rows(run / "epochs.csv")
    # one by one: other batches differ in the last bits
    for processes in (1, 2):
        out = f"--out={tmp_path / f'evaluation{processes}'}"
        printed = command("evaluate", str(run / "last.ckpt"), out, "--data.batch-size=1", processes=processes)
        assert printed.count("3 images") == 1
    alone, pair = (tmp_path / f"evaluation{processes}" for processes in (1, 2))
    for kind in ("box", "mask"):
        ours, theirs = (
            sorted(json.loads((folder / f"{kind}_results.json").read_text()), key=str) for folder in (pair, alone)
        )
        assert len(theirs) == 30
        assert ours == theirs
    assert (pair / "per_class.csv").read_text() == (alone / "per_class.csv").read_text()
    measures, told = (json.loads((folder / "measures.json").read_text()) for folder in (pair, alone))
    assert measures == told
    # what the run has seen of its own test, over its two processes
    assert float(tested["test_box_ap"]) == pytest.approx(told["box"]["AP"])
