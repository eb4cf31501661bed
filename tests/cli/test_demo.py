"""The smallest demo runs, and its report is one file that asks for nothing else."""

import re
from html.parser import HTMLParser

import pytest

from cgnl.cli.demo import run_demo
from cgnl.cli.demo.actions import actions
from cgnl.cli.demo.birds import birds
from cgnl.explain import report


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
@pytest.mark.parametrize("subject", [birds, actions])
def test_the_smallest_demo_writes_a_whole_report(subject, tmp_path):
    path = run_demo(subject(smallest=True), tmp_path / "demo", smallest=True)
    text = path.read_text()
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert len(checker.images) >= 3 + 8
    for image in checker.images:
        assert image["src"].startswith("data:image/")
        assert image["alt"]
    assert not re.search(r"https?://|<script|<link", text)
    assert "Maps of the block" in text
    assert '<a href="explain.html">' in text
    assert "how strongly the reference element" in (path.parent / "explain.html").read_text()
    assert "its accuracies mean nothing" in text
    assert text.count("95 % interval") >= 1
    for key in ("base", "plain", "cgnl"):
        assert (tmp_path / "demo" / key / "last.ckpt").exists()


def test_report_pages_escape_what_they_show():
    page = report.page("<b>", [("a & b", report.paragraph("<script>") + report.table(("x",), [("<td>",)]))])
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;" in page
    assert "a &amp; b" in page
    assert "<td>&lt;td&gt;</td>" in page
