"""The Lightning data module of videos."""

import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from cgnl.data.decoding import DataError
from cgnl.data.lists import SampleList, Split, write_rows
from cgnl.data.transforms import normalise_clip
from cgnl.data.videos import (
    VideoDataset,
    VideoInfo,
    collate_videos,
    index_videos,
    read_videos,
    test_videos,
    training_videos,
    video_parts,
)
from cgnl.settings.video import VideoDataConfig
from cgnl.training.data import SampleData
from cgnl.training.processes import gathered, is_first_process
from cgnl.training.video_views import damage, normalised_views, reading, view_size


class VideoData(SampleData[VideoDataConfig]):
    """Training, validation and test videos of a recipe; arguments and errors as of :class:`SampleData`.

    Clips leave the readers as 8-bit integers and are normalised on the device. During training each test video is
    tested by one clip and crop from its middle; for prediction by ``test_clips`` x ``test_crops`` views, whose video
    is decoded once.
    """

    noun = "video"
    collate = staticmethod(collate_videos)

    def __init__(self, config: VideoDataConfig, **options: Any) -> None:
        super().__init__(config, **options)
        # the most frames that were wanted at once and could not be decoded
        self._damaged: dict[Path, int] = {}
        # videos that have another number of frames than their container promises
        self._cut: dict[Path, VideoInfo] = {}
        # folders that hold another number of frames than their list says
        self._differing: dict[Path, str] = {}

    def _list(self, split: Split) -> SampleList:
        config = self.config
        assert config.root is not None
        return read_videos(
            config.root,
            split,
            format=config.format,
            annotations=config.annotations,
            fold=config.fold,
            missing_limit=1.0,
            frame_pattern=config.frame_pattern,
            frame_tolerance=config.frame_tolerance,
            **self.list_options(split),
        )

    def _parts(self) -> tuple[Split, ...]:
        config = self.config
        assert config.root is not None
        return video_parts(config.root.expanduser(), config.format, config.annotations)

    @cached_property
    def train_index(self) -> dict[Path, VideoInfo | str]:
        """Length and size of each training video, or why it cannot be read; made on first use."""
        return self._index("train", self.train_samples)

    @cached_property
    def test_index(self) -> dict[Path, VideoInfo | str]:
        """Length and size of each video that tests see, or why it cannot be read; made on first use."""
        return self._index(self.tested, self.tested_samples)

    def _index(self, split: Split, videos: SampleList) -> dict[Path, VideoInfo | str]:
        otherwise = self.run / "video_index.csv" if self.run else None
        index = index_videos(
            [sample.path for sample in videos.samples],
            videos.root,
            file=self.config.index,
            otherwise=otherwise,
            timeout=self.config.decode_timeout,
            progress=sys.stderr.isatty(),
            frame_pattern=self.config.frame_pattern,
        )
        if self.config.fps is not None and self.config.folder_fps is None:
            folders = (path for path, info in index.items() if isinstance(info, VideoInfo) and not info.fps)
            if (folder := next(folders, None)) is not None:
                raise DataError(
                    f"{folder} does not say how many frames it has per second, which data.fps ({self.config.fps:g}) "
                    "needs: it is a folder of frames, so give data.folder_fps too."
                )
        self._bad[split].add(
            (place, sample.path, reason)
            for place, sample in enumerate(videos.samples)
            if isinstance(reason := index[sample.path], str)
        )
        self._differing |= videos.remarks
        self._cut |= {path: info for path, info in index.items() if isinstance(info, VideoInfo) and damage(info)}
        return index

    def _dataset(self, split: Split, *, training: bool) -> VideoDataset:
        config = self.config
        clip: dict[str, Any] = {
            "length": config.num_frames,
            "step": config.frame_step,
            "size": config.pixels[0],
            **reading(config),
        }
        videos, index = self.samples_of(split), self.train_index if split == "train" else self.test_index
        if training:
            return training_videos(
                videos,
                index,
                **clip,
                area=config.crop_area,
                aspect=config.crop_aspect,
                flip=config.flip,
                augment=config.augment,
                mean=self.inputs.mean,
                seed=self.seed,
            )
        return test_videos(videos, index, **clip, num_clips=1, num_crops=1, resize=config.pixels[1])

    def share_bad_files(self) -> None:
        """Let every process know the bad and damaged files of all; list the damaged ones."""
        super().share_bad_files()
        for share in gathered(self._damaged):
            for path, lost in share.items():
                self._damaged[path] = max(lost, self._damaged.get(path, 0))
        rows = [
            (path, "; ".join([*differing, *damage(self._cut.get(path), self._damaged.get(path, 0))]))
            for path in sorted({*self._damaged, *self._cut, *self._differing})
            for differing in [[self._differing[path]] if path in self._differing else []]
        ]
        if rows and self.run is not None and is_first_process():
            write_rows(self.run / "damaged_videos.csv", rows)

    def troubles(self) -> list[str]:
        """Return what could not be read so far, in a few words each."""
        count = len({*self._damaged, *self._cut, *self._differing})
        return super().troubles() + [f"damaged {self.noun}s: {count}"] * bool(count)

    def predict_dataloader(self) -> DataLoader:
        """Return the test videos with all views of each."""
        config = self.config
        if (config.test_clips, config.test_crops) == (1, 1):
            return self.val_dataloader()
        dataset = test_videos(
            self.tested_samples,
            self.test_index,
            length=config.num_frames,
            step=config.frame_step,
            num_clips=config.test_clips,
            num_crops=config.test_crops,
            size=view_size(config),
            resize=config.pixels[1],
            wrap=config.test_wrap,
            **reading(config),
        )
        # the frames of one video are as much as a training batch
        return self._loader(dataset, self._test_batches(1))

    def on_after_batch_transfer(self, batch: Mapping[str, Any], dataloader_idx: int) -> Mapping[str, Any]:
        """Count what could not be read, and normalise clips and views on the device."""
        batch = {**super().on_after_batch_transfer(batch, dataloader_idx)}
        samples = self.samples_of("train" if self._in_training else self.tested)
        for index, lost in zip(batch["index"].tolist(), batch["lost"].tolist(), strict=True):
            path = samples.samples[index].path
            if lost > self._damaged.get(path, 0):
                self._damaged[path] = lost
        if "videos" in batch:
            batch["views"] = [
                normalised_views(video, self.config, **self.normalisation) for video in batch.pop("videos")
            ]
        else:
            batch["image"] = normalise_clip(batch["image"], **self.normalisation)
        return batch
