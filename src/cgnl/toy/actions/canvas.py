"""Drawing in the units of a scene, through a moving camera."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from cgnl.toy.birds.skeleton import RGB


@dataclass(frozen=True)
class View:
    """The camera's view: the place in the middle of the picture, and the size of things in it (``zoom``).

    Places in the scene are counted in heights of the frame from the middle of the ground, y upwards.
    """

    x: float
    y: float
    zoom: float


class Canvas:
    """An RGB image to draw into.

    Places are counted from ``origin`` in the scene; a ``unit`` of them is so many heights of the frame.
    """

    def __init__(
        self, image: Image.Image, view: View, origin: tuple[float, float] = (0.0, 0.0), unit: float = 1.0
    ) -> None:
        self._image, self._view = image, view
        self._draw = ImageDraw.Draw(image)
        scale = image.height * view.zoom
        self._scale = scale * unit
        self._shift = (image.width / 2 + (origin[0] - view.x) * scale, image.height / 2 - (origin[1] - view.y) * scale)

    def at(self, x: float, y: float, unit: float) -> "Canvas":
        """Return a canvas on the same picture whose places are counted from elsewhere in the scene."""
        return Canvas(self._image, self._view, (x, y), unit)

    def polygon(self, points: np.ndarray, colour: RGB) -> None:
        """Fill a polygon, [n, 2]."""
        self._draw.polygon(self._pixels(points).ravel().tolist(), fill=colour)

    def disc(self, centre: np.ndarray, radius: float, colour: RGB) -> None:
        """Fill a circle."""
        self.oval(centre, radius, radius, colour)

    def oval(self, centre: np.ndarray, half_width: float, half_height: float, colour: RGB) -> None:
        """Fill an upright ellipse."""
        x, y = self._pixels(centre)
        a, b = half_width * self._scale, half_height * self._scale
        self._draw.ellipse((x - a, y - b, x + a, y + b), fill=colour)

    def line(self, points: np.ndarray, width: float, colour: RGB) -> None:
        """Draw a bent line, [n, 2], with round joints and ends."""
        pixels = self._pixels(points)
        thick = max(1, round(width * self._scale))
        self._draw.line(pixels.ravel().tolist(), fill=colour, width=thick)
        r = thick / 2
        if r >= 1:
            for x, y in pixels.tolist():
                self._draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def _pixels(self, points: np.ndarray) -> np.ndarray:
        return np.asarray(points, dtype=float) * (self._scale, -self._scale) + self._shift
