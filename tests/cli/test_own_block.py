"""A block out of a package of one's own: trained by its name, and run later only where the user trusts it."""

import sys
import textwrap

import pytest

from cgnl.cli import main
from cgnl.recipes import RECIPES
from cgnl.settings.reading import override
from cgnl.tasks import load_trained
from processes import Command

MODULE = """
import torch

open("imported", "w").close()

class Shift(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x):
        return x + self.shift
"""
SMALL = ["--data.size=32", "--data.resize=36", "--data.batch-size=8", "--data.workers=0", "--trainer.max-epochs=1"]


def cgnl(folder, *arguments):
    """Return the output of a command that runs as a user's does, in a folder with a module of theirs."""
    (folder / "imported").unlink(missing_ok=True)
    process = Command(*arguments, folder=folder)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def run(class_folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "myblocks.py").write_text(textwrap.dedent(MODULE))
    options = [f"--data.root={class_folders}", "--data.format=auto", "--run=run", *SMALL]
    output = cgnl(folder, "train", "birds-resnet18-cgnl", "--network.block", "myblocks.Shift", *options)
    assert "last epoch: top-1" in output
    return folder


@pytest.fixture
def in_its_folder(run, monkeypatch):
    """This process where the module is found, as in a user's command, and without it again."""
    monkeypatch.chdir(run)
    monkeypatch.syspath_prepend(str(run))
    (run / "imported").unlink(missing_ok=True)
    yield run
    sys.modules.pop("myblocks", None)


def test_a_run_alone_does_not_run_the_package(run, in_its_folder, class_folders, capsys):
    image = class_folders / "val" / "class_0" / "0.jpg"
    for command in (["predict", "run", image], ["evaluate", "run"], ["explain", "run", image]):
        with pytest.raises(SystemExit) as done:
            main([str(argument) for argument in command])
        assert done.value.code == 2
        errors = capsys.readouterr().err
        assert errors.startswith("cgnl: myblocks.Shift is code from another package")
        assert "--trust myblocks" in errors
        assert not (run / "imported").exists()
    with pytest.raises(ValueError, match=r"myblocks\.Shift is code from another package"):
        load_trained(run / "run")


def test_a_trusted_run_predicts_and_shows_the_effect_of_its_block(run, in_its_folder, class_folders, capsys):
    image = class_folders / "val" / "class_0" / "0.jpg"
    assert cgnl(run, "predict", "run", image, "--trust", "myblocks").count("%") == 3
    main(["explain", "run", str(image), "--trust=myblocks", "--out", "page.html"])
    assert "block of your own (Shift)" in (run / "page.html").read_text()
    with pytest.raises(SystemExit):
        main(["explain", "run", str(image), "--trust=myblocks", "--figure=5"])
    errors = capsys.readouterr().err
    assert errors.endswith("has a block of your own (Shift) after layer3.0, which has no affinity to show\n")


def test_options_that_it_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"block\.groups is not an option of block myblocks\.Shift, which has: none"):
        override(RECIPES["birds-resnet18-cgnl"].make(), {"network": {"block": "myblocks.Shift", "groups": 8}}, "a file")
