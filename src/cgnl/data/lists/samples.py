"""The samples of a data set: files and their classes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cgnl.data.decoding import DataError

Split = Literal["train", "test", "val"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image or video and its class.

    Args:
        path: the image file, the video file or the folder of a video's frames; nothing is known of its contents.
        label: number of the class, from 0.
    """

    path: Path
    label: int


@dataclass(frozen=True)
class SampleList:
    """The images or videos of one split of a data set.

    Args:
        root: the folder that holds all files.
        samples: the files that exist, with their labels.
        classes: a name for each label.
        kind: the layout it was read from, ``list`` or ``cub`` for example.
        missing: files that the data set names but that do not exist.
    """

    root: Path
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    kind: str
    missing: tuple[Path, ...] = ()

    def __len__(self) -> int:
        """Return the number of files that exist."""
        return len(self.samples)


def check_missing(samples: SampleList, limit: float) -> None:
    """Refuse a data set that lacks too many of its files.

    Args:
        samples: the data set.
        limit: part of the named files that may be missing.

    Raises:
        DataError: more are missing; the message counts them and names the first.
    """
    total = len(samples.samples) + len(samples.missing)
    if len(samples.missing) > limit * total:
        some = ", ".join(map(str, samples.missing[:3])) + (", ..." if len(samples.missing) > 3 else "")
        raise DataError(
            f"{len(samples.missing)} of {total} files of {samples.root} are missing, more than the limit of "
            f"{limit:.1%}: {some}"
        )
