"""A detector on the command line: training, testing, finding and drawing objects, and what goes wrong."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageChops
from pycocotools import mask as coco_mask
from test_cli import run

from cgnl.cli import main
from cgnl.data.decoding import open_image
from cgnl.data.toy.flock import draw_flock
from cgnl.training.checkpoint import load_trained
from cgnl.training.detection_evaluation import detect

SMALL = (
    "--network.neck=c4 --network.rois=8 --network.proposals=20 --network.detections=10 --network.score-threshold=0 "
    "--data.size=64 --data.max-size=80 --data.batch-size=2 --data.workers=0 --trainer.max-steps=1"
).split()


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
        assert line.split()[1:] == ["nan" if value is None else f"{value:.2f}" for value in told]
    table = out.splitlines()[:3]
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


MISTAKES = {
    "a timeline of a detector": (["predict", "{run}", "{image}", "--timeline=t.csv"], "timeline (t.csv) needs a video"),
    "a picture of no known kind": (["predict", "{run}", "{image}", "--out=x.txt"], "out (x.txt) must end in .png"),
    "no such score": (["predict", "{run}", "{image}", "--score=2"], "score (2.0) must be between 0 and 1"),
    "pictures of one name": (["predict", "{run}", "{image}", "{image}", "--out=d"], "two of the images have one name"),
    "no such image": (["predict", "{run}", "nothing.jpg"], "nothing.jpg does not exist"),
    "other classes": (["evaluate", "{run}", "--data.root={other}"], "other classes than expected"),
    "no annotations": (["evaluate", "{run}", "--data.root={tmp}"], "{tmp}"),
    "another network": (["evaluate", "{run}", "--network.rois=9"], "cannot be changed"),
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
    arguments, message = MISTAKES[case]
    filled = [argument.format(**places) for argument in arguments]
    if filled[0] == "train":
        filled.append(f"--run={tmp_path / 'run'}")
    code, _, err = run(capsys, *filled)
    assert code == 2
    assert message.format(**places) in " ".join(err.replace("│", " ").split())
    assert not (tmp_path / "run" / "last.ckpt").exists()
