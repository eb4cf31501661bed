"""The learning rate over a run: a linear warm-up, then drops, half a cosine, or a constant."""

import math

from cgnl.settings.training import ScheduleConfig


def learning_rate_factor(
    step: int, *, steps_per_epoch: float, max_epochs: int, lr: float, config: ScheduleConfig, max_steps: int = -1
) -> float:
    """Return the factor on the learning rate ``lr`` (that after the warm-up) at an optimizer step, from 0.

    The run, and the cosine, end after ``max_epochs``; or after ``max_steps`` if they come first (-1 is no limit), where
    a cosine ends only if ``config.unit`` is "step".

    Source: the ramp from ``warmup_start_lr`` to ``lr`` follows Goyal et al. 2017, "Accurate, Large Minibatch SGD".

    Example:
        >>> config = ScheduleConfig(warmup=2, warmup_start_lr=0.0, milestones=(4,), gamma=0.1)
        >>> [learning_rate_factor(s, steps_per_epoch=1, max_epochs=6, lr=1.0, config=config) for s in range(6)]
        [0.0, 0.5, 1.0, 1.0, 0.1, 0.1]
    """
    # everything in the schedule's unit
    place: float
    if config.unit == "epoch":
        place, end = step / steps_per_epoch, float(max_epochs)
    else:
        place, end = step, max_steps if max_steps >= 0 else max_epochs * steps_per_epoch
    if place < config.warmup:
        position = math.floor(step / steps_per_epoch) if config.warmup_interval == "epoch" else place
        start = config.warmup_start_lr / lr
        return start + (1 - start) * position / config.warmup
    if config.kind == "cosine":
        progress = (place - config.warmup) / max(end - config.warmup, 1e-12)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    if config.kind == "steps":
        return config.gamma ** sum(place >= milestone for milestone in config.milestones)
    return 1.0
