"""Testing and using a video network, against a plain decode of each video that is cut and tested view by view."""

import csv
import dataclasses
import json
import logging
import shutil
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from cgnl.cli import main
from cgnl.data.decoding import BadFileError
from cgnl.settings.reading import override
from cgnl.tasks import evaluate, load_trained, predict, predict_timeline, see, train
from cgnl.training import VideoData

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def run(tiny_video, tmp_path_factory):
    folder = tmp_path_factory.mktemp("video") / "run"
    views = {"data": {"test_clips": 10, "test_crops": 3, "views_per_step": 7}}
    train(override(tiny_video, views, "test"), folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def video(actions):
    with (actions / "testlist01.txt").open() as lines:
        return actions / next(lines).split()[0]


def decode(path):
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def probabilities_of(network, clip, mean=MEAN, std=STD):
    """Those of one view, uint8 [T, 3, H, W]."""
    view = F.normalize(clip / 255, list(mean), list(std)).transpose(0, 1)[None]
    with torch.no_grad():
        return network(view)[0].double().softmax(-1)


def mean_over_views(network, frames, config, *, mean=MEAN, std=STD):
    """The mean over clips that start evenly spaced and three crops from left to right."""
    frames = F.resize(frames, [config.resize], antialias=True)
    height, width = frames.shape[-2:]
    assert height == config.resize < width
    parts = []
    for j in range(config.test_clips):
        # evenly spaced from the first frame on, the last one ending with the video
        start = (len(frames) - config.frame_step * config.num_frames) * j // (config.test_clips - 1)
        clip = frames[[(start + config.frame_step * k) % len(frames) for k in range(config.num_frames)]]
        for left in (0, (width - height) // 2, width - height):
            crop = F.crop(clip, 0, left, height, height)
            parts.append(probabilities_of(network, crop, mean, std))
    assert len(parts) == 3 * config.test_clips
    return torch.stack(parts).mean(0)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same(best, expected, classes):
    """Compare classes with their probabilities."""
    assert [name for name, _ in best] == [classes[k] for k in expected.argsort(descending=True)]
    for name, probability in best:
        assert float(probability) == pytest.approx(float(expected[classes.index(name)]), abs=2e-6)


HEADS = {
    "average": {},
    # more than 7 x 7 places, so that there are several windows
    "fully_convolutional": {"resize": 256, "test_clips": 2, "num_frames": 2, "views_per_step": 4},
}


@pytest.mark.parametrize("head", HEADS)
def test_evaluation_averages_the_probabilities_of_all_views(run, actions, tmp_path, head):
    trained = load_trained(run)
    trained.network.head = head
    config = dataclasses.replace(trained.recipe.data, **HEADS[head])
    result = evaluate(trained, config, out=tmp_path)
    rows = rows_of(tmp_path / "predictions.csv")
    assert result.count == len(rows) == 4
    network, expected = load_trained(run).network, []
    network.head = head
    for row in rows:
        expected.append(mean_over_views(network, decode(row["path"]), config))
        best = [(row[f"class{k}"], row[f"probability{k}"]) for k in range(1, 5)]
        assert_same(best, expected[-1], trained.classes)
    assert len({tuple(values.tolist()) for values in expected}) == 4, "videos must differ for this to test anything"
    right = sum(trained.classes[int(p.argmax())] == row["label"] for p, row in zip(expected, rows, strict=True))
    assert result.top1 == pytest.approx(25 * right)


def test_prediction_averages_the_probabilities_of_all_views(run, video):
    # with constants of normalisation of its own
    mean, std = (0.3, 0.4, 0.5), (0.3, 0.2, 0.1)
    trained = dataclasses.replace(load_trained(run), mean=mean, std=std)
    expected = mean_over_views(trained.network, decode(video), trained.recipe.data, mean=mean, std=std)
    assert_same(predict(trained, video), expected, trained.classes)


def test_a_folder_of_frames_is_a_video(run, video, tmp_path, capsys):
    trained, frames = load_trained(run), decode(video)[:40]
    for number, frame in enumerate(frames):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    expected = mean_over_views(trained.network, frames, trained.recipe.data)
    assert_same(predict(trained, tmp_path), expected, trained.classes)
    # its seconds are not known; the rest is printed all the same
    table = tmp_path.with_name("seconds.csv")
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(run), str(tmp_path), "--json", "--timeline", str(table)])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert len(json.loads(out)["top"]) == 4
    assert "does not say how many frames it has per second" in err
    assert "written" not in err
    assert not table.exists()
    main(["predict", str(run), str(tmp_path), "--timeline", str(table), "--folder-fps", "16"])
    assert [row["second"] for row in rows_of(table)] == ["0", "1", "2"]


@pytest.fixture
def slow_then_fast(tmp_path):
    """A maker of videos with a frame a second for 40 seconds, then 25 a second, each of other pixels."""
    times = [*range(0, 40_000, 1000), *range(40_000, 46_000, 40)]
    pixels = np.random.default_rng(0).integers(0, 256, (len(times), 12, 16, 3), dtype=np.uint8)

    def make(suffix):
        path = tmp_path / f"uneven.{suffix}"
        with av.open(str(path), "w") as output:
            stream = output.add_stream("mjpeg", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
            stream.codec_context.time_base = Fraction(1, 1000)
            for time, small in zip(times, pixels, strict=True):
                frame = av.VideoFrame.from_ndarray(small.repeat(4, 0).repeat(4, 1), format="rgb24")
                frame.pts, frame.time_base = time, Fraction(1, 1000)
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        return path

    return make


def decode_with_times(path):
    with av.open(str(path)) as container:
        return [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]


def at_the_middle(path):
    return F.center_crop(F.resize(decode(path), [36], antialias=True), [32, 32])


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_each_line_of_a_timeline_is_of_its_second(run, slow_then_fast, suffix):
    """Clips of four frames, 8 apart, around the frame that is shown in the middle of the second."""
    trained, path = load_trained(run), slow_then_fast(suffix)
    frames, times = at_the_middle(path), decode_with_times(path)
    assert (times[0], times[39], times[41]) == (0, 39, 40.04)
    lines = dict(predict_timeline(trained, path))
    assert list(lines) == list(range(46))
    for second in (0, 3, 20, 25, 38, 40, 43, 45):
        middle = sum(time <= second + 0.5 for time in times) - 1
        start = min(max(middle - 16, 0), len(frames) - 32)
        if second >= 40:
            assert abs(times[middle] - second - 0.5) < 0.04
        expected = probabilities_of(trained.network, frames[start : start + 32 : 8])
        assert_same(lines[second], expected, trained.classes)


def test_videos_are_seen_at_the_rate_that_the_recipe_gives(run, slow_then_fast, tmp_path):
    """Half a second apart: each of the slow frames twice, of the fast ones every twelfth or thirteenth."""
    path = slow_then_fast("mkv")
    rated = {"data": {"fps": 2, "frame_step": 1, "test_clips": 3, "test_crops": 1}}
    trained = load_trained(run)
    trained = dataclasses.replace(trained, recipe=override(trained.recipe, rated, "test"))
    frames, times = at_the_middle(path), decode_with_times(path)
    seen = [max(k for k, time in enumerate(times) if time <= tick / 2 + 0.05) for tick in range(92)]

    def clip(start):
        return probabilities_of(trained.network, frames[seen[start : start + 4]])

    expected = torch.stack([clip(start) for start in (0, 44, 88)]).mean(0)
    assert_same(predict(trained, path), expected, trained.classes)
    lines = dict(predict_timeline(trained, path))
    assert list(lines) == list(range(46))
    for second in (0, 7, 39, 40, 45):
        assert_same(lines[second], clip(min(max(2 * second - 1, 0), 88)), trained.classes)
    assert see(trained, path).frames[1].tobytes() == see(trained, path).frames[0].tobytes()
    # testing a data set gives the same
    (tmp_path / "val.txt").write_text(f"{path.name} 0\n")
    (tmp_path / "train.txt").write_text("".join(f"{path.name} {label}\n" for label in range(4)))
    lists = {"train_list": tmp_path / "train.txt", "test_list": tmp_path / "val.txt", "format": "list"}
    data = dataclasses.replace(trained.recipe.data, root=tmp_path, **lists)
    evaluate(trained, data, out=tmp_path / "out")
    (row,) = rows_of(tmp_path / "out" / "predictions.csv")
    assert_same([(row[f"class{k}"], row[f"probability{k}"]) for k in range(1, 5)], expected, trained.classes)


def test_training_clips_are_taken_at_the_rate_of_the_recipe(tiny_video, slow_then_fast, tmp_path):
    """At one frame a second all frames of a clip are different; at 100, they are of a second or less."""
    path = slow_then_fast("mp4")
    (tmp_path / "list.txt").write_text(f"{path.name} 0\n")
    lists = {"train_list": tmp_path / "list.txt", "test_list": tmp_path / "list.txt", "format": "list"}
    data = dataclasses.replace(tiny_video.data, root=tmp_path, **lists, crop_area=(1.0, 1.0), frame_step=1)
    for fps, different in ((1, {4}), (100, {1, 2})):
        dataset = VideoData(dataclasses.replace(data, fps=fps))._dataset("train", training=True)
        clips = [dataset[epoch, 0]["image"] for epoch in range(8)]
        assert {len(np.unique(clip.movedim(1, 0).flatten(1).numpy(), axis=0)) for clip in clips} <= different


def test_views_wrap_around_the_end_only_where_the_recipe_says_so(run, video):
    trained = load_trained(run)
    frames = F.center_crop(F.resize(decode(video), [36], antialias=True), [32, 32])
    views = {"test_clips": 4, "test_crops": 1}
    for wrap in (False, True):
        recipe = override(trained.recipe, {"data": {**views, "test_wrap": wrap}}, "test")
        starts = [len(frames) * j // 4 if wrap else (len(frames) - 32) * j // 3 for j in range(4)]
        clips = [[(start + 8 * k) % len(frames) for k in range(4)] for start in starts]
        assert (clips[-1] == sorted(clips[-1])) != wrap
        expected = torch.stack([probabilities_of(trained.network, frames[clip]) for clip in clips]).mean(0)
        assert_same(predict(dataclasses.replace(trained, recipe=recipe), video), expected, trained.classes)


def test_a_folder_stands_for_the_videos_in_it(run, video, tmp_path, capsys):
    for name in ("b.avi", "deep/a.avi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(video, tmp_path / name)
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(decode(video)[:8]):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(tmp_path / "frames" / f"{number}.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "thumbnail.jpg")
    table = tmp_path.with_name("t.csv")
    main(["predict", str(run), str(tmp_path), "--json", "--timeline", str(table), "--folder-fps=9"])
    paths = [json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()]
    assert paths == [str(tmp_path / name) for name in ("b.avi", "deep/a.avi", "frames")]
    assert len(rows_of(table)) == 4 + 4 + 1
    with pytest.raises(BadFileError, match=r"holds videos \(b.avi\), so its pictures are not taken for frames"):
        predict(load_trained(run), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit):
        main(["predict", str(run), str(tmp_path / "empty")])
    assert "is a folder without frames" in capsys.readouterr().err


def test_a_long_timeline_shows_its_progress_on_a_terminal(run, video, capsys):
    list(predict_timeline(load_trained(run), video))
    assert capsys.readouterr().err == ""
    list(predict_timeline(load_trained(run), video, progress=True))
    err = capsys.readouterr().err
    assert video.name in err
    assert "4/4" in err


def test_a_folder_with_videos_is_no_folder_of_frames(run, video, tmp_path, capsys):
    for name in ("b.avi", "deep/a.avi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(video, tmp_path / name)
    Image.new("RGB", (64, 48)).save(tmp_path / "cover.jpg")
    main(["predict", str(run), str(tmp_path), "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["path"] for row in rows] == [str(tmp_path / "b.avi"), str(tmp_path / "deep/a.avi")]


def test_the_timeline_has_a_clip_of_each_second(run, video, tmp_path):
    trained = load_trained(run)
    # four seconds in batches of three
    trained = dataclasses.replace(trained, recipe=override(trained.recipe, {"data": {"views_per_step": 3}}, "test"))
    frames = F.resize(decode(video), [36], antialias=True)
    frames = F.center_crop(frames, [32, 32])
    seconds = list(predict_timeline(trained, video))
    assert [second for second, _ in seconds] == list(range(4))
    assert 75 < len(frames) <= 100
    for second, best in seconds:
        start = min(max(25 * second + 12 - 16, 0), len(frames) - 32)
        expected = probabilities_of(trained.network, frames[start : start + 32 : 8])
        assert_same(best, expected, trained.classes)
    main(["predict", str(run), str(video), "--timeline", str(tmp_path / "seconds.csv")])
    rows = rows_of(tmp_path / "seconds.csv")
    assert [(row["path"], row["second"]) for row in rows] == [(str(video), str(k)) for k in range(4)]
    for row, (_, best) in zip(rows, seconds, strict=True):
        assert [row[f"class{k}"] for k in range(1, 5)] == [name for name, _ in best]
        assert float(row["probability1"]) == pytest.approx(best[0][1], abs=1e-5)


def test_prediction_goes_on_after_a_file_that_is_no_video(run, video, tmp_path, capsys):
    broken = tmp_path / "broken.avi"
    broken.write_bytes(video.read_bytes()[:40])
    with pytest.raises(BadFileError, match=r"broken\.avi"):
        predict(load_trained(run), broken)
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(run), str(broken), str(video)])
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert err.startswith(f"cgnl: {broken} ")
    assert "Traceback" not in err
    assert out.count("%") == 4


@pytest.fixture
def cut(actions, video, tmp_path):
    """A copy of the set in which one test video ends in the middle."""
    root = shutil.copytree(actions, tmp_path / "cut")
    path = root / video.relative_to(actions)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (root / "video_index.csv").unlink(missing_ok=True)
    return path


def test_a_video_that_is_cut_off_is_tested_and_listed(run, cut, tmp_path, capsys):
    out = tmp_path / "out"
    main(["evaluate", str(run), f"--data.root={cut.parent.parent}", f"--out={out}"])
    printed = capsys.readouterr().out
    assert "4 videos" in printed
    assert f"problems: damaged videos: 1 (lists are in {out})" in printed
    (row,) = rows_of(out / "damaged_videos.csv")
    assert row["path"] == str(cut)
    frames = len(decode(cut))
    assert row["reason"].startswith(f"holds {frames} frames, but its container promises ")
    assert int(row["reason"].split()[-1]) > frames


def test_prediction_says_that_a_video_is_cut_off(run, cut, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(predict(load_trained(run), cut)) == 4
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("cgnl")]
    assert message.startswith(f"{cut} holds ")
    assert "its container promises" in message


def test_only_the_head_of_a_trained_network_can_be_changed(run, tmp_path, capsys):
    views = "--data.resize=256 --data.size=256 --data.num-frames=2 --data.test-clips=1 --data.test-crops=1".split()
    probabilities = {}
    for head in HEADS:
        main(["evaluate", str(run), f"--out={tmp_path / head}", f"--network.head={head}", *views])
        assert "4 videos" in capsys.readouterr().out
        probabilities[head] = [row["probability1"] for row in rows_of(tmp_path / head / "predictions.csv")]
    assert probabilities["average"] != probabilities["fully_convolutional"]
    with pytest.raises(SystemExit):
        main(["evaluate", str(run), "--network.temporal-strides", "2", "2", "2"])
    assert "cannot be changed, except network.head" in capsys.readouterr().err


def test_several_runs_are_tested_and_their_mean_is_told(run, actions, tmp_path, capsys):
    # as the three splits of UCF101: each run is tested on the data of its own recipe
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    checkpoint["cgnl"]["recipe"]["data"]["fold"] = 2
    torch.save(checkpoint, tmp_path / "second.ckpt")
    main(["evaluate", str(run), str(tmp_path / "second.ckpt"), f"--out={tmp_path / 'out'}", "--data.test-clips=1"])
    printed = capsys.readouterr().out
    tested = [{row["path"] for row in rows_of(tmp_path / "out" / k / "predictions.csv")} for k in ("1", "2")]
    assert tested[0].isdisjoint(tested[1])
    accuracies = [float(line.split()[1]) for line in printed.splitlines() if line.startswith("top-1")]
    assert len(accuracies) == 2
    assert f"mean of 2: top-1 {sum(accuracies) / 2:.2f} %, top-5 100.00 %" in printed
    with pytest.raises(SystemExit):
        main(["evaluate", str(run), "ucf101-resnet50"])
    assert "ucf101-resnet50 is a recipe" in capsys.readouterr().err
