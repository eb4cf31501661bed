"""`cgnl convert` as a user meets it, and what someone without cgnl does with the file."""

import json
import re
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
from cgnl.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from cgnl.networks.image import resnet18
from cgnl.recipes import RECIPES
from cgnl.settings.reading import override, to_dict
from cgnl.tasks import build_network, load_trained, predict, smoke
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
