"""Drawn objects: what is drawn is where it should be, the rest stays bit for bit."""

import numpy as np
import pytest
import torch
from PIL import Image

from cgnl.explain.detections import _colour, draw_objects

NAMES = ["robin", "blue tit", "goldcrest", "wren", "jay", "rook", "swift", "kite"]


def noise(width, height, mode="RGB"):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def disc(width, height, x, y, radius):
    rows, columns = np.mgrid[:height, :width]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


ORANGE, SKY, GREEN = (230, 159, 0), (86, 180, 233), (0, 158, 115)


@pytest.mark.parametrize(("size", "width"), [((192, 144), 1), ((640, 480), 2), ((1000, 1200), 4)])
def test_boxes_have_their_edges_where_they_say_and_the_name_stands_above(size, width):
    image = noise(*size)
    drawn = np.array(draw_objects(image, [[40.4, 60.3, 99.6, 120.2]], [5], NAMES))
    frame = np.zeros(drawn.shape[:2], dtype=bool)
    frame[60:120, 40:100] = True  # pixels 40 to 99, 60 to 119
    frame[60 + width : 120 - width, 40 + width : 100 - width] = False
    frame[:64] = False
    assert (drawn[frame] == ORANGE).all()
    rows, columns = np.nonzero((drawn != np.array(image)).any(2) & ~frame)
    assert rows.max() < 66
    assert columns.min() >= 40
    assert (drawn[:60, 40:] == ORANGE).all(2).sum() > 100  # the ground of the name


def test_masks_colour_their_own_pixels_alone():
    image = Image.new("RGB", (192, 144), (128, 128, 128))
    first, second = disc(192, 144, 60, 60, 20), disc(192, 144, 80, 60, 15)
    boxes = [[40, 40, 81, 81], [65, 45, 96, 76]]
    probabilities = torch.stack([torch.from_numpy(mask)[None] for mask in (first, second)]) * 0.4 + 0.2
    drawn = np.array(draw_objects(image, boxes, [1, 1], NAMES, masks=probabilities))
    without = np.array(draw_objects(image, boxes, [1, 1], NAMES))
    bare = (without == 128).all(2)  # neither box nor name
    rims = [disc(192, 144, 60, 60, 20) & ~disc(192, 144, 60, 60, 18), second & ~disc(192, 144, 80, 60, 13)]
    assert (drawn[rims[0] & ~disc(192, 144, 60, 60, 19) & bare] == ORANGE).all()
    bare &= ~(rims[0] | rims[1])
    for mask, colour in ((first, ORANGE), (second & ~first, SKY)):
        assert np.abs(drawn[mask & bare] - (0.6 * 128 + 0.4 * np.array(colour))).max() <= 1
    assert (drawn[bare & ~first & ~second] == 128).all()
    assert np.array_equal(drawn[~(bare | first | second)], without[~(bare | first | second)])


def test_objects_over_each_other_are_all_seen():
    """Eight detections of one class at nearly one place, as of a detector in its first epochs."""
    places = [(200 + 6 * k, 160 + 5 * k) for k in range(7)]
    masks = np.stack([disc(480, 360, x, y, 50) for x, y in places])
    boxes = [[x - 50, y - 50, x + 50, y + 50] for x, y in places]
    scores = [0.9 - 0.1 * k for k in range(7)]
    drawn = np.array(draw_objects(Image.new("RGB", (480, 360)), boxes, [1] * 7, NAMES, scores=scores, masks=masks))
    without = np.array(draw_objects(Image.new("RGB", (480, 360)), boxes, [1] * 7, NAMES, scores=scores))
    for k in range(7):
        colour = np.array(_colour(k))
        # its rim outside of all surer masks, and the ground of its name, as large as that of a name alone
        rim = masks[k] & ~disc(480, 360, *places[k], 49) & ~masks[:k].any(0) & ~without.any(2)
        assert (drawn[rim] == colour).all(1).sum() > 0.7 * rim.sum() > 5
        alone = np.array(draw_objects(Image.new("RGB", (480, 360)), boxes[k : k + 1], [1], NAMES, scores=[scores[k]]))
        ground = (alone == _colour(0)).all(2).sum() - 400  # without the box
        assert (without == colour).all(2).sum() > 0.9 * ground


@pytest.mark.parametrize("kind", ["bool", "uint8", "float"])
def test_masks_are_taken_as_data_sets_and_detectors_give_them(kind):
    image, mask = noise(96, 72), torch.from_numpy(disc(96, 72, 50, 40, 12))[None]
    expected = draw_objects(image, [[38, 28, 63, 53]], [3], NAMES, masks=mask)
    given = {"bool": mask.numpy(), "uint8": mask.to(torch.uint8), "float": mask[:, None].half()}[kind]
    labels = torch.tensor([3]) if kind == "float" else [3]
    boxes = torch.tensor([[38.0, 28, 63, 53]], requires_grad=True) if kind == "float" else [[38, 28, 63, 53]]
    assert draw_objects(image, boxes, labels, NAMES, masks=given).tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [(192, 144), (900, 700)])
def test_names_stay_inside_the_picture(size):
    width, height = size
    corners = [(width // 2, height // 2), (0, 0), (width - 12, 0), (0, height - 12), (width - 12, height - 12)]
    coloured = []
    for x, y in corners:
        drawn = draw_objects(Image.new("RGB", size), [[x, y, x + 12, y + 12]], [2], NAMES, scores=[0.5])
        coloured.append(np.array(drawn).any(2).sum())
    assert min(coloured) > 0.85 * coloured[0] > 500  # of the first, in the middle, all is seen


def test_a_name_wider_than_the_picture_is_cut():
    long = "a bird whose name is far too long for any picture of this size, and that is what it is"
    assert draw_objects(noise(40, 300), [[5, 90, 20, 130]], [1], [long]).size == (40, 300)


def test_the_surest_object_lies_on_top():
    image, boxes = Image.new("RGB", (200, 150)), [[50, 50, 120, 120], [50, 50, 120, 120]]
    masks = np.ones((2, 150, 200), dtype=bool)
    for scores in ([0.9, 0.5], [0.5, 0.9], None):
        drawn = draw_objects(image, boxes, [1, 2], NAMES, scores=scores, masks=masks)
        assert drawn.getpixel((50, 100)) == ORANGE
        assert drawn.getpixel((80, 100)) == tuple(int(0.4 * part) for part in ORANGE)


def test_objects_of_one_class_have_a_colour_each():
    image = Image.new("RGB", (900, 60))
    boxes = [[40 * k, 30, 40 * k + 20, 50] for k in range(22)]
    drawn = draw_objects(image, boxes, [1] * 22, ["x"])
    colours = [drawn.getpixel((40 * k, 45)) for k in range(22)]
    assert len(set(colours[:21])) == 21
    assert colours[:3] == [ORANGE, SKY, GREEN]
    assert colours[21] == colours[0]


def test_a_small_picture_is_enlarged_by_a_whole_factor():
    image, mask = noise(50, 40), disc(50, 40, 25, 30, 6)[None]
    large = image.resize((150, 120), Image.Resampling.NEAREST)
    found = draw_objects(image, [[19, 24, 32, 37]], [1], NAMES, masks=mask, min_side=100)
    expected = draw_objects(large, [[57, 72, 96, 111]], [1], NAMES, masks=mask.repeat(3, 1).repeat(3, 2))
    assert found.size == (150, 120)
    assert found.tobytes() == expected.tobytes()
    assert draw_objects(image, [], [], NAMES, min_side=40).size == (50, 40)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_a_picture_without_objects_stays_as_it_is(mode):
    image = noise(30, 20, mode)
    masks = torch.zeros(0, 1, 20, 30)
    drawn = draw_objects(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), NAMES, scores=[], masks=masks)
    assert drawn.tobytes() == image.convert("RGB").tobytes()
    assert drawn is not image


def test_the_image_is_not_changed_and_the_same_call_draws_the_same():
    image, mask = noise(192, 144), disc(192, 144, 60, 60, 20)[None]
    before = image.tobytes()
    drawn = [draw_objects(image, [[40, 40, 81, 81]], [2], NAMES, scores=[0.5], masks=mask).tobytes() for _ in range(2)]
    assert image.tobytes() == before != drawn[0]
    assert drawn[0] == drawn[1]


def test_objects_that_are_nowhere_are_drawn_at_the_border():
    image = noise(64, 48)
    boxes = [[-30, -30, -10, -10], [200, 200, 210, 210], [20, 30, 20, 30], [30, 20, 10, 10]]
    assert draw_objects(image, boxes, [1, 2, 3, 4], NAMES, masks=np.zeros((4, 48, 64))).size == (64, 48)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [1, 9]}, r"labels \(9\) must lie in 1\.\.8"),
        ({"labels": [0, 1]}, r"labels \(0\) must lie in 1\.\.8"),
        ({"labels": [1]}, r"boxes \(2\), labels \(1\) and scores must be of as many objects"),
        ({"scores": [0.5]}, "as many objects"),
        ({"masks": np.zeros((2, 20, 30))}, r"masks \[2, 20, 30\] must be of 2 objects in 30 x 20 pixels"),
        ({"masks": np.zeros((1, 30, 20))}, "must be of 2 objects"),
    ],
)
def test_what_does_not_fit_together_is_named(change, message):
    arguments = {"boxes": [[1, 1, 5, 5]] * 2, "labels": [1, 2], "names": NAMES} | change
    with pytest.raises(ValueError, match=message):
        draw_objects(noise(20, 30), **arguments)
