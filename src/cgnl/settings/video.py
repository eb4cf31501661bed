"""The settings of a training run on videos: network, data, and the whole recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from cgnl.settings.checks import name_pattern, positive, within
from cgnl.settings.image import ARCHITECTURES, DataConfig, NetworkConfig, Recipe
from cgnl.settings.marks import FOR_TESTS, FREE


@dataclass(frozen=True)
class VideoNetworkConfig(NetworkConfig):
    """The video network and the space-time blocks in it."""

    of_others: ClassVar[Mapping[str, Any]] = {
        **NetworkConfig.of_others,
        "temporal_strides": (2, 2, 2),
        "head": "average",
    }
    arch: str = "resnet50"
    """Image network that each frame goes through: resnet18, resnet34, resnet50, resnet101, resnet152; or a video
    network such as torchvision:r3d_18, or a function of your own such as mypackage.make_network."""
    temporal_strides: tuple[int, int, int] = (2, 2, 2)
    """Strides in time of conv1, pool1 and pool2: 2 2 2 for 32 frames, 1 1 2 for 8 frames."""
    head: Literal["average", "fully_convolutional"] = field(default="average", metadata=FOR_TESTS)
    """Global average pooling, or the classifier at each 7 x 7 window and the mean of the probabilities."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for stride in self.temporal_strides:
            within("network.temporal_strides", stride, 1)
        if self.arch not in ARCHITECTURES:
            for name in ("temporal_strides", "head"):
                if getattr(self, name) != self.of_others[name]:
                    raise ValueError(f"network.{name} must be left out for network.arch {self.arch}, which has none")


@dataclass(frozen=True)
class VideoDataConfig(DataConfig):
    """The videos, the clips from them, and the batch."""

    root: Path | None = field(default=None, metadata=FREE)
    """Folder of the videos (or of folders of frames): UCF101, Kinetics, or train/, val/ and test/ of class
    folders."""
    format: Literal["auto", "ucf101", "kinetics", "mini_kinetics", "list", "frame_list", "folders"] = "auto"  # type: ignore[assignment]
    """Layout of the data set; auto recognises it."""
    annotations: Path | None = field(default=None, metadata=FREE)
    """Folder with the lists of UCF101, or with the id lists and CSV files of Mini-Kinetics; for Kinetics, a CSV file or
    its folder."""
    fold: int = 1
    """Split of UCF101: 1, 2 or 3. data.num_folds divides its training list further."""
    train_list: Path | None = field(default=None, metadata=FREE)
    """List file with lines `path label`, or `folder frames label`, for training (labels from 0)."""
    val_list: Path | None = field(default=None, metadata=FREE)
    """List file with lines `path label`, or `folder frames label`, for validation, which chooses best.ckpt."""
    test_list: Path | None = field(default=None, metadata=FREE)
    """List file with lines `path label`, or `folder frames label`, for testing (labels from 0)."""
    index: Path | None = field(default=None, metadata=FREE)
    """File with the lengths and sizes of the videos, made on first use; by default beside the videos or in the run."""
    frame_pattern: str | None = field(default=None, metadata=FREE)
    """Names of the frames in folders of frames, such as img_{:05d}.jpg; by default all pictures but optical flow."""
    frame_tolerance: int = field(default=5, metadata=FREE)
    """Number of frames by which a folder may differ from its line `folder frames label`; beyond it counts as missing.
    """
    num_frames: int = 32
    """Number of frames in a clip."""
    frame_step: int = 2
    """Distance between two frames of a clip: 2 takes every other frame of the video, at data.fps where it is given."""
    fps: float | None = None
    """Frames per second that clips are taken at, for videos of different rates; by default all frames as they come."""
    folder_fps: float | None = None
    """Frames per second of folders of frames, which do not say it; needed for data.fps and for a timeline."""
    channels: int = 3
    """Number of channels: 3, as videos are read in colour."""
    size: int | None = 224
    """Height and width of the training clips (pixels); None for those of the weights' training."""
    resize: int | None = 256
    """Length of the shorter side at test time; with several crops, also the height and width of each (pixels). None
    takes the network's own ratio of resize to size."""
    batch_size: int = 64
    """Clips in one optimizer step, over all processes and accumulated parts together."""
    test_clips: int = field(default=10, metadata=FREE)
    """Number of evenly spaced clips from a video in a test; their probabilities are averaged."""
    test_wrap: bool = field(default=False, metadata=FREE)
    """Space the test clips as the Non-local code does: those near the end of a video go on with its beginning. By
    default all lie inside the video."""
    test_crops: int = field(default=3, metadata=FREE)
    """Number of crops of each test clip along the longer side: 1 or 3."""
    views_per_step: int = field(default=6, metadata=FREE)
    """Number of views (clips x crops) that go through the network at once at test time."""
    decode_timeout: int = field(default=60, metadata=FREE)
    """Seconds that reading a clip may take before its video counts as unreadable."""
    timeout: int = field(default=600, metadata=FREE)
    """Seconds to wait for a reader process before the run ends with an error (only with workers)."""

    def __post_init__(self) -> None:
        if self.channels != 3:
            raise ValueError(f"data.channels ({self.channels}) must be 3 for videos, which are read in colour")
        super().__post_init__()
        within("data.fold", self.fold, 1, 3)
        for name in ("num_frames", "frame_step", "test_clips", "views_per_step", "decode_timeout"):
            within(f"data.{name}", getattr(self, name), 1)
        within("data.frame_tolerance", self.frame_tolerance, 0)
        if self.frame_pattern is not None:
            name_pattern("data.frame_pattern", self.frame_pattern)
        for name in ("fps", "folder_fps"):
            positive(f"data.{name}", getattr(self, name))
        if self.test_crops not in (1, 3):
            raise ValueError(f"data.test_crops ({self.test_crops}) must be 1 or 3")


@dataclass(frozen=True)
class VideoRecipe(Recipe):
    """A training run on videos."""

    task: ClassVar[str] = "video"
    block_defaults: ClassVar[Mapping[str, Any]] = {"subsample": True, "bias": True}
    network: VideoNetworkConfig = field(default_factory=VideoNetworkConfig)
    data: VideoDataConfig = field(default_factory=VideoDataConfig)
