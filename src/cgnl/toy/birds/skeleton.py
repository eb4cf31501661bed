"""A bird's look and pose, and where both put its outlines and parts.

Everything is laid out in *body lengths*, facing right, y downwards, with the middle of the body as origin; a
pose then turns, mirrors, scales and places it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

RGB = tuple[int, int, int]

# Names and order of CUB-200-2011's parts.txt; ids count from 1.
PART_NAMES = (
    "back", "beak", "belly", "breast", "crown", "forehead", "left eye", "left leg", "left wing", "nape", "right eye",
    "right leg", "right wing", "tail", "throat",
)  # fmt: skip
PART_IDS = {name: i for i, name in enumerate(PART_NAMES, start=1)}


@dataclass(frozen=True)
class Look:
    """The looks of a bird: colours of its regions, shape of its body.

    Args:
        colours: Colour (0-255) of each region: every name in ``PART_NAMES`` (the legs: their upper half),
            "face", "feet" (the lower half of the legs) and "markings" (the marks below).
        beak: Shape of the beak; all shapes cover the same area.
        wing_bars: Number of bars across the wing, 0 or 2 to 4, of the same total area and spread.
        belly_pattern: Marks on breast and belly; spots and streaks cover the same area.
        eye_mark: A ring around the eye or an almond through it, of the same area.
        throat_mark: A stripe across the throat or along it, of the same area.
        head_size: Radius of the head, in body lengths.
        plumpness: Factor on the height of the body.
        tail_length: In body lengths.
        tail_fork: 0 ends square, above 0 forked, below 0 rounded or pointed.
        crest: Height of the crest, in radii of the head.
        detail_size: Factor on the size of the beak and of the mark around the eye.
        eye_line: Whether a dark line runs through the eye.
        texture_seed: Random state of the plumage's texture: one number gives the same feathers in every pose.
    """

    colours: Mapping[str, RGB]
    beak: Literal["cone", "hook", "needle", "slim"] = "slim"
    wing_bars: Literal[0, 2, 3, 4] = 0
    belly_pattern: Literal["spots", "streaks"] | None = None
    eye_mark: Literal["ring", "almond"] | None = None
    throat_mark: Literal["across", "along"] | None = None
    head_size: float = 0.22
    plumpness: float = 1.0
    tail_length: float = 0.5
    tail_fork: float = 0.0
    crest: float = 0.0
    detail_size: float = 1.0
    eye_line: bool = False
    texture_seed: int = 0


@dataclass(frozen=True)
class Pose:
    """Where a bird is and how it holds itself.

    Args:
        x, y: Position of the middle of the body, in pixels.
        scale: Pixels for a body length.
        facing: The side of the image the beak points to; a bird that faces left shows its left side.
        tilt: How far the breast is raised, in radians.
        head: How far the head is raised against the body, in radians.
        tail: How far the tail is raised against the body, in radians.
        wing: How far the near wing is lifted, in radians; the far one is seen above 0.3.
        stride: Distance of the feet, in body lengths.
    """

    x: float
    y: float
    scale: float
    facing: Literal["left", "right"] = "right"
    tilt: float = 0.3
    head: float = 0.0
    tail: float = 0.0
    wing: float = 0.0
    stride: float = 0.12


def closed_curve(points: np.ndarray, steps: int = 8) -> np.ndarray:
    """Return a closed Catmull-Rom curve through points [K, 2] as a polygon [K * steps, 2]."""
    t = np.arange(steps)[:, None] / steps
    weights = 0.5 * np.concatenate(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3], axis=1
    )
    neighbours = points[(np.arange(len(points))[:, None] + np.arange(-1, 3)) % len(points)]
    return (weights @ neighbours).reshape(-1, 2)


def polygon_area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


class Frame:
    """A turn, a scale and a shift from local coordinates to those of the outer frame."""

    def __init__(self, matrix: np.ndarray, shift: np.ndarray) -> None:
        self.matrix, self.shift = matrix, shift

    def __call__(self, points: np.ndarray | list[tuple[float, float]]) -> np.ndarray:
        return np.asarray(points, dtype=float) @ self.matrix.T + self.shift

    def inner(self, origin: tuple[float, float], raised: float = 0.0, scale: float = 1.0) -> "Frame":
        """Return the frame at origin, turned so that its positive x axis is raised, in radians."""
        cos, sin = math.cos(raised) * scale, math.sin(raised) * scale
        turn = np.array([[cos, sin], [-sin, cos]])
        return Frame(self.matrix @ turn, self(np.array([origin]))[0])


class Skeleton:
    """Frames and landmarks of a look in a pose, in any pixel size."""

    def __init__(self, look: Look, pose: Pose, zoom: float = 1.0) -> None:
        mirror = 1.0 if pose.facing == "right" else -1.0
        self.unit = pose.scale * zoom
        centre = np.array([pose.x, pose.y]) * zoom
        self.upright = Frame(np.diag([mirror, 1.0]) * self.unit, centre)
        self.body = self.upright.inner((0.0, 0.0), raised=pose.tilt)
        self.plump = look.plumpness
        self.head_centre = (0.40, -0.30 * look.plumpness - 0.35 * look.head_size)
        # The head keeps most of its own level while the body tilts, as birds do.
        self.head = self.body.inner(self.head_centre, raised=pose.head - 0.7 * pose.tilt, scale=look.head_size)
        self.beak_base = self.head.inner((0.86, 0.10), scale=look.detail_size)
        self.wing = self.body.inner((0.27, -0.09 * self.plump), raised=0.02 - pose.wing)
        self.far_wing = self.body.inner((0.22, -0.14 * self.plump), raised=-0.12 - pose.wing)
        self.tail = self.body.inner((-0.46, 0.02), raised=-pose.tail)
        self.near, self.far = pose.facing, "left" if pose.facing == "right" else "right"
        self.look, self.pose = look, pose

    def outline(self) -> np.ndarray:
        """Return body and head as one closed curve."""
        head = self.head(
            [(-1.08, 0.3), (-0.92, -0.45), (-0.3, -0.98), (0.4, -0.92), (0.9, -0.42), (1.0, 0.12), (0.78, 0.68)]
        )
        p = self.plump
        upper = self.body([(-0.54, -0.02), (-0.40, -0.12 * p), (-0.15, -0.265 * p), (0.06, -0.35 * p)])
        lower = self.body(
            [
                (0.56, -0.09 * p),
                (0.56, 0.1 * p),
                (0.42, 0.27 * p),
                (0.12, 0.35 * p),
                (-0.2, 0.27 * p),
                (-0.46, 0.11 * p),
            ]
        )
        return closed_curve(np.concatenate([upper, head, lower]))

    def leg(self, far: bool) -> np.ndarray:
        """Return hip, ankle and foot; the foot hangs straight below the body however it tilts."""
        local = (-0.02, 0.24 * self.plump) if far else (-0.12, 0.25 * self.plump)
        hip = self.body([local])[0]
        back_or_front = 0.5 if far else -0.5
        foot = self.upright([(0.04 + self.pose.stride * back_or_front, 0.60 * self.plump**0.5)])[0]
        ankle = 0.45 * hip + 0.55 * foot + self.upright.matrix @ np.array([-0.05, 0.0])
        return np.stack([hip, ankle, foot])

    def tail_feathers(self) -> list[np.ndarray]:
        """Return the outlines of the tail feathers, the outermost first."""
        feathers = []
        for i in (-2, 2, -1, 1, 0):
            length = self.look.tail_length * (1 + self.look.tail_fork * (abs(i) / 2 - 0.5))
            frame = self.tail.inner((0.0, 0.012 * i), raised=0.085 * i)
            shape = [
                (0.1, -0.03), (-0.3 * length, -0.045), (-0.85 * length, -0.055), (-length, -0.02),
                (-length, 0.02), (-0.85 * length, 0.055), (-0.3 * length, 0.045), (0.1, 0.03),
            ]  # fmt: skip
            feathers.append(frame(closed_curve(np.array(shape), steps=4)))
        return feathers

    def beak(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the upper and the lower half of the beak."""
        upper, lower = BEAKS[self.look.beak]
        return self.beak_base(upper), self.beak_base(lower)

    def locations(self) -> dict[str, np.ndarray]:
        """Return the place of each part, in pixels."""
        p = self.plump
        legs = {"far": self.leg(far=True), "near": self.leg(far=False)}
        eye = self.head([EYE])[0]
        beak_length = float(BEAKS[self.look.beak][0][:, 0].max())
        return {
            "back": self.body([(-0.13, -0.215 * p)])[0],
            "beak": self.beak_base([(0.45 * beak_length, 0.0)])[0],
            "belly": self.body([(0.12, 0.26 * p)])[0],
            "breast": self.body([(0.44, 0.08 * p)])[0],
            "crown": self.head([(-0.15, -0.72)])[0],
            "forehead": self.head([(0.78, -0.38)])[0],
            f"{self.near} eye": eye,
            f"{self.far} eye": eye,
            f"{self.near} leg": legs["near"][1:].T @ (0.75, 0.25),
            f"{self.far} leg": legs["far"][1:].T @ (0.75, 0.25),
            f"{self.near} wing": self.wing([(-0.52, 0.04)])[0],
            f"{self.far} wing": self.far_wing([(-0.52, 0.04)])[0],
            "nape": self.head([(-0.82, 0.15)])[0],
            "tail": self.tail([(-0.62 * self.look.tail_length, 0.0)])[0],
            "throat": self.head([(0.62, 0.85)])[0],
        }


EYE = (0.36, -0.14)
# Part of a beak lies under the feathers of the face, the more the thicker it is.
_BEAK_SHARE_SEEN = {"cone": 0.93, "hook": 0.96, "needle": 1.02, "slim": 1.0}
_BEAK_AREA = 0.46  # in squared radii of the head


def _beaks() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    outlines = {
        "cone": (
            [(0, -0.42), (0.3, -0.36), (0.95, 0.08), (0, 0.02)],
            [(0, 0.02), (0.9, 0.1), (0.3, 0.36), (0, 0.36)],
        ),
        "hook": (
            [(0, -0.3), (0.5, -0.34), (0.95, -0.18), (1.14, 0.14), (1.12, 0.68), (0.86, 0.22), (0, 0.06)],
            [(0, 0.06), (0.8, 0.14), (0.62, 0.28), (0, 0.3)],
        ),
        "needle": (
            [(0, -0.2), (0.7, -0.13), (2.0, 0.16), (0, 0.02)],
            [(0, 0.02), (1.9, 0.17), (0.7, 0.15), (0, 0.18)],
        ),
        "slim": (
            [(0, -0.22), (0.5, -0.17), (1.25, 0.1), (0, 0.02)],
            [(0, 0.02), (1.2, 0.12), (0.5, 0.2), (0, 0.2)],
        ),
    }  # fmt: skip
    beaks = {}
    for name, halves in outlines.items():
        upper, lower = (np.array(half, dtype=float) for half in halves)
        seen = _BEAK_SHARE_SEEN[name] * (polygon_area(upper) + polygon_area(lower))
        factor = math.sqrt(_BEAK_AREA / seen)
        beaks[name] = (upper * factor, lower * factor)
    return beaks


BEAKS = _beaks()
BEAK_REACH = max(float(upper[:, 0].max()) for upper, _ in BEAKS.values())


def extent(look: Look, pose: Pose) -> tuple[float, float, float, float]:
    """Return a box (left, top, right, bottom) in pixels that holds the bird whatever its beak."""
    bones = Skeleton(look, pose)
    points = [bones.outline(), *bones.tail_feathers(), bones.leg(far=False), bones.leg(far=True)]
    points.append(bones.head([(0.86 + BEAK_REACH * look.detail_size, 0.2), (-0.5, -1 - look.crest)]))
    points.append(wing_outline(bones.wing))
    if pose.wing > FAR_WING_SEEN:
        points.append(wing_outline(bones.far_wing))
    every = np.concatenate(points)
    margin = 0.07 * pose.scale
    (left, top), (right, bottom) = every.min(axis=0) - margin, every.max(axis=0) + margin
    return float(left), float(top), float(right), float(bottom)


FAR_WING_SEEN = 0.3


def wing_outline(frame: Frame) -> np.ndarray:
    shape = [
        (0.07, 0.03), (0.0, -0.08), (-0.25, -0.115), (-0.55, -0.07), (-0.8, 0.0), (-0.93, 0.06),
        (-0.72, 0.115), (-0.45, 0.19), (-0.18, 0.2), (0.03, 0.14),
    ]  # fmt: skip
    return frame(closed_curve(np.array(shape)))
