"""Unequal classes: weights in the loss, the balanced sampler, and scores that count classes equally."""

import csv
import dataclasses
import json
import math
import shutil
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score, recall_score
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F
from torch.utils.data import DataLoader

from cgnl.settings.image import Recipe
from cgnl.settings.reading import from_dict, override, to_dict
from cgnl.tasks import evaluate, load_trained, train
from cgnl.training import ImageData
from cgnl.training.class_scores import class_weights, weighted_cross_entropy, weights_of
from cgnl.training.classification import ClassificationModule

LABELS = [0] * 50 + [1] * 7 + [3] * 3


def test_balanced_weights_are_those_of_scikit_learn():
    weights = class_weights("balanced", LABELS, 5, "abcd")
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=LABELS)
    assert weights[[0, 1, 3]].tolist() == pytest.approx(expected, rel=1e-6)
    # a class without samples, and an output that is no class
    assert weights[[2, 4]].tolist() == [1, 1]


def test_given_weights_are_scaled_to_a_mean_of_one_over_the_samples():
    weights = class_weights((1.0, 4.0, 9.0, 2.0), LABELS, 4, "abcd")
    assert float(weights[LABELS].mean()) == pytest.approx(1)
    assert (weights[1] / weights[0], weights[3] / weights[0]) == (4, 2)
    assert class_weights(None, LABELS, 4, "abcd") is None


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ((1.0, 2.0), r"optimizer.class_weights has 2 numbers, but the data has 4 classes \(a, b, c, d\)"),
        ((0.0, 0.0, 1.0, 0.0), r"optimizer.class_weights are 0 for every class that has training samples"),
    ],
)
def test_weights_that_do_not_fit_the_data(wanted, message):
    with pytest.raises(ValueError, match=message):
        class_weights(wanted, LABELS, 4, "abcd")


def test_a_balanced_sampler_needs_no_further_scale():
    recipe = SimpleNamespace(
        optimizer=SimpleNamespace(class_weights=(1.0, 2.0, 3.0)), data=SimpleNamespace(balanced_sampler=True)
    )
    # each class comes equally often
    assert weights_of(recipe, [0, 0, 0, 1, 1, 2], 3, "abc").tolist() == pytest.approx([0.5, 1, 1.5])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_weighted_loss_is_a_sum_over_samples_and_classes(mixed, smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 4, generator=generator)
    labels = torch.randint(4, (12,), generator=generator)
    target = torch.rand(12, 4, generator=generator).softmax(1) if mixed else labels
    weights = torch.tensor([0.5, 3.0, 0.0, 1.0])
    ones = target if mixed else F.one_hot(labels, 4)
    expected = -(weights * ((1 - smoothing) * ones + smoothing / 4) * logits.log_softmax(1)).sum() / 12
    loss = weighted_cross_entropy(logits, target, weights, smoothing)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    parts = [weighted_cross_entropy(logits[k::3], target[k::3], weights, smoothing) for k in range(3)]
    assert float(sum(parts) / 3) == pytest.approx(float(loss), rel=1e-5)
    plain = F.cross_entropy(logits, target, label_smoothing=smoothing)
    assert float(weighted_cross_entropy(logits, target, torch.ones(4), smoothing)) == pytest.approx(float(plain))


def test_the_scores_of_a_test_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(1)
    # class 4 is predicted and never true, and 5 neither
    labels = torch.tensor(LABELS)
    logits = torch.randn(60, 6, generator=generator) + 2 * F.one_hot(labels, 6)
    logits[:, 5] = -9
    best = logits.argmax(1)
    assert 4 in best
    batches = [
        {"image": logits[part, :, None, None], "label": labels[part], "index": torch.arange(60)[part]}
        for part in (slice(0, 20), slice(20, 60))
    ]
    module = ClassificationModule(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 6)), num_classes=6)
    module.network[1].weight.data, module.network[1].bias.data = torch.eye(6), torch.zeros(6)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    for _ in range(2):
        (metrics,) = trainer.validate(module, DataLoader(batches, batch_size=None), verbose=False)
        assert metrics["test/balanced_accuracy"] == pytest.approx(100 * balanced_accuracy_score(labels, best))
        assert metrics["test/macro_f1"] == pytest.approx(100 * f1_score(labels, best, average="macro"))


@pytest.mark.slow
def test_a_run_with_balanced_sampler_and_what_evaluate_reports(tiny_unequal, tmp_path, capsys):
    recipe = override(tiny_unequal, {"data": {"balanced_sampler": True}, "trainer": {"best_by": "macro-f1"}}, "test")
    result = train(recipe, tmp_path / "run", progress=False)
    assert next(iter(result.scores)) == "macro-F1"
    with (tmp_path / "run/epochs.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: float(row["test_macro_f1"]))
    assert float(best["test_macro_f1"]) == pytest.approx(result.best_score)
    trained = load_trained(result.best)
    tested = evaluate(trained, trained.recipe.data, out=tmp_path / "out")
    assert tested.macro_f1 == pytest.approx(result.best_score)
    with (tmp_path / "out/predictions.csv").open() as file:
        pairs = [(row["label"], row["class1"]) for row in csv.DictReader(file)]
    labels, predicted = zip(*pairs, strict=True)
    assert len(labels) == 8
    assert tested.balanced_accuracy == pytest.approx(100 * balanced_accuracy_score(labels, predicted))
    assert tested.macro_f1 == pytest.approx(100 * f1_score(labels, predicted, average="macro"))
    measures = json.loads((tmp_path / "out/measures.json").read_text())
    assert (measures["balanced_accuracy"], measures["macro_f1"]) == (tested.balanced_accuracy, tested.macro_f1)
    with (tmp_path / "out/per_class.csv").open() as file:
        table = list(csv.DictReader(file))
    names = [row["class"] for row in table]
    assert (names, [row["samples"] for row in table]) == (["class_0", "class_1", "class_2"], ["4", "3", "1"])
    scores = {"top1": recall_score, "precision": precision_score, "f1": f1_score}
    for column, score in scores.items():
        expected = score(labels, predicted, labels=names, average=None, zero_division=0)
        assert [float(row[column]) for row in table] == pytest.approx(100 * expected), column
    lines = tested.lines("images", tmp_path)
    assert f"balanced accuracy {tested.balanced_accuracy:.2f} %  (8 images) on the validation split" in lines


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"optimizer.class_weights": "balanced"}, {"data.balanced_sampler": True}])
def test_accumulated_parts_take_the_steps_of_whole_batches(tiny_unequal, tmp_path, options):
    values = {}
    for name, value in options.items():
        part, field = name.split(".")
        values[part] = {field: value}
    states = []
    for parts in (1, 2):
        recipe = override(tiny_unequal, {**values, "trainer": {"accumulate": parts}}, "test")
        result = train(recipe, tmp_path / str(parts), progress=False)
        states.append(torch.load(result.last, weights_only=True)["state_dict"])
    plain = train(tiny_unequal, tmp_path / "plain", progress=False)
    weight = "network.fc.weight"
    torch.testing.assert_close(states[0][weight], states[1][weight], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(torch.load(plain.last, weights_only=True)["state_dict"][weight], states[0][weight])
    # kept out of checkpoints, since the data tells them
    assert not any("class_weights" in name for name in states[0])


def test_settings_that_cannot_be():
    for values, message in (
        ({"data": {"balanced_sampler": True}, "optimizer": {"class_weights": "balanced"}}, "both even the classes out"),
        ({"optimizer": {"class_weights": [1, -2]}}, r"optimizer.class_weights \(-2.0\) must be at least 0"),
        ({"optimizer": {"class_weights": "equal"}}, "must be balanced or a list of numbers, got 'equal'"),
        (
            {"task": "detection", "optimizer": {"class_weights": [1, 2]}},
            r"class_weights \(1.0 2.0\) is for classifiers",
        ),
        ({"task": "detection", "trainer": {"best_by": "top1"}}, r"trainer.best_by \(top1\) is for classifiers"),
        ({"task": "detection", "data": {"balanced_sampler": True}}, "data.balanced_sampler is not a field"),
    ):
        with pytest.raises(ValueError, match=message):
            from_dict(values, "test")
    recipe = from_dict({"optimizer": {"class_weights": [1, 2.5]}}, "test")
    assert from_dict(json.loads(json.dumps(to_dict(recipe))), "test") == recipe
    assert recipe.optimizer.class_weights == (1.0, 2.5)


def test_the_number_of_weights_is_checked_before_anything_is_trained(tiny_unequal, tmp_path):
    recipe = override(tiny_unequal, {"optimizer": {"class_weights": [1, 2]}}, "test")
    with pytest.raises(ValueError, match="has 2 numbers, but the data has 3 classes"):
        train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run/last.ckpt").exists()


def test_a_balanced_sampler_of_videos(tiny_video):
    from cgnl.training import VideoData

    config = dataclasses.replace(tiny_video.data, balanced_sampler=True)
    (first, *_), (again, *_) = (list(VideoData(config, seed=1).train_dataloader().batch_sampler) for _ in range(2))
    assert first == again
    assert isinstance(Recipe().data.balanced_sampler, bool)


def test_a_class_of_the_test_part_alone_counts_nothing_in_training(unequal):
    data = ImageData(dataclasses.replace(Recipe().data, root=unequal, balanced_sampler=True, batch_size=15, workers=0))
    (batch,) = list(data.train_dataloader().batch_sampler)
    assert len(batch) == 15
    assert not math.isnan(float(class_weights("balanced", data.train_labels, 3, data.classes).sum()))


@pytest.mark.slow
def test_an_unreadable_image_that_is_drawn_often_is_one_bad_file(tiny_unequal, unequal, tmp_path):
    root = shutil.copytree(unequal, tmp_path / "set")
    bad = sorted((root / "train/class_2").iterdir())[0]
    bad.write_bytes(b"no image")
    values = {"data": {"root": str(root), "balanced_sampler": True, "bad_limit": 0.1}, "trainer": {"max_epochs": 3}}
    train(override(tiny_unequal, values, "test"), tmp_path / "run", progress=False)
    with (tmp_path / "run/bad_files.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == [str(bad)]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_weights_in_a_trainer_of_ones_own(precision):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    module = ClassificationModule(network, num_classes=3, mixup=0.3, class_weights=torch.tensor([0.5, 1.0, 2.0]))
    batch = {"image": torch.randn(6, 3, 2, 2), "label": torch.arange(6) % 3, "index": torch.arange(6)}
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", max_steps=2, precision=precision, **options)
    trainer.fit(module, DataLoader([batch] * 2, batch_size=None))
    assert float(trainer.callback_metrics["train/loss"]) > 0
