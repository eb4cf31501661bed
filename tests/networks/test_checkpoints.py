"""Checkpoints: refused code, damaged files, renaming and the check of every key."""

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision import models

import cgnl
from cgnl.networks import image
from cgnl.networks.checkpoints import CheckpointError, block_settings, from_released, load_checkpoint_file, mismatches
from cgnl.networks.conversion import convert

GROUPS = 4


class RunsCode:
    """Unpickles by running a command that leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.trace}",)


def released_resnet18(num_classes: int = 7) -> dict[str, Tensor]:
    """A ResNet-18 as the released code lays it out: layer3.1 is the block, layer3.2 a residual block."""
    generator = torch.Generator().manual_seed(0)
    state_dict = models.resnet18(num_classes=num_classes).state_dict()
    renamed = {key.replace("layer3.1.", "layer3.2."): value for key, value in state_dict.items()}
    for module in ("t", "p", "g"):
        renamed[f"layer3.1.{module}.weight"] = torch.randn(128, 256, 1, 1, generator=generator)
    renamed["layer3.1.z.weight"] = torch.randn(256, 128 // GROUPS, 1, 1, generator=generator)
    renamed["layer3.1.gn.weight"] = torch.randn(256, generator=generator)
    renamed["layer3.1.gn.bias"] = torch.randn(256, generator=generator)
    return renamed


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    return released_resnet18()


def save_pth_tar(state_dict: dict[str, Tensor], path: Path, *, zipped: bool = False) -> Path:
    """As the released training script saves: DataParallel prefix, nested, beside an optimizer's state."""
    content = {
        "epoch": 99,
        "arch": "resnet18",
        "state_dict": {f"module.{key}": value for key, value in state_dict.items()},
        "best_prec1": torch.tensor(87.06),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.01}]},
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_the_state_dict_of_both_pytorch_formats(
    tmp_path: Path, released: dict[str, Tensor], zipped: bool
) -> None:
    loaded = load_checkpoint_file(save_pth_tar(released, tmp_path / "released.pth.tar", zipped=zipped))
    assert list(loaded) == [f"module.{key}" for key in released]
    assert all(torch.equal(loaded[f"module.{key}"], value) for key, value in released.items())


def test_reads_safetensors(tmp_path: Path) -> None:
    save_file({"a.weight": torch.arange(3.0)}, tmp_path / "a.safetensors")
    assert torch.equal(load_checkpoint_file(tmp_path / "a.safetensors")["a.weight"], torch.arange(3.0))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_refuses_a_pickle_with_code_and_does_not_run_it(tmp_path: Path, zipped: bool, nested: bool) -> None:
    trace, path = tmp_path / "trace", tmp_path / "evil.pth.tar"
    content = {"state_dict": {"fc.weight": torch.zeros(1)}, "extra": RunsCode(trace)} if nested else RunsCode(trace)
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"evil\.pth\.tar is refused: .*posix\.system"):
        load_checkpoint_file(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the pickle of this test does run code when it is let to"


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html></html>", b"\x80\x02", b"PK\x03\x04" + bytes(99)])
def test_damaged_files_end_in_one_sentence(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"Checkpoint \S*bad{suffix} is not a readable"):
        load_checkpoint_file(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_files_end_in_one_sentence(tmp_path: Path, released: dict[str, Tensor], zipped: bool) -> None:
    whole = save_pth_tar(released, tmp_path / "whole.pth.tar", zipped=zipped).read_bytes()
    path = tmp_path / "cut.pth.tar"
    for part in (0.001, 0.5, 0.99999):
        path.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(CheckpointError, match=r"cut\.pth\.tar is not a readable"):
            load_checkpoint_file(path)


def test_files_without_a_state_dict(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint_file(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="does not exist or is not a file"):
        load_checkpoint_file(tmp_path)
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds no state dict: found list"):
        load_checkpoint_file(tmp_path / "list.pth")
    torch.save({"state_dict": {}}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="holds no state dict: it is empty"):
        load_checkpoint_file(tmp_path / "empty.pth")
    torch.save({"weight": torch.zeros(1), "epoch": 3}, tmp_path / "mixed.pth")
    with pytest.raises(CheckpointError, match="no tensor at epoch"):
        load_checkpoint_file(tmp_path / "mixed.pth")


def test_block_names_of_the_released_code_fit_our_blocks() -> None:
    weight = torch.zeros(0)
    cgnl_keys = ["t.weight", "p.weight", "g.weight", "z.weight", "gn.weight", "gn.bias"]
    renamed = from_released(dict.fromkeys((f"module.{key}" for key in cgnl_keys), weight))
    assert set(renamed) == set(cgnl.CGNL2d(8, groups=2, norm="group").state_dict())

    nl_keys = [f"{module}.weight" for module in ("t", "p", "g", "z")]
    nl_keys += [f"bn.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    assert set(from_released(dict.fromkeys(nl_keys, weight))) == set(cgnl.NonLocal2d(8).state_dict())


@pytest.mark.parametrize(
    ("name", "subsample"),
    [
        ("nl1d_embedded_gaussian", False),
        ("nl2d_concatenation", False),
        ("nl2d_dot_product", False),
        ("nl2d_gaussian", False),
        ("nl3d_embedded_gaussian_subsampled", True),
    ],
)
def test_block_names_of_mmcv_fit_our_blocks(name: str, subsample: bool) -> None:
    with safe_open(Path(__file__).parents[1] / "golden" / f"{name}.safetensors", "pt") as file:
        keys = [key for key in file.keys() if key.startswith("param.")]  # noqa: SIM118 (the file is no dict)
        theirs = {key.removeprefix("param."): file.get_tensor(key) for key in keys}
    kind = {"1": cgnl.NonLocal1d, "2": cgnl.NonLocal2d, "3": cgnl.NonLocal3d}[name[2]]
    block = kind(
        theirs["conv_out.conv.weight"].shape[0],
        inner_channels=theirs["conv_out.conv.weight"].shape[1],
        pairwise=name.split("_", 1)[1].removesuffix("_subsampled"),
        subsample=subsample,
        bias=True,
    )
    assert mismatches(from_released(theirs), block.state_dict()) == []


@pytest.mark.parametrize("prefix", ["", "module.", "network.", "network.module."])
def test_prefixes_of_wrappers_go(prefix: str) -> None:
    weight = torch.zeros(1)
    nested = {"state_dict": {f"{prefix}conv1.weight": weight, f"{prefix}layer1.0.conv1.weight": weight}}
    assert list(from_released(nested)) == ["conv1.weight", "layer1.0.conv1.weight"]


def test_the_network_is_taken_out_of_a_training_module() -> None:
    state_dict = {"network.conv1.weight": torch.zeros(1), "train_loss.weight": torch.ones(1)}
    assert from_released({"state_dict": state_dict, "epoch": 3}) == {"conv1.weight": state_dict["network.conv1.weight"]}


def test_elements_of_a_stage_are_renumbered_around_every_block() -> None:
    weight = torch.zeros(1)
    keys = ["layer2.0.conv1.weight", "layer2.1.t.weight", "layer2.1.gn.bias", "layer2.2.conv1.weight"]
    keys += ["layer2.3.t.weight", "layer2.4.conv1.weight", "layer3.4.conv1.weight", "fc.bias"]
    assert list(from_released(dict.fromkeys(keys, weight))) == [
        "layer2.0.conv1.weight",
        "layer2.0.inserted_block.theta.weight",
        "layer2.0.inserted_block.norm.bias",
        "layer2.1.conv1.weight",
        "layer2.1.inserted_block.theta.weight",
        "layer2.2.conv1.weight",
        "layer3.4.conv1.weight",
        "fc.bias",
    ]


def test_names_that_mean_nothing_are_refused() -> None:
    weight = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"layer3\.0 of the checkpoint follows no residual block"):
        from_released({"layer3.0.t.weight": weight, "layer3.1.conv1.weight": weight})
    with pytest.raises(CheckpointError, match="two of its keys mean the same weight"):
        from_released({"t.weight": weight, "theta.weight": weight})


def test_our_own_names_stay() -> None:
    state_dict = image.resnet18("cgnl", num_classes=3).state_dict()
    assert list(from_released(state_dict)) == list(state_dict)


def test_settings_are_read_off_the_weights(released: dict[str, Tensor]) -> None:
    settings = {"num_blocks": 1, "groups": GROUPS, "channel_reduction": 2, "norm": "group"}
    assert block_settings(from_released(released)) == settings
    network = image.resnet18("cgnl", 2, groups=2, channel_reduction=4)
    settings = {"num_blocks": 2, "groups": 2, "channel_reduction": 4, "norm": "batch"}
    assert block_settings(network.state_dict()) == settings
    assert block_settings(models.resnet18().state_dict()) == {"num_blocks": 0}
    with pytest.raises(CheckpointError, match=r"shapes \[3\] and \[3\], which are no convolutions'"):
        block_settings({"layer3.0.inserted_block.z.weight": torch.zeros(3)})


def test_convert_round_trip(tmp_path: Path, released: dict[str, Tensor]) -> None:
    source = save_pth_tar(released, tmp_path / "released.pth.tar")
    target = tmp_path / "out.safetensors"
    metadata = convert(source, target, "resnet18", "cgnl")
    assert metadata == {
        "arch": "resnet18",
        "block": "cgnl",
        "num_blocks": "1",
        "groups": str(GROUPS),
        "channel_reduction": "2",
        "norm": "group",
        "num_classes": "7",
    }
    with safe_open(target, "pt") as file:
        assert file.metadata() == {"format": "pt", **metadata}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.safetensors", "released.pth.tar"]

    x = torch.randn(2, 3, 64, 64)
    networks = [
        image.resnet18("cgnl", groups=GROUPS, norm="group", weights=weights).eval() for weights in (source, target)
    ]
    block = networks[0].layer3[0].inserted_block
    assert torch.equal(block.theta.weight, released["layer3.1.t.weight"])
    assert torch.equal(networks[0].layer3[1].conv1.weight, released["layer3.2.conv1.weight"])
    assert torch.equal(networks[0](x), networks[1](x))


def test_convert_of_a_plain_network_without_counters(tmp_path: Path) -> None:
    state_dict = models.resnet18().state_dict()
    old = {key: value for key, value in state_dict.items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    assert convert(tmp_path / "old.pth", tmp_path / "new.safetensors", "resnet18", None)["block"] == "none"
    assert set(load_checkpoint_file(tmp_path / "new.safetensors")) == set(state_dict)


def test_convert_lists_every_key_that_does_not_fit(tmp_path: Path, released: dict[str, Tensor]) -> None:
    wrong = dict(released)
    del wrong["layer1.0.conv1.weight"], wrong["layer3.1.p.weight"]
    wrong["layer4.9.conv1.weight"] = torch.zeros(1)
    wrong["layer3.1.gn.bias"] = torch.zeros(3)
    source = save_pth_tar(wrong, tmp_path / "wrong.pth.tar")
    with pytest.raises(CheckpointError) as caught:
        convert(source, tmp_path / "out.safetensors", "resnet18", "cgnl")
    for phrase in (
        "layer1.0.conv1.weight is missing",
        "layer3.0.inserted_block.phi.weight is missing",
        "layer4.9.conv1.weight is unknown to the network",
        "layer3.0.inserted_block.norm.bias has shape [3] instead of [256]",
    ):
        assert phrase in str(caught.value)
    assert str(caught.value).count(";") == 3
    assert not (tmp_path / "out.safetensors").exists()


def test_convert_refuses_wrong_arguments(tmp_path: Path, released: dict[str, Tensor]) -> None:
    source = save_pth_tar(released, tmp_path / "released.pth.tar")
    out = tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match=r"target \(.*out\.pth\) must end in \.safetensors"):
        convert(source, tmp_path / "out.pth", "resnet18", "cgnl")
    with pytest.raises(CheckpointError, match="holds 1 blocks, but block is none"):
        convert(source, out, "resnet18", None)
    with pytest.raises(ValueError, match=r"arch \('resnet19'\) must be one of"):
        convert(source, out, "resnet19", "cgnl")
    with pytest.raises(CheckpointError, match="does not fit resnet34 with block cgnl"):
        convert(source, out, "resnet34", "cgnl")
    with pytest.raises(CheckpointError, match=r"Cannot write \S*absent/out\.safetensors: No such file or directory"):
        convert(source, tmp_path / "absent" / "out.safetensors", "resnet18", "cgnl")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="holds no image network"):
        convert(tmp_path / "other.pth", out, "resnet18", None)
    assert not out.exists()


def network_and_file(tmp_path: Path, suffix: str = ".pth", **changed: Tensor) -> tuple[dict[str, Tensor], Path]:
    torch.manual_seed(0)
    state_dict = {**image.resnet18(num_classes=3).state_dict(), **changed}
    path = tmp_path / f"weights{suffix}"
    save_file(state_dict, path) if suffix == ".safetensors" else torch.save(state_dict, path)
    return state_dict, path


@pytest.mark.parametrize("place", [0.05, 0.5, 0.98])
def test_changed_bytes_in_an_archive_are_found_wherever_they_are(tmp_path: Path, place: float) -> None:
    _, path = network_and_file(tmp_path)
    content = bytearray(path.read_bytes())
    start = int(place * len(content))
    content[start : start + 4096] = bytes(byte ^ 1 for byte in content[start : start + 4096])
    path.write_bytes(content)
    for read in (load_checkpoint_file, lambda path: image.resnet18(num_classes=3, weights=path)):
        with pytest.raises(CheckpointError, match=r"weights\.pth is damaged: .* checksum"):
            read(path)


def test_an_archive_that_was_written_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        state_dict, path = network_and_file(tmp_path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_checkpoint_file(path).keys() == state_dict.keys()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, suffix: str, value: float) -> None:
    _, path = network_and_file(tmp_path, suffix, **{"layer2.0.bn1.running_var": torch.full((128,), value)})
    with pytest.raises(CheckpointError, match=r"not finite \(NaN or infinity\): layer2\.0\.bn1\.running_var\. "):
        image.resnet18(num_classes=3, weights=path)


@pytest.mark.parametrize("cut", [20, 0.5, -1])
def test_a_safetensors_file_whose_header_reaches_past_its_end_is_refused(tmp_path: Path, cut: float) -> None:
    _, path = network_and_file(tmp_path, ".safetensors")
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content)) if cut == 0.5 else int(cut)])
    with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
        load_checkpoint_file(path)
