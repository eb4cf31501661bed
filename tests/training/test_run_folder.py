"""The folder of a run: kept to one process, new or refused, and mended where files are empty or ruined."""

import csv
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import torch
from test_run import tiny

from cgnl.data.decoding import DataError
from cgnl.recipes import load_recipe
from cgnl.settings.reading import override
from cgnl.tasks import train
from cgnl.training.callbacks import FiniteGuard, NonFiniteError, RunKeeper
from cgnl.training.output import Curves, quiet_curves
from cgnl.training.processes import TrainingStopped, locked


def rows(path):
    with path.open(newline="") as file:
        return [row[:-1] for row in csv.reader(file)]


@pytest.fixture(scope="module")
def finished(class_folders, tmp_path_factory):
    run = tmp_path_factory.mktemp("folders") / "run"
    train(tiny(class_folders, max_epochs=2), run, name="birds", progress=False)
    return run


@pytest.mark.parametrize("name", ["best.ckpt", "epochs.csv", "steps.csv", "recipe.yaml", ".last.ckpt.part"])
def test_a_folder_with_a_file_of_a_run_is_not_new(class_folders, tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=rf"already holds a run \({name}\): add --resume to continue it"):
        train(tiny(class_folders), tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == [name]


def test_a_run_that_began_badly_can_be_repeated(class_folders, tmp_path):
    too_many = override(tiny(class_folders), {"data": {"batch_size": 50}}, "test")
    with pytest.raises(ValueError, match="24 samples, fewer than one step takes"):
        train(too_many, tmp_path / "run", progress=False)
    train(tiny(class_folders, max_steps=1), tmp_path / "run", progress=False)


def test_empty_files_of_a_run_are_mended(class_folders, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    for name in ("recipe.yaml", "epochs.csv", "steps.csv", "skipped_steps.csv"):
        (run / name).write_text("")
    name, recipe = load_recipe(str(run))
    assert (name, recipe) == ("birds", tiny(class_folders, max_epochs=2))
    train(override(recipe, {"trainer": {"max_epochs": 3}}, "test"), run, name=name, resume=True, progress=False)
    assert [row[0] for row in rows(run / "epochs.csv")] == ["step", "9"]
    assert [row[0] for row in rows(run / "steps.csv")] == ["step", "7", "8", "9"]
    assert load_recipe(str(run))[1].trainer.max_epochs == 3
    (run / "recipe.yaml").unlink()
    assert load_recipe(str(run))[1].trainer.max_epochs == 3


def test_logs_that_a_crash_of_the_system_has_cut_are_mended(class_folders, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    with (run / "steps.csv").open("ab") as file:
        file.write(b"7,2,0.5\x00\xff")
    (run / ".best.ckpt.part").write_bytes(b"half")
    train(tiny(class_folders, max_epochs=3), run, resume=True, progress=False)
    assert [row[0] for row in rows(run / "steps.csv")] == ["step", *"123456789"]
    assert not list(run.glob(".*.part"))


def test_another_process_keeps_the_folder_out_of_reach(class_folders, tmp_path):
    # its fork, as a reader of samples is one, outlives it and must not keep the folder
    script = (
        "import os, sys, time; from pathlib import Path; from cgnl.training.processes import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    child = os.fork()\n"
        "    if child: print(child, flush=True)\n"
        "    time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", script, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    forked = int(other.stdout.readline())
    for resume in (False, True):
        with pytest.raises(ValueError, match=rf"^process {other.pid} on .* is writing into .*run: wait until it ends"):
            train(tiny(class_folders), tmp_path / "run", resume=resume, progress=False)
    other.kill()
    other.wait()
    try:
        train(tiny(class_folders, max_steps=1), tmp_path / "run", progress=False)
    finally:
        os.kill(forked, signal.SIGKILL)


def test_a_run_gives_its_folder_back_however_it_ends(class_folders, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(RunKeeper, "on_train_epoch_end", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tiny(class_folders), tmp_path / "run", progress=False)
    with locked(tmp_path / "run"):
        pass


@pytest.mark.parametrize("below", ["", "/run"])
def test_a_run_folder_that_is_a_file_is_named(class_folders, tmp_path, below):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError) as caught:
        train(tiny(class_folders), tmp_path / f"file{below}", progress=False)
    assert caught.value.filename == str(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_relative_root_names_the_folder_that_it_is_relative_to(class_folders, finished, tmp_path, monkeypatch):
    (tmp_path / "here" / "birds").parent.mkdir()
    (tmp_path / "here" / "birds").symlink_to(class_folders)
    (tmp_path / "there").mkdir()
    recipe = override(tiny(class_folders, max_epochs=3), {"data": {"root": "birds"}}, "test")
    run = shutil.copytree(finished, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "there")
    with pytest.raises(
        DataError, match=rf"data.root: birds does not exist in {tmp_path / 'there'}, the working folder"
    ):
        train(recipe, run, resume=True, progress=False)
    monkeypatch.chdir(tmp_path / "here")
    train(recipe, run, resume=True, progress=False)


# the learning rate of the second epoch ruins the weights in its first step
RUINED = {"optimizer": {"momentum": 0.0}, "schedule": {"kind": "steps", "milestones": [1], "gamma": 1e30}}


@pytest.mark.parametrize("tested", [1, 5])
def test_ruined_weights_are_not_saved(class_folders, tmp_path, tested):
    # step 4 ruins the weights, which shows at step 5, and the epoch ends with step 6
    trainer = {"max_epochs": 4, "test_every_n_epochs": tested, "checkpoint_every_n_steps": 5}
    recipe = override(tiny(class_folders, **trainer), RUINED, "test")
    train(override(recipe, {"trainer": {"max_epochs": 1}}, "test"), tmp_path / "run", progress=False)
    kept = {name: (tmp_path / "run" / name).read_bytes() for name in ("last.ckpt", "best.ckpt")}
    with pytest.raises(NonFiniteError) as caught:
        train(recipe, tmp_path / "run", resume=True, progress=False)
    message = str(caught.value)
    assert "start again with a lower optimizer.lr (0.01)" in message
    assert f"{tmp_path / 'run' / 'last.ckpt'} is the last checkpoint" in message
    assert {name: (tmp_path / "run" / name).read_bytes() for name in kept} == kept
    assert "nan" not in (tmp_path / "run" / "epochs.csv").read_text().splitlines()[1]


def test_an_epoch_of_skipped_steps_alone_ends_the_run(class_folders, tmp_path, monkeypatch):
    steps = FiniteGuard.on_before_backward

    def spoil(guard, trainer, module, loss):
        steps(guard, trainer, module, loss * (math.nan if trainer.current_epoch else 1))

    monkeypatch.setattr(FiniteGuard, "on_before_backward", spoil)
    with pytest.raises(NonFiniteError, match=r"all steps of epoch 2 had a non-finite loss or gradient\. The skipped"):
        train(tiny(class_folders, max_epochs=3, checkpoint_every_n_steps=1), tmp_path / "run", progress=False)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["cgnl"]["step"] == 3
    assert len(rows(tmp_path / "run" / "epochs.csv")) == 2


def test_a_bad_step_at_the_end_loses_nothing_and_is_counted_once(class_folders, tmp_path, monkeypatch):
    steps = FiniteGuard.on_before_backward

    def spoil(guard, trainer, module, loss):
        steps(guard, trainer, module, loss * (math.nan if trainer.global_step in (2, 4) else 1))

    monkeypatch.setattr(FiniteGuard, "on_before_backward", spoil)
    recipe = tiny(class_folders, max_epochs=3)
    train(recipe, tmp_path / "unbroken", progress=False)
    batch_ends = RunKeeper.on_train_batch_end

    def stop(keeper, trainer, module, outputs, batch, batch_idx):
        # the signal comes at a bad step: one more tells that the weights are good
        if trainer.global_step == 5 and batch_idx == 1:
            keeper._signal = signal.SIGTERM
        batch_ends(keeper, trainer, module, outputs, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(RunKeeper, "on_train_batch_end", stop)
        with pytest.raises(TrainingStopped) as stopped:
            train(recipe, tmp_path / "run", progress=False)
    assert stopped.value.step == 6
    train(recipe, tmp_path / "run", resume=True, progress=False)
    for name in ("epochs.csv", "steps.csv", "skipped_steps.csv"):
        assert rows(tmp_path / "run" / name) == rows(tmp_path / "unbroken" / name)
    assert [row[0] for row in rows(tmp_path / "run" / "skipped_steps.csv")] == ["step", "2", "4"]


def test_nohup_is_respected(class_folders, tmp_path, monkeypatch):
    starts = RunKeeper.on_train_start
    found = []

    def start(keeper, trainer, module):
        starts(keeper, trainer, module)
        found.append(signal.getsignal(signal.SIGHUP))

    monkeypatch.setattr(RunKeeper, "on_train_start", start)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        train(tiny(class_folders, max_steps=1), tmp_path / "run", progress=False)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert found == [signal.SIG_IGN]


def test_curves_that_cannot_be_written_end_in_one_line(tmp_path, capsys):
    said = []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with quiet_curves():
        curves = Curves(tmp_path, said.append)
        curves.log_metrics({"loss": 1.0}, 1)
        curves.save()
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        try:
            broken = Curves(tmp_path, said.append)
            for step in range(3):
                for each in (curves, broken):
                    each.log_metrics({"loss": 1.0}, step)
                    each.save()
            for each in (curves, broken):
                each.finalize("failed")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert said == ["TensorBoard's curves end here: File too large"] * 2
    assert "Traceback" not in "".join(capsys.readouterr())


def test_curves_end_where_the_folder_has_a_name_that_tensorboard_cannot_take(tmp_path):
    said = []
    curves = Curves(tmp_path / os.fsdecode(b"m\xe9sange"), said.append)
    for step in range(2):
        curves.log_metrics({"loss": 1.0}, step)
        curves.save()
    curves.finalize("success")
    assert said == ["TensorBoard's curves end here: the name of the run's folder is not in UTF-8"]


def test_only_the_thread_of_the_curves_is_quiet(monkeypatch):
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda failed: seen.append(failed.exc_type))

    class OfCurves(threading.Thread):
        __module__ = "tensorboard.summary.writer.event_file_writer"

    def fail(error, kind):
        def run():
            raise error

        thread = kind(target=run)
        thread.start()
        thread.join()

    with quiet_curves():
        fail(OSError("full"), OfCurves)
        assert not seen
        fail(OSError("full"), threading.Thread)
        fail(ZeroDivisionError(), OfCurves)
    fail(OSError("full"), OfCurves)
    assert seen == [OSError, ZeroDivisionError, OSError]
