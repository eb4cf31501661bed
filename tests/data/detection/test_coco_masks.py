"""Masks are those of pycocotools and of a naive rasteriser; what would harm the C code never gets there."""

import numpy as np
import pycocotools.mask
import pytest

from cgnl.data.detection.masks import _decompressed, area, decode, encode, usable_mask

WIDTH, HEIGHT = 40, 25


def why_bad_mask(segmentation, width, height):
    usable, fault = usable_mask(segmentation, width, height)
    assert (usable is None) <= (fault is not None)
    return fault


def blobs(seed: int) -> np.ndarray:
    """A mask of ellipses, Fortran-contiguous as pycocotools wants it."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for _ in range(3):
        cx, cy, rx, ry = generator.uniform([0, 0, 2, 2], [WIDTH, HEIGHT, 12, 8])
        mask |= ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1
    return np.asfortranarray(mask.astype(np.uint8))


def uncompressed(mask: np.ndarray) -> list[int]:
    """Lengths of the runs down the columns, the first of zeros; written naively."""
    runs, value = [0], 0
    for pixel in mask.ravel(order="F").tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


@pytest.mark.parametrize("seed", range(20))
def test_run_length_encodings_give_the_mask_they_were_made_of(seed):
    mask = blobs(seed)
    size = [HEIGHT, WIDTH]
    text = pycocotools.mask.encode(mask)["counts"].decode()
    for counts in (text, uncompressed(mask)):
        segmentation = {"size": size, "counts": counts}
        assert why_bad_mask(segmentation, WIDTH, HEIGHT) is None
        np.testing.assert_array_equal(decode([segmentation], WIDTH, HEIGHT)[0], mask)
        assert area(segmentation, WIDTH, HEIGHT) == mask.sum()


def test_compressed_strings_are_understood_as_pycocotools_does():
    generator = np.random.default_rng(0)
    for _ in range(200):
        runs = generator.integers(1, generator.choice([3, 40, 2000, 10**6]), generator.integers(1, 12)).tolist()
        height, width = 1, sum(runs)
        text = pycocotools.mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)["counts"]
        assert _decompressed(text.decode()).tolist() == runs


@pytest.mark.parametrize("seed", range(5))
def test_polygons_are_those_of_pycocotools(seed):
    generator = np.random.default_rng(seed)
    polygons = [
        generator.uniform(-8, [[WIDTH + 8, HEIGHT + 8]] * 5).ravel().tolist(),
        generator.integers(0, [[WIDTH, HEIGHT]] * 4).ravel().tolist(),
    ]
    assert why_bad_mask(polygons, WIDTH, HEIGHT) is None
    runs = pycocotools.mask.merge(pycocotools.mask.frPyObjects(polygons, HEIGHT, WIDTH))
    expected = pycocotools.mask.decode([runs])[:, :, 0]
    assert expected.any()
    np.testing.assert_array_equal(decode([polygons], WIDTH, HEIGHT)[0], expected)
    assert area(polygons, WIDTH, HEIGHT) == expected.sum()


@pytest.mark.parametrize(("left", "top", "right", "bottom"), [(3, 4, 12, 9), (0, 0, WIDTH, HEIGHT), (-7, 5, 6, 40)])
def test_rectangles_cover_their_pixels_and_are_cut_at_the_border(left, top, right, bottom):
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            expected[y, x] = left < x + 0.5 < right and top < y + 0.5 < bottom
    polygon = [left, top, right, top, right, bottom, left, bottom]
    [mask] = decode([[polygon]], WIDTH, HEIGHT)
    np.testing.assert_array_equal(mask, expected)


def test_several_masks_and_none():
    rectangle = [[1, 1, 4, 1, 4, 3, 1, 3]]
    runs = {"size": [HEIGHT, WIDTH], "counts": [0, 5, HEIGHT * WIDTH - 5]}
    masks = decode([rectangle, runs, rectangle], WIDTH, HEIGHT)
    assert masks.shape == (3, HEIGHT, WIDTH)
    assert masks.dtype == np.uint8
    assert masks.flags.c_contiguous
    assert masks.sum((1, 2)).tolist() == [6, 5, 6]
    assert decode([], WIDTH, HEIGHT).shape == (0, HEIGHT, WIDTH)
    assert encode(runs, WIDTH, HEIGHT)["size"] == [HEIGHT, WIDTH]


TOTAL = HEIGHT * WIDTH
GOOD = pycocotools.mask.encode(blobs(0))["counts"].decode()


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ([TOTAL - 1, 2], f"of {TOTAL + 1} pixels, but the image has {TOTAL}"),
        ([5, 5], f"of 10 pixels, but the image has {TOTAL}"),
        ([TOTAL + 5, -5], "is broken"),
        ([2**40, 1], "is broken"),
        ([TOTAL / 3, TOTAL * 2 / 3], "is broken"),
        ([True, TOTAL - 1], "is broken"),
        ([], "is broken"),
        (None, "is broken"),
        ("", "is broken"),
        (GOOD[:-1], "is broken|pixels"),
        (GOOD + "1", "pixels"),
        (GOOD + "o", "is broken"),
        (GOOD[:3] + "\x7f" + GOOD[4:], "is broken"),
        (GOOD[:3] + "!" + GOOD[4:], "is broken"),
        (GOOD + "é", "is broken"),
        ("ooooooooooooooooo0", "is broken"),
        ([TOTAL], "covers no pixel"),
        ([TOTAL, 0], "covers no pixel"),
    ],
)
def test_run_length_encodings_that_do_not_add_up(counts, reason):
    found = why_bad_mask({"size": [HEIGHT, WIDTH], "counts": counts}, WIDTH, HEIGHT)
    assert found is not None
    assert any(part in found for part in reason.split("|"))


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "has no mask"),
        ([], "has no mask"),
        ({}, "has no mask"),
        ("polygon", "neither a list of polygons nor"),
        ([[]], "a polygon of 0 numbers"),
        ([[1, 1, 5, 5]], "a polygon of 4 numbers"),  # pycocotools would take it for a box
        ([[1, 1, 5, 1, 5, 5, 1]], "a polygon of 7 numbers"),
        ([[1, 1, 5, 1, 5, 5], [1, 1]], "a polygon of 2 numbers"),
        ([1, 1, 5, 1, 5, 5], "not a list of polygons"),
        ([[1, 1, 5, 1, 5, float("nan")]], "not a finite number"),
        ([[1, 1, 5, 1, float("inf"), 5]], "not a finite number"),
        ([[1, 1, 5, 1, 5, "5"]], "not a finite number"),
        ([[1, 1, 5, 1, 5, None]], "not a finite number"),
        ([[1, 1, 5, 1, 5, 10**400]], "not a finite number"),
        ([[1, 1, 5, 1, 5, 10**9]], "more than an image's size beyond"),
        ([[41, 1, 50, 1, 50, 9]], "has a mask that covers no pixel of the image"),
        ([[1, -9, 5, -9, 5, -2]], "has a mask that covers no pixel of the image"),
        ([[-5, 5, 5, -5, -5, -5]], "covers no pixel"),  # its bounding box lies partly in the image
        ([[2, 2, 8, 2.2, 8, 2.3]], "covers no pixel"),
        ([[3, 3, 3, 3, 3, 3]], "covers no pixel"),
        ([[2, 2, 8, 2.2, 8, 2.3], [-5, 5, 5, -5, -5, -5]], "covers no pixel"),
        ({"size": [WIDTH, HEIGHT], "counts": [0, TOTAL]}, "of size [40, 25], but the image has [25, 40]"),
        ({"counts": [0, TOTAL]}, "of size None"),
    ],
)
def test_bad_masks(segmentation, reason):
    found = why_bad_mask(segmentation, WIDTH, HEIGHT)
    assert found is not None
    assert reason in found


def test_polygons_are_refused_just_where_pycocotools_finds_no_pixel():
    """Whether a polygon must be drawn to know so or not."""
    generator = np.random.default_rng(2)
    empty = 0
    for number in range(3000):
        # around a line across the image's border or not, as thin as a fraction of a pixel
        start, step = generator.uniform(-5, [WIDTH + 5, HEIGHT + 5]), generator.uniform(-12, 12, 2)
        points = start + generator.uniform(0, 1, (generator.integers(3, 7), 1)) * step
        points += generator.uniform(-0.5, 0.5, points.shape) * generator.choice([0.1, 1, 4, 16])
        polygon = (points.round() if number % 3 == 0 else points).ravel().tolist()
        runs = pycocotools.mask.merge(pycocotools.mask.frPyObjects([polygon], HEIGHT, WIDTH))
        covers = pycocotools.mask.area(runs) > 0
        assert (why_bad_mask([polygon], WIDTH, HEIGHT) is None) == covers, polygon
        empty += not covers
    assert 300 < empty < 2700


def test_no_broken_string_gets_past_the_check():
    """Whatever passes decodes to as many pixels as the image has; the rest is refused."""
    generator = np.random.default_rng(1)
    passed = 0
    for _ in range(2000):
        characters = list(GOOD)
        for _ in range(generator.integers(1, 3)):
            characters[generator.integers(len(characters))] = chr(generator.integers(40, 120))
        segmentation = {"size": [HEIGHT, WIDTH], "counts": "".join(characters)}
        if why_bad_mask(segmentation, WIDTH, HEIGHT) is None:
            passed += 1
            runs = _decompressed(segmentation["counts"])
            mask = np.repeat(np.arange(len(runs)) % 2, runs).reshape(HEIGHT, WIDTH, order="F")
            np.testing.assert_array_equal(decode([segmentation], WIDTH, HEIGHT)[0], mask)
    assert 0 < passed < 1000
