"""The paper's places for blocks, chosen among the stages of a network.

Shapes: B batch, C channels, S spatial or space-time axes, N positions of a token sequence.
"""

import math
from typing import Any, NamedTuple

from torch import nn

from cgnl.insertion.hook import Layout
from cgnl.insertion.nested import Select
from cgnl.insertion.recording import Call, Run
from cgnl.insertion.stages import Stages

_WORDS = {
    (1, "channels_first"): "[B, C, L]",
    (2, "channels_first"): "[B, C, H, W]",
    (3, "channels_first"): "[B, C, T, H, W]",
    (1, "channels_last"): "tokens [B, N, C]",
    (2, "channels_last"): "[B, H, W, C]",
    (3, "channels_last"): "[B, T, H, W, C]",
}


class Places(NamedTuple):
    """The paths that blocks follow, the layout and keys of the maps there, and the line that reports them."""

    paths: list[str]
    layout: Layout
    select: dict[str, Select | None]
    words: str


def find_places(
    model: nn.Module,
    example_input: Any,
    num_blocks: int = 1,
    *,
    num_axes: int | None = None,
    layout: Layout | None = None,
) -> Places:
    """Find the paper's places for blocks: a single one right before the last block of the stage at 1/16 of the input.

    The larger half of the blocks goes into that stage, the rest into the stage before. Return the paths from the input
    on, fewer than ``num_blocks`` where no more fit. The blocks' number of axes besides batch and channels and the
    layout of the maps may be unknown (None). Raises ValueError if there is no such place, or its map does not show its
    layout.
    """
    run = Run(model, example_input)
    stages = Stages(run, num_axes, layout)
    if not stages.all:
        raise ValueError(_nothing_found(run, [], num_axes))
    chosen = stages.chosen()
    first, last = stages.all[chosen][0], stages.all[chosen][-1]
    if num_axes not in (None, last.num_axes):
        raise ValueError(_nothing_found(run, stages.all[chosen], num_axes))
    found_layout = stages.layouts[last]
    if found_layout is None:
        raise ValueError(
            f"layout: channels could be the first or the last axis of the maps in {type(model).__name__}, such as "
            f"{list(first.out_shape)} after {first.path!r}; give layout='channels_first' or 'channels_last'"
        )
    _refuse_batch_second(run, last)
    if math.prod(run.size(last, found_layout)) == 1:
        raise ValueError(
            f"example_input is too small to tell the stages of {type(model).__name__} apart: the map after "
            f"{last.path!r} has a single position"
        )
    before = stages.before(chosen)
    there = (num_blocks + 1) // 2 if before else num_blocks
    taken = _spread(before, num_blocks - there) + _spread(stages.all[chosen], there)
    paths = [block.path for block in taken]
    words = _words(taken, found_layout)
    if len(paths) < num_blocks:
        words += f"; only {len(paths)} of {num_blocks} fit into the stages"
    return Places(paths, found_layout, {block.path: block.select for block in taken}, words)


def _refuse_batch_second(run: Run, block: Call) -> None:
    """Raise ValueError if a sequence may be [N, B, C], whose samples a block would mix."""
    for path, module in run.model.named_modules():
        if (
            block.num_axes == 1
            and isinstance(module, nn.MultiheadAttention | nn.RNNBase)
            and not module.batch_first
            and run.counts[module]
        ):
            raise ValueError(
                f"blocks: {path!r} has batch_first=False, so the sequences of {type(run.model).__name__} have the "
                "batch as their second axis, and a block would mix the samples; build it with batch_first=True"
            )


def _spread(stage: list[Call], num_blocks: int) -> list[Call]:
    """Choose as the paper does: one right before a stage's last, several evenly spaced, at most every second one."""
    num_blocks = min(num_blocks, max(1, len(stage) // 2), len(stage))
    if num_blocks < 2:
        return stage[-2:][:num_blocks]
    step = len(stage) // num_blocks
    return stage[step - 1 :: step][:num_blocks]


def _words(taken: list[Call], layout: Layout) -> str:
    """Return the line that reports the places; for several maps, whose shapes may differ, it names only the axes."""
    axes = _WORDS[taken[0].num_axes, layout]
    if len(taken) == 1:
        on = f"the {axes if axes.startswith('tokens') else f'map {axes}'} = {list(taken[0].out_shape)}"
        return f"put 1 block after {taken[0].path}, on {on} ({layout})"
    on = axes if axes.startswith("tokens") else f"maps {axes}"
    return f"put {len(taken)} blocks after {', '.join(call.path for call in taken)}, on {on} ({layout})"


def _nothing_found(run: Run, blocks: list[Call], num_axes: int | None) -> str:
    name = type(run.model).__name__
    if blocks and num_axes is not None:
        call = blocks[-1]
        layout = run.layout(call.out_shape)
        shape = f"{_WORDS[call.num_axes, layout]} = {list(call.out_shape)}" if layout else str(list(call.out_shape))
        return (
            f"blocks: they take {num_axes} {'axis' if num_axes == 1 else 'axes'} besides batch and channels, but the "
            f"maps in {name} have {call.num_axes}, such as {shape} after {call.path!r}; "
            f"give a block like cgnl.CGNL{call.num_axes}d"
        )
    maps = [call for call in run.calls.values() if call.path and 3 <= len(call.out_shape) <= 5]
    seen = ", ".join(f"{call.path} {list(call.out_shape)}" for call in maps[-8:]) or "none"
    return (
        f"blocks: no place was found in {name}; give paths, such as {{'layer3.4': cgnl.CGNL2d}} "
        f"(modules that ran once and whose output is a map: {seen})"
    )
