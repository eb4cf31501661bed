"""A detector on the command line: training, testing, finding and drawing objects, and what goes wrong."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from pycocotools import mask as coco_mask
from test_cli import run
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights, maskrcnn_resnet50_fpn

from cgnl.cli import main
from cgnl.data.decoding import open_image
from cgnl.tasks import detect, load_trained
from cgnl.toy.flock import draw_flock

SMALL = (
    "--network.neck=c4 --network.rois=8 --network.proposals=20 --network.detections=10 --network.score-threshold=0 "
    "--data.size=64 --data.max-size=80 --data.batch-size=2 --data.workers=0 --trainer.max-steps=1"
).split()
TWO_CPUS = ("--trainer.accelerator=cpu", "--trainer.devices=2")
FPN = ("--network.neck=fpn", "--network.backbone-weights=None")


@pytest.fixture(scope="module")
def flock(tmp_path_factory):
    root = tmp_path_factory.mktemp("flock") / "set"
    draw_flock(root, num_species=3, train_images=2, test_images=2, size=(80, 64), workers=1)
    return root


@pytest.fixture(scope="module")
def detector(flock, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    main(["train", "flock-maskrcnn-resnet18-cgnl", f"--data.root={flock}", f"--run={folder}", *SMALL])
    return folder


@pytest.fixture
def image(flock):
    return min((flock / "val").iterdir())


def test_a_test_set_without_objects_is_told_as_undefined(capsys, flock, tmp_path):
    empty = json.loads((flock / "annotations" / "instances_val.json").read_text()) | {"annotations": []}
    (tmp_path / "empty.json").write_text(json.dumps(empty))
    where = [f"--data.root={flock}", f"--data.test-annotations={tmp_path / 'empty.json'}"]
    where += [f"--data.test-images={flock / 'val'}", f"--run={tmp_path / 'run'}"]
    code, out, err = run(capsys, "train", "flock-maskrcnn-resnet18-cgnl", *where, *SMALL)
    assert code == 0, err
    assert f"last epoch: mask AP –, box AP –  {tmp_path / 'run' / 'last.ckpt'}" in out
    assert "already complete" not in out


def test_a_detector_whose_values_overflow_is_refused(capsys, detector, image, tmp_path):
    checkpoint = torch.load(detector / "last.ckpt", weights_only=True)
    checkpoint["state_dict"]["network.roi_heads.box_predictor.cls_score.weight"].fill_(3e38)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    said = "gets an output from the network that is not finite (NaN or infinity)"
    code, out, err = run(capsys, "predict", tmp_path, image, "--json")
    assert (code, err, json.loads(out)["error"]) == (2, f"cgnl: {image} {said}\n", f"{image} {said}")
    code, _, err = run(capsys, "evaluate", tmp_path)
    assert (code, err) == (2, f"cgnl: {image.parent} {said}\n")


def test_evaluate_prints_average_precisions_and_writes_cocos_files(capsys, detector, flock, tmp_path):
    code, out, err = run(capsys, "evaluate", detector)
    assert code == 0, err
    assert "(%, 2 images)" in out
    names = ["box_results.json", "mask_results.json", "measures.json", "per_class.csv"]
    assert sorted(path.name for path in (detector / "evaluation").iterdir()) == names
    measures = json.loads((detector / "evaluation" / "measures.json").read_text())
    for kind in ("box", "mask"):
        (line,) = (line for line in out.splitlines() if line.startswith(kind))
        told = [measures[kind][name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
        assert line.split()[1:] == ["–" if value is None else f"{value:.2f}" for value in told]
    table = out.replace("on the validation split", "on the test split").splitlines()[:3]
    # the same files in a layout of one's own
    moved = shutil.copytree(flock / "val", tmp_path / "moved" / "pictures")
    json_file = shutil.copy(flock / "annotations" / "instances_val.json", tmp_path / "moved" / "birds.json")
    files = [f"--data.root={tmp_path / 'moved'}", f"--data.test-annotations={json_file}", f"--data.test-images={moved}"]
    code, out, err = run(capsys, "evaluate", detector, *files, f"--out={tmp_path / 'out'}")
    assert (code, out.splitlines()[:3]) == (0, table), err
    code, out, _ = run(capsys, "evaluate", detector, detector, f"--out={tmp_path / 'both'}")
    assert code == 0
    assert (tmp_path / "both" / "2" / "measures.json").exists()
    assert f"mean of 2: box AP {measures['box']['AP']:.2f} %, mask AP {measures['mask']['AP']:.2f} %" in out


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
def test_predict_draws_objects_and_prints_them(capsys, detector, flock, image, tmp_path):
    picture = tmp_path / "new" / "drawn.png"
    code, out, err = run(capsys, "predict", detector, image, "--out", picture, "--json", "--score=0")
    assert (code, err) == (0, f"written: {picture}\n")
    row = json.loads(out)
    assert row["path"] == str(image)
    assert len(row["objects"]) == 10
    with Image.open(image) as plain, Image.open(picture) as drawn:
        assert drawn.size == plain.size == (80, 64)
        assert ImageChops.difference(plain.convert("RGB"), drawn).getbbox() is not None
    truth = json.loads((flock / "annotations" / "instances_val.json").read_text())
    names = [category["name"] for category in sorted(truth["categories"], key=lambda category: category["id"])]
    expected = detect(load_trained(detector), open_image(image))
    for k, found in enumerate(row["objects"]):
        assert set(found) == {"class", "score", "box", "mask"}
        assert found["class"] == names[expected["labels"][k] - 1]
        assert found["box"] == pytest.approx(expected["boxes"][k].tolist(), abs=1e-3)
        assert np.array_equal(coco_mask.decode(found["mask"]), expected["masks"][k].numpy())
    scores = [found["score"] for found in row["objects"]]
    assert scores == sorted(scores, reverse=True)
    code, out, _ = run(capsys, "predict", detector, image, f"--score={scores[1] - 1e-6}")
    assert code == 0
    assert [line.split()[2] for line in out.splitlines()[1:]] == [found["class"] for found in row["objects"][:2]]
    code, out, _ = run(capsys, "predict", detector, image, "--score=1")
    assert out.splitlines()[1:] == ["  no object with a score of 1 or more"]


def test_predict_goes_on_after_a_bad_image_and_draws_the_others(capsys, detector, flock, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"GIF89a")
    images = sorted((flock / "val").iterdir())
    code, out, err = run(capsys, "predict", detector, bad, *images, "--out", tmp_path / "drawn", "--json")
    assert code == 2
    assert err.startswith(f"cgnl: {bad} ")
    assert "GIF" in err.splitlines()[0]
    rows = [json.loads(line) for line in out.splitlines()]
    assert [set(row) for row in rows] == [{"path", "error"}, {"path", "objects"}, {"path", "objects"}]
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == [f"{path.stem}.png" for path in images]


def test_evaluate_looks_for_more_or_fewer_objects(capsys, detector, tmp_path):
    counts = {}
    for option in ("detections=10", "detections=3", "proposals=1", "score-threshold=1"):
        code, _, err = run(capsys, "evaluate", detector, f"--network.{option}", f"--out={tmp_path / option}")
        assert code == 0, err
        counts[option] = len(json.loads((tmp_path / option / "box_results.json").read_text()))
    # of two images; a proposal can be one object of each of three classes
    assert counts == {"detections=10": 20, "detections=3": 6, "proposals=1": 6, "score-threshold=1": 0}


def coco_names(flock, root, names):
    """A flock whose annotations have the categories of other names, in their order, and the birds the first ones."""
    shutil.copytree(flock, root)
    for path in (root / "annotations").iterdir():
        truth = json.loads(path.read_text())
        truth["categories"] = [{"id": k, "name": name} for k, name in enumerate(names, start=1)]
        for row in truth["annotations"]:
            row["category_id"] = 1
        path.write_text(json.dumps(truth))
    return root


def test_evaluate_tests_torchvisions_weights_on_data_of_their_classes(capsys, flock, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = MaskRCNN_ResNet50_FPN_Weights.COCO_V1
    cached = tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    cached.parent.mkdir(parents=True)
    torch.save(maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict(), cached)
    names = [name for name in weights.meta["categories"][1:] if name != "N/A"]
    small = ["--data.size=64", "--data.max-size=80", "--data.workers=0", "--network.proposals=5", "--network.weights"]
    command = ["evaluate", "coco-maskrcnn-resnet50", *FPN, *small, "COCO_V1", f"--out={tmp_path / 'out'}"]
    root = coco_names(flock, tmp_path / "coco", names)
    code, out, err = run(capsys, *command, f"--data.root={root}")
    assert code == 0, err
    assert "(%, 2 images)" in out
    swapped = coco_names(flock, tmp_path / "swapped", [names[1], names[0], *names[2:]])
    code, _, err = run(capsys, *command, f"--data.root={swapped}")
    assert code == 2
    assert "their order differs" in err


MISTAKES = {
    "a timeline of a detector": (
        ["predict", "{run}", "{image}", "--timeline=t.csv"],
        "timeline (t.csv) does nothing here",
    ),
    "classes of a detector": (["predict", "{run}", "{image}", "--top=3"], "top (3) does nothing here"),
    "the image itself": (["predict", "{run}", "{image}", "--out={image}"], "would overwrite the image"),
    "a folder of the image": (["predict", "{run}", "{image}", "{copy}", "--out={tmp}"], "overwrite the image {copy}"),
    "one picture of two images": (
        ["predict", "{run}", "{image}", "{copy}", "--out=x.png"],
        "out (x.png) must be a folder for the pictures of 2 images",
    ),
    "no place of data": (
        ["train", "flock-maskrcnn-resnet18"],
        "data.root is needed, or in its place data.train_annotations and data.train_images",
    ),
    "a norm over processes": (
        ["train", "flock-maskrcnn-resnet18-cgnl", "--data.root={other}", "--network.norm=sync_batch", *TWO_CPUS],
        "block.norm sync_batch needs GPUs in several processes",
    ),
    "smoothed labels": (
        ["train", "flock-maskrcnn-resnet18", "--data.root={other}", "--optimizer.label-smoothing=0.1"],
        "optimizer.label_smoothing (0.1) is for classifiers",
    ),
    "weights of other classes": (
        ["evaluate", "coco-maskrcnn-resnet50", "--data.root={other}", "--network.weights=COCO_V1", *FPN],
        "network.weights (COCO_V1) is for COCO's 80 classes, but the data has 3 others; unknown to COCO: great",
    ),
    "a picture of no known kind": (["predict", "{run}", "{image}", "--out=x.txt"], "out (x.txt) must end in .png"),
    "no such score": (["predict", "{run}", "{image}", "--score=2"], "score (2.0) must be between 0 and 1"),
    "pictures of one name": (["predict", "{run}", "{image}", "{image}", "--out=d"], "two images have the same name"),
    "no such image": (["predict", "{run}", "nothing.jpg"], "nothing.jpg does not exist"),
    "other classes": (["evaluate", "{run}", "--data.root={other}"], "other classes than expected"),
    "no annotations": (["evaluate", "{run}", "--data.root={tmp}"], "{tmp}"),
    "another network": (
        ["evaluate", "{run}", "--network.rois=9"],
        "cannot be changed, except network.proposals, network.detections, network.score_threshold",
    ),
    "no such neck": (["train", "flock-maskrcnn-resnet18", "--data.root={other}", "--network.neck=c5"], "c5"),
    "no such part": (
        ["train", "flock-maskrcnn-resnet18", "--data.root={other}", *SMALL, "--trainer.freeze=body"],
        "trainer.freeze names 'body'",
    ),
    "a side longer than the longest": (
        ["train", "flock-maskrcnn-resnet18", "--data.root={other}", "--data.size=900", "--data.max-size=800"],
        "data.max_size (800) must be at least 900",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_ends_in_a_plain_sentence(capsys, detector, flock, image, tmp_path, case):
    other = shutil.copytree(flock, tmp_path / "other")
    for path in (other / "annotations").iterdir():
        path.write_text(path.read_text().replace('"name": "', '"name": "great '))
    places = {"run": detector, "image": image, "other": other, "tmp": tmp_path / "empty"}
    places["tmp"].mkdir()
    places["copy"] = shutil.copy(image, places["tmp"] / "copy.png")
    arguments, message = MISTAKES[case]
    filled = [argument.format(**places) for argument in arguments]
    if filled[0] == "train":
        filled.append(f"--run={tmp_path / 'run'}")
    code, _, err = run(capsys, *filled)
    assert code == 2
    assert message.format(**places) in " ".join(err.replace("│", " ").split())
    assert not (tmp_path / "run" / "last.ckpt").exists()
