"""Scores of maps against parts: maps whose answer is known, masks of pixels, simulated chance, and a real network."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from cgnl.data.decoding import DataError
from cgnl.data.images import read_cub_boxes, read_cub_parts, read_images
from cgnl.explain.coverage import COVERERS, measure, seen_parts
from cgnl.explain.geometry import view_of
from cgnl.explain.score import scores_figure, scores_table
from cgnl.networks.image import resnet18
from cgnl.recipes import RECIPES
from cgnl.settings.image import NetworkConfig
from cgnl.tasks import TrainedNetwork, score_parts
from cgnl.toy.birds import draw_birds

BLOCK, RANDOM, CENTRE, REFERENCE = range(4)
# in an input of 80 x 80 pixels, positions of 10 x 10; "eye" lies at the beak's position
PARTS = {"beak": (15, 15), "eye": (14, 16), "back": (45, 45), "tail": (75, 65), "belly": (35, 65), "leg": (40, 65)}


def lit(*positions, side=8):
    """A map that is 1 at some positions and a little lower elsewhere."""
    values = torch.full((1, side, side), 0.5)
    for row, column in positions:
        values[0, row, column] = 1
    return values


@pytest.fixture
def seen():
    return seen_parts(PARTS, 3, view_of(80, 80))


def test_a_map_lit_on_parts_covers_these_parts(seen):
    found = measure(lit((4, 4), (6, 7)), seen, reference=0)
    assert found.others.tolist() == [False, False, True, True, True, True]
    assert found.coverage[BLOCK].tolist() == [0, 0, 1, 1, 0, 0]
    assert found.coverage[BLOCK, found.others].mean() == 2 / 4
    assert found.pointing[BLOCK] == 1
    assert found.area == 2 / 64

    # the leg lies on the border of two positions
    halves = measure(lit((6, 4)), seen, reference=0)
    assert halves.coverage[BLOCK].tolist() == pytest.approx([0, 0, 0, 0, 0, 0.5], abs=0.01)


def test_the_threshold_is_a_share_of_the_maximum_of_each_map(seen):
    strong, weak = torch.zeros(2, 1, 8, 8)
    strong[0, 4, 4], strong[0, 6, 7] = 10, 6.9
    weak[0, 6, 7], weak[0, 6, 3] = 1, 0.75
    covered = measure(strong, seen, reference=0).coverage[BLOCK]
    assert covered.tolist() == [0, 0, 1, 0, 0, 0]
    assert measure(strong, seen, reference=0, threshold=0.6).coverage[BLOCK].tolist() == [0, 0, 1, 1, 0, 0]
    union = measure(torch.cat([strong, weak]), seen, reference=0)
    assert union.coverage[BLOCK].tolist() == pytest.approx([0, 0, 1, 1, 1, 0.5], abs=0.01)
    assert union.area == 3 / 64


def test_pointing_is_the_mean_over_maps_and_over_equal_maxima(seen):
    on, off, on_reference, both = lit((4, 4)), lit((0, 7)), lit((1, 1)), lit((4, 4), (0, 7))
    assert measure(torch.cat([on, off]), seen, reference=0).pointing[BLOCK] == 0.5
    assert measure(on_reference, seen, reference=0).pointing[BLOCK] == 0
    assert measure(on_reference, seen, reference=2).pointing[BLOCK] == 1
    assert measure(both, seen, reference=0).pointing[BLOCK] == 0.5


def test_signs_do_not_matter(seen):
    values = lit((4, 4), (6, 7))
    values[0, 4, 4] *= -1
    for signed in (values, -values):
        found = measure(signed, seen, reference=0)
        assert found.coverage[BLOCK].tolist() == [0, 0, 1, 1, 0, 0]
        assert found.pointing[BLOCK] == 1


def test_what_is_related_with_nothing_covers_nothing(seen):
    for values in (torch.zeros(1, 8, 8), torch.full((1, 8, 8), float("nan"))):
        found = measure(values, seen, reference=0)
        assert not found.coverage.any()
        assert found.pointing[BLOCK] == found.area == 0
    with_gap = lit((4, 4), (6, 7))
    with_gap[0, 6, 7] = float("nan")
    assert measure(with_gap, seen, reference=0).coverage[BLOCK].tolist() == [0, 0, 1, 0, 0, 0]


def test_squares_in_the_middle_and_around_the_reference(seen):
    # 4 of 64 positions: squares of 20 x 20 pixels, from 30 to 50 and, moved into the input, from 60 to 80 and 55 to 75
    found = measure(lit((0, 0), (0, 1), (0, 2), (0, 3)), seen, reference=3)
    assert found.coverage[CENTRE].tolist() == [0, 0, 1, 0, 0, 0]
    assert found.coverage[REFERENCE].tolist() == [0, 0, 0, 1, 0, 0]
    # at the edge of the input the square is moved into it as a whole: from 60 to 80
    edge = seen_parts({"tip": (78, 40), "near": (62, 40), "far": (58, 40)}, 1, view_of(80, 80))
    assert measure(lit((0, 0), (0, 1), (0, 2), (0, 3)), edge, reference=0).coverage[REFERENCE].tolist() == [1, 1, 0]
    # one position in the middle is 35 to 45, and the back's disc reaches from 42 on
    assert found.pointing[CENTRE] == 1
    assert found.pointing[REFERENCE] == 0
    # the belly's own position reaches from 30 to 40, and the leg's disc from 37 on
    assert measure(lit((0, 0)), seen, reference=4).pointing[REFERENCE] == 1


def test_random_positions_are_what_chance_gives(seen):
    generator = torch.Generator().manual_seed(0)
    values = lit((0, 0), (4, 4), (6, 6), (6, 7), (1, 4))
    values[0, 4, 4] = 1.1
    found = measure(values, seen, reference=0)
    shuffled = [
        measure(values.flatten()[torch.randperm(64, generator=generator)].view(1, 8, 8), seen, reference=0)
        for _ in range(1500)
    ]
    assert found.area == 5 / 64
    np.testing.assert_allclose(
        np.mean([draw.coverage[BLOCK] for draw in shuffled], axis=0), found.coverage[RANDOM], atol=0.02
    )
    assert np.mean([draw.pointing[BLOCK] for draw in shuffled]) == pytest.approx(found.pointing[RANDOM], abs=0.02)
    # back, tail and belly lie in a position each, and the leg in the belly's and one more
    assert found.pointing[RANDOM] == 4 / 64


def test_parts_are_discs_of_the_image_as_the_network_saw_it(monkeypatch):
    """A count of an image's own pixels: no square, resized and cropped, parts at and over the border of the crop."""
    monkeypatch.setattr("cgnl.explain.coverage._POINTS", 20_000)
    width, height, radius = 300, 200, 40.0
    view = view_of(width, height, size=96, resize=112)
    parts = {"in": (140.2, 90.0), "border": (70.0, 60.0), "out": (30.0, 100.0), "corner": (233.0, 183.0)}
    seen = seen_parts(parts, radius, view)
    assert seen.names == ("in", "border", "corner")
    values = np.random.default_rng(0).random((1, 6, 6))
    found = measure(values, seen, reference=0)

    fine = 4  # pixels of the image are cut into 4 x 4
    grid_y, grid_x = (np.mgrid[: height * fine, : width * fine] + 0.5) / fine
    x, y = (grid_x * view.scale_x - view.left) / 96, (grid_y * view.scale_y - view.top) / 96
    visible = (x >= 0) & (x < 1) & (y >= 0) & (y < 1)
    at = values[0][np.clip((y * 6).astype(int), 0, 5), np.clip((x * 6).astype(int), 0, 5)]
    for number, name in enumerate(seen.names):
        disc = visible & (np.hypot(grid_x - parts[name][0], grid_y - parts[name][1]) < radius)
        assert found.coverage[BLOCK, number] == pytest.approx((at >= 0.7 * values.max())[disc].mean(), abs=0.005)
        half = np.sqrt(found.area) / 2
        middle = (abs(x - 0.5) < half) & (abs(y - 0.5) < half)
        assert found.coverage[CENTRE, number] == pytest.approx(middle[disc].mean(), abs=0.005)


def test_without_parts_at_other_positions_there_is_nothing_to_find():
    seen = seen_parts({"beak": (15, 15), "eye": (14, 16)}, 3, view_of(80, 80))
    assert measure(lit((1, 1)), seen, reference=0) is None


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    root = tmp_path_factory.mktemp("birds")
    draw_birds(root, num_species=4, train_images=1, test_images=3, size=96, workers=1)
    return root


def untrained(block="cgnl", **options):
    """An untrained network on 112 x 112 pixels, whose block has 7 x 7 positions: one more than the pooling takes."""
    torch.manual_seed(0)
    recipe = RECIPES["birds-resnet18-cgnl"].make()
    recipe = dataclasses.replace(recipe, network=NetworkConfig(arch="resnet18", block=block))
    network = resnet18(block, num_classes=4, **options).eval()
    return TrainedNetwork(network, recipe, "birds", tuple("abcd"), (0.5,) * 3, (0.25,) * 3, 0, 0)


def test_drawn_birds_have_parts_and_boxes_where_the_files_say(birds):
    names, locations = read_cub_parts(birds)
    boxes = read_cub_boxes(birds)
    for sample in read_images(birds, "test").samples:
        x, y, width, height = boxes[sample.path]
        assert len(locations[sample.path]) > 1
        for name, (across, down) in locations[sample.path].items():
            assert name in names
            assert x <= across <= x + width
            assert y <= down <= y + height


@pytest.mark.parametrize(
    ("network", "maps"),
    [
        ({}, ["strongest channel", "5 strongest channels"]),
        ({"block": "nl"}, ["map"]),
        ({"block": "nl", "pairwise": "dot_product", "subsample": True}, ["map"]),
    ],
    ids=["cgnl", "nl", "nl-subsampled"],
)
def test_a_network_on_the_drawn_birds(birds, network, maps):
    scores = score_parts(untrained(**network), birds)
    assert (scores.path, scores.kind) == ("layer3.0", network.get("block", "cgnl"))
    assert (scores.images, scores.unreadable) == (12, 0)
    assert 5 * scores.images < scores.parts <= 15 * scores.images
    assert [(row.maps, row.by) for row in scores.rows] == [(name, by) for name in maps for by in COVERERS]
    for row in scores.rows:
        for mean in (row.pointing, row.coverage, row.area):
            assert 0 <= mean.low <= mean.mean + 1e-12
            assert mean.mean <= mean.high + 1e-12 <= 1 + 2e-12
        assert row.area.mean > 0
        if row.by == "random":
            assert row.gain.low == row.gain.mean == row.gain.high == 0
            assert row.coverage.mean == pytest.approx(row.area.mean)
        assert np.mean(list(row.parts.values())) == pytest.approx(row.coverage.mean, abs=0.15)
    single, *union = (row for row in scores.rows if row.by == "block")
    assert all(row.area.mean > single.area.mean and row.coverage.mean >= single.coverage.mean for row in union)
    assert json.loads(json.dumps(scores.as_dict()))["rows"][0]["maps"] == maps[0]
    # the same again, and a part of the images
    assert score_parts(untrained(**network), birds) == scores
    assert score_parts(untrained(**network), birds, limit=5).images == 5


def test_table_and_figure(birds):
    scores = [
        ("CGNL", score_parts(untrained(), birds, limit=3)),
        ("NL", score_parts(untrained(block="nl"), birds, limit=3)),
    ]
    lines = scores_table(scores).splitlines()
    assert len(lines) == 1 + 8 + 4 + 1 + 2
    row = scores[1][1].rows[0]
    assert lines[9].startswith("NL")
    assert f"{100 * row.coverage.mean:.1f} ({100 * row.coverage.low:.1f} to {100 * row.coverage.high:.1f})" in lines[9]
    assert "random positions" in lines[10]

    figure = scores_figure(scores)
    for axes, name in zip(figure.axes, ("pointing", "coverage"), strict=True):
        heights = [100 * getattr(row, name).mean for _, score in scores for row in score.rows if row.by == "block"]
        assert [bar.get_height() for bar in axes.patches] == pytest.approx(heights)
    with pytest.raises(ValueError, match="at least one network"):
        scores_figure([])


def test_an_unreadable_image_is_counted(birds, tmp_path):
    draw_birds(tmp_path, num_species=4, train_images=1, test_images=1, size=64, workers=1)
    samples = read_images(tmp_path, "test").samples
    samples[1].path.write_bytes(b"no image")
    scores = score_parts(untrained(), tmp_path)
    assert (scores.images, scores.unreadable) == (3, 1)
    assert "1 image unreadable" in scores_table([("CGNL", scores)])
    lines = (tmp_path / "bounding_boxes.txt").read_text().splitlines()
    (tmp_path / "bounding_boxes.txt").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(DataError, match=r"bounding_boxes\.txt has no line for .*\.jpg"):
        score_parts(untrained(), tmp_path)
    for sample in samples:
        sample.path.write_bytes(b"no image")
    (tmp_path / "bounding_boxes.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="no test image that can be read"):
        score_parts(untrained(), tmp_path)


def test_what_cannot_be_scored_is_refused(birds, tmp_path):
    trained = untrained()
    for recipe, kind in (
        (RECIPES["actions-resnet18-cgnl"].make(), "a video classifier"),
        (RECIPES["flock-maskrcnn-resnet18-cgnl"].make(), "a detector"),
    ):
        with pytest.raises(ValueError, match=f"birds is {kind}"):
            score_parts(dataclasses.replace(trained, recipe=recipe), birds)
    for options, message in (
        ({"path": "layer2.0"}, r"path \('layer2.0'\) must be where a block is: layer3.0"),
        ({"threshold": 0}, r"threshold \(0\) must be above 0"),
        ({"radius": 2}, r"radius \(2\) must be above 0 and at most 1"),
        ({"limit": 0}, r"limit \(0\) must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            score_parts(trained, birds, **options)
    with pytest.raises(ValueError, match="birds has none"):
        score_parts(untrained(block="none"), birds)
    with pytest.raises(ValueError, match=r"birds has a residual block at layer3\.0"):
        score_parts(untrained(block="residual"), birds)
    with pytest.raises(DataError, match=r"classes\.txt does not exist"):
        score_parts(trained, tmp_path)
    unparted = shutil.copytree(birds, tmp_path / "birds")
    shutil.rmtree(unparted / "parts")
    with pytest.raises(DataError, match=r"parts/parts\.txt does not exist: a score needs annotated parts and boxes"):
        score_parts(trained, unparted)
