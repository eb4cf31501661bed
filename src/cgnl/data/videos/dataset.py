"""Reading videos into batches of clips: reproducible, each decoded once, with a list of those that fail.

Clips are uint8 [3, T, H, W] and lie in memory as they were decoded, channels last: no one transposes them on the way
to the network, whose convolutions may want just that order.

Shapes: B batch, T frames of a clip, U frames of a video that its test clips need, V views, H height, W width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cgnl.data.decoding import AnyPath, BadFileError
from cgnl.data.lists import SampleList
from cgnl.data.records import FileDataset, sort_out
from cgnl.data.transforms import IMAGENET_MEAN, clip_test_transform, clip_train_transform, crop_offsets
from cgnl.data.videos.clips import centre_clip, test_clips, training_clip
from cgnl.data.videos.decoding import VideoInfo
from cgnl.data.videos.guarded import GuardedReader
from cgnl.data.videos.rates import Rate
from cgnl.settings.checks import within

# Decoded frames that are held at once while a video's test frames are read (bytes); 500 of 340 x 256 fit.
_AT_ONCE = 1 << 27
_AS_THEY_COME = Rate()


class VideoDataset(FileDataset):
    """Reads, cuts and labels clips of the videos of a :class:`cgnl.data.lists.SampleList`.

    Keys and random draws (those of the clip's start and of the transform) are as
    :class:`cgnl.data.records.FileDataset` says. Frames are decoded in a child of the process that asks for them, so
    that a decoder that crashes or hangs makes one bad sample. A record holds ``label``, ``index``, ``lost`` (the
    number of wanted frames that could not be decoded, each replaced by the nearest that could) and

    - of one clip: ``image``, uint8 [3, T, H, W];
    - of several: ``frames``, uint8 [3, U, H, W], each frame once, and ``clips``, int64 [num_clips, T], the places in
      ``frames`` of each clip's frames. :func:`views` cuts them.

    :func:`training_videos` and :func:`test_videos` make the two that are usually wanted.

    Args:
        videos: Videos to read.
        infos: Result of :func:`cgnl.data.videos.index.index_videos`: each video's length, or why it cannot be read.
        clips: From the number of frames that are seen of a video to the numbers of the wanted ones, [T] for one clip
            or [num_clips, T].
        transform: From frames, uint8 [T, H, W, 3], to uint8 [3, T, H', W'].
        seed: Of the random draws.
        timeout: Seconds that reading one clip, or a video's test frames, may take.
        rate: Which frames are seen; by default all.
        frame_pattern: As of :func:`cgnl.data.videos.probe`.

    Raises:
        ValueError: A video is not in ``infos``.
    """

    def __init__(
        self,
        videos: SampleList,
        infos: Mapping[Path, VideoInfo | str],
        clips: Callable[[int], np.ndarray],
        transform: Callable[[np.ndarray], Tensor],
        *,
        seed: int = 0,
        timeout: float = 60.0,
        rate: Rate = _AS_THEY_COME,
        frame_pattern: str | None = None,
    ) -> None:
        super().__init__(videos, seed=seed)
        self.clips, self.transform, self.rate = clips, transform, rate
        # It starts a process of its own in each worker.
        self._reader = GuardedReader(timeout=timeout, frame_pattern=frame_pattern)
        unknown = next((sample.path for sample in videos.samples if sample.path not in infos), None)
        if unknown is not None:
            raise ValueError(f"infos must name every video, but lacks {unknown}")
        found = [infos[sample.path] for sample in videos.samples]
        # As the paths, not as objects; a bad video has no frames.
        self._infos = np.array(
            [(0, 0, 0, 0, 0) if isinstance(info, str) else _as_numbers(info) for info in found], dtype=np.float64
        ).reshape(-1, 5)
        self._errors = {index: info for index, info in enumerate(found) if isinstance(info, str)}

    def read(self, index: int) -> dict[str, Any]:
        """Return ``lost``, and ``image`` or ``frames`` and ``clips``, of one sample."""
        path = self.path(index)
        if index in self._errors:
            raise BadFileError(path, self._errors[index])
        frames, fps, width, height, even = self._infos[index].tolist()
        info = VideoInfo(int(frames), fps, int(width), int(height), None, bool(even))
        seen = self.rate.numbers(self._reader, path, info)
        numbers = seen[self.clips(len(seen))]
        if numbers.ndim == 1:
            pixels, lost = self._reader.read(path, numbers.tolist())
            return {"image": self.transform(pixels), "lost": lost}
        return read_clips(self._reader, path, numbers, self.transform, frame_bytes=3 * info.height * info.width)


def _as_numbers(info: VideoInfo) -> tuple[float, ...]:
    return info.frames, info.fps, info.width, info.height, info.even


def training_videos(
    videos: SampleList,
    infos: Mapping[Path, VideoInfo | str],
    *,
    length: int = 32,
    step: int = 2,
    size: int = 224,
    area: tuple[float, float] = (0.08, 1.25),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    augment: Sequence[str] = (),
    mean: tuple[float, ...] = IMAGENET_MEAN,
    seed: int = 0,
    timeout: float = 60.0,
    rate: Rate = _AS_THEY_COME,
    frame_pattern: str | None = None,
) -> VideoDataset:
    """Return a data set of one random clip of each video, with one random crop and flip for all its frames.

    ``length`` (T) and ``step`` are as of :func:`cgnl.data.videos.clips.clip_from`; ``size`` (pixels), ``area``,
    ``aspect``, ``flip``, ``augment`` and ``mean`` as of :func:`cgnl.data.transforms.clip_train_transform`; the others
    as of :class:`VideoDataset`.
    """
    transform = clip_train_transform(size, area=area, aspect=aspect, flip=flip, augment=augment, mean=mean)
    centre_clip(1, length, step)  # called for what it refuses, which should show before a video is read
    clips = partial(training_clip, length=length, step=step)
    reading: dict[str, Any] = {"timeout": timeout, "rate": rate, "frame_pattern": frame_pattern}
    return VideoDataset(videos, infos, clips, transform, seed=seed, **reading)


def test_videos(
    videos: SampleList,
    infos: Mapping[Path, VideoInfo | str],
    *,
    length: int = 32,  # noqa: PT028
    step: int = 2,  # noqa: PT028
    num_clips: int = 10,  # noqa: PT028
    num_crops: int = 3,  # noqa: PT028
    size: int = 256,  # noqa: PT028
    resize: int = 256,  # noqa: PT028
    timeout: float = 60.0,  # noqa: PT028
    wrap: bool = False,  # noqa: PT028
    rate: Rate = _AS_THEY_COME,  # noqa: PT028
    frame_pattern: str | None = None,  # noqa: PT028
) -> VideoDataset:
    """Return a data set of the views or frames that testing each video needs.

    With one clip and one crop a record holds that view, as ``image``. Otherwise it holds ``frames`` (resized, not
    cropped) and ``clips``, to be cut by :func:`views` with the same ``num_crops`` (of each clip, 1 or 3) and ``size``
    (pixels); ``resize`` is the length of the shorter side before the crop (pixels); ``wrap`` as of
    :func:`cgnl.data.videos.clips.test_clips`. The rest is as of :func:`training_videos`.
    """
    whole, cropped = clip_test_transform(resize), clip_test_transform(resize, size)
    # called for what they refuse, which should show before a video is read
    crop_offsets(resize, resize, size, num_crops)
    test_clips(1, num_clips, length, step)
    reading: dict[str, Any] = {"timeout": timeout, "rate": rate, "frame_pattern": frame_pattern}
    if (num_clips, num_crops) == (1, 1):
        clips: Callable[[int], np.ndarray] = partial(centre_clip, length=length, step=step)
        return VideoDataset(videos, infos, clips, cropped, **reading)
    clips = partial(test_clips, num_clips=num_clips, length=length, step=step, wrap=wrap)
    return VideoDataset(videos, infos, clips, whole, **reading)


test_videos.__test__ = False  # type: ignore[attr-defined]  # no test, though pytest would take the name for one


def read_clips(
    reader: GuardedReader,
    path: AnyPath,
    numbers: np.ndarray,
    transform: Callable[[np.ndarray], Tensor],
    *,
    frame_bytes: int,
) -> dict[str, Any]:
    """Read the frames of several clips of one video, each of them once; BadFileError where it cannot be read.

    ``numbers`` are those of the clips' frames, int64 [num_clips, T]; ``transform`` makes uint8 [3, U, H', W'] of
    frames, uint8 [U, H, W, 3]. Of large decoded frames (``frame_bytes``) some at a time are in memory. Returns
    ``frames``, uint8 [3, U, H', W'], in the order of the video; ``clips``, int64 [num_clips, T], places in ``frames``;
    ``lost``, the number of them that could not be decoded.
    """
    wanted, places = np.unique(numbers, return_inverse=True)
    frames = torch.empty(0)

    def take(first: int, decoded: np.ndarray) -> None:
        nonlocal frames
        piece = transform(decoded).movedim(0, -1)
        if first == 0:
            frames = piece.new_empty(len(wanted), *piece.shape[1:])
        frames[first : first + len(piece)] = piece

    lost = reader.read_pieces(path, wanted.tolist(), max(1, _AT_ONCE // frame_bytes), take)
    clips = torch.from_numpy(places.reshape(numbers.shape))
    return {"frames": frames.movedim(-1, 0), "clips": clips, "lost": lost}


def views(frames: Tensor, clips: Tensor, *, num_crops: int, size: int, chunk: int) -> Iterator[Tensor]:
    """Cut the views of one video, some at a time: all crops of the first clip, then those of the second, ...

    ``frames`` are uint8 [3, U, H, W], on any device, and ``clips`` places in them, int64 [num_clips, T]. Crops have
    ``size`` pixels and are where :func:`cgnl.data.transforms.crop_offsets` says. Yields uint8 [V, 3, T, size, size],
    where V is ``chunk``, the last time maybe less. Raises ValueError for a chunk below 1, or crops that the frames do
    not hold.

    Example:
        >>> clips = torch.tensor([[0, 1], [1, 2]])
        >>> frames = torch.zeros(3, 3, 8, 12, dtype=torch.uint8)
        >>> [tuple(part.shape) for part in views(frames, clips, num_crops=3, size=8, chunk=4)]
        [(4, 3, 2, 8, 8), (2, 3, 2, 8, 8)]
    """
    within("chunk", chunk, 1)
    height, width = frames.shape[-2:]
    offsets = crop_offsets(height, width, size, num_crops)
    crops = [frames[:, :, top : top + size, left : left + size].movedim(0, -1) for top, left in offsets]
    places = [(clip, crop) for clip in clips.to(frames.device) for crop in crops]
    for begin in range(0, len(places), chunk):
        some = places[begin : begin + chunk]
        # one copy of the pixels, in the order of their memory
        cut = frames.new_empty(len(some), clips.shape[1], size, size, 3)
        for view, (clip, crop) in zip(cut, some, strict=True):
            torch.index_select(crop, 0, clip, out=view)
        yield cut.movedim(-1, 1)


def collate_videos(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch of the samples of :class:`VideoDataset` that could be read, and list the others.

    It has ``label`` [B], ``index`` [B], ``lost`` [B], ``bad``, a list of (index, path, reason), and

    - of one clip each: ``image``, uint8 [B, 3, T, H, W];
    - of several: ``videos``, a list of B times ``frames``, uint8 [3, U, H, W], and ``clips``, int64 [num_clips, T].

    If no video could be read, there is an ``image`` where B is 0, and so are T, H and W.
    """
    good, batch = sort_out(records)
    batch["lost"] = torch.tensor([record["lost"] for record in good], dtype=torch.int64)
    if not good:
        return {"image": torch.empty(0, 3, 0, 0, 0, dtype=torch.uint8), **batch}
    if "image" in good[0]:
        # stacked in the order of their memory
        return {"image": torch.stack([record["image"].movedim(0, -1) for record in good]).movedim(-1, 1), **batch}
    return {"videos": [{key: record[key] for key in ("frames", "clips")} for record in good], **batch}
