"""Surroundings of drawn birds: backdrop, branches and leaves, and the camera that takes them."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from cgnl.toy.birds.drawing import mix, shade
from cgnl.toy.birds.skeleton import RGB, closed_curve

# Far colours of the background, from top to bottom of the image.
BACKDROPS: tuple[tuple[RGB, RGB], ...] = (
    ((150, 186, 214), (196, 208, 196)),
    ((92, 120, 72), (58, 78, 46)),
    ((176, 184, 150), (112, 124, 84)),
    ((202, 206, 208), (150, 156, 150)),
    ((150, 128, 98), (92, 78, 58)),
    ((64, 84, 78), (38, 52, 46)),
    ((188, 170, 132), (134, 136, 92)),
)
LEAVES: tuple[RGB, ...] = ((84, 118, 52), (112, 140, 62), (62, 92, 50), (142, 136, 66), (128, 96, 58))
BARK: tuple[RGB, ...] = ((96, 78, 62), (122, 104, 86), (78, 70, 62), (134, 112, 82))


def backdrop(
    top: RGB, bottom: RGB, greens: Sequence[RGB], glows: Sequence[RGB], size: int, rng: np.random.Generator
) -> Image.Image:
    """Return the picture far behind the bird, out of focus."""
    fade = np.linspace(0, 1, 12, dtype=np.float32)[:, None, None] + rng.normal(0, 0.14, (12, 12, 1))
    cells = np.array(top) + (np.array(bottom) - np.array(top)) * fade + rng.normal(0, 7, (12, 12, 3))
    sheet = Image.fromarray(np.clip(cells, 0, 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(sheet)
    for _ in range(int(rng.integers(6, 16))):
        length = rng.uniform(0.1, 0.25) * size
        draw_leaf(draw, rng.uniform(0, size, 2), length, rng.uniform(0, 7), pick(greens, rng), rng)
    for _ in range(int(rng.integers(0, 4))):
        thickness = rng.uniform(0.01, 0.05) * size
        draw_branch(draw, rng.uniform(0, size, 2), rng.uniform(-1.6, 1.6), thickness, size, rng)
    for _ in range(int(rng.integers(0, 6))):
        centre, radius = rng.uniform(0, size, 2), rng.uniform(0.02, 0.06) * size
        glow = mix(pick(glows, rng), (255, 255, 245), rng.uniform(0.0, 0.5))
        draw.ellipse([*(centre - radius), *(centre + radius)], fill=glow)
    # Two passes of a box come close to the disc of a lens.
    return sheet.filter(ImageFilter.BoxBlur(rng.uniform(0.012, 0.035) * size)).filter(ImageFilter.BoxBlur(0.012 * size))


def pick(colours: Sequence[RGB], rng: np.random.Generator) -> RGB:
    """Return one of the colours, a little darker or lighter."""
    return shade(colours[int(rng.integers(len(colours)))], rng.uniform(0.8, 1.2))


def leaf_outline(centre: np.ndarray, length: float, angle: float, width: float) -> np.ndarray:
    """Return a leaf as a polygon [48, 2]; width is half its width, in lengths."""
    shape = np.array([(-0.5, 0.0), (-0.2, -0.8 * width), (0.1, -width), (0.5, 0.0), (0.1, width), (-0.2, 0.8 * width)])
    cos, sin = math.cos(angle), math.sin(angle)
    return closed_curve(shape * length) @ np.array([[cos, sin], [-sin, cos]]) + centre


def draw_leaf(
    draw: ImageDraw.ImageDraw, centre: np.ndarray, length: float, angle: float, colour: RGB, rng: np.random.Generator
) -> None:
    """Draw a leaf around a centre, length in pixels and angle in radians."""
    outline = leaf_outline(centre, length, angle, rng.uniform(0.16, 0.28))
    draw.polygon(outline.ravel().tolist(), fill=colour)
    # The half away from the light, and the midrib.
    half = len(outline) // 2
    draw.polygon(outline[: half + 1].ravel().tolist(), fill=shade(colour, 0.86))
    draw.line([*outline[0], *outline[half]], fill=shade(colour, 0.7), width=max(1, round(0.03 * length)))


def draw_branch(
    draw: ImageDraw.ImageDraw, through: np.ndarray, angle: float, thickness: float, side: int,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Draw a branch across the whole image that passes through a point."""
    along = np.array([math.cos(angle), math.sin(angle)])
    across = np.array([-along[1], along[0]])
    steps = np.linspace(-1.5 * side, 1.5 * side, 41)
    bend = 0.03 * side * np.sin(steps / side * rng.uniform(2, 6)) * (np.abs(steps) / side)
    middle = through + steps[:, None] * along + bend[:, None] * across
    half = thickness / 2 * (1 + rng.normal(0, 0.07, (41, 1)))
    colour = pick(BARK, rng)
    for low, high, factor in ((-1.0, 1.0, 0.72), (-1.0, 0.5, 0.95), (-0.85, -0.1, 1.18)):
        edge = np.concatenate([middle + low * half * across, (middle + high * half * across)[::-1]])
        draw.polygon(edge.ravel().tolist(), fill=shade(colour, factor))
    for _ in range(14):
        i = int(rng.integers(40))
        offset = rng.uniform(-0.7, 0.7) * half[i] * across
        draw.line([*(middle[i] + offset), *(middle[i + 1] + offset)], fill=shade(colour, 0.6), width=1)


def expose(canvas: np.ndarray, light: float, rng: np.random.Generator) -> np.ndarray:
    """Return a canvas [H, W, 3] as a camera takes it: brightness, colour cast, uneven light and grain; uint8."""
    height, width, _ = canvas.shape
    gain = rng.uniform(0.78, 1.14) * (1 + rng.normal(0, 0.035, 3))
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)
    slope = rng.uniform(0, 0.14)
    uneven = 1 + slope * (math.sin(light) * x[None, :] - math.cos(light) * y[:, None])
    grain = rng.standard_normal((height, width, 1), dtype=np.float32) * rng.uniform(0.004, 0.016)
    exposed = canvas * (gain * uneven[..., None]).astype(np.float32) + grain
    return (np.clip(exposed, 0, 1) * 255 + 0.5).astype(np.uint8)
