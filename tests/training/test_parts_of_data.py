"""The training, validation and test samples of data modules, for videos and for images with objects."""

import dataclasses
import json
import random
import shutil
from pathlib import Path

import pytest

from cgnl.data.decoding import DataError
from cgnl.data.detection import DetectionList
from cgnl.data.lists import fold
from cgnl.recipes import RECIPES
from cgnl.settings.detection import DetectionDataConfig
from cgnl.settings.image import DataConfig
from cgnl.training import ImageData, VideoData
from cgnl.training.class_scores import class_weights
from cgnl.training.detection_data import DetectionData


def names(samples) -> list[str]:
    return [sample.path.name for sample in samples.samples]


def test_a_fraction_of_videos_is_the_same_each_time_and_stratified(tiny_video):
    config = dataclasses.replace(tiny_video.data, val_fraction=0.4)
    data, again, other = (
        VideoData(dataclasses.replace(config, val_seed=seed), seed=order, tested="val")
        for seed, order in ((0, 1), (0, 2), (1, 1))
    )
    whole = VideoData(tiny_video.data)
    assert [sample.label for sample in data.val_samples.samples] == [0, 1, 2, 3]
    assert sorted([*names(data.train_samples), *names(data.val_samples)]) == sorted(names(whole.train_samples))
    assert data.val_samples == again.val_samples != other.val_samples
    assert (data.test_samples, data.tested) == (whole.test_samples, "val")
    assert data.summary() == "4 training, 4 validation and 4 test videos of 4 classes"


def test_a_part_of_samples_stays_what_it_is_beside_a_fraction(class_folders):
    # a comparison chooses samples by their numbers, and tests on what it names
    config = DataConfig(root=class_folders, format="auto", size=32, resize=36, val_fraction=0.25, workers=0)
    data = ImageData(config)
    part = ImageData(config, part={"train": ("train", [0, 5]), "test": ("train", [7])}, tested="val")
    assert names(part.train_samples) == [names(data.train_samples)[number] for number in (0, 5)]
    assert names(part.val_samples) == names(part.test_samples) == [names(data.train_samples)[7]]
    assert data.summary() == "18 training, 6 validation and 12 test images of 3 classes"
    with pytest.raises(ValueError, match=r"data.val_fraction \(1\) must be at least 0 and below 1"):
        dataclasses.replace(config, val_fraction=1)


def test_a_fraction_that_holds_nothing_out(class_folders, tmp_path):
    for label in range(2):
        folder = tmp_path / f"train/{label}"
        folder.mkdir(parents=True)
        shutil.copy(class_folders / "train/class_0/0.jpg", folder)
    data = ImageData(DataConfig(root=tmp_path, val_fraction=0.5), tested="val")
    with pytest.raises(DataError, match=r"no class with two training images, so that data.val_fraction \(0.5\)"):
        data.check()


def test_links_out_of_the_root(class_folders, tmp_path):
    (tmp_path / "val").mkdir()
    for link in ("train", "val/class_0"):
        (tmp_path / link).symlink_to(class_folders / link)
    config = DataConfig(root=tmp_path, size=32, resize=36)
    with pytest.raises(DataError, match=r"leads out of .*; --data.follow-links"):
        ImageData(config).check()
    data = ImageData(dataclasses.replace(config, follow_links=True))
    data.check()
    assert (len(data.train_samples), len(data.test_samples)) == (24, 4)


def exported(flock: Path, root: Path, *parts: str) -> Path:
    """The scenes as exporters write them: a json among the images of each part, the part called test first."""
    for own, part in zip(("val", "train", "val"), parts, strict=False):
        shutil.copytree(flock / own, root / part)
        shutil.copy(flock / f"annotations/instances_{own}.json", root / part / "_annotations.coco.json")
    return root


def test_three_parts_of_images_with_objects(flock, tmp_path):
    root = exported(flock, tmp_path, "test", "train", "valid")
    source = root / "valid/_annotations.coco.json"
    values = json.loads(source.read_text())
    source.write_text(json.dumps(values | {"images": values["images"][:1]}))
    config = dataclasses.replace(RECIPES["detection"].make().data, root=root, bad_limit=1.0)
    data = DetectionData(config, tested="val")
    data.check()
    assert data.summary() == "8 training, 1 validation and 3 test images of 3 classes"
    assert len(data.truth["images"]) == 1
    assert len(DetectionData(config).truth["images"]) == 3
    files = {"val_annotations": source, "val_images": root / "valid"}
    named = DetectionData(dataclasses.replace(config, root=flock, **files), tested="val")
    assert names(named.val_samples) == names(data.val_samples)
    shutil.rmtree(root / "valid")
    lone = DetectionData(config, tested="val")
    assert lone.summary().startswith("8 training and 3 held-out images of 3 classes; the held-out images choose best.")


def test_a_fraction_of_images_with_objects(flock):
    config = dataclasses.replace(RECIPES["detection"].make().data, root=flock, val_fraction=0.25)
    data = DetectionData(config, tested="val")
    data.check()
    train, val = data.train_samples, data.val_samples
    assert isinstance(train, DetectionList)
    assert isinstance(val, DetectionList)
    assert (len(train), len(val), len(data.test_samples)) == (6, 2, 3)
    assert {image["id"] for image in data.truth["images"]} == set(val.image_ids)
    assert not set(val.image_ids) & set(train.image_ids)
    for images in (train, val):
        assert all(row["image_id"] == id for k, id in enumerate(images.image_ids) for row in images.objects(k))


def test_categories_are_those_of_the_network_by_name(flock, tmp_path):
    root = exported(flock, tmp_path, "test")
    source = root / "test/_annotations.coco.json"
    values = json.loads(source.read_text())
    own = [category["name"] for category in values["categories"]]
    ids = {category["name"]: category["id"] for category in values["categories"]}
    config = dataclasses.replace(RECIPES["detection"].make().data, root=root)
    # a network that has one more, in another order
    data = DetectionData(config, classes=[own[2], "zebra", own[0], own[1]])
    assert data.category_ids == (ids[own[2]], max(ids.values()) + 1, ids[own[0]], ids[own[1]])
    assert [category["name"] for category in data.truth["categories"]] == [own[2], "zebra", own[0], own[1]]
    with pytest.raises(DataError, match=f"other classes than expected; unexpected: {own[0]}; missing: zebra"):
        assert DetectionData(config, classes=["zebra", own[1], own[2]]).test_samples


def test_folds_hold_each_video_out_once(tiny_video):
    whole = VideoData(tiny_video.data)
    parts = [
        VideoData(dataclasses.replace(tiny_video.data, num_folds=2, held_out_fold=number), tested="val")
        for number in (1, 2)
    ]
    # two training videos of each of four classes
    assert [[sample.label for sample in data.val_samples.samples] for data in parts] == [[0, 1, 2, 3]] * 2
    for data, other in zip(parts, reversed(parts), strict=True):
        assert names(data.train_samples) == names(other.val_samples)
        assert sorted([*names(data.train_samples), *names(data.val_samples)]) == sorted(names(whole.train_samples))
        # UCF101's own test list stays the test part
        assert (data.test_samples, data.tested, data.holds_fold_out) == (whole.test_samples, "val", True)


@pytest.mark.parametrize("counts", [(8, 5, 2), (7, 1, 1), (10, 10, 3), (1, 2, 3, 4, 5, 6)])
@pytest.mark.parametrize("num_folds", [2, 3, 5])
def test_folds_are_stratified_and_as_large_as_each_other(counts, num_folds):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    random.Random(0).shuffle(labels)
    folds = [fold(labels, num_folds, number, seed=4) for number in range(1, num_folds + 1)]
    assert sorted(number for _, held in folds for number in held) == [*range(len(labels))]
    assert all(sorted([*kept, *held]) == [*range(len(labels))] for kept, held in folds)
    for own in [labels, *([label] * count for label, count in enumerate(counts))]:
        sizes = [sum(labels[number] in own for number in held) for _, held in folds]
        assert max(sizes) - min(sizes) <= 1
    assert folds == [fold(labels, num_folds, number, seed=4) for number in range(1, num_folds + 1)]
    assert any(fold(labels, num_folds, 1, seed) != folds[0] for seed in range(5, 9))


def test_folds_of_images_with_objects_and_too_few_samples(flock, class_folders, tmp_path):
    config = dataclasses.replace(RECIPES["detection"].make().data, root=flock)
    held_out = []
    for number in (1, 2, 3):
        data = DetectionData(dataclasses.replace(config, num_folds=3, held_out_fold=number), tested="val")
        data.check()
        assert isinstance(data.val_samples, DetectionList)
        held_out += data.val_samples.image_ids
    assert sorted(held_out) == sorted(DetectionData(config).train_samples.image_ids)
    shutil.copytree(class_folders / "train", tmp_path / "train")
    with pytest.raises(DataError, match=r"has 24 training images, too few for data.num_folds \(25\)"):
        ImageData(DataConfig(root=tmp_path, num_folds=25, held_out_fold=1)).check()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_folds": 5}, r"data.num_folds \(5\) needs data.held_out_fold: a number from 1 to 5"),
        ({"held_out_fold": 1}, r"data.held_out_fold \(1\) needs data.num_folds"),
        ({"num_folds": 5, "held_out_fold": 0}, r"data.held_out_fold \(0\) must be between 1 and 5"),
        ({"num_folds": 5, "held_out_fold": 6}, r"data.held_out_fold \(6\) must be between 1 and 5"),
        ({"num_folds": 1, "held_out_fold": 1}, r"data.num_folds \(1\) must be at least 2"),
        (
            {"num_folds": 5, "held_out_fold": 1, "val_fraction": 0.2},
            r"data.val_fraction \(0.2\) and data.num_folds \(5\)",
        ),
    ],
)
@pytest.mark.parametrize("config", [DataConfig, DetectionDataConfig])
def test_folds_that_cannot_be(config, values, message):
    with pytest.raises(ValueError, match=message):
        config(**values)


def test_a_class_of_which_a_fold_holds_every_image_out_is_said(class_folders, tmp_path):
    root = shutil.copytree(class_folders / "train", tmp_path / "set")
    for file in sorted((root / "class_1").iterdir())[1:]:
        file.unlink()
    words = []
    for number in (1, 2):
        config = DataConfig(root=root, num_folds=2, held_out_fold=number, batch_size=2, balanced_sampler=True)
        data = ImageData(dataclasses.replace(config, size=32, resize=36, workers=0), tested="val")
        data.check()
        assert data.classes == ("class_0", "class_1", "class_2")
        # neither draws nor weights break
        assert {data.train_labels[key[1]] for batch in data.train_dataloader().batch_sampler for key in batch} >= {0, 2}
        assert class_weights("balanced", data.train_labels, 3, data.classes).isfinite().all()
        words.append("all images of class_1 are held out" in data.summary())
    assert sorted(words) == [False, True]
