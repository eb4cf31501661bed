"""The drawn actions: UCF101's layout, the same bytes, and no way to the class but two distant events together.

Whether something tells the two classes of a pair apart is asked of probes, fitted on the clips of some groups and
scored on those of others. A probe is *at chance* if its accuracy lies below the 99.9 % quantile of guessing on as
many clips (normal approximation); a probe that is given the right thing must lie far above.
"""

import hashlib
import os
import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cgnl.data.decoding import DataError
from cgnl.data.videos.decoding import probe as probe_video
from cgnl.data.videos.decoding import read_frames
from cgnl.data.videos.layouts import read_videos
from cgnl.toy.actions import Play, Timeline, catalogue, contact_strip, draw_actions
from cgnl.toy.actions.dataset import play_of, render, timeline_of
from cgnl.toy.actions.plays import BALL_EVENTS, BODY_EVENTS

ACTIONS = catalogue(10)
QUANTILE = 3.09  # 99.9 % of a normal distribution lie below
SMALL: dict[str, Any] = {"num_classes": 4, "groups": 3, "clips_per_group": 2, "size": (64, 48), "container": "both"}


def tree_hash(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# The files


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("actions") / "set"
    draw_actions(root, **SMALL, seed=7, workers=1)
    return root


@pytest.fixture(scope="module")
def wide_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many groups as UCF101 has, with an odd number of clips."""
    root = tmp_path_factory.mktemp("actions") / "wide"
    draw_actions(root, num_classes=2, clips_per_group=1, size=(32, 32), seed=3)
    return root


def numbers_of(path: str) -> tuple[str, int, int]:
    """Return class, group and clip from a path as UCF101 writes it."""
    found = re.fullmatch(r"(\w+)/v_\1_g(\d\d)_c(\d\d)\.(?:avi|mp4)", path)
    assert found, path
    return found[1], int(found[2]), int(found[3])


def test_files_have_ucf101s_form(small_set: Path) -> None:
    names = [
        "FlagHoldOrHandstandLob",
        "FlagLobOrHandstandHold",
        "HandstandJuggleOrPushUpPump",
        "HandstandPumpOrPushUpJuggle",
    ]
    assert (small_set / "classInd.txt").read_text() == "".join(f"{i} {name}\n" for i, name in enumerate(names, 1))
    lists = {f"{split}list0{fold}.txt" for split in ("train", "test") for fold in (1, 2, 3)}
    assert {path.name for path in small_set.iterdir()} == {*names, *lists, "classInd.txt", "toy_actions.json"}
    files = {path.relative_to(small_set).as_posix() for path in small_set.glob("*/*")}
    suffixes = {1: "avi", 2: "avi", 3: "mp4"}
    assert files == {
        f"{name}/v_{name}_g{group:02d}_c{clip:02d}.{suffixes[group]}"
        for name, group, clip in product(names, (1, 2, 3), (1, 2))
    }
    assert (small_set / "testlist03.txt").read_text().splitlines()[:3] == [
        "FlagHoldOrHandstandLob/v_FlagHoldOrHandstandLob_g03_c01.mp4",
        "FlagHoldOrHandstandLob/v_FlagHoldOrHandstandLob_g03_c02.mp4",
        "FlagLobOrHandstandHold/v_FlagLobOrHandstandHold_g03_c01.mp4",
    ]
    assert (small_set / "trainlist01.txt").read_text().splitlines()[3:5] == [
        "FlagHoldOrHandstandLob/v_FlagHoldOrHandstandLob_g03_c02.mp4 1",
        "FlagLobOrHandstandHold/v_FlagLobOrHandstandHold_g02_c01.avi 2",
    ]


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_real_reader_reads_the_set(small_set: Path, fold: int) -> None:
    train, test = (read_videos(small_set, split, fold=fold) for split in ("train", "test"))
    assert train.classes == test.classes == tuple(action.name for action in catalogue(4))
    assert [sample.label for sample in train.samples] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert [sample.label for sample in test.samples] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert not train.missing
    assert not test.missing
    assert {sample.path for sample in train.samples + test.samples} == set(small_set.glob("*/v_*"))


@pytest.mark.parametrize(("name", "fold"), list(product(("small_set", "wide_set"), (1, 2, 3))))
def test_lists_split_by_group_and_balance_the_plays(name: str, fold: int, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(name)
    clips = {
        split: [numbers_of(line.split()[0]) for line in (root / f"{split}list0{fold}.txt").read_text().splitlines()]
        for split in ("train", "test")
    }
    groups = {split: {group for _, group, _ in listed} for split, listed in clips.items()}
    per_fold = {"small_set": 1, "wide_set": 7}[name]
    assert groups["test"] == set(range(1 + per_fold * (fold - 1), 1 + per_fold * fold))
    assert groups["train"] == set(range(1, {"small_set": 4, "wide_set": 26}[name])) - groups["test"]
    class_ids = {action.name: i for i, action in enumerate(ACTIONS, start=1)}
    for listed in clips.values():
        for action in {action for action, _, _ in listed}:
            plays = Counter(play_of(class_ids[action], group, clip) for cls, group, clip in listed if cls == action)
            assert set(plays) == set(ACTIONS[class_ids[action] - 1].plays)
            assert abs(plays[ACTIONS[class_ids[action] - 1].plays[0]] - plays.total() / 2) <= 1


def test_videos_are_real_and_show_what_was_drawn(small_set: Path) -> None:
    intervals = set()
    for class_id, group, clip in product((1, 4), (1, 3), (1, 2)):
        path = next((small_set / ACTIONS[class_id - 1].name).glob(f"*_g{group:02d}_c{clip:02d}.*"))
        expected = render(class_id, group, clip, size=(64, 48), seed=7)
        info = probe_video(path)
        assert (info.frames, info.fps, info.width, info.height) == (len(expected), 25, 64, 48)
        decoded, lost = read_frames(path, range(len(expected)))
        assert lost == 0
        difference = np.abs(decoded.astype(int) - expected).mean(axis=(1, 2, 3))
        assert difference.max() < 8, path
        with av.open(path) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == {".avi": "mpeg4", ".mp4": "h264"}[path.suffix]
            types = "".join(av.video.frame.PictureType(frame.pict_type).name for frame in container.decode(stream))
        assert ("B" in types) == (path.suffix == ".mp4")
        intervals.add(types.rfind("I") >= 12)
    assert intervals == {True, False}, "intra frames are near each other in some videos and not in others"


def test_same_seed_same_bytes_with_any_number_of_workers(small_set: Path, tmp_path: Path) -> None:
    draw_actions(tmp_path / "two", **SMALL, seed=7, workers=2)
    expected = tree_hash(small_set)
    assert tree_hash(tmp_path / "two") == expected
    assert np.array_equal(render(2, 3, 1, size=(64, 48), seed=7), render(2, 3, 1, size=(64, 48), seed=7))
    assert not np.array_equal(
        render(2, 3, 1, size=(64, 48), seed=7, every=40), render(2, 3, 1, size=(64, 48), seed=8, every=40)
    )
    assert np.array_equal(render(2, 3, 1, size=(64, 48), every=9), render(2, 3, 1, size=(64, 48))[::9])


def test_an_earlier_set_is_replaced(tmp_path: Path) -> None:
    root = tmp_path / "set"
    small: dict[str, Any] = {"groups": 3, "clips_per_group": 1, "size": (32, 32), "workers": 1}
    draw_actions(root, num_classes=4, container="mp4", **small)
    draw_actions(root, num_classes=2, **small)
    assert len(list(root.glob("*/*.avi"))) == 6
    assert not list(root.glob("*/*.mp4"))
    assert list(tmp_path.iterdir()) == [root]


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.mp4").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"holds 1 files or folders that are not a drawn set of actions"):
        draw_actions(tmp_path, groups=3, workers=1)
    assert (tmp_path / "holiday.mp4").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 3}, r"num_classes \(3\) must be an even number from 2 to 10"),
        ({"num_classes": 12}, r"num_classes \(12\) must be an even number from 2 to 10"),
        ({"groups": 2}, r"groups \(2\) must lie between 3 and 99"),
        ({"clips_per_group": 0}, r"clips_per_group \(0\) must lie between 1 and 99"),
        ({"frames": 79}, r"frames \(79\) must be at least 80"),
        ({"size": (160, 121)}, r"size \(\(160, 121\)\) must be two even numbers"),
        ({"size": (160,)}, r"size \(\(160,\)\) must be two even numbers"),
        ({"size": (120, 160)}, r"size \(\(120, 160\)\) must be at least as wide as high, and at most three times"),
        ({"seed": -1}, r"seed \(-1\) must be at least 0"),
        ({"container": "mkv"}, r"container \('mkv'\) must be one of avi, mp4, both"),
        ({"workers": 0}, r"workers \(0\) must be at least 1"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_actions(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


def test_contact_strip_shows_each_class(small_set: Path) -> None:
    strip = np.asarray(contact_strip(small_set, videos_per_class=2, frames=4, height=48, columns=2), dtype=int)
    assert strip.shape == (2 * (2 * 48 + 18) + 8, 2 * 4 * 64 + 8, 3)
    path = small_set / ACTIONS[3].name / f"v_{ACTIONS[3].name}_g01_c02.avi"
    frames = probe_video(path).frames
    assert np.array_equal(strip[-48:, -64:], read_frames(path, [int(3.5 * frames / 4)])[0][0])
    assert (strip[:18, :200] < 128).any(), "no name above the first class"


# The classes


@pytest.mark.parametrize("num_classes", range(2, 12, 2))
def test_classes_come_in_pairs_with_equal_marginals(num_classes: int) -> None:
    actions = catalogue(num_classes)
    assert actions == ACTIONS[:num_classes]
    assert [action.name for action in actions] == sorted({action.name for action in actions})
    plays = [play for action in actions for play in action.plays]
    assert len(set(plays)) == len(plays) == 2 * num_classes
    for one, other in zip(actions[::2], actions[1::2], strict=True):
        assert one.pair == other.pair
        for events in (lambda play: play.body), (lambda play: play.ball):
            marginal = {events(play) for play in one.plays}
            assert marginal == {events(play) for play in other.plays}
            assert len(marginal) == 2


def test_events_one_by_one_tell_the_pair() -> None:
    """The sum of one score for each event is largest for the right pair."""
    for action in ACTIONS:
        for play in action.plays:
            scores = [
                (play.body in {p.body for p in other.plays}) + (play.ball in {p.ball for p in other.plays})
                for other in ACTIONS[::2]
            ]
            assert scores.index(2) == action.pair
            assert sorted(scores)[-2] < 2


def test_timelines_keep_events_apart_and_in_reach() -> None:
    timelines = [timeline_of(1, 1, clip) for clip in range(1, 400)]
    assert {timeline.frames for timeline in timelines} == set(range(72, 81))
    for timeline in timelines:
        (begin, end), (start, stop) = timeline.body, timeline.ball
        assert 0 <= begin < end < start < stop <= timeline.frames
        assert end - begin == stop - start >= 20
        assert start - end >= 25
        # what a clip of 64 frames sees at the worst
        assert end - max(begin, timeline.frames - 64) >= 9
        assert min(stop, 64) - start >= 9


def test_the_camera_stays_over_the_landscape() -> None:
    for group in range(1, 21):
        assert render(1, group, 1, size=(192, 64), every=20).shape[1:] == (64, 192, 3)


def test_figure_and_landscape_are_those_of_the_group() -> None:
    def ground(class_id: int, group: int) -> np.ndarray:
        colour = np.median(render(class_id, group, 1, size=(64, 48), every=40)[:, -3:].reshape(-1, 3), axis=0)
        return colour / colour.sum()

    same = [np.abs(ground(1, group) - ground(8, group)).sum() for group in range(1, 7)]
    other = [np.abs(ground(1, group) - ground(1, group + 1)).sum() for group in range(1, 7)]
    assert max(same) < 0.25 * np.mean(other)


# What tells the classes of a pair apart

GROUPS, CLIPS, EVERY = 18, 4, 8
TEST_GROUPS = range(1, 8)


def thumbnails(video: np.ndarray) -> np.ndarray:
    """Return 16 x 12 colours of each frame."""
    blocks = video.reshape(len(video), 12, video.shape[1] // 12, 16, video.shape[2] // 16, 3)
    return blocks.mean(axis=(2, 4)).reshape(len(video), -1) / 255


def histograms(video: np.ndarray) -> np.ndarray:
    """Return the share of each of 6 x 6 x 6 colours in each frame."""
    levels = (video // 43).astype(int).reshape(len(video), -1, 3) @ np.array([36, 6, 1])
    return np.stack([np.bincount(frame, minlength=216) for frame in levels]) / levels.shape[1]


def gradients(video: np.ndarray) -> np.ndarray:
    """Return the strength of gradients in 8 directions in each of 8 x 6 squares of each frame."""
    grey = video.mean(axis=3, dtype=np.float32) / 255
    down, right = np.gradient(grey, axis=(1, 2))
    strength, direction = np.hypot(right, down), (np.arctan2(down, right) % np.pi / np.pi * 8).astype(int) % 8
    squares = len(video), 6, video.shape[1] // 6, 8, video.shape[2] // 8
    cells = [(strength * (direction == i)).reshape(squares).sum(axis=(2, 4)) for i in range(8)]
    return np.stack(cells, axis=-1).reshape(len(video), -1)


FEATURES = {"thumbnails": thumbnails, "histograms": histograms, "gradients": gradients}


class Drawn(NamedTuple):
    """The features of every eighth frame of one video: what a network sees of a clip, and a little more."""

    class_id: int
    group: int
    play: Play
    timeline: Timeline
    features: dict[str, np.ndarray]

    def frames_of(self, span: tuple[int, int]) -> np.ndarray:
        """Return the numbers of the rows that lie well inside an event."""
        numbers = EVERY * np.arange(len(self.features["histograms"]))
        return np.nonzero((numbers >= span[0] + 3) & (numbers < span[1] - 3))[0]


def draw_class(class_id: int) -> list[Drawn]:
    videos = []
    for group, clip in product(range(1, GROUPS + 1), range(1, CLIPS + 1)):
        video = render(class_id, group, clip, size=(64, 48), seed=5, every=EVERY)
        features = {name: feature(video).astype(np.float32) for name, feature in FEATURES.items()}
        videos.append(
            Drawn(class_id, group, play_of(class_id, group, clip), timeline_of(class_id, group, clip, seed=5), features)
        )
    return videos


@pytest.fixture(scope="module")
def drawn() -> list[Drawn]:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return [video for videos in pool.map(draw_class, range(1, 11)) for video in videos]


def linear() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))


def perceptron() -> Any:
    return make_pipeline(StandardScaler(), MLPClassifier((64,), alpha=1.0, max_iter=60, random_state=0))


PROBES = {"linear": linear, "perceptron": perceptron}


@pytest.fixture(autouse=True)
def _quiet_perceptrons() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


class Score(NamedTuple):
    accuracy: float
    chance: float
    count: int

    @property
    def excess(self) -> float:
        """Accuracy over chance, in standard deviations of guessing."""
        return (self.accuracy - self.chance) / (self.chance * (1 - self.chance) / self.count) ** 0.5


def score(model: Any, x: list[np.ndarray], y: list[int], groups: list[int]) -> Score:
    inputs, labels, tested = np.stack(x), np.array(y), np.isin(groups, TEST_GROUPS)
    accuracy = model.fit(inputs[~tested], labels[~tested]).score(inputs[tested], labels[tested])
    return Score(accuracy, 1 / len(set(y)), int(tested.sum()))


def score_pairs(
    videos: list[Drawn], probe: Callable[[], Any], feature: Callable[[Drawn], np.ndarray]
) -> tuple[list[Score], float]:
    """Score a probe on the two classes of each pair; the last value is the excess of all pairs together."""
    scores = []
    for pair in range(5):
        members = [video for video in videos if (video.class_id - 1) // 2 == pair]
        labels = [video.class_id % 2 for video in members]
        scores.append(score(probe(), [feature(v) for v in members], labels, [v.group for v in members]))
    return scores, sum(each.excess for each in scores) / len(scores) ** 0.5


def assert_chance(scores: list[Score], together: float) -> None:
    assert all(each.excess < QUANTILE for each in scores), scores
    # All pairs together would show what is too faint to see in one.
    assert together < QUANTILE, scores


def mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=0)


def mean_and_spread(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values.mean(axis=0), values.std(axis=0)])


@pytest.mark.parametrize("statistic", [mean, mean_and_spread])
@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("probe", PROBES)
def test_bags_of_frames_tell_nothing(
    drawn: list[Drawn], probe: str, name: str, statistic: Callable[[np.ndarray], np.ndarray]
) -> None:
    assert_chance(*score_pairs(drawn, PROBES[probe], lambda video: statistic(video.features[name])))


@pytest.mark.parametrize("when", ["body", "ball", "between"])
@pytest.mark.parametrize("probe", PROBES)
def test_single_frames_tell_nothing(drawn: list[Drawn], probe: str, when: str) -> None:
    def frame(video: Drawn) -> np.ndarray:
        timeline = video.timeline
        spans = {"body": timeline.body, "ball": timeline.ball, "between": (timeline.body[1], timeline.ball[0])}
        return video.features["gradients"][video.frames_of(spans[when])[0]]

    assert_chance(*score_pairs(drawn, PROBES[probe], frame))


def test_bags_of_frames_tell_the_pair(drawn: list[Drawn]) -> None:
    bags = [mean(video.features["gradients"]) for video in drawn]
    pairs = [(video.class_id - 1) // 2 for video in drawn]
    found = score(linear(), bags, pairs, [video.group for video in drawn])
    assert found.accuracy > 0.4, found


def test_two_events_read_from_single_frames_tell_the_class(drawn: list[Drawn]) -> None:
    """Each event is recognised from one of its frames by a linear probe; what goes with what is then the class."""
    guesses: dict[str, np.ndarray] = {}
    groups = [video.group for video in drawn]
    tested = np.isin(groups, TEST_GROUPS)
    for kind, events in (("body", BODY_EVENTS), ("ball", BALL_EVENTS)):
        x, y, owners = [], [], []
        for i, video in enumerate(drawn):
            for row in video.frames_of(getattr(video.timeline, kind)):
                x.append(video.features["gradients"][row])
                y.append(events.index(getattr(video.play, kind)))
                owners.append(i)
        owner = np.array(owners)
        training = ~tested[owner]
        model = linear().fit(np.stack(x)[training], np.array(y)[training])
        chances = np.zeros((len(drawn), 5))
        np.add.at(chances, owner, model.predict_log_proba(np.stack(x)))
        guesses[kind] = chances.argmax(axis=1)
        right = guesses[kind] == [events.index(getattr(video.play, kind)) for video in drawn]
        assert right[tested].mean() > 0.85, (kind, right[tested].mean())

    class_of = {play: i for i, action in enumerate(ACTIONS, start=1) for play in action.plays}
    found = [
        class_of.get(Play(BODY_EVENTS[body], BALL_EVENTS[ball]), 0)
        for body, ball in zip(guesses["body"], guesses["ball"], strict=True)
    ]
    right = np.array(found) == [video.class_id for video in drawn]
    assert right[tested].mean() > 0.75, right[tested].mean()


def test_true_events_tell_the_class(drawn: list[Drawn]) -> None:
    """A probe at chance on the events one by one finds the class as soon as it is given their product."""

    def events(video: Drawn) -> np.ndarray:
        plays = ACTIONS[video.class_id - 1].plays
        bodies, balls = sorted({play.body for play in plays}), sorted({play.ball for play in plays})
        return np.array([bodies.index(video.play.body), balls.index(video.play.ball)]) - 0.5

    assert_chance(*score_pairs(drawn, linear, events))
    scores, _ = score_pairs(drawn, linear, lambda video: np.append(events(video), events(video).prod()))
    assert all(each.accuracy == 1 for each in scores), scores


def test_probes_find_a_mark_that_gives_a_class_away(drawn: list[Drawn]) -> None:
    """The probes at chance can fail."""

    def marked(video: Drawn) -> np.ndarray:
        return mean(video.features["gradients"]) * (1 + 0.4 * (video.class_id % 2))

    for probe in PROBES.values():
        assert score_pairs(drawn, probe, marked)[1] > 2 * QUANTILE


@pytest.mark.slow
def test_files_tell_nothing(tmp_path: Path) -> None:
    """Number of frames, bytes, container: by themselves and together."""
    draw_actions(tmp_path / "set", groups=GROUPS, clips_per_group=1, size=(64, 48), container="both", seed=5)
    numbers: dict[int, list[tuple[int, np.ndarray]]] = {}
    for class_id, action in enumerate(ACTIONS, start=1):
        for path in sorted((tmp_path / "set" / action.name).iterdir()):
            frames, size = probe_video(path).frames, path.stat().st_size
            basic = np.array([frames, np.log(size), np.log(size / frames), path.suffix == ".mp4"])
            group = numbers_of(f"{action.name}/{path.name}")[1]
            numbers.setdefault((class_id - 1) // 2, []).append((group, np.append(basic, class_id % 2)))
    for probe in PROBES.values():
        scores = []
        for members in numbers.values():
            x = [values[:-1] for _, values in members]
            scores.append(score(probe(), x, [int(v[-1]) for _, v in members], [group for group, _ in members]))
        assert_chance(scores, sum(each.excess for each in scores) / len(scores) ** 0.5)


def test_without_pyav_one_sentence_says_what_to_install():
    code = "import sys; sys.modules['av'] = None; import cgnl.toy.actions"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == ("ImportError: cgnl.toy.actions needs av: pip install 'cgnl[video]'")
