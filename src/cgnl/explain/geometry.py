"""Where the positions of a feature map lie in the image or video that the network saw.

A pixel of the file, upright, is resized and cropped to the network's input, and a position of a feature map stands
for an equal part of that input: of h rows, row r covers the input's rows from r H / h to (r + 1) H / h.

The pixels that a position is made from reach further than its part, and need not lie around its middle: strided
convolutions with padding, as ResNets have them, put the middle of what position r sees near the beginning of its
part, up to half a part from its middle.

Coordinates are in pixels with the corner of the image at 0, x to the right and y down: the middle of the first pixel is
0.5.
"""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cgnl.data.transforms import test_geometry as crop_geometry

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels: from the left and upper to the right and lower edge."""


@dataclass(frozen=True)
class View:
    """What a network saw of an image or of the frames of a video: ``input = image * scale - offset`` on each axis.

    ``width`` and ``height`` are of the upright image, ``input_width`` and ``input_height`` of the network's input,
    ``scale_x`` and ``scale_y`` the size of an image pixel in the resized image, and ``left`` and ``top`` where the
    input begins there (all in pixels).
    """

    width: int
    height: int
    input_width: int
    input_height: int
    scale_x: float = 1.0
    scale_y: float = 1.0
    left: int = 0
    top: int = 0

    @property
    def area(self) -> Box:
        """The part of the image that the network saw."""
        return (*self.to_image(0, 0), *self.to_image(self.input_width, self.input_height))

    def to_input(self, x: float, y: float) -> tuple[float, float]:
        """Return where a point of the image, x and y in its pixels, lies in the input, be it inside or not.

        Example:
            >>> view_of(100, 50, size=80, resize=100).to_input(50, 25)
            (40.0, 40.0)
        """
        return x * self.scale_x - self.left, y * self.scale_y - self.top

    def to_image(self, x: float, y: float) -> tuple[float, float]:
        """Return where a point of the input, x and y in its pixels, lies in the image.

        Example:
            >>> view_of(100, 50, size=80, resize=100).to_image(40, 40)
            (50.0, 25.0)
        """
        return (x + self.left) / self.scale_x, (y + self.top) / self.scale_y

    def position(self, x: float, y: float, shape: tuple[int, int]) -> tuple[int, int]:
        """Return row and column of the position of a feature map (rows, columns) that a point of the image falls into.

        ``x`` and ``y`` are in pixels of the image. Raises ValueError for a point that the network did not see.

        Example:
            >>> view_of(100, 50, size=80, resize=100).position(32, 25, (8, 8))
            (4, 0)
        """
        across, down = self.to_input(x, y)
        x0, y0, x1, y1 = self.area
        # a detector's input is filled up on the right and below
        x1, y1 = min(x1, self.width), min(y1, self.height)
        if not (0 <= across < self.input_width and 0 <= down < self.input_height and x < x1 and y < y1):
            raise ValueError(
                f"x, y ({x:g}, {y:g}) must lie in what the network sees of the {self.width} x {self.height} pixels: "
                f"x from {x0:.4g} to {x1:.4g}, y from {y0:.4g} to {y1:.4g}"
            )
        rows, columns = shape
        # a coordinate just below the edge may still round up to the number of rows
        return min(int(down * rows / self.input_height), rows - 1), min(
            int(across * columns / self.input_width), columns - 1
        )

    def box(self, row: int, column: int, shape: tuple[int, int]) -> Box:
        """Return x0, y0, x1, y1 (pixels of the image) of what a position of a feature map (rows, columns) stands for.

        Example:
            >>> view_of(100, 50, size=80, resize=100).box(4, 0, (8, 8))
            (30.0, 25.0, 35.0, 30.0)
        """
        rows, columns = shape
        high, wide = self.input_height / rows, self.input_width / columns
        return (*self.to_image(column * wide, row * high), *self.to_image((column + 1) * wide, (row + 1) * high))


def view_of(width: int, height: int, *, size: int | None = None, resize: int | None = None) -> View:
    """Return what a network sees of an image behind the test transforms of :mod:`cgnl.data.transforms`.

    All are in pixels: the upright image's width and height; ``size`` of the crop from the middle, or None where nothing
    is cut off; ``resize``, the shorter side before it, or None. Raises ValueError for a size below 1 or a crop larger
    than the resized image.

    Example:
        >>> view_of(500, 375, size=448, resize=512).left
        117
        >>> view_of(500, 375, resize=512).input_width
        682
    """
    for name, value in (("width", width), ("height", height)):
        if value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1 pixel")
    shorter = min(width, height) if resize is None else resize
    geometry = crop_geometry(height, width, shorter if size is None else size, shorter)
    if size is not None:
        return View(width, height, size, size, geometry.scale_x, geometry.scale_y, geometry.offset_x, geometry.offset_y)
    across, down = round(width * geometry.scale_x), round(height * geometry.scale_y)
    return View(width, height, across, down, geometry.scale_x, geometry.scale_y)


def time_step(frame: int, num_frames: int, num_steps: int) -> int:
    """Return the step along the time axis of a feature map that the middle of a frame of the input falls into.

    A step stands for an equal part of the input's frames, as a position does for a part of its space, and what it is
    made from need not lie around the middle of its part: behind three convolutions with stride 2 and padding, step t is
    centred on frame 8 t, the first of its part, and is drawn over all of 8 t to 8 t + 7. Where a layer samples every
    second frame alone, the frames between are not read at all, and are drawn with the step of their part. Raises
    ValueError for a frame (from 0) that does not exist.

    Example:
        >>> [time_step(frame, 8, 4) for frame in range(8)]
        [0, 0, 1, 1, 2, 2, 3, 3]
        >>> [time_step(frame, 5, 3) for frame in range(5)]
        [0, 0, 1, 2, 2]
    """
    if not 0 <= frame < num_frames:
        raise ValueError(f"frame ({frame}) must lie in 0..{num_frames - 1}, the frames that the network sees")
    return (2 * frame + 1) * num_steps // (2 * num_frames)


def token_grid(num_tokens: int) -> tuple[int, int, int]:
    """Return how tokens lie on the image: rows, columns, and the number of tokens before them, 0 or 1 (a class token).

    Raises ValueError where ``num_tokens`` do not fill a square grid, row by row.

    Example:
        >>> token_grid(197)
        (14, 14, 1)
    """
    for first in (0, 1):
        side = math.isqrt(max(num_tokens - first, 0))
        if side and side**2 == num_tokens - first:
            return side, side, first
    raise ValueError(
        f"num_tokens ({num_tokens}) must be the number of positions of a square grid, or one more for a class token"
    )


def unpool(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Spread a map [..., h', w'] over positions max-pooled by 2 to all positions, [..., h, w].

    ``shape`` has the lengths of all axes before the pooling. An odd row or column at the end, which the pooling leaves
    out, is NaN; where nothing was pooled the map comes back. Raises ValueError where the shapes do not fit.

    Example:
        >>> import torch
        >>> unpool(torch.tensor([[1.0, 2.0]]), (2, 5))
        tensor([[1., 1., 2., 2., nan],
                [1., 1., 2., 2., nan]])
    """
    if values.shape == shape:
        return values
    *rest, rows, columns = shape
    if values.shape != (*rest, rows // 2, columns // 2):
        raise ValueError(f"values {list(values.shape)} must be of {list(shape)} positions, all or every 2 x 2 of them")
    whole = values.new_full(shape, math.nan)
    whole[..., : rows // 2 * 2, : columns // 2 * 2] = values.repeat_interleave(2, -2).repeat_interleave(2, -1)
    return whole


def regions(mask: Tensor | np.ndarray) -> list[tuple[int, int, int, int]]:
    """Return the boxes around the connected regions of a mask [h, w]; positions that share an edge are connected.

    Each is first row, first column, and the row and column after the last; in the order of their first positions.

    Example:
        >>> regions(np.array([[1, 0, 0], [1, 0, 1]]))
        [(0, 0, 2, 1), (1, 2, 2, 3)]
    """
    left = {(int(row), int(column)) for row, column in np.argwhere(np.asarray(mask))}
    boxes = []
    for start in sorted(left):
        if start not in left:
            continue
        left.remove(start)
        region = [start]
        for row, column in region:  # grows while it is walked
            for neighbour in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if neighbour in left:
                    left.remove(neighbour)
                    region.append(neighbour)
        rows, columns = zip(*region, strict=True)
        boxes.append((min(rows), min(columns), max(rows) + 1, max(columns) + 1))
    return boxes
