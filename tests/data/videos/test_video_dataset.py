"""Video records and batches against a sequential decode of the whole file, cut frame by frame."""

import os
import pickle
import random
import signal
import threading
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoding import decode_sequentially, encode, number_of
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from cgnl.data.decoding import BadFileError
from cgnl.data.lists import BadFiles, Sample, SampleList
from cgnl.data.records import describe_in_flight
from cgnl.data.videos import dataset as module
from cgnl.data.videos.clips import centre_clip, test_clips
from cgnl.data.videos.dataset import VideoDataset, collate_videos, test_videos, training_videos, views
from cgnl.data.videos.decoding import VideoInfo, probe

FRAMES = (30, 9, 55)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    encode(root / "clip 0.mp4", frames=FRAMES[0])
    encode(root / "clip 1.avi", "mpeg4", frames=FRAMES[1])
    encode(root / "clip 2.mp4", frames=FRAMES[2], options={"g": "12"})
    return root


@pytest.fixture
def videos(folder: Path) -> SampleList:
    return listed(folder, sorted(folder.iterdir()))


def listed(root: Path, paths: list[Path]) -> SampleList:
    return SampleList(root, tuple(Sample(path, 2 - k % 3) for k, path in enumerate(paths)), ("a", "b", "c"), "list")


def looked_at(videos: SampleList) -> dict[Path, VideoInfo | str]:
    infos: dict[Path, VideoInfo | str] = {}
    for sample in videos.samples:
        try:
            infos[sample.path] = probe(sample.path)
        except BadFileError as error:
            infos[sample.path] = error.reason
    return infos


def small(videos: SampleList, **changes: Any) -> VideoDataset:
    """Training clips of 4 of 12 frames."""
    return training_videos(videos, looked_at(videos), **{"length": 4, "step": 3, "size": 24, **changes})


def batches(dataset: VideoDataset, keys: list[list[tuple[int, int]]], workers: int) -> list[dict[str, Any]]:
    return list(DataLoader(dataset, batch_sampler=keys, collate_fn=collate_videos, num_workers=workers))


def test_a_training_clip_is_a_random_stretch_of_its_video(videos):
    dataset = small(videos, size=64, area=(1.0, 1.0), aspect=(1.5, 1.5), flip=0.0)
    starts = {0: set(), 1: set(), 2: set()}
    for index, sample in enumerate(videos.samples):
        for epoch in range(20):
            record = dataset[epoch, index]
            assert (record["label"], record["index"], record["lost"]) == (sample.label, index, 0)
            assert record["image"].shape == (3, 4, 64, 64)
            assert record["image"].dtype == torch.uint8
            numbers = [number_of(frame.numpy()) for frame in record["image"].permute(1, 2, 3, 0)]
            assert numbers == [(numbers[0] + 3 * k) % FRAMES[index] for k in range(4)]
            starts[index].add(numbers[0])
    assert len(starts[0]) > 6
    assert max(starts[0]) <= FRAMES[0] - 12
    assert starts[1] == {0}
    assert max(starts[2]) > 25


def test_a_training_clip_is_cut_once(videos):
    """A crop drawn for each frame would not be found in the sequential decode under one place."""
    whole = decode_sequentially(videos.samples[0].path)
    clip = small(videos, size=60, area=(60 * 60 / 96 / 64,) * 2, aspect=(1.0, 1.0), flip=1.0)[0]["image"]
    found = [
        (number, y, x)
        for number in range(30 - 12 + 1)
        for y in range(5)
        for x in range(37)
        if (
            clip.numpy().transpose(1, 2, 3, 0) == whole[number : number + 12 : 3, y : y + 60, x : x + 60][:, :, ::-1]
        ).all()
    ]
    assert len(found) == 1


def test_random_draws_depend_on_seed_epoch_and_index_alone(videos):
    keys = [[(0, 0), (0, 1)], [(0, 2)], [(1, 0), (1, 2)]]
    whole = batches(small(videos, seed=5), keys, workers=0)
    by_key = {
        key: image
        for batch, names in zip(whole, keys, strict=True)
        for key, image in zip(names, batch["image"], strict=True)
    }
    torch.manual_seed(99)
    other_order = [[(1, 2), (0, 1)], [(0, 0)], [(1, 0), (0, 2)]]
    for workers in (0, 2):
        for names, batch in zip(other_order, batches(small(videos, seed=5), other_order, workers), strict=True):
            assert batch["index"].tolist() == [index for _, index in names]
            for key, image in zip(names, batch["image"], strict=True):
                assert torch.equal(image, by_key[key])
    assert torch.equal(small(videos, seed=5)[2]["image"], by_key[0, 2])
    assert not torch.equal(by_key[1, 2], by_key[0, 2])
    assert not torch.equal(small(videos, seed=6)[2]["image"], by_key[0, 2])


def test_equal_videos_are_cut_differently(folder):
    dataset = small(listed(folder, [folder / "clip 2.mp4"] * 8))
    assert len({dataset[epoch, index]["image"].numpy().tobytes() for epoch in range(2) for index in range(8)}) == 16


def test_the_global_random_state_is_left_alone(videos):
    dataset = small(videos)
    torch.manual_seed(3)
    random.seed(3)
    undisturbed = (torch.rand(2).tolist(), random.random(), random.random())
    torch.manual_seed(3)
    random.seed(3)
    first, between = torch.rand(1), random.random()
    assert dataset[0]["image"] is not None
    assert ([*first.tolist(), *torch.rand(1).tolist()], between, random.random()) == undisturbed


def naive_views(
    path: Path, *, num_clips: int, num_crops: int, size: int, resize: int, wrap: bool = False
) -> torch.Tensor:
    """Each view by itself: frames picked out of the whole video one by one, resized and cropped one by one."""
    whole = decode_sequentially(path)
    cut = []
    for clip in range(num_clips):
        start = len(whole) * clip // num_clips if wrap else max(len(whole) - 12, 0) * clip // (num_clips - 1)
        numbers = [(start + 3 * k) % len(whole) for k in range(4)]
        frames = [v2.functional.resize(torch.from_numpy(whole[n]).movedim(-1, 0), [resize]) for n in numbers]
        height, width = frames[0].shape[-2:]
        middle_y, middle_x = round((height - size) / 2), round((width - size) / 2)
        places = [(middle_y, middle_x)]
        if num_crops == 3:
            ends = (
                ((0, middle_x), (height - size, middle_x))
                if height > width
                else ((middle_y, 0), (middle_y, width - size))
            )
            places = [ends[0], *places, ends[1]]
        cut += [torch.stack([f[:, y : y + size, x : x + size] for f in frames], 1) for y, x in places]
    return torch.stack(cut)


@pytest.mark.parametrize(
    ("num_clips", "num_crops", "size", "resize", "wrap"),
    [(3, 3, 32, 32, False), (10, 1, 24, 32, False), (10, 1, 24, 32, True), (2, 3, 40, 48, True)],
)
def test_views_of_a_video_decoded_once_are_those_read_one_by_one(videos, num_clips, num_crops, size, resize, wrap):
    sizes = {"num_crops": num_crops, "size": size}
    clips = {"length": 4, "step": 3, "num_clips": num_clips, "wrap": wrap}
    dataset = test_videos(videos, looked_at(videos), **clips, resize=resize, **sizes)
    [batch] = batches(dataset, [[(0, 0), (0, 1), (0, 2)]], workers=0)
    assert batch["lost"].tolist() == [0, 0, 0]
    for sample, video in zip(videos.samples, batch["videos"], strict=True):
        frames, clips = video["frames"], video["clips"]
        assert clips.shape == (num_clips, 4)
        assert frames.shape[1] == len(np.unique(test_clips(probe(sample.path).frames, num_clips, 4, 3, wrap=wrap)))
        chunks = list(views(frames, clips, **sizes, chunk=4))
        assert [len(chunk) for chunk in chunks[:-1]] == [4] * (num_clips * num_crops // 4 - (len(chunks[-1]) == 4))
        expected = naive_views(sample.path, num_clips=num_clips, resize=resize, wrap=wrap, **sizes)
        assert torch.equal(torch.cat(chunks), expected)


def test_crops_of_upright_video_lie_along_its_height(tmp_path):
    path = encode(tmp_path / "upright.mp4", frames=20, height=80, width=48)
    videos = listed(tmp_path, [path])
    settings = {"num_clips": 2, "num_crops": 3, "size": 32, "resize": 32}
    record = test_videos(videos, looked_at(videos), length=4, step=3, **settings)[0]
    [cut] = views(record["frames"], record["clips"], num_crops=3, size=32, chunk=100)
    assert torch.equal(cut, naive_views(path, **settings))


def test_one_clip_and_crop_is_a_plain_image(videos):
    dataset = test_videos(videos, looked_at(videos), length=4, step=3, num_clips=1, num_crops=1, size=24, resize=32)
    [batch] = batches(dataset, [[(0, 2), (0, 1)]], workers=0)
    assert batch["image"].shape == (2, 3, 4, 24, 24)
    for image, index, start in zip(batch["image"], (2, 1), ((55 - 12) // 2, 0), strict=True):
        whole = decode_sequentially(videos.samples[index].path)
        for k in range(4):
            frame = torch.from_numpy(whole[(start + 3 * k) % len(whole)]).movedim(-1, 0)
            expected = v2.functional.center_crop(v2.functional.resize(frame, [32]), [24, 24])
            assert torch.equal(image[:, k], expected)


def test_large_videos_are_read_piece_by_piece(videos, monkeypatch):
    def record() -> dict[str, Any]:
        return test_videos(videos, looked_at(videos), length=4, step=3, size=32, resize=32)[2]

    whole = record()
    monkeypatch.setattr(module, "_AT_ONCE", 5 * 96 * 64 * 3)
    requests: list[list[int]] = []
    sizes: list[int] = []
    read = module.GuardedReader.read_pieces

    def noted(reader: Any, path: Path, wanted: list[int], size: int, take: Any) -> int:
        def noting(place: int, frames: np.ndarray) -> None:
            sizes.append(len(frames))
            take(place, frames)

        requests.append(wanted)
        return read(reader, path, wanted, size, noting)

    monkeypatch.setattr(module.GuardedReader, "read_pieces", noted)
    pieces = record()
    # One request is one decode, as the tests of the streams show.
    assert len(requests) == 1
    assert max(sizes) == 5
    assert sum(sizes) == len(requests[0]) == whole["frames"].shape[1]
    assert torch.equal(pieces["frames"], whole["frames"])
    assert torch.equal(pieces["clips"], whole["clips"])
    assert pieces["lost"] == 0


def test_batches_keep_the_order_of_memory(videos):
    [batch] = batches(small(videos, flip=0.0), [[(0, 0), (0, 1)]], workers=0)
    assert batch["image"].is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("make", [training_videos, test_videos])
def test_bad_videos_are_named_and_never_replaced(tmp_path, folder, workers, make):
    paths = [folder / "clip 0.mp4", tmp_path / "page.mp4", tmp_path / "gone later.mp4", folder / "clip 1.avi"]
    paths[1].write_bytes(b"<html>")
    encode(paths[2], frames=5)
    videos = listed(tmp_path, paths)
    dataset = make(videos, looked_at(videos), length=4, size=32)
    paths[2].write_bytes(paths[2].read_bytes()[:100])
    mixed, empty = batches(dataset, [[(0, 3), (0, 1), (0, 0)], [(0, 1), (0, 2)]], workers)
    assert mixed["index"].tolist() == [3, 0]
    assert mixed["label"].tolist() == [2, 2]
    assert len(mixed["videos" if make is test_videos else "image"]) == len(mixed["lost"]) == 2
    [(index, path, reason)] = mixed["bad"]
    assert (index, path) == (1, paths[1])
    assert "HTML" in reason
    assert empty["image"].shape == (0, 3, 0, 0, 0)
    assert empty["lost"].shape == empty["index"].shape == empty["label"].shape == (0,)
    assert [index for index, *_ in empty["bad"]] == [1, 2]
    account = BadFiles(videos, None, limit=1.0)
    account.add(mixed["bad"])
    account.add(empty["bad"])
    assert len(account) == 2


def test_frames_that_cannot_be_decoded_are_counted(tmp_path, monkeypatch):
    path = encode(tmp_path / "short.avi", "mpeg4", frames=40)
    videos = listed(tmp_path, [path])
    infos = {path: VideoInfo(frames=60, fps=25.0, width=96, height=64, promised=60)}
    dataset = test_videos(videos, infos, length=4, step=3, num_clips=6, size=64, resize=64)
    [batch] = batches(dataset, [[(0, 0)]], workers=0)
    wanted = np.unique(test_clips(60, 6, 4, 3))
    assert batch["lost"].tolist() == [(wanted >= 40).sum()]
    frames = batch["videos"][0]["frames"].permute(1, 2, 3, 0).numpy()
    assert [number_of(frame) for frame in frames] == np.minimum(wanted, 39).tolist()
    monkeypatch.setattr(module, "_AT_ONCE", 5 * 96 * 64 * 3)
    assert dataset[0]["lost"] == (wanted >= 40).sum() > 5


class StopDecoder:
    """A transform that, once in each process, stops what decodes for it; and may kill it while it is waited for."""

    def __init__(self, killed: bool) -> None:
        self.killed, self.done = killed, False
        self.dataset: Any = None

    def __call__(self, frames: np.ndarray) -> torch.Tensor:
        if not self.done:
            decoder = self.dataset._reader._child._process.pid
            os.kill(decoder, signal.SIGSTOP)
            if self.killed:
                threading.Timer(0.5, os.kill, (decoder, signal.SIGKILL)).start()
        self.done = True
        return torch.from_numpy(frames).movedim(-1, 0)


@pytest.mark.parametrize(
    ("killed", "timeout", "reason"),
    [
        (True, 60, "ends the process that decodes it (SIGKILL, perhaps for lack of memory)"),
        (False, 3, "takes longer than 3 seconds to decode"),
    ],
)
def test_a_decoder_that_dies_or_hangs_costs_one_sample(folder, killed, timeout, reason):
    """Each of two workers loses the decoder at its second video and goes on with its third."""
    videos = listed(folder, [folder / "clip 0.mp4"] * 6)
    transform = StopDecoder(killed)
    clips = partial(centre_clip, length=2, step=1)
    transform.dataset = dataset = VideoDataset(videos, looked_at(videos), clips, transform, timeout=timeout)
    good, bad = [], []
    for batch in batches(dataset, [[(0, index)] for index in range(6)], workers=2):
        if batch["bad"]:
            bad += batch["bad"]
        else:
            good += batch["index"].tolist()
            assert [number_of(f.numpy()) for f in batch["image"][0].permute(1, 2, 3, 0)] == [14, 15]
    assert good == [0, 1, 4, 5]
    assert bad == [(index, folder / "clip 0.mp4", reason) for index in (2, 3)]
    assert describe_in_flight() == "No file was being read."


def _die(frames: np.ndarray) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_video_that_a_worker_died_with_is_named(videos):
    dataset = VideoDataset(videos, looked_at(videos), partial(centre_clip, length=2, step=1), _die)
    with pytest.raises(RuntimeError, match="DataLoader worker") as caught:
        batches(dataset, [[(0, 2)]], workers=1)
    assert describe_in_flight(caught.value) == f"The file being read: {videos.samples[2].path}."


def test_a_data_set_can_be_sent_to_a_process(videos):
    """As it is where workers are started anew instead of forked."""
    dataset = small(videos, seed=2)
    before = dataset[1, 2]["image"]
    again = pickle.loads(ForkingPickler.dumps(dataset))
    assert torch.equal(again[1, 2]["image"], before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda videos, infos: training_videos(videos, {}), r"infos must name every video, but lacks .*clip 0.mp4"),
        (lambda videos, infos: training_videos(videos, infos, length=0), r"length \(0\)"),
        (lambda videos, infos: training_videos(videos, infos, area=(0.5, 0.1)), r"area \(0.5, 0.1\)"),
        (lambda videos, infos: test_videos(videos, infos, num_clips=0), r"num_clips \(0\)"),
        (lambda videos, infos: test_videos(videos, infos, num_crops=2), r"num_crops \(2\)"),
        (lambda videos, infos: test_videos(videos, infos, size=300), r"resize \(256\) must be at least size \(300\)"),
        (lambda videos, infos: test_videos(videos, infos, timeout=0), r"timeout \(0\)"),
        (
            lambda *_: next(views(torch.zeros(3, 1, 8, 8), torch.zeros(1, 1), num_crops=1, size=8, chunk=0)),
            r"chunk \(0\)",
        ),
    ],
)
def test_wrong_arguments(videos, make, message):
    with pytest.raises(ValueError, match=message):
        make(videos, looked_at(videos))
