"""Drawn objects: what is drawn is where it should be, the rest stays bit for bit."""

import numpy as np
import pytest
import torch
from PIL import Image

from cgnl.explain import detections
from cgnl.explain.detections import draw_objects

NAMES = ["robin", "blue tit", "goldcrest", "wren", "jay", "rook", "swift", "kite"]


def noise(width, height, mode="RGB"):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def disc(width, height, x, y, radius):
    rows, columns = np.mgrid[:height, :width]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


@pytest.fixture
def tags(monkeypatch):
    """The rectangles of the names that were drawn (x0, y0, x1, y1; the last two exclusive)."""
    places = []
    write = detections._write_name

    def noting(*arguments):
        places.append(write(*arguments))
        return places[-1]

    monkeypatch.setattr(detections, "_write_name", noting)
    return places


@pytest.mark.parametrize(("size", "width"), [((192, 144), 1), ((640, 480), 2), ((1000, 1200), 4)])
def test_boxes_have_their_edges_where_they_say(tags, size, width):
    image = noise(*size)
    drawn = np.array(draw_objects(image, [[40.4, 60.3, 99.6, 120.2]], [5], NAMES))
    frame = np.zeros(drawn.shape[:2], dtype=bool)
    frame[60:120, 40:100] = True  # pixels 40 to 99, 60 to 119
    frame[60 + width : 120 - width, 40 + width : 100 - width] = False
    [(x0, y0, x1, y1)] = tags
    assert (x0, y1) == (40, 60)
    assert (drawn[frame] == (213, 94, 0)).all()  # vermilion
    rest = ~frame
    rest[y0:y1, x0:x1] = False
    assert np.array_equal(drawn[rest], np.array(image)[rest])
    assert not np.array_equal(drawn[y0:y1, x0:x1], np.array(image)[y0:y1, x0:x1])


def test_masks_colour_their_own_pixels_alone(tags):
    image = Image.new("RGB", (192, 144), (128, 128, 128))
    first, second = disc(192, 144, 60, 60, 20), disc(192, 144, 150, 100, 15)
    boxes = [[40, 40, 81, 81], [135, 85, 166, 116]]
    probabilities = torch.stack([torch.from_numpy(mask)[None] for mask in (first, second)]) * 0.4 + 0.2
    drawn = np.array(draw_objects(image, boxes, [1, 2], NAMES, masks=probabilities))
    without = np.array(draw_objects(image, boxes, [1, 2], NAMES))
    changed = (drawn != without).any(2)
    over = np.zeros_like(changed)
    for (x0, y0, x1, y1), box in zip(tags[:2], boxes, strict=True):
        over[y0:y1, x0:x1] = True
        frame = over[box[1] : box[3], box[0] : box[2]]
        frame[[0, -1]], frame[:, [0, -1]] = True, True
    assert np.array_equal(changed & ~over, (first | second) & ~over)
    assert tuple(drawn[60, 60]) == tuple(np.rint(0.6 * 128 + 0.4 * np.array([230, 159, 0])).astype(int))
    strong = (drawn == (230, 159, 0)).all(2)
    neighbours = [np.roll(first, (down, across), (0, 1)) for down in (-1, 0, 1) for across in (-1, 0, 1)]
    assert np.array_equal(strong & ~over, first & ~np.logical_and.reduce(neighbours) & ~over)


@pytest.mark.parametrize("kind", ["bool", "uint8", "float"])
def test_masks_are_taken_as_data_sets_and_detectors_give_them(kind):
    image, mask = noise(96, 72), torch.from_numpy(disc(96, 72, 50, 40, 12))[None]
    expected = draw_objects(image, [[38, 28, 63, 53]], [3], NAMES, masks=mask)
    given = {"bool": mask.numpy(), "uint8": mask.to(torch.uint8), "float": mask[:, None].half()}[kind]
    labels = torch.tensor([3]) if kind == "float" else [3]
    boxes = torch.tensor([[38.0, 28, 63, 53]], requires_grad=True) if kind == "float" else [[38, 28, 63, 53]]
    assert draw_objects(image, boxes, labels, NAMES, masks=given).tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [(192, 144), (40, 300), (900, 700)])
def test_names_stay_inside_the_picture_and_off_each_other(tags, size):
    width, height = size
    corners = [(0, 0), (width - 12, 0), (0, height - 12), (width - 12, height - 12), (width // 2, height // 2)]
    boxes = [[x, y, x + 12, y + 12] for x, y in corners] + [[0, 0, width, height], [-9, -9, 2 * width, 2 * height]]
    names = [*NAMES[:6], "a bird whose name is far too long for any picture of this size, and that is what it is"]
    scores = torch.linspace(0.9, 0.3, 7)
    image = noise(*size)
    draw_objects(image, boxes, range(1, 8), names, scores=scores)
    assert len(tags) == 7
    for x0, y0, x1, y1 in tags:
        assert 0 <= x0 < x1
        assert 0 <= y0 < y1 <= height
        assert x1 <= width or width == 40  # a score alone may be too wide for a picture of 40 pixels
    if width > 40:
        shared = [detections._shared(a, b) for a in tags for b in tags if a is not b]
        assert sum(shared) == 0


@pytest.mark.parametrize("width", [1, 2, 3, 6])
def test_the_rim_of_a_mask_is_as_wide_as_asked(width):
    mask = np.random.default_rng(width).random((40, 53)) > 0.004
    padded = np.pad(mask, width)
    side = 2 * width + 1
    expected = [[padded[y : y + side, x : x + side].all() for x in range(53)] for y in range(40)]
    assert np.array_equal(detections._eroded(mask, width), expected)
    assert 0 < np.sum(expected) < mask.sum()


def test_the_surest_object_lies_on_top():
    image, boxes = Image.new("RGB", (200, 150)), [[50, 50, 120, 120], [50, 50, 120, 120]]
    for scores, colour in (([0.9, 0.5], (230, 159, 0)), ([0.5, 0.9], (86, 180, 233)), (None, (230, 159, 0))):
        assert draw_objects(image, boxes, [1, 2], NAMES, scores=scores).getpixel((50, 80)) == colour


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


def test_a_label_keeps_its_colour_and_colours_repeat_after_seven():
    image = Image.new("RGB", (200, 150))
    colours = [draw_objects(image, [[50, 50, 120, 120]], [k], NAMES).getpixel((50, 80)) for k in range(1, 9)]
    assert len(set(colours[:7])) == 7
    assert colours[7] == colours[0]


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
