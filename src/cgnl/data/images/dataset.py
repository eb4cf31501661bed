"""Reading images into batches: reproducible, with a list of those that cannot be read.

Shapes: B batch, C channels, H height, W width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from cgnl.data.lists import SampleList
from cgnl.data.pixels import Pixels, check_channels, open_pixels
from cgnl.data.records import FileDataset, sort_out


class ImageDataset(FileDataset):
    """Reads, transforms and labels the images of a :class:`cgnl.data.lists.SampleList`.

    Keys and random draws (those of the transform) are as :class:`cgnl.data.records.FileDataset` says. A record holds
    ``image`` [C, H, W], ``label`` and ``index``.

    Args:
        images: Images to read.
        transform: From upright pixels, as :func:`cgnl.data.pixels.open_pixels` returns them, to a tensor [C, H, W].
        channels: Number of channels C.
        seed: Of the random draws.

    Raises:
        ImportError: tifffile is not installed, and no other files have so many channels.

    Example:
        >>> from pathlib import Path
        >>> from cgnl.data.lists import Sample
        >>> images = SampleList(Path("."), (Sample(Path("no.jpg"), 3),), tuple("abcd"), "list")
        >>> ImageDataset(images, transform=list)[0]
        {'image': None, 'label': 3, 'index': 0, 'path': PosixPath('no.jpg'), 'error': 'does not exist'}
    """

    def __init__(
        self, images: SampleList, transform: Callable[[Pixels], Any], *, channels: int = 3, seed: int = 0
    ) -> None:
        check_channels(channels)
        super().__init__(images, seed=seed)
        self.transform, self.channels = transform, channels

    def read(self, index: int) -> dict[str, Any]:
        """Return ``image``: a sample's image, transformed."""
        return {"image": self.transform(open_pixels(self.path(index), self.channels))}


def collate(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch of the samples of :class:`ImageDataset` that could be read, and list the others.

    It has ``image`` [B, C, H, W], ``label`` [B], ``index`` [B], and ``bad``, a list of (index, path, reason). If no
    sample could be read, B is 0, H and W are 0, and C is 3.
    """
    good, batch = sort_out(records)
    images = torch.stack([record["image"] for record in good]) if good else torch.empty(0, 3, 0, 0)
    return {"image": images, **batch}
