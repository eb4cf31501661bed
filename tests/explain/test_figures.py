import dataclasses

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle
from PIL import Image
from scipy import ndimage

from cgnl import (
    CGNL1d,
    CGNL2d,
    CGNL3d,
    EmbeddedGaussian,
    GaussianRBF,
    GeneralizedNonLocal2d,
    NonLocal2d,
    NonLocal3d,
    ResidualBlock2d,
    SeriesKernel,
)
from cgnl.data.transforms import test_transform
from cgnl.explain.figures import figure1, figure5, figure6, save_figure
from cgnl.explain.geometry import view_of
from cgnl.explain.maps import affinity, affinity_group, reference_channel
from cgnl.explain.trace import Trace, trace_blocks
from cgnl.explain.wording import statement

VIEW = view_of(90, 60, size=48, resize=60)  # sees x from 21 to 69, y from 6 to 54
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8))
WHITE, GREEN = (1.0, 1.0, 1.0, 1.0), (0.0, 0xC4 / 255, 0x4F / 255, 1.0)


def traced(block, *shape):
    """A network that is one block, on random features in place of an image."""
    torch.manual_seed(0)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    return trace_blocks(block, torch.randn(1, 16, *shape)), ""


@pytest.fixture(scope="module")
def images():
    return {"NL": traced(NonLocal2d(16), 6, 6), "CGNL": traced(CGNL2d(16, groups=1), 6, 6)}


@pytest.fixture(scope="module")
def clips():
    return {"NL": traced(NonLocal3d(16, subsample=True), 4, 6, 6), "CGNL": traced(CGNL3d(16, groups=2), 4, 6, 6)}


def boxes(ax, colour):
    found = [patch for patch in ax.patches if isinstance(patch, Rectangle) and patch.get_edgecolor() == colour]
    return sorted(patch.get_bbox().extents.tolist() for patch in found if not patch.get_fill())


def caption(figure):
    return figure._supxlabel.get_text().replace("\n", " ")


def laid(ax):
    """The maps drawn over an image: where, and the values."""
    return [(tuple(image.get_extent()), np.asarray(image.get_array())) for image in ax.images[1:]]


def expected_boxes(values, threshold):
    """Boxes by SciPy, in pixels of the image: positions are 8 pixels wide in the crop that begins at 21, 6."""
    labels, _ = ndimage.label(values >= threshold)
    return sorted(
        [21 + 8 * x.start, 6 + 8 * y.start, 21 + 8 * x.stop, 6 + 8 * y.stop] for y, x in ndimage.find_objects(labels)
    )


class Averages(torch.nn.Module):
    """Brightness of each part of 8 x 8 pixels, then a block that relates bright positions to bright ones."""

    def __init__(self):
        super().__init__()
        self.mean = torch.nn.AvgPool2d(8)
        self.block = CGNL2d(3, inner_channels=3, groups=1)
        for convolution in (self.block.theta, self.block.phi, self.block.g):
            torch.nn.init.dirac_(convolution.weight)

    def forward(self, x):
        return self.block(self.mean(x))


@pytest.mark.parametrize(("width", "height"), [(96, 64), (64, 96), (96, 97), (131, 64), (192, 128), (150, 300)])
@pytest.mark.parametrize("size", [48, 64])
def test_a_bright_square_of_the_file_is_lit_where_it_is(width, height, size):
    """A square that fills two by two positions to the pixel, drawn in the file, is found in the drawn figure."""
    view = view_of(width, height, size=size, resize=64)
    x0, y0, _, _ = view.box(2, 3, (size // 8, size // 8))
    _, _, x1, y1 = view.box(3, 4, (size // 8, size // 8))
    pixels = np.full((height, width, 3), 60, np.uint8)
    pixels[round(y0) : round(y1), round(x0) : round(x1)] = 240
    x = test_transform(size, 64, mean=(0.0,) * 3, std=(1.0,) * 3)(Image.fromarray(pixels))
    networks = {"it": (trace_blocks(Averages(), x[None]), "block")}
    # over a grey image, so that the square is seen in the map alone
    grey = Image.new("RGB", (width, height), (128, 128, 128))
    far, _, _, upper = view.box(0, 0, (size // 8, size // 8))
    figure = figure6([grey], networks, (far + 1, upper - 1, 0), view)
    figure.set_dpi(300)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[..., :3].astype(float)
    strongest = 0.65 * 255 * np.array(matplotlib.colormaps["cividis"](1.0)[:3]) + 0.35 * 128
    ax = figure.axes[0]
    frame = ax.get_window_extent()
    lit = np.abs(drawn - strongest).max(-1) < 40
    lit[:, : int(frame.x0)] = lit[:, int(frame.x1) :] = False
    lit[: int(len(drawn) - frame.y1)] = lit[int(len(drawn) - frame.y0) :] = False
    rows, columns = (np.flatnonzero(lit.any(axis)) for axis in (1, 0))
    assert lit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    corners = [(columns[0], len(drawn) - rows[0]), (columns[-1] + 1, len(drawn) - rows[-1] - 1)]
    one_drawn = width / frame.width
    assert ax.transData.inverted().transform(corners).ravel() == pytest.approx([x0, y0, x1, y1], abs=2 * one_drawn)
    assert 2 * one_drawn < 1, "finer than a pixel of the file"


def test_figure5_draws_the_affinities_where_they_are(images):
    figure = figure5(IMAGE, images, (30, 20), VIEW, threshold=0.6, num_maps=3, parts={"beak": (40, 30)})
    axes = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title().split(":")[0].split("\n")[0] for ax in axes] == ["reference", "NL", *3 * ["CGNL"], "parts"]
    assert boxes(axes[0], GREEN) == [[29, 14, 37, 22]]  # row 1, column 1
    nl, cgnl = (trace.blocks[path] for trace, path in images.values())
    channel = reference_channel(cgnl, (1, 1))
    maps = affinity(cgnl, (1, 1), channel).numpy()
    peaks = np.abs(maps).max((1, 2))
    strongest = np.argsort(-peaks)[:3]
    for ax, values in zip(axes[1:5], [affinity(nl, (1, 1)).numpy(), *maps[strongest]], strict=True):
        values = values / np.abs(values).max()
        ((extent, drawn),) = laid(ax)
        assert extent == (21, 69, 54, 6)
        np.testing.assert_allclose(drawn, values, rtol=1e-5)
        assert boxes(ax, WHITE) == expected_boxes(np.abs(values), 0.6)
    for ax, k in zip(axes[2:5], strongest, strict=True):
        span = f"{maps[k].min():.3g} to {maps[k].max():.3g}"
        assert ax.get_title() == f"CGNL: {span}\nchannel {affinity_group(cgnl, channel)[k]}, group 0"
    assert [text.get_text() for text in axes[5].texts] == ["1", "1 beak"]
    assert axes[5].texts[0].get_position() == (40, 30)
    assert [ax.get_xlabel() for ax in figure.axes if ax not in axes] == [
        "|affinity| / largest",
        "affinity / largest |affinity|",
    ]
    for name, block in (("NL", nl), ("CGNL", cgnl)):
        assert f"{name}: {statement(block)}" in caption(figure)


LINEAR = "With the dot product all reference elements"
OF_SERIES = "As the series ends with theta · phi, all reference elements"
PRACTICALLY = "it is practically the dot product's map, "
SAME = "The part that is the same for all pairs (p = 0) is left out."


@pytest.mark.parametrize(
    ("block", "true", "untrue"),
    [
        (CGNL2d(16), [LINEAR], [PRACTICALLY, "left out"]),
        (CGNL2d(16, kernel=SeriesKernel(lambda t, u: 1 + t * u, [1, 1])), [OF_SERIES, SAME], [LINEAR, PRACTICALLY]),
        (GeneralizedNonLocal2d(16), [LINEAR], [PRACTICALLY, "left out", "evidence"]),
        (
            GeneralizedNonLocal2d(16, kernel=SeriesKernel(lambda t, u: (1 + t * u) ** 2, [1, 2])),
            ["exact kernel function", "f(t, 0) f(0, u) / f(0, 0), is left out"],
            [LINEAR, PRACTICALLY, SAME],
        ),
        (CGNL2d(16, kernel="embedded_gaussian"), [f"While theta · phi is well below 1 {PRACTICALLY}", SAME], [LINEAR]),
        (GeneralizedNonLocal2d(16, kernel="embedded_gaussian"), ["exact kernel function", PRACTICALLY, SAME], [LINEAR]),
        (CGNL2d(16, kernel="rbf"), [f"While 2 gamma theta · phi is well below 1 {PRACTICALLY}", SAME], [LINEAR]),
        (
            CGNL2d(16, kernel=GaussianRBF(beta="exact")),
            [f"{PRACTICALLY}times an envelope of phi", "product of the two envelopes, is left out"],
            [LINEAR, SAME],
        ),
        (
            GeneralizedNonLocal2d(16, kernel="rbf"),
            [f"{PRACTICALLY}times an envelope of phi", "product of the two envelopes, is left out"],
            [LINEAR, SAME],
        ),
        (GeneralizedNonLocal2d(16, kernel=EmbeddedGaussian(order=0)), [PRACTICALLY], [LINEAR]),
        (CGNL2d(16, kernel=EmbeddedGaussian(order=0)), ["the map is empty"], [LINEAR, PRACTICALLY, "left out."]),
        (CGNL2d(16, kernel=EmbeddedGaussian(order=1)), [OF_SERIES, SAME], [LINEAR]),
        (NonLocal2d(16), ["adds up to 1"], [LINEAR, PRACTICALLY, "left out"]),
        (
            NonLocal2d(16, pairwise="dot_product"),
            ["over the number of positions", "may be negative"],
            [LINEAR, PRACTICALLY, "left out"],
        ),
        (
            NonLocal2d(16, pairwise="dot_product_sum"),
            ["not divided", "two positions; it may be negative"],
            [LINEAR, PRACTICALLY, "left out", "over the number"],
        ),
        (NonLocal2d(16, pairwise="concatenation"), ["up to a constant"], [LINEAR, PRACTICALLY, "left out"]),
    ],
)
def test_figures_say_what_is_true_of_each_kind_of_block(block, true, untrue):
    text = caption(figure5(IMAGE, {"it": traced(block, 6, 6)}, (30, 20), VIEW, num_maps=1))
    assert all(words in text for words in true)
    assert not any(words in text for words in untrue)


def test_what_is_said_of_a_column_is_true_of_it():
    generator = torch.Generator().manual_seed(0)
    for kernel in ("dot", "embedded_gaussian"):
        block = trace_blocks(CGNL2d(16, groups=1, kernel=kernel), torch.randn(1, 16, 6, 6, generator=generator))
        text = statement(block.blocks[""], "column")
        assert "one number, its phi" in text or "whose phi has the same sign" in text
        assert "where phi is large" not in text
    block = trace_blocks(NonLocal2d(16), torch.randn(1, 16, 6, 6, generator=generator)).blocks[""]
    assert "a column does not add up to 1" in statement(block, "column")
    assert affinity(block, (2, 3)).sum() == pytest.approx(1)
    assert affinity(block, (2, 3), view="column").sum() != pytest.approx(1, abs=1e-6)


def test_figure5_has_a_row_for_each_reference_and_for_networks_that_do_not_fit(images):
    both = figure5(IMAGE, images, [(30, 20), (60, 50)], VIEW)
    assert sum(ax.get_title().startswith("reference") for ax in both.axes) == 2
    more = images | {"RBF": traced(CGNL2d(16, groups=1, kernel="rbf"), 6, 6)}
    figure = figure5(np.asarray(IMAGE), more, (30, 20), VIEW, caption="as given")
    assert sum(ax.get_title().startswith("reference") for ax in figure.axes) == 2
    assert figure._supxlabel.get_text() == "as given"
    single = figure5(IMAGE, {"RBF": more["RBF"]}, (30, 20), VIEW, parts={"wing": (30, 20, 40, 44)})
    assert statement(more["RBF"][0].blocks[""]) in caption(single)
    assert [30, 20, 40, 44] in boxes([ax for ax in single.axes if ax.get_title()][-1], WHITE)


def test_a_class_token_is_no_place_of_the_image():
    block = traced(CGNL1d(16, groups=1), 37)
    figure = figure5(IMAGE, {"tokens": block}, (30, 20), VIEW, num_maps=1)
    values = affinity(block[0].blocks[""], (1 + 6 + 1,))[:, 1:]
    values = values[values.abs().amax(1).argmax()]
    ((_, drawn),) = laid(figure.axes[1])
    np.testing.assert_allclose(drawn, (values / values.abs().max()).view(6, 6), rtol=1e-5)


def test_figures_1_and_6_show_each_frame_its_time_step(clips):
    frames = [IMAGE] * 8
    strip = figure1(frames, clips, (60, 50, 3), VIEW, num_frames=4, threshold=0.5)
    heat = figure6(frames, clips, (60, 50, 3), VIEW, num_frames=4)
    assert [ax.get_title() for ax in strip.axes[:4]] == ["frame 1", "frame 3, reference", "frame 5", "frame 7"]
    nl, cgnl = (trace.blocks[path] for trace, path in clips.values())
    expected = [
        affinity(nl, (1, 5, 4)).repeat_interleave(2, 1).repeat_interleave(2, 2),
        affinity(cgnl, (1, 5, 4)).abs().amax(0),
    ]
    for row, values in enumerate(expected):
        values = (values / values.max()).numpy()
        for step in range(4):
            ((extent, drawn),) = laid(heat.axes[4 * row + step])
            assert extent == (21, 69, 54, 6)
            np.testing.assert_allclose(drawn, values[step], rtol=1e-5)
            assert boxes(strip.axes[4 * row + step], WHITE) == expected_boxes(values[step], 0.5)
            marked = [[53, 46, 61, 54]] if step == 1 else []
            assert boxes(strip.axes[4 * row + step], GREEN) == marked
            ((_, shade),) = laid(strip.axes[4 * row + step])
            np.testing.assert_array_equal(shade[..., 3] > 0, values[step] < 0.5)


def test_a_threshold_that_selects_all_is_no_finding(images, clips):
    def even(traced):
        trace, path = traced
        block = trace.blocks[path]
        return Trace(trace.output, {path: dataclasses.replace(block, phi=torch.ones_like(block.phi))}), path

    few = "Not framed, as the whole map reaches the threshold and nothing stands out:"
    flat = figure1([IMAGE] * 8, {"flat": even(clips["CGNL"]), "CGNL": clips["CGNL"]}, (60, 50, 0), VIEW)
    rows = np.array(flat.axes[: 2 * 4]).reshape(2, -1)
    assert not any(boxes(ax, WHITE) for ax in rows[0])
    assert any(boxes(ax, WHITE) for ax in rows[1])
    assert f"{few} flat." in caption(flat)
    assert few not in caption(figure1([IMAGE] * 8, clips, (60, 50, 0), VIEW))
    assert few not in caption(figure6([IMAGE] * 8, {"flat": even(clips["CGNL"])}, (60, 50, 0), VIEW))
    still = figure5(IMAGE, {"flat": even(images["CGNL"])}, (30, 20), VIEW, num_maps=1)
    assert not any(boxes(ax, WHITE) for ax in still.axes)
    assert f"{few} flat: " in caption(still)
    assert few not in caption(figure5(IMAGE, images, (30, 20), VIEW))


def test_what_cannot_be_drawn(images, clips):
    with pytest.raises(ValueError, match=r"image \(60 x 90\) must have the view's 90 x 60 pixels"):
        figure5(IMAGE.transpose(Image.Transpose.ROTATE_90), images, (30, 20), VIEW)
    with pytest.raises(ValueError, match="must lie in what the network sees"):
        figure5(IMAGE, images, (3, 20), VIEW)
    with pytest.raises(ValueError, match=r"networks\['CGNL'\]: 'layer3' must be one of"):
        figure5(IMAGE, {"CGNL": (images["CGNL"][0], "layer3")}, (30, 20), VIEW)
    with pytest.raises(ValueError, match="networks must hold"):
        figure5(IMAGE, {}, (30, 20), VIEW)
    with pytest.raises(ValueError, match="residual block has no affinity to show"):
        figure5(IMAGE, {"plain": traced(ResidualBlock2d(16), 6, 6)}, (30, 20), VIEW)
    several = dataclasses.replace(images["CGNL"][0].blocks[""], samples=3)
    with pytest.raises(ValueError, match=r"networks\['regions'\]: a block that saw 3 samples for one input has no"):
        figure5(IMAGE, {"regions": (Trace(None, {"": several}), "")}, (30, 20), VIEW)
    with pytest.raises(ValueError, match=r"a block of 4 time steps has seen more than the frames \(1\)"):
        figure5(IMAGE, clips, (30, 20), VIEW)
    with pytest.raises(ValueError, match=r"frame \(8\) must lie in 0..7"):
        figure1([IMAGE] * 8, clips, (30, 20, 8), VIEW)
    for options, words in (
        ({"threshold": 0.0}, r"threshold \(0.0\) must be above 0"),
        ({"num_maps": 0}, r"num_maps \(0\) must"),
    ):
        with pytest.raises(ValueError, match=words):
            figure5(IMAGE, images, (30, 20), VIEW, **options)
    with pytest.raises(ValueError, match=r"num_frames \(0\) must"):
        figure6([IMAGE] * 8, clips, (30, 20, 0), VIEW, num_frames=0)


def test_saved_figures_are_the_same_each_time(images, tmp_path):
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    for suffix, start in starts.items():
        files = [
            save_figure(figure5(IMAGE, images, (30, 20), VIEW, num_maps=1), tmp_path / folder / f"figure{suffix}")
            for folder in "ab"
        ]
        first, second = (file.read_bytes() for file in files)
        assert first == second
        assert first.startswith(start)
        assert b"<dc:date>" not in first
    assert len(list(tmp_path.rglob("*.*"))) == 6
    with pytest.raises(ValueError, match=r"figure.jpg\) must end in one of .png, .svg, .pdf"):
        save_figure(matplotlib.figure.Figure(), tmp_path / "figure.jpg")
