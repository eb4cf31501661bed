"""The blocks and stages of a network, found in a recorded run.

A network's own blocks are the modules that it repeats: of one class, with outputs of one shape, under one parent. In a
network that has only layers, each convolution and the layers up to the next one are a block. A stage is a row of blocks
whose maps have the same size.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby, pairwise

from torch import nn
from torch.nn.modules.conv import _ConvNd

from cgnl.insertion.hook import Layout, inserted_blocks
from cgnl.insertion.recording import Call, Run, has_one_matrix, is_row

_PAPERS_LEVEL = 4  # res4: a map of 1/2^4 of the input along each spatial axis


class Stages:
    """The stages of a network, in the order of their results.

    ``num_axes``, the number of the new blocks' axes besides batch and channels, and ``layout`` may be unknown (None).
    """

    def __init__(self, run: Run, num_axes: int | None, layout: Layout | None) -> None:
        self._named = {level: _named_by_timm(run.model, level) for level in (_PAPERS_LEVEL - 1, _PAPERS_LEVEL)}
        blocks = self._named_alone(run, found) if (found := blocks_of(run)) else []
        self.layouts = {block: layout or _layout(run, block, blocks) for block in blocks}
        told = [known for known in self.layouts.values() if known is not None]
        guess: Layout = Counter(told).most_common(1)[0][0] if told else "channels_first"
        self._levels = {block: run.level(block, self.layouts[block] or guess) for block in blocks}
        # Blocks with other axes may lie between them, such as attention on tokens between convolutions.
        fitting = [block for block in blocks if num_axes in (None, block.num_axes)]
        others = [block for block in blocks if block not in fitting]
        self.all = sorted([*self._rows(fitting), *self._rows(others)], key=lambda stage: stage[-1].order)
        self._num_axes = num_axes

    def _rows(self, blocks: list[Call]) -> list[list[Call]]:
        rows = groupby(blocks, key=lambda block: (block.parent, block.num_axes, self._levels[block]))
        return [list(row) for _, row in rows]

    def _named_alone(self, run: Run, blocks: list[Call]) -> list[Call]:
        """Return the blocks, or the stages themselves if no block lies in the stage that timm names for 1/16."""
        named = self._named[_PAPERS_LEVEL]
        if named is None or any(_overlap(block.path, named) for block in blocks):
            return blocks
        calls = [call for call in run.calls.values() if call.path in self._named.values() and run.is_map(call)]
        calls = sorted((call for call in calls if not has_one_matrix(call.module)), key=lambda call: call.order)
        return calls if any(call.path == named for call in calls) else blocks

    def chosen(self) -> int:
        """Return the stage that timm names for 1/16 of the input, or the last at 1/16, or the second-to-last.

        Among stages of the same size, those whose maps have the right number of axes come first.
        """
        named = self._named[_PAPERS_LEVEL]
        of_timm = [n for n, stage in enumerate(self.all) if named and any(_overlap(b.path, named) for b in stage)]
        depths = [self._levels[stage[-1]] for stage in self.all]
        # Decoders and heads start at the first stage whose map is larger than the one before it.
        trunk = next((n for n, (one, two) in enumerate(pairwise(depths), 1) if two < one), len(depths))
        at_papers = [[n for n, depth in enumerate(depths[:end]) if depth == _PAPERS_LEVEL] for end in (trunk, None)]
        for candidates in (of_timm, *at_papers):
            if candidates:
                return max(candidates, key=lambda n: (self._num_axes in (None, self.all[n][-1].num_axes), n))
        return max(0, trunk - 2)

    def before(self, chosen: int) -> list[Call]:
        """Return the stage before the chosen one, if its maps are of the same kind."""
        last = self.all[chosen][-1]
        alike = [stage for stage in self.all[:chosen] if stage[-1].num_axes == last.num_axes]
        return alike[-1] if alike and self.layouts[alike[-1][-1]] == self.layouts[last] else []


def _layout(run: Run, block: Call, blocks: list[Call]) -> Layout | None:
    """Return the layout of a block's map, or of others of its kind if layers do not show it (C = H = W)."""
    own = run.layout(block.out_shape)
    others = {run.layout(other.out_shape) for other in blocks if other.kind == block.kind} - {None}
    return own or (others.pop() if len(others) == 1 else None)


def _overlap(path: str, other: str) -> bool:
    """Tell whether two paths name the same module, or one inside the other."""
    return f"{path}.".startswith(f"{other}.") or f"{other}.".startswith(f"{path}.")


def _named_by_timm(model: nn.Module, level: int) -> str | None:
    """Return the path of the last module at a level in the ``feature_info`` of a timm network, or of one inside."""
    for path, module in model.named_modules():
        features = getattr(module, "feature_info", None)
        if isinstance(features, list):
            names = [f["module"] for f in features if f.get("reduction") == 2**level and f.get("module")]
            return f"{path}.{names[-1]}".strip(".") if names else None
    return None


def blocks_of(run: Run) -> list[Call]:
    """Return the network's blocks, in the order of their results."""
    found, kinds = _open(run, run.model, set())
    # A kind that one stage repeats also counts as a block in a stage that has only one of it.
    found, kinds = _open(run, run.model, kinds)
    blocks = [block for block in found if block.kind in kinds]
    if not blocks:
        blocks = found if len(found) > 1 else _layer_blocks(run)
    # In a network for images and text, such as CLIP, blocks do not go into the part that takes only token ids.
    of_images = [block for block in blocks if not any(block.path.startswith(text) for text in run.texts)]
    return sorted(of_images or blocks, key=lambda block: block.order)


def _open(run: Run, module: nn.Module, known: set[object]) -> tuple[list[Call], set[object]]:
    """Return the blocks inside a module, at any depth, and the kinds that it repeats."""
    steps = _in_a_row(list(_steps(run, module)))
    times = Counter((call.kind, call.out_shape) for call in steps if run.is_map(call))
    rows = Counter(call.kind for call in steps if run.is_map(call))
    repeated = {kind for (kind, _), count in times.items() if count > 1} | (known & rows.keys())
    inside = {step: _inside(run, step, known) for step in steps if not is_row(step.module)}
    stages = {step.kind for step, (inner, _) in inside.items() if _is_long(inner)}
    kinds = repeated - stages
    found = []
    for step in steps:
        inner, inner_kinds = inside.get(step, ([], set()))
        if step not in inside:
            found += [step] * (run.is_map(step) and rows[step.kind] > 1)
        elif step.kind in kinds or (run.is_map(step) and not inner):
            found += [step] * run.is_map(step)
        else:
            found += inner
            kinds |= inner_kinds
    return found, kinds


def _is_long(blocks: list[Call]) -> bool:
    """Tell whether more than three blocks are alike: inside a block, modules repeat two or three times."""
    return max(Counter((block.kind, block.out_shape) for block in blocks).values(), default=0) > 3


def _inside(run: Run, outer: Call, known: set[object]) -> tuple[list[Call], set[object]]:
    """Return the blocks inside a module that is one or more stages; none if the module is a block.

    A block, too, may repeat a module in its branches, but with other channels than those of its result.
    """
    found, kinds = _open(run, outer.module, known)
    if not run.is_map(outer):
        return found, kinds
    times = Counter((call.kind, call.out_shape) for call in found)
    repeated = [call for call in found if times[call.kind, call.out_shape] > 1 or call.kind in known]
    ends = {math.prod(shape) for shape in (outer.in_shape, outer.out_shape)}
    last = max(repeated, key=lambda call: call.order, default=outer)
    if repeated and math.prod(last.out_shape) in ends:
        return repeated, kinds
    sizes = {run.size(call, run.layout(call.out_shape)) for call in repeated}
    end_sizes = {run.size(outer, run.layout(outer.out_shape)), outer.in_shape[2:][-2:], outer.in_shape[1:-1][-2:]}
    return (repeated, kinds) if not sizes <= end_sizes else ([], set())


def _steps(run: Run, module: nn.Module) -> Iterator[Call]:
    """Yield the children with weights that ran once and are not layers.

    A Sequential, a list that does not run, and a level of a U-Net with the next level inside are replaced by their
    children.
    """
    calls = [run.calls[child] for child in module.children() if child in run.calls]
    times = Counter((call.kind, call.out_shape) for call in calls)
    blocks = inserted_blocks(run.model).values()
    for child in module.children():
        if child in blocks or run.is_layer(child):
            continue
        if run.counts[child] == 0:
            yield from _steps(run, child)
        elif run.counts[child] == 1:
            call = run.calls[child]
            # A Sequential that is repeated is a block itself, as in ConvMixer.
            is_layer = has_one_matrix if times[call.kind, call.out_shape] > 1 else run.is_layer
            is_block = all(map(is_layer, child.children())) if is_row(child) else type(child) not in run.nests
            if is_block:
                yield call
            else:
                yield from _steps(run, child)


def _in_a_row(steps: list[Call]) -> list[Call]:
    """Leave out branches: similar steps that take the same tensor and return one shape. Blocks run in a row."""
    times = Counter((step.kind, step.source, step.out_shape) for step in steps)
    return [step for step in steps if step.source is None or times[step.kind, step.source, step.out_shape] == 1]


def _layer_blocks(run: Run) -> list[Call]:
    """Return the blocks of a network of layers: a convolution and the layers up to the next."""
    layers = [call for call in run.calls.values() if call.path and has_one_matrix(call.module) and run.is_map(call)]
    layers.sort(key=lambda call: call.order)
    starts = [n for n, call in enumerate(layers) if isinstance(call.module, _ConvNd)]
    blocks = []
    for start, end in pairwise([*starts, len(layers)]):
        same = [call for call in layers[start:end] if call.out_shape == layers[start].out_shape]
        blocks.append(replace(same[-1], parent=""))
    return blocks
