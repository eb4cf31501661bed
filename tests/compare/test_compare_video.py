"""`cgnl compare` on drawn actions: cached maps of videos, and whole networks."""

import pytest
import torch

from cgnl.cli import main
from cgnl.compare.cut import Front, built
from cgnl.compare.maps import cached
from cgnl.compare.running import rows_of
from cgnl.recipes import RECIPES
from cgnl.settings.reading import override
from cgnl.tasks import load_trained
from cgnl.toy.actions import draw_actions
from cgnl.training.video_data import VideoData

DATA = {"format": "ucf101", "size": 32, "resize": 32, "num_frames": 8, "batch_size": 2, "workers": 0}
OPTIONS = [f"--data.{name.replace('_', '-')}={value}" for name, value in DATA.items()]


@pytest.fixture(scope="module")
def actions(tmp_path_factory):
    root = tmp_path_factory.mktemp("actions")
    draw_actions(root, num_classes=2, groups=3, clips_per_group=1, size=(48, 36))
    return root


def compare(root, out, *options):
    network = ["--network.arch=resnet18", "--network.weights=None", "--trainer.accelerator=cpu"]
    own = ["--blocks", "none", "cgnl", "--seeds=1", "--epochs=1"]
    main(["compare", "video", f"--data.root={root}", f"--out={out}", *OPTIONS, *network, *own, *options])
    rows = rows_of(out)
    assert [(row["block"], row["length"]) for row in rows] == [("none", "fixed"), ("none", "twice"), ("cgnl", "fixed")]
    page = (out / "report.html").read_text()
    assert "of 2 classes" in page
    assert "Blocks removed, and their sums changed" in page
    return rows


def recipe_of(root):
    values = {"network": {"arch": "resnet18", "weights": None}, "data": {**DATA, "root": str(root)}}
    return override(RECIPES["video"].make(), values, "here")


def test_videos_are_compared_on_cached_maps(actions, tmp_path):
    rows = compare(actions, tmp_path, "--freeze=below-block", "--width=8")
    assert rows[2]["diagnosis"]["s_cv"] > 0
    said = []
    recipe = recipe_of(actions)
    features = cached(recipe, tmp_path, say=said.append)
    assert not said
    front = Front(built(recipe, "cgnl", 2))
    with torch.no_grad():
        for split, maps in (("train", features.train), ("test", features.test)):
            for number, batch in enumerate(VideoData(recipe.data).tested_batches(split)):
                own = maps.of(slice(2 * number, 2 * number + 2))
                assert own.labels.tolist() == batch["label"].tolist()
                torch.testing.assert_close(own.maps[:, 0], front(batch["image"]), rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(own.maps[:, 1], front(batch["image"].flip(-1)), rtol=1e-4, atol=1e-5)


def test_whole_video_networks_are_compared(actions, tmp_path):
    rows = compare(actions, tmp_path)
    assert rows[2]["diagnosis"]["branch_over_x"] > 0
    network = load_trained(tmp_path / "runs" / "cgnl-fixed-0" / "last.ckpt").network
    (batch,) = VideoData(recipe_of(actions).data).tested_batches("test")
    with torch.no_grad():
        right = network(batch["image"]).argmax(1) == batch["label"]
    assert rows[2]["top1"] == 100 * right.float().mean().item()
