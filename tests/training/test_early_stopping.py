"""A run ends after so many tests without a better score, also across kills and resumes."""

import csv
import os
import signal
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch
from test_resume import compare, steps

from cgnl.settings.reading import from_dict, override, to_dict
from cgnl.tasks import train
from cgnl.training.callbacks import RunKeeper
from processes import in_a_process


def stopping(recipe, tests, **values):
    """A recipe whose weights hardly change: the first test stays the best."""
    trainer = {"max_epochs": 9, "early_stopping": tests, **values.pop("trainer", {})}
    return override(recipe, {"optimizer": {"lr": 1e-9}, "trainer": trainer, **values}, "test")


def epochs(run):
    with (run / "epochs.csv").open() as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def unbroken(tiny_unequal, tmp_path_factory):
    run = tmp_path_factory.mktemp("stopped") / "run"
    train(stopping(tiny_unequal, 2), run, progress=False)
    return run


def train_and_die(values, run, epoch):
    """Train until the last write of an epoch, and no further."""
    ends = RunKeeper._stop_if_asked

    def end(keeper, trainer, module):
        ends(keeper, trainer, module)
        if len(epochs(run) if (run / "epochs.csv").exists() else ()) == epoch:
            os.kill(os.getpid(), signal.SIGKILL)

    RunKeeper._stop_if_asked = end
    train(from_dict(values, "test"), run, progress=False)


@pytest.mark.slow
def test_a_run_ends_after_tests_without_a_better_score(tiny_unequal, unbroken, capsys):
    assert epochs(unbroken) == [0, 1, 2]
    result = train(stopping(tiny_unequal, 2), unbroken, resume=True, progress=False)
    # nothing is left to do, and it says why
    assert result.scores == {}
    out = capsys.readouterr().out
    assert "early stopping: 2 tests in a row without a better top-1 than " in out
    assert f"{result.best_score:.2f} %, that of epoch 1" in out
    assert epochs(unbroken) == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_run_killed_after_an_epoch_ends_where_the_unbroken_one_does(tiny_unequal, unbroken, tmp_path, epoch):
    recipe = stopping(tiny_unequal, 2)
    with pytest.raises(BrokenProcessPool):
        in_a_process(train_and_die, to_dict(recipe), tmp_path / "run", epoch, environment=dict(os.environ))
    assert epochs(tmp_path / "run") == [*range(epoch)]
    train(recipe, tmp_path / "run", resume=True, progress=False)
    compare(tmp_path / "run", unbroken)
    states = [torch.load(run / "last.ckpt", weights_only=True)["cgnl"] for run in (tmp_path / "run", unbroken)]
    assert [state["without_better"] for state in states] == [2, 2]


@pytest.mark.slow
def test_a_larger_number_goes_on_and_a_smaller_one_ends_at_once(tiny_unequal, tmp_path):
    train(stopping(tiny_unequal, 4), tmp_path / "whole", progress=False)
    train(stopping(tiny_unequal, 2), tmp_path / "run", progress=False)
    train(stopping(tiny_unequal, 4), tmp_path / "run", resume=True, progress=False)
    assert epochs(tmp_path / "run") == [0, 1, 2, 3, 4]
    compare(tmp_path / "run", tmp_path / "whole")
    assert train(stopping(tiny_unequal, 1), tmp_path / "run", resume=True, progress=False).scores == {}


@pytest.mark.slow
def test_tests_are_counted_not_epochs_and_steps_may_end_a_run_first(tiny_unequal, tmp_path):
    train(stopping(tiny_unequal, 1, trainer={"test_every_n_epochs": 2}), tmp_path / "rare", progress=False)
    assert epochs(tmp_path / "rare") == [0, 1, 2, 3]
    recipe = stopping(tiny_unequal, 1, trainer={"max_steps": 20}, schedule={"kind": "cosine"})
    train(recipe, tmp_path / "steps", progress=False)
    assert len(steps(tmp_path / "steps")) == 6
    recipe = stopping(tiny_unequal, 1, trainer={"max_steps": 4})
    train(recipe, tmp_path / "few", progress=False)
    assert len(steps(tmp_path / "few")) == 4


@pytest.mark.slow
def test_a_better_score_starts_the_count_again(tiny_unequal, tmp_path):
    recipe = override(tiny_unequal, {"trainer": {"max_epochs": 30, "early_stopping": 3}, "optimizer": {"lr": 0.3}}, "t")
    train(recipe, tmp_path / "run", progress=False)
    with (tmp_path / "run/epochs.csv").open() as file:
        scores = [float(row["test_top1"]) for row in csv.DictReader(file)]
    best = scores.index(max(scores))
    assert len(scores) == best + 4 < 30
    # the rule, over all epochs before
    assert all(max(scores[: end + 1]) > max(scores[: end - 2], default=-1) for end in range(2, len(scores) - 1))


@pytest.mark.slow
def test_a_log_of_an_earlier_version_gets_the_columns_of_this_one(tiny_unequal, tmp_path):
    train(tiny_unequal, tmp_path / "run", progress=False)
    log = tmp_path / "run/epochs.csv"
    rows = [line.split(",") for line in log.read_text().splitlines()]
    place = rows[0].index("test_macro_f1")
    log.write_text("".join(",".join(row[:place] + row[place + 1 :]) + "\n" for row in rows))
    recipe = override(tiny_unequal, {"trainer": {"max_epochs": 3}}, "test")
    train(recipe, tmp_path / "run", resume=True, progress=False)
    with log.open() as file:
        now = list(csv.DictReader(file))
    assert [row["test_macro_f1"] for row in now[:2]] == ["", ""]
    assert float(now[2]["test_macro_f1"]) > 0
    assert [row["seconds"] for row in now[:2]] == [row[-1] for row in rows[1:]]
