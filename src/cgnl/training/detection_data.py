"""The Lightning data module of images with boxes and masks."""

import logging
from collections.abc import Sequence
from typing import Any

from cgnl.data.decoding import DataError
from cgnl.data.detection import (
    DetectionDataset,
    DetectionList,
    check_annotations,
    check_categories,
    coco_parts,
    collate,
    read_coco,
    with_objects,
    write_bad_annotations,
)
from cgnl.data.lists import SampleList, Split
from cgnl.settings.detection import DetectionDataConfig
from cgnl.training.data import SampleData
from cgnl.training.processes import is_first_process

_logger = logging.getLogger(__name__)


class DetectionData(SampleData[DetectionDataConfig]):
    """Training, validation and test images of a recipe with their boxes and masks.

    Arguments and errors are as of :class:`SampleData`.

    Images without an object are not trained on, but tested. Bad annotations are left out, counted, and listed in
    ``bad_annotations.csv`` in the run's folder.
    """

    noun = "image"
    min_classes = 1
    samples_have_classes = False
    collate = staticmethod(collate)

    def __init__(self, config: DetectionDataConfig, **options: Any) -> None:
        super().__init__(config, **options)
        self._lists: dict[Split, DetectionList] = {}

    def _check_places(self, config: DetectionDataConfig) -> None:
        """Leave it to the reading of each split: one may be tested on alone."""

    def _class_names(self) -> tuple[str, ...]:
        """Return the names of the categories of the test images, which may be there alone."""
        return self.listed("test" if "test" in self.held_out else "val").classes

    def _places(self, split: Split) -> dict[str, Any]:
        """Return the json file and the folder of images that the settings give for a part, under their names."""
        own, other = (
            {what: getattr(self.config, f"{name}_{what}") for what in ("annotations", "images")}
            for name in (split, {"train": "train", "val": "test", "test": "val"}[split])
        )
        return own if any(own.values()) or len(self.held_out) > 1 else other

    def _parts(self) -> tuple[Split, ...]:
        config: Any = self.config
        parts: tuple[Split, ...] = ("val", "test")
        given = tuple(split for split in parts if getattr(config, f"{split}_annotations"))
        return given or (("test",) if config.root is None else coco_parts(config.root.expanduser()))

    def _list(self, split: Split) -> DetectionList:
        if split not in self._lists:
            config = self.config
            places = self._places(split)
            if config.root is None and (lacking := [what for what, place in places.items() if place is None]):
                raise ValueError(
                    f"data.root is needed, or in its place {' and '.join(f'data.{split}_{what}' for what in lacking)}: "
                    f"where the {split} images and their objects are"
                )
            self._lists[split] = read_coco(config.root, split, **places)
            if self.run is not None and is_first_process():
                write_bad_annotations(self.run, list(self._lists.values()))
            for note in self._lists[split].notes if is_first_process() else ():
                _logger.warning("%s %s", self._lists[split].source, note)
            check_annotations(self._lists[split], config.bad_limit)
        return self._lists[split]

    def _to_train_on(self, samples: SampleList) -> SampleList:
        assert isinstance(samples, DetectionList)
        return with_objects(samples)

    def _detections(self, split: Split) -> DetectionList:
        samples = self.samples_of(split)
        assert isinstance(samples, DetectionList)
        return samples

    @property
    def truth(self) -> dict[str, Any]:
        """The images that tests see and their objects, in COCO's structure."""
        return self._detections(self.tested).truth()

    @property
    def category_ids(self) -> tuple[int, ...]:
        """COCO's id of each class, in the order of the labels."""
        return self._detections(self.tested).category_ids

    def _dataset(self, split: Split, *, training: bool) -> DetectionDataset:
        return DetectionDataset(self._detections(split), flip=self.config.flip if training else 0.0, seed=self.seed)

    def _groups(self) -> Sequence[bool] | None:
        if not self.config.group_by_aspect:
            return None
        return [width > height for width, height in self._detections("train").sizes]

    def check(self) -> None:
        """Read all lists, so that what is wrong with them (DataError) shows before anything is built."""
        super().check()
        train = self._detections("train")
        if not len(train):
            raise DataError(f"{train.root} has no training image with an object")
        for samples in (self.val_samples, self.test_samples):
            assert isinstance(samples, DetectionList)
            check_categories(train, samples)

    def troubles(self) -> list[str]:
        """Return what could not be read so far, in a few words each."""
        lists = self._lists.values()
        counts = {
            "bad annotations": sum(len(images.bad_annotations) for images in lists),
            "annotations without some of their polygons": sum(len(images.partial_annotations) for images in lists),
        }
        return super().troubles() + [f"{what}: {count}" for what, count in counts.items() if count]
