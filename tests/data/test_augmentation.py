"""Augmentation by name: torchvision's own transforms, alike for all frames, and the same whoever reads."""

import dataclasses
import pickle
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from cgnl.data.transforms import clip_train_transform, train_transform
from cgnl.settings.image import Augmentation, DataConfig
from cgnl.training import ImageData

NAMES = get_args(Augmentation)
GENERATOR = np.random.default_rng(0)
PIXELS = GENERATOR.integers(0, 256, (60, 80, 3), dtype=np.uint8)
PIXELS[:, :40] //= 3
# as torchvision has them, but for the strengths of jitter and rotate, which it leaves to its user
EXPECTED = {
    "trivial": v2.TrivialAugmentWide(),
    "rand": v2.RandAugment(),
    "auto": v2.AutoAugment(),
    "augmix": v2.AugMix(),
    "jitter": v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
    "vertical-flip": v2.RandomVerticalFlip(),
    "rotate": v2.RandomRotation(15, interpolation=v2.InterpolationMode.BILINEAR),
}


def drawn(transform, x, seed):
    torch.manual_seed(seed)
    return transform(x)


@pytest.mark.parametrize("names", [*((name,) for name in NAMES), ("jitter", "erasing", "trivial"), ("rand", "rand")])
def test_an_image_changes_by_torchvisions_transforms_in_their_order(names):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    expected = v2.Compose(
        [
            *(v2.PILToTensor(), v2.RandomResizedCrop(48, (0.3, 1.0), antialias=True), v2.RandomHorizontalFlip()),
            *(EXPECTED[name] for name in names if name != "erasing"),
            *(v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)),
            *(v2.RandomErasing() for name in names if name == "erasing"),
        ]
    )
    transform = train_transform(48, area=(0.3, 1.0), augment=names, mean=mean, std=std)
    plain = train_transform(48, area=(0.3, 1.0), mean=mean, std=std)
    image = Image.fromarray(PIXELS)
    differs = 0
    for seed in range(20):
        x = drawn(transform, image, seed)
        assert torch.equal(x, drawn(expected, image, seed))
        assert (x.dtype, x.shape, type(x)) == (torch.float32, (3, 48, 48), torch.Tensor)
        differs += not torch.equal(x, drawn(plain, image, seed))
    assert differs


@pytest.mark.parametrize("name", NAMES)
def test_all_frames_of_a_clip_change_alike(name):
    other = PIXELS[::-1, ::-1].copy()
    mean = (0.5, 0.4, 0.3)
    transform = clip_train_transform(48, area=(0.3, 1.0), augment=[name], mean=mean)
    image = train_transform(48, area=(0.3, 1.0), augment=[name], mean=mean, std=(1, 1, 1))
    shift = torch.tensor(mean)[:, None, None]
    changed = set()
    for seed in range(20):
        mixed = drawn(transform, np.stack([PIXELS, other, PIXELS, other]), seed)
        assert (mixed.dtype, mixed.shape, type(mixed)) == (torch.uint8, (3, 4, 48, 48), torch.Tensor)
        # each frame becomes what the same draws make of the frame alone, as an image
        for frames, pixels in (((0, 2), PIXELS), ((1, 3), other)):
            alone = ((drawn(image, Image.fromarray(pixels), seed) + shift) * 255).round()
            for frame in frames:
                assert (mixed[:, frame] - alone).abs().max() <= (1 if name == "erasing" else 0)
        changed.add(mixed.float().mean())
    assert len(changed) > 10


def test_transforms_reach_reader_processes_that_are_started_anew():
    clip = np.stack([PIXELS] * 2)
    for transform, x in (
        (train_transform(48, augment=NAMES), Image.fromarray(PIXELS)),
        (clip_train_transform(48, augment=NAMES), clip),
    ):
        again = pickle.loads(pickle.dumps(transform))
        assert torch.equal(drawn(again, x, 3), drawn(transform, x, 3))
    assert isinstance(v2.functional.to_image(PIXELS), tv_tensors.Image)


def batches(data, epoch, first=0):
    loader = data.train_dataloader()
    loader.batch_sampler.resume(epoch, first)
    return [batch["image"] for batch in loader]


@pytest.mark.slow
def test_images_are_the_same_with_any_number_of_readers_and_from_the_middle(class_folders):
    config = DataConfig(root=class_folders, size=32, resize=36, batch_size=4, workers=0, augment=NAMES)
    config = dataclasses.replace(config, balanced_sampler=True)
    alone = batches(ImageData(config, seed=5), 2)
    torch.manual_seed(77)
    read = batches(ImageData(dataclasses.replace(config, workers=2), seed=5), 2)
    rest = batches(ImageData(config, seed=5), 2, first=3)
    for ours, theirs in ((alone, read), (alone[3:], rest)):
        assert len(ours) == len(theirs)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not torch.equal(alone[0], batches(ImageData(config, seed=5), 3)[0])
