"""A classifier with more outputs than there are classes: the one of the start weights is kept."""

import dataclasses
import shutil

import pytest
import torch

from cgnl.data.decoding import DataError
from cgnl.networks.image import resnet18
from cgnl.recipes import RECIPES
from cgnl.tasks import evaluate, from_start_weights, load_trained, predict, train
from cgnl.training import ImageData as make_data

OUTPUTS = 7


def recipe_of(folders, weights, **data):
    recipe = RECIPES["birds-resnet18-cgnl"].make()
    replace = dataclasses.replace
    data = {"format": "folders", "size": 32, "resize": 36, "batch_size": 8, "workers": 0, **data}
    return replace(
        recipe,
        network=replace(recipe.network, weights=str(weights)),
        data=replace(recipe.data, root=folders, **data),
        # steps so small that the weights stay where they start
        optimizer=replace(recipe.optimizer, lr=1e-9),
        schedule=replace(recipe.schedule, kind="constant", warmup=0),
        trainer=replace(recipe.trainer, max_epochs=1),
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network of seven classes, of which the data has three; its last output is always the largest."""
    torch.manual_seed(0)
    network = resnet18(num_classes=OUTPUTS)
    with torch.no_grad():
        network.fc.bias[-1] = 100
    path = tmp_path_factory.mktemp("weights") / "seven.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize("kind", ["folders", "list"])
def test_the_classifier_of_the_start_weights_is_kept(class_folders, weights, kind, tmp_path):
    options = {}
    if kind == "list":
        for split in ("train", "val"):
            lines = [
                f"{path.relative_to(class_folders)} {path.parent.name[-1]}"
                for path in sorted((class_folders / split).glob("*/*.jpg"))
            ]
            (tmp_path / f"{split}.txt").write_text("\n".join(lines))
        options = {"format": "list", "train_list": tmp_path / "train.txt", "test_list": tmp_path / "val.txt"}
    recipe = recipe_of(class_folders, weights, num_outputs=OUTPUTS, **options)
    run = tmp_path / "run"
    train(recipe, run, progress=False)
    trained, start = load_trained(run / "last.ckpt"), torch.load(weights)
    torch.testing.assert_close(trained.network.fc.weight.detach(), start["fc.weight"], rtol=0, atol=1e-6)
    names = ("class_0", "class_1", "class_2")
    assert trained.classes == (*names, *(f"(no class: output {number})" for number in range(3, OUTPUTS)))
    # every output is a candidate, as in a network of that many classes
    result = evaluate(trained, trained.recipe.data, out=tmp_path / "evaluation")
    assert (result.top1, result.count) == (0, 12)
    assert {name for name, *_ in result.per_class} == set(names)
    assert {best for _, best, _ in result.confused} == {"(no class: output 6)"}
    assert predict(trained, class_folders / "val" / "class_1" / "0.jpg")[0][0] == "(no class: output 6)"
    # a configuration that does not know of it tests the network all the same
    assert evaluate(trained, dataclasses.replace(trained.recipe.data, num_outputs=None)).top1 == 0
    train(dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, max_epochs=2)), run, resume=True)
    assert load_trained(run / "last.ckpt").epoch == 2


def test_start_weights_of_more_outputs_are_tested_as_they_are(class_folders, weights):
    recipe = recipe_of(class_folders, weights, num_outputs=OUTPUTS)
    trained = from_start_weights(recipe, "seven", make_data(recipe.data).classes)
    assert evaluate(trained, recipe.data).top1 == 0


def test_the_summary_counts_classes_and_not_outputs(class_folders, weights):
    assert "of 3 classes" in make_data(recipe_of(class_folders, weights, num_outputs=OUTPUTS).data).summary()


@pytest.mark.parametrize("said", [True, False])
def test_the_number_of_classes_is_kept_and_no_name_tells_it(class_folders, weights, said, tmp_path):
    """A class may have the name of an output without one; a checkpoint that keeps no number is read by the names."""
    odd = "class_2" if not said else "(no class: output 3)"
    for folder in class_folders.glob("*/class_*"):
        place = tmp_path / "data" / folder.parent.name / (odd if folder.name == "class_2" else folder.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, place)
    recipe = recipe_of(tmp_path / "data", weights, num_outputs=OUTPUTS)
    assert "of 3 classes" in make_data(recipe.data).summary()
    train(recipe, tmp_path / "run", progress=False)
    path = tmp_path / "run" / "last.ckpt"
    if not said:
        checkpoint = torch.load(path, weights_only=False)
        del checkpoint["cgnl"]["num_classes"]
        torch.save(checkpoint, path)
    trained = load_trained(path)
    assert (trained.num_classes, len(trained.classes)) == (3 if said else None, OUTPUTS)
    names = {name for name, *_ in evaluate(trained, trained.recipe.data).per_class}
    assert names == {"class_0", "class_1", odd}
    longer = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, max_epochs=2))
    train(longer, tmp_path / "run", resume=True, progress=False)
    assert load_trained(path).num_classes == 3


def test_fewer_outputs_than_classes_are_an_error(class_folders, weights):
    data = make_data(recipe_of(class_folders, weights, num_outputs=2).data)
    with pytest.raises(ValueError, match=r"data\.num_outputs \(2\) must be at least the number of classes \(3\)"):
        data.check()


def test_test_images_of_other_classes_are_an_error_still(class_folders, weights):
    data = make_data(
        recipe_of(class_folders, weights).data, classes=("class_0", "class_1", "zebra", "(no class: output 3)")
    )
    with pytest.raises(DataError, match=r"unexpected: class_2; missing: zebra$"):
        data.check()


@pytest.fixture(scope="module")
def own_run(class_folders, tmp_path_factory):
    """A run of one step on three classes."""
    recipe = recipe_of(class_folders, "None")
    recipe = dataclasses.replace(recipe, network=dataclasses.replace(recipe.network, weights=None))
    run = tmp_path_factory.mktemp("own") / "run"
    train(dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, max_steps=1)), run, progress=False)
    return run / "last.ckpt"


@pytest.fixture(scope="module")
def fruit(class_folders, tmp_path_factory):
    """The same images in classes of other names, in another order."""
    root = tmp_path_factory.mktemp("fruit")
    for folder in class_folders.glob("*/class_*"):
        name = {"class_0": "pear", "class_1": "class_1", "class_2": "apple"}[folder.name]
        shutil.copytree(folder, root / folder.parent.name / name)
    return root


def test_own_weights_are_neither_tested_nor_trained_on_classes_of_other_names(own_run, fruit, class_folders, tmp_path):
    recipe = recipe_of(fruit, own_run)
    differences = r"other classes than the data has; unexpected: apple, pear; missing: class_0, class_2\. .*new-class"
    with pytest.raises(ValueError, match=differences):
        from_start_weights(recipe, "own", make_data(recipe.data).classes)
    with pytest.raises(ValueError, match=differences):
        train(recipe, tmp_path / "run", progress=False)
    # in another order
    with pytest.raises(ValueError, match="than the data has; their order differs"):
        from_start_weights(recipe, "own", ("class_1", "class_0", "class_2"))
    # the same classes, or a list that has no names for its own
    for names in (make_data(recipe_of(class_folders, own_run).data).classes, ("0", "1", "2")):
        from_start_weights(recipe, "own", names)
    new = dataclasses.replace(recipe, network=dataclasses.replace(recipe.network, new_classifier=True))
    new = dataclasses.replace(new, trainer=dataclasses.replace(new.trainer, max_steps=1))
    train(new, tmp_path / "run", progress=False)
    # the checkpoint to go on from replaces the start weights
    longer = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, max_steps=2, max_epochs=2))
    train(longer, tmp_path / "run", resume=True, progress=False)


def test_a_list_whose_labels_are_shifted_against_the_checkpoint_is_refused(own_run, class_folders, tmp_path):
    trained = load_trained(own_run)
    lines = [
        f"{path.relative_to(class_folders)} {(int(path.parent.name[-1]) + 1) % 3}"
        for path in class_folders.glob("val/*/*")
    ]
    (tmp_path / "test.txt").write_text("\n".join(lines))
    data = dataclasses.replace(
        trained.recipe.data, format="list", train_list=tmp_path / "test.txt", test_list=tmp_path / "test.txt"
    )
    with pytest.raises(DataError, match=r"the files of label 0 lie in folders of the class class_2, whose"):
        evaluate(trained, data)
