"""The drawn actions as files, in the exact layout of UCF101."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw

from cgnl.data.scanning import count_workers
from cgnl.settings.checks import within
from cgnl.toy.actions.encoding import write_video
from cgnl.toy.actions.plays import MAX_CLASSES, SHORTEST, Action, Play, Timeline, catalogue, sample_timeline
from cgnl.toy.actions.scene import draw_video
from cgnl.toy.folder import in_processes, replacing, tiled, write_lines

Container = Literal["avi", "mp4", "both"]

# Written last: a folder that has it is a whole set.
_SETTINGS_FILE = "toy_actions.json"
_NUM_FOLDS = 3
_KEYFRAME_INTERVALS = (12, 250)


@dataclass(frozen=True)
class _Settings:
    num_classes: int
    groups: int
    clips_per_group: int
    frames: int
    size: tuple[int, int]
    seed: int
    container: Container

    def __post_init__(self) -> None:
        within("frames", self.frames, SHORTEST)
        _check_size(self.size)
        limits = {"groups": (_NUM_FOLDS, 99), "clips_per_group": (1, 99)}
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} ({getattr(self, name)}) must lie between {least} and {most}")
        within("seed", self.seed, 0)
        if self.container not in get_args(Container):
            raise ValueError(f"container ({self.container!r}) must be one of {', '.join(get_args(Container))}")


@dataclass(frozen=True)
class _Item:
    """One video of the set; all numbers count from 1, as in UCF101's names."""

    class_id: int
    group: int
    clip: int
    path: str


def draw_actions(
    root: str | Path,
    *,
    num_classes: int = 10,
    groups: int = 25,
    clips_per_group: int = 4,
    frames: int = 80,
    size: tuple[int, int] = (160, 120),
    seed: int = 0,
    container: Container = "avi",
    workers: int | None = None,
) -> None:
    """Draw a set of videos and write it in the layout of UCF101.

    Each class is a folder of videos ``v_Class_gXX_cYY``; ``classInd.txt`` numbers the classes, and three pairs of
    lists ``trainlist01.txt``, ``testlist01.txt``, ... split the videos by group: of 25 groups the first seven are
    tested in the first list, the next seven in the second, and so on as in UCF101; of fewer, proportionally fewer.
    The lists lie in the folder itself. The clips of a group, in all classes, share figure and landscape.

    Every video is drawn from the seed, its class, its group and its number alone: the same arguments give the same
    frames, with any number of workers. An earlier set is replaced once the new one is whole.

    Args:
        root: Folder to write: new, empty, or an earlier drawn set.
        num_classes: An even number, 2 to 10; the first classes of the ten.
        groups: Number of groups, 3 to 99.
        clips_per_group: Videos of each class in each group; even numbers show both plays of a class equally often.
        frames: Length of the longest video, at 25 frames a second; the shortest is 8 frames shorter. At least 80;
            in longer videos a stretch of 64 frames may miss an event.
        size: Width and height in pixels, even numbers; 1 to 3 times as wide as high.
        seed: Random state of the whole set.
        container: "avi" (mpeg4), "mp4" (h264 with B-frames), or "both", which change every other group. The largest
            distance of intra frames is 12 in some videos and 250 in others.
        workers: Number of processes; as many as there are usable cores if None.

    Raises:
        DataError: If root is a file or a folder that holds anything else.
        ValueError: If a number is out of range.
    """
    settings = _Settings(num_classes, groups, clips_per_group, frames, size, seed, container)
    actions = catalogue(num_classes)
    workers = count_workers(workers)
    items = _list_items(actions, settings)
    names = {*(action.name for action in catalogue(MAX_CLASSES)), "classInd.txt", _SETTINGS_FILE}
    names |= {f"{split}list{fold:02d}.txt" for split in ("train", "test") for fold in range(1, _NUM_FOLDS + 1)}
    with replacing(Path(root), "actions", _SETTINGS_FILE, names) as folder:
        for action in actions:
            (folder / action.name).mkdir()
        in_processes(partial(_write_item, folder, settings), items, workers)
        _write_lists(folder, actions, items, settings)
        (folder / _SETTINGS_FILE).write_text(json.dumps(asdict(settings), indent=2) + "\n")


def play_of(class_id: int, group: int, clip: int) -> Play:
    """Return which of the two plays of its class a video shows; all numbers count from 1, as in file names."""
    return catalogue(MAX_CLASSES)[class_id - 1].plays[(group + clip) % 2]


def render(
    class_id: int,
    group: int,
    clip: int,
    *,
    frames: int = 80,
    size: tuple[int, int] = (160, 120),
    seed: int = 0,
    every: int = 1,
) -> np.ndarray:
    """Return one video of a set, drawn in memory: uint8 [T, H, W, 3], before it is encoded.

    Class, group and clip count from 1, as in file names; ``frames``, ``size`` and ``seed`` are those of
    :func:`draw_actions`. Only the frames 0, ``every``, 2 ``every``, ... are drawn.

    >>> render(1, 1, 1, size=(64, 48), every=40).shape
    (2, 48, 64, 3)
    """
    within("every", every, 1)
    return _draw(class_id, group, clip, frames, size, seed, every)[0]


def timeline_of(class_id: int, group: int, clip: int, *, frames: int = 80, seed: int = 0) -> Timeline:
    """Return when the events of a video happen; the arguments are those of :func:`render`."""
    within("frames", frames, SHORTEST)
    return sample_timeline(frames, _clip_rng(class_id, group, clip, seed))


def contact_strip(
    root: str | Path, *, videos_per_class: int = 2, frames: int = 8, height: int = 72, columns: int = 2
) -> Image.Image:
    """Return a picture of a set in UCF101's layout: frames of the first videos of each class, under its name.

    The first two videos of a drawn class show both of its plays; ``height`` is that of a frame (pixels).
    """
    from cgnl.data.videos.decoding import probe, read_frames

    root = Path(root)
    classes = [line.split(maxsplit=1)[1] for line in (root / "classInd.txt").read_text().splitlines()]
    caption = 18
    strips: list[Image.Image] = []
    for name in classes:
        rows = []
        for path in sorted((root / name).iterdir())[:videos_per_class]:
            numbers = (np.arange(frames) + 0.5) * probe(path).frames / frames
            rows.append(np.concatenate(list(read_frames(path, numbers.astype(int).tolist())[0]), axis=1))
        pictures = Image.fromarray(np.concatenate(rows))
        pictures = pictures.resize((round(pictures.width * height * len(rows) / pictures.height), height * len(rows)))
        strip = Image.new("RGB", (pictures.width, pictures.height + caption), "white")
        strip.paste(pictures, (0, caption))
        ImageDraw.Draw(strip).text((2, 1), name, fill="black", font_size=13)
        strips.append(strip)
    return tiled(strips, columns, (8, 8))


def _check_size(size: Sequence[int]) -> None:
    if len(size) != 2 or any(side < 32 or side % 2 for side in size):
        raise ValueError(f"size ({tuple(size)}) must be two even numbers of at least 32, width and height")
    if not size[1] <= size[0] <= 3 * size[1]:
        raise ValueError(f"size ({tuple(size)}) must be at least as wide as high, and at most three times")


def _clip_rng(class_id: int, group: int, clip: int, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, class_id, group, clip])


def _draw(
    class_id: int, group: int, clip: int, frames: int, size: tuple[int, int], seed: int, every: int = 1
) -> tuple[np.ndarray, np.random.Generator]:
    """Return a video and the random state after it was drawn."""
    within("frames", frames, SHORTEST)
    _check_size(size)
    rng = _clip_rng(class_id, group, clip, seed)
    timeline = sample_timeline(frames, rng)
    # No class has number 0: figures and landscapes depend on nothing that videos do.
    group_rng = np.random.default_rng([seed, 0, group])
    return draw_video(play_of(class_id, group, clip), timeline, size, group_rng, rng, every), rng


def _list_items(actions: Iterable[Action], settings: _Settings) -> list[_Item]:
    items = []
    for class_id, action in enumerate(actions, start=1):
        for group in range(1, settings.groups + 1):
            suffix = settings.container
            if suffix == "both":
                # Not every other group: the play alternates so, and format and one event would tell the class.
                suffix = ("avi", "mp4")[(group - 1) // 2 % 2]
            for clip in range(1, settings.clips_per_group + 1):
                path = f"{action.name}/v_{action.name}_g{group:02d}_c{clip:02d}.{suffix}"
                items.append(_Item(class_id, group, clip, path))
    return items


def _write_item(folder: Path, settings: _Settings, item: _Item) -> None:
    video, rng = _draw(item.class_id, item.group, item.clip, settings.frames, settings.size, settings.seed)
    write_video(folder / item.path, video, int(rng.choice(_KEYFRAME_INTERVALS)))


def _test_groups(groups: int, fold: int) -> range:
    """Return the groups that the test list of a fold holds: 1-7, 8-14 and 15-21 of UCF101's 25."""
    count = min(groups // _NUM_FOLDS, max(1, round(groups * 7 / 25)))
    return range(1 + (fold - 1) * count, 1 + fold * count)


def _write_lists(folder: Path, actions: Sequence[Action], items: Sequence[_Item], settings: _Settings) -> None:
    write_lines(folder / "classInd.txt", (f"{i} {action.name}" for i, action in enumerate(actions, start=1)))
    for fold in range(1, _NUM_FOLDS + 1):
        tested = _test_groups(settings.groups, fold)
        write_lines(folder / f"testlist{fold:02d}.txt", (item.path for item in items if item.group in tested))
        training = (f"{item.path} {item.class_id}" for item in items if item.group not in tested)
        write_lines(folder / f"trainlist{fold:02d}.txt", training)
