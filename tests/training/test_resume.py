"""A run that is killed and resumed ends with the same bits as one that was never interrupted."""

import csv
import dataclasses
import os
import pty
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from cgnl.recipes import RECIPES
from cgnl.settings.reading import override
from cgnl.tasks import train
from cgnl.training.processes import TrainingStopped
from processes import Command, Group

SETTINGS = (
    "--network.dropout=0.5 --data.format=folders --data.size=32 --data.resize=36 --data.batch-size=4 "
    "--data.mixup=0.2 --optimizer.lr=0.01 --trainer.max-epochs=3 --trainer.log-every-n-steps=1 "
    "--trainer.checkpoint-every-n-steps=2"
).split()


VIDEO_SETTINGS = (
    "--network.dropout=0.5 --data.size=32 --data.resize=36 --data.num-frames=4 --data.frame-step=8 --data.batch-size=2 "
    "--data.mixup=0.2 --data.augment augmix erasing --data.balanced-sampler --optimizer.name=sgd --optimizer.lr=0.01 "
    "--trainer.max-epochs=2 --trainer.log-every-n-steps=1 --trainer.checkpoint-every-n-steps=1"
).split()

# the run ends in the middle of its third epoch
DETECTION_SETTINGS = (
    "--network.neck=c4 --network.rois=8 --network.proposals=20 --network.detections=10 --network.score-threshold=0 "
    "--data.size=64 --data.max-size=80 --data.batch-size=2 --optimizer.name=sgd --optimizer.lr=0.001 "
    "--schedule.warmup=2 --trainer.max-epochs=100 --trainer.max-steps=11 --trainer.test-every-n-epochs=2 "
    "--trainer.log-every-n-steps=1 --trainer.checkpoint-every-n-steps=1"
).split()

COMMANDS = {
    "image": ["birds-resnet18-cgnl", *SETTINGS],
    "video": ["actions-resnet18-cgnl", *VIDEO_SETTINGS],
    "detection": ["flock-maskrcnn-resnet18-cgnl", *DETECTION_SETTINGS],
}


def start(folders: Path, run: Path, *options: str, task: str = "image") -> Command:
    return Command("train", *COMMANDS[task], f"--data.root={folders}", f"--run={run}", *options)


def finish(process: Command) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def steps(run: Path) -> list[list[str]]:
    with (run / "steps.csv").open(newline="") as file:
        return [row[:4] for row in csv.reader(file)][1:]


def wait_for_lines(process: Command | Group, log: Path, lines: int) -> None:
    while not log.exists() or len(log.read_text().splitlines()) <= lines:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)


def same(a, b, where="checkpoint"):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{k}]")
    else:
        assert a == b, where


def compare(run: Path, reference: Path, *, epochs: bool = True) -> None:
    assert steps(run) == steps(reference), "every step's loss and learning rate"
    ours, expected = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (run, reference))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        same(ours[part], expected[part], part)
    same(ours["cgnl"]["random_states"], expected["cgnl"]["random_states"], "random state")
    if epochs:
        lines = [(folder / "epochs.csv").read_text().splitlines() for folder in (run, reference)]
        assert [line.rsplit(",", 1)[0] for line in lines[0]] == [line.rsplit(",", 1)[0] for line in lines[1]]


@pytest.fixture(scope="module")
def reference(class_folders, tmp_path_factory):
    run = tmp_path_factory.mktemp("reference") / "run"
    finish(start(class_folders, run, "--data.workers=0"))
    assert len(steps(run)) == 18
    return run


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed_is_bitwise_the_same(class_folders, reference, tmp_path, workers):
    run = tmp_path / "run"
    # once right after an epoch's end and once anywhere
    kills = [("epochs.csv", 1), ("steps.csv", random.SystemRandom().randrange(8, 17))]
    print("killed after", kills)
    for log, lines in kills:
        process = start(class_folders, run, f"--data.workers={workers}", "--resume")
        wait_for_lines(process, run / log, lines)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finish(start(class_folders, run, f"--data.workers={workers}", "--resume"))
    compare(run, reference)


@pytest.fixture(scope="module")
def video_reference(actions, tmp_path_factory):
    run = tmp_path_factory.mktemp("video_reference") / "run"
    finish(start(actions, run, "--data.workers=0", task="video"))
    assert len(steps(run)) == 8
    return run


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_video_run_killed_in_an_epoch_and_resumed_is_bitwise_the_same(actions, video_reference, tmp_path, workers):
    run = tmp_path / "run"
    process = start(actions, run, f"--data.workers={workers}", task="video")
    wait_for_lines(process, run / "steps.csv", 6)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert torch.load(run / "last.ckpt", weights_only=True)["cgnl"]["batch"] > 0, "in the middle of an epoch"
    finish(start(actions, run, f"--data.workers={workers}", "--resume", task="video"))
    compare(run, video_reference)


@pytest.fixture(scope="module")
def detection_reference(flock, tmp_path_factory):
    run = tmp_path_factory.mktemp("detection_reference") / "run"
    finish(start(flock, run, "--data.workers=0", task="detection"))
    assert len(steps(run)) == 11
    return run


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_detection_run_killed_twice_and_resumed_is_bitwise_the_same(flock, detection_reference, tmp_path, workers):
    run = tmp_path / "run"
    # in the first epoch, which is not tested, and in the last, which the steps end in its middle
    for lines in (2, 10):
        process = start(flock, run, f"--data.workers={workers}", "--resume", task="detection")
        wait_for_lines(process, run / "steps.csv", lines)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert torch.load(run / "last.ckpt", weights_only=True)["cgnl"]["batch"] > 0, "in the middle of an epoch"
    finish(start(flock, run, f"--data.workers={workers}", "--resume", task="detection"))
    compare(run, detection_reference)
    best = [torch.load(folder / "best.ckpt", weights_only=True)["cgnl"] for folder in (run, detection_reference)]
    assert best[0]["step"] == best[1]["step"]
    assert best[0]["best"] == best[1]["best"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_stops_after_the_step_and_resuming_is_bitwise_the_same(
    class_folders, reference, tmp_path, number, code
):
    run = tmp_path / "run"
    process = start(class_folders, run, "--data.workers=2", "--trainer.checkpoint-every-n-steps=1000")
    wait_for_lines(process, run / "steps.csv", 8)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    assert "Traceback" not in output
    assert f"{number.name}: stopping after this step" in output
    assert "repeat the command with --resume" in output
    stopped_at = torch.load(run / "last.ckpt", weights_only=True)["cgnl"]["step"]
    assert 8 <= stopped_at <= 12
    finish(start(class_folders, run, "--data.workers=2", "--resume"))
    compare(run, reference)


@pytest.mark.slow
def test_a_run_whose_terminal_is_closed_saves_its_state(class_folders, tmp_path):
    run = tmp_path / "run"
    arguments = ["-m", "cgnl", "train", *COMMANDS["image"], f"--data.root={class_folders}", f"--run={run}"]
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
        os.execv(sys.executable, [sys.executable, *arguments, "--data.workers=1", "--trainer.max-epochs=1000"])
    while not (run / "steps.csv").exists() or len(steps(run)) < 3:
        os.read(terminal, 1 << 16)
    # the process gets SIGHUP, and nothing that it writes arrives any more
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 129
    assert torch.load(run / "last.ckpt", weights_only=True)["cgnl"]["step"] == int(steps(run)[-1][0])


OPTIONS = {
    "accumulation, AdamW and an average": {
        "optimizer": {"name": "adamw"},
        "trainer": {"accumulate": 2, "ema_decay": 0.9},
    },
    "bf16, cutmix, frozen parts and clipping": {
        "optimizer": {"clip_norm": 0.5},
        "trainer": {"precision": "bf16-mixed", "freeze": ["conv1", "bn1"]},
        "data": {"cutmix": 1.0, "mixup": 0.2},
    },
    "balanced draws, augmentation, class weights and layers with rates of their own": {
        "data": {"balanced_sampler": True, "augment": ["rand", "jitter", "erasing"], "mixup": 0.2},
        "optimizer": {"class_weights": [1, 2, 3], "layer_decay": 0.7},
        "trainer": {"accumulate": 2, "ema_decay": 0.9},
    },
    "a cosine after a warm-up": {"schedule": {"kind": "cosine", "warmup": 1.5}},
}


@pytest.fixture(scope="module")
def few_images(class_folders, tmp_path_factory):
    """Half the training images and one test image of each class: steps of bfloat16 are slow on many CPUs."""
    root = tmp_path_factory.mktemp("few")
    for split, count in (("train", 4), ("val", 1)):
        for folder in (class_folders / split).iterdir():
            (root / split / folder.name).mkdir(parents=True)
            for number in range(count):
                shutil.copy(folder / f"{number}.jpg", root / split / folder.name)
    return root


@pytest.mark.parametrize("options", OPTIONS)
def test_stopped_and_resumed_with_options_is_bitwise_the_same(few_images, tmp_path, options):
    recipe = RECIPES["birds-resnet18-cgnl"].make()
    data = dataclasses.replace(recipe.data, root=few_images, format="folders", size=32, resize=36)
    small = {
        "data": {"batch_size": 4, "workers": 0},
        "optimizer": {"lr": 0.01},
        "trainer": {"max_epochs": 2, "log_every_n_steps": 1},
    }
    recipe = override(override(dataclasses.replace(recipe, data=data), small, "test"), OPTIONS[options], "test")
    train(recipe, tmp_path / "reference", progress=False)

    def stop() -> None:
        log = tmp_path / "run" / "steps.csv"
        # a line of names and one of a step: in the middle of the first of two epochs of three steps
        while not log.exists() or len(log.read_text().splitlines()) < 2:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(TrainingStopped) as stopped:
        train(recipe, tmp_path / "run", progress=False)
    thread.join()
    assert stopped.value.step < 6
    train(recipe, tmp_path / "run", resume=True, progress=False)
    compare(tmp_path / "run", tmp_path / "reference")
