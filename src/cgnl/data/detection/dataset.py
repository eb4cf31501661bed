"""Reading images and their objects into batches.

Shapes: N objects, H height, W width (pixels).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from cgnl.data.decoding import open_image
from cgnl.data.detection.annotations import clipped_box
from cgnl.data.detection.masks import decode
from cgnl.data.detection.samples import DetectionList
from cgnl.data.records import FileDataset, sort_out


class DetectionDataset(FileDataset):
    """Reads the images of a :class:`cgnl.data.detection.DetectionList` and the boxes, classes and masks in them.

    Keys and the draw of the flip are as :class:`cgnl.data.records.FileDataset` says. A record holds ``image``
    [3, H, W] in 0 to 1, in the file's own size, as torchvision's detectors resize and normalise; ``target`` in their
    form: ``boxes`` [N, 4] (left, top, right, bottom in pixels), ``labels`` [N] from 1, ``masks`` [N, H, W] of 0 and 1
    (uint8), and ``image_id``; ``label`` (0) and ``index``. Crowds are no objects to learn from, and skipped; boxes are
    those of the json, as far as they lie in the image.

    Args:
        images: Images to read.
        flip: Probability of a horizontal flip.
        seed: Of the random draws.
    """

    def __init__(self, images: DetectionList, flip: float = 0.0, *, seed: int = 0) -> None:
        if not 0 <= flip <= 1:
            raise ValueError(f"flip ({flip}) must be from 0 to 1")
        super().__init__(images, seed=seed)
        self._image_ids = np.array(images.image_ids, dtype=np.int64)
        self._sizes = np.array(images.sizes, dtype=np.int64).reshape(-1, 2)
        self._label_of = {id: label for label, id in enumerate(images.category_ids, 1)}
        self._annotations = images.annotations
        self._transform = v2.Compose(
            [v2.ToImage(), v2.RandomHorizontalFlip(flip), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]
        )

    def read(self, index: int) -> dict[str, Any]:
        """Return ``image`` and ``target``.

        Raises:
            BadFileError: The file cannot be read, or is not of the size that the json says.
        """
        width, height = self._sizes[index].tolist()
        image = open_image(self.path(index), size=(width, height))
        objects = [annotation for annotation in self._annotations[index] if not annotation["iscrowd"]]
        boxes = [clipped_box(annotation["bbox"], width, height) for annotation in objects]
        masks = decode([annotation["segmentation"] for annotation in objects], width, height)
        target = {
            "boxes": tv_tensors.BoundingBoxes(
                torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                format=tv_tensors.BoundingBoxFormat.XYXY,
                canvas_size=(height, width),
            ),
            "labels": torch.tensor([self._label_of[row["category_id"]] for row in objects], dtype=torch.int64),
            "masks": tv_tensors.Mask(torch.from_numpy(masks)),
        }
        image, target = self._transform(image, target)
        return {"image": image, "target": {**target, "image_id": int(self._image_ids[index])}}


def collate(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch of the samples that could be read, B of them, and list the others.

    It has ``image``, a list of B images [3, H, W], each with its own size; ``target``, a list of as many; ``label``
    [B], ``index`` [B], and ``bad``, a list of (index, path, reason).
    """
    good, batch = sort_out(records)
    return {"image": [record["image"] for record in good], "target": [record["target"] for record in good], **batch}
