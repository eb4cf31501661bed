"""Images with objects in COCO's form: boxes, classes and masks as batches, and lists of the bad ones.

Everything in the json is looked at before a network is built; an annotation that cannot be used is left out, named and
counted. Pixels and masks are decoded later, by :class:`DetectionDataset`.
"""

from importlib.util import find_spec

if find_spec("faster_coco_eval") is None:
    raise ImportError("cgnl.data.detection needs faster-coco-eval: pip install 'cgnl[detection]'")

from cgnl.data.detection.checking import DetectionReport, check_detection
from cgnl.data.detection.dataset import DetectionDataset, collate
from cgnl.data.detection.reading import coco_parts, read_coco
from cgnl.data.detection.samples import (
    BadAnnotation,
    DetectionList,
    check_annotations,
    check_categories,
    with_objects,
    write_bad_annotations,
)

__all__ = [
    "BadAnnotation", "DetectionDataset", "DetectionList", "DetectionReport", "check_annotations",
    "check_categories", "check_detection", "coco_parts", "collate", "read_coco", "with_objects",
    "write_bad_annotations",
]  # fmt: skip
