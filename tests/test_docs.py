"""The pages are true: their examples run, their made parts are up to date, their links lead somewhere."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", ["README.md", "docs/blocks.md", "docs/insertion.md"])
def test_python_examples_run_in_order(name):
    examples = re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)
    assert examples
    namespace: dict[str, object] = {}
    for example in examples:
        exec(compile(example, name, "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_made_parts_are_up_to_date():
    spec = importlib.util.spec_from_file_location("update", ROOT / "docs" / "update.py")
    update = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(update)
    for page in update.PAGES:
        text = page.read_text()
        assert update.updated(text) == text, f"{page.name}: run `python docs/update.py`"


def test_every_field_of_a_recipe_has_a_source():
    from cgnl.settings.detection import DetectionRecipe
    from cgnl.settings.image import Recipe
    from cgnl.settings.reading import to_dict
    from cgnl.settings.video import VideoNetworkConfig, VideoRecipe

    page = (ROOT / "docs" / "paper-tables.md").read_text()
    section = page[page.index("## Where every setting comes from") :]
    fields = {
        f"{part}.{name}"
        for recipe in (Recipe(), VideoRecipe(network=VideoNetworkConfig(block="nl")), DetectionRecipe())
        for part, values in to_dict(recipe).items()
        if part != "task"
        for name in values
    }
    named = set(re.findall(r"`((?:network|block|data|optimizer|schedule|trainer)\.\w+)`", section))
    assert fields - named == set()
    assert named - fields == set()


def test_commands_in_pages_name_recipes_that_exist():
    from cgnl.recipes import RECIPES

    sets = "cub|imagenet|birds|ucf101|mini-kinetics|actions|coco|flock"
    named = {name for page in PAGES for name in re.findall(rf"cgnl train ((?:{sets})-[\w-]+)", page.read_text())}
    assert named
    assert named <= set(RECIPES)
