"""``cgnl data check``: decode every image of a data set and list the bad ones."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Unpack

from cgnl.data.decoding import AnyPath
from cgnl.data.images.reading import Format, image_parts, read_images
from cgnl.data.lists import SampleList, Split
from cgnl.data.pixels import check_channels, size_of
from cgnl.data.reports import (
    Checked,
    Report,
    apart,
    between,
    examined,
    read_parts,
    report_of,
    sizes_in_words,
    write_anew,
)


@dataclass(frozen=True, kw_only=True)
class ImageReport(Report):
    """Contents of a data set of images and its faults; as a string, tables to read.

    ``sizes`` are (width, height) in pixels of each image that can be read, upright.
    """

    noun: ClassVar[str] = "images"
    sizes: tuple[tuple[int, int], ...]

    def describe(self) -> list[str]:
        """Return a line on the sizes."""
        return [sizes_in_words(self.sizes)] if self.sizes else []


def check_images(
    root: AnyPath, *, format: Format = "auto", channels: int = 3, out: AnyPath | None = None, **given: Unpack[Checked]
) -> ImageReport:
    """Decode every file of an image data set, in several processes, and list all that is wrong.

    A file that crashes its decoder or holds it up is named like any other, and the check goes on. ``format`` is a
    layout of :func:`cgnl.data.images.read_images`, ``channels`` the number that :func:`cgnl.data.pixels.open_pixels`
    reads files with; other arguments, and errors, are as of :func:`cgnl.data.checking.check_data`.
    """
    check_channels(channels)
    root = Path(root).expanduser()
    what, scanning = apart(given)

    def read(split: Split, list_file: Path | None, num_classes: int | None) -> SampleList:
        return read_images(root, split, format=format, list_file=list_file, num_classes=num_classes, missing_limit=1.0)

    splits, sources = read_parts(root, read, lambda: image_parts(root, format), what)
    sizes, bad = examined(partial(size_of, channels=channels), splits, ImageReport.noun, **scanning)
    rows = tuple(sorted(bad.items()))
    more = between(root, splits, sources, bad, what)
    write_anew(out, [*more["findings"], *rows])
    return ImageReport(
        root=root,
        kind=next(iter(splits.values())).kind,
        splits=tuple(report_of(name, images, bad) for name, images in splits.items()),
        bad=rows,
        sizes=tuple(sizes[path] for path in sorted(sizes)),
        **more,
    )
