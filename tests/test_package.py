"""The wheel is whole, and its core needs PyTorch alone."""

import contextlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import cgnl

ROOT = Path(__file__).parent.parent


def test_public_names_exist():
    for name in cgnl.__all__:
        assert getattr(cgnl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'CGNL4d'"):
        _ = cgnl.CGNL4d


def test_version_is_one():
    assert f'version = "{cgnl.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_messages_name_extras_that_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for path in [*(ROOT / "src").rglob("*.py"), *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        named = re.findall(r"cgnl\[([\w,]+)\]", path.read_text())
        assert {extra for group in named for extra in group.split(",")} <= extras.keys(), path


def test_help_needs_no_torch():
    code = "import sys; sys.argv = ['cgnl', '--help']; import cgnl.cli\ntry: cgnl.cli.main()\nexcept SystemExit: pass\n"
    code += "heavy = {'torch', 'lightning', 'torchvision', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout


def test_images_need_no_decoder_of_videos_and_a_video_command_names_its_extra(tmp_path):
    code = (
        "import sys; sys.modules['av'] = None; "
        "import cgnl.cli.demo, cgnl.cli.demo.birds, cgnl.data.checking, cgnl.recipes, cgnl.training.run; "
        "from cgnl.tasks import evaluate, load_trained, predict, predict_timeline, train; "
        "from cgnl.training import ImageData; print('imported', flush=True); "
        "import cgnl.cli; cgnl.cli.main()"
    )
    command = ["train", "actions-resnet18", f"--data.root={tmp_path}", f"--run={tmp_path / 'run'}"]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert done.stdout == "imported\n", done.stderr
    assert done.returncode == 2
    assert done.stderr == "cgnl: cgnl.data.videos needs av: pip install 'cgnl[video]'\n"


def test_constraints_pin_every_dependency():
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pinned = {name.lower().replace("_", "-") for name in pinned}
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    needed = {re.split(r"[>=\[]", line)[0].lower() for lines in lists for line in lines} - {"cgnl"}
    assert {"torchvision", "lightning", "pytest"} <= needed
    assert needed - pinned == set()


def test_pre_commit_runs_what_ci_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "mypy"]


def metadata_of(name: str) -> importlib.metadata.Distribution:
    return importlib.metadata.distribution(name)


def needed_by(name: str, found: set[str] | None = None) -> set[str]:
    """The installed distributions that one needs, itself included, by its metadata."""
    found = set() if found is None else found
    if name not in found:
        found.add(name)
        for line in metadata_of(name).requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                for extra in ("", *requirement.extras):
                    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                        needed_by(requirement.name, found)
                    if extra:
                        for more in metadata_of(requirement.name).requires or []:
                            wanted = Requirement(more)
                            if wanted.marker is not None and wanted.marker.evaluate({"extra": extra}):
                                needed_by(wanted.name, found)
    return found


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment_with_torch_alone(tmp_path):
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".venv", ".git", "*.egg-info", "__pycache__", "build")
    shutil.copytree(ROOT, source, ignore=ignored)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", source],
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert {"cgnl/py.typed", "cgnl/ops/naive.py", "cgnl/toy/__init__.py", "cgnl/cli/__init__.py"} <= names
    assert not any(name.startswith(("tests/", "studies/")) for name in names)
    core = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra" not in line]
    assert core == ["Requires-Dist: torch>=2.11"]

    # A clean environment: the wheel, and links to PyTorch and to what PyTorch's own metadata asks for.
    clean = tmp_path / "clean"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(clean)
    for name in needed_by("torch"):
        for top in {Path(file).parts[0] for file in metadata_of(name).files if Path(file).parts[0] != ".."}:
            link = clean / top
            if not link.exists() and "__pycache__" not in top:
                link.symlink_to(Path(metadata_of(name).locate_file(top)).resolve())
    assert not {"torchvision", "lightning", "numpy", "PIL", "yaml"} & {path.name for path in clean.iterdir()}
    code = """
import importlib, torch, cgnl
host = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU())
x = torch.randn(2, 3, 8, 8)
before = host(x)
cgnl.insert_blocks(host, {"0": cgnl.CGNL2d}, example_input=x)
assert torch.equal(host(x), before)
host(x).sum().backward()
for room in ("networks.image", "data", "training", "recipes.registry"):
    try:
        importlib.import_module("cgnl." + room)
    except ImportError as error:
        assert "pip install 'cgnl[train]'" in str(error), error
    else:
        raise AssertionError(room + " was imported without its extra")
print(cgnl.__file__)
"""
    # -S leaves out this environment's site-packages
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(clean), "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]},
    )
    assert done.stdout == f"{clean / 'cgnl' / '__init__.py'}\n", done.stderr
