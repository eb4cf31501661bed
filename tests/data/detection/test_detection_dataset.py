"""Records: pixels, boxes, classes and masks belong together, flipped or not; bad files are named."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_files import HEIGHT, WIDTH, annotation, image_row, make_coco, make_image, write_json
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from cgnl.data.detection import DetectionDataset, collate, read_coco

RUNS = {"size": [HEIGHT, WIDTH], "counts": [65, 5, HEIGHT * WIDTH - 70]}
ROWS = [
    annotation(1, box=(2, 3, 10, 8)),
    annotation(2, box=(-4, 12, 14, 20), category_id=3),
    annotation(3, box=(0, 0, 30, 20), iscrowd=1),
    annotation(4, box=(3, 5, 1, 5), segmentation=RUNS),
    annotation(5, box=(3, 5, 0, 5)),
]


def pixels(path) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(path)).transpose(2, 0, 1) / 255).float()


def test_a_record_is_a_sample_of_torchvisions_detectors(tmp_path):
    images = read_coco(make_coco(tmp_path, ROWS))
    record = DetectionDataset(images)[0]
    torch.testing.assert_close(record["image"], pixels(images.samples[0].path))
    target = record["target"]
    assert target["boxes"].tolist() == [[2, 3, 12, 11], [0, 12, 10, 20], [3, 5, 4, 10]]
    assert target["labels"].tolist() == [2, 1, 2]
    expected = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    expected[0, 3:11, 2:12] = 1
    expected[1, 12:, :10] = 1
    expected[2, 5:10, 3] = 1
    assert torch.equal(target["masks"], expected)
    assert (target["image_id"], record["label"], record["index"]) == (1, 0, 0)
    assert target["boxes"].dtype == record["image"].dtype == torch.float32
    assert target["labels"].dtype == torch.int64
    assert {type(value) for value in (record["image"], *target.values())} == {torch.Tensor, int}


def test_a_flip_turns_pixels_boxes_and_masks_together(tmp_path):
    images = read_coco(make_coco(tmp_path, ROWS))
    plain, flipped = (DetectionDataset(images, flip)[0] for flip in (0.0, 1.0))
    assert torch.equal(flipped["image"], plain["image"].flip(-1))
    assert torch.equal(flipped["target"]["masks"], plain["target"]["masks"].flip(-1))
    left, top, right, bottom = plain["target"]["boxes"].unbind(1)
    expected = torch.stack([WIDTH - right, top, WIDTH - left, bottom], 1)
    assert torch.equal(flipped["target"]["boxes"], expected)
    assert torch.equal(flipped["target"]["labels"], plain["target"]["labels"])


def test_flips_depend_on_seed_epoch_and_index_alone(tmp_path):
    images = read_coco(make_coco(tmp_path, [annotation(id, id) for id in range(1, 9)], images=8))
    keys = [(epoch, index) for epoch in range(4) for index in range(8)]

    def flips(seed: int, order: list[tuple[int, int]], workers: int = 0) -> dict[tuple[int, int], bool]:
        dataset = DetectionDataset(images, 0.5, seed=seed)
        loader = DataLoader(dataset, batch_sampler=[[key] for key in order], collate_fn=collate, num_workers=workers)
        return {key: batch["target"][0]["boxes"][0, 0].item() != 2 for key, batch in zip(order, loader, strict=True)}

    first = flips(0, keys)
    assert 8 <= sum(first.values()) <= 24
    torch.manual_seed(5)
    assert flips(0, keys[::-1], workers=1) == first
    assert flips(1, keys) != first


def test_an_image_without_objects(tmp_path):
    images = read_coco(make_coco(tmp_path, [annotation(1, iscrowd=1)]))
    for flip in (0.0, 1.0):
        target = DetectionDataset(images, flip)[0]["target"]
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].shape == (0,)
        assert target["masks"].shape == (0, HEIGHT, WIDTH)


def test_torchvisions_network_learns_from_a_batch(tmp_path):
    make_coco(tmp_path, [*ROWS, annotation(6, 2, segmentation=[[1, 1, 1.2, 1, 1.2, 1.2]])], images=3)
    dataset = DetectionDataset(read_coco(tmp_path), 0.5)
    batch = collate([dataset[index] for index in range(3)])
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    network = MaskRCNN(backbone, num_classes=3, min_size=64, max_size=96)
    losses = network(batch["image"], batch["target"])
    assert len(losses) == 5
    assert all(torch.isfinite(loss) for loss in losses.values())


UPRIGHT = {
    5: lambda stored: stored.transpose(1, 2),
    6: lambda stored: stored.rot90(-1, (1, 2)),
    7: lambda stored: stored.transpose(1, 2).flip(1, 2),
    8: lambda stored: stored.rot90(1, (1, 2)),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_in_the_json_tells_what_its_annotations_are_of(tmp_path, orientation):
    """Of the pixels as they are stored, as in COCO itself; or of the upright image, where only that has the size."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = pixels(make_image(tmp_path / "train/a.jpg", 40, 24, exif=exif))
    file = tmp_path / "train/_annotations.coco.json"
    write_json(file, [image_row(1, "a.jpg", 40, 24)], [annotation(1)])
    torch.testing.assert_close(DetectionDataset(read_coco(tmp_path))[0]["image"], stored)
    write_json(file, [image_row(1, "a.jpg", 24, 40)], [annotation(1)])
    record = DetectionDataset(read_coco(tmp_path))[0]
    if orientation in UPRIGHT:
        torch.testing.assert_close(record["image"], UPRIGHT[orientation](stored))
        assert record["target"]["masks"].shape == (1, 40, 24)
    else:
        assert record["error"] == "is 40 x 24 pixels, but its annotations say 24 x 40"


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_named_and_never_replaced(tmp_path, workers):
    folder = make_coco(tmp_path, [annotation(id, id) for id in range(1, 7)], images=6) / "train2017"
    (folder / "0002.png").write_text("<html>")
    (folder / "0003.png").write_bytes((folder / "0001.png").read_bytes()[:300])
    (folder / "0004.png").write_bytes(b"")
    make_image(folder / "0005.png", WIDTH + 1, HEIGHT)
    dataset = DetectionDataset(read_coco(tmp_path))
    keys = [[(0, 0), (0, 1), (0, 5)], [(0, 2), (0, 3), (0, 4)]]
    mixed, empty = DataLoader(dataset, batch_sampler=keys, collate_fn=collate, num_workers=workers)
    assert mixed["index"].tolist() == [0, 5]
    assert [target["image_id"] for target in mixed["target"]] == [1, 6]
    assert [image.shape for image in mixed["image"]] == [(3, HEIGHT, WIDTH)] * 2
    [(index, path, reason)] = mixed["bad"]
    assert (index, path) == (1, folder / "0002.png")
    assert reason.endswith("but looks like an HTML or XML page")
    assert (empty["image"], empty["target"], len(empty["label"])) == ([], [], 0)
    reasons = [reason for _, _, reason in empty["bad"]]
    assert "truncated" in reasons[0]
    assert reasons[1] == "is empty (0 bytes)"
    assert reasons[2] == "is 31 x 20 pixels, but its annotations say 30 x 20"


def test_the_flip_is_a_probability(tmp_path):
    images = read_coco(make_coco(tmp_path, ROWS))
    with pytest.raises(ValueError, match=r"flip \(1\.5\) must be from 0 to 1"):
        DetectionDataset(images, 1.5)


class Remembering(DetectionDataset):
    """Reads annotations alone, and says how many bytes this process holds for itself."""

    def read(self, index):
        assert sum(sum(row["segmentation"][0]) for row in self._annotations[index]) > 0
        private = re.findall(r"^Private_\w+: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
        return {"image": 1024 * sum(map(int, private))}


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's account of a process's memory")
def test_readers_share_the_annotations(tmp_path):
    corners = np.random.default_rng(0).uniform(1, 19, 20_000).round(2).tolist()
    rows = [annotation(id, 1 + id % 10, segmentation=[corners]) for id in range(200)]
    dataset = Remembering(read_coco(make_coco(tmp_path, rows, images=10)))
    size = 200 * 9 * len(corners)
    keys = [[(epoch, index)] for epoch in range(4) for index in range(10)]
    held = [
        batch[0]["image"]
        for batch in DataLoader(dataset, batch_sampler=keys, collate_fn=lambda records: records, num_workers=1)
    ]
    # what one image takes for a moment is 20 of 200 rows as numbers
    assert max(held) - held[0] < size / 4
