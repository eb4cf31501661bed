"""`cgnl explain` as a user meets it: the page, the figures, the score, and one plain sentence for each mistake."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import run
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cgnl import tasks as training
from cgnl.data.decoding import open_image
from cgnl.explain.inputs import strongest_position
from cgnl.explain.trace import trace_blocks
from cgnl.recipes import RECIPES
from cgnl.settings.reading import from_dict, override, to_dict
from cgnl.tasks import build_network, load_trained, see, smoke, trace_file
from cgnl.toy.actions import draw_actions
from cgnl.toy.birds import draw_birds
from cgnl.toy.flock import draw_flock

SIZE, RESIZE = 64, 73
"""Crop and shorter side of the tiny image networks; the drawn birds have 96 x 96 pixels."""
ROUNDING = 2.01
"""Of 255: a resizing rounds along each axis."""


def train(recipe, folder, name):
    recipe = override(recipe, {"trainer": {"max_epochs": 1}}, "test")
    training.train(recipe, folder, name=name, progress=False)
    return folder


def variant(source, folder, bias=None, weight=None, **changes):
    """A run like another but for some fields of its recipe, with random weights but for those of its last layer."""
    checkpoint = torch.load(source / "last.ckpt", weights_only=True)
    entry = checkpoint["cgnl"]
    recipe = override(from_dict(entry["recipe"], "test"), changes, "test")
    torch.manual_seed(0)
    state = build_network(recipe, len(entry["classes"])).state_dict()
    if bias is not None:
        state["fc.bias"].fill_(bias)
    if weight is not None:
        state["fc.weight"].fill_(weight)
    folder.mkdir()
    state = {f"network.{key}": value for key, value in state.items()}
    torch.save({"cgnl": entry | {"recipe": to_dict(recipe)}, "state_dict": state}, folder / "last.ckpt")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("explain")


@pytest.fixture(scope="module")
def birds(folder):
    draw_birds(folder / "birds", num_species=2, train_images=2, test_images=3, size=96, workers=1)
    return folder / "birds"


@pytest.fixture(scope="module")
def image(birds):
    return min((birds / "images").rglob("*.jpg"))


@pytest.fixture(scope="module")
def cgnl(birds, folder):
    return train(smoke(RECIPES["birds-resnet18-cgnl"].make(), birds, steps=1), folder / "cgnl", "birds-cgnl")


@pytest.fixture(scope="module")
def nl(birds, folder):
    recipe = override(RECIPES["birds-resnet18-cgnl"].make(), {"network": {"block": "nl"}}, "test")
    return train(smoke(recipe, birds, steps=1), folder / "nl", "birds-nl")


@pytest.fixture(scope="module")
def plain(cgnl, folder):
    return variant(cgnl, folder / "plain", network={"block": "none"})


@pytest.fixture(scope="module")
def video_run(folder):
    draw_actions(folder / "actions", num_classes=2, groups=3, clips_per_group=1, size=(64, 48), workers=1)
    recipe = smoke(RECIPES["actions-resnet18-cgnl"].make(), folder / "actions", steps=1)
    small = {"size": 32, "resize": 36, "num_frames": 4, "frame_step": 8, "test_clips": 1}
    return train(override(recipe, {"data": small}, "test"), folder / "video", "actions-cgnl")


@pytest.fixture(scope="module")
def video(video_run, folder):
    return min((folder / "actions").rglob("*.avi"))


@pytest.fixture(scope="module")
def detector(folder):
    draw_flock(folder / "flock", num_species=3, train_images=2, test_images=1, size=(80, 64), workers=1)
    recipe = smoke(RECIPES["flock-maskrcnn-resnet18-cgnl"].make(), folder / "flock", steps=1)
    small = {"network": {"neck": "c4", "detections": 5}, "data": {"size": 72, "max_size": 100}}
    return train(override(recipe, small, "test"), folder / "detector", "flock-cgnl")


@pytest.fixture(scope="module")
def scene(detector, folder):
    return min((folder / "flock" / "val").iterdir())


@pytest.fixture(scope="module")
def named(birds, image, cgnl, nl, plain, video_run, video, folder):
    """What the arguments of mistakes stand for."""
    (folder / "bad.jpg").write_bytes(b"<html>not an image</html>")
    return {
        "birds": cgnl,
        "nl": nl,
        "plain": plain,
        "larger": variant(cgnl, folder / "larger", data={"size": 48, "resize": 54}),
        "broken": variant(cgnl, folder / "broken", weight=3e38),
        "residual": variant(cgnl, folder / "residual", network={"block": "residual"}),
        "actions": video_run,
        "slower": variant(video_run, folder / "slower", data={"frame_step": 4}),
        "image": image,
        "video": video,
        "bad": folder / "bad.jpg",
        "tmp": folder,
    }


def items_of(page):
    """The inputs in a page: what it shows in its strip, and what it draws."""
    text = page.read_text()
    parts = dict(re.findall(r'<script type="application/json" id="([\w-]+)">(.*?)</script>', text, re.DOTALL))
    index = json.loads(parts["index"])
    return [entry | json.loads(parts[f"item-{k}"]) for k, entry in enumerate(index)]


def num_axes(figure):
    return len(re.findall(r'<g id="axes_\d+">', figure.read_text()))


def test_the_page_begins_at_the_strongest_position(capsys, monkeypatch, cgnl, image, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "explain", cgnl, image)
    assert (code, out, err) == (0, "written: explain.html\n", "")
    (item,) = items_of(tmp_path / "explain.html")
    trained = load_trained(cgnl)
    (block,) = trace_blocks(trained.network, see(trained, image).x).blocks.values()
    rows, columns = block.shape
    place = int(block.g.abs().amax(0).argmax())
    assert item["start"] == pytest.approx([0.5, (place // columns + 0.5) / rows, (place % columns + 0.5) / columns])
    assert item["name"] == image.name
    assert [shown["network"] for shown in item["blocks"]] == ["CGNL"]
    assert {name for name, _ in item["predictions"]["CGNL"]} == set(trained.classes)
    assert sum(probability for _, probability in item["predictions"]["CGNL"]) == pytest.approx(1)
    assert set(item["blocks"][0]["effect"]["names"]) == set(trained.classes)


def test_at_says_where_the_page_begins(capsys, cgnl, nl, image, birds, tmp_path):
    page = tmp_path / "new" / "page.html"
    other = max((birds / "images").rglob("*.jpg"))
    code, out, _ = run(capsys, "explain", cgnl, image, other, "--beside", nl, "--at", "40,20", "--out", page)
    assert (code, out) == (0, f"written: {page}\n")
    items = items_of(page)
    assert [item["name"] for item in items] == [image.name, other.name]
    assert [item["truth"] for item in items] == [image.parent.name, other.parent.name]
    for item in items:
        x, y = (((p * RESIZE / 96) - round((RESIZE - SIZE) / 2)) / SIZE for p in (40, 20))
        assert item["start"] == pytest.approx([0.5, y, x])
        assert [shown["network"] for shown in item["blocks"]] == ["CGNL", "NL"]
        assert list(item["predictions"]) == ["CGNL", "NL"]


def test_a_second_network_of_the_same_kind_is_named_by_its_file(capsys, cgnl, plain, image, tmp_path):
    page = tmp_path / "page.html"
    assert run(capsys, "explain", cgnl, image, "--beside", cgnl / "last.ckpt", "--out", page)[0] == 0
    names = [f"CGNL ({cgnl.name})", f"CGNL ({cgnl.name}/last.ckpt)"]
    assert [shown["network"] for shown in items_of(page)[0]["blocks"]] == names
    # a plain network has no maps, but a prediction
    assert run(capsys, "explain", plain, image, "--beside", cgnl, "--out", page)[0] == 0
    (item,) = items_of(page)
    assert [shown["network"] for shown in item["blocks"]] == ["CGNL"]
    assert list(item["predictions"]) == ["plain", "CGNL"]


def test_the_effect_of_a_residual_block_is_shown(capsys, named, tmp_path):
    page = tmp_path / "page.html"
    assert run(capsys, "explain", named["residual"], named["image"], "--out", page)[0] == 0
    (item,) = items_of(page)
    assert [(block["kind"], "effect" in block) for block in item["blocks"]] == [("residual", True)]
    assert item["start"] is None


def test_a_table_of_mistakes_that_is_none_is_told(capsys, cgnl, tmp_path):
    fresh = shutil.copytree(cgnl, tmp_path / "run")
    (fresh / "evaluation").mkdir(exist_ok=True)
    table = fresh / "evaluation" / "predictions.csv"
    for text, sentence in (
        ("path,label\na.jpg,wren\n", f"{table} has no column class1; `cgnl evaluate"),
        ("path,label,class1,probability1\na.jpg,wren,tit,abc\n", f"{table}: could not convert string to float: 'abc'"),
    ):
        table.write_text(text)
        code, _, err = run(capsys, "explain", fresh, "--mistakes", "2", "--out", tmp_path / "page.html")
        assert (code, err.count("\n")) == (2, 1)
        assert sentence in err


def test_a_bad_image_among_good_ones_is_told(capsys, named, tmp_path):
    page = tmp_path / "page.html"
    code, out, err = run(capsys, "explain", named["birds"], named["bad"], named["image"], "--out", page)
    assert (code, out) == (2, f"written: {page}\n")
    assert err.startswith(f"cgnl: {named['bad']} ")
    assert err.count("\n") == 1
    assert [item["name"] for item in items_of(page)] == [named["image"].name]
    page.unlink()
    code, out, err = run(capsys, "explain", named["birds"], named["bad"], "--out", page)
    assert (code, out, err.count("\n"), page.exists()) == (2, "", 1, False)


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_figure_5_is_written_in_the_form_of_its_name(capsys, cgnl, image, tmp_path, suffix, magic):
    out = tmp_path / f"figure{suffix}"
    code, printed, _ = run(capsys, "explain", cgnl, image, "--figure", "5", "--at", "48,48", "--out", out)
    assert (code, printed) == (0, f"written: {out}\n")
    assert out.read_bytes().startswith(magic)


def test_figure_5_has_the_parts_of_a_data_set_that_knows_them(capsys, cgnl, nl, image, tmp_path):
    alone = shutil.copy(image, tmp_path / "alone.jpg")
    counts = []
    for file, beside in ((image, []), (alone, []), (alone, ["--beside", nl])):
        out = tmp_path / "figure.svg"
        assert run(capsys, "explain", cgnl, file, "--figure", "5", *beside, "--out", out)[0] == 0
        counts.append(num_axes(out))
    parts, without, with_nl = counts
    assert parts == without + 1
    assert with_nl > without


def test_figures_of_a_video(capsys, video_run, video, tmp_path):
    other = variant(video_run, tmp_path / "nl", network={"block": "nl"})

    def draw(number, *options):
        out = tmp_path / "figure.svg"
        code, _, err = run(capsys, "explain", video_run, video, "--figure", number, *options, "--out", out)
        assert code == 0, err
        return num_axes(out), out.read_text()

    for number in (1, 6):
        count, first = draw(number, "--at", "30,20,0")
        assert count >= 2, "one for each step in time"
        assert draw(number, "--at", "30,20,3")[1] != first
        assert draw(number, "--at", "30,20")[1] == first, "the reference is in the first frame that is shown"
    _, by_itself = draw(1)
    seen, traces = trace_file({"run": load_trained(video_run)}, video)
    block = traces["run"].blocks["layer3.0"]
    later = replace(block, g=block.g * torch.tensor([1.0, 10.0])[:, None, None])
    assert strongest_position(later, seen)[2] == 3, "the middle of the last of two steps"
    x, y, frame = strongest_position(later, seen, first_step=True)
    assert frame == 1
    assert draw(1, "--at", f"{x},{y},{frame}")[1] == by_itself
    assert draw(6, "--at", "30,20", "--beside", other)[0] >= count + 2


def test_the_page_of_a_video_holds_its_clip(capsys, video_run, video, tmp_path):
    page = tmp_path / "page.html"
    assert run(capsys, "explain", video_run, video, "--at", "30,20,3", "--out", page)[0] == 0
    (item,) = items_of(page)
    assert (len(item["frames"]), item["width"], item["height"]) == (4, 32, 32)
    x, y = 30 * 36 / 48 - round((48 - 32) / 2), 20 * 36 / 48 - round((36 - 32) / 2)
    assert item["start"] == pytest.approx([3.5 / 4, y / 32, x / 32])
    # without --at, the middle of the strongest step of two is the second or the fourth frame
    assert run(capsys, "explain", video_run, video, "--out", page)[0] == 0
    trained = load_trained(video_run)
    (block,) = trace_blocks(trained.network, see(trained, video).x).blocks.values()
    step = int(block.g.abs().flatten(2).amax((0, 2)).argmax())
    assert int(items_of(page)[0]["start"][0] * block.shape[0]) == step


def test_a_detector_has_maps_without_predictions(capsys, detector, scene, tmp_path):
    page, out = tmp_path / "page.html", tmp_path / "figure.png"
    assert run(capsys, "explain", detector, scene, "--out", page)[0] == 0
    (item,) = items_of(page)
    assert item["predictions"] == {}
    assert "effect" not in item["blocks"][0]
    assert (item["width"], item["height"]) == (96, 96), "72 x 90 pixels, filled up"
    assert run(capsys, "explain", detector, scene, "--figure", "5", "--out", out)[0] == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    code, _, err = run(capsys, "explain", detector, "--mistakes", "1")
    assert code == 2
    assert "is a detector" in err


def test_the_strongest_position_lies_in_the_image(detector, video_run, scene, video, tmp_path):
    # a pooling leaves out an odd row and column
    changes = {"network": {"block": "nl"}, "data": {"size": 48, "resize": 48}}
    odd = load_trained(variant(video_run, tmp_path / "odd", **changes))
    seen = see(odd, video)
    (block,) = trace_blocks(odd.network, seen.x).blocks.values()
    assert (block.shape[1:], block.g.shape[2:]) == ((3, 3), (1, 1))
    x, y, frame = strongest_position(block, seen)
    assert seen.view.position(x, y, (3, 3)) == (0, 0)
    assert frame == (1, 3)[int(block.g.abs().amax((0, 2, 3)).argmax())]
    # a detector's input is filled up, and g may be strongest there
    trained = load_trained(detector)
    seen = see(trained, scene)
    block = next(iter(trace_blocks(trained.network, seen.x).blocks.values()))
    for corner in ((0, -1), (-1, 0), (-1, -1)):
        block.g[:, corner[0], corner[1]] = 1e6
    x, y, _ = strongest_position(block, seen)
    assert 0 <= x < 80
    assert 0 <= y < 64


@pytest.mark.slow
def test_mistakes_are_those_of_the_last_evaluation(capsys, cgnl, tmp_path):
    fresh = shutil.copytree(cgnl, tmp_path / "run")
    page = tmp_path / "page.html"
    code, _, err = run(capsys, "explain", fresh, "--mistakes", "2", "--out", page)
    assert code == 2
    assert f"`cgnl evaluate {fresh}` writes it" in err
    assert run(capsys, "evaluate", fresh)[0] == 0
    assert run(capsys, "explain", fresh, "--mistakes", "2", "--out", page)[0] == 0
    rows = [line.split(",") for line in (fresh / "evaluation" / "predictions.csv").read_text().splitlines()]
    names = rows[0]
    wrong = [row for line in rows[1:] if (row := dict(zip(names, line, strict=True)))["label"] != row["class1"]]
    assert wrong, "a network of one step is wrong for one of two species"
    wrong.sort(key=lambda row: float(row["probability1"]), reverse=True)
    items = items_of(page)
    assert [item["truth"] for item in items] == [row["label"] for row in wrong[:2]]
    for item, row in zip(items, wrong, strict=False):
        assert row["path"].endswith(item["name"])
        name, probability = item["predictions"]["CGNL"][0]
        assert name == row["class1"] != item["truth"]
        assert probability == pytest.approx(float(row["probability1"]), abs=1e-3)


def test_score_prints_a_table_and_writes_a_picture_and_its_numbers(capsys, cgnl, nl, tmp_path):
    out = tmp_path / "score.png"
    code, printed, err = run(capsys, "explain", cgnl, "--beside", nl, "--score", "--limit", "2", "--out", out)
    assert code == 0, err
    assert out.read_bytes().startswith(b"\x89PNG")
    scores = json.loads(out.with_suffix(".json").read_text())
    assert list(scores) == ["CGNL", "NL"]
    assert [score["kind"] for score in scores.values()] == ["cgnl", "nl"]
    assert 1 <= scores["CGNL"]["images"] <= 2
    block = next(row for row in scores["NL"]["rows"] if row["by"] == "block")
    assert f"{100 * block['coverage']['mean']:.1f}" in printed
    assert printed.endswith(f"written: {out}, {out.with_suffix('.json')}\n")


MISTAKES = {
    "no inputs": (["birds"], "inputs must name at least one image or video"),
    "at malformed": (["birds", "image", "--at", "left"], r"at \(left\) must be x,y or x,y,frame"),
    "at too long": (["birds", "image", "--at", "1,2,3,4"], r"at \(1,2,3,4\) must be x,y or x,y,frame"),
    "at half a frame": (["birds", "image", "--at", "1,2,inf"], r"at \(1,2,inf\) must be x,y or x,y,frame"),
    "outside the crop": (["birds", "image", "--at", "1,48"], r"must lie in what the network sees .* x from 5\."),
    "no such frame": (["actions", "video", "--at", "30,20,4"], r"at \(30,20,4\) must name a frame from 0 to 3"),
    "no such block": (
        ["birds", "image", "--figure", "5", "--block", "layer9"],
        r"block \(layer9\) must be one of layer3\.0",
    ),
    "no block": (["plain", "image"], "there is nothing to explain"),
    "no block to draw": (["plain", "image", "--figure", "5"], "the network plain has no block"),
    "a residual block to draw": (["residual", "image", "--figure", "5"], "residual block after layer3.0"),
    "figure 5 of a video": (["actions", "video", "--figure", "5"], "figure 5 shows an image, and .* is a video"),
    "two inputs": (["birds", "image", "bad", "--figure", "5"], "a figure shows one image or video, not 2"),
    "a bad image": (["birds", "bad", "--figure", "5"], r"bad\.jpg "),
    "no such image": (["birds", "nothing.jpg"], r"nothing\.jpg "),
    "a folder": (["birds", "tmp"], "is not a regular file"),
    "no video": (["actions", "bad"], r"bad\.jpg "),
    "no figure": (
        ["birds", "image", "--figure", "5", "--out", "f.gif"],
        r"f\.gif\) must end in \.png or \.svg or \.pdf",
    ),
    "no page": (["birds", "image", "--out", "page.png"], r"out \(page\.png\) must end in \.html"),
    "no block to score beside": (["birds", "--score", "--beside", "plain"], "the maps of a block, and .* has none"),
    "no picture": (["birds", "--score", "--out", "score.txt"], r"score\.txt\) must end in \.png"),
    "of another task": (["birds", "image", "--beside", "actions"], "must hold a network for the same kind of input"),
    "of another size": (["birds", "image", "--beside", "larger"], "inputs of the same size"),
    "of other frames": (["actions", "video", "--beside", "slower"], "on the same frames"),
    "fewer than none": (["birds", "--mistakes=-1"], r"mistakes \(-1\) must be at least 0"),
    "a score of videos": (["actions", "--score"], "parts are scored for image classifiers"),
    "a score without parts": (["birds", "--score", "--data", "tmp"], r"classes\.txt does not exist"),
    "a residual block to score beside": (
        ["birds", "--score", "--beside", "residual"],
        "has a residual block at layer3",
    ),
    "a seed below zero": (["birds", "--score", "--seed", "-1"], r"seed \(-1\) must be at least 0"),
    "a seed without score": (["birds", "image", "--seed", "1"], "--seed does nothing without --score"),
    "an empty at": (["birds", "image", "--at", ""], r"at \(\) must be x,y or x,y,frame"),
    "a frame of an image": (["birds", "image", "--at", "40,40,1"], "must be x,y for an image, which has no frames"),
    "a folder to write": (["birds", "image", "--out", "tmp"], r"out \(.*\) must be a file, not a folder"),
    "the same beside": (["birds", "image", "--beside", "birds"], "must be another network than the first"),
    "a figure of a score": (["birds", "--score", "--figure", "5"], "--figure does nothing with --score"),
    "a channel of NL": (["nl", "image", "--figure", "5", "--channel", "3"], "--channel does nothing for a block"),
    "outputs that are not finite": (["broken", "image"], "gets an output from the network that is not finite"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_sentence(capsys, monkeypatch, named, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    arguments, sentence = MISTAKES[name]
    code, out, err = run(capsys, "explain", *(named.get(argument, argument) for argument in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("cgnl: ")
    assert err.count("\n") == 1
    assert re.search(sentence, err), err
    assert not list(tmp_path.iterdir())


def difference(picture, x, trained):
    """The largest difference between a picture and a network's input [3, H, W], in steps of 256."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (trained.mean, trained.std))
    return np.abs(np.asarray(picture) - (x * std + mean).permute(1, 2, 0).numpy() * 255).max()


def test_seen_frames_are_what_goes_into_the_network(cgnl, video_run, image, video):
    trained = load_trained(cgnl)
    seen = see(trained, image)
    (picture,) = seen.seen_frames()
    assert picture.size == (SIZE, SIZE)
    assert difference(picture, seen.x[0], trained) <= ROUNDING
    trained = load_trained(video_run)
    seen = see(trained, video)
    pictures = seen.seen_frames()
    assert len(pictures) == seen.x.shape[2] == 4
    for k, picture in enumerate(pictures):
        assert picture.size == (32, 32)
        assert difference(picture, seen.x[0, :, k], trained) <= ROUNDING


def test_seen_frames_of_a_detector_are_resized_and_filled_up(detector, scene):
    trained = load_trained(detector)
    seen = see(trained, scene)
    (picture,) = seen.seen_frames()
    own = trained.network.transform
    assert isinstance(own, GeneralizedRCNNTransform)
    image = torch.from_numpy(np.array(open_image(scene))).permute(2, 0, 1) / 255
    batch, _ = own([image])
    height, width = batch.image_sizes[0]
    assert (height, width) == (72, 90)
    assert picture.size == tuple(batch.tensors.shape[:1:-1]) == (96, 96)
    whole = Image.new("RGB", picture.size)
    whole.paste(picture.crop((0, 0, width, height)))
    assert whole == picture, "nothing but zeros around"
    assert difference(picture.crop((0, 0, width, height)), batch.tensors[0, :, :height, :width], trained) <= ROUNDING
