"""The samples of a data set: files and their classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

from cgnl.data.decoding import DataError

Split = Literal["train", "test", "val"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image or video, of whose contents nothing is known, and its class, from 0.

    The path is that of an image file, of a video file or of the folder of a video's frames.
    """

    path: Path
    label: int


@dataclass(frozen=True)
class SampleList:
    """The images or videos of one split of a data set.

    Args:
        root: The folder that holds all files.
        samples: The files that exist, with their labels.
        classes: A name for each label.
        kind: The layout it was read from, ``list`` or ``cub`` for example.
        missing: Files that the data set names but that cannot be used: they do not exist, if ``reasons`` says
            nothing else.
        reasons: Another fault of a missing file, as the rest of a sentence that begins with its path.
        ignored: Folders and files that the reader left out, with the reason as the rest of such a sentence.
        remarks: What differs in a file that is used all the same, likewise.
    """

    root: Path
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    kind: str
    missing: tuple[Path, ...] = ()
    reasons: Mapping[Path, str] = field(default_factory=dict)
    ignored: Mapping[Path, str] = field(default_factory=dict)
    remarks: Mapping[Path, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of files that exist."""
        return len(self.samples)

    def why_missing(self, path: Path) -> str:
        """Return why a missing file cannot be used, as the rest of a sentence that begins with its path."""
        return self.reasons.get(path, "does not exist")

    def select(self, numbers: Sequence[int]) -> Self:
        """Return the samples with these numbers."""
        return replace(self, samples=tuple(self.samples[number] for number in numbers))

    def labelled_by(self, classes: Sequence[str]) -> "SampleList":
        """Return the same samples with the labels that their classes have among other names.

        Raises:
            DataError: A sample's class is not among them.
        """
        if self.classes == tuple(classes):
            return self
        labels = {name: label for label, name in enumerate(classes)}
        if any(self.classes[sample.label] not in labels for sample in self.samples):
            raise DataError(f"{self.root} has other classes than expected; {differences(self.classes, classes)}")
        samples = tuple(Sample(sample.path, labels[self.classes[sample.label]]) for sample in self.samples)
        return replace(self, samples=samples, classes=tuple(classes))

    def truth_of(self, index: int) -> str:
        """Return the label of a sample, as one word; where samples have more than a label, a digest of it."""
        return str(self.samples[index].label)


class NoSplitError(DataError):
    """The annotations of a data set are those of another split alone."""


def allowed_missing(kind: str, limit: float | None = None, otherwise: float = 0.05) -> float:
    """Return the part of a data set's files that may be missing: ``limit``, or what is usual for its layout."""
    if limit is not None:
        return limit
    # videos that their owners took back: every copy of Kinetics lacks some
    return max(otherwise, 0.2) if "kinetics" in kind else otherwise


def check_missing(samples: SampleList, limit: float) -> None:
    """Raise DataError if more than ``limit`` (a part) of the files are missing; it names the first three."""
    total = len(samples.samples) + len(samples.missing)
    if len(samples.missing) > limit * total:
        some = ", ".join(
            f"{path} {samples.reasons[path]}" if path in samples.reasons else str(path) for path in samples.missing[:3]
        )
        verb = "is" if len(samples.missing) == 1 else "are"
        raise DataError(
            f"{len(samples.missing)} of {total} files of {samples.root} {verb} missing, more than the limit of "
            f"{limit:.1%} (--data.missing-limit): {some}" + (", ..." if len(samples.missing) > 3 else "")
        )


def differences(names: Sequence[str], expected: Sequence[str], *, new: str = "unexpected") -> str:
    """Say which names are new and which are missing, up to five of each, or that their order differs."""
    lists = {new: [name for name in names if name not in expected]}
    lists["missing"] = [name for name in expected if name not in names]
    return "; ".join(f"{what}: {', '.join(some[:5])}" for what, some in lists.items() if some) or "their order differs"
