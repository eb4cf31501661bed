"""Image data sets: their layouts on disk, their samples as batches, and accounts of their bad files.

A reader finds paths and labels and checks all of them before a network is built; pixels are read later, by
:class:`ImageDataset`, which reports a file it cannot read and never puts another sample in its place.
"""

from cgnl.data.images.checking import ImageReport, check_images
from cgnl.data.images.dataset import ImageDataset, collate
from cgnl.data.images.reading import (
    image_parts,
    read_class_folders,
    read_cub,
    read_cub_boxes,
    read_cub_parts,
    read_image_list,
    read_images,
    recognise_images,
)

__all__ = [
    "ImageDataset", "ImageReport", "check_images", "collate", "image_parts", "read_class_folders", "read_cub",
    "read_cub_boxes", "read_cub_parts", "read_image_list", "read_images", "recognise_images",
]  # fmt: skip
