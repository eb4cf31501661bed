"""What the blocks of a trained network contribute, and whether their sums do the work.

A compact block relates positions through its sums alone. With their means over a data set in their place, it does the
same to all samples: a network that is as good with those has no more than a residual block.

Legend: B samples of a batch, C channels, G groups, P order of the series, n samples of the data set, K classes, L maps
that a block sees of each sample, in one or several calls.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import chain
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from cgnl.blocks.kinds import kind_of
from cgnl.blocks.sums import CompactBlock, replaced_sums, sums_of, swapped
from cgnl.ops.precision import sum_dtype

ALL = "all blocks"
"""Key of all blocks together in the result of `diagnose`."""

Batches = Iterable[tuple[Any, Any]]
Score = Callable[[Any, Any], Tensor]
# What is changed for the batch that is a slice of the data set.
_Change = Callable[[slice], Iterable[AbstractContextManager[Any]]]
# For each call of a block for a batch: |branch| / |x|, [B, L], and the sums, [B, L, G, P + 1].
_Calls = list[tuple[Tensor, Tensor | None]]


class Diagnosis(TypedDict):
    """The scores of a network with a block (or all blocks) as it is and changed, and numbers of the block itself.

    ``mean_s`` to ``s_positive`` are None for blocks without sums, which are all but the compact ones. s is z_1, or the
    next z_p whose coefficient is not 0, or else z_0, which all positions of a sample share. For all blocks together,
    the last three are means over the blocks that have them. A number that would divide by 0 is None.

    Attributes:
        as_is: Mean score of the samples (top-1 in %, unless another score was asked for).
        removed: The same if the block returns its input.
        mean_s: The same if all z_p are their means over the samples.
        shuffled_s: The same if all z_p are those of another sample.
        s_cv: Coefficient of variation of s: standard deviation over the samples / |mean|, averaged over the groups.
        s_positive: Share of s above 0, from 0 to 1.
        branch_over_x: |output - x| / |x| of a sample's map, averaged over the samples.
    """

    as_is: float
    removed: float
    mean_s: float | None
    shuffled_s: float | None
    s_cv: float | None
    s_positive: float | None
    branch_over_x: float | None


def top1(logits: Tensor, targets: Tensor) -> Tensor:
    """Return 100 for each sample whose class [B] has the highest of its logits [B, K], else 0."""
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise ValueError("network's output must be logits [B, K]: give score= for other outputs")
    return 100.0 * (logits.argmax(1) == targets)


def diagnose(
    network: nn.Module,
    batches: Batches | Callable[[], Batches],
    *,
    blocks: Mapping[str, nn.Module] | None = None,
    score: Score = top1,
    seed: int = 0,
) -> dict[str, Diagnosis]:
    """Score a network with its blocks as they are, removed, and with other sums in them (Eq. 12).

    With other sums, all else of the block runs as it is: theta, conv_z and the norm. ``batches`` are read twice. The
    sums of all samples are kept on the CPU. The network is left as it was, also after an error.

    Args:
        network: Any network in evaluation mode with blocks, inserted or its own.
        batches: Pairs (inputs, targets), the same each time they are read, or a function that returns them anew. The
            network is called with the inputs; tensors are copied to its device.
        blocks: Blocks by path; None for all of ``cgnl.blocks``, by their module paths. Blocks of your own have to be
            given, for instance as ``cgnl.insertion.inserted_blocks(network)``. Blocks that do not run are left out.
        score: Function of the network's output and the targets that returns a number for each sample, [B].
        seed: Seed of the permutation of the data set that shuffles the sums. No sample keeps its own.

    Returns:
        A `Diagnosis`, ready for JSON, of all blocks together under ``ALL``, and of each block under its path.

    Raises:
        ValueError: The network is in training or has no block that runs, a block is split over processes or sees
            samples unequally often, the batches change, or an output or score has another shape.

    Example:
        >>> from cgnl import CGNL2d
        >>> network = nn.Sequential(CGNL2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        >>> found = diagnose(network, [(torch.randn(4, 8, 5, 5), torch.arange(4))])
        >>> list(found), found["0"]["branch_over_x"]
        (['all blocks', '0'], 0.0)
    """
    training = next((path for path, module in network.named_modules() if module.training), None)
    if training is not None:
        raise ValueError(
            f"network must be in evaluation mode, but {training or 'it'} is in training: call eval() first"
        )
    own = {path: block for path, block in network.named_modules() if kind_of(block)} if blocks is None else blocks
    own = {path: block for path, block in own.items() if path == next(p for p in own if own[p] is block)}
    sets = {ALL: tuple(own), **{path: (path,) for path in own}}
    records: dict[str, list[_Calls]] = {path: [] for path in own}
    changes: dict[Any, _Change] = {
        "as_is": _for_each(own, lambda path, part: _recorded(own[path], path, records[path], part))
    }
    for paths in sets.values():
        changes["removed", paths] = _for_each(paths, lambda path, _: swapped(own[path], forward=_copied))
    scores, targets = _scored(network, batches, changes, score)
    seen = {path: _joined(path, record) for path, record in records.items() if any(record)}
    if not seen:
        raise ValueError("network must have a block that runs and is not compiled, but has none")
    sums = {path: z for path, (_, z) in seen.items() if z is not None}
    with_sums = {name: tuple(path for path in paths if path in sums) for name, paths in sets.items()}
    changes = _changed_sums(own, sums, filter(None, with_sums.values()), seed)
    scores |= _scored(network, batches, changes, score, targets)[0] if changes else {}
    numbers = {path: _numbers(own[path], *of_block) for path, of_block in seen.items()}
    return {
        name: Diagnosis(
            as_is=scores["as_is"],
            removed=scores["removed", paths],
            mean_s=scores.get(("mean_s", with_sums[name])),
            shuffled_s=scores.get(("shuffled_s", with_sums[name])),
            s_cv=_mean(numbers[path][0] for path in with_sums[name]),
            s_positive=_mean(numbers[path][1] for path in with_sums[name]),
            branch_over_x=_mean(numbers[path][2] for path in paths if path in seen),
        )
        for name, paths in sets.items()
        if name == ALL or name in seen
    }


def _scored(
    network: nn.Module,
    batches: Batches | Callable[[], Batches],
    changes: Mapping[Any, _Change],
    score: Score,
    expected: list[Any] | None = None,
) -> tuple[dict[Any, float], list[Any]]:
    """Return the mean score of the samples with each change, and the targets, which must be the expected ones."""
    device = next((tensor.device for tensor in chain(network.parameters(), network.buffers())), None)
    differ = ValueError("batches must hold samples, and the same ones in the same order each time they are read")
    totals, read, count = dict.fromkeys(changes, 0.0), [], 0
    wanted = iter(expected or ())
    for inputs, targets in batches() if callable(batches) else batches:
        if expected is not None and not _same(next(wanted, targets[:0]), targets):
            raise differ
        read.append(targets.cpu() if isinstance(targets, Tensor) else targets)
        part = slice(count, count := count + len(targets))
        for name, change in changes.items():
            # copies, because the network may change its input in place
            x, y = (t.to(device or t.device, copy=True) if isinstance(t, Tensor) else t for t in (inputs, targets))
            with ExitStack() as stack, torch.no_grad():
                for context in change(part):
                    stack.enter_context(context)
                own = score(network(x), y)
            if own.shape != (len(targets),):
                raise ValueError(
                    f"score must be [B], a number for each of {len(targets)} samples, not {list(own.shape)}"
                )
            totals[name] += own.cpu().double().sum().item()
    if not count or len(read) < len(expected or ()):
        raise differ
    return {name: total / count for name, total in totals.items()}, read


def _same(expected: Any, targets: Any) -> bool:
    """Tell whether a batch has the targets of the first reading, or as many if they are no tensors."""
    if isinstance(targets, Tensor):
        return torch.equal(expected, targets.cpu())
    return len(expected) == len(targets)


def _for_each(paths: Iterable[str], change: Callable[[str, slice], AbstractContextManager[Any]]) -> _Change:
    # one after the other, so that an error finds no change that is made but not yet entered
    return lambda part: (change(path, part) for path in paths)


def _changed_sums(
    blocks: Mapping[str, nn.Module], sums: Mapping[str, Tensor], sets: Iterable[tuple[str, ...]], seed: int
) -> dict[Any, _Change]:
    """Return the changes that put the mean sums, or those of other samples, into each set of blocks."""
    changes: dict[Any, _Change] = {}
    for paths in sets:
        mean = {path: sums[path].double().mean(0, keepdim=True).expand_as(sums[path]) for path in paths}
        shuffled = {path: sums[path][_others(len(sums[path]), seed)] for path in paths}
        for name, to in (("mean_s", mean), ("shuffled_s", shuffled)):
            changes[name, paths] = _for_each(paths, partial(_with_sums, blocks, to))
    return changes


def _others(count: int, seed: int) -> Tensor:
    """Return a random permutation in one circle, which moves every number if there are at least two."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return torch.empty_like(order).index_copy_(0, order, order.roll(1))


@contextmanager
def _with_sums(blocks: Mapping[str, Any], sums: Mapping[str, Tensor], path: str, part: slice) -> Iterator[None]:
    """Give a block its part of the sums [n, L, G, P + 1], call by call."""
    block, rows, taken = blocks[path], sums[path][part], 0

    def replace(z: Tensor) -> Tensor:
        nonlocal taken
        start, taken = taken, taken + len(z) // len(rows)
        return rows[:, start:taken].flatten(0, 1).to(z)

    with replaced_sums(block, replace):
        yield
    if taken != rows.shape[1]:
        raise ValueError(f"block {path!r} ({type(block).__name__}) must leave its sums to the class of cgnl.blocks")


def _copied(*args: Tensor, **kwargs: Tensor) -> Tensor:
    # not the input itself: a later module may change it in place
    return _input(args, kwargs).clone()


def _input(args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> Tensor:
    return next(iter((*args, *kwargs.values())))


def _recorded(block: nn.Module, path: str, record: list[_Calls], part: slice) -> AbstractContextManager[Any]:
    """Add the calls of a block for one batch to its record."""
    calls: _Calls = []
    record.append(calls)
    count = part.stop - part.start

    def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
        ratios, z = _of_call(block, _input(args, kwargs), output)
        if len(ratios) % count:
            raise ValueError(
                f"block {path!r} must see all samples equally often, not {len(ratios)} maps of {count} samples"
            )
        calls.append((ratios.unflatten(0, (count, -1)), None if z is None else z.unflatten(0, (count, -1))))

    return block.register_forward_hook(hook, with_kwargs=True)


def _of_call(block: nn.Module, x: Tensor, output: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return |output - x| / |x| of each map, [B], and the sums of a compact block, [B, G, P + 1], on the CPU."""
    wide = x.detach().to(sum_dtype(x.dtype))
    branch, size = (torch.linalg.vector_norm(t.flatten(1), dim=1) for t in (output.detach() - wide, wide))
    with torch.no_grad():
        z = sums_of(block, x).cpu() if isinstance(block, CompactBlock) else None
    return torch.where(branch > 0, branch / size, 0.0).cpu(), z


class Tally:
    """How much a block changed the maps that it has seen, and how much its sums differed between them.

    It keeps totals alone, so that it can watch a whole test, and those of several processes add up.
    """

    def __init__(self) -> None:
        self.count, self.branch_over_x = 0, 0.0
        self._s: Tensor = torch.zeros(())
        self._s2: Tensor = torch.zeros(())

    def watch(self, block: nn.Module) -> AbstractContextManager[Any]:
        """Add what a block does, until the context ends or its ``remove`` is called."""

        def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            ratios, z = _of_call(block, _input(args, kwargs), output)
            self.count += len(ratios)
            self.branch_over_x += ratios.double().sum().item()
            if z is not None:
                s = _first_sums(block, z).double()
                self._s, self._s2 = self._s + s.sum(0), self._s2 + (s * s).sum(0)

        handle: AbstractContextManager[Any] = block.register_forward_hook(hook, with_kwargs=True)
        return handle

    def __add__(self, other: "Tally") -> "Tally":
        total = Tally()
        total.count, total.branch_over_x = self.count + other.count, self.branch_over_x + other.branch_over_x
        total._s, total._s2 = self._s + other._s, self._s2 + other._s2
        return total

    def numbers(self) -> dict[str, float]:
        """Return ``branch_over_x`` and ``s_cv`` as in `Diagnosis`, NaN where there is none."""
        if not self.count:
            return {"branch_over_x": math.nan, "s_cv": math.nan}
        mean = self._s / self.count
        spread = (self._s2 / self.count - mean**2).clamp(min=0).sqrt()
        cv = (spread / mean.abs()).mean().item() if mean.dim() else math.nan
        return {"branch_over_x": self.branch_over_x / self.count, "s_cv": cv if math.isfinite(cv) else math.nan}


def without(blocks: Iterable[nn.Module]) -> AbstractContextManager[Any]:
    """Let blocks return their input until the context ends."""
    stack = ExitStack()
    for block in blocks:
        stack.enter_context(swapped(block, forward=_copied))
    return stack


def _joined(path: str, record: list[_Calls]) -> tuple[Tensor, Tensor | None]:
    """Return the ratios [n, L] and sums [n, L, G, P + 1] of all calls."""
    numbers = sorted({sum(ratios.shape[1] for ratios, _ in calls) for calls in record})
    if len(numbers) > 1:
        raise ValueError(f"block {path!r} must see all samples equally often, not {numbers[0]} and {numbers[-1]} times")
    ratios = torch.cat([torch.cat([ratios for ratios, _ in calls], dim=1) for calls in record])
    sums = [torch.cat([z for _, z in calls if z is not None], dim=1) for calls in record if calls[0][1] is not None]
    return ratios, torch.cat(sums) if sums else None


def _numbers(block: Any, ratios: Tensor, sums: Tensor | None) -> tuple[float, float, float]:
    """Return s_cv, s_positive and branch_over_x of a block."""
    cv = positive = math.nan
    if sums is not None:
        s = _first_sums(block, sums).double()
        cv = (s.std(0, correction=0) / s.mean(0).abs()).mean().item()
        positive = (s > 0).double().mean().item()
    return cv, positive, ratios.double().mean().item()


def _first_sums(block: Any, sums: Tensor) -> Tensor:
    """Return s, one of the sums [..., G, P + 1] (see `Diagnosis`)."""
    return sums[..., next((p for p, a2 in enumerate(block.kernel.coefficients) if p and a2), 0)]


def _mean(numbers: Iterable[float]) -> float | None:
    numbers = list(numbers)
    mean = sum(numbers) / len(numbers) if numbers else math.nan
    return mean if math.isfinite(mean) else None
