import csv
import resource

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from cgnl.networks.checkpoints import CheckpointError
from cgnl.settings.training import OptimizerConfig
from cgnl.training.callbacks import FiniteGuard, NonFiniteError
from cgnl.training.checkpoint import AtomicCheckpointIO
from cgnl.training.classification import ClassificationModule


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 4 * 4, 3))


def samples(count=8, bad=()):
    generator = torch.Generator().manual_seed(1)
    rows = []
    for index in range(count):
        image = torch.randn(3, 6, 6, generator=generator)
        if index in bad:
            image[0, 0, 0] = float("nan")
        rows.append({"image": image, "label": torch.tensor(index % 3), "index": torch.tensor(index)})
    return rows


def fit(module, rows, run, *, limit=5, accumulate=1, epochs=1, batch_size=2):
    guard = FiniteGuard(run, limit, lambda indices: [f"sample{index}" for index in indices])
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=accumulate,
        callbacks=[guard],
    )
    trainer.fit(module, DataLoader(rows, batch_size=batch_size))
    return guard


def module(**options):
    return ClassificationModule(small_network(), num_classes=3, optimizer=OptimizerConfig(lr=0.1), **options)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_with_a_bad_sample_are_as_if_they_had_not_been(tmp_path, accumulate):
    # samples 4..7 are the bad step's with accumulation, 4 and 5 without
    bad = fit(ours := module(), samples(8, bad=[5]), tmp_path, accumulate=accumulate)
    kept = samples(8)[: 4 if accumulate == 2 else None]
    if accumulate == 1:
        kept = kept[:4] + kept[6:]
    fit(expected := module(), kept, tmp_path / "none", accumulate=accumulate)
    assert bad.skipped == 1
    for (name, value), reference in zip(
        ours.network.state_dict().items(), expected.network.state_dict().values(), strict=True
    ):
        assert torch.equal(value, reference), name
    with (tmp_path / "skipped_steps.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["not_finite"] == "loss"
    assert row["samples"] == ("sample4 sample5" if accumulate == 1 else "sample4 sample5 sample6 sample7")


def test_too_many_bad_steps_stop_the_run_and_name_samples(tmp_path):
    with pytest.raises(NonFiniteError, match=r"3 steps .*skip_limit \(2\).*sample4, sample5"):
        fit(module(), samples(8, bad=range(8)), tmp_path, limit=2)


def test_a_full_disk_leaves_the_previous_checkpoint_whole(tmp_path):
    path = tmp_path / "last.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"state_dict": {"weight": torch.arange(4.0)}}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"last.ckpt: File too large. The previous .* untouched"):
            writer.save_checkpoint({"state_dict": {"weight": torch.zeros(1_000_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(writer.load_checkpoint(path)["state_dict"]["weight"], torch.arange(4.0))
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_frozen_parts_keep_weights_and_statistics(tmp_path):
    frozen = module(freeze=("0", "1"))
    before = {name: value.clone() for name, value in frozen.network.state_dict().items()}
    fit(frozen, samples(), tmp_path)
    after = frozen.network.state_dict()
    for name, value in before.items():
        assert torch.equal(value, after[name]) == name.startswith(("0.", "1.")), name


def test_an_unknown_path_to_freeze_is_named():
    with pytest.raises(ValueError, match=r"trainer.freeze names 'layer9'.*it has 0, 1, 2, 3"):
        module(freeze=("layer9",))


def test_accumulated_parts_give_the_step_of_the_whole_batch(tmp_path):
    def plain():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        return ClassificationModule(network, num_classes=3, optimizer=OptimizerConfig(lr=0.1))

    fit(whole := plain(), samples(), tmp_path, batch_size=8)
    fit(parts := plain(), samples(), tmp_path, batch_size=2, accumulate=4)
    for a, b in zip(whole.network.parameters(), parts.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
