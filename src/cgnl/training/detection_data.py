"""The Lightning data module of images with boxes and masks."""

from collections.abc import Sequence
from typing import Any

from cgnl.data.decoding import DataError
from cgnl.data.detection import (
    DetectionDataset,
    DetectionList,
    check_annotations,
    check_categories,
    collate,
    read_coco,
    with_objects,
    write_bad_annotations,
)
from cgnl.settings.detection import DetectionDataConfig
from cgnl.training.data import SampleData, Split
from cgnl.training.processes import is_first_process


class DetectionData(SampleData[DetectionDataConfig]):
    """Training and test images of a recipe with their boxes and masks; arguments and errors as of :class:`SampleData`.

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
        return self._list("test").classes

    def _list(self, split: Split) -> DetectionList:
        if split not in self._lists:
            config = self.config
            places = {what: getattr(config, f"{split}_{what}") for what in ("annotations", "images")}
            if config.root is None and (lacking := [what for what, place in places.items() if place is None]):
                raise ValueError(
                    f"data.root is needed, or in its place {' and '.join(f'data.{split}_{what}' for what in lacking)}: "
                    f"where the {split} images and their objects are"
                )
            self._lists[split] = read_coco(config.root, split, **places)
            if self.run is not None and is_first_process():
                write_bad_annotations(self.run, list(self._lists.values()))
            check_annotations(self._lists[split], config.bad_limit)
        return with_objects(self._lists[split]) if split == "train" else self._lists[split]

    def _detections(self, split: Split) -> DetectionList:
        samples = self.train_samples if split == "train" else self.test_samples
        assert isinstance(samples, DetectionList)
        return samples

    @property
    def truth(self) -> dict[str, Any]:
        """The test images and their objects, in COCO's structure."""
        return self._detections("test").truth()

    @property
    def category_ids(self) -> tuple[int, ...]:
        """COCO's id of each class, in the order of the labels."""
        return self._detections("test").category_ids

    def _dataset(self, split: Split, *, training: bool) -> DetectionDataset:
        return DetectionDataset(self._detections(split), flip=self.config.flip if training else 0.0, seed=self.seed)

    def _groups(self) -> Sequence[bool] | None:
        if not self.config.group_by_aspect:
            return None
        return [width > height for width, height in self._detections("train").sizes]

    def check(self) -> None:
        """Read both lists, so that what is wrong with them (DataError) shows before anything is built."""
        super().check()
        train = self._detections("train")
        if not len(train):
            raise DataError(f"{train.root} has no training image with an object")
        check_categories(train, self._detections("test"))

    def troubles(self) -> list[str]:
        """Return what could not be read so far, in a few words each."""
        count = sum(len(images.bad_annotations) for images in self._lists.values())
        return super().troubles() + [f"bad annotations: {count}"] * bool(count)
