"""Image data sets: their layouts on disk, their samples as batches, and accounts of their bad files.

A reader finds paths and labels and checks all of them before a network is built; pixels are read later, by
:class:`ImageDataset`, which reports a file it cannot read and never puts another sample in its place.
"""

from cgnl.data.images.bad_files import BadFiles, write_missing
from cgnl.data.images.checking import ImageReport, SplitReport, check_images
from cgnl.data.images.dataset import ImageDataset, collate, describe_in_flight
from cgnl.data.images.reading import (
    ImageList,
    ImageSample,
    check_missing,
    read_class_folders,
    read_cub,
    read_cub_boxes,
    read_cub_parts,
    read_image_list,
    read_images,
)

__all__ = [
    "BadFiles",
    "ImageDataset",
    "ImageList",
    "ImageReport",
    "ImageSample",
    "SplitReport",
    "check_images",
    "check_missing",
    "collate",
    "describe_in_flight",
    "read_class_folders",
    "read_cub",
    "read_cub_boxes",
    "read_cub_parts",
    "read_image_list",
    "read_images",
    "write_missing",
]
