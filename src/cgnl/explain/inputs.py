"""Images and videos as a trained network sees them, with all that is needed to point at them.

Shapes: C channels, T frames, H and W height and width of the input in pixels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from cgnl.data.decoding import BadFileError
from cgnl.data.images import read_cub_parts
from cgnl.explain.geometry import View, token_grid, unpool
from cgnl.explain.trace import BlockTrace, Trace, trace_blocks
from cgnl.training.trained import NOT_FINITE, TrainedNetwork, default_device


@dataclass(frozen=True)
class SeenInput:
    """One image or video, and what a network saw of it.

    Attributes:
        path: The file, or the folder of frames.
        frames: The image, or the frames of the clip, upright, as the file has them.
        view: What the network saw of a frame.
        x: The network's input: [1, C, H, W], [1, 3, T, H, W], or for a detector a list of [3, H, W].
        colours: A sentence on what the colours of the frames stand for, None where they are the file's own.
    """

    path: Path
    frames: tuple[Image.Image, ...]
    view: View
    x: Tensor | list[Tensor]
    colours: str | None = None

    def seen_frames(self) -> list[Image.Image]:
        """Return the frames as the network saw them: resized and cut, without the normalisation."""
        view = self.view
        seen = []
        for frame in self.frames:
            x0, y0, x1, y1 = view.area
            inside = (max(x0, 0), max(y0, 0), min(x1, frame.width), min(y1, frame.height))
            # a detector's input is filled up with zeros on the right and below
            size = round((inside[2] - inside[0]) * view.scale_x), round((inside[3] - inside[1]) * view.scale_y)
            picture = Image.new("RGB", (view.input_width, view.input_height))
            picture.paste(frame.resize(size, Image.Resampling.BILINEAR, box=inside))
            seen.append(picture)
        return seen


def trace_seen(
    networks: Mapping[str, TrainedNetwork], seen: Mapping[str, SeenInput]
) -> tuple[SeenInput, dict[str, Trace]]:
    """Trace the blocks of several networks, by name, on what each sees of one image or video.

    Works on the GPU where there is one. Returns what they saw and the traces by name; those of plain networks have no
    blocks. Raises ValueError where networks are tested on different sizes or frames, BadFileError where an output or a
    block's features are not finite.
    """
    first = next(iter(seen.values()))
    if any((each.view, each.frames) != (first.view, first.frames) for each in seen.values()):
        raise ValueError("beside: both networks must be tested on inputs of the same size and on the same frames")
    device = default_device()
    traces = {
        name: trace_blocks(trained.network.to(device), on(device, seen[name].x)) for name, trained in networks.items()
    }
    for trace in traces.values():
        tensors = [trace.output, *(part for b in trace.blocks.values() for part in (b.theta, b.phi, b.g))]
        if not all(tensor.isfinite().all() for tensor in tensors if isinstance(tensor, Tensor)):
            raise BadFileError(first.path, NOT_FINITE)
    return first, traces


def on(device: torch.device, x: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    """Return a network's input on a device."""
    return [image.to(device) for image in x] if isinstance(x, list) else x.to(device)


def strongest_position(block: BlockTrace, seen: SeenInput, *, first_step: bool = False) -> tuple[float, float, int]:
    """Return where a block's g is strongest: x and y (pixels of the file) of the position's middle, and the frame.

    It is looked for in all time steps, or in the first one alone.
    """
    assert block.g is not None
    strength = block.g.abs().amax(0)
    if len(block.shape) == 1:
        rows, columns, first = token_grid(block.shape[0])
        strength = strength[first:].view(rows, columns)
    else:
        strength = unpool(strength, block.shape)
    if first_step and len(block.shape) == 3:
        strength[1:] = -1
    # neither where a pooling left something out, nor where a detector's input is filled up
    rows, columns = strength.shape[-2:]
    across, down = seen.view.to_input(seen.view.width, seen.view.height)
    strength[..., math.ceil(down / seen.view.input_height * rows - 0.5) :, :] = -1
    strength[..., math.ceil(across / seen.view.input_width * columns - 0.5) :] = -1
    place = torch.unravel_index(strength.nan_to_num(-1).argmax(), strength.shape)
    x0, y0, x1, y1 = seen.view.box(int(place[-2]), int(place[-1]), (rows, columns))
    frame = 0
    if len(block.shape) == 3:
        # the frame in the middle of the step
        frame = (2 * int(place[0]) + 1) * len(seen.frames) // (2 * block.shape[0])
    return (x0 + x1) / 2, (y0 + y1) / 2, frame


def parts_of(path: Path) -> dict[str, tuple[float, float]] | None:
    """Return the annotated parts of an image by name, x and y in its pixels; None where it lies in no such data set."""
    root = next((folder for folder in path.absolute().parents if (folder / "parts" / "part_locs.txt").is_file()), None)
    if root is None:
        return None
    _, locations = read_cub_parts(root)
    return next((parts for image, parts in locations.items() if image.resolve() == path.resolve()), None)
