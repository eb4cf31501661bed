import dataclasses

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from cgnl.data.decoding import DataError
from cgnl.networks.image import resnet18
from cgnl.settings.training import OptimizerConfig
from cgnl.training.classification import ClassificationModule


def test_blocks_and_head_have_learning_rates_of_their_own():
    network = resnet18("cgnl", num_classes=4)
    config = OptimizerConfig(lr=0.1, block_lr_factor=3.0, head_lr_factor=5.0)
    module = ClassificationModule(network, num_classes=4, optimizer=config)
    rates = {}
    for group in module.make_optimizer().param_groups:
        rates |= {id(p): group["lr"] for p in group["params"]}
    expected = {"fc.": 0.5, "layer3.0.inserted_block.": 0.3}
    for name, parameter in network.named_parameters():
        wanted = next((lr for prefix, lr in expected.items() if name.startswith(prefix)), 0.1)
        assert rates[id(parameter)] == pytest.approx(wanted), name
    assert len(rates) == len(list(network.parameters()))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_norms_have_a_weight_decay_of_their_own_and_nothing_else_has(name):
    network = resnet18("cgnl", num_classes=4)
    network.add_module("group", nn.GroupNorm(2, 4))
    network.add_module("layer", nn.LayerNorm(4))
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
    config = OptimizerConfig(name=name, weight_decay=0.1, norm_weight_decay=0.2, head_lr_factor=5.0)
    decays = {}
    for group in ClassificationModule(network, num_classes=4, optimizer=config).make_optimizer().param_groups:
        decays |= {id(p): group["weight_decay"] for p in group["params"]}
    for path, module in network.named_modules():
        for parameter in module.parameters(recurse=False):
            assert decays.pop(id(parameter)) == (0.2 if isinstance(module, norms) else 0.1), path
    assert not decays


def test_frozen_parameters_are_not_optimized():
    module = ClassificationModule(resnet18(num_classes=4), num_classes=4, freeze=("layer1", "conv1"))
    optimized = {id(p) for g in module.make_optimizer().param_groups for p in g["params"]}
    for name, parameter in module.network.named_parameters():
        assert (id(parameter) in optimized) == (not name.startswith(("layer1.", "conv1."))), name


def batch(size=4):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, 3, 8, 8, generator=generator)
    return {"image": images, "label": torch.arange(size) % 3, "index": torch.arange(size)}


def small(**options):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    return ClassificationModule(network, num_classes=3, **options)


def test_the_loss_is_cross_entropy_with_label_smoothing():
    module = small(optimizer=OptimizerConfig(label_smoothing=0.1))
    data = batch()
    logits = module.network(data["image"]).double()
    target = torch.full((4, 3), 0.1 / 3, dtype=torch.double)
    target[torch.arange(4), data["label"]] += 0.9
    expected = -(target * (logits - logits.logsumexp(1, keepdim=True))).sum(1).mean()
    assert module.training_step(data, 0).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("options", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_mixing_depends_on_place_and_seed_only(options):
    mixed = {}
    for key, seed, state, place in (("first", 1, 5, 0), ("again", 1, 9, 0), ("later", 1, 5, 1), ("other", 2, 5, 0)):
        module = small(seed=seed, **options)
        torch.manual_seed(state)
        before = torch.get_rng_state()
        images, labels = module._mixed_at(batch()["image"], batch()["label"], (0, place, 0))
        assert torch.equal(torch.get_rng_state(), before), "the global random state stays as it was"
        assert labels.shape == (4, 3)
        torch.testing.assert_close(labels.sum(1), torch.ones(4))
        mixed[key] = images.numpy().tobytes() + labels.numpy().tobytes()
    assert mixed["first"] == mixed["again"]
    assert len({mixed["first"], mixed["later"], mixed["other"]}) == 3


def clips():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 3, 4, 8, 10, generator=generator), torch.tensor([2, 0, 1])


def own_part(target, labels):
    """The share of each clip's own label in a mixed target, whose rest must be the label of the clip before."""
    own = target[range(3), labels]
    torch.testing.assert_close(target[range(3), labels.roll(1)], 1 - own)
    assert 0.01 < float(own[0]) < 0.99
    torch.testing.assert_close(own, own[:1].expand(3))
    return float(own[0])


def test_mixup_blends_whole_clips():
    videos, labels = clips()
    mixed, target = small(mixup=1.0, seed=3)._mixed_at(videos, labels, (0, 0, 0))
    part = own_part(target, labels)
    torch.testing.assert_close(mixed, part * videos + (1 - part) * videos.roll(1, 0))


def test_cutmix_pastes_the_same_box_into_all_frames_of_a_clip():
    videos, labels = clips()
    mixed, target = small(cutmix=1.0, seed=3)._mixed_at(videos, labels, (0, 0, 0))
    part = own_part(target, labels)
    own = mixed == videos
    pasted = ~own[0, 0, 0]
    assert torch.equal(own, (~pasted).expand_as(own))
    assert torch.equal(mixed, torch.where(pasted, videos.roll(1, 0), videos))
    rows, columns = pasted.any(1), pasted.any(0)
    assert torch.equal(pasted, rows[:, None] & columns), "a rectangle"
    assert 1 - pasted.float().mean().item() == pytest.approx(part)


def test_a_batch_without_a_readable_sample_has_zero_gradients():
    module = small()
    empty = {"image": torch.empty(0, 3, 0, 0), "label": torch.empty(0, dtype=torch.int64), "index": torch.empty(0)}
    module.training_step(empty, 0).backward()
    for parameter in module.network.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
    assert module.validation_step(empty, 0) is None
    assert module.predict_step(empty, 0)["classes"].shape == (0, 3)


def test_a_batch_too_small_for_batch_norm_is_named():
    module = ClassificationModule(resnet18("cgnl", num_classes=3), num_classes=3)
    data = {"image": torch.randn(1, 3, 32, 32), "label": torch.zeros(1, dtype=torch.int64), "index": torch.zeros(1)}
    with pytest.raises(DataError, match="1 sample of 32 x 32 is too small"):
        module.training_step(data, 0)


def test_adamw_is_an_option():
    config = dataclasses.replace(OptimizerConfig(), name="adamw", weight_decay=0.2)
    optimizer = small(optimizer=config).make_optimizer()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["weight_decay"] == 0.2


def test_a_test_with_a_loss_that_is_not_finite_has_no_accuracy():
    module = small()
    with torch.no_grad():
        module.network[1].bias[0] = float("nan")
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    (metrics,) = trainer.validate(module, DataLoader([batch()], batch_size=None), verbose=False)
    assert len(metrics) == 5
    assert all(value != value for value in metrics.values()), metrics
