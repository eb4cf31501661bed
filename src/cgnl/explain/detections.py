"""Pictures of detected objects: boxes, translucent masks and names."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito 2008, "Color universal design": told apart without colour vision too; all of theirs but black.
_PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)
_OPACITY = 102  # of 255


def draw_objects(
    image: Image.Image,
    boxes: Any,
    labels: Any,
    names: Sequence[str],
    *,
    scores: Any = None,
    masks: Any = None,
    min_side: int = 0,
) -> Image.Image:
    """Return a picture of an image with its objects: their boxes, masks and names; the rest stays as it is.

    Lines and letters grow with the picture. Seven colours, told apart without colour vision too, take turns by label.

    Args:
        image: W x H pixels; it is not changed.
        boxes: [D, 4], x0, y0, x1, y1 in pixels: a box covers the columns from x0 to before x1.
        labels: [D], from 1.
        names: Name of each label, that of label 1 first.
        scores: [D], written behind the names, or None.
        masks: [D, H, W] or [D, 1, H, W], true or from 0.5 on where the object is, or None.
        min_side: The picture is enlarged by a whole factor until its shorter side has so many pixels.

    Returns:
        An RGB picture.

    Raises:
        ValueError: Numbers of objects or sizes do not fit together, or a label has no name.

    Example:
        >>> draw_objects(Image.new("L", (64, 48)), [[10, 10, 30, 40]], [1], ["robin"], scores=[0.9], min_side=96).size
        (128, 96)
    """
    boxes = torch.as_tensor(boxes, dtype=torch.float64, device="cpu").detach().reshape(-1, 4).numpy()
    labels = torch.as_tensor(labels).tolist()
    scores = None if scores is None else torch.as_tensor(scores).tolist()
    if len(labels) != len(boxes) or (scores is not None and len(scores) != len(boxes)):
        raise ValueError(f"boxes ({len(boxes)}), labels ({len(labels)}) and scores must be of as many objects")
    for label in labels:
        if not 1 <= label <= len(names):
            raise ValueError(f"labels ({label}) must lie in 1..{len(names)}, the number of names")
    if masks is not None:
        masks = torch.as_tensor(masks)
        if len(masks) != len(boxes) or masks.shape[-2:] != (image.height, image.width):
            raise ValueError(
                f"masks {list(masks.shape)} must be of {len(boxes)} objects in {image.height} x {image.width} pixels"
            )

    factor = max(1, -(-min_side // min(image.size)))
    picture = image.convert("RGB").resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
    boxes = boxes * factor
    width = max(1, round(min(picture.size) / 240))
    colours = [_PALETTE[(label - 1) % len(_PALETTE)] for label in labels]
    corners = [_corners(box, picture.size) for box in boxes]
    # the surest object is drawn last, over the others, but its name finds its place first
    order = sorted(range(len(boxes)), key=lambda k: scores[k] if scores is not None else -k)
    if masks is not None:
        for k in order:
            inside = (masks[k] >= 0.5).reshape(image.height, image.width).cpu().numpy()
            _paint(picture, inside.repeat(factor, 0).repeat(factor, 1), colours[k], width)
    canvas = ImageDraw.Draw(picture)
    for k in order:
        canvas.rectangle(corners[k], outline=colours[k], width=width)
    places: list[tuple[int, int, int, int]] = []
    for k in reversed(order):
        score = "" if scores is None else f" {scores[k]:.2f}"
        places.append(_write_name(canvas, corners[k], names[labels[k] - 1], score, colours[k], places))
    return picture


def _corners(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the first and last column and row of a box, at least one pixel of it inside the picture."""
    first = [min(max(round(low), 0), side - 1) for low, side in zip(box[:2], size, strict=True)]
    last = [min(max(round(high) - 1, low), side - 1) for high, low, side in zip(box[2:], first, size, strict=True)]
    return first[0], first[1], last[0], last[1]


def _paint(picture: Image.Image, mask: np.ndarray, colour: tuple[int, int, int], width: int) -> None:
    """Lay a colour over the pixels of a mask [H, W], and its full strength on the mask's rim."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    opacity = mask * np.where(_eroded(mask, width), np.uint8(_OPACITY), np.uint8(255))
    picture.paste(colour, (int(columns[0]), int(rows[0])), Image.fromarray(opacity))


def _eroded(mask: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels of a mask [H, W] whose neighbours in a square of 2 width + 1 all belong to it."""
    core = np.pad(mask, width)
    for _ in range(2):  # columns, then rows
        length = 1  # core tells of so many pixels in a row
        while length < 2 * width + 1:
            step = min(length, 2 * width + 1 - length)
            core = core[:-step] & core[step:]
            length += step
        core = core.T
    return core


def _write_name(
    canvas: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    name: str,
    score: str,
    colour: tuple[int, int, int],
    places: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    """Write a name where it hides the least of other names and of its own box; return where: x0, y0, x1, y1."""
    width, height = canvas.im.size
    font = _font(max(10, round(min(width, height) / 30)))
    margin = max(1, font.size // 4)
    text = name + score
    while canvas.textlength(text, font) + 2 * margin > width and name:
        name = name[:-1]
        text = f"{name}…{score}"
    ascent, descent = font.getmetrics()
    across, down = round(canvas.textlength(text, font)) + 2 * margin, ascent + descent
    x0, y0, x1, y1 = box
    tags = []
    for x in (x0, x1 + 1 - across):
        for y in (y0 - down, y1 + 1, *range(y0, y1, down)):
            x, y = max(0, min(x, width - across)), max(0, min(y, height - down))
            tags.append((x, y, x + across, y + down))
    own = (x0, y0, x1 + 1, y1 + 1)
    tag = min(tags, key=lambda tag: (sum(_shared(tag, place) for place in places), _shared(tag, own)))
    canvas.rectangle((tag[0], tag[1], tag[2] - 1, tag[3] - 1), fill=colour)
    light = np.dot(colour, (0.299, 0.587, 0.114)) > 100
    canvas.text((tag[0] + margin, tag[1]), text, font=font, fill="black" if light else "white")
    return tag


def _shared(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> int:
    """Return how many pixels two rectangles have in common."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib's own: the same on every machine, with Greek and Cyrillic
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
