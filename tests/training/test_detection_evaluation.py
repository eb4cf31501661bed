"""Testing a detector: its files give COCO's own library the numbers that are told; detecting in single images."""

import csv
import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cgnl.data.decoding import DataError
from cgnl.settings.reading import override
from cgnl.tasks import detect, load_trained, train
from cgnl.tasks import evaluate as evaluate_detection
from cgnl.toy.flock import draw_flock
from cgnl.training.trained import TrainedNetwork

SPLIT = "annotations/instances_val.json"
MEASURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


class Jittered(MaskRCNN):
    """Stands in for a trained detector: finds the true objects of known images, shifted, some of them or too many."""

    def __init__(self, images, truth):
        nn.Module.__init__(self)
        self.transform = GeneralizedRCNNTransform(64, 80, [0.0], [1.0])
        self.weight = nn.Parameter(torch.zeros(1))
        self.truth, self.sizes = truth, []
        self.image_id = {self._key(image): image_id for image_id, image in images.items()}

    @staticmethod
    def _key(image):
        return np.asarray(image.convert("RGB")).tobytes()

    def forward(self, images, targets=None):
        return [self._find(image) for image in images]

    def _find(self, image):
        pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        image_id = self.image_id[pixels.tobytes()]
        random = np.random.default_rng(image_id)
        found = {"boxes": [], "labels": [], "scores": [], "masks": []}
        for annotation in self.truth.loadAnns(self.truth.getAnnIds(image_id)):
            true = self.truth.annToMask(annotation)
            label = 1 + self.truth.getCatIds().index(annotation["category_id"])
            for _ in range(random.integers(1, 4)):
                shift = random.integers(-2, 3, size=2)
                x, y, width, height = annotation["bbox"]
                x, y = x + random.normal(), y + random.normal()
                found["boxes"].append([x, y, x + width, y + height])
                found["labels"].append(label if random.random() < 0.8 else 1 + label % 3)
                found["scores"].append(random.random())
                found["masks"].append(np.roll(true, shift, (0, 1))[None])
        order = np.argsort(-np.array(found["scores"]))
        return {
            "boxes": torch.tensor(found["boxes"], dtype=torch.float32)[order],
            "labels": torch.tensor(found["labels"])[order],
            "scores": torch.tensor(found["scores"], dtype=torch.float32)[order],
            "masks": torch.from_numpy(np.stack(found["masks"])).float()[order],
        }


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Six scenes for testing with birds of more than one range of area."""
    root = tmp_path_factory.mktemp("scenes") / "set"
    draw_flock(root, num_species=3, train_images=1, test_images=6, size=(192, 144), workers=1)
    return root


@pytest.fixture
def stand_in(scenes, tiny_detection):
    truth = COCO(scenes / SPLIT)
    images = {row["id"]: Image.open(scenes / "val" / row["file_name"]) for row in truth.loadImgs(truth.getImgIds())}
    classes = tuple(row["name"] for row in truth.loadCats(truth.getCatIds()))
    normal = (0.5, 0.5, 0.5)
    recipe = dataclasses.replace(tiny_detection, data=dataclasses.replace(tiny_detection.data, root=scenes))
    return TrainedNetwork(Jittered(images, truth), recipe, "flock", classes, normal, normal, 0, 0)


def coco_measures(truth, results, kind, image_ids=None):
    evaluation = COCOeval(truth, truth.loadRes(str(results)), kind)
    evaluation.params.imgIds = image_ids or evaluation.params.imgIds
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return dict(zip(MEASURES, evaluation.stats, strict=True)), evaluation.eval["precision"][:, :, :, 0, 2]


def check_against_coco(out, truth, result, image_ids=None):
    measures = json.loads((out / "measures.json").read_text())
    with (out / "per_class.csv").open(newline="") as file:
        per_class = list(csv.DictReader(file))
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        expected, precision = coco_measures(truth, out / f"{name}_results.json", kind, image_ids)
        assert set(measures[name]) == set(MEASURES)
        for measure, value in expected.items():
            told = measures[name][measure]
            assert told == pytest.approx(100 * value, abs=1e-6) if value >= 0 else told is None, (name, measure)
            if value >= 0:
                assert getattr(result, name)[measure] == told
        assert all(5 < measures[name][measure] < 95 for measure in ("AP", "APs", "APm")), "some of it is found"
        for row, values in zip(per_class, np.moveaxis(precision, 2, 0), strict=True):
            value = 100 * values.mean() if values.mean() >= 0 else math.nan
            assert float(row[f"{name}_ap"]) == pytest.approx(value, abs=1e-6, nan_ok=True)
    categories = truth.loadCats(truth.getCatIds())
    assert [row["class"] for row in per_class] == [category["name"] for category in categories]
    assert [int(row["objects"]) for row in per_class] == [
        len(truth.getAnnIds(imgIds=image_ids or [], catIds=category["id"], iscrowd=False)) for category in categories
    ]


def test_result_files_give_coco_the_numbers_that_are_told(stand_in, scenes, tmp_path):
    # more images than one batch holds
    result = evaluate_detection(stand_in, stand_in.recipe.data, out=tmp_path)
    truth = COCO(scenes / SPLIT)
    check_against_coco(tmp_path, truth, result)
    box_rows, mask_rows = (json.loads((tmp_path / f"{kind}_results.json").read_text()) for kind in ("box", "mask"))
    assert set(box_rows[0]) == {"image_id", "category_id", "bbox", "score"}
    assert set(mask_rows[0]) == {"image_id", "category_id", "segmentation", "score"}
    assert (result.count, result.bad, result.troubles) == (6, 0, ())
    assert result.detections == len(box_rows) == len(mask_rows) > 10
    assert {row["image_id"] for row in box_rows} == set(truth.getImgIds())


def test_an_unreadable_image_and_a_bad_annotation_are_left_out_and_counted(stand_in, scenes, tmp_path):
    root = shutil.copytree(scenes, tmp_path / "set")
    truth = json.loads((root / SPLIT).read_text())
    gone, *kept = truth["images"]
    bad = root / "val" / gone["file_name"]
    bad.write_bytes(b"<html>not an image</html>")
    # COCO's library does not look at a category that it does not know
    stray = {**next(row for row in truth["annotations"] if row["image_id"] == kept[0]["id"])}
    stray |= {"id": 10**6, "category_id": 999}
    truth["annotations"].append(stray)
    (root / SPLIT).write_text(json.dumps(truth))
    # what is not tested need not be there
    (root / "annotations" / "instances_train.json").unlink()
    out = tmp_path / "out"
    data = dataclasses.replace(stand_in.recipe.data, root=root, bad_limit=0.2)
    result = evaluate_detection(stand_in, data, out=out)
    assert (result.count, result.bad) == (5, 1)
    assert result.troubles == ("unreadable images: 1", "bad annotations: 1")
    check_against_coco(out, COCO(root / SPLIT), result, [row["id"] for row in kept])
    assert gone["id"] not in {row["image_id"] for row in json.loads((out / "box_results.json").read_text())}
    assert str(bad) in (out / "bad_files.csv").read_text()
    with (out / "bad_annotations.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["id"], row["image"]) == (str(10**6), kept[0]["file_name"])
    with pytest.raises(DataError, match=r"1 of 6 files .* limit of 10.0%"):
        evaluate_detection(stand_in, dataclasses.replace(data, bad_limit=0.1))


def test_classes_other_than_the_networks_are_refused(stand_in, scenes, tmp_path):
    root = shutil.copytree(scenes, tmp_path / "set")
    text = (root / SPLIT).read_text()
    first = stand_in.classes[0]
    (root / SPLIT).write_text(text.replace(f'"name": "{first}"', '"name": "zebra"'))
    data = dataclasses.replace(stand_in.recipe.data, root=root)
    with pytest.raises(DataError, match=f"other classes than expected; unexpected: zebra; missing: {first}"):
        evaluate_detection(stand_in, data)


@pytest.fixture(scope="module")
def trained(tiny_detection, tmp_path_factory):
    run = tmp_path_factory.mktemp("detector") / "run"
    train(override(tiny_detection, {"trainer": {"max_steps": 1}}, "test"), run, progress=False)
    return load_trained(run)


def test_detecting_is_torchvisions(trained, flock):
    with Image.open(next((flock / "val").iterdir())) as file:
        image = file.convert("RGB")
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255
    with torch.no_grad():
        (expected,) = trained.network([pixels])
    found = detect(trained, image)
    assert len(found["scores"]) == 10
    for name in ("boxes", "labels", "scores"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
    assert found["masks"].shape == (10, image.height, image.width)
    assert torch.equal(found["masks"], expected["masks"][:, 0] >= 0.5)
    surest = detect(trained, image, min_score=float(found["scores"][3]))
    for name, values in found.items():
        assert torch.equal(surest[name], values[:4]), name


def test_evaluation_runs_the_network_on_images_of_the_size_asked_for(trained, flock, tmp_path):
    data = dataclasses.replace(trained.recipe.data, size=48, max_size=60)
    sizes = []
    hook = trained.network.backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-2:]))
    evaluate_detection(trained, data, out=tmp_path)
    hook.remove()
    # 80 x 64 pixels, padded to multiples of 32
    assert sizes == [(64, 64)] * 2
    rows = json.loads((tmp_path / "mask_results.json").read_text())
    assert len(rows) == 30
    with Image.open(next((flock / "val").iterdir())) as image:
        assert {coco_mask.decode(row["segmentation"]).shape for row in rows} == {(image.height, image.width)}


def test_evaluation_leaves_the_network_as_it_is(trained):
    before = trained.network.transform.min_size, trained.network.transform.max_size
    data = dataclasses.replace(trained.recipe.data, size=48, max_size=60)
    evaluate_detection(trained, data)
    assert (trained.network.transform.min_size, trained.network.transform.max_size) == before == ((64,), 80)


def test_masks_are_pasted_of_what_is_kept_alone(trained, flock):
    with Image.open(next((flock / "val").iterdir())) as file:
        image = file.convert("RGB")
    least = float(detect(trained, image)["scores"][2])
    pasted = []
    hook = trained.network.roi_heads.mask_head.register_forward_pre_hook(lambda _, args: pasted.append(len(args[0])))
    found = detect(trained, image, min_score=least)
    hook.remove()
    assert pasted == [len(found["scores"])] == [3]
    assert trained.network.roi_heads.score_thresh == 0.0
