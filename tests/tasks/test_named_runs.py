"""Networks by name through a whole run: trained, killed, resumed, used and exported; and whose code may run."""

import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from cgnl.cli import main
from cgnl.insertion import inserted_blocks
from cgnl.networks.libraries import inputs_of
from cgnl.recipes import RECIPES
from cgnl.settings.reading import override
from cgnl.tasks import evaluate, load_trained, smoke, task_of
from cgnl.tasks import train as run_recipe
from cgnl.toy.birds import draw_birds
from processes import Command

NAMES = ["timm:test_convnext", "torchvision:regnet_y_400mf", "torchvision:swin_t", "timm:test_vit"]
# tests/networks/test_named.py exports others, and `convert` treats every network by name alike
EXPORTED = ["timm:test_vit"]
FROZEN = {"timm:test_convnext": "stem", "torchvision:regnet_y_400mf": "stem", "torchvision:swin_t": "features.0"}
SETTINGS = (
    "--data.size=64 --data.resize=72 --data.batch-size=4 --data.workers=0 --optimizer.name=adamw --optimizer.lr=0.001 "
    "--optimizer.head-lr-factor=10 --optimizer.block-lr-factor=2 --trainer.max-epochs=2 --trainer.max-steps=5 "
    "--trainer.ema-decay=0.9 --trainer.checkpoint-every-n-steps=2 --trainer.log-every-n-steps=1"
).split()
OWN = """
from pathlib import Path
from torch import nn
(Path(__file__).parent / "ran").touch()
def make_network(num_classes):
    body = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))
"""


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("named") / "birds"
    draw_birds(folder, num_species=4, train_images=4, test_images=1, size=80)
    return folder


def training(birds: Path, run: Path, name: str, *options: str) -> list[str]:
    """Return the arguments of a command that trains a network by name."""
    frozen = [f"--trainer.freeze={FROZEN[name]}"] if name in FROZEN else []
    given = [f"--network.arch={name}", f"--data.root={birds}", f"--run={run}", *frozen, *SETTINGS, *options]
    return ["train", "birds-resnet18-cgnl", *given]


def train(birds: Path, run: Path, name: str, *options: str) -> Command:
    return Command(*training(birds, run, name, *options), folder=run.parent)


def finish(process: Command) -> tuple[int | None, str]:
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def parts(run: Path) -> tuple[dict[str, torch.Tensor], object]:
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    return checkpoint["state_dict"], checkpoint["optimizer_states"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_any_network_is_killed_resumed_used_and_exported(name, birds, tmp_path, capsys):
    main(training(birds, tmp_path / "unbroken", name))
    assert capsys.readouterr().out.splitlines()[0] == "start weights: none (random)"

    run = tmp_path / "run"
    process = train(birds, run, name)
    while not (run / "steps.csv").exists() or len((run / "steps.csv").read_text().splitlines()) < 3:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL
    main(training(birds, run, name, "--resume"))
    (state, optimizer), (expected, expected_optimizer) = parts(run), parts(tmp_path / "unbroken")
    assert state.keys() == expected.keys()
    assert [key for key in state if not torch.equal(state[key], expected[key])] == []
    torch.testing.assert_close(optimizer, expected_optimizer, rtol=0, atol=0, equal_nan=True)

    rates = {group["lr"] for group in optimizer[0]["param_groups"]}
    assert len(rates) == 3, "those of the network, of its block and of its classifier"
    trained = load_trained(run)
    assert len(inserted_blocks(trained.network)) == 1
    assert (trained.mean, trained.std) == (inputs_of(name).mean, inputs_of(name).std)

    image = next(birds.rglob("*.jpg"))
    page, figure = tmp_path / ("page.png" if "vit" in name else "page.html"), ("--figure", 5) * ("vit" in name)
    for arguments in (
        ("evaluate", run),
        ("predict", run, image),
        # tokens are drawn in figures alone
        ("explain", run, image, "--out", page, *figure),
        *([("convert", run, tmp_path / "network.onnx")] if name in EXPORTED else []),
    ):
        assert not main([str(argument) for argument in arguments]), capsys.readouterr().err
    assert page.stat().st_size > 10_000
    assert (tmp_path / "network.onnx").is_file() == (name in EXPORTED)


@pytest.fixture(scope="module")
def owned(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package and the run of its network, trained in a process of its own."""
    folder = tmp_path_factory.mktemp("owned")
    (folder / "owned.py").write_text(OWN)
    given = ("--network.places=3", "--trainer.max-steps=1", "--trainer.max-epochs=1")
    code, output = finish(train(birds, folder / "run", "owned.make_network", *given))
    assert code == 0, output
    return folder


def test_the_code_of_a_package_runs_only_where_this_command_names_it(owned, birds, tmp_path, monkeypatch, capsys):
    run, ran = owned / "run", owned / "ran"
    ran.unlink()

    image = next(birds.rglob("*.jpg"))
    recipe = tmp_path / "stranger.yaml"
    recipe.write_text(yaml.safe_dump({"recipe": "birds-resnet18-cgnl", "network": {"arch": "owned.make_network"}}))
    commands = (
        ("predict", run, image),
        ("evaluate", run),
        ("explain", run / "last.ckpt", image, "--out", tmp_path / "page.html"),
        ("train", recipe, f"--data.root={birds}", f"--run={tmp_path / 'new'}"),
        ("train", run, f"--data.root={birds}", f"--run={run}", "--resume"),
    )
    # where the package is found, as in a command of the user's
    monkeypatch.chdir(owned)
    monkeypatch.syspath_prepend(str(owned))
    for command in commands:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in command])
        assert stopped.value.code == 2
        output = "".join(capsys.readouterr())
        lines = output.strip().splitlines()
        assert len(lines) == 1, output
        assert "owned.make_network is code from another package" in lines[0]
        assert "--trust owned" in lines[0]
    assert not ran.exists()
    assert "owned" not in sys.modules

    code, output = finish(Command("predict", run, image, "--trust", "owned", folder=owned))
    assert code == 0, output
    assert ran.exists()


def test_a_checkpoint_is_trusted_in_python(owned, monkeypatch):
    monkeypatch.chdir(owned)
    with pytest.raises(ValueError, match=r"trust=\('owned',\)"):
        load_trained(owned / "run")
    assert "owned" not in sys.modules
    network = load_trained(owned / "run", trust=("owned",)).network
    assert isinstance(network, torch.nn.Sequential)
    del sys.modules["owned"]


@pytest.mark.parametrize(
    ("name", "arch", "place"),
    [
        ("actions-resnet18-cgnl", "torchvision:mc3_18", "layer4.0"),
        ("flock-maskrcnn-resnet18-cgnl", "torchvision:mobilenet_v3_small", "backbone.body.features.7"),
    ],
)
@pytest.mark.slow
def test_videos_and_detection_take_networks_by_name(name, arch, place, tmp_path, capsys):
    network = {"arch": arch, "neck": "fpn"} if "flock" in name else {"arch": arch, "temporal_strides": [2, 2, 2]}
    recipe = override(RECIPES[name].make(), {"network": network}, "test")
    root = tmp_path / "drawn"
    task_of(recipe).draw(root)
    run_recipe(smoke(recipe, root), tmp_path / "run", progress=False)
    assert capsys.readouterr().out.startswith("start weights: none (random)\n")
    trained = load_trained(tmp_path / "run")
    assert list(inserted_blocks(trained.network)) == [place]
    result = evaluate(trained, trained.recipe.data)
    assert set(result.scores) == set(task_of(recipe).scores)
