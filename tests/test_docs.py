"""The pages are true: their examples run, their made parts are up to date, their links lead somewhere."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/blocks.md",
        "docs/insertion.md",
        "docs/video.md",
        "docs/detection.md",
        "docs/explain.md",
        "docs/python.md",
    ],
)
def test_python_examples_run_in_order(name):
    examples = re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)
    assert examples
    namespace: dict[str, object] = {}
    for example in examples:
        exec(compile(example, name, "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_anchors_are_headings(page):
    for target, anchor in re.findall(r"\]\(([^)#]*)#([^)]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert anchor in anchors(page.parent / target if target else page), f"{page.name}: {target}#{anchor}"


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90


def commands_in_pages():
    """Every command line of cgnl in the pages, as lists of words."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                words = line.partition("#")[0].split()
                if "cgnl" in words:
                    found.append(words[words.index("cgnl") + 1 :])
    return found


def test_commands_in_pages_have_only_options_that_exist(capsys):
    from cgnl.cli import main

    helps = {}
    for command in commands_in_pages():
        # the settings of a run are those of the recipe that it began with, here any recipe
        place = command[:2] if command[0] in ("train", "data", "benchmark") else command[:1]
        if command[0] == "train" and command[1].startswith("runs/"):
            place = ["train", "cub-resnet50-cgnl"]
        if command[0] == "evaluate":
            place = ["evaluate", "cub-resnet50-cgnl"]
        if tuple(place) not in helps:
            with pytest.raises(SystemExit) as ended:
                main([*place, "--help"])
            assert ended.value.code == 0, place
            helps[tuple(place)] = set(re.findall(r"--[\w.-]+", capsys.readouterr().out))
        options = {word.partition("=")[0] for word in command if word.startswith("--")}
        assert options <= helps[tuple(place)], f"cgnl {' '.join(command)}"


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
