"""Which samples make up which batch: a pure function of seed, epoch, rank and position, so that a run can resume
in the middle of an epoch and several processes never see the same sample twice."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from cgnl.settings.words import counted


class EpochBatches:
    """Batches of ``(epoch, index)`` keys for one process; a batch sampler for ``torch.utils.data.DataLoader``.

    In training each epoch shuffles or draws the samples again, and an incomplete last batch is left out. In testing
    they keep their order and each is given to exactly one process, none twice: the processes' shares differ by at most
    one sample.

    Args:
        length: Number of samples in the data set.
        batch_size: Samples of one batch of one process.
        training: Whether to shuffle, and to leave an incomplete last batch out. Raises ValueError if there are then
            fewer samples than one step takes.
        seed: Seed of the order.
        rank: Number of this process.
        world_size: Number of processes.
        parts: Batches that make up one optimizer step (gradient accumulation); an epoch holds whole steps only.
        labels: In training, the class of each sample: each place of an epoch then goes to a random sample of a random
            class, so that all classes are seen equally often, and a sample may come several times. The key of its
            second, third, ... time is ``(epoch, index, 1)``, ``(epoch, index, 2)``, ...: it is cut again. None
            shuffles.
        groups: In training, a value for each sample: a batch holds samples of one value, except a last one that may be
            made of what is left over. None mixes all.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        training: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        parts: int = 1,
        labels: Sequence[int] | None = None,
        groups: Sequence[bool] | None = None,
    ) -> None:
        self.length, self.batch_size, self.training, self.seed = length, batch_size, training, seed
        self.rank, self.world_size, self.groups = rank, world_size, groups
        self.labels = None if labels is None else torch.tensor(labels)
        self.epoch = 0
        self._resume_at = (-1, 0)
        per_step = batch_size * world_size * parts
        if training and length < per_step:
            raise ValueError(
                f"the training set has {counted(length, 'sample')}, fewer than one step takes "
                f"(data.batch_size {per_step})"
            )
        if training:
            self.num_batches = length // per_step * parts
        else:
            self.num_batches = -(-len(range(rank, length, world_size)) // batch_size)

    @property
    def sampler(self) -> "EpochBatches":
        """Lightning looks here for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) that the next iteration gives."""
        self.epoch = epoch

    def resume(self, epoch: int, batch: int) -> None:
        """Start epoch ``epoch`` at batch number ``batch``; other epochs start at 0."""
        self.epoch, self._resume_at = epoch, (epoch, batch)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        epoch = self.epoch
        order: Sequence[Any]
        if not self.training:
            order = range(self.length)
        elif self.labels is not None:
            order = _numbered(drawn_by_class(self.labels, self._generator(epoch)).tolist())
        else:
            order = torch.randperm(self.length, generator=self._generator(epoch)).tolist()
            if self.groups is not None:
                order = self._grouped(order, self.groups)
        mine = order[self.rank :: self.world_size]
        first = self._resume_at[1] if self._resume_at[0] == epoch else 0
        for start in range(first * self.batch_size, self.num_batches * self.batch_size, self.batch_size):
            part = mine[start : start + self.batch_size]
            yield [(epoch, *key) if isinstance(key, tuple) else (epoch, key) for key in part]

    def _generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)

    def _grouped(self, order: list[int], groups: Sequence[bool]) -> list[int]:
        """Rearrange the samples so that each process's batches, which take every n-th, hold one group each."""
        waiting: dict[bool, list[int]] = {}
        batches = []
        for index in order:
            batch = waiting.setdefault(groups[index], [])
            batch.append(index)
            if len(batch) == self.batch_size:
                batches.append(waiting.pop(groups[index]))
        rest = [index for batch in waiting.values() for index in batch]
        batches += [rest[start : start + self.batch_size] for start in range(0, len(rest), self.batch_size)]
        whole = len(batches) // self.world_size * self.world_size
        return [
            index
            for start in range(0, whole, self.world_size)
            for turn in zip(*batches[start : start + self.world_size], strict=False)
            for index in turn
        ]


def drawn_by_class(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return the numbers of as many random samples as there are: each is of a random class among those of ``labels``.

    A sample may come several times, or not at all.
    """
    by_class = labels.argsort(stable=True)
    _, counts = labels.unique(return_counts=True)
    drawn = torch.randint(len(counts), (len(labels),), generator=generator)
    within = torch.rand(len(labels), dtype=torch.float64, generator=generator) * counts[drawn]
    return by_class[(counts.cumsum(0) - counts)[drawn] + within.long()]


def _numbered(order: Sequence[int]) -> list[tuple[int, ...]]:
    """Return samples in an order, those that come again with the number of times before."""
    times: Counter[int] = Counter()
    numbered: list[tuple[int, ...]] = []
    for index in order:
        numbered.append((index, times[index]) if times[index] else (index,))
        times[index] += 1
    return numbered
