"""The pixels of an image in a network's number of channels: grey, colour, or those of a TIFF file.

Shapes: H height, W width.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from cgnl.data.decoding import TIFF, AnyPath, BadFileError, open_image, open_regular
from cgnl.data.tiff import NEEDS_TIFFFILE, read_tiff

Pixels = Image.Image | np.ndarray
"""An 8-bit RGB image, or an array [H, W, channels] of uint8 or of float32, in which 1 is white."""


def check_channels(channels: int) -> None:
    """Raise ImportError where no file of so many channels can be read, since tifffile is not installed."""
    if channels not in (1, 3) and find_spec("tifffile") is None:
        raise ImportError(f"data.channels {channels} is for TIFF files, and {NEEDS_TIFFFILE}")


def open_pixels(path: AnyPath, channels: int = 3) -> Pixels:
    """Decode an image file, whatever its name, fully into upright pixels of so many channels.

    One channel is grey, in the file's own 8 or 16 bits; three are RGB; another number is that of a TIFF file. Eight
    bits stay as they are, and 16 are scaled to 0..1 by 65535. Values of float32 stay.

    Raises:
        BadFileError: As of :func:`cgnl.data.decoding.open_image` and :func:`cgnl.data.tiff.read_tiff`.
    """
    with open_regular(path) as file:
        if TIFF.match(file.read(4)):
            file.seek(0)
            values = read_tiff(file, path, channels)
            return Image.fromarray(values) if channels == 3 and values.dtype == np.uint8 else _scaled(values)
    image = open_image(path, grey=channels == 1)
    if channels not in (1, 3):
        kind = "is no TIFF file and has 1 or 3 channels"
        raise BadFileError(path, f"{kind}, but {channels} are expected (data.channels)")
    return image if channels == 3 else _scaled(np.array(image)[..., None])


def size_of(path: Path, channels: int = 3) -> tuple[int, int]:
    """Decode an image file fully, as :func:`open_pixels` does, and return only its width and height (pixels)."""
    pixels = open_pixels(path, channels)
    return pixels.size if isinstance(pixels, Image.Image) else (pixels.shape[1], pixels.shape[0])


def picture_of(pixels: Pixels) -> Image.Image:
    """Return an RGB image to look at: the first three channels, or the first in grey of one or two.

    Values that had more than 8 bits are stretched so that the darkest and the brightest percent of them are black and
    white.
    """
    if isinstance(pixels, Image.Image):
        return pixels
    shown = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0]
    if shown.dtype != np.uint8:
        low, high = np.percentile(shown, (1, 99))
        shown = np.clip((shown - low) / max(high - low, np.finfo(np.float32).tiny) * 255, 0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(shown)).convert("RGB")


def picture_in_words(channels: int) -> str | None:
    """Return a sentence on the colours of :func:`picture_of`, None where they are the image's own."""
    if channels == 3:
        return None
    drawn = {1: "drawn in grey", 2: "of which the first is drawn, in grey"}.get(
        channels, "of which the first three are drawn, as red, green and blue"
    )
    more = "; values of more than 8 bits are stretched to black and white"
    return f"The network sees {channels} channel{'s' * (channels > 1)}, {drawn}{more}."


def _scaled(values: np.ndarray) -> np.ndarray:
    return (values / np.float32(65535)).astype(np.float32) if values.dtype == np.uint16 else values
