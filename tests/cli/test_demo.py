"""The smallest demos run as a user starts them, and the report of each is one file that asks for nothing else."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from cgnl.cli import main
from cgnl.cli.demo import _whole
from cgnl.compare.cut import Front
from cgnl.compare.plan import Protocol
from cgnl.compare.trials import _network
from cgnl.recipes import RECIPES
from cgnl.tasks.registry import task_of


class Checker(HTMLParser):
    def __init__(self):
        super().__init__()
        self.images, self.open = [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            self.images.append(attrs)
        elif tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.slow
@pytest.mark.parametrize("option", [None, "--video", "--detection"])
def test_the_smallest_demo_writes_a_whole_report(option, tmp_path):
    out = tmp_path / "demo"
    main(["demo", *([option] if option else []), "--smallest", "--out", str(out)])
    text = (out / "report.html").read_text()
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert len(checker.images) >= {None: 11, "--video": 8, "--detection": 5}[option]
    for image in checker.images:
        assert image["src"].startswith("data:image/")
        assert image["alt"]
    assert not re.search(r"https?://|<script|<link", text)
    assert "Maps of the block" in text
    assert '<a href="explain.html">' in text
    assert "how strongly the reference element" in (out / "explain.html").read_text()
    if option == "--detection":
        assert "its numbers mean nothing" in text
        runs = ("backbone", "detector")
    else:
        assert "its accuracies mean nothing" in text
        found = json.loads((out / "accuracies.json").read_text())["sets"]
        assert list(found) == (["actions"] if option else ["relations", "parts"])
        for kinds in found.values():
            assert list(kinds) == ["plain", "residual", "cgnl", "cgnl-correlation", "plain, twice as long"]
            assert all(0 <= kind["top1"] <= 100 and kind["seeds"] == 1 for kind in kinds.values())
        runs = ("base",)
    for key in runs:
        assert (out / key / "last.ckpt").exists()


@pytest.mark.parametrize(("name", "size"), [("birds-resnet18-cgnl", (64, 64)), ("actions-resnet18-cgnl", (8, 48, 48))])
def test_the_network_that_is_shown_computes_what_was_trained(name, size):
    """A network up to its block, and what a comparison trained on its maps, make one network."""
    recipe = RECIPES[name].make()
    task = task_of(recipe)

    def build():
        torch.manual_seed(0)
        return task.build_network(recipe, 5).eval()

    front = Front(build())
    x = torch.randn(2, 3, *size)
    maps = front(x)
    protocol = Protocol("", {}, ("none",), (0,), True, 1, 0.1, 0.0, 0.5, width=16)
    learned = _network(recipe, tuple(maps.shape[1:]), 5, protocol, 0)
    for parameter in learned.parameters():
        nn.init.normal_(parameter, std=0.1)
    learned.train()(maps)  # norms with statistics of their own
    expected = learned.eval()(maps)
    assert torch.allclose(_whole(build(), learned)(x), expected, atol=1e-5)
