"""The drawn birds: true annotations, the same bytes, and no way to the species but the parts that make it.

Whether something tells siblings apart is asked of linear probes: logistic regressions fitted on some images and
scored on others. A probe is *at chance* if its accuracy lies below the 99.9 % quantile of guessing on as many
images (normal approximation); a probe given the right thing must lie far above.
"""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cgnl.data.decoding import DataError
from cgnl.data.images import read_cub, read_cub_boxes, read_cub_parts
from cgnl.toy.birds import (
    PART_NAMES,
    Look,
    Pose,
    Scene,
    Species,
    catalogue,
    contact_sheet,
    draw_bird,
    draw_birds,
    draw_parts,
)
from cgnl.toy.birds.dataset import render
from cgnl.toy.birds.scene import draw_scene_of, sample_pose

CUB_PARTS = """1 back
2 beak
3 belly
4 breast
5 crown
6 forehead
7 left eye
8 left leg
9 left wing
10 nape
11 right eye
12 right leg
13 right wing
14 tail
15 throat
"""
SPECIES = catalogue(20)
GROUPS = [list(members) for _, members in groupby(SPECIES, key=lambda species: species.group)]
RELATIONS = [group for group in GROUPS if group[0].relation]
QUANTILE = 3.09  # 99.9 % of a normal distribution lie below


def name_of(group: list[Species]) -> str:
    return group[0].part


def tree_hash(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# The files


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("birds") / "set"
    draw_birds(root, num_species=4, train_images=3, test_images=2, size=96, seed=7, workers=1)
    return root


def test_real_reader_reads_the_set(small_set: Path) -> None:
    train, test = read_cub(small_set, "train"), read_cub(small_set, "test")
    assert train.classes == tuple(f"{i:03d}.{kind.name}" for i, kind in enumerate(catalogue(4), start=1))
    assert [sample.label for sample in train.samples] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [sample.label for sample in test.samples] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert not train.missing
    assert not test.missing
    for sample in train.samples + test.samples:
        with Image.open(sample.path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (96, 96))


def test_files_have_cubs_form(small_set: Path) -> None:
    assert (small_set / "parts" / "parts.txt").read_text() == CUB_PARTS
    first = (small_set / "images.txt").read_text().splitlines()[0]
    assert first == "1 001.Ringeye_Warbler/Ringeye_Warbler_0001_000001.jpg"
    assert (small_set / "train_test_split.txt").read_text().split()[:10] == [
        "1",
        "1",
        "2",
        "1",
        "3",
        "1",
        "4",
        "0",
        "5",
        "0",
    ]
    lines = (small_set / "parts" / "part_locs.txt").read_text().splitlines()
    assert len(lines) == 20 * 15
    # what is not seen is written as CUB does
    assert {line.split(maxsplit=2)[2] for line in lines if line.endswith(" 0")} == {"0.0 0.0 0"}


def test_annotations_are_those_of_the_images(small_set: Path) -> None:
    boxes = read_cub_boxes(small_set)
    names, parts = read_cub_parts(small_set)
    assert names == PART_NAMES
    for path, box in boxes.items():
        class_id, number = int(path.parent.name[:3]), int(path.stem.split("_")[-2])
        scene = render(catalogue(4)[class_id - 1], class_id, number, size=96, seed=7)
        with Image.open(path) as image:
            assert np.abs(np.asarray(image, dtype=int) - scene.image).mean() < 5
        assert box == scene.bounding_box
        assert parts[path] == {name: pytest.approx(xy, abs=0.051) for name, xy in scene.parts.items()}


def test_same_seed_same_bytes_with_any_number_of_workers(small_set: Path, tmp_path: Path) -> None:
    arguments = {"num_species": 4, "train_images": 3, "test_images": 2, "size": 96}
    draw_birds(tmp_path / "two", **arguments, seed=7, workers=2)
    draw_birds(tmp_path / "other", **arguments, seed=8, workers=2)
    expected, other = tree_hash(small_set), tree_hash(tmp_path / "other")
    assert tree_hash(tmp_path / "two") == expected
    assert other.keys() == expected.keys()
    assert all(other[name] != expected[name] for name in expected if name.endswith(".jpg"))


@pytest.mark.parametrize(
    ("told_by", "names"), [("part", ["Ringeye", "Almondeye"]), ("relation", ["Matchcap", "Oddcap"])]
)
def test_a_set_holds_only_what_is_told_by_a_part_or_by_a_relation(
    told_by: str, names: list[str], tmp_path: Path
) -> None:
    draw_birds(tmp_path / "set", num_species=4, train_images=1, test_images=1, size=64, told_by=told_by, workers=1)
    classes = (tmp_path / "set" / "classes.txt").read_text().split()[1::2]
    assert [name.split(".")[1].split("_")[0] for name in classes] == names


def test_a_set_of_nothing_and_a_wrong_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of 2 species, none differs from its sibling only in a relation"):
        draw_birds(tmp_path / "set", num_species=2, train_images=1, test_images=1, told_by="relation")
    with pytest.raises(ValueError, match=r"told_by \('shape'\) must be one of 'all', 'part', 'relation'"):
        draw_birds(tmp_path / "set", told_by="shape")


def test_a_close_up_shows_the_part_that_its_folder_names(tmp_path: Path) -> None:
    """The two colours of the tanagers' crown and tail are a red and a blue; the middle of a square is the part's."""
    draw_parts(tmp_path, num_species=4, train_images=12, test_images=2, size=112, side=48, workers=1)
    folders = {folder.name: list(folder.iterdir()) for folder in (tmp_path / "train").iterdir()}
    tanagers = {f"Tanager_{part}_{number}" for part in ("crown", "tail") for number in (1, 2)}
    assert folders.keys() == tanagers | {"Ringeye_Warbler", "Almondeye_Warbler"}
    assert {folder.name for folder in (tmp_path / "val").iterdir()} == folders.keys()
    for name in tanagers:
        assert len(folders[name]) >= 3
        reds = []
        for path in folders[name]:
            pixels = np.asarray(Image.open(path), dtype=int)
            assert pixels.shape == (48, 48, 3)
            middle = pixels[22:27, 22:27].reshape(-1, 3)
            reds.append(np.median(middle[:, 0] - middle[:, 2]) > 0)
        # a square at the image's border has its part beside the middle
        assert np.mean(reds) > 0.7 if name.endswith("1") else np.mean(reds) < 0.3


def test_an_earlier_set_is_replaced(small_set: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    draw_birds(root, num_species=3, train_images=1, test_images=1, size=64, workers=1)
    draw_birds(root, num_species=4, train_images=3, test_images=2, size=96, seed=7, workers=1)
    assert tree_hash(root) == tree_hash(small_set)
    assert list(tmp_path.iterdir()) == [root]


def test_an_earlier_set_survives_a_failure(small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "set"
    draw_birds(root, num_species=2, train_images=1, test_images=1, size=64, workers=1)
    before = tree_hash(root)

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        draw_birds(root, num_species=3, train_images=1, test_images=1, size=64, workers=1)
    assert tree_hash(root) == before
    assert list(tmp_path.iterdir()) == [root]


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"photos holds 1 files or folders that are not a drawn set"):
        draw_birds(photos, num_species=2, train_images=1, test_images=1, workers=1)
    assert (photos / "holiday.jpg").read_bytes() == b"mine"

    drawn = tmp_path / "drawn"
    draw_birds(drawn, num_species=2, train_images=1, test_images=0, size=64, workers=1)
    (drawn / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not a drawn set"):
        draw_birds(drawn, num_species=2, train_images=1, test_images=0, size=64, workers=1)

    with pytest.raises(DataError, match="must be a folder"):
        draw_birds(photos / "holiday.jpg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_species": 1}, r"num_species \(1\) must lie between 2 and 200"),
        ({"num_species": 201}, r"num_species \(201\) must lie between 2 and 200"),
        ({"train_images": -1}, r"train_images \(-1\) must be at least 0"),
        ({"train_images": 0, "test_images": 0}, "must be at least 1"),
        ({"size": 16}, r"size \(16\) must be at least 32"),
        ({"seed": -1}, r"seed \(-1\) must be at least 0"),
        ({"workers": 0}, r"workers \(0\) must be at least 1"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_birds(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


def test_contact_sheet_shows_each_species(small_set: Path) -> None:
    sheet = contact_sheet(small_set, images_per_species=2, columns=2, size=64)
    pixels = np.asarray(sheet, dtype=int)
    assert sheet.size == (2 * (2 * 64 + 8) - 8, 2 * (64 + 16))
    with Image.open(sorted((small_set / "images").glob("004.*/*.jpg"))[1]) as image:
        expected = np.asarray(image.resize((64, 64)), dtype=int)
    assert np.array_equal(pixels[-64:, -64:], expected)
    assert (pixels[:16, :64] < 128).any(), "no name above the first species"


# The species


@pytest.mark.parametrize("num_species", [*range(2, 24), 40, 199, 200])
def test_catalogue_holds_whole_groups(num_species: int) -> None:
    species = catalogue(num_species)
    assert len({kind.name for kind in species}) == len(species) == num_species
    groups = [list(members) for _, members in groupby(species, key=lambda kind: kind.group)]
    whole = {"wing bars": 3, "beak": 3}
    assert all(len(group) == whole.get(name_of(group), 2) for group in groups)
    if num_species >= 4 and num_species != 5:
        share = sum(bool(kind.relation) for kind in species) / num_species
        assert 0.15 < share <= 0.67


def test_relation_colours_have_equal_marginals() -> None:
    for group in RELATIONS:
        for kind in group:
            relation = kind.relation
            assert relation is not None
            looks = [kind.sample_look(np.random.default_rng([3, i])) for i in range(800)]
            pairs = [(look.colours[relation.first], look.colours[relation.second]) for look in looks]
            assert all((first == second) == relation.same for first, second in pairs)
            share = np.mean([first == relation.palette[0] for first, _ in pairs])
            assert abs(share - 0.5) < QUANTILE * 0.5 / 800**0.5


def test_siblings_differ_in_their_part_only() -> None:
    for group in GROUPS:
        if group[0].relation:
            continue
        for kind in group[1:]:
            a, b = group[0].look, kind.look
            differing = {name for name in a.colours if a.colours[name] != b.colours[name]}
            differing |= {
                each.name
                for each in fields(a)
                if each.name != "colours" and getattr(a, each.name) != getattr(b, each.name)
            }
            expected = {
                "beak": {"beak"},
                "belly": {"belly_pattern"},
                "eye": {"eye_mark"},
                "leg": {"left leg", "right leg", "feet"},
                "throat": {"throat_mark"},
                "wing bars": {"wing_bars"},
            }
            assert differing == expected[kind.part]


# The drawing


def sample(kind: Species, i: int, size: int) -> tuple[Look, Pose, Callable[[Look], Scene]]:
    """Return a look, a pose, and a function that draws the same scene with another look."""
    rng = np.random.default_rng([11, i])
    look = kind.sample_look(rng)
    pose = sample_pose(look, size, rng)
    return look, pose, lambda other: draw_scene_of(kind, other, pose, size, np.random.default_rng([12, i]))


def test_part_locations_and_visibility_are_true() -> None:
    """A part recoloured shows at its location if it is said to be seen, and not if it is not."""
    kind, size = RELATIONS[0][0], 128
    seen = dict.fromkeys(PART_NAMES, 0)
    hidden = dict(seen)
    contradictions: list[tuple[int, str]] = []
    for i in range(10):
        look, pose, draw = sample(kind, i, size)
        locations, plain = draw_bird(size, look, pose).locations, draw(look)
        for name in PART_NAMES:
            recoloured = replace(look, colours={**look.colours, name: (255, 0, 255)})
            change = np.abs(draw(recoloured).image.astype(int) - plain.image).sum(axis=-1)
            x, y = (int(value) for value in locations[name])
            around = change[y - 1 : y + 2, x - 1 : x + 2]
            if name in plain.parts:
                seen[name] += 1
                assert plain.parts[name] == pytest.approx(locations[name])
                contradictions += [(i, name)] * bool(np.median(around) < 140)
            else:
                hidden[name] += 1
                contradictions += [(i, name)] * bool(np.median(around) > 140)
    # the blurred edge of a leaf may run through a location
    assert len(contradictions) <= 2, contradictions
    assert min(seen.values()) >= 3, seen
    assert min(hidden[name] for name in ("left eye", "right eye", "left wing", "right wing")) >= 3
    assert sum(hidden[name] for name in ("beak", "crown", "belly", "tail", "left leg")) >= 1, "no leaf hides a part"


def test_mask_and_box_are_those_of_the_bird() -> None:
    """Where every region is recoloured, exactly the mask's pixels change."""
    kind, size = RELATIONS[1][0], 128
    for i in range(6):
        look, _, draw = sample(kind, i, size)
        bright, dark = (
            draw(replace(look, colours=dict.fromkeys(look.colours, colour))) for colour in ((255, 255, 255), (0, 0, 0))
        )
        change = (bright.image.astype(int) - dark.image).max(axis=-1)
        assert np.array_equal(bright.mask, dark.mask)
        assert change[~bright.mask].max() < 160
        assert np.median(change[bright.mask]) > 120
        rows, columns = np.nonzero(change > 90)
        left, top, width, height = bright.bounding_box
        assert (left, top) == (pytest.approx(columns.min(), abs=2), pytest.approx(rows.min(), abs=2))
        assert (left + width, top + height) == (
            pytest.approx(columns.max() + 1, abs=2),
            pytest.approx(rows.max() + 1, abs=2),
        )


def test_birds_lie_inside_the_image() -> None:
    for kind in SPECIES:
        for i in range(5):
            look, pose, _ = sample(kind, i, 96)
            alpha = draw_bird(96, look, pose).alpha
            assert max(alpha[0].max(), alpha[-1].max(), alpha[:, 0].max(), alpha[:, -1].max()) == 0


@pytest.mark.parametrize("group", [group for group in GROUPS if not group[0].relation], ids=name_of)
def test_siblings_show_each_colour_equally_much(group: list[Species]) -> None:
    """Otherwise a histogram of the image would tell them apart."""

    def shown(kind: Species, regions: tuple[str, ...], i: int) -> float:
        look, pose, _ = sample(kind, i, 160)
        white, black = (
            draw_bird(160, replace(look, colours={**look.colours, **dict.fromkeys(regions, colour)}), pose).colour
            for colour in ((255, 255, 255), (0, 0, 0))
        )
        return float((white - black).sum()) / pose.scale**2

    if name_of(group) == "leg":  # the siblings exchange the colours of two regions
        kinds, regions = [group[0], group[0]], [("left leg", "right leg"), ("feet",)]
    else:
        region = "beak" if name_of(group) == "beak" else "markings"
        kinds, regions = group, [(region,)] * len(group)
    areas = [np.mean([shown(kind, region, i) for i in range(24)]) for kind, region in zip(kinds, regions, strict=True)]
    assert min(areas) > 0.005
    assert max(areas) < 1.05 * min(areas), areas


# What tells the species apart

SIZE = 96
DRAWN = 120  # of each species; the odd numbers fit a probe, the even ones score it


class Drawn(NamedTuple):
    image: np.ndarray
    parts: dict[str, tuple[float, float]]
    pose: Pose


def draw_species(index: int) -> list[Drawn]:
    scenes = (render(SPECIES[index], index + 1, number, size=SIZE, seed=5) for number in range(1, DRAWN + 1))
    return [Drawn(scene.image, dict(scene.parts), scene.pose) for scene in scenes]


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[Drawn]]:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        birds = list(pool.map(draw_species, range(len(SPECIES))))
    return {kind.name: images for kind, images in zip(SPECIES, birds, strict=True)}


class Score(NamedTuple):
    accuracy: float
    chance: float
    spread: float  # standard deviation of the accuracy of guessing

    @property
    def excess(self) -> float:
        """Accuracy over chance, in standard deviations of guessing."""
        return (self.accuracy - self.chance) / self.spread


def probe(birds: dict[str, list[Drawn]], group: list[Species], feature: Callable[[Drawn], np.ndarray | None]) -> Score:
    """Score a linear probe that tells the species of a group apart; where there is no feature the image is left out."""
    features: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    labels: tuple[list[int], list[int]] = ([], [])
    for label, kind in enumerate(group):
        for number, bird in enumerate(birds[kind.name]):
            vector = feature(bird)
            if vector is not None:
                features[number % 2].append(vector)
                labels[number % 2].append(label)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300)).fit(features[0], labels[0])
    chance = 1 / len(group)
    spread = (chance * (1 - chance) / len(labels[1])) ** 0.5
    return Score(model.score(features[1], labels[1]), chance, spread)


def histogram(image: np.ndarray) -> np.ndarray:
    """Return the share of each of 6 x 6 x 6 colours."""
    levels = (image // 43).astype(int).reshape(-1, 3)
    return np.bincount(levels @ np.array([36, 6, 1]), minlength=216) / len(levels)


def thumbnail(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BOX)).ravel() / 255


def crop(bird: Drawn, part: str, half: float, raised: float = 0.0) -> np.ndarray | None:
    """Return 15 x 15 pixels around a part as if the bird faced right, or None where the part is hidden.

    Args:
        half: half the side of the square, in body lengths.
        raised: angle by which the square is turned with the bird.
    """
    names = [name for name in (part, f"{bird.pose.facing} {part}") if name in bird.parts]
    if not names:
        return None
    steps = np.linspace(-half, half, 15) * bird.pose.scale
    u, v = np.meshgrid(steps, steps)
    mirror = 1 if bird.pose.facing == "right" else -1
    x, y = bird.parts[names[0]]
    columns = x + mirror * (np.cos(raised) * u + np.sin(raised) * v)
    rows = y + np.cos(raised) * v - np.sin(raised) * u
    return bird.image[np.clip(rows, 0, SIZE - 1).astype(int), np.clip(columns, 0, SIZE - 1).astype(int)]


def crop_features(bird: Drawn, part: str) -> np.ndarray | None:
    patch = crop(bird, part, half=0.16)
    return None if patch is None else np.concatenate([patch.ravel() / 255, histogram(patch)])


@pytest.mark.parametrize("feature", [histogram, thumbnail])
def test_whole_images_tell_siblings_apart_by_nothing_linear(
    drawn: dict[str, list[Drawn]], feature: Callable[[np.ndarray], np.ndarray]
) -> None:
    scores = {name_of(group): probe(drawn, group, lambda bird: feature(bird.image)) for group in GROUPS}
    assert all(score.excess < QUANTILE for score in scores.values()), scores
    # All groups together would show what is too faint to see in one.
    assert sum(score.excess for score in scores.values()) / len(scores) ** 0.5 < QUANTILE, scores


@pytest.mark.parametrize("group", RELATIONS, ids=name_of)
def test_no_single_part_tells_relations_apart(drawn: dict[str, list[Drawn]], group: list[Species]) -> None:
    scores = {part: probe(drawn, group, lambda bird, part=part: crop_features(bird, part)) for part in PART_NAMES}
    assert all(score.excess < QUANTILE for score in scores.values()), scores


# Each part that siblings differ in: where to look, how far around, and whether it turns with body or head.
LOOKS_AT = {
    "eye": ("eye", 0.16, "head"),
    "wing bars": ("wing", 0.4, "body"),
    "beak": ("beak", 0.25, "head"),
    "leg": ("leg", 0.2, None),
    "throat": ("throat", 0.25, "head"),
    "belly": ("breast", 0.25, "body"),
}


@pytest.mark.parametrize("group", [group for group in GROUPS if not group[0].relation], ids=name_of)
def test_the_part_tells_siblings_apart(drawn: dict[str, list[Drawn]], group: list[Species]) -> None:
    part, half, turns_with = LOOKS_AT[name_of(group)]

    def feature(bird: Drawn) -> np.ndarray | None:
        angles = {"body": bird.pose.tilt, "head": 0.3 * bird.pose.tilt + bird.pose.head, None: 0.0}
        patch = crop(bird, part, half, angles[turns_with])
        return None if patch is None else patch.ravel() / 255

    score = probe(drawn, group, feature)
    assert score.accuracy > score.chance + 0.3, score


@pytest.mark.parametrize("group", RELATIONS, ids=name_of)
def test_both_parts_tell_relations_apart(drawn: dict[str, list[Drawn]], group: list[Species]) -> None:
    first, second = name_of(group).split("/")

    def feature(bird: Drawn) -> np.ndarray | None:
        patches = crop(bird, first, half=0.04), crop(bird, second, half=0.04)
        if patches[0] is None or patches[1] is None:
            return None
        a, b = (patch.reshape(-1, 3).mean(axis=0) / 255 - 0.5 for patch in patches if patch is not None)
        return np.outer(a, b).ravel()

    score = probe(drawn, group, feature)
    assert score.accuracy > score.chance + 0.3, score


def test_probes_find_a_colour_that_gives_siblings_away(drawn: dict[str, list[Drawn]]) -> None:
    """The probes at chance can fail: a mark of a part's size on one sibling's images is found at once."""

    def marked(bird: Drawn) -> np.ndarray:
        image = bird.image.copy()
        image[40:48, 40:48] = (255, 0, 255)
        return image

    group = GROUPS[0]
    given_away = {group[0].name: [bird._replace(image=marked(bird)) for bird in drawn[group[0].name]]}
    for feature in (histogram, thumbnail):
        assert probe(drawn | given_away, group, lambda bird, f=feature: f(bird.image)).excess > 2 * QUANTILE
