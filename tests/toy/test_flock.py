"""The drawn flock: masks that are the pixels the image shows, in forms that COCO's own code reads, the same bytes."""

import hashlib
from collections import Counter
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cgnl.data.decoding import DataError
from cgnl.toy.birds.scenery import expose
from cgnl.toy.flock import CATEGORY_IDS, catalogue, contact_sheet, draw_flock
from cgnl.toy.flock.dataset import render
from cgnl.toy.flock.masks import border_polygons, compressed, run_counts
from cgnl.toy.flock.scene import MIN_PIXELS, Stage, set_stage
from cgnl.toy.flock.species import MAX_SPECIES

# pycocotools knows numpy 1 only.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ARGUMENTS: dict[str, Any] = {"num_species": 5, "train_images": 16, "test_images": 5, "size": (128, 96), "seed": 3}


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("flock") / "set"
    draw_flock(root, **ARGUMENTS, workers=1)
    return root


@pytest.fixture(scope="module")
def coco(small_set: Path) -> dict[str, COCO]:
    return {split: COCO(small_set / "annotations" / f"instances_{split}.json") for split in ("train", "val")}


def tree_hash(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# The files


def test_files_have_cocos_form(small_set: Path, coco: dict[str, COCO]) -> None:
    assert {path.name for path in small_set.iterdir()} == {"annotations", "train", "val", "toy_flock.json"}
    ids: list[int] = []
    for split, count in (("train", 16), ("val", 5)):
        truth = coco[split].dataset
        assert truth.keys() == {"info", "licenses", "images", "annotations", "categories"}
        assert truth["categories"] == [
            {"id": i, "name": kind.name, "supercategory": "bird"}
            for i, kind in zip((1, 3, 4, 7, 11), catalogue(5), strict=True)
        ]
        assert len(truth["images"]) == count
        assert {path.name for path in (small_set / split).iterdir()} == {each["file_name"] for each in truth["images"]}
        for each in truth["images"]:
            assert each["file_name"] == f"{each['id']:012d}.jpg"
            with Image.open(small_set / split / each["file_name"]) as image:
                assert (image.format, image.mode) == ("JPEG", "RGB")
                assert image.size == (each["width"], each["height"]) == (128, 96)
        ids += [each["id"] for each in truth["images"]]
        assert {each["image_id"] for each in truth["annotations"]} <= {each["id"] for each in truth["images"]}
    annotations = [each for split in coco.values() for each in split.dataset["annotations"]]
    assert len(set(ids)) == 21
    assert len({each["id"] for each in annotations}) == len(annotations)
    assert {each["category_id"] for each in annotations} == {1, 3, 4, 7, 11}


def test_annotations_are_those_of_the_drawing(coco: dict[str, COCO], small_set: Path) -> None:
    """Decoded by COCO's own code, each segmentation gives the very pixels of the scene."""
    forms: Counter[tuple[str, int]] = Counter()
    for split, truth in coco.items():
        for image_id in truth.getImgIds():
            scene = render(image_id, num_species=5, size=(128, 96), seed=3)
            with Image.open(small_set / split / truth.imgs[image_id]["file_name"]) as file:
                assert np.abs(np.asarray(file, dtype=int) - scene.image).mean() < 5
            annotations = truth.loadAnns(truth.getAnnIds(image_id))
            for each, drawn in zip(annotations, scene.objects, strict=True):
                mask = truth.annToMask(each).astype(bool)
                assert np.array_equal(mask, drawn.mask)
                assert each["area"] == mask.sum() >= MIN_PIXELS
                rows, columns = np.nonzero(mask)
                left, top = columns.min(), rows.min()
                assert each["bbox"] == [left, top, columns.max() + 1 - left, rows.max() + 1 - top]
                assert each["category_id"] == CATEGORY_IDS[drawn.species]
                assert each["iscrowd"] == drawn.crowd
                form = each["segmentation"]
                kind = "polygons" if isinstance(form, list) else type(form["counts"]).__name__
                forms[kind, each["iscrowd"]] += 1
    assert forms.keys() == {("polygons", 0), ("str", 0), ("list", 0), ("list", 1)}


def test_same_seed_same_bytes_with_any_number_of_workers(small_set: Path, tmp_path: Path) -> None:
    draw_flock(tmp_path / "two", **ARGUMENTS, workers=2)
    draw_flock(tmp_path / "other", **{**ARGUMENTS, "seed": 4}, workers=2)
    expected, other = tree_hash(small_set), tree_hash(tmp_path / "other")
    assert tree_hash(tmp_path / "two") == expected
    assert other.keys() == expected.keys()
    assert set(other.values()).isdisjoint(expected.values())


def test_val_does_not_depend_on_the_size_of_train(small_set: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    draw_flock(root, num_species=2, train_images=1, test_images=0, size=(64, 64), workers=1)
    draw_flock(root, **{**ARGUMENTS, "train_images": 0}, workers=1)
    new, expected = tree_hash(root), tree_hash(small_set)
    val = {name for name in expected if "val" in name}
    assert {name: new[name] for name in val} == {name: expected[name] for name in val}
    assert new.keys() - val == {"annotations/instances_train.json", "toy_flock.json"}, "the earlier set is not replaced"
    assert list(tmp_path.iterdir()) == [root]


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"holds 1 files or folders that are not a drawn set of flocks"):
        draw_flock(tmp_path, train_images=1, test_images=1, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_species": 0}, r"num_species \(0\) must lie between 1 and 8"),
        ({"num_species": 9}, r"num_species \(9\) must lie between 1 and 8"),
        ({"train_images": -1}, r"train_images \(-1\) must be at least 0"),
        ({"test_images": -1}, r"test_images \(-1\) must be at least 0"),
        ({"train_images": 0, "test_images": 0}, "must be at least 1"),
        ({"size": (64, 63)}, r"size \(\(64, 63\)\) must be two numbers of at least 64, width and height"),
        ({"seed": -1}, r"seed \(-1\) must be at least 0"),
        ({"workers": 0}, r"workers \(0\) must be at least 1"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_flock(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


def test_contact_sheet_shows_the_truth(small_set: Path, coco: dict[str, COCO]) -> None:
    sheet = contact_sheet(small_set, split="train", images=3, columns=2)
    assert sheet.size == (2 * (2 * 128 + 6) - 6, 2 * (96 + 6) - 6)
    pixels = np.asarray(sheet, dtype=int)
    truth = coco["train"]
    with Image.open(small_set / "train" / truth.dataset["images"][0]["file_name"]) as image:
        assert np.array_equal(pixels[:96, :128], np.asarray(image))
    difference = np.abs(pixels[:96, 128:256] - pixels[:96, :128]).sum(axis=-1)
    for each in truth.loadAnns(truth.getAnnIds(truth.dataset["images"][0]["id"])):
        assert np.median(difference[truth.annToMask(each).astype(bool)]) > 40
        x, y, width, height = each["bbox"]
        assert (difference[y + height - 1, x : x + width] > 20).mean() > 0.9


# The masks' forms


def random_masks(rng: np.random.Generator) -> list[np.ndarray]:
    """Return noise of all densities, in single pixels and in blocks, down to one pixel and up to full."""
    masks = []
    for i in range(600):
        mask = rng.random(rng.integers(1, 16, 2)) < rng.uniform(0.1, 1.1)
        block = np.ones(rng.integers(1, 5, 2) if i % 2 else (1, 1), dtype=int)
        masks.append(np.kron(mask, block).astype(bool))
    return [mask for mask in masks if mask.any()]


def has_hole(mask: np.ndarray) -> bool:
    """Tell by flooding from outside, through corners too, whether pixels outside the mask stay dry."""
    free = ~np.pad(mask, 1)
    wet = np.zeros_like(free)
    wet[0] = True
    while True:
        spread = np.pad(wet, 1)
        height, width = wet.shape
        shifted = [spread[y : y + height, x : x + width] for y in range(3) for x in range(3)]
        following = np.logical_or.reduce(shifted) & free
        if np.array_equal(following, wet):
            return bool((free & ~wet).any())
        wet = following


def test_polygons_decode_to_the_very_mask() -> None:
    holes = 0
    for mask in random_masks(np.random.default_rng(0)):
        polygons = border_polygons(mask)
        assert (polygons is None) == has_hole(mask)
        if polygons is None:
            holes += 1
            continue
        decoded = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *mask.shape)))
        assert np.array_equal(decoded, mask)
    assert 100 < holes < 500


def test_run_counts_are_cocos() -> None:
    for mask in random_masks(np.random.default_rng(1)):
        expected = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        counts = run_counts(mask)
        assert compressed(counts).encode() == expected["counts"]
        assert coco_mask.frPyObjects({"size": list(mask.shape), "counts": counts}, *mask.shape) == expected


# The drawing


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    return [set_stage(catalogue(MAX_SPECIES), (160, 120), np.random.default_rng([9, i])) for i in range(20)]


def test_masks_are_what_a_marker_colour_shows(stages: list[Stage]) -> None:
    """With one object white and all else black, the pixels brighter than half are its mask."""
    for stage in stages:
        for number, mask in enumerate(stage.masks()):
            layers = [replace(layer, colour=np.zeros_like(layer.colour)) for layer in stage.layers]
            white = np.repeat(stage.layers[number].alpha[..., None], 3, axis=-1)
            layers[number] = replace(layers[number], colour=white)
            shown = Stage(np.zeros_like(stage.backdrop), tuple(layers), 0.0).canvas()[..., 0]
            certain = np.abs(shown - 0.5) > 1e-5
            assert certain.mean() > 0.999
            assert np.array_equal(mask[certain], (shown > 0.5)[certain])


def test_an_image_without_the_bird_differs_in_its_mask_only(stages: list[Stage]) -> None:
    hidden_by_others = 0
    for stage in stages:
        for number, mask in enumerate(stage.masks()):
            if stage.layers[number].species is None:
                continue
            others = stage.layers[:number] + stage.layers[number + 1 :]
            with_bird, without = (
                expose(each.canvas(), each.light, np.random.default_rng(0)).astype(int)
                for each in (stage, replace(stage, layers=others))
            )
            change = np.abs(with_bird - without).sum(axis=-1)
            # Pixels that the bird covers in part lie along its outline.
            near = np.pad(mask, 1)
            near = np.logical_or.reduce([near[y : y + 120, x : x + 160] for y in range(3) for x in range(3)])
            touched = stage.layers[number].alpha > 0.02
            assert change[~touched].max() == 0
            assert (change[~near] > 60).mean() < 0.002
            assert (change[mask] > 10).mean() > 0.9
            hidden_by_others += int((stage.layers[number].alpha > 0.5).sum() > 1.1 * mask.sum())
    assert hidden_by_others > len(stages)


def test_birds_overlap_and_masks_do_not(stages: list[Stage]) -> None:
    overlapping, numbers = 0, Counter[int]()
    for stage in stages:
        masks = np.stack(stage.masks())
        assert masks.sum(axis=0).max() <= 1
        birds = [layer for layer in stage.layers if layer.species is not None and not layer.crowd]
        numbers[len(birds)] += 1
        shapes = [layer.alpha > 0.5 for layer in birds]
        overlapping += any((a & b).sum() >= MIN_PIXELS for a, b in combinations(shapes, 2))
    assert overlapping >= 0.5 * len(stages)
    assert numbers.keys() <= set(range(1, 7))
    assert len(numbers) >= 4, numbers


def test_no_bird_is_drawn_without_an_annotation(stages: list[Stage]) -> None:
    """Every bird on the stage shows enough of itself to be annotated."""
    for stage in stages:
        for layer, mask in zip(stage.layers, stage.masks(), strict=True):
            if layer.species is not None:
                assert mask.sum() >= max(MIN_PIXELS, 0.2 * layer.size)


def test_leaves_hide_birds(stages: list[Stage]) -> None:
    """Plants hide far more of the birds than the branches alone would."""
    hidden = 0
    for stage in stages:
        for number, layer in enumerate(stage.layers):
            plants = [each.alpha for each in stage.layers[number + 1 :] if each.species is None]
            if layer.species is not None and plants:
                hidden += int(((layer.alpha > 0.5) & (np.max(plants, axis=0) > 0.5)).sum())
    assert hidden > 60 * len(stages)


def test_the_smallest_images_can_be_drawn() -> None:
    for image_id in range(15):
        scene = render(image_id, num_species=MAX_SPECIES, size=(64, 64), seed=1)
        assert scene.image.shape == (64, 64, 3)
        assert any(not each.crowd for each in scene.objects)


# The species


def test_species_can_be_told_by_the_colours_of_their_masks() -> None:
    """A linear probe on a colour histogram of the visible part finds the species of nearly every bird."""
    features, labels = [], []
    for image_id in range(70):
        scene = render(image_id, num_species=MAX_SPECIES, size=(96, 72), seed=2)
        for each in scene.objects:
            if not each.crowd:
                levels = (scene.image[each.mask] // 64).astype(int) @ np.array([16, 4, 1])
                features.append(np.bincount(levels, minlength=64) / len(levels))
                labels.append(each.species)
    half = len(labels) // 2
    assert set(labels) == set(range(MAX_SPECIES))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(features[:half], labels[:half])
    assert (score := model.score(features[half:], labels[half:])) > 0.85, score


def test_category_ids_have_gaps() -> None:
    assert len(CATEGORY_IDS) == MAX_SPECIES
    assert any(b - a > 1 for a, b in pairwise(CATEGORY_IDS))
    assert len({kind.name for kind in catalogue(MAX_SPECIES)}) == MAX_SPECIES
