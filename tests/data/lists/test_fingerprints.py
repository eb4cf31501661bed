"""Fingerprints of lists: what is seen of a change, and in which words."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cgnl.data.lists import Sample, SampleList, changes, fingerprint

NAMES = {"0": "cat", "1": "dog"}


def make_list(root: Path, order=sorted) -> SampleList:
    """The files of two class folders, in one order or another."""
    paths = order(path for path in root.glob("*/*") if not path.name.startswith("."))
    samples = tuple(Sample(path, int(path.parent.name == "dog")) for path in paths)
    return SampleList(root, samples, ("cat", "dog"), "folders")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(0, 256, size=(200, 200, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{number}.png")
    return tmp_path / "set"


def change(root: Path, kind: str) -> None:
    first = root / "cat" / "0.png"
    if kind == "removed":
        first.unlink()
    elif kind == "added":
        shutil.copy(first, root / "cat" / "9.png")
    elif kind == "renamed":
        first.rename(root / "cat" / "zero.png")
    elif kind == "moved":
        first.rename(root / "dog" / "zero.png")
    elif kind == "one pixel":
        with Image.open(first) as image:
            image.putpixel((100, 100), (1, 2, 3))
            image.save(first)
    elif kind == "one byte of as many":
        content = bytearray(first.read_bytes())
        content[len(content) // 2] ^= 1
        first.write_bytes(content)


SAID = {
    "removed": ["1 removed (cat/0.png)"],
    "added": ["1 added (cat/9.png)"],
    "renamed": ["1 renamed (cat/0.png, now cat/zero.png)"],
    "moved": ["1 moved to another class (cat/0.png, now dog/zero.png, from cat to dog)"],
    "one pixel": ["1 with other contents (cat/0.png)"],
    "one byte of as many": ["1 with other contents (cat/0.png)"],
}


@pytest.mark.parametrize("kind", SAID)
def test_each_kind_of_change_is_named(root, kind):
    before = fingerprint(make_list(root))
    change(root, kind)
    assert changes(before, fingerprint(make_list(root)), NAMES) == SAID[kind]


def test_a_copy_in_another_place_is_the_same_data(root, tmp_path):
    before = fingerprint(make_list(root))
    copy = shutil.copytree(root, tmp_path / "elsewhere", copy_function=shutil.copy)
    os.utime(copy / "cat" / "0.png", (1, 1))
    assert fingerprint(make_list(copy)) == before
    (tmp_path / "link").symlink_to(copy)
    assert fingerprint(make_list(tmp_path / "link")) == before


def test_many_changes_are_counted_and_the_first_three_named(root):
    before = fingerprint(make_list(root))
    for path in [*root.glob("cat/*")]:
        path.unlink()
    (root / "dog" / "a new\nname.png").write_bytes(b"")
    assert changes(before, fingerprint(make_list(root)), NAMES) == [
        "4 removed (cat/0.png; cat/1.png; cat/2.png; ...)",
        "1 added (dog/a new\nname.png)",
    ]
    assert changes(before, b"", NAMES) == ["8 removed (cat/0.png; cat/1.png; cat/2.png; ...)"]
    assert changes(b"", b"", NAMES) == []


def test_labels_orders_and_repeats_of_a_list_count(root):
    samples = make_list(root)
    before = fingerprint(samples)
    swapped = SampleList(root, (Sample(samples.samples[0].path, 1), *samples.samples[1:]), samples.classes, "list")
    assert changes(before, fingerprint(swapped), NAMES) == ["1 moved to another class (cat/0.png, from cat to dog)"]
    turned = make_list(root, lambda paths: sorted(paths, reverse=True))
    assert changes(before, fingerprint(turned), NAMES) == ["their order"]
    twice = SampleList(root, (*samples.samples, samples.samples[0]), samples.classes, "list")
    assert changes(before, fingerprint(twice), NAMES) == ["1 added (cat/0.png (2))"]


def test_a_folder_of_frames_counts_by_its_names_and_some_of_its_files(root):
    videos = SampleList(root, (Sample(root / "cat", 0), Sample(root / "dog", 1)), ("cat", "dog"), "frame_list")
    before = fingerprint(videos)
    for kind in ("removed", "one pixel"):
        (root / "cat" / "0.png").write_bytes((root / "dog" / "0.png").read_bytes())
        assert changes(before, fingerprint(videos), NAMES) == ["1 with other contents (cat)"], kind
    (root / "cat" / "3.png").unlink()
    assert changes(before, fingerprint(videos), NAMES) == ["1 with other contents (cat)"]


def test_a_fingerprint_is_small(root):
    samples = make_list(root)
    many = SampleList(root, samples.samples * 100, samples.classes, "list")
    assert len(fingerprint(many)) < 20 * len(many)
