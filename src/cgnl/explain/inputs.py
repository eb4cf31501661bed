"""Images and videos as a trained network sees them, with all that is needed to point at them.

Shapes: T frames, H and W height and width of the input in pixels.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.v2.functional import to_dtype, to_image

from cgnl.data.decoding import open_image
from cgnl.data.transforms import clip_test_transform, normalise_clip, test_transform
from cgnl.explain.geometry import View, view_of
from cgnl.training.checkpoint import TrainedNetwork


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
    from cgnl.training.recipe import VideoDataConfig

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
