"""`cgnl convert` as a user meets it, and what someone without cgnl does with the file."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_cli import run
from torch import nn

import tolerances
from cgnl.cli import main
from cgnl.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from cgnl.networks.image import resnet18
from cgnl.recipes import RECIPES
from cgnl.settings.reading import override, to_dict
from cgnl.tasks import build_network, load_trained, predict, smoke
from cgnl.toy.actions import draw_actions
from cgnl.training.trained import FORMAT

DEPLOYMENT = Path(__file__).parents[2] / "docs" / "deployment.md"
CLASSES = ["Wren", "Möwe", "Great tit"]


def code_of(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def write_run(folder, recipe_name, **changes):
    """A run of a recipe's smoke variant, untrained, whose blocks are not the identity."""
    recipe = override(smoke(RECIPES[recipe_name].make(), folder / "data"), changes, "test")
    torch.manual_seed(0)
    state = build_network(recipe, len(CLASSES)).state_dict()
    for key, value in state.items():
        if key.endswith("inserted_block.norm.weight"):
            value.fill_(0.5)
    entry = {
        "format": FORMAT,
        "recipe": to_dict(recipe),
        "name": recipe_name,
        "classes": CLASSES,
        "epoch": 1,
        "step": 2,
    }
    entry |= {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "epoch": 1, "step": 2}
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"network.{key}": value for key, value in state.items()}
    torch.save({"cgnl": entry, "state_dict": state}, folder / "last.ckpt")
    return folder


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("birds"), "birds-resnet18-cgnl")


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    noise = np.random.default_rng(0).integers(0, 256, size=(9, 12, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("photo") / "bird.jpg"
    Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC).save(path, quality=95)
    return path


def test_a_run_as_onnx_says_all_that_its_user_needs(capsys, birds, photo, tmp_path, monkeypatch):
    code, out, _ = run(capsys, "convert", birds, tmp_path / "model.onnx")
    assert code == 0
    assert "model.onnx: opset 18, free axes batch, height, width\n" in out
    assert float(re.search(r"differs from PyTorch by (\S+) of the largest", out)[1]) < 1e-5
    about = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert about["recipe"] == "birds-resnet18-cgnl"
    assert json.loads(about["classes"]) == CLASSES
    assert json.loads(about["mean"]) == [0.4, 0.5, 0.6]

    (tmp_path / "bird.jpg").write_bytes(photo.read_bytes())
    monkeypatch.chdir(tmp_path)
    lines = next(block for block in code_of(DEPLOYMENT) if "onnxruntime" in block)
    assert not re.search(r"\b(cgnl|torch)\b", lines)
    namespace = {}
    exec(compile(lines, str(DEPLOYMENT), "exec"), namespace)
    expected = predict(load_trained(birds), photo, top=3)
    found = dict(zip(namespace["classes"], namespace["probabilities"], strict=True))
    for name, probability in expected:
        # Pillow and torchvision resize alike but for rounding
        assert found[name] == pytest.approx(probability, abs=2e-4)
    printed = capsys.readouterr().out
    assert expected[0][0] in printed


def saved(folder, name, array=None, mode=None, **options):
    """An image file of smooth noise, 120 x 160 pixels, made so that the image of ``array`` or ``mode`` is in it."""
    noise = np.random.default_rng(0).integers(0, 256, size=(9, 12, 4), dtype=np.uint8)
    image = Image.fromarray(noise, "RGBA").resize((160, 120), Image.Resampling.BICUBIC)
    if array is not None:
        image = Image.fromarray(array(np.asarray(image)))
    elif mode is not None:
        image = image.convert("RGB").quantize(40) if mode == "P" else image.convert(mode)
    image.save(folder / name, **options)
    return folder / name


def kinds_of_images(folder):
    """One file of each kind; those that the page's example reads, and the others."""
    turned = Image.Exif()
    turned[0x0112] = 6
    plain = [
        saved(folder, "rgb.jpg", mode="RGB", quality=95),
        saved(folder, "rgb.png", mode="RGB"),
        saved(folder, "rgb.bmp", mode="RGB"),
        saved(folder, "rgb.webp", mode="RGB", lossless=True),
        saved(folder, "grey.png", mode="L"),
        saved(folder, "palette.png", mode="P"),
        saved(folder, "cmyk.jpg", mode="CMYK"),
        saved(folder, "turned.jpg", mode="RGB", exif=turned),
    ]
    others = [
        saved(folder, "grey16.png", array=lambda pixels: pixels[:, :, 0].astype(np.uint16) * 257),
        saved(folder, "rgba.png"),
        saved(folder, "rgba.webp", lossless=True),
        saved(folder, "grey_alpha.png", mode="LA"),
        saved(folder, "palette_alpha.png", mode="P", transparency=3),
        saved(folder, "rgb_key.png", mode="RGB", transparency=(0, 0, 0)),
    ]
    return plain, others


@pytest.fixture(scope="module")
def exported(birds, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    main(["convert", str(birds), str(path)])
    return path


def predicted(capsys, model, *files):
    code, out, err = run(capsys, "predict", model, *files, "--json", "--top=3")
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["path"] for row in rows] == [*map(str, files)]
    return [{best["class"]: best["probability"] for best in row["top"]} for row in rows]


def test_an_onnx_file_predicts_as_its_run(capsys, birds, exported, tmp_path):
    files = [file for kind in kinds_of_images(tmp_path) for file in kind]
    of_run, of_file = (predicted(capsys, model, *files) for model in (birds, exported))
    for file, expected, found in zip(files, of_run, of_file, strict=True):
        assert found == pytest.approx(expected, abs=1e-5), file.name
    assert len({tuple(each.values()) for each in of_run}) > 8
    outputs = [run(capsys, "predict", model, files[0])[1] for model in (birds, exported)]
    assert outputs[0] == outputs[1]
    code, _, err = run(capsys, "predict", exported, files[0], "--timeline=t.csv")
    assert (code, err) == (2, f"cgnl: timeline (t.csv) does nothing here: {exported} holds an image classifier\n")


def test_the_example_of_the_page_reads_the_files_that_it_names(capsys, birds, exported, tmp_path, monkeypatch):
    plain, others = kinds_of_images(tmp_path)
    shutil.copy(exported, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    lines = next(block for block in code_of(DEPLOYMENT) if "onnxruntime" in block)
    for file, expected in zip(plain, predicted(capsys, birds, *plain), strict=True):
        namespace = {}
        exec(compile(lines.replace("bird.jpg", file.name), str(DEPLOYMENT), "exec"), namespace)
        found = dict(zip(namespace["classes"], namespace["probabilities"].tolist(), strict=True))
        assert found == pytest.approx(expected, abs=2e-4), file.name
    for file in others:
        with pytest.raises(AssertionError, match="16-bit and transparent"):
            exec(compile(lines.replace("bird.jpg", file.name), str(DEPLOYMENT), "exec"), {})


def foreign(path, **metadata):
    """An ONNX file of another program: the mean of an image's pixels, for each channel."""
    value = onnx.helper.make_tensor_value_info
    shapes = (("x", [None, 3, None, None]), ("y", [None, 3]))
    given = [value(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes]
    node = onnx.helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)
    opset = [onnx.helper.make_opsetid("", 13)]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", given[:1], given[1:]), opset_imports=opset)
    model.ir_version = 8
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


OURS = {
    "classes": '["a", "b", "c"]',
    "mean": "[0, 0, 0]",
    "std": "[1, 1, 1]",
    "interpolation": "bilinear",
    "settings": '{"task": "image", "data": {"size": 32, "resize": 32}}',
}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "does not say its classes, mean, std, interpolation, settings: only files that this version's"),
        ({**OURS, "classes": '["a", "b"]'}, "it names 2 classes and has 3 outputs"),
        ({**OURS, "mean": "0.5"}, "has broken metadata"),
        ({**OURS, "std": "[1, 1"}, "has broken metadata"),
        ({**OURS, "interpolation": "best"}, "has broken metadata: 'best' is not a valid"),
        ({**OURS, "settings": '{"task": "sound"}'}, "task must be one of"),
        ({**OURS, "settings": '{"task": "image", "data": {"size": "big"}}'}, "data.size"),
    ],
)
def test_an_onnx_file_of_another_program_is_refused(capsys, photo, tmp_path, metadata, message):
    path = foreign(tmp_path / "other.onnx", **metadata)
    code, out, err = run(capsys, "predict", path, photo)
    assert (code, out) == (2, "")
    assert err.startswith(f"cgnl: {path} ")
    assert message in err
    assert err.count("\n") == 1
    code, _, err = run(capsys, "predict", foreign(path, **OURS), photo)
    assert code == 0, err


def test_an_onnx_file_says_how_images_are_resized(capsys, photo, tmp_path):
    network, settings = tmp_path / "other.onnx", '{"task": "image", "data": {"size": 24, "resize": 24}}'
    foreign(network, **OURS | {"settings": settings})
    found = predicted(capsys, network, photo)
    foreign(network, **OURS | {"settings": settings, "interpolation": "nearest"})
    assert predicted(capsys, network, photo) != found


def test_what_is_no_onnx_file_is_refused(capsys, birds, exported, photo, tmp_path, monkeypatch):
    (tmp_path / "text.onnx").write_text("not a network")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "cut.onnx").write_bytes(exported.read_bytes()[:-1000])
    for name, message in (
        ("text", "cannot be read as an ONNX file"),
        ("cut", "cannot be read as an ONNX file"),
        ("folder", "is not a file"),
        ("none", "does not exist"),
    ):
        code, _, err = run(capsys, "predict", tmp_path / f"{name}.onnx", photo)
        assert code == 2
        assert err.startswith(f"cgnl: {tmp_path / name}.onnx {message}")
        assert err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "cgnl.networks.exported")
    code, _, err = run(capsys, "predict", exported, photo)
    assert (code, err) == (2, "cgnl: a network in an ONNX file needs onnxruntime: pip install 'cgnl[export]'\n")


def test_the_file_holds_no_places_of_the_data(exported, birds):
    about = {entry.key: entry.value for entry in onnx.load(exported).metadata_props}
    assert str(birds) not in json.dumps(about)
    assert json.loads(about["settings"])["data"]["size"] == 64


@pytest.mark.slow
def test_a_released_checkpoint_goes_by_way_of_safetensors(capsys, tmp_path):
    network = resnet18("cgnl", num_classes=4, groups=4)
    nn.init.constant_(network.layer3[0].inserted_block.norm.weight, 0.5)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    code, out, _ = run(capsys, "convert", tmp_path / "net.pth", tmp_path / "net.safetensors", "--arch", "resnet18")
    assert code == 0
    assert "block=cgnl" in out
    code, _, _ = run(capsys, "convert", tmp_path / "net.safetensors", tmp_path / "net.onnx", "--opset", "20")
    assert code == 0
    model = onnx.load(tmp_path / "net.onnx")
    assert model.opset_import[0].version == 20
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about == {"arch": "resnet18", "block": "cgnl", "mean": str([*IMAGENET_MEAN]), "std": str([*IMAGENET_STD])}
    x = torch.randn(1, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    (logits,) = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"input": x.numpy()})
    with torch.no_grad():
        expected = network.eval()(x)
    assert (torch.from_numpy(logits) - expected).norm() < tolerances.FLOAT32_OTHER_KERNELS * expected.norm()


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("model.pt", [], "model.pt) must end in .onnx or .safetensors"),
        ("model.onnx", ["--arch", "resnet18"], "arch (resnet18) is for a .safetensors target"),
        ("model.onnx", ["--block", "nl"], "block (nl) is for a .safetensors target"),
        ("model.onnx", ["--opset", "9"], "opset (9) must be between 18 and 23"),
        ("model.safetensors", ["--opset", "18"], "opset (18) is for an .onnx target"),
    ],
)
def test_targets_and_options_that_do_not_fit_are_refused(capsys, birds, tmp_path, target, options, message):
    code, _, err = run(capsys, "convert", birds, tmp_path / target, *options)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_sources_that_say_no_network_are_refused(capsys, tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    code, _, err = run(capsys, "convert", tmp_path / "other.safetensors", tmp_path / "model.onnx")
    assert code == 2
    assert "other.safetensors does not say which network it holds" in err
    detector = write_run(tmp_path / "detector", "flock-maskrcnn-resnet18-cgnl")
    code, _, err = run(capsys, "convert", detector, tmp_path / "model.onnx")
    assert code == 2
    assert "detector) holds a detector, and PyTorch's exporter" in err
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("head", ["average", "fully_convolutional"])
def test_a_run_of_videos_as_onnx(capsys, tmp_path, head):
    folder = write_run(tmp_path / "run", "actions-resnet18-cgnl", network={"head": head})
    code, out, _ = run(capsys, "convert", folder, tmp_path / "model.onnx")
    assert code == 0
    assert f"free axes batch, time{', height, width' if head == 'average' else ''}\n" in out
    draw_actions(tmp_path / "drawn", num_classes=2, groups=3, clips_per_group=1, size=(96, 72))
    video = next((tmp_path / "drawn").rglob("*.avi"))
    of_run, of_file = (predicted(capsys, model, video) for model in (folder, tmp_path / "model.onnx"))
    assert of_file == [pytest.approx(of_run[0], abs=1e-5)]
    lines = []
    for model in (folder, tmp_path / "model.onnx"):
        assert run(capsys, "predict", model, video, f"--timeline={tmp_path / 't.csv'}")[0] == 0
        lines.append((tmp_path / "t.csv").read_text().splitlines())
    assert len(lines[0]) == len(lines[1]) > 1
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    about = session.get_modelmeta().custom_metadata_map
    assert {"num_frames": "16", "frame_step": "4", "size": "64"}.items() <= about.items()
    network = load_trained(folder).network
    for shape in ((1, 3, 9, 64, 64), (3, 3, 18, *((64, 64) if head == "fully_convolutional" else (33, 97)))):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        (logits,) = session.run(None, {"input": x.numpy()})
        with torch.no_grad():
            expected = network(x)
        assert (torch.from_numpy(logits) - expected).norm() < tolerances.FLOAT32_OTHER_KERNELS * expected.norm()
