"""Pictures of detected objects: boxes, translucent masks and names, drawn by torchvision."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from PIL import Image, ImageFont
from torch import Tensor
from torch.nn.functional import max_pool2d
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

# Okabe and Ito 2008, "Color universal design": told apart without colour vision too; all of theirs but black.
_PALETTE = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114, 178))
_OPACITY = 0.4
# matplotlib's own: the same on every machine, with Greek and Cyrillic
_FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


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

    Lines and letters grow with the picture. Each object has a colour of its own, up to 21 of them; the first
    seven can be told apart without colour vision too. Where objects lie over each other, each still shows the rim of
    its mask, and its name next to its box, off the other names.

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
    boxes = torch.as_tensor(boxes, dtype=torch.float64, device="cpu").detach().reshape(-1, 4)
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
    if not labels:
        return picture
    # the surest object is drawn last, over the others
    order = sorted(range(len(labels)), key=lambda k: scores[k] if scores is not None else -k)
    colours = [_colour(place) for place in reversed(range(len(order)))]
    drawn = pil_to_tensor(picture)
    width = max(1, round(min(picture.size) / 240))
    if masks is not None:
        inside = (masks.reshape(-1, image.height, image.width) >= 0.5).cpu()[order]
        inside = inside.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        # of an object under a surer one, the rim is seen
        for areas, opacity in ((inside, _OPACITY), (_rims(inside, width), 1.0)):
            drawn = draw_segmentation_masks(drawn, _apart(areas), opacity, colours)
    corners = _corners(boxes[order] * factor, picture.size)
    drawn = draw_bounding_boxes(drawn, corners, colors=colours, width=width)
    texts = [names[labels[k] - 1] + ("" if scores is None else f" {scores[k]:.2f}") for k in order]
    size = max(10, round(min(picture.size) / 30))
    drawn = draw_bounding_boxes(
        drawn,
        _places(corners, texts, size, picture.size),
        texts,
        colours,
        font=str(_FONT),
        font_size=size,
        label_colors=["black" if sum(colour) > 330 else "white" for colour in colours],
        fill_labels=True,
    )
    return to_pil_image(drawn)


def _colour(place: int) -> tuple[int, int, int]:
    """Return the colour of an object: seven colours, then darker ones."""
    red, green, blue = (round(part * 0.7 ** (place // len(_PALETTE) % 3)) for part in _PALETTE[place % len(_PALETTE)])
    return red, green, blue


def _apart(masks: Tensor) -> Tensor:
    """Return masks [D, H, W] of which the last alone has a pixel that several have: torchvision blackens those."""
    apart, taken = masks.clone(), torch.zeros_like(masks[0])
    for k in reversed(range(len(masks))):
        apart[k] &= ~taken
        taken |= masks[k]
    return apart


def _rims(masks: Tensor, width: int) -> Tensor:
    """Return the pixels of masks [D, H, W] that lie nearer to others than ``width``."""
    others = max_pool2d((~masks).to(torch.float32)[:, None], 2 * width + 1, stride=1, padding=width)[:, 0]
    return masks & (others > 0)


def _corners(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the first and last column and row of boxes [D, 4], at least one pixel of each inside the picture."""
    last = torch.tensor(size) - 1
    first = torch.minimum(boxes[:, :2].round().clamp(min=0), last)
    return torch.cat([first, torch.minimum(torch.maximum(boxes[:, 2:].round() - 1, first), last)], dim=1).long()


def _places(corners: Tensor, texts: Sequence[str], font_size: int, size: tuple[int, int]) -> Tensor:
    """Return a point for each text, as a box [D, 4], inside the picture: above its own box, or below its upper edge.

    Where another text stands there, one of the last boxes first, it is the next free line above or below the box.
    """
    font = ImageFont.truetype(_FONT, font_size)
    margin, height = 4, sum(font.getmetrics())
    points: list[tuple[int, int]] = []
    taken: list[tuple[int, int, int]] = []
    for (x0, y0, _, y1), text in reversed(list(zip(corners.tolist(), texts, strict=True))):
        wide = margin + int(font.getlength(text))
        x = max(min(x0, size[0] - wide), 0)
        lines = [y for k in range(len(texts)) for y in (y0 - (k + 1) * height, y1 + 1 + k * height, y0 + k * height)]
        inside = [y for y in lines if 0 <= y <= size[1] - height] or [y0]
        free = (
            y
            for y in inside
            if all(abs(y - other) >= height or x + wide <= left or right <= x for left, right, other in taken)
        )
        y = next(free, inside[0])
        points.append((x, y))
        taken.append((x, x + wide, y))
    return torch.tensor(points[::-1]).repeat(1, 2)
