"""Classifying videos."""

import logging
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cgnl.data.transforms import clip_test_transform, normalise_clip
from cgnl.explain.geometry import view_of
from cgnl.explain.inputs import SeenInput
from cgnl.networks.video import c2d_resnet
from cgnl.settings.image import ARCHITECTURES
from cgnl.settings.video import VideoDataConfig, VideoRecipe
from cgnl.tasks.classification import MIN_TRACED, ClassificationTask, most_probable, probabilities
from cgnl.training.task import Export
from cgnl.training.trained import TrainedNetwork, default_device

_logger = logging.getLogger(__name__)


class VideoTask(ClassificationTask[VideoRecipe]):
    """Classifying videos with a residual network on frames and blocks in space and time."""

    noun = "video"
    num_axes = 3
    words = "a video classifier"
    prediction_options = ("top", "timeline", "folder_fps")
    drawn = "actions"

    def files_in(self, path: Path) -> list[Path]:
        """Return the videos and the folders of frames in a folder, or the path itself."""
        from cgnl.data.videos.frame_folders import videos_below

        return videos_below(path) if path.is_dir() else [path]

    @staticmethod
    def build_resnet(**settings: Any) -> nn.Module:
        """Build one of the paper's networks."""
        return c2d_resnet(**settings)

    def note(self, recipe: VideoRecipe) -> str | None:
        """Say that the blocks see no time, where the temporal strides leave one step of it."""
        left = recipe.data.num_frames
        for stride in recipe.network.temporal_strides:
            left = -(-left // stride)
        if left > 1 or recipe.network.block == "none" or recipe.network.arch not in ARCHITECTURES:
            return super().note(recipe)
        strides = " ".join(map(str, recipe.network.temporal_strides))
        return (
            f"note: with {recipe.data.num_frames} frames and network.temporal_strides {strides}, the blocks see one "
            "time step and relate positions in space alone; with 1 1 2 they see more"
        )

    def make_data(self, config: VideoDataConfig, **options: Any) -> Any:
        """Return a :class:`cgnl.training.VideoData`."""
        from cgnl.training.video_data import VideoData

        return VideoData(config, **options)

    def tested(self, data: VideoDataConfig) -> str:
        """Return what a test is made of, after a number."""
        return f"videos, {data.test_clips} clips x {data.test_crops} crops"

    def set_test_options(self, network: Any, options: dict[str, Any]) -> None:
        """Change the head."""
        network.head = options["head"]

    def see(self, trained: TrainedNetwork, path: Path) -> SeenInput:
        """Return one clip from the middle of a video, and its middle crop, as the network sees them."""
        from cgnl.data.videos import centre_clip
        from cgnl.training.video_views import rate_of, reader_of

        config: Any = trained.recipe.data
        with closing(reader_of(config)) as reader:
            info = reader.probe(path)
            seen = rate_of(config).numbers(reader, path, info)
            clip = centre_clip(len(seen), config.num_frames, config.frame_step)
            frames, _ = reader.read(path, seen[clip].tolist())
        pixels = clip_test_transform(config.resize, config.size)(frames)
        x = normalise_clip(pixels[None], mean=trained.mean, std=trained.std)
        view = view_of(info.width, info.height, size=config.size, resize=config.resize)
        return SeenInput(path, tuple(Image.fromarray(frame) for frame in frames), view, x)

    def page_note(self, recipe: VideoRecipe) -> str | None:
        """Say which clip the maps are of."""
        return "The page shows the middle clip of each video, and the predictions are for that clip alone."

    def export(self, trained: TrainedNetwork) -> Export:
        """Return the shape to trace the network at, its free axes and its description."""
        from cgnl.training.video_views import view_size

        recipe: Any = trained.recipe
        size = view_size(recipe.data)
        metadata = self.metadata(trained, size)
        metadata |= {"num_frames": str(recipe.data.num_frames), "frame_step": str(recipe.data.frame_step)}
        if recipe.data.fps is not None:
            metadata["fps"] = str(recipe.data.fps)
        if recipe.network.arch not in ARCHITECTURES:
            return Export((1, 3, recipe.data.num_frames, size, size), ("batch",), metadata)
        # two of the time steps that the strides leave: at one PyTorch may take their number for a constant
        frames = max(recipe.data.num_frames, 2 * math.prod(recipe.network.temporal_strides))
        if recipe.network.head == "fully_convolutional":
            # the number of its windows is a constant in what PyTorch traces
            return Export((1, 3, frames, size, size), ("batch", "time"), metadata)
        traced = max(size, MIN_TRACED)
        return Export((1, 3, frames, traced, traced), ("batch", "time", "height", "width"), metadata)

    def probabilities(self, trained: TrainedNetwork, path: Path) -> Tensor:
        """Return the probabilities [K] for a video file or a folder of frames: the mean over its test views.

        What is damaged in it is logged.
        """
        # a network of videos can be built where no decoder is installed
        from cgnl.data.videos import read_clips, test_clips
        from cgnl.training.video_views import damage, normalised_views, rate_of, reader_of

        config: Any = trained.recipe.data
        with closing(reader_of(config)) as reader:
            info = reader.probe(path)
            seen = rate_of(config).numbers(reader, path, info)
            clips = test_clips(
                len(seen), config.test_clips, config.num_frames, config.frame_step, wrap=config.test_wrap
            )
            size = 3 * info.height * info.width
            video = read_clips(reader, path, seen[clips], clip_test_transform(config.resize), frame_bytes=size)
        if found := damage(info, video["lost"]):
            _logger.warning("%s %s", path, "; ".join(found))
        video["frames"] = video["frames"].to(default_device())
        parts = normalised_views(video, config, mean=trained.mean, std=trained.std)
        return torch.cat([probabilities(trained, part, path) for part in parts]).mean(0)

    def timeline(
        self, trained: TrainedNetwork, path: Path, top: int, *, progress: bool = False
    ) -> Iterator[tuple[int, list[tuple[str, float]]]]:
        """Give the most probable classes of each second; see :func:`cgnl.tasks.predict_timeline`."""
        from cgnl.data.scanning import progress_bar
        from cgnl.data.videos import frames_at, read_clips, timeline_clips
        from cgnl.training.video_views import rate_of, reader_of

        config: Any = trained.recipe.data
        rate = rate_of(config)
        transform = clip_test_transform(config.resize, config.size)
        with closing(reader_of(config)) as reader:
            info = reader.probe(path)
            times, numbers = rate.times(reader, path, info), np.arange(info.frames)
            if rate.fps is not None:
                numbers = frames_at(times, rate.fps)
                times = times[0] + np.arange(len(numbers) + 1) / rate.fps
            seconds, clips = timeline_clips(times, config.num_frames, config.frame_step)
            with progress_bar(f"seconds of {path.name}", len(seconds), progress=progress) as bar:
                for begin in range(0, len(clips), config.views_per_step):
                    some = numbers[clips[begin : begin + config.views_per_step]]
                    video = read_clips(reader, path, some, transform, frame_bytes=3 * info.height * info.width)
                    batch = video["frames"][:, video["clips"]].movedim(0, 1).to(default_device())
                    batch = normalise_clip(batch, mean=trained.mean, std=trained.std)
                    for second, values in zip(seconds[begin:], probabilities(trained, batch, path), strict=False):
                        yield second, most_probable(trained, values, top)
                    bar(len(some))

    def draw(self, folder: Path) -> None:
        """Draw videos of four actions, in the layout of UCF101."""
        from cgnl.toy.actions import draw_actions

        draw_actions(folder, num_classes=4, groups=3, clips_per_group=1, size=(96, 72))

    def smoke(
        self, recipe: VideoRecipe, root: Path, *, size: int | None, batch_size: int | None, steps: int
    ) -> VideoRecipe:
        """Return a recipe that runs in seconds on a CPU."""
        small = super().smoke(recipe, root, size=size, batch_size=batch_size, steps=steps)
        # strides 2 2 2 leave the blocks two time steps of 16 frames
        data = replace(small.data, format="ucf101", num_frames=16, frame_step=4, test_clips=2)
        return replace(small, data=data)

    def num_classes(self, layout: str) -> int | None:
        """Return the number of classes of the data set that a layout is named after."""
        from cgnl.data.videos.layouts import LAYOUTS

        return LAYOUTS[layout].num_classes if layout in LAYOUTS else None

    def input_shape(self, recipe: VideoRecipe) -> tuple[int, ...]:
        """Return [1, 3, T, H, W]."""
        size, _ = recipe.data.pixels
        return 1, 3, recipe.data.num_frames, size, size


TASK = VideoTask()
