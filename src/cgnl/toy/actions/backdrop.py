"""Things behind the figure: the landscape of a group of clips, and things that move and take no part."""

import colorsys
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from cgnl.toy.actions.canvas import Canvas, View
from cgnl.toy.birds.drawing import shade
from cgnl.toy.birds.skeleton import RGB

BOTTOM, TOP = -0.45, 1.2  # of the painted landscape, in heights of the frame from the ground
BESIDE = 0.35  # how much is painted beyond the sides of the frame
_HORIZON = 0.12


def hue(h: float, saturation: float, value: float) -> RGB:
    """Return a colour from hue, saturation and value in 0..1."""
    red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(h % 1.0, saturation, value))
    return red, green, blue


def paint_landscape(aspect: float, height: int, rng: np.random.Generator) -> Image.Image:
    """Paint everything that stands still, with ``height`` pixels for one height of the frame.

    Returns:
        RGB image from x = -aspect / 2 - BESIDE to aspect / 2 + BESIDE and from y = BOTTOM to TOP.
    """
    width = round((aspect + 2 * BESIDE) * height)
    image = Image.new("RGB", (width, round((TOP - BOTTOM) * height)))
    canvas = Canvas(image, View(0.0, (TOP + BOTTOM) / 2, height / image.height))
    half = aspect / 2 + BESIDE
    top = hue(rng.uniform(0.5, 0.66), rng.uniform(0.25, 0.6), rng.uniform(0.75, 1))
    low = hue(rng.uniform(0.08, 0.6), rng.uniform(0.05, 0.22), rng.uniform(0.85, 1))
    steps = np.linspace(_HORIZON - 0.05, TOP, 33)
    for i, y in enumerate(steps[:-1]):
        share = i / 31
        red, green, blue = (round(a + (b - a) * share) for a, b in zip(low, top, strict=True))
        canvas.polygon(_box(-half, y, half, steps[i + 1] + 0.01), (red, green, blue))
    if rng.random() < 0.5:
        canvas.disc(
            np.array([rng.uniform(-half, half), rng.uniform(0.7, 1.0)]), rng.uniform(0.05, 0.09), (255, 248, 205)
        )
    for _ in range(int(rng.integers(2, 5))):
        _draw_cloud(canvas, rng.uniform(-half, half), rng.uniform(0.55, 1.0), rng.uniform(0.05, 0.1))
    x = np.linspace(-half, half, 40)
    for layer in range(2):
        tone = hue(rng.uniform(0.25, 0.72), rng.uniform(0.1, 0.35), rng.uniform(0.5, 0.75) - 0.1 * layer)
        ridge = (
            _HORIZON
            + 0.12
            - 0.08 * layer
            + sum(
                rng.uniform(0.02, 0.05) / k * np.sin(k * x * rng.uniform(2, 4) + rng.uniform(0, 6)) for k in (1, 2, 3)
            )
        )
        canvas.polygon(np.concatenate([np.stack([x, ridge], axis=1), [(half, BOTTOM), (-half, BOTTOM)]]), tone)
    for _ in range(int(rng.integers(1, 4))):
        draw = (_draw_tree, _draw_house)[int(rng.integers(2))]
        draw(canvas.at(rng.uniform(-half, half), _HORIZON - 0.02, rng.uniform(0.16, 0.3)), rng)
    ground = hue(rng.uniform(0.09, 0.4), rng.uniform(0.15, 0.5), rng.uniform(0.5, 0.85))
    canvas.polygon(_box(-half, BOTTOM, half, _HORIZON), ground)
    for y in (0.09, 0.05, -0.02, -0.12, -0.25):
        canvas.polygon(_box(-half, y - 0.012 + 0.05 * min(0.0, y), half, y), shade(ground, 0.93))
    for _ in range(50):
        place = np.array([rng.uniform(-half, half), rng.uniform(BOTTOM, _HORIZON - 0.02)])
        canvas.oval(place, 0.015, 0.006, shade(ground, rng.uniform(0.8, 1.15)))
    return image


def _box(left: float, low: float, right: float, high: float) -> np.ndarray:
    return np.array([(left, low), (right, low), (right, high), (left, high)])


def _draw_cloud(canvas: Canvas, x: float, y: float, size: float) -> None:
    for dx, dy, r in ((-1.1, 0, 0.7), (0, 0.25, 1.0), (1.1, 0, 0.75)):
        canvas.oval(np.array([x + dx * size, y + dy * size]), r * size, 0.7 * r * size, (247, 248, 250))


def _draw_tree(canvas: Canvas, rng: np.random.Generator) -> None:
    canvas.polygon(_box(-0.08, 0, 0.08, 0.6), (104, 78, 56))
    leaves = hue(rng.uniform(0.2, 0.42), rng.uniform(0.35, 0.6), rng.uniform(0.4, 0.65))
    if rng.random() < 0.5:
        for low in (0.35, 0.7, 1.05):
            canvas.polygon(np.array([(-0.5 + 0.25 * low, low), (0.5 - 0.25 * low, low), (0, low + 0.6)]), leaves)
    else:
        for x, y, r in ((-0.22, 0.8, 0.32), (0.24, 0.85, 0.32), (0.0, 1.15, 0.38)):
            canvas.disc(np.array([x, y]), r, leaves)


def _draw_house(canvas: Canvas, rng: np.random.Generator) -> None:
    wall = hue(rng.uniform(0.05, 0.2), rng.uniform(0.08, 0.3), rng.uniform(0.75, 0.95))
    roof = hue(rng.uniform(0.55, 0.8), rng.uniform(0.15, 0.35), rng.uniform(0.35, 0.55))
    canvas.polygon(_box(-0.6, 0, 0.6, 0.7), wall)
    canvas.polygon(np.array([(-0.72, 0.7), (0.72, 0.7), (0, 1.25)]), roof)
    canvas.polygon(_box(-0.1, 0, 0.14, 0.42), shade(roof, 0.7))
    for x in (-0.38, 0.36):
        canvas.polygon(_box(x - 0.12, 0.3, x + 0.12, 0.54), (190, 214, 226))


Mover = Callable[[Canvas, int], None]


def sample_distractors(aspect: float, rng: np.random.Generator) -> list[Mover]:
    """Return one to three things that move behind the figure; each draws itself for the number of a frame."""
    makers = (_bird, _car, _butterfly, _blue_ball)
    chosen = rng.permutation(len(makers))[: int(rng.integers(1, 4))]
    return [makers[i](aspect / 2 + BESIDE, rng) for i in sorted(chosen)]


def _wander(half: float, speed: float, rng: np.random.Generator) -> Callable[[int], float]:
    """Return the place of something that crosses the scene again and again."""
    start, step = rng.uniform(-half, half), speed * float(rng.choice((-1, 1)))
    return lambda frame: (start + step * frame + half) % (2 * half) - half


def _bird(half: float, rng: np.random.Generator) -> Mover:
    x, y, size = _wander(half, rng.uniform(0.006, 0.02), rng), rng.uniform(0.5, 0.8), rng.uniform(0.04, 0.07)
    pace, colour = rng.uniform(0.5, 1.1), hue(rng.uniform(0, 1), 0.2, rng.uniform(0.15, 0.4))

    def draw(canvas: Canvas, frame: int) -> None:
        lift = 0.6 * math.sin(pace * frame)
        there = canvas.at(x(frame), y + 0.02 * math.sin(0.1 * frame), size)
        there.line(np.array([(-1, lift), (-0.3, 0.15), (0, 0), (0.3, 0.15), (1, lift)]), 0.22, colour)

    return draw


def _car(half: float, rng: np.random.Generator) -> Mover:
    x, size = _wander(half, rng.uniform(0.008, 0.02), rng), rng.uniform(0.07, 0.1)
    colour = hue(rng.uniform(0.3, 0.75), rng.uniform(0.3, 0.6), rng.uniform(0.5, 0.85))

    def draw(canvas: Canvas, frame: int) -> None:
        there = canvas.at(x(frame), _HORIZON - 0.03, size)
        there.polygon(np.array([(-0.6, 0.5), (-0.4, 0.95), (0.4, 0.95), (0.65, 0.5)]), shade(colour, 0.75))
        there.polygon(_box(-1.1, 0.15, 1.1, 0.58), colour)
        for wheel in (-0.6, 0.6):
            there.disc(np.array([wheel, 0.15]), 0.22, (40, 40, 44))

    return draw


def _butterfly(half: float, rng: np.random.Generator) -> Mover:
    x, y, size = _wander(half, rng.uniform(0.003, 0.01), rng), rng.uniform(0.1, 0.6), rng.uniform(0.025, 0.04)
    colour, pace = hue(rng.uniform(0.5, 0.9), 0.5, 0.95), rng.uniform(0.5, 1.0)

    def draw(canvas: Canvas, frame: int) -> None:
        open_wings = 0.35 + 0.6 * abs(math.sin(pace * frame))
        there = canvas.at(x(frame), y + 0.06 * math.sin(0.21 * frame), size)
        for side in (-open_wings, open_wings):
            there.polygon(np.array([(0, 0.1), (side, 1), (1.2 * side, 0.2), (0.8 * side, -0.7), (0, -0.2)]), colour)

    return draw


def _blue_ball(half: float, rng: np.random.Generator) -> Mover:
    x, size = _wander(half, rng.uniform(0.004, 0.014), rng), rng.uniform(0.03, 0.05)
    height, pace = rng.uniform(0.05, 0.3), rng.uniform(0.08, 0.2)

    def draw(canvas: Canvas, frame: int) -> None:
        there = canvas.at(x(frame), 0.05 + size + height * abs(math.sin(pace * frame)), size)
        there.disc(np.zeros(2), 1.0, (48, 74, 168))
        there.disc(np.array([-0.25, 0.3]), 0.45, (92, 122, 210))

    return draw
