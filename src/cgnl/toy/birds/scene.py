"""One image: a bird on its perch among leaves and flowers, in some light, now and then behind a leaf."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from cgnl.toy.birds.drawing import BirdLayer, draw_bird, mix, shade
from cgnl.toy.birds.scenery import BACKDROPS, BARK, LEAVES, backdrop, draw_branch, draw_leaf, expose, leaf_outline, pick
from cgnl.toy.birds.skeleton import PART_IDS, PART_NAMES, RGB, Look, Pose, extent
from cgnl.toy.birds.species import Species

_OCCLUSION_RATE = 0.25
_MAX_MARKS = 0.1  # in squared body lengths
_ZOOM = 2


@dataclass(frozen=True)
class Scene:
    """A drawn image, uint8 [S, S, 3], the bird's look and pose, and its pixels that are seen, bool [S, S].

    ``parts`` are x, y in pixels of each part that is seen, in CUB's order; a part that is hidden is missing.
    """

    image: np.ndarray
    mask: np.ndarray
    parts: Mapping[str, tuple[float, float]]
    look: Look
    pose: Pose

    @property
    def bounding_box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height of the mask, in pixels."""
        left, top, right, bottom = Image.fromarray(self.mask).getbbox() or (0, 0, 0, 0)
        return left, top, right - left, bottom - top


def draw_scene(species: Species, size: int, rng: np.random.Generator) -> Scene:
    """Draw one image of a species; all that varies is drawn from ``rng``."""
    look = species.sample_look(rng)
    pose = sample_pose(look, size, rng)
    return draw_scene_of(species, look, pose, size, rng)


def sample_pose(look: Look, size: int, rng: np.random.Generator, lifted_rate: float = 0.12) -> Pose:
    """Return a random pose in which the whole bird lies inside the image; ``lifted_rate`` of them lift their wings."""
    lifted = rng.random() < lifted_rate
    pose = Pose(
        x=0.0,
        y=0.0,
        scale=1.0,
        facing="left" if rng.random() < 0.5 else "right",
        tilt=rng.uniform(-0.05, 0.65),
        head=rng.uniform(-0.3, 0.3),
        tail=rng.uniform(-0.3, 0.3),
        wing=rng.uniform(0.35, 0.8) if lifted else rng.uniform(-0.06, 0.08),
        stride=rng.uniform(0.08, 0.18),
    )
    left, top, right, bottom = extent(look, pose)
    fit = size / max(right - left, bottom - top)
    scale = fit * rng.uniform(0.82, 1.0)
    room_x, room_y = size - scale * (right - left), size - scale * (bottom - top)
    x = rng.uniform(0, 1) * room_x - scale * left
    y = rng.uniform(0, 1) * room_y - scale * top
    return replace(pose, x=x, y=y, scale=scale)


def draw_scene_of(species: Species, look: Look, pose: Pose, size: int, rng: np.random.Generator) -> Scene:
    """Draw one image of the bird with this look in this pose; surroundings and light come from ``rng``."""
    light = rng.uniform(-1.0, 1.0)
    bird = draw_bird(size, look, pose, light)
    canvas = bird.over(_background(species, look, pose, bird, size, rng))
    cover = np.zeros((size, size), dtype=np.float32)
    if rng.random() < _OCCLUSION_RATE:
        leaf, cover = _leaf_in_front(bird, pose.scale, size, rng)
        canvas = canvas * (1 - cover[..., None]) + leaf
    seen = cover < 0.5
    parts = _parts_in_sight(bird, seen)
    return Scene(expose(canvas, light, rng), bird.mask & seen, parts, look, pose)


def _parts_in_sight(bird: BirdLayer, seen: np.ndarray) -> dict[str, tuple[float, float]]:
    """Return the parts that show at the pixel of their location."""
    pixels = {name: (int(y), int(x)) for name, (x, y) in bird.locations.items()}
    return {
        name: bird.locations[name]
        for name in PART_NAMES
        if bird.regions[pixels[name]] == PART_IDS[name] and seen[pixels[name]]
    }


def _background(
    species: Species, look: Look, pose: Pose, bird: BirdLayer, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the surroundings, float32 [S, S, 3] in 0..1: backdrop, perch, plants and marks."""
    top, bottom = BACKDROPS[int(rng.integers(len(BACKDROPS)))]
    greens = [mix(colour, bottom, 0.35) for colour in LEAVES]
    glows = [*greens, *_mark_colours(species, look)]
    side = size * _ZOOM
    canvas = backdrop(top, bottom, greens, glows, size, rng).resize((side, side), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(canvas)
    feet = bird.feet * _ZOOM
    if rng.random() < 0.3:
        _draw_ground(draw, feet, pose.scale * _ZOOM, side, greens, rng)
    else:
        for _ in range(int(rng.integers(0, 3))):
            draw_branch(
                draw, rng.uniform(0, side, 2), rng.uniform(-1.4, 1.4), rng.uniform(0.008, 0.02) * side, side, rng
            )
        thickness = rng.uniform(0.05, 0.10) * pose.scale * _ZOOM
        perch = feet.mean(axis=0) + np.array([0.0, 0.45 * thickness])
        draw_branch(draw, perch, rng.uniform(-0.22, 0.22), thickness, side, rng)
    for _ in range(int(rng.integers(2, 9))):
        draw_leaf(
            draw, rng.uniform(0, side, 2), rng.uniform(0.04, 0.10) * side, rng.uniform(0, 7), pick(LEAVES, rng), rng
        )
    _draw_marks(draw, species, look, bird, pose.scale, size, rng)
    return np.asarray(canvas.reduce(_ZOOM), dtype=np.float32) / 255


def _mark_colours(species: Species, look: Look) -> tuple[RGB, ...]:
    """Return the colours that matter in telling the siblings apart."""
    if species.relation:
        return species.relation.palette
    regions = {"leg": ("left leg", "feet"), "beak": ("beak",)}.get(species.part, ("markings",))
    return tuple(sorted(look.colours[region] for region in regions))


def _draw_marks(
    draw: ImageDraw.ImageDraw,
    species: Species,
    look: Look,
    bird: BirdLayer,
    scale: float,
    size: int,
    rng: np.random.Generator,
) -> None:
    """Scatter berries and flowers around the bird, in the colours that matter, whichever of them it has."""
    occupied = np.asarray(Image.fromarray(bird.alpha > 0.02).filter(ImageFilter.MaxFilter(3))).copy()
    for colour in _mark_colours(species, look):
        left = rng.uniform(0, _MAX_MARKS) * scale**2
        typical = rng.uniform(0.008, 0.02) * scale**2
        while left > 1.0:
            area = min(left, typical * rng.uniform(0.6, 1.5))
            left -= area
            petals = 5 if rng.random() < 0.4 else 1
            _draw_mark(draw, occupied, area, petals, colour, size, rng)


def _draw_mark(
    draw: ImageDraw.ImageDraw, occupied: np.ndarray, area: float, petals: int, colour: RGB, size: int,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Draw a berry or a flower of this area (in pixels) where nothing is yet."""
    radius = math.sqrt(area / (petals * math.pi))
    spread = 1.75 * radius if petals > 1 else 0.0
    reach = math.ceil(radius + spread)
    for _ in range(40):
        x, y = rng.uniform(0, size, 2)
        spot = (slice(max(0, int(y) - reach), int(y) + reach + 1), slice(max(0, int(x) - reach), int(x) + reach + 1))
        inside = reach <= min(x, y) and max(x, y) <= size - reach
        if inside and not occupied[spot].any():
            break
    else:
        return
    occupied[spot] = True
    turn = rng.uniform(0, 2 * math.pi)
    for angle in turn + 2 * math.pi * np.arange(petals) / petals:
        centre = _ZOOM * np.array([x + spread * math.cos(angle), y + spread * math.sin(angle)])
        draw.ellipse([*(centre - _ZOOM * radius), *(centre + _ZOOM * radius)], fill=colour)


def _draw_ground(
    draw: ImageDraw.ImageDraw,
    feet: np.ndarray,
    scale: float,
    side: int,
    greens: Sequence[RGB],
    rng: np.random.Generator,
) -> None:
    """Draw soil up to the bird's feet, with grass."""
    height = float(feet[:, 1].max()) + 0.03 * scale
    x = np.linspace(0, side, 25)
    line = height - 0.10 * scale + np.cumsum(rng.normal(0, 0.004 * side, 25))
    soil = np.concatenate([np.stack([x, line], axis=1), [[side, side], [0, side]]])
    colour = pick([*BARK, *greens], rng)
    draw.polygon(soil.ravel().tolist(), fill=colour)
    places = np.stack([rng.uniform(0, side, 90), rng.uniform(height - 0.08 * scale, max(side, height + 1), 90)], axis=1)
    for place in places:
        tone = shade(colour, rng.uniform(0.7, 1.25))
        half = np.array([1.0, 0.4]) * rng.uniform(0.01, 0.03) * side
        draw.ellipse([*(place - half), *(place + half)], fill=tone)
    for _ in range(int(rng.integers(10, 40))):
        root = np.array([rng.uniform(0, side), rng.uniform(height - 0.05 * scale, side + 0.1 * scale)])
        tip = root + np.array([rng.normal(0, 0.04), -rng.uniform(0.05, 0.16)]) * side
        half = np.array([0.006 * side, 0.0])
        blade = [*(root - half), *tip, *(root + half)]
        draw.polygon(blade, fill=pick(LEAVES, rng))


def _leaf_in_front(bird: BirdLayer, scale: float, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a leaf that hides a piece of the bird: its colour (times cover) and its cover, in 0..1."""
    rows, columns = np.nonzero(bird.mask)
    i = rng.integers(len(rows))
    centre = np.array([columns[i], rows[i]]) * _ZOOM
    leaf = Image.new("RGB", (size * _ZOOM, size * _ZOOM))
    stencil = Image.new("L", leaf.size)
    length, angle = rng.uniform(0.3, 0.5) * scale * _ZOOM, rng.uniform(0, 2 * math.pi)
    along = np.array([math.cos(angle), math.sin(angle)])
    # The stalk enters from beyond the leaf, away from the bird's middle more often than not.
    stalk = [*(centre - 0.5 * length * along), *(centre - 4.0 * length * along)]
    width = rng.uniform(0.2, 0.3)
    outline = leaf_outline(centre, length, angle, width)
    colour = pick(LEAVES, rng)
    for sheet, tones in ((leaf, (colour, shade(colour, 0.86), shade(colour, 0.7))), (stencil, (255, 255, 255))):
        draw = ImageDraw.Draw(sheet)
        draw.polygon(outline.ravel().tolist(), fill=tones[0])
        draw.polygon(outline[: len(outline) // 2 + 1].ravel().tolist(), fill=tones[1])
        draw.line([*outline[0], *outline[len(outline) // 2]], fill=tones[2], width=max(1, round(0.03 * length)))
        draw.line(stalk, fill=tones[2], width=max(1, round(0.03 * length)))
    blur = ImageFilter.BoxBlur(0.004 * size * _ZOOM)
    colours = np.asarray(leaf.filter(blur).reduce(_ZOOM), dtype=np.float32) / 255
    return colours, np.asarray(stencil.filter(blur).reduce(_ZOOM), dtype=np.float32) / 255
