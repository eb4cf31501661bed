"""One bird drawn on a layer of its own, from its look and pose.

Drawing happens ``SUPERSAMPLING`` times larger than the finished layer and is averaged down, which gives smooth
outlines; sizes in pixels are those of the finished layer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from cgnl.toy.birds.skeleton import (
    EYE,
    FAR_WING_SEEN,
    PART_IDS,
    RGB,
    Frame,
    Look,
    Pose,
    Skeleton,
    closed_curve,
    wing_outline,
)

SUPERSAMPLING = 3
# The rest of the bird is no part of CUB's list.
_REGION_IDS = {**PART_IDS, "rest": 16}
_EYE_RADIUS = 0.19  # in radii of the head
_EYE_MARKS = {"ring": (0.40, 0.40), "almond": (0.62, 0.258)}  # half width and height
_BAR_VARIANCE = 0.0128  # in squared body lengths


@dataclass(frozen=True)
class BirdLayer:
    """A drawn bird on its own, to be laid over a canvas.

    Args:
        colour: float32 [S, S, 3] in 0..1, already multiplied with ``alpha``.
        alpha: float32 [S, S], share of each pixel that the bird covers.
        regions: uint8 [S, S], id of the part seen at each pixel: ``PART_IDS``, 16 for the rest of the bird, 0 outside.
        locations: X, y of all parts in pixels, those on the far side too.
        feet: X, y of the near and the far foot in pixels.
    """

    colour: np.ndarray
    alpha: np.ndarray
    regions: np.ndarray
    locations: Mapping[str, tuple[float, float]]
    feet: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """Return the pixels that belong to the bird, bool [S, S]."""
        return self.alpha >= 0.5

    def over(self, canvas: np.ndarray) -> np.ndarray:
        """Return the canvas, [S, S, 3] in 0..1, with the bird in front."""
        return canvas * (1 - self.alpha[..., None]) + self.colour


def _inset(polygon: np.ndarray) -> np.ndarray:
    """Return a polygon with its edges half a pixel further in, which makes up for the outline that Pillow adds.

    Without it, shapes with more edge cover more pixels, and colour histograms tell siblings apart.
    """
    following = np.roll(polygon, -1, axis=0)
    edges = following - polygon
    turn = np.sign(np.sum(polygon[:, 0] * following[:, 1] - polygon[:, 1] * following[:, 0]))
    normals = turn * np.stack([-edges[:, 1], edges[:, 0]], axis=1) / np.linalg.norm(edges, axis=1, keepdims=True)
    both = normals + np.roll(normals, 1, axis=0)
    return polygon + 0.5 * both / np.maximum(0.5, (both * both).sum(axis=1, keepdims=True) / 2)


def shade(colour: RGB, factor: float) -> RGB:
    """Return a colour made darker (factor below 1) or lighter."""
    red, green, blue = (min(255, max(0, round(c * factor))) for c in colour)
    return red, green, blue


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """Return the colour that lies ``share`` of the way from a to b."""
    red, green, blue = (round(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return red, green, blue


class _Sheet:
    """Two drawings made together: the colours, and which region each pixel shows."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.colours, self.regions = (Image.new(mode, (size, size)) for mode in ("RGB", "L"))
        self._draw_colour = ImageDraw.Draw(self.colours)
        self._draw_region = ImageDraw.Draw(self.regions)

    def fill(self, polygon: np.ndarray, colour: RGB, region: str) -> None:
        flat = polygon.ravel().tolist()
        self._draw_colour.polygon(flat, fill=colour)
        self._draw_region.polygon(flat, fill=_REGION_IDS[region])

    def disc(self, centre: np.ndarray, radius: float, colour: RGB, region: str) -> None:
        box = [*(centre - radius), *(centre + radius)]
        self._draw_colour.ellipse(box, fill=colour)
        self._draw_region.ellipse(box, fill=_REGION_IDS[region])

    def limb(self, points: np.ndarray, width: float, colour: RGB, region: str) -> None:
        """Draw a bent line with round joints."""
        flat = points.ravel().tolist()
        whole = max(1, round(width))
        self._draw_colour.line(flat, fill=colour, width=whole, joint="curve")
        self._draw_region.line(flat, fill=_REGION_IDS[region], width=whole, joint="curve")

    def stroke(self, points: np.ndarray, width: float, colour: RGB) -> None:
        """Draw a line that shades what lies below: the region stays."""
        self._draw_colour.line(points.ravel().tolist(), fill=colour, width=max(1, round(width)), joint="curve")

    def tint(self, polygon: np.ndarray, colour: RGB) -> None:
        """Fill a polygon that colours what lies below: the region stays."""
        self._draw_colour.polygon(_inset(polygon).ravel().tolist(), fill=colour)

    def blur(self, radius: float, outline: np.ndarray) -> None:
        """Blur the colours in the box around an outline."""
        left, top, right, bottom = (int(edge) for edge in (*outline.min(axis=0), *(outline.max(axis=0) + 1)))
        soft = self.colours.crop((left, top, right, bottom)).filter(ImageFilter.BoxBlur(radius))
        self.colours.paste(soft, (left, top))

    def lay(self, other: "_Sheet", outline: np.ndarray) -> None:
        """Copy the inside of an outline from another sheet."""
        stencil = Image.new("L", (self.size, self.size))
        ImageDraw.Draw(stencil).polygon(outline.ravel().tolist(), fill=255)
        self.colours.paste(other.colours, mask=stencil)
        self.regions.paste(other.regions, mask=stencil)


def draw_bird(size: int, look: Look, pose: Pose, light: float = -0.6) -> BirdLayer:
    """Draw one bird on an empty, square layer of ``size`` pixels.

    ``light`` is the angle from straight above that light comes from, in radians, positive to the right.
    Parts that the bird itself hides have a location too; ``regions`` tells which part is seen there.
    """
    bones = Skeleton(look, pose, zoom=SUPERSAMPLING)
    texture = np.random.default_rng(look.texture_seed)
    sheet = _Sheet(size * SUPERSAMPLING)
    if pose.wing > FAR_WING_SEEN:
        _draw_wing(sheet, bones, bones.far_wing, f"{bones.far} wing")
    _draw_leg(sheet, bones, far=True)
    _draw_tail(sheet, bones)
    _draw_leg(sheet, bones, far=False)
    _draw_beak(sheet, bones)
    _draw_body(sheet, bones, texture)
    _draw_eye(sheet, bones)
    _draw_wing(sheet, bones, bones.wing, f"{bones.near} wing")
    return _finish(sheet, bones, texture, size, light)


def _draw_leg(sheet: _Sheet, bones: Skeleton, far: bool) -> None:
    part = f"{bones.far if far else bones.near} leg"
    colour = shade(bones.look.colours[part], 0.8 if far else 1.0)
    hip, ankle, foot = bones.leg(far)
    width = 0.048 * bones.unit
    across = np.array([width, 0.0])
    knee = 0.45 * hip + 0.55 * ankle
    thigh = np.stack([hip - 2.2 * across, hip + 2.2 * across, knee + 0.8 * across, knee - 0.8 * across])
    lower_colour = shade(bones.look.colours["feet"], 0.8 if far else 1.0)
    toe_colour = mix(colour, lower_colour, 0.5)
    sheet.limb(np.stack([knee, ankle]), width, toe_colour, part)
    for toe in ((0.13, 0.035), (0.10, -0.005), (0.05, 0.05), (-0.08, 0.03)):
        tip = foot + bones.upright.matrix @ np.array(toe)
        sheet.limb(np.stack([foot, tip]), 0.75 * width, toe_colour, part)
    middle = (ankle + foot) / 2
    sheet.limb(np.stack([ankle, middle]), width, colour, part)
    sheet.limb(np.stack([middle, foot]), width, lower_colour, part)
    sheet.fill(closed_curve(thigh, steps=4), shade(bones.look.colours["belly"], 0.72 if far else 0.92), "rest")


def _draw_tail(sheet: _Sheet, bones: Skeleton) -> None:
    colour = bones.look.colours["tail"]
    for i, feather in enumerate(bones.tail_feathers()):
        sheet.fill(feather, shade(colour, 0.84 + 0.04 * i), "tail")
        sheet.stroke(np.concatenate([feather, feather[:1]]), 0.012 * bones.unit, shade(colour, 0.62))
        sheet.stroke(np.stack([feather[0], feather[14]]), 0.01 * bones.unit, shade(colour, 0.7))


def _draw_beak(sheet: _Sheet, bones: Skeleton) -> None:
    colour = bones.look.colours["beak"]
    upper, lower = bones.beak()
    sheet.fill(_inset(lower), shade(colour, 0.8), "beak")
    sheet.fill(_inset(upper), colour, "beak")
    # The gape is the thinner the longer: dark pixels must not tell the shapes apart.
    gape = np.stack([lower[0], lower[1]])
    half = np.array([0.0, 0.003 * bones.unit**2 / np.linalg.norm(gape[1] - gape[0])])
    sheet.fill(np.stack([gape[0] - half, gape[1], gape[0] + half]), shade(colour, 0.45), "beak")
    nostril = 0.72 * upper[0] + 0.12 * upper[1] + 0.16 * lower[1]
    sheet.stroke(np.stack([nostril, nostril + 0.12 * (upper[1] - upper[0])]), 0.014 * bones.unit, shade(colour, 0.5))


def _draw_body(sheet: _Sheet, bones: Skeleton, texture: np.random.Generator) -> None:
    look, colours = bones.look, bones.look.colours
    if look.crest:
        high = look.crest
        crest = [(-0.75, -0.5), (-1.15, -0.75 - 0.5 * high), (-0.95 - 0.4 * high, -0.85 - high),
                 (-0.3, -1.0 - 0.35 * high), (0.25, -0.9)]  # fmt: skip
        sheet.fill(bones.head(closed_curve(np.array(crest))), shade(colours["crown"], 0.9), "crown")

    paint = _Sheet(sheet.size)
    outline = bones.outline()
    paint.fill(outline, colours["back"], "back")
    tall = np.array([1.0, bones.plump])
    regions = {
        "belly": bones.body(
            tall * [(-0.6, 0.04), (-0.2, 0.08), (0.15, 0.06), (0.5, 0.05), (0.7, 0.4), (0.0, 0.6), (-0.6, 0.4)]
        ),
        "breast": bones.body(
            tall * [(0.2, -0.1), (0.4, -0.2), (0.75, -0.2), (0.75, 0.2), (0.5, 0.3), (0.28, 0.22), (0.2, 0.05)]
        ),
        "face": bones.head(
            [(-0.95, -0.5), (-0.3, -1.2), (0.6, -1.2), (1.3, -0.3), (1.2, 0.6), (0.55, 1.0), (-0.3, 0.95), (-0.8, 0.5)]
        ),
        "nape": bones.head([(-0.55, -0.5), (-1.3, -0.6), (-1.5, 0.5), (-1.15, 1.2), (-0.65, 0.9), (-0.48, 0.2)]),
        "throat": bones.head(
            [(0.42, 0.42), (0.75, 0.34), (1.2, 0.3), (1.25, 0.9), (0.95, 1.45), (0.4, 1.4), (0.12, 0.95)]
        ),
        "crown": bones.head(
            [(-1.1, -0.25), (-0.55, -0.38), (0.1, -0.5), (0.52, -0.66), (0.6, -1.3), (-0.3, -1.4), (-1.2, -1.0)]
        ),
        "forehead": bones.head([(0.5, -1.1), (1.2, -0.8), (1.2, -0.08), (0.78, -0.1), (0.56, -0.5)]),
    }
    for name, corners in regions.items():
        paint.fill(closed_curve(corners), colours[name], "rest" if name == "face" else name)
    # Feathers of neighbouring regions lie over each other: their border is soft.
    paint.blur(0.012 * bones.unit, outline)
    if look.belly_pattern:
        _draw_belly_pattern(paint, bones, texture)
    if look.throat_mark:
        stripe = np.array([(-0.38, -0.16), (0.38, -0.16), (0.38, 0.16), (-0.38, 0.16)])
        if look.throat_mark == "along":
            stripe = stripe[:, ::-1]
        paint.tint(bones.head(stripe + np.array([0.33, 0.88])), colours["markings"])
    if look.eye_line:
        line = bones.head([(0.95, 0.02), (0.3, -0.16), (-0.7, -0.02)])
        paint.stroke(line, 0.16 * look.head_size * bones.unit, shade(colours["crown"], 0.55))
    sheet.lay(paint, outline)


def _draw_belly_pattern(paint: _Sheet, bones: Skeleton, texture: np.random.Generator) -> None:
    """Draw rows of spots, or of streaks of the same area in the same places."""
    column, row = (axis.ravel() for axis in np.meshgrid(np.arange(8), np.arange(5)))
    x = 0.52 - 0.085 * column - 0.042 * (row % 2)
    y = -0.08 + 0.09 * row + 0.03 * np.minimum(column, 3)
    places = np.stack([x, y * bones.plump], axis=1) + texture.normal(0, 0.006, (len(x), 2))
    if bones.look.belly_pattern == "spots":
        angle = np.linspace(0, 2 * math.pi, 16, endpoint=False)
        mark = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    else:
        along, across = np.array([0.94, -0.34]), np.array([0.34, 0.94])
        mark = np.stack([3 * along, math.pi / 6 * across, -3 * along, -math.pi / 6 * across])
    for place in places:
        paint.tint(bones.body(place + 0.026 * mark), bones.look.colours["markings"])


def _draw_eye(sheet: _Sheet, bones: Skeleton) -> None:
    colours, radius = bones.look.colours, bones.look.head_size * bones.unit
    eye = bones.head([EYE])[0]
    part = f"{bones.near} eye"
    if bones.look.eye_mark:
        width, height = _EYE_MARKS[bones.look.eye_mark]
        angle = np.linspace(0, 2 * math.pi, 48, endpoint=False)
        mark = np.stack([width * np.cos(angle), height * np.sin(angle)], axis=1)
        sheet.fill(bones.head(bones.look.detail_size * mark + EYE), colours["markings"], "rest")
    sheet.disc(eye, _EYE_RADIUS * radius, colours[part], part)
    glint = eye + np.array([-0.06, -0.07]) * radius
    sheet.disc(glint, 0.06 * radius, (250, 250, 250), part)


def _draw_wing(sheet: _Sheet, bones: Skeleton, frame: Frame, part: str) -> None:
    colour, unit = bones.look.colours[part], bones.unit
    outline = wing_outline(frame)
    paint = _Sheet(sheet.size)
    paint.fill(outline, colour, part)
    flight = [(-0.30, -0.2), (-0.40, 0.02), (-0.36, 0.3), (-0.7, 0.4), (-1.2, 0.1), (-0.9, -0.2)]
    paint.fill(frame(closed_curve(np.array(flight))), shade(colour, 0.78), part)
    # Flight feathers run back to the tip, coverts lie over them in rows.
    dark, pale = shade(colour, 0.5), mix(colour, (235, 230, 220), 0.22)
    for i in range(6):
        start, bend, end = (
            (-0.30, -0.07 + 0.045 * i),
            (-0.58, -0.035 + 0.036 * i),
            (-0.95 + 0.09 * i, 0.055 + 0.02 * i),
        )
        feather = np.array([start, bend, end])
        paint.stroke(frame(feather), 0.013 * unit, dark)
        paint.stroke(frame(feather - (0.0, 0.013)), 0.009 * unit, pale)
    for row, x in enumerate((-0.06, -0.16, -0.27)):
        for i in range(4 + (row > 0)):
            y = -0.08 + 0.06 * i + 0.03 * (row % 2)
            arc = np.array([(x, y - 0.03), (x - 0.035, y - 0.015), (x - 0.045, y), (x - 0.03, y + 0.03)])
            paint.stroke(frame(arc), 0.011 * unit, shade(colour, 0.68))
    if bones.look.wing_bars:
        _draw_wing_bars(paint, bones, frame)
    paint.stroke(np.concatenate([outline, outline[:1]]), 0.016 * unit, shade(colour, 0.66))
    sheet.lay(paint, outline)


def _draw_wing_bars(paint: _Sheet, bones: Skeleton, frame: Frame) -> None:
    count = bones.look.wing_bars
    width = 0.24 / count
    # Equal variance along the wing: seen from far away all numbers look alike.
    pitch = math.sqrt((_BAR_VARIANCE - width**2 / 12) * 12 / (count**2 - 1))
    for i in range(count):
        x = -0.27 + (i - (count - 1) / 2) * pitch
        bar = [
            (x + width / 2 + 0.03, -0.3),
            (x + width / 2 - 0.03, 0.3),
            (x - width / 2 - 0.03, 0.3),
            (x - width / 2 + 0.03, -0.3),
        ]
        paint.tint(frame(bar), bones.look.colours["markings"])


def _finish(sheet: _Sheet, bones: Skeleton, texture: np.random.Generator, size: int, light: float) -> BirdLayer:
    """Average down and light the drawing: shape from the blurred outline, feathers from stretched noise."""
    unit = bones.unit / SUPERSAMPLING
    covered = sheet.regions.point([0] + [255] * 255)
    small = covered.reduce(SUPERSAMPLING)
    alpha = np.asarray(small, dtype=np.float32) / 255
    colour = np.asarray(sheet.colours.reduce(SUPERSAMPLING), dtype=np.float32) / 255

    bulge = np.asarray(small.filter(ImageFilter.GaussianBlur(0.10 * unit)), dtype=np.float32) / 255
    slope_y, slope_x = np.gradient(bulge)
    steepness = 0.45 * unit
    facing_light = -(slope_x * math.sin(light) - slope_y * math.cos(light)) * steepness
    lit = 0.97 + 0.42 * facing_light / np.sqrt(1 + (slope_x**2 + slope_y**2) * steepness**2)

    noise = texture.normal(0.0, 1.0, (48, 24)).astype(np.float32)
    tile = Image.fromarray(noise)
    # One texel is a feather: longer along the body than across it.
    inverse = np.linalg.inv(bones.body.matrix / SUPERSAMPLING) * np.array([[20.0], [45.0]])
    offset = np.array([12.0, 24.0]) - inverse @ (bones.body.shift / SUPERSAMPLING)
    affine = (*inverse[0], offset[0], *inverse[1], offset[1])
    feathers = np.asarray(tile.transform((size, size), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR))
    lit = np.clip(lit * (1 + 0.05 * feathers), 0.35, 1.5)

    zoom = SUPERSAMPLING
    return BirdLayer(
        colour=np.minimum(colour * lit[..., None], alpha[..., None]),
        alpha=alpha,
        regions=np.asarray(sheet.regions)[zoom // 2 :: zoom, zoom // 2 :: zoom].copy(),
        locations={name: (float(xy[0]) / zoom, float(xy[1]) / zoom) for name, xy in bones.locations().items()},
        feet=np.stack([bones.leg(far)[2] for far in (False, True)]) / zoom,
    )
