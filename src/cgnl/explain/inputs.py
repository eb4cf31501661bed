"""Images and videos as a trained network sees them, with all that is needed to point at them.

Shapes: T frames, H and W height and width of the input in pixels.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.v2.functional import to_dtype, to_image

from cgnl.data.decoding import open_image
from cgnl.data.images import read_cub_parts
from cgnl.data.transforms import clip_test_transform, normalise_clip, test_transform
from cgnl.explain.geometry import View, unpool, view_of
from cgnl.explain.trace import BlockTrace, Trace, trace_blocks
from cgnl.training.checkpoint import TrainedNetwork
from cgnl.training.evaluation import default_device


@dataclass(frozen=True)
class SeenInput:
    """One image or video, and what a network saw of it.

    Attributes:
        path: The file, or the folder of frames.
        frames: The image, or the frames of the clip, upright, as the file has them.
        view: What the network saw of a frame.
        x: The network's input: [1, 3, H, W], [1, 3, T, H, W], or for a detector a list of [3, H, W].
    """

    path: Path
    frames: tuple[Image.Image, ...]
    view: View
    x: Tensor | list[Tensor]

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


def see(trained: TrainedNetwork, path: Path) -> SeenInput:
    """Read an image or video as a network is tested on it: of a video one clip from the middle, and its middle crop.

    Args:
        trained: The network.
        path: Image file; for a video network a video file, or a folder of frames.

    Raises:
        DataError: The file is no image or video that is opened.
    """
    if trained.recipe.task == "video":
        return _see_video(trained, path)
    image = open_image(path)
    if trained.recipe.task == "detection":
        return _see_for_detection(trained, path, image)
    config = trained.recipe.data
    x = test_transform(config.size, config.resize, mean=trained.mean, std=trained.std)(image)
    view = view_of(image.width, image.height, size=config.size, resize=config.resize)
    return SeenInput(path, (image,), view, x[None])


def _see_video(trained: TrainedNetwork, path: Path) -> SeenInput:
    # images need no decoder of videos
    from cgnl.data.videos import GuardedReader, test_clips
    from cgnl.settings.video import VideoDataConfig

    config = trained.recipe.data
    assert isinstance(config, VideoDataConfig)
    with closing(GuardedReader(timeout=config.decode_timeout)) as reader:
        info = reader.probe(path)
        numbers: Sequence[int] = test_clips(info.frames, 1, config.num_frames, config.frame_step)[0].tolist()
        frames, _ = reader.read(path, numbers)
    clip = clip_test_transform(config.resize, config.size)(frames)
    x = normalise_clip(clip[None], mean=trained.mean, std=trained.std)
    view = view_of(info.width, info.height, size=config.size, resize=config.resize)
    return SeenInput(path, tuple(Image.fromarray(frame) for frame in frames), view, x)


def _see_for_detection(trained: TrainedNetwork, path: Path, image: Image.Image) -> SeenInput:
    resize = trained.network.transform
    assert isinstance(resize, GeneralizedRCNNTransform)
    x = to_dtype(to_image(image), torch.float32, scale=True)
    # the network resizes the image itself, and fills it up to a multiple of 32 pixels
    resized, _ = resize([x])
    (height, width), (full_height, full_width) = resized.image_sizes[0], resized.tensors.shape[-2:]
    view = View(image.width, image.height, full_width, full_height, width / image.width, height / image.height)
    return SeenInput(path, (image,), view, [x])


def trace_file(networks: Mapping[str, TrainedNetwork], path: Path) -> tuple[SeenInput, dict[str, Trace]]:
    """Read an image or video and trace the blocks of several networks on it.

    Args:
        networks: The networks by name, for the same kind of input; each is moved to the GPU where there is one.
        path: As in :func:`see`.

    Returns:
        What the networks saw, and their traces by name; those of plain networks have no blocks.

    Raises:
        DataError: The file is no image or video that is opened.
        ValueError: The networks are tested on inputs of different sizes, or on different frames.
    """
    seen = {name: see(trained, path) for name, trained in networks.items()}
    first = next(iter(seen.values()))
    if any((each.view, each.frames) != (first.view, first.frames) for each in seen.values()):
        raise ValueError("beside: both networks must be tested on inputs of the same size, and on the same frames")
    device = default_device()
    return first, {
        name: trace_blocks(trained.network.to(device), on(device, seen[name].x)) for name, trained in networks.items()
    }


def on(device: torch.device, x: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    """Return a network's input on a device."""
    return [image.to(device) for image in x] if isinstance(x, list) else x.to(device)


def strongest_position(block: BlockTrace, seen: SeenInput) -> tuple[float, float, int]:
    """Return where a block's g is strongest: x and y (pixels of the file) of the position's middle, and the frame.

    Args:
        block: What the block saw of the input.
        seen: The input.
    """
    assert block.g is not None
    strength = unpool(block.g.abs().amax(0), block.shape)
    # neither where a pooling left something out, nor where a detector's input is filled up
    rows, columns = block.shape[-2:]
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
