"""One object for each task, found by its name; and a network that is used without what trains it."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from cgnl.recipes import RECIPES
from cgnl.settings.detection import DetectionRecipe
from cgnl.settings.image import Recipe
from cgnl.settings.reading import from_dict, override, to_dict
from cgnl.settings.video import VideoRecipe
from cgnl.tasks import build_network, detect, load_trained, predict, predict_timeline, recipe_cost, smoke, task_of
from cgnl.tasks.registry import TASKS, task_named
from cgnl.training.trained import FORMAT

SMALLEST = {
    "image": "birds-resnet18-cgnl",
    "video": "actions-resnet18-cgnl",
    "detection": "flock-maskrcnn-resnet18-cgnl",
}


def written(folder, name):
    """An untrained run of a recipe's smoke variant."""
    recipe = smoke(RECIPES[name].make(), folder / "data")
    torch.manual_seed(0)
    state = {f"network.{key}": value for key, value in build_network(recipe, 3).state_dict().items()}
    entry = {"format": FORMAT, "recipe": to_dict(recipe), "name": name, "classes": ["a", "b", "c"]}
    entry |= {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "epoch": 1, "step": 2}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"cgnl": entry, "state_dict": state}, folder / "last.ckpt")
    return folder


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "bird.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, size=(60, 80, 3), dtype=np.uint8)).save(path)
    return path


def test_every_kind_of_recipe_has_its_task():
    assert {kind.task for kind in (Recipe, VideoRecipe, DetectionRecipe)} == set(TASKS) == set(SMALLEST)
    for name, recipe in SMALLEST.items():
        assert type(task_of(RECIPES[recipe].make())) is type(task_named(name))
    assert len({type(task_named(name)) for name in TASKS}) == len(TASKS)


@pytest.mark.parametrize("name", SMALLEST)
def test_the_cost_counts_the_network_that_is_built(name):
    recipe = RECIPES[SMALLEST[name]].make()
    classes = {"image": 200, "video": 101, "detection": 80}[name]
    network = build_network(recipe, classes)
    assert recipe_cost(recipe).parameters == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "arch", "given", "found"),
    [
        ("image", "resnet50", {}, (224, 256)),
        # timm's data config of this network: 160 pixels, cut out of 160 / 0.95
        ("image", "timm:test_convnext", {}, (160, 168)),
        ("image", "timm:test_convnext", {"size": 64}, (64, 67)),
        ("image", "timm:test_convnext", {"resize": 200}, (160, 200)),
        # torchvision's presets of their weights
        ("image", "torchvision:regnet_y_400mf", {}, (224, 232)),
        ("video", "torchvision:r3d_18", {}, (112, 128)),
        # a recipe that names its size keeps it
        ("cub-resnet50-cgnl", "timm:test_convnext", {}, (448, 512)),
    ],
)
def test_the_input_size_is_the_networks_own_where_the_recipe_leaves_it_open(name, arch, given, found):
    recipe = override(RECIPES[name].make(), {"network": {"arch": arch}, "data": given}, "here")
    recipe = task_of(recipe).sized(recipe)
    assert recipe.data.pixels == found
    assert from_dict(to_dict(recipe), "here") == recipe


def test_a_run_says_that_its_input_size_is_not_that_of_the_weights():
    network = {"arch": "timm:test_convnext", "weights": "default"}
    recipe = override(RECIPES["image"].make(), {"network": network, "data": {"size": 128, "resize": 144}}, "here")
    note = "note: data.size is 128; timm:test_convnext was trained with 160 (data.size None takes that)"
    assert task_of(recipe).note(recipe) == note
    for other in ({"data": {"size": 160}}, {"network": {"weights": None}}, {"network": {"arch": "resnet18"}}):
        same = override(recipe, other, "here")
        assert task_of(same).note(same) is None


def test_a_detector_is_no_classifier(tmp_path, photo):
    trained = load_trained(written(tmp_path / "run", SMALLEST["detection"]))
    with pytest.raises(ValueError, match=r"predict needs a network that classifies, and .* is a detector"):
        predict(trained, photo)
    found = detect(trained, Image.open(photo).convert("RGB"))
    assert len(found["boxes"]) == len(found["scores"])


def test_a_classifier_of_images_has_no_objects_and_no_seconds(tmp_path, photo):
    trained = load_trained(written(tmp_path / "run", SMALLEST["image"]))
    with pytest.raises(ValueError, match="detect needs a detector, and birds-resnet18-cgnl is none"):
        detect(trained, Image.open(photo))
    with pytest.raises(ValueError, match=r"needs a video classifier, and .* is an image classifier"):
        next(predict_timeline(trained, photo))


def test_predicting_imports_nothing_that_trains_or_draws(tmp_path, photo):
    code = (
        "import sys\nfrom cgnl.cli import main\n"
        "for folder in sys.argv[2:]:\n    main(['predict', folder, sys.argv[1]])\n"
        "heavy = {'lightning', 'torchmetrics', 'tensorboard', 'matplotlib', 'av', 'onnx'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    folders = [written(tmp_path / name, SMALLEST[name]) for name in ("image", "detection")]
    done = subprocess.run([sys.executable, "-c", code, photo, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(photo)) == 2
