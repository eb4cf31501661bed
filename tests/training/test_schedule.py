import pytest
import torch

from cgnl.recipes import RECIPES
from cgnl.settings.training import ScheduleConfig
from cgnl.training.schedule import learning_rate_factor


def rates(config, *, epochs, steps_per_epoch=4, lr=0.1, max_steps=-1, steps=None):
    return [
        lr
        * learning_rate_factor(
            step, steps_per_epoch=steps_per_epoch, max_epochs=epochs, lr=lr, config=config, max_steps=max_steps
        )
        for step in steps or range(epochs * steps_per_epoch)
    ]


def test_steps_equal_torch_multistep():
    config = ScheduleConfig(kind="steps", milestones=(2, 5), gamma=0.3)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    reference = torch.optim.lr_scheduler.MultiStepLR(optimizer, [8, 20], gamma=0.3)
    for ours in rates(config, epochs=7):
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize(("unit", "max_steps", "end"), [("epoch", 9, 24), ("step", 9, 9), ("step", -1, 24)])
def test_cosine_equals_torch_cosine(unit, max_steps, end):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=end)
    config = ScheduleConfig(kind="cosine", unit=unit)
    for ours in rates(config, epochs=6, max_steps=max_steps, steps=range(end)):
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
        optimizer.step()
        reference.step()


def test_warmup_rises_by_step_or_by_epoch_and_ends_at_the_rate():
    by_step = rates(ScheduleConfig(kind="constant", warmup=2, warmup_start_lr=0.02), epochs=3)
    assert by_step[:8] == pytest.approx([0.02 + 0.08 * k / 8 for k in range(8)])
    assert by_step[8:] == pytest.approx([0.1] * 4)
    by_epoch = rates(ScheduleConfig(kind="constant", warmup=2, warmup_start_lr=0.02, warmup_interval="epoch"), epochs=3)
    assert by_epoch == pytest.approx([0.02] * 4 + [0.06] * 4 + [0.1] * 4)


def test_the_recipe_of_the_released_code():
    recipe = RECIPES["cub-resnet50-cgnl"].make()
    at = rates(recipe.schedule, epochs=recipe.trainer.max_epochs, steps_per_epoch=1, lr=recipe.optimizer.lr)
    assert len(at) == 110
    assert at[0] == pytest.approx(1e-5)
    assert [at[k] for k in (10, 40, 41, 70, 71, 90, 91, 109)] == pytest.approx(
        [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5]
    )


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("cgnl", {0: 1 / 3, 250: 2 / 3, 499: 0.998667, 500: 1, 119_999: 1, 120_000: 0.1, 159_999: 0.1, 160_000: 0.01}),
        ("cgnlx", {0: 1 / 3, 10_000: 2 / 3, 20_000: 1, 139_999: 1, 140_000: 0.1, 180_000: 0.01, 199_999: 0.01}),
    ],
)
def test_the_steps_of_table_4c_are_counted_in_steps_whatever_an_epoch_is(block, expected):
    recipe = RECIPES[f"coco-maskrcnn-resnet50-{block}"].make()
    for steps_per_epoch in (14_658, 7.5):
        at = rates(
            recipe.schedule,
            epochs=recipe.trainer.max_epochs,
            steps_per_epoch=steps_per_epoch,
            lr=0.01,
            max_steps=recipe.trainer.max_steps,
            steps=list(expected),
        )
        assert at == pytest.approx([0.01 * factor for factor in expected.values()], rel=1e-6)
