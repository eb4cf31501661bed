"""Parts of image and video data sets: samples with labels, list files, folders of classes, accounts of bad files."""

from cgnl.data.lists.bad_files import BadFiles, write_missing, write_rows
from cgnl.data.lists.reading import class_folders, files_below, labelled_lines, listed, read_classes
from cgnl.data.lists.samples import NoSplitError, Sample, SampleList, Split, allowed_missing, check_missing, differences
from cgnl.data.lists.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from cgnl.data.lists.text import Inside, exists, integer, read_table, readable, shown, text_lines

__all__ = [
    "IMAGE_SUFFIXES", "VIDEO_SUFFIXES", "BadFiles", "Inside", "NoSplitError", "Sample", "SampleList", "Split",
    "allowed_missing", "check_missing", "class_folders", "differences", "exists", "files_below", "integer",
    "labelled_lines", "listed", "read_classes", "read_table", "readable", "shown", "text_lines", "write_missing",
    "write_rows",
]  # fmt: skip
