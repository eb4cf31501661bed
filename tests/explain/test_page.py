"""The report page, in a real headless Chromium: clicks, keys, and maps against those of Python."""

import dataclasses
import re
import time
import weakref

import numpy as np
import pytest
import torch
from chromium import Browser, needs_chromium
from PIL import Image
from torch import nn

from cgnl import CGNL2d, CGNL3d, GeneralizedNonLocal2d, NonLocal2d, ResidualBlock2d
from cgnl.blocks import NonLocal3d
from cgnl.explain import geometry
from cgnl.explain.effect import Effect, effect
from cgnl.explain.maps import affinity, evidence, polynomial, reference_channel
from cgnl.explain.page import PageBlock, PageItem, explain_page, write_explain_page
from cgnl.explain.trace import trace_blocks
from cgnl.explain.wording import statement
from cgnl.kernel_functions import EmbeddedGaussian, GaussianRBF, SeriesKernel


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def trace(block: nn.Module, *shape: int, channels: int = 32, seed: int = 0):
    """A trace of a block with weights large enough that its maps have structure."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=channels**-0.5, generator=generator)
    return trace_blocks(block, torch.randn(1, channels, *shape, generator=generator)).blocks[""]


def image(size: tuple[int, int] = (112, 96)) -> Image.Image:
    across = np.linspace(0, 255, size[0], dtype=np.uint8)
    pixels = np.broadcast_to(across, (size[1], size[0]))
    return Image.fromarray(np.stack([pixels, pixels[:, ::-1], pixels // 2], axis=-1))


def item(*traces, name: str = "a wren", frames=None, **others) -> PageItem:
    blocks = [PageBlock(f"network {k}", one) for k, one in enumerate(traces)]
    predictions = others.pop("predictions", {"network 0": [("wren", 0.75), ("robin", 0.25)]})
    return PageItem(name, frames or [image()], blocks, predictions, **others)


KERNELS = {
    "dot": "dot",
    "embedded_gaussian": EmbeddedGaussian(),
    "rbf_constant": GaussianRBF(gamma=0.1),
    "rbf_normalized": GaussianRBF(gamma=0.5, beta="normalized"),
    "rbf_exact": GaussianRBF(gamma=0.1, beta="exact"),
    "own": SeriesKernel(lambda t, u: (1 + t * u) ** 2, [1, 2, 1]),
}


def all_blocks():
    """Traces of every kind of block at 9 × 8 positions."""
    blocks = {
        f"nl_{pairwise}{'_subsampled' if subsample else ''}": NonLocal2d(32, pairwise=pairwise, subsample=subsample)
        for pairwise in ("embedded_gaussian", "gaussian", "dot_product", "dot_product_sum", "concatenation")
        for subsample in (False, True)
    }
    for name, kernel in KERNELS.items():
        blocks[f"cgnl_{name}"] = CGNL2d(32, groups=4, kernel=kernel)
        blocks[f"gnl_{name}"] = GeneralizedNonLocal2d(32, groups=4, kernel=kernel, scale="mean")
    return {name: trace(block, 9, 8) for name, block in blocks.items()}


def assert_same_map(shown: np.ndarray, expected: torch.Tensor) -> None:
    expected = expected.flatten().double().numpy()
    assert np.abs(shown - expected).max() <= 0.02 * np.abs(expected).max()
    if expected.std() > 1e-12:
        assert np.corrcoef(shown, expected)[0, 1] > 0.999


def assert_block_shows(browser: Browser, k: int, block, position, view: str) -> None:
    """The tiles of a block are the strongest maps that Python computes for the page's reference channel."""
    if block.kind == "nl":
        ((name, shown),) = browser.tiles(k)
        assert name == "all channels"
        assert_same_map(shown, affinity(block, position, view=view))
        return
    channel = browser.evaluate(f"cards[{k}].shown.reference")
    strength = block.g[(slice(None), *position)].abs()
    assert strength[channel] >= 0.98 * strength[reference_channel(block, position)]
    maps = affinity(block, position, channel, view=view)
    tiles = browser.tiles(k)
    assert len(tiles) == min(12, len(maps))
    for name, shown in tiles:
        wanted = maps[int(name.removeprefix("channel ")) % len(maps)]
        assert np.abs(shown - wanted.flatten().numpy()).max() <= 0.02 * maps.abs().max().item()
    assert_same_map(
        np.concatenate([shown for _, shown in tiles]),
        torch.stack([maps[int(name.removeprefix("channel ")) % len(maps)] for name, _ in tiles]),
    )


@needs_chromium
def test_the_maps_of_every_block_follow_a_click_and_are_those_of_python(browser, tmp_path):
    blocks = all_blocks()
    write_explain_page(tmp_path / "page.html", [item(*blocks.values())], "All blocks")
    browser.open(tmp_path / "page.html")
    browser.click_on("#picture", across=(2 + 0.4) / 8, down=(5 + 0.6) / 9)
    for view in ("row", "column"):
        browser.evaluate(f"cards.forEach((card) => (card.settings.view = '{view}')); update()")
        said = browser.evaluate("[...document.querySelectorAll('#panel-affinity .honest')].map((p) => p.textContent)")
        assert said == [statement(block, view) for block in blocks.values()]
        for k, block in enumerate(blocks.values()):
            assert_block_shows(browser, k, block, (5, 2), view)
    assert browser.complaints() == []


@needs_chromium
def test_arrow_keys_move_the_reference_and_say_where_it_is(browser, tmp_path):
    block = trace(CGNL2d(32, groups=4), 9, 8)
    write_explain_page(tmp_path / "page.html", [item(block)], "Keys")
    browser.open(tmp_path / "page.html")
    browser.click_on("#picture", across=0.01, down=0.01)
    browser.evaluate("document.getElementById('picture').focus()")
    for key in ("ArrowLeft", "ArrowUp", "ArrowRight", "ArrowRight", "ArrowDown"):
        browser.press(key)
    assert_block_shows(browser, 0, block, (1, 2), "row")
    assert "reference at row 1, column 2 of 9 × 8" in browser.evaluate("document.getElementById('status').textContent")
    for _ in range(20):
        browser.press("ArrowDown")
    assert browser.evaluate("reference(input.blocks[0])") == [8, 2]
    assert browser.complaints() == []


@needs_chromium
def test_a_channel_that_was_clicked_stays_on_the_picture(browser, tmp_path):
    blocks = [trace(CGNL2d(32, groups=2), 9, 8), trace(CGNL2d(32, groups=2), 9, 8, seed=1)]
    write_explain_page(tmp_path / "page.html", [item(*blocks)], "Stay")
    browser.open(tmp_path / "page.html")
    tile = "#panel-affinity section:nth-of-type(2) .map:nth-child(6)"
    name = browser.tiles(1)[5][0]
    browser.click_on(tile)
    for place in ((0.1, 0.1), (0.9, 0.4), (0.3, 0.8)):
        browser.evaluate(f"moveTo([0, {place[0]}, {place[1]}])")
        assert f"{name} (chosen)" in browser.evaluate("document.getElementById('status').textContent")
        position = browser.evaluate("reference(input.blocks[1])")
        channel = browser.evaluate("cards[1].shown.reference")
        maps = affinity(blocks[1], tuple(position), channel)
        wanted = maps[int(name.removeprefix("channel ")) % 8].flatten().numpy()
        assert np.abs(browser.tiles(1)[0][1] - wanted).max() <= 0.02 * maps.abs().max().item()
    assert browser.complaints() == []


@needs_chromium
def test_the_picture_carries_the_map_where_its_cells_lie(browser, tmp_path):
    class OneBright(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = CGNL2d(1, inner_channels=1, groups=1)
            for convolution in (self.block.theta, self.block.phi, self.block.g):
                nn.init.ones_(convolution.weight)

        def forward(self, x):
            return self.block(x)

    x = torch.full((1, 1, 8, 8), 0.01)
    x[0, 0, 6, 1] = 1.0
    block = trace_blocks(OneBright(), x).blocks["block"]
    grey = Image.new("RGB", (160, 160), (128, 128, 128))
    write_explain_page(tmp_path / "page.html", [item(block, frames=[grey])], "One spot")
    browser.open(tmp_path / "page.html")
    browser.click_on("#picture", across=0.8, down=0.2)
    size = browser.evaluate("document.getElementById('picture').width")
    pixels = np.array(
        browser.evaluate(
            f"Array.from(document.getElementById('picture').getContext('2d').getImageData(0, 0, {size}, {size}).data)"
        )
    ).reshape(size, size, 4)
    orange = pixels[..., 0] - pixels[..., 2] > 60
    cell = size // 8
    expected = np.zeros_like(orange)
    expected[6 * cell : 7 * cell, cell : 2 * cell] = True
    assert (orange == expected).mean() > 0.999


@needs_chromium
@pytest.mark.parametrize("size", [3, 7])
def test_a_subsampled_map_leaves_the_odd_row_and_column_without_colour(browser, tmp_path, size):
    block = trace(NonLocal2d(32, subsample=True), size, size)
    assert block.phi.shape[1:] == (size // 2, size // 2)
    grey = Image.new("RGB", (140, 140), (128, 128, 128))
    write_explain_page(tmp_path / "page.html", [item(block, frames=[grey])], "Odd")
    browser.open(tmp_path / "page.html")
    browser.evaluate("moveTo([0, 0.9, 0.9])")
    width = browser.evaluate("document.getElementById('picture').width")
    last = (size - 1, size - 1)
    expected = geometry.unpool(affinity(block, last), (size, size))
    strongest = divmod(int(affinity(block, last).argmax()), size // 2)
    middles = [int((k + 0.5) / size * width) for k in range(size)]
    coloured = browser.evaluate(
        f"{middles}.map((y) => {middles}.map((x) => {{ const p = document.getElementById('picture')"
        ".getContext('2d').getImageData(x, y, 1, 1).data; return p[0] - p[2]; }))"
    )
    # the outline covers the reference's edges only; colour grows with the map, and there is none beyond the pooling
    shown = torch.tensor(coloured)
    assert (shown[expected.isnan()] == 0).all()
    assert (shown[expected == expected.nan_to_num().max()] == shown.max()).all()
    assert shown.max() > 60
    assert f"strongest at row {strongest[0]}, column {strongest[1]} of {size // 2} × {size // 2}" in browser.evaluate(
        "document.getElementById('status').textContent"
    )
    for position in (last, (size - 2, size // 2), (0, 1)):
        column = browser.evaluate(
            f"Array.from(affinityMaps(input.blocks[0], {list(position)}, {{view: 'column'}}).maps[0])"
        )
        assert_same_map(np.array(column), affinity(block, position, view="column"))


@needs_chromium
def test_evidence_and_its_curve_are_those_of_python(browser, tmp_path):
    blocks = [trace(CGNL2d(32, groups=4, kernel=kernel), 9, 8) for kernel in KERNELS.values()]
    write_explain_page(tmp_path / "page.html", [item(*blocks)], "Evidence")
    browser.open(tmp_path / "page.html")
    browser.click_on("#tab-evidence")
    assert browser.evaluate("document.getElementById('panel-evidence').hidden") is False
    assert browser.evaluate("document.getElementById('panel-affinity').hidden") is True
    for k, block in enumerate(blocks):
        for power in [p for p, a2 in enumerate(block.kernel.coefficients) if a2]:
            browser.evaluate(f"Object.assign(cards[{k}].settings, {{evidenceGroup: 2, power: {power}}}); update()")
            maps = evidence(block, 2, power)
            (whole_name, whole), *tiles = browser.tiles(k)
            assert whole_name == "whole group 2"
            assert np.abs(whole - maps.sum(0).flatten().numpy()).max() <= 0.04 * maps.abs().max().item()
            for name, shown in tiles:
                wanted = maps[int(name.removeprefix("channel ")) - 8].flatten().numpy()
                assert np.abs(shown - wanted).max() <= 0.03 * maps.abs().max().item()
        theta = torch.tensor([-0.7, 0.1, 1.3])
        curve = browser.evaluate(f"[-0.7, 0.1, 1.3].map((theta) => polynomialAt(input.blocks[{k}], 2, theta))")
        torch.testing.assert_close(torch.tensor(curve), polynomial(block, 2, theta), rtol=1e-4, atol=1e-6)
    assert browser.evaluate("document.querySelectorAll('#panel-evidence svg.curve path').length") == len(blocks)
    assert browser.complaints() == []


@needs_chromium
def test_effect_shows_the_probabilities_without_the_block_and_each_group(browser, tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 32, 3), CGNL2d(32, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(0))
    x = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    measured = effect(network, x, "1")
    names = [f"bird {k}" for k in range(32)]
    best = int(measured.logits.argmax())
    one = PageItem(
        "a bird",
        [image()],
        [PageBlock("CGNL", trace_blocks(network, x).blocks["1"], measured)],
        {"CGNL": [(names[best], float(measured.probabilities[best]))]},
        truth=names[best],
    )
    with pytest.raises(ValueError, match=r"class_names \(31 of them\).* network CGNL \(32\)"):
        explain_page([one], "Effect", class_names=names[:31])
    with pytest.raises(ValueError, match=r"class_names \(33 of them\).* network CGNL \(32\)"):
        explain_page([one], "Effect", class_names={"CGNL": [*names, "one more"]})
    assert f"class {best}" in explain_page([one], "Effect", class_names={"another network": ["wren"]})
    write_explain_page(tmp_path / "page.html", [one], "Effect", class_names={"CGNL": names, "other": ["wren"]})
    browser.open(tmp_path / "page.html")
    browser.click_on("#tab-affinity")
    browser.press("End")
    assert browser.evaluate("state.tab") == "effect"
    rows = browser.evaluate(
        "[...document.querySelectorAll('#panel-effect tbody tr')].map((r) => [...r.children].map((c) => c.textContent))"
    )
    probabilities = [measured.probabilities, measured.probabilities_bypassed, *measured.probabilities_without]
    assert [row[0] for row in rows] == ["with the block", "bypassed", "without group 0", "without group 1"]
    assert browser.evaluate("document.querySelector('#panel-effect option').textContent") == names[best]
    assert [row[2] for row in rows] == [f"{100 * float(row[best]):.1f} %" for row in probabilities]
    moved = [100 * float(row[best] - probabilities[0][best]) for row in probabilities[1:]]
    assert [row[3].replace("−", "-") for row in rows] == [
        "",
        *(f"{change:+.2f}" if round(change, 2) else "0.00" for change in moved),
    ]
    assert "Leaving out all groups together is the bypass" in browser.evaluate(
        "document.getElementById('panel-effect').textContent"
    )
    assert browser.complaints() == []


@needs_chromium
def test_a_video_has_frames_to_choose_from_and_keys_for_time(browser, tmp_path):
    blocks = [trace(CGNL3d(32, groups=4), 4, 6, 5), trace(NonLocal3d(32, subsample=True), 4, 6, 5)]
    frames = [image() for _ in range(8)]
    write_explain_page(tmp_path / "page.html", [item(*blocks, frames=frames, start=(0.9, 0.5, 0.1))], "A video")
    browser.open(tmp_path / "page.html")
    assert browser.evaluate("[state.frame, reference(input.blocks[0])]") == [7, [3, 3, 0]]
    assert browser.evaluate("document.querySelectorAll('#film canvas').length") == 8
    browser.click_on("#film li:nth-child(2) button")
    browser.click_on("#picture", across=0.5, down=0.25)
    for k, block in enumerate(blocks):
        assert_block_shows(browser, k, block, (0, 1, 2), "row")
    browser.press("PageDown")
    browser.press("PageDown")
    assert browser.evaluate("state.frame") == 5
    assert browser.evaluate("document.querySelector('#film [aria-current=true]').textContent") == "frame 5"
    assert browser.evaluate("document.getElementById('place').hidden") is True  # no way to the file is known
    for k, block in enumerate(blocks):
        assert_block_shows(browser, k, block, (2, 1, 2), "row")
    assert browser.complaints() == []


@needs_chromium
def test_a_frame_shows_the_time_step_that_its_middle_falls_into(browser, tmp_path):
    block = trace(CGNL3d(32, groups=4), 3, 6, 5)
    write_explain_page(tmp_path / "page.html", [item(block, frames=[image() for _ in range(5)])], "Five frames")
    browser.open(tmp_path / "page.html")
    steps = "[0, 1, 2, 3, 4].map((frame) => startOf(input.blocks[0].shape, frame) / 30)"
    assert browser.evaluate(steps) == [0, 0, 1, 2, 2]
    for frame, wanted in enumerate([0, 0, 1, 2, 2]):
        browser.click_on(f"#film li:nth-child({frame + 1}) button")
        browser.click_on("#picture")
        assert browser.evaluate("reference(input.blocks[0])[0]") == wanted


@needs_chromium
def test_the_reference_is_told_in_pixels_of_the_file(browser, tmp_path):
    view = geometry.view_of(500, 375, size=448, resize=512)
    to_file = (view.scale_x, view.scale_y, view.left, view.top)
    block = trace(CGNL3d(32, groups=4), 4, 6, 5)
    frames = [image((448, 448)) for _ in range(8)]
    write_explain_page(tmp_path / "page.html", [item(block, frames=frames, to_file=to_file)], "A place")
    browser.open(tmp_path / "page.html")
    for share in ((0.3, 0.7), (0.0, 0.0), (1.0, 1.0)):
        browser.evaluate(f"moveTo([{5.5 / 8}, {share[1]}, {share[0]}])")
        x, y, frame = map(float, browser.evaluate("document.getElementById('at').textContent").split(","))
        wanted = view.to_image(448 * share[0], 448 * share[1])
        assert (x, y, frame) == (pytest.approx(wanted[0], abs=0.1), pytest.approx(wanted[1], abs=0.1), 5)
        position = (geometry.time_step(int(frame), 8, 4), *view.position(x, y, (6, 5)))
        assert browser.evaluate("reference(input.blocks[0])") == list(position)


@needs_chromium
def test_the_legend_has_the_colours_of_the_map(browser, tmp_path):
    write_explain_page(tmp_path / "page.html", [item(trace(CGNL2d(32, groups=4), 9, 8))], "Colours")
    browser.open(tmp_path / "page.html")
    browser.evaluate("state.opacity = 0.5; moveTo([0, 0.1, 0.1])")
    assert "\u2212" in browser.evaluate("document.getElementById('low').textContent")  # both signs are there
    bar = browser.evaluate("getComputedStyle(document.getElementById('bar')).backgroundImage")
    stops = [tuple(map(float, stop.split(", "))) for stop in re.findall(r"rgba\(([^)]*)\)", bar)]
    drawn = browser.evaluate(
        "Array.from(cellsOf(Array.from({length: 41}, (_, i) => -1 + i / 20), 0, 1, 41, 1, 0.5)"
        ".getContext('2d').getImageData(0, 0, 41, 1).data)"
    )
    cells = np.array(drawn).reshape(41, 4) / [1, 1, 1, 255]
    np.testing.assert_allclose(np.array(stops)[:, 3], cells[:, 3], atol=0.005)
    strong = cells[:, 3] > 0.2  # a canvas keeps the colour of what is almost transparent with few bits
    np.testing.assert_allclose(np.array(stops)[strong, :3], cells[strong, :3], atol=3)


@needs_chromium
def test_averaged_features_are_told_of_where_they_matter(browser, tmp_path):
    block = trace(CGNL2d(1024, inner_channels=1024), 36, 36, channels=1024)
    write_explain_page(tmp_path / "page.html", [item(block, trace(CGNL2d(32), 9, 8))], "Averaged")
    browser.open(tmp_path / "page.html")
    cards = browser.evaluate("[...document.querySelectorAll('#panel-evidence .block')].map((e) => e.textContent)")
    assert ["do not add up to the sums z" in card for card in cards] == [True, False]
    assert all("rounded to 8 bits" in card for card in cards)


@needs_chromium
def test_the_order_of_mistakes_knows_the_truth_beyond_the_listed_classes(browser, tmp_path):
    block = trace(CGNL2d(32, groups=4), 9, 8)
    lost = {"by little": 0.38, "by all": 0.0, "unknown": None}
    items = [
        item(
            block,
            name=name,
            truth="robin",
            predictions={"CGNL": [("wren", 0.3 if probability is None else 0.4)]},
            truth_probability={"CGNL": probability},
        )
        for name, probability in lost.items()
    ]
    write_explain_page(tmp_path / "page.html", items, "Mistakes")
    browser.open(tmp_path / "page.html")
    mistakes = browser.evaluate("index.map(mistake)")
    assert mistakes == pytest.approx([0.02, 0.4, 0.3])


@needs_chromium
def test_several_inputs_and_the_worst_mistakes_first(browser, tmp_path):
    block = trace(CGNL2d(32, groups=4), 9, 8)
    residual = trace(ResidualBlock2d(32), 9, 8)
    guesses = {"right": 0.9, "slightly <wrong>": 0.3, "badly wrong": 0.95}
    items = [
        item(
            block,
            residual,
            name=name,
            truth="wren" if name == "right" else "robin",
            predictions={"CGNL": [("wren", probability), ("robin", 1 - probability)]},
        )
        for name, probability in guesses.items()
    ]
    items[1] = item(block, residual, name="slightly <wrong>", truth="robin", predictions={"CGNL": [("wren", 0.3)]})
    write_explain_page(tmp_path / "page.html", items, "Birds & <more>", notes=["a < b"])
    browser.open(tmp_path / "page.html")
    names = "[...document.querySelectorAll('#strip button > span:first-of-type')].map((e) => e.textContent)"
    assert browser.evaluate(names) == list(guesses)
    assert browser.evaluate("document.querySelector('h1').textContent") == "Birds & <more>"
    browser.evaluate(
        "document.getElementById('order').value = 'mistakes'; "
        "document.getElementById('order').dispatchEvent(new Event('change'))"
    )
    assert browser.evaluate(names) == ["badly wrong", "slightly <wrong>"]
    browser.click_on("#strip li:nth-child(2) button")
    deadline = time.monotonic() + 10
    while browser.evaluate("state.item") != 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert browser.evaluate("document.getElementById('item-name').textContent") == "slightly <wrong>"
    assert "True class: robin" in browser.evaluate("document.getElementById('predictions').textContent")
    assert "no attention" in browser.evaluate("document.querySelectorAll('#panel-affinity .honest')[1].textContent")
    assert browser.complaints() == []


@needs_chromium
def test_everything_is_reached_by_keyboard_and_has_a_name(browser, tmp_path):
    block = trace(CGNL2d(32, groups=4, kernel="rbf"), 9, 8)
    write_explain_page(tmp_path / "page.html", [item(block, name=name) for name in "ab"], "Names")
    browser.open(tmp_path / "page.html")
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    controls = ("button", "slider", "combobox", "spinbutton", "checkbox", "tab", "tabpanel", "application", "img")
    unnamed = [
        node["role"]["value"]
        for node in nodes
        if not node["ignored"]
        and node.get("role", {}).get("value") in controls
        and not node.get("name", {}).get("value")
    ]
    assert unnamed == []
    wanted = browser.evaluate(
        "[...document.querySelectorAll('button, select, input, summary, [tabindex=\"0\"]')]"
        ".filter((e) => e.checkVisibility() && e.tabIndex >= 0).length"
    )
    browser.evaluate("window.reached = new Set(); addEventListener('focusin', (e) => window.reached.add(e.target))")
    for _ in range(wanted + 2):
        browser.press("Tab")
    assert browser.evaluate("window.reached.size") >= wanted


# texts of labels and headings of tables that are on more lines than they have words
_BROKEN_WORDS = """[...document.querySelectorAll('label, th, h2, h3, button')].flatMap((one) => [...one.childNodes])
    .filter((node) => node.nodeType === 3 && node.data.trim()).filter((node) => {
      const range = document.createRange();
      range.selectNodeContents(node);
      const lines = new Set([...range.getClientRects()].map((rect) => Math.round(rect.top)));
      return lines.size > node.data.trim().split(/[ \\u00a0]+/).length;
    }).map((node) => node.data)"""
_OUTSIDE = """[...document.querySelectorAll('table, .controls label')].filter((one) => one.offsetParent
    && one.getBoundingClientRect().right > one.closest('.block, section').getBoundingClientRect().right).length"""


@needs_chromium
def test_the_page_fits_a_phone(browser, tmp_path):
    blocks = [trace(CGNL2d(32, groups=4), 9, 8), trace(NonLocal2d(32), 9, 8)]
    logits = torch.randn(4, 3)
    moved = Effect("", logits[0], logits[1], logits[2:])
    shown = [dataclasses.replace(item(*blocks).blocks[0], effect=moved), item(*blocks).blocks[1]]
    items = [dataclasses.replace(item(*blocks, name=f"input {k}"), blocks=shown) for k in range(6)]
    write_explain_page(tmp_path / "page.html", items, "A phone")
    for width in (320, 390):
        browser.open(tmp_path / "page.html", width=width, height=844)
        for tab in ("affinity", "evidence", "effect"):
            browser.evaluate(f"selectTab('{tab}')")
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            # also with larger letters: no word is set one letter a line, and no table leaves its card
            for size in (16, 22):
                browser.evaluate(f"document.body.style.fontSize = '{size}px'")
                assert browser.evaluate(_BROKEN_WORDS) == []
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
                assert browser.evaluate(_OUTSIDE) == 0
            browser.evaluate("document.body.style.fontSize = ''")
    left, right = browser.evaluate(
        "['left', 'right'].map((id) => document.getElementById(id).getBoundingClientRect().toJSON())"
    )
    assert right["top"] >= left["bottom"]
    assert browser.complaints() == []


def test_an_image_and_a_block_take_less_than_two_megabytes_and_large_blocks_are_pooled():
    generator = torch.Generator().manual_seed(0)
    noise = Image.fromarray(torch.randint(0, 256, (448, 448, 3), generator=generator, dtype=torch.uint8).numpy())
    block = trace(CGNL2d(512, inner_channels=512), 28, 28, channels=512)
    one = item(block, frames=[noise])
    page = explain_page([one], "Size")
    assert len(page.encode()) < 2_000_000
    assert "each value is larger than in the block" not in page
    assert "averaged from" not in explain_page([item(block)], "Size")  # a picture of ordinary size leaves room enough
    large = trace(NonLocal2d(1024, pairwise="embedded_gaussian"), 40, 40, channels=1024)
    page = explain_page([item(large, frames=[noise])], "Size")
    assert len(page.encode()) < 2_000_000
    assert "each value is larger than in the block" in page
    assert re.search(r"averaged from 40×40 to \d+×\d+ positions", page)


@pytest.mark.parametrize("channels", [16, 64])
def test_what_grows_with_positions_alone_is_in_the_bound_too(channels, monkeypatch):
    # half the bound, and half the positions, whose pairs take long
    monkeypatch.setattr("cgnl.explain.page._MAX_BYTES", 950_000)
    generator = torch.Generator().manual_seed(0)
    noise = Image.fromarray(torch.randint(0, 256, (448, 448, 3), generator=generator, dtype=torch.uint8).numpy())
    block = trace(NonLocal2d(channels, inner_channels=channels), 112, 112, channels=channels)
    text = explain_page([item(block, frames=[noise])], "Size")
    assert len(text.encode()) < 1_000_000
    assert "averaged from 112×112 to" in text


def test_each_input_is_let_go_before_the_next():
    alive = []

    def items():
        for k in range(3):
            assert not [reference for reference in alive if reference() is not None]
            one = item(trace(CGNL2d(32), 9, 8), name=f"input {k}")
            alive.append(weakref.ref(one))
            yield one
            del one

    explain_page(items(), "One by one")
    assert len(alive) == 3


def test_the_page_asks_for_nothing_from_outside():
    page = explain_page([item(trace(CGNL2d(32), 9, 8))], "Alone")
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=[\"'](?!data:)", page)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)


def test_wrong_items_are_named():
    with pytest.raises(ValueError, match="items must hold at least one input"):
        explain_page([], "Nothing")
    with pytest.raises(ValueError, match=r"'a wren'.*at least one block"):
        explain_page([item()], "No blocks")
    several = dataclasses.replace(trace(CGNL2d(32), 9, 8), samples=3)
    with pytest.raises(ValueError, match="saw 3 samples for one input has no place"):
        explain_page([item(several)], "Regions")
    broken = trace(CGNL2d(32), 9, 8)
    broken.phi[3, 2, 1] = torch.nan
    with pytest.raises(ValueError, match="must have finite features to be shown for 'a wren'"):
        explain_page([item(broken)], "Not a number")
