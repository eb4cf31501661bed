"""One scene: birds on a few branches that hide each other, behind leaves, now and then before a distant swarm."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from cgnl.toy.birds.drawing import BirdLayer, draw_bird, mix
from cgnl.toy.birds.scene import sample_pose
from cgnl.toy.birds.scenery import BACKDROPS, LEAVES, backdrop, draw_branch, draw_leaf, expose, pick
from cgnl.toy.birds.species import Species

MAX_BIRDS = 6
# A bird of which less is seen is taken out of the scene.
MIN_PIXELS = 25
_MIN_SHARE = 0.2
_SWARM_RATE = 0.2
_SPRIG_RATE = 0.5
_ZOOM = 2


@dataclass(frozen=True)
class Layer:
    """A thing of the scene on its own, to be laid over the things behind it.

    Args:
        colour: float32 [H, W, 3] in 0..1, already multiplied with ``alpha``.
        alpha: float32 [H, W], share of each pixel that the thing covers.
        species: Index of the species of a bird or a swarm (``crowd``), None for branches and leaves.
        size: Number of pixels of the whole thing, those beyond the image's edge included.
    """

    colour: np.ndarray
    alpha: np.ndarray
    species: int | None = None
    crowd: bool = False
    size: int = 0


@dataclass(frozen=True)
class Stage:
    """A scene before the camera takes it: a distant backdrop, float32 [H, W, 3] in 0..1, and layers from back to front.

    The light comes from ``light`` radians from straight above.
    """

    backdrop: np.ndarray
    layers: tuple[Layer, ...]
    light: float

    def canvas(self) -> np.ndarray:
        """Return all layers over the backdrop, float32 [H, W, 3]."""
        canvas = self.backdrop
        for layer in self.layers:
            canvas = canvas * (1 - layer.alpha[..., None]) + layer.colour
        return canvas

    def masks(self) -> list[np.ndarray]:
        """Return for each layer the pixels bool [H, W] of which it makes up more than half."""
        masks: list[np.ndarray] = []
        sight = np.ones(self.backdrop.shape[:2], dtype=np.float32)
        for layer in reversed(self.layers):
            masks.append(sight * layer.alpha > 0.5)
            sight = sight * (1 - layer.alpha)
        return masks[::-1]


@dataclass(frozen=True)
class SceneObject:
    """A bird, or a swarm (``crowd``), in an image: index of its species, and its pixels that are seen, bool [H, W]."""

    species: int
    crowd: bool
    mask: np.ndarray

    @property
    def bounding_box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height of the mask, in pixels."""
        left, top, right, bottom = Image.fromarray(self.mask).getbbox() or (0, 0, 0, 0)
        return left, top, right - left, bottom - top


@dataclass(frozen=True)
class FlockScene:
    """A drawn image, uint8 [H, W, 3], and the objects in it, the farthest first."""

    image: np.ndarray
    objects: tuple[SceneObject, ...]


def draw_scene(species: Sequence[Species], size: tuple[int, int], rng: np.random.Generator) -> FlockScene:
    """Draw one scene of the given width and height; all that varies is drawn from ``rng``."""
    stage = set_stage(species, size, rng)
    objects = tuple(
        SceneObject(layer.species, layer.crowd, mask)
        for layer, mask in zip(stage.layers, stage.masks(), strict=True)
        if layer.species is not None
    )
    return FlockScene(expose(stage.canvas(), stage.light, rng), objects)


def set_stage(species: Sequence[Species], size: tuple[int, int], rng: np.random.Generator) -> Stage:
    """Return a scene's layers: at least one bird, and each bird well in sight."""
    while True:
        stage = _without_hidden(_sample_stage(species, size, rng))
        if any(layer.species is not None and not layer.crowd for layer in stage.layers):
            return stage


def _without_hidden(stage: Stage) -> Stage:
    kept = tuple(
        layer
        for layer, mask in zip(stage.layers, stage.masks(), strict=True)
        if layer.species is None or mask.sum() >= max(MIN_PIXELS, _MIN_SHARE * layer.size)
    )
    return Stage(stage.backdrop, kept, stage.light)


def _sample_stage(species: Sequence[Species], size: tuple[int, int], rng: np.random.Generator) -> Stage:
    width, height = size
    light = rng.uniform(-1.0, 1.0)
    top, bottom = BACKDROPS[int(rng.integers(len(BACKDROPS)))]
    greens = [mix(colour, bottom, 0.35) for colour in LEAVES]
    far = backdrop(top, bottom, greens, greens, max(size), rng).crop((0, 0, width, height))
    layers: list[Layer] = []
    if rng.random() < _SWARM_RATE:
        layers.append(_swarm(species, size, light, rng))

    num_birds = int(rng.integers(1, MAX_BIRDS + 1))
    num_branches = min(num_birds, int(rng.integers(1, 4)))
    branch_of = np.sort(rng.integers(num_branches, size=num_birds))
    largest = rng.uniform(0.42, 0.66) * min(size)
    feet: list[np.ndarray] = []
    for branch in range(num_branches):
        side = largest * (0.7 + 0.3 * (branch + 1) / num_branches)
        point, angle = rng.uniform((0, 0.35 * height), (width, 0.95 * height)), rng.uniform(-0.25, 0.25)
        layers.append(_branch(point, angle, rng.uniform(0.03, 0.06) * side, size, rng))
        for _ in range(int((branch_of == branch).sum())):
            x = rng.uniform(0.06, 0.94) * width
            feet.append(np.array([x, point[1] + (x - point[0]) * math.tan(angle)]))
            layers.append(_perched(species, feet[-1], side * rng.uniform(0.85, 1.15), size, light, rng))
        if feet and rng.random() < _SPRIG_RATE:
            layers.append(_sprig(rng.choice(feet), side, size, rng))
    return Stage(np.asarray(far, dtype=np.float32) / 255, tuple(layers), light)


def _perched(
    species: Sequence[Species],
    foot: np.ndarray,
    side: float,
    size: tuple[int, int],
    light: float,
    rng: np.random.Generator,
) -> Layer:
    """Return a bird of any species that stands at a place and fits into a square."""
    kind = int(rng.integers(len(species)))
    look = species[kind].sample_look(rng)
    bird = draw_bird(round(side), look, sample_pose(look, round(side), rng), light)
    colour, alpha = _place(bird, foot - bird.feet.mean(axis=0), size)
    return Layer(colour, alpha, kind, size=int(bird.mask.sum()))


def _swarm(species: Sequence[Species], size: tuple[int, int], light: float, rng: np.random.Generator) -> Layer:
    """Return birds of one species that fly far away."""
    kind = int(rng.integers(len(species)))
    width, height = size
    centre = rng.uniform((0.2 * width, 0.1 * height), (0.8 * width, 0.5 * height))
    spread = rng.uniform(0.05, 0.11, 2) * (width, height)
    colour, alpha = np.zeros((height, width, 3), dtype=np.float32), np.zeros((height, width), dtype=np.float32)
    for _ in range(int(rng.integers(12, 30))):
        side = round(rng.uniform(0.06, 0.09) * min(size))
        look = species[kind].sample_look(rng)
        bird = draw_bird(side, look, sample_pose(look, side, rng, lifted_rate=1.0), light)
        bird_colour, bird_alpha = _place(bird, rng.normal(centre, spread) - side / 2, size)
        colour = colour * (1 - bird_alpha[..., None]) + bird_colour
        alpha = 1 - (1 - alpha) * (1 - bird_alpha)
    return Layer(colour, alpha, kind, crowd=True, size=int((alpha > 0.5).sum()))


def _place(bird: BirdLayer, corner: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return colour and alpha of a bird whose square layer lies with its upper left corner at a place of the image."""
    width, height = size
    side = len(bird.alpha)
    colour, alpha = np.zeros((height, width, 3), dtype=np.float32), np.zeros((height, width), dtype=np.float32)
    x, y = (round(value) for value in corner.tolist())
    left, top, right, bottom = max(0, x), max(0, y), min(width, x + side), min(height, y + side)
    if left < right and top < bottom:
        colour[top:bottom, left:right] = bird.colour[top - y : bottom - y, left - x : right - x]
        alpha[top:bottom, left:right] = bird.alpha[top - y : bottom - y, left - x : right - x]
    return colour, alpha


def _branch(
    point: np.ndarray, angle: float, thickness: float, size: tuple[int, int], rng: np.random.Generator
) -> Layer:
    sheet = Image.new("RGBA", (size[0] * _ZOOM, size[1] * _ZOOM))
    draw_branch(ImageDraw.Draw(sheet), point * _ZOOM, angle, thickness * _ZOOM, max(size) * _ZOOM, rng)
    return _layer(sheet)


def _sprig(foot: np.ndarray, side: float, size: tuple[int, int], rng: np.random.Generator) -> Layer:
    """Return a twig with leaves before a bird that stands at a place."""
    sheet = Image.new("RGBA", (size[0] * _ZOOM, size[1] * _ZOOM))
    draw = ImageDraw.Draw(sheet)
    tip = foot - (0.0, 0.4 * side) + rng.normal(0, 0.2 * side, 2)
    angle = rng.uniform(0, 2 * math.pi)
    along = np.array([math.cos(angle), math.sin(angle)])
    twig = [*(_ZOOM * tip), *(_ZOOM * (tip - 4 * max(size) * along))]
    draw.line(twig, fill=pick(((96, 78, 62), (86, 96, 50)), rng), width=max(1, round(0.02 * side * _ZOOM)))
    for i in range(int(rng.integers(3, 8))):
        turn = angle + (-1) ** i * rng.uniform(0.4, 1.0)
        length = rng.uniform(0.2, 0.36) * side
        centre = tip - 0.22 * i * side * along + 0.5 * length * np.array([math.cos(turn), math.sin(turn)])
        draw_leaf(draw, _ZOOM * centre, _ZOOM * length, turn, pick(LEAVES, rng), rng)
    return _layer(sheet)


def _layer(sheet: Image.Image) -> Layer:
    """Return a drawing that was made larger as a layer."""
    pixels = np.asarray(sheet.convert("RGBa").reduce(_ZOOM), dtype=np.float32) / 255
    return Layer(pixels[..., :3], pixels[..., 3])
