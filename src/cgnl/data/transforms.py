"""From an image or the frames of a video to a network's normalised input, for training and for testing.

Images become tensors before they are resized: PyTorch resizes 8-bit tensors with the same antialiased
bilinear filter as Pillow (values differ by rounding only) in well under half the time.

Clips stay 8-bit until they are on the device that the network runs on, and stay as they were decoded in memory
(channels last): only what is cut out is resized, and nothing is transposed.

Shapes: T frames, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from cgnl.data.augmentation import augmented, of_clips

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def train_transform(
    size: int,
    *,
    area: tuple[float, float] = (0.08, 1.25),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    augment: Sequence[str] = (),
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    interpolation: str = "bilinear",
) -> v2.Compose:
    """Random crop, resized to a square, random horizontal flip, and more random changes.

    The paper draws the crop's area from 0.08 to 1.25 of the image. No crop is larger than its image: a draw that does
    not fit is rejected and drawn again (ten times at most, then the middle of the image is taken), so areas above 1
    leave the distribution of 0.08 to 1.0 as it is. All draws come from torch's global generator.

    Args:
        size: Height and width of the output (pixels).
        area: Range of the crop's area, as a part of the image's.
        aspect: Range of the crop's width over its height.
        flip: Probability of the flip.
        augment: Names of more changes, see :func:`cgnl.data.augmentation.augmented`.
        mean: Of each channel (8-bit values scaled to 0..1), subtracted.
        std: Of each channel, divided by.
        interpolation: torchvision's name of a filter, such as "bilinear" or "bicubic".

    Returns:
        A transform from an RGB image of Pillow, or an array [H, W, C] of uint8 or float32, to a float32 tensor
        [C, size, size].

    Raises:
        ValueError: A size below 1, or a range that is empty or not positive.
    """
    changes, last = augmented(augment)
    crop = _random_crop(size, area, aspect, flip, interpolation)
    return v2.Compose([_as_tensor, *crop, *changes, *_normalise(mean, std), *last])


def test_transform(
    size: int,
    resize: int,
    *,
    mean: tuple[float, ...] = IMAGENET_MEAN,  # noqa: PT028
    std: tuple[float, ...] = IMAGENET_STD,  # noqa: PT028
    interpolation: str = "bilinear",  # noqa: PT028
) -> v2.Compose:
    """Resize the shorter side, then crop a square from the middle (CUB: 448 of 512; ImageNet: 224 of 256).

    ``resize`` is the length of the shorter side before the crop (pixels); all else is as in :func:`train_transform`.
    Raises ValueError for a size below 1, or a crop larger than the resized image.
    """
    _check_crop(size, resize)
    return v2.Compose(
        [
            _as_tensor,
            v2.Resize(resize, v2.InterpolationMode(interpolation), antialias=True),
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
    """Return where :func:`test_transform`, of the same ``size`` and ``resize``, takes each point of an upright image.

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
    offset_y, offset_x = round((new_height - size) / 2), round((new_width - size) / 2)
    return Geometry(new_height / height, new_width / width, offset_y, offset_x)


test_geometry.__test__ = False  # type: ignore[attr-defined]


def clip_train_transform(
    size: int,
    *,
    area: tuple[float, float] = (0.08, 1.25),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    augment: Sequence[str] = (),
    mean: tuple[float, ...] = IMAGENET_MEAN,
) -> v2.Compose:
    """Random crop, flip and other changes, as of :func:`train_transform`, the same for all frames.

    The transform takes frames, uint8 [T, H, W, 3], and returns a clip, uint8 [3, T, size, size].

    Example:
        >>> clip_train_transform(112)(np.zeros((8, 240, 320, 3), np.uint8)).shape
        torch.Size([3, 8, 112, 112])
    """
    changes, last = augmented(augment, erased=[round(255 * min(max(value, 0), 1)) for value in mean])
    crop = _random_crop(size, area, aspect, flip)
    return v2.Compose([_channels_second, *crop, *of_clips([*changes, *last]), _channels_first])


def clip_test_transform(resize: int, size: int | None = None) -> v2.Compose:
    """Resize the shorter side, then crop a square from the middle if a size is given, as :func:`test_transform`.

    The transform takes frames, uint8 [T, H, W, 3], and returns a clip, uint8 [3, T, H', W']. Whole frames are for
    :func:`crop_offsets`.

    Example:
        >>> clip_test_transform(128)(np.zeros((8, 240, 320, 3), np.uint8)).shape
        torch.Size([3, 8, 128, 170])
    """
    _check_size("resize", resize)
    if size is not None:
        _check_crop(size, resize)
    crop = [] if size is None else [v2.CenterCrop(size)]
    return v2.Compose([_channels_second, v2.Resize(resize, antialias=True), *crop, _channels_first])


def crop_offsets(height: int, width: int, size: int, num_crops: int) -> list[tuple[int, int]]:
    """Return top and left (pixels) of square test crops: the middle, or three along the longer side.

    Raises ValueError for another number of crops than 1 or 3, or one larger than the frames.

    Example:
        >>> crop_offsets(256, 340, size=256, num_crops=3)
        [(0, 0), (0, 42), (0, 84)]
    """
    if num_crops not in (1, 3):
        raise ValueError(f"num_crops ({num_crops}) must be 1 or 3")
    _check_size("size", size)
    if min(height, width) < size:
        raise ValueError(f"size ({size}) must be at most height ({height}) and width ({width}), which it is cut from")
    top, left = round((height - size) / 2), round((width - size) / 2)
    if num_crops == 1:
        return [(top, left)]
    if height > width:
        return [(offset, left) for offset in (0, top, height - size)]
    return [(top, offset) for offset in (0, left, width - size)]


def normalise_clip(
    clip: Tensor, *, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> Tensor:
    """Turn 8-bit clips [..., 3, T, H, W] into a network's input: float32, on the same device, best the network's.

    Raises ValueError for another dtype than uint8.

    Example:
        >>> normalise_clip(torch.full((3, 1, 1, 1), 255, dtype=torch.uint8)).flatten()
        tensor([2.2489, 2.4286, 2.6400])
    """
    if clip.dtype != torch.uint8:
        raise ValueError(f"clip must be uint8, not {clip.dtype}")
    shift, scale = _constants(mean, std, clip.device)
    return clip.float().sub_(shift).div_(scale)


@cache  # copied to a device only once: a copy makes the processor wait for all that the device has still to do
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        shift, scale = (255 * torch.tensor(values, device=device)[:, None, None, None] for values in (mean, std))
    return shift, scale


def _as_tensor(pixels: Image.Image | np.ndarray) -> Tensor:
    """Return pixels as a tensor [C, H, W] of their own type."""
    if isinstance(pixels, Image.Image):
        return v2.functional.pil_to_tensor(pixels)
    return torch.from_numpy(pixels).movedim(-1, 0)


def _channels_second(frames: np.ndarray | Tensor) -> Tensor:
    return torch.as_tensor(frames).movedim(-1, 1)


def _channels_first(frames: Tensor) -> Tensor:
    return frames.movedim(1, 0)


def _random_crop(
    size: int, area: tuple[float, float], aspect: tuple[float, float], flip: float, interpolation: str = "bilinear"
) -> tuple[v2.Transform, v2.Transform]:
    _check_size("size", size)
    for name, (low, high) in (("area", area), ("aspect", aspect)):
        if not 0 < low <= high:
            raise ValueError(f"{name} ({low}, {high}) must be two positive numbers, the lower one first")
    if area[0] > 1:
        raise ValueError(f"area ({area[0]}, {area[1]}) must begin at 1 or below: no crop exceeds the image")
    filtering = v2.InterpolationMode(interpolation)
    crop = v2.RandomResizedCrop(size, scale=area, ratio=aspect, interpolation=filtering, antialias=True)
    return crop, v2.RandomHorizontalFlip(flip)


def _normalise(mean: tuple[float, ...], std: tuple[float, ...]) -> list[v2.Transform]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std, inplace=True)]


def _check_size(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} ({value}) must be at least 1 pixel")


def _check_crop(size: int, resize: int) -> None:
    _check_size("size", size)
    if resize < size:
        raise ValueError(f"resize ({resize}) must be at least size ({size}), which is cut from it")
