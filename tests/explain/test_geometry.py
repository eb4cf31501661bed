import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from cgnl.data.transforms import clip_test_transform, test_transform
from cgnl.explain.geometry import View, regions, time_step, token_grid, unpool, view_of

# wide, tall, square, odd, cropped and not, enlarged and reduced
VIEWS = [
    (96, 64, 64, 64),
    (64, 96, 48, 64),
    (131, 77, 64, 80),
    (77, 131, 48, 48),
    (50, 50, 96, 112),
    (201, 199, 32, 40),
    (640, 427, 224, 256),
]


@pytest.mark.parametrize(("width", "height", "size", "resize"), VIEWS)
def test_points_lie_where_the_transform_takes_them(width, height, size, resize):
    """Images whose values are their coordinates tell where each pixel of the input came from."""
    view = view_of(width, height, size=size, resize=resize)
    transform = test_transform(size, resize, mean=(0.0,) * 3, std=(1.0,) * 3)
    xs = np.tile((np.arange(width) + 0.5) / width * 250, (height, 1))
    ys = np.tile(((np.arange(height) + 0.5) / height * 250)[:, None], (1, width))
    image = Image.fromarray(np.stack([xs, ys, ys], -1).round().astype(np.uint8))
    seen = transform(image)[:2].numpy() * 255 / 250
    inner = slice(2, -2)  # at the image's rim a resize has nothing beyond to mix in
    for k in range(size)[inner]:
        x, y = view.to_image(k + 0.5, k + 0.5)
        assert seen[0, size // 2, k] * width == pytest.approx(x, abs=0.02 * width / 4 + 0.6)
        assert seen[1, k, size // 2] * height == pytest.approx(y, abs=0.02 * height / 4 + 0.6)
        assert view.to_input(x, y) == pytest.approx((k + 0.5, k + 0.5))


def test_the_view_of_a_clip_has_the_size_of_the_clip():
    for width, height, size, resize in VIEWS:
        frames = np.zeros((2, height, width, 3), np.uint8)
        for cut in (size, None):
            view = view_of(width, height, size=cut, resize=resize)
            assert clip_test_transform(resize, cut)(frames).shape[2:] == (view.input_height, view.input_width)
    whole = view_of(70, 40)
    assert whole == View(70, 40, 70, 40)
    assert whole.area == (0, 0, 70, 40)


@pytest.mark.parametrize(("width", "height", "size", "resize"), VIEWS)
@pytest.mark.parametrize("shape", [(4, 4), (5, 3)])
def test_a_position_holds_the_points_of_its_box(width, height, size, resize, shape):
    view = view_of(width, height, size=size, resize=resize)
    covered = np.zeros((height, width), int)
    for row in range(shape[0]):
        for column in range(shape[1]):
            x0, y0, x1, y1 = view.box(row, column, shape)
            xs = [x for x in range(width) if x0 <= x + 0.5 < x1]
            ys = [y for y in range(height) if y0 <= y + 0.5 < y1]
            for x, y in ((xs[0], ys[0]), (xs[-1], ys[-1]), (xs[len(xs) // 2], ys[len(ys) // 2])):
                assert view.position(x + 0.5, y + 0.5, shape) == (row, column)
            covered[np.ix_(ys, xs)] += 1
    x0, y0, x1, y1 = view.area
    inside = np.zeros((height, width), bool)
    inside[math.ceil(y0 - 0.5) : math.ceil(y1 - 0.5), math.ceil(x0 - 0.5) : math.ceil(x1 - 0.5)] = True
    np.testing.assert_array_equal(covered, inside)


def test_points_that_the_network_did_not_see():
    view = view_of(100, 50, size=40, resize=50)
    assert view.position(30, 5, (4, 4)) == (0, 0)
    for x, y in ((29.9, 25), (70, 25), (50, 45), (50, 4.9), (math.nan, 25)):
        with pytest.raises(
            ValueError, match=r"must lie in what the network sees of the 100 x 50 pixels: x from 30 to 70"
        ):
            view.position(x, y, (4, 4))
    # a detector's input, 64 x 64 pixels, is filled up on the right and below
    view = View(100, 50, 64, 64, 0.5, 0.5)
    assert view.position(99, 49, (4, 4)) == (1, 3)
    for x, y in ((100, 20), (50, 51)):
        with pytest.raises(ValueError, match=r"x from 0 to 100, y from 0 to 50"):
            view.position(x, y, (4, 4))


def test_regions_agree_with_scipy():
    generator = np.random.default_rng(0)
    for shape, share in (((1, 1), 0.5), ((5, 9), 0.4), ((30, 20), 0.55), ((14, 14), 0.0), ((14, 14), 1.0)):
        mask = generator.random(shape) < share
        labels, _ = ndimage.label(mask)
        expected = {(y.start, x.start, y.stop, x.stop) for y, x in ndimage.find_objects(labels)}
        found = regions(torch.from_numpy(mask))
        assert set(found) == expected
        assert len(found) == labels.max()


def test_time_steps():
    assert [time_step(frame, 32, 8) for frame in (0, 3, 4, 31)] == [0, 0, 1, 7]
    assert [time_step(frame, 5, 2) for frame in range(5)] == [0, 0, 1, 1, 1]
    assert [time_step(frame, 5, 3) for frame in range(5)] == [0, 0, 1, 2, 2]
    for frames, steps in ((7, 3), (5, 5), (32, 4), (9, 4)):
        ends = [(step + 1) * frames / steps for step in range(steps)]
        expected = [int(np.searchsorted(ends, frame + 0.5, side="right")) for frame in range(frames)]
        assert [time_step(frame, frames, steps) for frame in range(frames)] == expected
    with pytest.raises(ValueError, match=r"frame \(8\) must lie in 0..7"):
        time_step(8, 8, 4)


def test_token_grids():
    assert token_grid(49) == (7, 7, 0)
    assert token_grid(50) == (7, 7, 1)
    for tokens in (0, 48, 51):
        with pytest.raises(ValueError, match=rf"num_tokens \({tokens}\) must be the number of positions of a square"):
            token_grid(tokens)


def test_unpooling_is_the_inverse_of_pooling():
    values = torch.randn(2, 3, 4)
    for height, width in ((6, 8), (7, 9)):
        whole = unpool(values, (2, height, width))
        assert whole.shape == (2, height, width)
        assert torch.equal(torch.nn.functional.max_pool2d(whole, 2), values)
        assert int(whole.isnan().sum()) == 2 * (height * width - 48)
    assert unpool(values, (2, 3, 4)) is values
    with pytest.raises(ValueError, match="every 2 x 2"):
        unpool(values, (2, 5, 8))
