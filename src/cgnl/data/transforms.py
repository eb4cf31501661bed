"""From an RGB image to a network's normalised input, for training and for testing.

Images become tensors before they are resized: PyTorch resizes 8-bit tensors with the same antialiased
bilinear filter as Pillow (values differ by rounding only) in well under half the time.
"""

from dataclasses import dataclass

import torch
from torchvision.transforms import v2

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def train_transform(
    size: int,
    *,
    area: tuple[float, float] = (0.08, 1.25),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> v2.Compose:
    """Random crop, resized to a square, and random horizontal flip.

    The paper draws the crop's area from 0.08 to 1.25 of the image. No crop is larger than its image: a draw
    that does not fit is rejected and drawn again (ten times at most, then the middle of the image is taken),
    so areas above 1 leave the distribution of 0.08 to 1.0 as it is. All draws come from torch's global
    generator.

    Args:
        size: height and width of the output (pixels).
        area: range of the crop's area, as a part of the image's.
        aspect: range of the crop's width over its height.
        flip: probability of the flip.
        mean: of each channel (RGB, values from 0 to 1), subtracted.
        std: of each channel, divided by.

    Returns:
        A transform from an RGB image of Pillow to a float32 tensor [3, size, size].

    Raises:
        ValueError: a size below 1, or a range that is empty or not positive.
    """
    _check_size("size", size)
    for name, (low, high) in (("area", area), ("aspect", aspect)):
        if not 0 < low <= high:
            raise ValueError(f"{name} ({low}, {high}) must be two positive numbers, the lower one first")
    if area[0] > 1:
        raise ValueError(f"area ({area[0]}, {area[1]}) must begin at 1 or below: no crop exceeds the image")
    return v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomResizedCrop(size, scale=area, ratio=aspect, antialias=True),
            v2.RandomHorizontalFlip(flip),
            *_normalise(mean, std),
        ]
    )


def test_transform(
    size: int,
    resize: int,
    *,
    mean: tuple[float, float, float] = IMAGENET_MEAN,  # noqa: PT028
    std: tuple[float, float, float] = IMAGENET_STD,  # noqa: PT028
) -> v2.Compose:
    """Resize the shorter side, then crop a square from the middle (CUB: 448 of 512; ImageNet: 224 of 256).

    Args:
        size: height and width of the output (pixels).
        resize: length of the shorter side before the crop (pixels).
        mean: of each channel (RGB, values from 0 to 1), subtracted.
        std: of each channel, divided by.

    Returns:
        A transform from an RGB image of Pillow to a float32 tensor [3, size, size].

    Raises:
        ValueError: a size below 1, or a crop larger than the resized image.
    """
    _check_crop(size, resize)
    return v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize(resize, antialias=True),
            v2.CenterCrop(size),
            *_normalise(mean, std),
        ]
    )


test_transform.__test__ = False  # type: ignore[attr-defined]  # no test, though pytest would take the name for one


@dataclass(frozen=True)
class Geometry:
    """Where the points of an image lie in the network's input: ``image * scale - offset`` on each axis.

    Coordinates are in pixels with the corner of the image at 0, so the middle of the first pixel is 0.5.
    """

    scale_y: float
    scale_x: float
    offset_y: int
    offset_x: int


def test_geometry(height: int, width: int, size: int, resize: int) -> Geometry:
    """Return where :func:`test_transform` takes each point of an image.

    Args:
        height: of the image (pixels, upright).
        width: of the image (pixels, upright).
        size: height and width of the transform's output (pixels).
        resize: length of the shorter side before the crop (pixels).

    Returns:
        Scale and offset of each axis.

    Raises:
        ValueError: a size below 1, or a crop larger than the resized image.

    Example:
        >>> test_geometry(375, 500, size=448, resize=512)
        Geometry(scale_y=1.3653333333333333, scale_x=1.364, offset_y=32, offset_x=117)
    """
    _check_crop(size, resize)
    _check_size("height", height)
    _check_size("width", width)
    # The longer side is rounded down to whole pixels, so the scales of the two axes differ a little.
    longer = int(resize * max(height, width) / min(height, width))
    new_height, new_width = (longer, resize) if height > width else (resize, longer)
    return Geometry(
        new_height / height,
        new_width / width,
        round((new_height - size) / 2),
        round((new_width - size) / 2),
    )


test_geometry.__test__ = False  # type: ignore[attr-defined]


def _normalise(mean: tuple[float, float, float], std: tuple[float, float, float]) -> list[v2.Transform]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std, inplace=True)]


def _check_size(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} ({value}) must be at least 1 pixel")


def _check_crop(size: int, resize: int) -> None:
    _check_size("size", size)
    if resize < size:
        raise ValueError(f"resize ({resize}) must be at least size ({size}), which is cut from it")
