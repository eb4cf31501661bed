"""The learning rate over a run: a linear warm-up, then drops, half a cosine, or a constant."""

import math

from cgnl.training.recipe import ScheduleConfig


def learning_rate_factor(
    step: int, *, steps_per_epoch: float, max_epochs: int, lr: float, config: ScheduleConfig
) -> float:
    """Return the factor on the learning rate at an optimizer step.

    Args:
        step: Optimizer step, from 0.
        steps_per_epoch: Optimizer steps of one epoch.
        max_epochs: Length of the run (epochs); the end of the cosine.
        lr: Learning rate after the warm-up.
        config: The schedule.

    Returns:
        The factor on ``lr``.

    Source: the ramp from ``warmup_start_lr`` to ``lr`` follows Goyal et al. 2017, "Accurate, Large Minibatch SGD".

    Example:
        >>> config = ScheduleConfig(warmup_epochs=2, warmup_start_lr=0.0, milestones=(4,), gamma=0.1)
        >>> [learning_rate_factor(s, steps_per_epoch=1, max_epochs=6, lr=1.0, config=config) for s in range(6)]
        [0.0, 0.5, 1.0, 1.0, 0.1, 0.1]
    """
    epoch = step / steps_per_epoch
    if epoch < config.warmup_epochs:
        position = math.floor(epoch) if config.warmup_interval == "epoch" else epoch
        start = config.warmup_start_lr / lr
        return start + (1 - start) * position / config.warmup_epochs
    if config.kind == "cosine":
        progress = (epoch - config.warmup_epochs) / max(max_epochs - config.warmup_epochs, 1e-12)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    if config.kind == "steps":
        return config.gamma ** sum(epoch >= milestone for milestone in config.milestones)
    return 1.0
