"""The recipes of the image, video and detection rows against the paper's tables, typed here a second time."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from cgnl.recipes import RECIPES
from cgnl.recipes.registry import listed
from cgnl.recipes.rows import COSTS, RecipeEntry
from cgnl.settings.detection import DetectionRecipe
from cgnl.settings.reading import override
from cgnl.settings.video import VideoRecipe
from cgnl.tasks import recipe_cost
from cgnl.training.schedule import learning_rate_factor

NAMES = [name for name, entry in RECIPES.items() if entry.base.of_paper]

# top-1 and top-5 of every row in the order of the paper, with the name of the recipe that serves it
PAPER = {
    "2a": """
        84.05 96.00 cub-resnet50
        85.14 96.88 cub-resnet50-cgnl
        84.10 95.78 cub-resnet50-cgnlx
        84.01 96.08 cub-resnet50-cgnl-embedded-gaussian""",
    "2b": """
        81.62 94.62 ucf101-resnet50
        82.88 95.74 ucf101-resnet50-nl
        83.38 95.42 ucf101-resnet50-cgnl""",
    "2d": """
        75.54 92.16 mini-kinetics-resnet50
        77.16 93.56 mini-kinetics-resnet50-cgnl-g1
        77.56 93.00 mini-kinetics-resnet50-cgnl-g4
        77.76 93.18 mini-kinetics-resnet50-cgnl
        77.44 93.18 mini-kinetics-resnet101
        78.79 93.64 mini-kinetics-resnet101-cgnl-g1
        79.06 93.54 mini-kinetics-resnet101-cgnl-g4
        79.54 93.84 mini-kinetics-resnet101-cgnl""",
    "4a": """
        75.54 92.16 mini-kinetics-resnet50
        76.53 92.90 mini-kinetics-resnet50-nl
        77.76 93.18 mini-kinetics-resnet50-cgnl
        77.53 94.00 mini-kinetics-resnet50-nl5
        78.79 94.37 mini-kinetics-resnet50-cgnl5
        77.44 93.18 mini-kinetics-resnet101
        78.02 93.86 mini-kinetics-resnet101-nl
        79.54 93.84 mini-kinetics-resnet101-cgnl
        79.21 93.21 mini-kinetics-resnet101-nl5
        79.88 93.37 mini-kinetics-resnet101-cgnl5""",
    "2c": """
        85.05 96.70 cub-resnet101
        86.17 97.82 cub-resnet101-cgnl-g1
        86.24 97.05 cub-resnet101-cgnl-g4
        86.35 97.86 cub-resnet101-cgnl
        86.13 96.75 cub-resnet101-cgnl-g16
        86.04 96.69 cub-resnet101-cgnl-g32
        86.01 95.97 cub-resnet101-cgnl5-g1
        86.19 96.07 cub-resnet101-cgnl5-g4
        86.24 97.23 cub-resnet101-cgnl5
        86.43 98.89 cub-resnet101-cgnl5-g16
        86.10 97.13 cub-resnet101-cgnl5-g32""",
    "3": """
        84.05 96.00 cub-resnet50
        84.11 96.23 cub-resnet50-residual
        85.14 96.88 cub-resnet50-cgnl""",
    "4b": """
        84.05 96.00 cub-resnet50
        84.79 96.76 cub-resnet50-nl
        85.14 96.88 cub-resnet50-cgnl
        85.10 96.18 cub-resnet50-nl5
        85.68 96.69 cub-resnet50-cgnl5
        85.05 96.70 cub-resnet101
        85.49 97.04 cub-resnet101-nl
        86.35 97.86 cub-resnet101-cgnl
        86.10 96.35 cub-resnet101-nl5
        86.24 97.23 cub-resnet101-cgnl5
        None None cub-resnet101-cgnlx""",
    "4b (1000-way)": """
        84.05 96.00 cub-1000-way-resnet50
        84.79 96.76 cub-1000-way-resnet50-nl
        85.14 96.88 cub-1000-way-resnet50-cgnl
        85.05 96.70 cub-1000-way-resnet101
        85.49 97.04 cub-1000-way-resnet101-nl
        86.35 97.86 cub-1000-way-resnet101-cgnl""",
    "2d (text)": """
        77.16 93.56 mini-kinetics-resnet50-cgnl-g1
        77.76 93.18 mini-kinetics-resnet50-cgnl
        None None mini-kinetics-resnet50-cgnl-g1-full
        None None mini-kinetics-resnet50-cgnl-g1-quarter""",
    "5": """
        76.15 92.87 imagenet-resnet50
        77.69 93.64 imagenet-resnet50-cgnl
        77.32 93.46 imagenet-resnet50-cgnlx
        78.31 94.06 imagenet-resnet152
        79.53 94.59 imagenet-resnet152-cgnl
        79.37 94.47 imagenet-resnet152-cgnlx""",
}
RELEASED = """
    86.45 97.00 cub-resnet50
    86.69 96.95 cub-resnet50-nl
    87.06 96.91 cub-resnet50-cgnl
    86.56 96.63 cub-resnet50-cgnlx
    86.76 96.91 cub-resnet101
    87.04 97.01 cub-resnet101-nl
    87.28 97.20 cub-resnet101-cgnl
    87.18 97.03 cub-resnet101-cgnlx
    77.69 93.63 imagenet-resnet50-cgnl
    77.32 93.40 imagenet-resnet50-cgnlx
    79.53 94.52 imagenet-resnet152-cgnl
    79.37 94.47 imagenet-resnet152-cgnlx"""

# AP, AP50 and AP75 of the boxes, then of the masks
PAPER_DETECTION = """
    34.47 54.87 36.58 30.44 51.55 31.95 coco-maskrcnn-resnet50
    35.02 55.79 37.54 30.23 52.40 32.77 coco-maskrcnn-resnet50-nl
    35.70 56.07 38.69 31.22 52.44 32.67 coco-maskrcnn-resnet50-cgnl
    None None None None None None coco-maskrcnn-resnet50-cgnlx"""
RELEASED_DETECTION = """
    35.60 31.50 coco-maskrcnn-resnet50
    36.30 32.10 coco-maskrcnn-resnet50-cgnl
    36.20 31.90 coco-maskrcnn-resnet50-cgnlx"""
OURS_DETECTION = {
    "coco-maskrcnn-resnet50-fpn",
    "coco-maskrcnn-resnet50-fpn-nl",
    "coco-maskrcnn-resnet50-fpn-cgnl",
    "coco-maskrcnn-resnet101",
    "coco-maskrcnn-resnet101-cgnl",
}


def rows(text: str) -> list[list[str]]:
    return sorted(line.split() for line in text.strip().splitlines())


def number(value: float | None) -> str:
    return "None" if value is None else f"{value:.2f}"


def test_every_row_of_the_tables_has_its_recipe() -> None:
    served: dict[str, list[list[str]]] = {table: [] for table in PAPER}
    for name in NAMES:
        for row in RECIPES[name].rows:
            if row.table in served:
                served[row.table].append([*map(number, row.paper or (None, None)), name])
    assert {table: sorted(found) for table, found in served.items()} == {
        table: rows(text) for table, text in PAPER.items()
    }


def test_released_numbers() -> None:
    found = {
        (*map(number, row.released), name)
        for name in NAMES
        if not name.startswith("coco")
        for row in RECIPES[name].rows
        if row.released
    }
    assert found == {tuple(row) for row in rows(RELEASED)}


def test_every_row_of_the_detection_table_has_its_recipe() -> None:
    printed, released, ours = [], [], set()
    for name in (name for name in NAMES if name.startswith("coco")):
        for row in RECIPES[name].rows:
            assert row.table == "4c"
            printed.append([*map(number, row.paper or (None,) * 6), name])
            if row.released:
                released.append([*map(number, row.released), name])
        if not RECIPES[name].rows:
            ours.add(name)
    assert (sorted(printed), sorted(released)) == (rows(PAPER_DETECTION), rows(RELEASED_DETECTION))
    assert ours == OURS_DETECTION


@pytest.mark.parametrize("entry", [RECIPES[name] for name in NAMES], ids=NAMES)
def test_the_help_text_says_what_the_recipe_is(entry: RecipeEntry) -> None:
    first_line = entry.doc.splitlines()[0]
    assert re.search(r"Table \d|Text of 2d", first_line)
    for row in entry.rows:
        assert first_line.startswith(("Table", "Text"))
        assert row.table.split()[0] in first_line
        if len(row.paper) == 6:
            box, box50, box75, mask, mask50, mask75 = (f"{value:.2f}" for value in row.paper)
            said = f"box AP {box} ({box50} / {box75} at IoU 0.5 / 0.75), mask AP {mask} ({mask50} / {mask75})"
            released = "released code {:.1f} / {:.1f}."
        else:
            said = " / ".join(f"{value:.2f}" for value in row.paper)
            released = "released code {:.2f} / {:.2f}."
        assert said in entry.doc
        assert not row.released or row.table == "4c" or released.format(*row.released) in entry.doc
    assert f"cgnl train {entry.name} --data.root" in entry.doc
    parameters, multiplications = f"{entry.cost.parameters / 1e6:.1f} M", f"{entry.cost.multiplications / 1e9:.1f} G"
    assert f"Cost: {parameters} parameters, {multiplications} multiplications" in entry.doc
    trainer = entry.make().trainer
    length = f"{trainer.max_steps:,} steps" if entry.name.startswith("coco") else f"{trainer.max_epochs} epochs"
    assert f", {length} of " in entry.doc


def test_released_numbers_are_those_of_the_table_at_hand() -> None:
    assert "released code 36.3 / 32.1." in RECIPES["coco-maskrcnn-resnet50-cgnl"].doc
    assert "no such row, released code 87.18 / 97.03." in RECIPES["cub-resnet101-cgnlx"].doc


# few enough to count in every run, and one of each way to count
COUNTED = {"birds-resnet18-cgnl", "cub-resnet50-nl", "actions-resnet18-cgnl", "flock-maskrcnn-resnet18-cgnl"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in COUNTED else pytest.mark.slow) for n in RECIPES])
def test_the_kept_cost_is_the_counted_one(name: str) -> None:
    assert RECIPES[name].cost == recipe_cost(RECIPES[name].make())


def test_every_recipe_has_a_kept_cost() -> None:
    assert set(json.loads(COSTS.read_text())) == set(RECIPES)


def test_recipes_are_listed_by_table_in_the_papers_order() -> None:
    tables = listed()
    assert [*tables] == [
        None,
        "2a",
        "2b",
        "2c",
        "2d",
        "2d (text)",
        "2d (text, on images)",
        "3",
        "4a",
        "4b",
        "4b (1000-way)",
        "4c",
        "5",
    ]
    assert {entry.name for lines in tables.values() for _, entry in lines} == set(RECIPES)
    rows_of_4b = [row.row for row, _ in tables["4b"]]
    assert rows_of_4b[:5] == [
        "R-50",
        "R-50 + 1 NL block",
        "R-50 + 1 CGNL block",
        "R-50 + 5 NL block",
        "R-50 + 5 CGNL block",
    ]


@pytest.mark.parametrize("name", ["image", "video", "detection"])
def test_defaults_for_data_of_ones_own(name: str) -> None:
    recipe = RECIPES[name].make()
    assert (recipe.task, recipe.data.size, recipe.data.batch_size) == (name, 224, 32)
    assert recipe.optimizer.name == "adamw"
    assert getattr(recipe.data, "format", "auto") == "auto"


@pytest.mark.parametrize("entry", [RECIPES[name] for name in NAMES], ids=NAMES)
def test_the_network_is_the_one_of_the_row(entry: RecipeEntry) -> None:
    network, block = entry.make().network, entry.make().block
    assert network.arch in entry.name
    for row in entry.rows:
        if match := re.search(r"R-(\d+)", row.row):
            assert network.arch == f"resnet{match[1]}"
        if match := re.search(r"\+ (\d) (\w+) block", row.row, re.IGNORECASE):
            assert (network.num_blocks, network.block) == (int(match[1]), match[2].lower())
        if match := re.search(r"(\d+) groups?$", row.row):
            assert block.groups == int(match[1])
        elif "CGNL" in row.row:
            assert block.groups == (1 if row.table == "2b" else 8)
        if match := re.search(r"inner channels C(?:/(\d))?", row.row):
            assert block.channel_reduction == int(match[1] or 1)


def test_kernel_functions_of_table_2a() -> None:
    recipes = [RECIPES[name].make() for name in NAMES]
    kernels = [(recipe.network.block, getattr(recipe.block, "kernel", None)) for recipe in recipes]
    of_name = dict(zip(NAMES, kernels, strict=True))
    assert of_name["cub-resnet50-cgnl"] == ("cgnl", "dot")
    assert of_name["cub-resnet50-cgnl-embedded-gaussian"] == ("cgnl", "embedded_gaussian")
    assert of_name["cub-resnet50-cgnlx"] == ("cgnlx", "rbf")


@pytest.mark.parametrize(
    ("name", "epochs", "warmup", "milestones"),
    [("cub-resnet50", 100, 0, (31, 61, 81)), ("cub-resnet50-cgnl", 110, 10, (41, 71, 91))],
)
def test_training_is_the_released_one(name: str, epochs: int, warmup: int, milestones: tuple[int, ...]) -> None:
    recipe = RECIPES[name].make()
    assert (recipe.trainer.max_epochs, recipe.schedule.warmup) == (epochs, warmup)
    assert recipe.schedule.milestones == milestones
    assert (recipe.data.size, recipe.data.resize, recipe.data.batch_size) == (448, 512, 256)
    assert (recipe.network.weights, recipe.network.dropout) == ("IMAGENET1K_V1", 0.5)
    imagenet = RECIPES["imagenet-resnet50-cgnl"].make()
    assert (imagenet.data.size, imagenet.data.resize) == (224, 256)
    assert imagenet.schedule == RECIPES["cub-resnet50-cgnl"].make().schedule


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("cub-1000-way-")])
def test_the_papers_own_protocol_differs_in_classifier_and_crop_alone(name: str) -> None:
    recipe, other = RECIPES[name].make(), RECIPES[name.replace("1000-way-", "")].make()
    assert (recipe.data.num_outputs, recipe.data.crop_area) == (1000, (0.08, 1.0))
    assert override(recipe, {"data": {"num_outputs": None, "crop_area": [0.08, 1.25]}}, "test") == other
    # any recipe on CUB can be changed so
    changed = override(other, {"data": {"num_outputs": 1000, "crop_area": [0.08, 1.0]}}, "test")
    assert changed == recipe


def test_the_warm_up_is_a_tenth_an_epoch_and_with_nine_epochs_the_released_one() -> None:
    """The released code takes numpy.linspace(1e-5, 0.01, 10) for the epochs 0 to 9."""
    schedule = RECIPES["cub-resnet50-cgnl"].make().schedule

    def rates(warmup: float) -> list[float]:
        config = dataclasses.replace(schedule, warmup=warmup)
        # three steps an epoch, looked at in the last of them
        steps = [3 * epoch + 2 for epoch in range(92)]
        return [
            0.01 * learning_rate_factor(step, steps_per_epoch=3, max_epochs=110, lr=0.01, config=config)
            for step in steps
        ]

    after = [0.01] * 30 + [0.001] * 30 + [1e-4] * 20 + [1e-5]
    assert rates(9) == pytest.approx([*np.linspace(1e-5, 0.01, 10), 0.01, *after])
    ours = rates(schedule.warmup)
    assert ours[:10] == pytest.approx([1e-5 + 0.00999 * epoch / 10 for epoch in range(10)])
    assert ours[10:] == pytest.approx([0.01, *after])


def test_videos_are_trained_and_tested_as_in_the_non_local_paper() -> None:
    names = [name for name in NAMES if name.startswith(("ucf101", "mini-kinetics"))]
    assert len(names) == 19
    for name in names:
        recipe = RECIPES[name].make()
        assert isinstance(recipe, VideoRecipe)
        assert recipe.data.format == ("ucf101" if name.startswith("ucf101") else "mini_kinetics")
        assert (recipe.data.num_frames, recipe.data.frame_step, recipe.data.size, recipe.data.resize) == (
            32,
            2,
            224,
            256,
        )
        assert (recipe.data.test_clips, recipe.data.test_crops, recipe.data.batch_size) == (10, 3, 64)
        assert (recipe.data.crop_area, recipe.data.flip) == ((0.08, 1.25), 0.5)
        assert (recipe.optimizer.lr, recipe.optimizer.weight_decay, recipe.optimizer.norm_weight_decay) == (
            0.01,
            1e-4,
            0,
        )
        assert (recipe.schedule.warmup, recipe.trainer.max_epochs) == (10, 110)
        assert (recipe.network.temporal_strides, recipe.network.dropout) == ((2, 2, 2), 0.5)
        assert recipe.network.head == "fully_convolutional"
        assert recipe.network.block != "nl" or (recipe.block.subsample, recipe.block.bias) == (True, True)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("coco")])
def test_detectors_are_trained_as_in_the_released_code(name: str) -> None:
    recipe = RECIPES[name].make()
    assert isinstance(recipe, DetectionRecipe)
    network, data, optimizer, schedule, trainer = (
        getattr(recipe, part) for part in ("network", "data", "optimizer", "schedule", "trainer")
    )
    assert network.neck == ("fpn" if "fpn" in name else "c4")
    assert f"coco-maskrcnn-{network.arch}" == re.sub("(-fpn|-cgnlx?|-nl)", "", name)
    assert network.block == (re.findall("cgnlx?|nl", name) or ["none"])[0]
    assert (network.backbone_norm, network.backbone_weights) == ("frozen", "IMAGENET1K_V1")
    assert network.block == "none" or recipe.block.norm == "sync_batch"
    assert (network.rois, data.size, data.max_size, data.flip) == (512, 800, 1333, 0.5)
    assert (optimizer.lr, optimizer.lr_batch, data.batch_size, optimizer.momentum) == (0.01, 8, 8, 0.9)
    assert (optimizer.weight_decay, optimizer.bias_weight_decay, optimizer.bias_lr_factor) == (1e-4, 0, 2)
    assert (schedule.kind, schedule.unit, schedule.warmup_interval) == ("steps", "step", "step")
    assert schedule.warmup_start_lr == pytest.approx(0.01 / 3)
    assert (schedule.warmup, schedule.milestones, trainer.max_steps) == (
        (20_000, (140_000, 180_000), 200_000) if name.endswith("cgnlx") else (500, (120_000, 160_000), 180_000)
    )
    # even where an epoch is a single step
    assert trainer.max_epochs >= trainer.max_steps
    assert trainer.freeze == ("backbone.body.conv1", "backbone.body.bn1", "backbone.body.layer1")


def test_recipes_do_not_import_torch() -> None:
    code = "import sys; from cgnl.recipes import RECIPES; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
