"""Settings, recipes and every help text need tyro, rich and yaml alone."""

import subprocess
import sys

import pytest

ALONE = """
import sys

HEAVY = {"torch", "lightning", "torchmetrics", "torchvision", "numpy", "PIL", "matplotlib"}

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refused())
"""


def alone(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code where none of the heavy packages can be imported."""
    return subprocess.run([sys.executable, "-c", ALONE + code, *arguments], capture_output=True, text=True)


def test_the_refusal_works():
    done = alone("import torch")
    assert "No module named 'torch'" in done.stderr


def test_recipes_and_their_settings():
    code = """
from cgnl.recipes import RECIPES, load_recipe
from cgnl.settings.reading import from_dict, to_dict
for name, entry in RECIPES.items():
    recipe = load_recipe(name)[1]
    assert recipe == entry.make() == from_dict(to_dict(recipe), name)
print(len(RECIPES))
"""
    done = alone(code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 60


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "demo --help",
        "train --help",
        "train cub-resnet50-cgnl --help",
        "train actions-resnet18-cgnl --help",
        "train coco-maskrcnn-resnet50-cgnl --help",
        "evaluate --help",
        "evaluate cub-resnet50-cgnl --help",
        "predict --help",
        "explain --help",
        "data --help",
        "data check --help",
        "convert --help",
        "benchmark --help",
        "benchmark block --help",
        "recipes --help",
    ],
)
def test_a_help_text(command):
    done = alone("import cgnl.cli; cgnl.cli.main()", *command.split())
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "usage: cgnl" in done.stdout


def test_the_packages_import_nothing_but_the_names_of_blocks():
    code = "import cgnl.recipes, cgnl.settings; print(*(name for name in sys.modules if name.startswith('cgnl')))"
    done = alone(code)
    assert done.returncode == 0, done.stderr
    blocks = {"cgnl.settings.blocks", "cgnl.settings.checks", "cgnl.settings.marks"}
    assert set(done.stdout.split()) == {"cgnl", "cgnl.recipes", "cgnl.settings"} | blocks
