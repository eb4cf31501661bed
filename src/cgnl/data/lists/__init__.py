"""Parts of image and video data sets: samples with labels, list files, folders of classes, accounts of bad files."""

from cgnl.data.lists.bad_files import BadFiles, write_missing, write_rows
from cgnl.data.lists.fingerprints import changes, fingerprint, path_below, shared
from cgnl.data.lists.reading import (
    class_folders,
    class_parts,
    files_below,
    has_class_folders,
    is_left_out,
    labelled_lines,
    listed,
    pictures_below,
    read_classes,
)
from cgnl.data.lists.samples import NoSplitError, Sample, SampleList, Split, allowed_missing, check_missing, differences
from cgnl.data.lists.splits import (
    COCO_EXPORT,
    SPLIT_FOLDERS,
    SPLIT_WORDS,
    check_folder,
    coco_files,
    divided,
    fold,
    has_parts,
    inner_data,
    seen_in,
    split_folder,
)
from cgnl.data.lists.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from cgnl.data.lists.text import Inside, exists, integer, read_table, readable, shown, text_lines

__all__ = [
    "COCO_EXPORT", "IMAGE_SUFFIXES", "SPLIT_FOLDERS", "SPLIT_WORDS", "VIDEO_SUFFIXES", "BadFiles", "Inside",
    "NoSplitError", "Sample", "SampleList", "Split", "allowed_missing", "changes", "check_folder", "check_missing",
    "class_folders", "class_parts", "coco_files", "differences", "divided", "exists", "files_below", "fingerprint",
    "fold", "has_class_folders", "has_parts", "inner_data", "integer", "is_left_out", "labelled_lines", "listed",
    "path_below", "pictures_below", "read_classes", "read_table", "readable", "seen_in", "shared", "shown",
    "split_folder", "text_lines",
    "write_missing", "write_rows",
]  # fmt: skip
