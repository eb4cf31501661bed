"""Does a new CGNL block learn with every scale of its sums, and which learning rate does it bear?

Eight samples x, [64, 14, 14], ReLU of noise times 0.5 to 1.5, and the target x·(1 + mean of x), the mean over the whole
sample: what to add depends on a number that only the whole sample tells. SGD with momentum 0.9, all eight samples in
each step. A scale divides the branch by M or its root (M = 784 here). With all weights of standard deviation
0.01 the branch's variance then lies far below BatchNorm's eps of 1e-5, which divides instead of the deviation, and
the block hardly learns. The block draws g larger to make up for it.

Rows of "start" have the mean squared error after 800 steps for both starts; rows of "rate" have it after 200 steps for
several learning rates, with BatchNorm and without a norm, beside a non-local block (kernel "nl"). A loss of null is one
that was not finite.

    python studies/start.py
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import cgnl
from script import begin, study, write

KERNELS = ("dot", "embedded_gaussian", "rbf")
SCALES = (None, "sqrt", "mean")
RATES = (0.01, 0.1, 0.5)
SHAPE = (8, 64, 14, 14)


def samples(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Return the inputs and their targets.

    Args:
        shape: [B, C, *S].
        seed: Seed of the noise.

    Returns:
        x and x·(1 + mean of x), of that shape.
    """
    of_sample = (-1, *(1,) * (len(shape) - 1))
    x = torch.relu(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    x = x * torch.linspace(0.5, 1.5, shape[0]).reshape(of_sample)
    return x, x * (1 + x.flatten(1).mean(1).reshape(of_sample))


def final_loss(
    make_block: Callable[[int], nn.Module],
    shape: tuple[int, ...] = SHAPE,
    *,
    seed: int,
    lr: float = 0.1,
    steps: int = 800,
) -> float:
    """Return the mean squared error of a block after its training; infinity as soon as it is not finite.

    Args:
        make_block: Makes the block for a number of channels.
        shape: [B, C, *S] of the samples.
        seed: Seed of the block and the samples.
        lr: Learning rate.
        steps: Number of steps.
    """
    torch.manual_seed(seed)
    x, target = samples(shape, seed)
    block = make_block(shape[1])
    optimizer = torch.optim.SGD(block.parameters(), lr=lr, momentum=0.9)
    for _ in range(steps):
        loss = (block(x) - target).square().mean()
        if not torch.isfinite(loss):
            return math.inf
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (block(x) - target).square().mean().item()


def _measured(
    row: dict[str, Any], make_block: Callable[[int], nn.Module], seeds: range, lr: float, steps: int
) -> dict[str, Any]:
    losses = sorted(final_loss(make_block, seed=seed, lr=lr, steps=steps) for seed in seeds)
    row |= {
        "lr": lr,
        "steps": steps,
        "losses": [float(f"{loss:.3g}") if math.isfinite(loss) else None for loss in losses],
    }
    print(row, flush=True)
    return row


def main() -> None:
    """Train all blocks and write the record."""
    arguments = begin(study(__file__, __doc__, repeats=3, repeats_are="seeds, one training each"))
    seeds = range(arguments.seed, arguments.seed + arguments.repeats)
    rows = []
    for kernel, scale in itertools.product(KERNELS, SCALES):
        for g_std in (0.01, None) if scale else (None,):
            block = partial(cgnl.CGNL2d, kernel=kernel, scale=scale, g_std=g_std)
            row = {"what": "start", "kernel": kernel, "scale": scale, "g_std": g_std or "default"}
            rows.append(_measured(row, block, seeds, 0.1, 800))
    for norm in ("batch", None):
        blocks = {
            (kernel, scale): partial(cgnl.CGNL2d, kernel=kernel, scale=scale, norm=norm)
            for kernel, scale in itertools.product(KERNELS, (None, "mean"))
        }
        for (kernel, scale), block in {("nl", None): partial(cgnl.NonLocal2d, norm=norm), **blocks}.items():
            row = {"what": "rate", "kernel": kernel, "scale": scale, "norm": norm}
            rows += [_measured(dict(row), block, seeds, lr, 200) for lr in RATES]
    write(arguments, rows, shape=SHAPE, momentum=0.9, losses="one a seed, ascending")


if __name__ == "__main__":
    main()
