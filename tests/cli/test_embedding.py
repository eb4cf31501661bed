"""cgnl embed: features as the network's classifier sees them, and the nearest files."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import run

from cgnl.data.decoding import open_image
from cgnl.data.transforms import test_transform as transform_of
from cgnl.tasks import load_trained

SMALL = "--data.size 32 --data.resize 36 --data.batch-size 8 --data.workers 0 --trainer.max-epochs 1".split()


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    from cgnl.cli import main

    folder = tmp_path_factory.mktemp("embedding")
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in "ab":
            (folder / "images" / split / name).mkdir(parents=True)
            for number in range(6):
                pixels = generator.integers(0, 256, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(folder / "images" / split / name / f"{number}.png")
    main(
        ["train", "image", f"--data.root={folder / 'images'}", f"--run={folder / 'run'}", *SMALL]
        + ["--network.arch=resnet18", "--network.weights=None"]
    )
    return folder


def embedded(capsys, folder, out):
    code, said, errors = run(capsys, "embed", folder / "run", folder / "images" / "val", "--out", out)
    assert (code, errors) == (0, "")
    assert "12 of 12 files, 512 features each" in said
    return out


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_features_are_the_means_of_the_last_map_and_find_their_own_file(trained_run, tmp_path, capsys, suffix):
    out = embedded(capsys, trained_run, tmp_path / f"features{suffix}")
    if suffix == ".npz":
        with np.load(out) as arrays:
            features, paths = arrays["features"], arrays["paths"].tolist()
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        columns = parquet.read_table(out).to_pydict()
        features, paths = np.array(columns["features"]), columns["path"]
    trained = load_trained(trained_run / "run")
    seen = transform_of(32, 36, mean=trained.mean, std=trained.std)
    with torch.no_grad():
        for path, row in zip(paths, features, strict=True):
            maps = trained.network.forward_features(seen(open_image(path))[None])
            assert row == pytest.approx(maps.mean((2, 3))[0].numpy(), rel=1e-4, abs=1e-5)
            logits = trained.network(seen(open_image(path))[None])
            weight, bias = trained.network.fc.weight, trained.network.fc.bias
            torch.testing.assert_close(torch.tensor(row, dtype=torch.float32) @ weight.T + bias, logits[0])
    code, said, _ = run(capsys, "embed", trained_run / "run", "--search", paths[7], "--in", out, "--top", 3)
    first, *others = said.splitlines()
    assert code == 0
    assert first.split() == ["1.0000", paths[7]]
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    best = np.argsort(-units @ units[7])[:3]
    assert [line.split()[1] for line in (first, *others)] == [paths[number] for number in best]


@pytest.mark.slow
def test_bad_files_are_named_and_the_others_written(trained_run, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    (images / "bad.jpg").write_bytes(b"no image")
    Image.new("RGB", (40, 40), "red").save(images / "good.png")
    code, said, errors = run(capsys, "embed", trained_run / "run", images, "--out", tmp_path / "f.npz")
    assert code == 2
    assert "bad.jpg" in errors
    assert "1 of 2 files" in said
    with np.load(tmp_path / "f.npz") as arrays:
        assert arrays["paths"].tolist() == [str(images / "good.png")]


@pytest.mark.slow
def test_features_of_another_network_or_no_features_are_refused(trained_run, tmp_path, capsys):
    out = embedded(capsys, trained_run, tmp_path / "features.npz")
    image = trained_run / "images" / "val" / "a" / "0.png"
    with np.load(out) as arrays:
        np.savez(tmp_path / "other.npz", **{**arrays, "network": np.array("0")})
    (tmp_path / "bad.npz").write_bytes(out.read_bytes()[:-40])
    np.savez(tmp_path / "pickled.npz", features=np.array([{}], dtype=object))
    for name, words in {
        "other.npz": "holds the features of another network",
        "bad.npz": "holds no features that cgnl embed has written",
        "pickled.npz": "holds no features that cgnl embed has written",
        "none.npz": "does not exist",
    }.items():
        code, _, errors = run(capsys, "embed", trained_run / "run", "--search", image, "--in", tmp_path / name)
        assert code == 2
        assert f"{tmp_path / name}" in errors
        assert words in errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["photo.jpg"], "give files, and with --out a .npz or .parquet file"),
        (["--out", "f.npz"], "give files, and with --out"),
        (["photo.jpg", "--out", "f.csv"], "must end in .npz or .parquet"),
        (["--search", "photo.jpg"], "--search and --in belong together"),
    ],
)
def test_wrong_options_end_in_a_sentence(capsys, options, words):
    code, _, errors = run(capsys, "embed", "model.onnx", *options)
    assert code == 2
    assert words in errors


def test_an_exported_network_gives_no_features(capsys):
    code, _, errors = run(capsys, "embed", "model.onnx", "photo.jpg", "--out", "f.npz")
    assert code == 2
    assert "model.onnx is an ONNX file, which only cgnl predict uses: name the run that it was made of" in errors
