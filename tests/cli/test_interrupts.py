"""Commands that are stopped at once, and commands that want the same folder: one line, and the right exit code."""

import os
import signal

import pytest
from test_cli import run

from cgnl.training.callbacks import RunKeeper
from cgnl.training.classification import ClassificationModule
from cgnl.training.processes import locked

SMALL = (
    "birds-resnet18-cgnl --network.arch=timm:test_resnet --network.weights=None --data.format=folders --data.size=32 "
    "--data.resize=36 --data.batch-size=12 --data.workers=0 --trainer.max-epochs=1"
).split()


@pytest.fixture(autouse=True)
def _handlers():
    """Give every signal the handler back that it had."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    # a shell ignores it in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_stops_a_training_at_once(class_folders, tmp_path, capsys, monkeypatch, number):
    def twice(*_):
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(RunKeeper, "on_train_batch_start", twice)
        code, out, err = run(capsys, "train", *SMALL, f"--data.root={class_folders}", f"--run={tmp_path}")
    assert f"{number.name}: stopping after this step or test; a second one stops at once, unsaved" in out
    assert (code, err) == (128 + number, "cgnl: stopped\n")
    assert not (tmp_path / "last.ckpt").exists()


@pytest.fixture(scope="module")
def trained(class_folders, tmp_path_factory):
    from cgnl.cli import main

    folder = tmp_path_factory.mktemp("trained")
    main(["train", *SMALL, f"--data.root={class_folders}", f"--run={folder}"])
    return folder


@pytest.mark.slow
def test_ctrl_c_stops_a_test(trained, capsys, monkeypatch):
    monkeypatch.setattr(ClassificationModule, "predict_step", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert run(capsys, "evaluate", trained) == (130, "", "cgnl: stopped\n")


@pytest.mark.slow
def test_two_tests_do_not_mix_their_tables(trained, tmp_path, capsys):
    with locked(trained / "evaluation", inside=False):
        code, out, err = run(capsys, "evaluate", trained, "--split=val")
        assert (code, out) == (2, "")
        assert f"process {os.getpid()} on " in err
        assert f"is writing into {trained / 'evaluation'}: wait until it ends" in err
        assert not (trained / "evaluation/measures.json").exists()
        assert run(capsys, "evaluate", trained, "--out", tmp_path / "other")[0] == 0
    assert run(capsys, "evaluate", trained)[0] == 0
