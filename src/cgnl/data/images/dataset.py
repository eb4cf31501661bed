"""Reading images into batches: reproducible, with a list of those that cannot be read.

Shapes: B batch, H height, W width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from cgnl.data.decoding import open_image
from cgnl.data.lists import SampleList
from cgnl.data.records import FileDataset, sort_out


class ImageDataset(FileDataset):
    """Reads, transforms and labels the images of a :class:`cgnl.data.lists.SampleList`.

    Keys and random draws (those of the transform) are as :class:`cgnl.data.records.FileDataset` says. A record holds
    ``image`` [3, H, W], ``label`` and ``index``.

    Args:
        images: Images to read.
        transform: From an upright RGB image to a tensor [3, H, W].
        seed: Of the random draws.

    Example:
        >>> from pathlib import Path
        >>> from cgnl.data.lists import Sample
        >>> images = SampleList(Path("."), (Sample(Path("no.jpg"), 3),), tuple("abcd"), "list")
        >>> ImageDataset(images, transform=list)[0]
        {'image': None, 'label': 3, 'index': 0, 'path': PosixPath('no.jpg'), 'error': 'does not exist'}
    """

    def __init__(self, images: SampleList, transform: Callable[[Image.Image], Any], *, seed: int = 0) -> None:
        super().__init__(images, seed=seed)
        self.transform = transform

    def read(self, index: int) -> dict[str, Any]:
        """Return ``image``: a sample's image, transformed."""
        return {"image": self.transform(open_image(self.path(index)))}


def collate(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch of the samples of :class:`ImageDataset` that could be read, and list the others.

    It has ``image`` [B, 3, H, W], ``label`` [B], ``index`` [B], and ``bad``, a list of (index, path, reason). If no
    sample could be read, B is 0, and so are H and W.
    """
    good, batch = sort_out(records)
    images = torch.stack([record["image"] for record in good]) if good else torch.empty(0, 3, 0, 0)
    return {"image": images, **batch}
