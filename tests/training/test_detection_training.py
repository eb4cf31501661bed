"""Training detectors: losses, learning rates of parts, batches by aspect, and runs that their steps end."""

import copy
import csv
import dataclasses
import json
import shutil

import pytest
import torch
from PIL import Image
from test_resume import compare

from cgnl.cli import main
from cgnl.data.decoding import DataError
from cgnl.networks.detection import maskrcnn_resnet18
from cgnl.settings.detection import DetectionDataConfig
from cgnl.settings.reading import override
from cgnl.settings.training import OptimizerConfig
from cgnl.tasks import build_network, load_trained, train
from cgnl.tasks import evaluate as evaluate_detection
from cgnl.tasks.detection import DetectionTask
from cgnl.training import DetectionData as make_data
from cgnl.training.detection import DetectionModule
from cgnl.training.run import make_module


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tiny_detection, tmp_path_factory):
    run = tmp_path_factory.mktemp("detection") / "run"
    return train(tiny_detection, run, name="flock", progress=False), run


def test_a_run_that_its_steps_end_in_an_epoch_is_tested_once_and_kept(finished):
    result, run = finished
    first, last = rows(run / "epochs.csv")
    assert (first["step"], last["step"]) == ("4", "6")
    assert {first[name] for name in first if name.startswith("test")} == {""}, "an epoch that is not to be tested"
    assert list(result.scores) == ["mask AP", "box AP"]
    assert last["test_mask_ap"] == repr(result.scores["mask AP"])
    assert last["test_box_ap"] == repr(result.scores["box AP"])
    assert result.best_score == result.scores["mask AP"]
    assert result.best == run / "best.ckpt"
    best, latest = (torch.load(run / name, weights_only=True) for name in ("best.ckpt", "last.ckpt"))
    for name, value in latest["state_dict"].items():
        assert torch.equal(best["state_dict"][name], value), name
    assert {name: latest["cgnl"][name] for name in ("epoch", "batch", "step")} == {"epoch": 1, "batch": 2, "step": 6}


def test_a_run_does_not_go_on_with_other_objects(finished, tiny_detection, flock, tmp_path):
    changed = shutil.copytree(flock, tmp_path / "flock")
    (path,) = (changed / "annotations").glob("instances_train*.json")
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] += 1
    (image,) = [row["file_name"] for row in content["images"] if row["id"] == content["annotations"][0]["image_id"]]
    path.write_text(json.dumps(content))
    recipe = dataclasses.replace(tiny_detection, data=dataclasses.replace(tiny_detection.data, root=changed))
    with pytest.raises(DataError, match=rf"now: training images: 1 with other objects \({image}\)\. "):
        train(recipe, finished[1], resume=True, progress=False)


def test_a_run_that_its_steps_have_ended_resumes_to_nothing(finished, tmp_path, capsys):
    run = shutil.copytree(finished[1], tmp_path / "run")
    before = {name: (run / name).read_bytes() for name in ("last.ckpt", "epochs.csv", "steps.csv")}
    main(["train", str(run), "--resume"])
    assert "the run was already complete" in capsys.readouterr().out
    assert before == {name: (run / name).read_bytes() for name in before}


@pytest.mark.slow
def test_steps_that_end_with_an_epoch_are_tested_once(tiny_detection, tmp_path):
    recipe = override(tiny_detection, {"trainer": {"max_steps": 4}}, "test")
    result = train(recipe, tmp_path / "run", progress=False)
    (only,) = rows(tmp_path / "run" / "epochs.csv")
    assert only["test_box_ap"] == repr(result.scores["box AP"])
    assert (tmp_path / "run" / "best.ckpt").exists()
    latest = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["cgnl"]
    assert (latest["epoch"], latest["batch"]) == (1, 0)
    assert train(recipe, tmp_path / "run", resume=True, progress=False).scores == {}


def test_the_schedule_counts_steps_and_all_of_it_is_scaled_with_the_batch(finished):
    # twice the batch that the rates are for; a line has the rate of the step after it
    rates = [float(row["lr"]) for row in rows(finished[1] / "steps.csv")]
    assert rates == pytest.approx([0.0015, 0.002, 0.002, 0.0002, 0.0002, 0.0002])
    recipe = torch.load(finished[1] / "last.ckpt", weights_only=True)
    assert recipe["optimizer_states"][0]["param_groups"][0]["initial_lr"] == pytest.approx(0.002)


@pytest.fixture(scope="module")
def parts(tiny_detection):
    data = make_data(tiny_detection.data)
    torch.manual_seed(0)
    module = make_module(DetectionTask(), tiny_detection, build_network(tiny_detection, 3), data)
    return module, next(iter(data.train_dataloader()))


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_the_loss_is_the_sum_of_torchvisions(parts):
    module, batch = parts
    network = copy.deepcopy(module.network)
    torch.manual_seed(5)
    losses = network(batch["image"], batch["target"])
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}
    assert all(loss > 0 for loss in losses.values())
    torch.manual_seed(5)
    assert module.training_step(batch, 0).item() == pytest.approx(sum(loss.item() for loss in losses.values()))
    assert module.train_loss.compute() == pytest.approx(sum(loss.item() for loss in losses.values()))


def test_a_batch_without_a_readable_image_has_zero_gradients(parts):
    module, _ = parts
    module.zero_grad()
    empty = {"image": [], "target": [], "label": torch.empty(0), "index": torch.empty(0), "bad": []}
    module.training_step(empty, 0).backward()
    for parameter in module.network.parameters():
        assert not parameter.requires_grad or torch.equal(parameter.grad, torch.zeros_like(parameter))
    module.on_validation_epoch_start()
    module.validation_step(empty, 0)
    assert (module.results, module._seen) == ([], [])


@pytest.mark.parametrize(("neck", "norm_decay"), [("c4", 0.02), ("fpn", 0.02), ("c4", None)])
def test_every_parameter_has_the_rate_and_the_decay_of_its_kind(neck, norm_decay):
    network = maskrcnn_resnet18("cgnl", neck=neck, num_classes=4, norm="batch", backbone_norm="batch")
    config = OptimizerConfig(
        lr=0.1, weight_decay=0.01, norm_weight_decay=norm_decay, bias_weight_decay=0.0, bias_lr_factor=2.0,
        block_lr_factor=3.0, head_lr_factor=5.0,
    )  # fmt: skip
    frozen = ("backbone.body.conv1", "backbone.body.bn1", "backbone.body.layer1")
    module = DetectionModule(network, truth={}, category_ids=(1, 3, 4), optimizer=config, lr_scale=0.5, freeze=frozen)
    given = {}
    for group in module.make_optimizer().param_groups:
        given |= {id(parameter): (group["lr"], group["weight_decay"]) for parameter in group["params"]}
    kinds = set()
    for name, parameter in network.named_parameters():
        if name.startswith(frozen):
            assert id(parameter) not in given, name
            continue
        part = name.rsplit(".", 2)[-2]
        in_a_downsample = part == "1" and "downsample" in name
        norm = part in ("bn1", "bn2", "norm") or in_a_downsample
        bias = name.endswith(".bias")
        heads = ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
        block, head = "inserted_block" in name, any(layer in name for layer in heads)
        rate = 0.1 * 0.5 * (3 if block else 5 if head else 1) * (2 if bias else 1)
        decay = norm_decay if norm and norm_decay is not None else 0.0 if bias else 0.01
        assert given.pop(id(parameter)) == pytest.approx((rate, decay)), name
        kinds.add((norm, bias, block, head))
    assert not given
    assert kinds == {
        (False, False, False, False), (False, True, False, False), (True, False, False, False),
        (True, True, False, False), (False, False, True, False), (True, False, True, False), (True, True, True, False),
        (False, False, False, True), (False, True, False, True),
    }  # fmt: skip


def plain_set(root, sizes):
    """Write images of given sizes with one square each, for training and testing alike."""
    (root / "annotations").mkdir(parents=True)
    images = [{"id": k, "file_name": f"{k}.png", "width": w, "height": h} for k, (w, h) in enumerate(sizes, 1)]
    square = {"bbox": [2, 2, 8, 8], "area": 64, "iscrowd": 0, "segmentation": [[2, 2, 10, 2, 10, 10, 2, 10]]}
    annotations = [{"id": k, "image_id": k, "category_id": 7, **square} for k in range(1, len(sizes) + 1)]
    truth = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "square"}]}
    for split in ("train", "val"):
        (root / split).mkdir()
        for image in images:
            Image.new("RGB", (image["width"], image["height"])).save(root / split / image["file_name"])
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(truth))
    return root


@pytest.mark.parametrize("grouped", [True, False])
def test_wide_and_tall_images_come_in_batches_of_their_own(tmp_path, grouped):
    root = plain_set(tmp_path / "set", [(24, 16), (16, 24)] * 6)
    data = make_data(DetectionDataConfig(root=root, batch_size=3, workers=0, group_by_aspect=grouped))
    shapes = [{tuple(image.shape[1:]) for image in batch["image"]} for batch in data.train_dataloader()]
    assert len(shapes) == 4
    assert (max(map(len, shapes)) == 1) == grouped


def test_splits_with_other_categories_and_without_objects_are_refused(tmp_path):
    root = plain_set(tmp_path / "set", [(24, 16)] * 4)
    config = DetectionDataConfig(root=root, batch_size=2, workers=0)
    make_data(config).check()
    path = root / "annotations" / "instances_train.json"
    truth = json.loads(path.read_text())
    path.write_text(json.dumps({**truth, "annotations": []}))
    with pytest.raises(DataError, match="no training image with an object"):
        make_data(config).check()
    # the same name with another id is another category
    renumbered = [{**row, "category_id": 8} for row in truth["annotations"]]
    path.write_text(json.dumps({**truth, "annotations": renumbered, "categories": [{"id": 8, "name": "square"}]}))
    with pytest.raises(DataError, match=r"has the category 7 'square', but .*instances_train.json does not"):
        make_data(config).check()


@pytest.mark.filterwarnings("ignore::cgnl.blocks.SingleSampleWarning")
def test_bad_images_and_annotations_are_left_out_of_training_and_listed(flock, tiny_detection, tmp_path):
    root = shutil.copytree(flock, tmp_path / "set")
    path = root / "annotations" / "instances_train.json"
    truth = json.loads(path.read_text())
    truth["annotations"][0]["bbox"][2] = 0
    path.write_text(json.dumps(truth))
    bad = root / "train" / truth["images"][-1]["file_name"]
    bad.write_bytes(bad.read_bytes()[:200])
    recipe = dataclasses.replace(
        tiny_detection, data=dataclasses.replace(tiny_detection.data, root=root, bad_limit=0.2)
    )
    recipe = override(recipe, {"trainer": {"max_steps": 4}}, "test")
    train(recipe, tmp_path / "run", progress=False)
    assert [row["path"] for row in rows(tmp_path / "run" / "bad_files.csv")] == [str(bad)]
    (row,) = rows(tmp_path / "run" / "bad_annotations.csv")
    assert row["id"] == str(truth["annotations"][0]["id"])
    with pytest.raises(DataError, match=r"1 of \d+ annotations of .*instances_train.json are bad"):
        train(override(recipe, {"data": {"bad_limit": 0.0}}, "test"), tmp_path / "strict", progress=False)


def test_a_batch_too_small_for_batch_norm_is_named(flock):
    # at 32 pixels the last stage has one position
    network = maskrcnn_resnet18("none", num_classes=4, backbone_norm="batch", size=32, max_size=32)
    module = DetectionModule(network, truth={}, category_ids=(1, 2, 3))
    data = make_data(DetectionDataConfig(root=flock, batch_size=1, workers=0))
    with pytest.raises(DataError, match="a batch of 1 sample of 64 x 80 is too small for BatchNorm"):
        module.training_step(next(iter(data.train_dataloader())), 0)


def test_a_root_is_not_needed_where_files_and_folders_are_given(flock):
    files = {
        f"{ours}_{what}": flock / place.format(theirs)
        for ours, theirs in (("train", "train"), ("test", "val"))
        for what, place in (("annotations", "annotations/instances_{}.json"), ("images", "{}"))
    }
    config = DetectionDataConfig(**files, batch_size=2, workers=0)
    assert config.root is None
    data, expected = make_data(config), make_data(dataclasses.replace(config, root=flock))
    data.check()
    assert data.truth == expected.truth
    assert data.train_samples == expected.train_samples
    for name in files:
        lacking = make_data(dataclasses.replace(config, **{name: None}))
        with pytest.raises(ValueError, match=f"data.root is needed, or in its place data.{name}: "):
            lacking.check()


@pytest.mark.slow
def test_a_run_goes_on_for_more_steps_than_it_was_to_take(tiny_detection, finished, tmp_path):
    longer = override(tiny_detection, {"trainer": {"max_steps": 9}}, "test")
    run = shutil.copytree(finished[1], tmp_path / "run")
    train(longer, run, name="flock", resume=True, progress=False)
    train(longer, tmp_path / "reference", name="flock", progress=False)
    compare(run, tmp_path / "reference", epochs=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::cgnl.blocks.SingleSampleWarning")
def test_parts_of_a_batch_and_an_average_of_weights_end_with_the_steps(tiny_detection, tmp_path):
    # four steps of two images one by one make an epoch
    options = {"accumulate": 2, "ema_decay": 0.999999, "max_steps": 6}
    result = train(override(tiny_detection, {"trainer": options}, "test"), tmp_path / "run", progress=False)
    first, last = rows(tmp_path / "run" / "epochs.csv")
    assert (first["step"], last["step"]) == ("4", "6")
    assert first["test_mask_ap"] == ""
    assert last["test_mask_ap"] == repr(result.scores["mask AP"])
    latest = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert {name: latest["cgnl"][name] for name in ("epoch", "batch", "step")} == {"epoch": 1, "batch": 4, "step": 6}
    # the average, which hardly moves, is what is tested and used
    name = "roi_heads.box_predictor.cls_score.weight"
    kept, moved = latest["state_dict"][f"network.{name}"], latest["current_model_state"][f"network.{name}"]
    assert (kept - moved).abs().max() > 1e-6
    trained = load_trained(tmp_path / "run" / "last.ckpt")
    assert torch.equal(trained.network.state_dict()[name], kept)
    tested = evaluate_detection(trained, trained.recipe.data)
    assert tested.mask["AP"] == pytest.approx(result.scores["mask AP"])


def test_a_detector_is_not_compiled(tiny_detection, tmp_path):
    with pytest.raises(ValueError, match=r"trainer\.compile is for classifiers"):
        train(override(tiny_detection, {"trainer": {"compile": True}}, "test"), tmp_path / "run", progress=False)
