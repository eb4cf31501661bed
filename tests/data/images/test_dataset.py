"""Samples and batches: right pixels, right labels, the same random draws anywhere, bad files named."""

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from cgnl.data.images import ImageDataset, collate
from cgnl.data.lists import Sample, SampleList
from cgnl.data.records import describe_in_flight
from cgnl.data.transforms import train_transform


def make_images(root: Path, number: int = 8) -> SampleList:
    rng = np.random.default_rng(0)
    samples = []
    for index in range(number):
        path = root / f"bird {index}.png"
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
        samples.append(Sample(path, index % 3))
    return SampleList(root, tuple(samples), ("a", "b", "c"), "list")


def test_samples_have_the_pixels_and_labels_of_their_files(tmp_path):
    images = make_images(tmp_path)
    dataset = ImageDataset(images, v2.PILToTensor())
    assert len(dataset) == 8
    for index, sample in enumerate(images.samples):
        record = dataset[index]
        assert (record["label"], record["index"]) == (sample.label, index)
        expected = np.asarray(Image.open(sample.path)).transpose(2, 0, 1)
        np.testing.assert_array_equal(record["image"].numpy(), expected)
        assert dataset.path(index) == sample.path


def batches(dataset: ImageDataset, keys: list[list[tuple[int, int]]], workers: int) -> list[dict]:
    return list(DataLoader(dataset, batch_sampler=keys, collate_fn=collate, num_workers=workers))


def test_random_draws_depend_on_seed_epoch_and_index_alone(tmp_path):
    images = make_images(tmp_path)
    transform = train_transform(8)
    keys = [[(0, 0), (0, 1), (0, 2)], [(0, 3), (0, 4)], [(1, 0), (1, 1)]]
    whole = batches(ImageDataset(images, transform, seed=5), keys, workers=0)
    by_key = {
        key: image
        for batch, names in zip(whole, keys, strict=True)
        for key, image in zip(names, batch["image"], strict=True)
    }

    torch.manual_seed(99)
    other_order = [[(1, 1), (0, 4)], [(0, 0)], [(1, 0), (0, 2)]]
    for workers in (0, 2):
        for names, batch in zip(
            other_order, batches(ImageDataset(images, transform, seed=5), other_order, workers), strict=True
        ):
            assert batch["index"].tolist() == [index for _, index in names]
            for key, image in zip(names, batch["image"], strict=True):
                assert torch.equal(image, by_key[key])

    def crop(seed: int, key: int | tuple[int, int]) -> torch.Tensor:
        return ImageDataset(images, transform, seed=seed)[key]["image"]

    assert torch.equal(crop(5, 2), by_key[0, 2])
    assert not torch.equal(crop(5, (1, 2)), by_key[0, 2])
    assert not torch.equal(crop(6, 2), by_key[0, 2])


def test_equal_images_are_cut_differently(tmp_path):
    sample = make_images(tmp_path, 1).samples[0]
    dataset = ImageDataset(SampleList(tmp_path, (sample,) * 30, ("a",), "list"), train_transform(8), seed=0)
    cuts = [dataset[epoch, index]["image"] for epoch in range(2) for index in range(30)]
    assert len({cut.numpy().tobytes() for cut in cuts}) > 50


def test_the_global_random_state_is_left_alone(tmp_path):
    def draw(image: Image.Image) -> torch.Tensor:
        return torch.tensor([torch.rand(()).item(), random.random()])

    dataset = ImageDataset(make_images(tmp_path), draw, seed=1)
    torch.manual_seed(3)
    random.seed(3)
    undisturbed = (torch.rand(2).tolist(), random.random(), random.random())
    torch.manual_seed(3)
    random.seed(3)
    first, between, drawn = torch.rand(1), random.random(), dataset[0]["image"]
    assert ([*first.tolist(), *torch.rand(1).tolist()], between, random.random()) == undisturbed
    random.seed(4)
    torch.manual_seed(4)
    assert torch.equal(dataset[0]["image"], drawn)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_named_and_never_replaced(tmp_path, workers):
    images = make_images(tmp_path)
    images.samples[1].path.write_bytes(b"<html>")
    images.samples[4].path.write_bytes(images.samples[4].path.read_bytes()[:200])
    images.samples[5].path.unlink()
    os.mkfifo(images.samples[5].path)
    dataset = ImageDataset(images, v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32)]))
    mixed, empty = batches(dataset, [[(0, 0), (0, 1), (0, 2)], [(0, 4), (0, 5)]], workers)
    assert mixed["image"].shape == (2, 3, 20, 30)
    assert mixed["index"].tolist() == [0, 2]
    assert mixed["label"].tolist() == [0, 2]
    [(index, path, reason)] = mixed["bad"]
    assert (index, path) == (1, images.samples[1].path)
    assert reason == "is not a JPEG, PNG, WebP or BMP file but looks like an HTML or XML page"
    assert empty["image"].shape[:2] == (0, 3)
    assert empty["label"].dtype == torch.int64
    assert len(empty["index"]) == len(empty["label"]) == 0
    assert [index for index, *_ in empty["bad"]] == [4, 5]
    assert "truncated" in empty["bad"][0][2]
    assert empty["bad"][1][2] == "is not a regular file"


def test_bugs_in_a_transform_are_not_taken_for_bad_files(tmp_path):
    dataset = ImageDataset(make_images(tmp_path, 1), lambda image: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dataset[0]


def _die_at_the_brightest(image: Image.Image) -> torch.Tensor:
    if image.getpixel((0, 0)) == (255, 255, 255):
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.zeros(3, 2, 2)


def _hang_at_the_brightest(image: Image.Image) -> torch.Tensor:
    if image.getpixel((0, 0)) == (255, 255, 255):
        time.sleep(60)
    return torch.zeros(3, 2, 2)


def test_the_sample_that_killed_a_worker_is_named(tmp_path):
    images = make_images(tmp_path)
    Image.new("RGB", (4, 4), "white").save(images.samples[6].path)
    dataset = ImageDataset(images, _die_at_the_brightest)
    loader = DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=collate, timeout=10)
    with pytest.raises(RuntimeError, match="DataLoader worker") as caught:
        list(loader)
    assert describe_in_flight(caught.value) == f"The file being read: {images.samples[6].path}."
    assert describe_in_flight(caught.value) == "No file was being read."


def test_the_sample_that_a_worker_hangs_on_is_named(tmp_path):
    images = make_images(tmp_path)
    Image.new("RGB", (4, 4), "white").save(images.samples[3].path)
    dataset = ImageDataset(images, _hang_at_the_brightest)
    loader = DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=collate, timeout=4)
    with pytest.raises(RuntimeError, match="timed out") as caught:
        list(loader)
    assert describe_in_flight(caught.value) == f"The file being read: {images.samples[3].path}."


def test_nothing_is_in_flight_after_a_pass(tmp_path):
    dataset = ImageDataset(make_images(tmp_path), v2.PILToTensor())
    batches(dataset, [[(0, 0)], [(0, 1)]], workers=1)
    assert describe_in_flight() == "No file was being read."


def test_a_set_made_in_inference_mode_can_be_told_of_outside_of_it(tmp_path):
    with torch.inference_mode():
        dataset = ImageDataset(make_images(tmp_path), v2.PILToTensor())
    batches(dataset, [[(0, 0)], [(0, 1)]], workers=1)
    assert describe_in_flight() == "No file was being read."
