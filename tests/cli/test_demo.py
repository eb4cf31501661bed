"""The smallest demos run as a user starts them, and the report of each is one file that asks for nothing else."""

import re
from html.parser import HTMLParser

import pytest

from cgnl.cli import main
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
@pytest.mark.parametrize("option", [None, "--video", "--detection"])
def test_the_smallest_demo_writes_a_whole_report(option, tmp_path):
    out = tmp_path / "demo"
    main(["demo", *([option] if option else []), "--smallest", "--out", str(out)])
    text = (out / "report.html").read_text()
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert len(checker.images) >= 3 + (2 if option == "--detection" else 8)
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
        assert text.count("95 % interval") >= 1
        runs = ("base", "plain", "cgnl")
    for key in runs:
        assert (out / key / "last.ckpt").exists()


def test_report_pages_escape_what_they_show():
    page = report.page("<b>", [("a & b", report.paragraph("<script>") + report.table(("x",), [("<td>",)]))])
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;" in page
    assert "a &amp; b" in page
    assert "<td>&lt;td&gt;</td>" in page
