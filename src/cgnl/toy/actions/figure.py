"""The drawn figure: postures, bones, and how they are drawn.

Lengths are in heights of the figure, y grows upwards from the ground. Angles are in degrees.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cgnl.toy.actions.canvas import Canvas
from cgnl.toy.birds.drawing import shade
from cgnl.toy.birds.skeleton import RGB

TORSO, UPPER_ARM, FOREARM, THIGH, SHIN = 0.29, 0.16, 0.17, 0.22, 0.24
HEAD_RADIUS, NECK_TO_HEAD = 0.105, 0.15
SHOULDERS, HIPS = 0.1, 0.06  # half widths
_ARM_WIDTH, _LEG_WIDTH, _OUTLINE = 0.075, 0.095, 0.02
_SIDES = (-1, 1)


@dataclass(frozen=True)
class Posture:
    """The pose of all limbs.

    Args:
        turn: Angle of the body from upright, clockwise.
        arms: Of the left and the right (in the image) upper arm and forearm, from straight down along the body,
            outwards: [[upper, forearm], [upper, forearm]].
        legs: The same of thighs and shins.
        hop: Height of the lowest part above the ground.
    """

    turn: float
    arms: np.ndarray
    legs: np.ndarray
    hop: float = 0.0

    def towards(self, other: "Posture", share: float) -> "Posture":
        """Return the posture that lies ``share`` of the way to another."""
        return Posture(
            self.turn + share * (other.turn - self.turn),
            self.arms + share * (other.arms - self.arms),
            self.legs + share * (other.legs - self.legs),
            self.hop + share * (other.hop - self.hop),
        )


def _posture(turn: float, arms: tuple[float, float], legs: tuple[float, float], hop: float = 0.0) -> Posture:
    return Posture(turn, np.array([arms, arms], dtype=float), np.array([legs, legs], dtype=float), hop)


def standing(sway: float) -> Posture:
    """Return the posture at rest; sway lies in -1..1."""
    posture = _posture(2 * sway, (15 + 4 * sway, 9 + 5 * sway), (7, 5))
    posture.legs[:, 0] += 3 * sway * np.array(_SIDES)
    return posture


def body_event(event: str, beat: float) -> Posture:
    """Return the posture of a body event; beat in -1..1 is the state of its own small motion."""
    if event == "Flag":
        posture = _posture(0, (45, -40), (12, 10))
        posture.arms[1] = 140 + 14 * beat, 160 + 10 * beat
        return posture
    if event == "Handstand":
        return _posture(180 + 5 * beat, (168, 174), (16 + 10 * beat, 14 + 6 * beat))
    if event == "PushUp":
        posture = _posture(67 + 4 * beat, (0, 0), (1, 1))
        bend = 16 * (1 + beat)
        posture.arms[:] = np.outer(_SIDES, [67 - bend, 67 + bend])
        return posture
    if event == "Squat":
        return _posture(0, (38 + 8 * beat, -50), (76 + 8 * beat, -14))
    if event == "Star":
        return _posture(0, (124 + 10 * beat, 130 + 10 * beat), (38 + 5 * beat, 36 + 4 * beat), 0.05 * (1 + beat))
    raise ValueError(f"event ({event!r}) must be a body event")


def ball_event_posture(event: str, beat: float) -> Posture:
    """Return how the body goes along with a ball event."""
    arms = {
        "Hold": (40.0, -38.0),
        "Juggle": (34 + 8 * beat, 118 + 22 * beat),
        "Lob": (30.0, 95 + 15 * beat),
        "Pump": (40 + 18 * beat, 30 + 14 * beat),
        "Roll": (24.0, 20.0),
    }
    posture = _posture(0, arms[event], (9, 7))
    if event == "Juggle":
        posture.arms[1] = 34 - 8 * beat, 118 - 22 * beat
    return posture


@dataclass(frozen=True)
class Look:
    """The figure of one group of clips: colours, and the width of its limbs around 1."""

    skin: RGB
    hair: RGB
    shirt: RGB
    trousers: RGB
    shoes: RGB
    width: float


class Bones:
    """The joints of a posture, or of its mirror image (-1), in heights of the figure from the ground below it."""

    def __init__(self, posture: Posture, mirror: int) -> None:
        def along(degrees: float) -> np.ndarray:
            angle = np.radians(degrees - posture.turn)
            return np.array([np.sin(angle), -np.cos(angle)])

        across = along(90)
        up = -along(0)
        neck = TORSO * up

        def limb(start: np.ndarray, side: int, angles: np.ndarray, lengths: tuple[float, float]) -> np.ndarray:
            middle = start + lengths[0] * along(side * angles[0])
            return np.stack([start, middle, middle + lengths[1] * along(side * angles[1])])

        joints: dict[str, np.ndarray] = {
            "torso": np.stack([np.zeros(2), neck]),
            "head": neck + NECK_TO_HEAD * up,
            "up": up,
            "across": across,
        }
        for i, side in enumerate(_SIDES):
            shoulder = neck + SHOULDERS * side * across - 0.03 * up
            hip = HIPS * side * across
            joints[f"arm{i}"] = limb(shoulder, side, posture.arms[i], (UPPER_ARM, FOREARM))
            joints[f"leg{i}"] = limb(hip, side, posture.legs[i], (THIGH, SHIN))
        places = np.concatenate([np.atleast_2d(joints[n]) for n in ("torso", "head", "arm0", "arm1", "leg0", "leg1")])
        lift = np.array([0.0, posture.hop + 0.04 - places[:, 1].min()])
        flip = np.array([mirror, 1])
        directions = ("up", "across")
        self._joints: Mapping[str, np.ndarray] = {
            name: flip * (place if name in directions else place + lift) for name, place in joints.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return self._joints[name]


def draw_body(canvas: Canvas, bones: Bones, look: Look) -> None:
    """Draw all but the arms."""
    legs = (bones["leg0"], bones["leg1"])
    torso, head, across, up = bones["torso"], bones["head"], bones["across"], bones["up"]
    half = np.array([-1.0, 1.0])[:, None] * across
    wide = look.width
    trunk = np.concatenate(
        [torso[0] + 0.085 * wide * half - 0.03 * up, (torso[1] + (SHOULDERS + 0.015) * wide * half)[::-1]]
    )
    dark = shade(look.trousers, 0.4)
    width = _LEG_WIDTH * wide
    for leg in legs:
        canvas.line(leg, width + _OUTLINE, dark)
    for leg in legs:
        canvas.line(leg, width, look.trousers)
        canvas.disc(leg[2], 0.06, look.shoes)
    canvas.polygon(torso.mean(axis=0) + 1.12 * (trunk - torso.mean(axis=0)), shade(look.shirt, 0.4))
    canvas.polygon(trunk, look.shirt)
    canvas.line(np.stack([torso[1], head]), 0.07, look.skin)
    canvas.disc(head, HEAD_RADIUS + _OUTLINE / 2, shade(look.hair, 0.5))
    canvas.disc(head, HEAD_RADIUS, look.hair)
    canvas.disc(head - 0.028 * up, HEAD_RADIUS - 0.018, look.skin)
    for side in _SIDES:
        canvas.disc(head + 0.036 * side * across - 0.01 * up, 0.016, (30, 26, 30))
    mouth = np.array([(-0.035, -0.05), (-0.012, -0.066), (0.012, -0.066), (0.035, -0.05)])
    canvas.line(head + mouth @ np.stack([across, up]), 0.014, (120, 50, 50))


def draw_arms(canvas: Canvas, bones: Bones, look: Look) -> None:
    """Draw the arms, which may lie in front of a ball."""
    arms = (bones["arm0"], bones["arm1"])
    for arm in arms:
        canvas.line(arm, _ARM_WIDTH + _OUTLINE, shade(look.shirt, 0.4))
    for arm in arms:
        canvas.line(arm, _ARM_WIDTH, look.shirt)
        canvas.disc(arm[2], 0.05, look.skin)
