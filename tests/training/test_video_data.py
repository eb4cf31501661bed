"""The data of video runs: what is indexed and listed, and what is refused before a network is built."""

import csv
import dataclasses
import shutil

import pytest
import torch
import yaml
from PIL import Image

from cgnl.cli import main
from cgnl.data.decoding import DataError
from cgnl.networks.checkpoints import CheckpointError
from cgnl.recipes import RECIPES
from cgnl.settings.reading import override
from cgnl.tasks import build_network, load_trained, train
from cgnl.training import VideoData


@pytest.fixture(scope="module")
def finished(tiny_video, tmp_path_factory):
    folder = tmp_path_factory.mktemp("video_run") / "run"
    train(tiny_video, folder, progress=False)
    return folder


def image_recipe(folders):
    recipe = RECIPES["birds-resnet18-cgnl"].make()
    changes = {"size": 32, "resize": 36, "batch_size": 8, "workers": 0, "format": "folders"}
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root=folders, **changes))


def test_a_run_does_not_go_on_with_other_videos(finished, tiny_video, actions, tmp_path):
    changed = shutil.copytree(actions, tmp_path / "actions")
    name = sorted(path.relative_to(changed) for path in changed.rglob("*_g02_*.avi"))[0]
    (changed / name).write_bytes((changed / name).read_bytes() + b"more")
    recipe = dataclasses.replace(tiny_video, data=dataclasses.replace(tiny_video.data, root=changed))
    with pytest.raises(DataError, match=rf"now: training videos: 1 with other contents \({name}\)\. "):
        train(recipe, finished, resume=True, progress=False)


def test_a_run_does_not_go_on_with_a_recipe_of_the_other_task(finished, tiny_video, class_folders, tmp_path):
    with pytest.raises(DataError, match=r"holds a run of the task video; it cannot continue as image"):
        train(image_recipe(class_folders), finished, resume=True, progress=False)
    images = override(image_recipe(class_folders), {"trainer": {"max_steps": 1, "max_epochs": 1}}, "test")
    train(images, tmp_path / "run", progress=False)
    with pytest.raises(DataError, match=r"holds a run of the task image; it cannot continue as video"):
        train(tiny_video, tmp_path / "run", resume=True, progress=False)


def test_a_checkpoint_of_the_first_format_can_be_used_but_not_resumed(class_folders, tmp_path):
    recipe = override(image_recipe(class_folders), {"trainer": {"max_steps": 1, "max_epochs": 1}}, "test")
    train(recipe, tmp_path, progress=False)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    # what the format was before there were videos
    entry = checkpoint["cgnl"]
    entry["format"], entry["num_images"] = 1, entry.pop("num_samples")
    del entry["recipe"]["task"], entry["recipe"]["optimizer"]["norm_weight_decay"]
    torch.save(checkpoint, tmp_path / "last.ckpt")
    trained = load_trained(tmp_path / "last.ckpt")
    assert trained.recipe == recipe
    with pytest.raises(DataError, match=r"last\.ckpt was written by an earlier version of cgnl"):
        train(recipe, tmp_path, resume=True, progress=False)
    entry["format"] = 3
    torch.save(checkpoint, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="format 3; this version of cgnl reads formats 1 to 2"):
        load_trained(tmp_path / "last.ckpt")


def test_a_run_that_names_its_decoder_predicts_tests_and_goes_on(finished, tiny_video, tmp_path):
    """Earlier versions had the field data.backend."""
    old = shutil.copytree(finished, tmp_path / "old")
    for name in ("last.ckpt", "best.ckpt"):
        checkpoint = torch.load(old / name, weights_only=True)
        checkpoint["cgnl"]["recipe"]["data"]["backend"] = "torchcodec"
        torch.save(checkpoint, old / name)
    lines = yaml.safe_load((old / "recipe.yaml").read_text())
    lines["data"]["backend"] = "torchcodec"
    (old / "recipe.yaml").write_text(yaml.safe_dump(lines))
    video = next(tiny_video.data.root.rglob("*.avi"))
    main(["predict", str(old), str(video), "--timeline", str(tmp_path / "timeline.csv")])
    assert len((tmp_path / "timeline.csv").read_text().splitlines()) == 5
    main(["evaluate", str(old), f"--out={tmp_path / 'out'}"])
    assert (tmp_path / "out" / "predictions.csv").exists()
    longer = str(lines["trainer"]["max_epochs"] + 1)
    main(["train", str(old / "recipe.yaml"), "--run", str(old), "--resume", "--trainer.max-epochs", longer])
    assert torch.load(old / "last.ckpt", weights_only=True)["cgnl"]["epoch"] == int(longer)


def test_unreadable_and_damaged_videos_are_listed(actions, tiny_video, tmp_path, capsys):
    root = tmp_path / "set"
    for path in sorted(actions.rglob("*")):
        if path.is_file() and path.name != "video_index.csv":
            (root / path.relative_to(actions)).parent.mkdir(parents=True, exist_ok=True)
            (root / path.relative_to(actions)).write_bytes(path.read_bytes())
    cut, none = (root / line.split()[0] for line in (root / "trainlist01.txt").read_text().splitlines()[:2])
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    none.write_bytes(b"<html>no video</html>")
    recipe = override(tiny_video, {"data": {"bad_limit": 0.2}}, "test")
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root=root))
    train(recipe, tmp_path / "run", progress=False)
    lists = {}
    for name in ("bad_files", "damaged_videos"):
        with (tmp_path / "run" / f"{name}.csv").open(newline="") as file:
            lists[name] = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert list(lists["bad_files"]) == [str(none)]
    assert list(lists["damaged_videos"]) == [str(cut)]
    assert "its container promises" in lists["damaged_videos"][str(cut)]
    printed = capsys.readouterr().out
    assert "problems: unreadable videos: 1, damaged videos: 1 (lists are in" in printed
    with pytest.raises(DataError, match=r"1 of 8 files .* limit of 5.0%"):
        train(override(recipe, {"data": {"bad_limit": 0.05}}, "test"), tmp_path / "limited", progress=False)


def test_the_index_takes_as_long_as_a_video_may_take(tiny_video, tmp_path, monkeypatch):
    from cgnl.training import video_data

    given = []
    real = video_data.index_videos
    monkeypatch.setattr(video_data, "index_videos", lambda *a, **options: given.append(options) or real(*a, **options))
    VideoData(override(tiny_video, {"data": {"decode_timeout": 17}}, "test").data, run=tmp_path).check()
    assert [options["timeout"] for options in given] == [17, 17]


def test_strides_in_time_may_be_larger(tiny_video):
    recipe = override(tiny_video, {"network": {"temporal_strides": [4, 1, 1]}}, "test")
    logits = build_network(recipe, 4).eval()(torch.randn(1, 3, 8, 32, 32))
    assert logits.shape == (1, 4)
    with pytest.raises(ValueError, match=r"network.temporal_strides \(0\) must be at least 1"):
        override(tiny_video, {"network": {"temporal_strides": [0, 1, 1]}}, "test")


def test_a_run_whose_blocks_see_one_time_step_says_so() -> None:
    from cgnl.recipes import RECIPES
    from cgnl.settings.reading import override
    from cgnl.tasks.video import VideoTask

    one_time_step = VideoTask().note
    full = RECIPES["ucf101-resnet50-cgnl"].make()
    short = override(full, {"data": {"num_frames": 8}}, "test")
    assert one_time_step(full) is None
    assert "8 frames" in one_time_step(short)
    assert one_time_step(override(short, {"network": {"block": "none"}}, "test")) is None
    assert one_time_step(override(short, {"network": {"temporal_strides": [1, 1, 2]}}, "test")) is None


def test_frame_folders_whose_counts_differ_are_used_and_listed(tiny_video, tmp_path):
    for name, frames in (("a", 20), ("b", 12)):
        (tmp_path / name).mkdir()
        for number in range(1, frames + 1):
            Image.new("RGB", (48, 40)).save(tmp_path / name / f"img_{number:05d}.jpg")
            Image.new("L", (48, 40)).save(tmp_path / name / f"flow_x_{number:05d}.jpg")
    (tmp_path / "list.txt").write_text("a 20 0\nb 14 1\n")
    lists = {"train_list": tmp_path / "list.txt", "test_list": tmp_path / "list.txt", "format": "auto"}
    config = dataclasses.replace(
        tiny_video.data, root=tmp_path, **lists, frame_pattern="img_{:05d}.jpg", num_frames=20, frame_step=1
    )
    data = VideoData(config, run=tmp_path / "run")
    data.check()
    assert [sample.path.name for sample in data.train_samples.samples] == ["a", "b"]
    assert {path.name: info.frames for path, info in data.train_index.items()} == {"a": 20, "b": 12}
    assert data.troubles() == ["damaged videos: 1"]
    data.share_bad_files()
    rows = (tmp_path / "run" / "damaged_videos.csv").read_text().splitlines()
    assert rows[1:] == [f'{tmp_path / "b"},"count differs: holds 12 frames, but the list says 14"']
    with pytest.raises(DataError, match=r"1 of 2 files .* \(--data.missing-limit\): .*--data.frame-tolerance \(1\)"):
        VideoData(dataclasses.replace(config, frame_tolerance=1)).check()
    assert len(VideoData(dataclasses.replace(config, frame_tolerance=1, missing_limit=0.5)).train_samples) == 1
    with pytest.raises(
        DataError, match=r"does not say how many frames .* data.fps \(5\) needs: .* data.folder_fps too"
    ):
        VideoData(dataclasses.replace(config, fps=5)).check()
    VideoData(dataclasses.replace(config, fps=5, folder_fps=25)).check()


def test_the_limits_of_missing_and_of_unreadable_videos_are_two(tiny_video, tmp_path):
    (tmp_path / "train.csv").write_text(
        "label,youtube_id,time_start,time_end,split\n" + "".join(f"a,{k:011d},0,10,train\n" for k in range(10))
    )
    for number in range(9):
        (tmp_path / f"{number:011d}.mp4").write_bytes(b"no video")
    config = dataclasses.replace(tiny_video.data, root=tmp_path, format="kinetics")
    assert len(VideoData(config).train_samples) == 9
    with pytest.raises(DataError, match=r"1 of 10 files .* limit of 5.0% \(--data.missing-limit\)"):
        assert VideoData(dataclasses.replace(config, missing_limit=0.05)).train_samples
    with pytest.raises(DataError, match=r"cannot be read, more than the limit of 5.0% \(--data.bad-limit\)"):
        VideoData(config).check()
    with pytest.raises(DataError, match=r"1 of 10 files .* limit of 0.0% \(--data.missing-limit\)"):
        assert VideoData(dataclasses.replace(config, missing_limit=0)).train_samples
