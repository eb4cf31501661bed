import pytest
import torch

from cgnl.recipes import RECIPES, ScheduleConfig
from cgnl.training.schedule import learning_rate_factor


def rates(config, *, epochs, steps_per_epoch=4, lr=0.1):
    return [
        lr * learning_rate_factor(step, steps_per_epoch=steps_per_epoch, max_epochs=epochs, lr=lr, config=config)
        for step in range(epochs * steps_per_epoch)
    ]


def test_steps_equal_torch_multistep():
    config = ScheduleConfig(kind="steps", milestones=(2, 5), gamma=0.3)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    reference = torch.optim.lr_scheduler.MultiStepLR(optimizer, [8, 20], gamma=0.3)
    for ours in rates(config, epochs=7):
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        reference.step()


def test_cosine_equals_torch_cosine():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=24)
    for ours in rates(ScheduleConfig(kind="cosine"), epochs=6):
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
        optimizer.step()
        reference.step()


def test_warmup_rises_by_step_or_by_epoch_and_ends_at_the_rate():
    by_step = rates(ScheduleConfig(kind="constant", warmup=2, warmup_start_lr=0.02), epochs=3)
    assert by_step[:8] == pytest.approx([0.02 + 0.08 * k / 8 for k in range(8)])
    assert by_step[8:] == pytest.approx([0.1] * 4)
    by_epoch = rates(
        ScheduleConfig(kind="constant", warmup=2, warmup_start_lr=0.02, warmup_interval="epoch"), epochs=3
    )
    assert by_epoch == pytest.approx([0.02] * 4 + [0.06] * 4 + [0.1] * 4)


def test_the_recipe_of_the_released_code():
    recipe = RECIPES["cub-resnet50-cgnl"].make()
    at = rates(recipe.schedule, epochs=recipe.trainer.max_epochs, steps_per_epoch=1, lr=recipe.optimizer.lr)
    assert len(at) == 110
    assert at[0] == pytest.approx(1e-5)
    assert [at[k] for k in (10, 40, 41, 70, 71, 90, 91, 109)] == pytest.approx(
        [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5]
    )
