"""The classes: which early event of the body goes with which late event of the ball, and when both happen.

Five things a body does and five that a ball does make twenty *plays* of one each. Pair p of the classes is built from
the two body events p, p + 1 and the two ball events p, p + 2 (numbers modulo five): one of its classes holds the
plays (p, p) and (p + 1, p + 2), the other (p, p + 2) and (p + 1, p). So both have every event equally often, and
which of them a video belongs to is the exclusive or of two events. No two pairs share a play: which pair it is can
be read from the two events one by one.
"""

from dataclasses import dataclass

import numpy as np

BODY_EVENTS = ("Flag", "Handstand", "PushUp", "Squat", "Star")
BALL_EVENTS = ("Hold", "Juggle", "Lob", "Pump", "Roll")
MAX_CLASSES = 2 * len(BODY_EVENTS)
SHORTEST = 80  # frames; the least value of the longest video
JITTER = 8  # videos are up to so many frames shorter than the longest


@dataclass(frozen=True)
class Play:
    """One thing the body does, then one that the ball does."""

    body: str
    ball: str


@dataclass(frozen=True)
class Action:
    """One class: its name in ``classInd.txt``, the number of its pair, from 0, and the two plays its videos show.

    The plays come equally often, and share no event.
    """

    name: str
    pair: int
    plays: tuple[Play, Play]


@dataclass(frozen=True)
class Timeline:
    """When the events of one video happen: numbers of frames, the ends excluded."""

    frames: int
    body: tuple[int, int]
    ball: tuple[int, int]


def catalogue(num_classes: int) -> list[Action]:
    """Return the classes of a set of this size in alphabetical order; neighbours 1 and 2, 3 and 4, ... are pairs.

    Raises ValueError for an odd number, or one that is not 2 to 10.

    >>> [action.name for action in catalogue(2)]
    ['FlagHoldOrHandstandLob', 'FlagLobOrHandstandHold']
    """
    if not 2 <= num_classes <= MAX_CLASSES or num_classes % 2:
        raise ValueError(f"num_classes ({num_classes}) must be an even number from 2 to {MAX_CLASSES}")
    actions = []
    for pair in range(num_classes // 2):
        first, second = BODY_EVENTS[pair], BODY_EVENTS[(pair + 1) % len(BODY_EVENTS)]
        one, other = BALL_EVENTS[pair], BALL_EVENTS[(pair + 2) % len(BALL_EVENTS)]
        for plays in ((Play(first, one), Play(second, other)), (Play(first, other), Play(second, one))):
            name = "Or".join(play.body + play.ball for play in plays)
            actions.append(Action(name, pair, plays))
    return sorted(actions, key=lambda action: action.name)


def sample_timeline(frames: int, rng: np.random.Generator) -> Timeline:
    """Return the times of one video, of which the longest has ``frames`` frames.

    The events last equally long, 20 frames or more, with 25 to 27 frames between them. With frames = 80 each
    stretch of 64 consecutive frames holds at least 9 frames of both.
    """
    length = frames - int(rng.integers(JITTER + 1))
    lead, tail = (int(rng.integers(3)) for _ in range(2))
    gap = int(rng.integers(25, 28))
    duration = (length - lead - gap - tail) // 2
    start = length - tail - duration
    return Timeline(length, (lead, lead + duration), (start, start + duration))
