"""The paper's places for blocks, found in a network by a run on the example input.

Shapes: B batch, C channels, S spatial or space-time axes, N positions of a token sequence.

Blocks are what a network repeats: modules of one class with outputs of one shape under one parent (or, in a
network of layers alone, a convolution and the layers up to the next). A stage is a row of them whose maps have
one size.
"""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import count, groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakIdKeyDictionary

from cgnl.insertion.hook import Layout, inserted_blocks
from cgnl.insertion.layouts import Shape, layout_of, shape_of_first
from cgnl.insertion.nested import Select
from cgnl.insertion.probe import run as run_network
from cgnl.insertion.probe import undisturbed

_PAPERS_LEVEL = 4  # res4: a map of 1/2^4 of the input along each spatial axis
_BLOCK_FOR = {1: "CGNL1d", 2: "CGNL2d", 3: "CGNL3d"}
_WORDS = {
    (1, "channels_first"): "[B, C, L]",
    (2, "channels_first"): "[B, C, H, W]",
    (3, "channels_first"): "[B, C, T, H, W]",
    (1, "channels_last"): "tokens [B, N, C]",
    (2, "channels_last"): "[B, H, W, C]",
    (3, "channels_last"): "[B, T, H, W, C]",
}


class Places(NamedTuple):
    """Paths that blocks stand after, layout and keys of the maps in the outputs there, and words that say so."""

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
    """Find the paper's places for blocks: one right before the last block of the stage at 1/16 of the input.

    Args:
        model: Any network.
        example_input: What the network is called with.
        num_blocks: Number of blocks: the larger half goes into that stage, the rest into the stage before.
        num_axes: Number of axes besides batch and channels that the blocks take, where it is known.
        layout: Layout of the maps, where it is known.

    Returns:
        The paths, from the input on; fewer than ``num_blocks`` where no more fit.

    Raises:
        ValueError: There is no such place, or the layout of its map cannot be told.
    """
    run = _Run(model, example_input)
    stages = _Stages(run, num_axes, layout)
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


@dataclass(eq=False)
class _Call:
    """A module's only call: its place in the order of results, and the shapes that it took and gave."""

    path: str
    module: nn.Module
    order: int
    in_shape: Shape
    out_shape: Shape
    select: int | None
    num_frames: int
    parent: str
    source: int | None
    result: int | None

    @property
    def num_axes(self) -> int:
        return len(self.out_shape) - 2

    @property
    def is_pooled(self) -> bool:
        """Whether it makes a single position of a map, at any size of the map, as squeeze and excitation do."""
        shapes = self.in_shape, self.out_shape
        first, last = ([math.prod(shape[axes]) for shape in shapes] for axes in (slice(2, None), slice(1, -1)))
        return len(self.in_shape) == len(self.out_shape) and (first[0] > first[1] == 1 or last[0] > last[1] == 1)

    @property
    def kind(self) -> object:
        """What modules that are alike have in common: the class; of a Sequential its elements' classes too."""
        return type(self.module), tuple(map(type, self.module.children())) if _is_row(self.module) else ()


@dataclass
class _Run:
    """A run of the network: the only call of each module that ran once, and how often the modules ran."""

    model: nn.Module
    example_input: Any
    calls: dict[nn.Module, _Call] = field(default_factory=dict)
    counts: Counter[nn.Module] = field(default_factory=Counter)
    first: tuple[bool, Shape] | None = None
    evidence: dict[Shape, set[Layout]] = field(default_factory=dict)
    nests: set[type[nn.Module]] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        num_frames = 1
        # Ids are given to new tensors once the old ones are gone; these numbers are not.
        numbers, unused = WeakIdKeyDictionary(), count()

        def number(values: tuple[Any, ...]) -> int | None:
            return numbers.setdefault(values[0], next(unused)) if shape_of_first(values) else None

        def record(path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            nonlocal num_frames
            select = 0 if isinstance(output, tuple) else None
            given, results = (*args, *kwargs.values()), (output,) if select is None else output
            in_shape, out_shape = shape_of_first(given), shape_of_first(results)
            if isinstance(module, nn.Conv3d) and len(out_shape) == 5:
                num_frames = out_shape[2]
            self.counts[module] += 1
            order, parent = self.counts.total(), path.rpartition(".")[0]
            tensors = [value for value in given if isinstance(value, Tensor)]
            if any(t.dtype == torch.long for t in tensors) and not any(t.is_floating_point() for t in tensors):
                self.texts.add(f"{path}.")
            ends = number(given), number(results)
            self.calls[module] = _Call(path, module, order, in_shape, out_shape, select, num_frames, parent, *ends)
            if _is_layer(module):
                self._learn(module, in_shape, out_shape)

        of_blocks = {module for block in inserted_blocks(self.model).values() for module in block.modules()}
        with ExitStack() as stack:
            for path, module in self.model.named_modules():
                if module not in of_blocks and not isinstance(module, torch.jit.ScriptModule):
                    hook = _with_path(record, path)
                    stack.enter_context(module.register_forward_hook(hook, with_kwargs=True, prepend=True))
            stack.enter_context(undisturbed(self.model))
            run_network(self.model, (), self.example_input)
        self.calls = {module: call for module, call in self.calls.items() if self.counts[module] == 1}
        self.nests = {type(call.module) for call in self.calls.values() if self._is_nest(call)}

    def _is_nest(self, outer: _Call) -> bool:
        """Whether a module has one of its own class inside with a map of another size, as the levels of a U-Net do."""
        inside = (self.calls.get(module) for module in outer.module.modules() if type(module) is type(outer.module))
        shapes = {call.out_shape for call in inside if call is not None and self.is_map(call)}
        return not _is_row(outer.module) and len({self.axes(shape, self.layout(shape)) for shape in shapes}) > 1

    def _learn(self, layer: nn.Module, in_shape: Shape, out_shape: Shape) -> None:
        """Note which layouts the layers read and write: convolutions one, linear layers the other."""
        layout = layout_of(layer, in_shape)
        if layout is None:
            return
        for shape in (in_shape, out_shape):
            self.evidence.setdefault(shape, set()).add(layout)
        # A network may resize its input before its first convolution, as detectors do.
        if len(in_shape) > 2 and (self.first is None or isinstance(layer, _ConvNd) > self.first[0]):
            self.first = isinstance(layer, _ConvNd), in_shape

    def layout(self, shape: Shape) -> Layout | None:
        """The one layout that layers give to maps of this shape, None where they do not agree."""
        seen = self.evidence.get(shape, set())
        return next(iter(seen)) if len(seen) == 1 else None

    def size(self, call: _Call, layout: Layout | None) -> Shape:
        """The spatial axes of a map; of tokens their number, of videos all but time."""
        return self.axes(call.out_shape, layout)

    @staticmethod
    def axes(shape: Shape, layout: Layout | None) -> Shape:
        """The spatial axes of a map's shape."""
        return (shape[2:] if layout == "channels_first" else shape[1:-1])[-2:]

    def level(self, call: _Call, layout: Layout | None) -> int:
        """The power of two nearest to the input's size over the map's, along a spatial axis."""
        assert self.first is not None
        is_convolution, shape = self.first
        axes = (shape[2:] if is_convolution else shape[1:-1])[-2:]
        positions = math.prod(self.size(call, layout))
        if call.num_axes == 1 and len(axes) == 2:
            positions = max(1, positions // call.num_frames)
        return round(math.log2(math.prod(axes) / positions) / len(axes))

    def is_layer(self, module: nn.Module) -> bool:
        """Whether a module is a layer here: no block of one layer that does more than call its children in a row."""
        call = self.calls.get(module)
        if not _is_layer(module) or call is None or call.in_shape != call.out_shape:
            return _is_layer(module)
        inner = [self.calls[child] for child in module.modules() if child is not module and child in self.calls]
        made = {call.source, *(child.result for child in inner)}
        used = {call.result, *(child.source for child in inner)}
        return _is_row(module) or layout_of(module, call.in_shape) is not None or not inner or used <= made

    def is_map(self, call: _Call) -> bool:
        """Whether a call gives a feature map of the whole batch; frames may be folded into the batch."""
        if self.first is None or not 3 <= len(call.out_shape) <= 5 or 0 in call.out_shape:
            return False
        if call.is_pooled:
            return False
        return self.first[1][0] % call.out_shape[0] == 0 and (call.num_axes != 2 or self._keeps_ratio(call.out_shape))

    def _keeps_ratio(self, shape: Shape) -> bool:
        """Whether height over width is that of the input, but for rounding; pixels x patches have another."""
        assert self.first is not None
        is_convolution, of_input = self.first
        height, width = (of_input[2:] if is_convolution else of_input[1:-1])[-2:] if len(of_input) > 3 else (1, 1)
        layout = self.layout(shape)
        sizes = [shape[2:]] * (layout != "channels_last") + [shape[1:3]] * (layout != "channels_first")
        return any(
            abs(math.log2(size[0] * width / (size[1] * height))) < 1 or abs(size[0] - size[1] * height / width) <= 1
            for size in sizes
        )


def _with_path(record: Any, path: str) -> Any:
    return lambda *call: record(path, *call)


def _is_layer(module: nn.Module) -> bool:
    """Whether a module has at most one matrix of weights: a convolution, also with its norm and activation."""
    weights = [weight for weight in module.parameters() if not is_lazy(weight) and weight.ndim > 1]
    return sum(weight.numel() > max(weight.shape) for weight in weights) < 2


def _is_row(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _blocks(run: _Run) -> list[_Call]:
    """The network's blocks, in the order of their results."""
    found, kinds = _open(run, run.model, set())
    # A kind that is repeated in one stage counts as a block in the stage that has one of it too.
    found, kinds = _open(run, run.model, kinds)
    blocks = [block for block in found if block.kind in kinds]
    if not blocks:
        blocks = found if len(found) > 1 else _layer_blocks(run)
    # In a network of images and text, such as CLIP, the part that takes the token ids alone is not meant.
    of_images = [block for block in blocks if not any(block.path.startswith(text) for text in run.texts)]
    return sorted(of_images or blocks, key=lambda block: block.order)


def _open(run: _Run, module: nn.Module, known: set[object]) -> tuple[list[_Call], set[object]]:
    """The blocks inside a module, and the kinds of which it has several: its own children, or those inside them."""
    steps = _in_a_row(list(_steps(run, module)))
    times = Counter((call.kind, call.out_shape) for call in steps if run.is_map(call))
    rows = Counter(call.kind for call in steps if run.is_map(call))
    repeated = {kind for (kind, _), count in times.items() if count > 1} | (known & rows.keys())
    inside = {step: _inside(run, step, known) for step in steps if not _is_row(step.module)}
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


def _is_long(blocks: list[_Call]) -> bool:
    """Whether more than three are alike: what a block repeats, it repeats two or three times."""
    return max(Counter((block.kind, block.out_shape) for block in blocks).values(), default=0) > 3


def _inside(run: _Run, outer: _Call, known: set[object]) -> tuple[list[_Call], set[object]]:
    """The blocks in a module that is a stage, or several; none in a block.

    A block may repeat a module in its branches as well, with other channels than its result has.
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


def _steps(run: _Run, module: nn.Module) -> Iterator[_Call]:
    """The children with weights that ran once and are no layers.

    A Sequential, an idle list and a level of a U-Net with the next level inside are looked through.
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
            is_layer = _is_layer if times[call.kind, call.out_shape] > 1 else run.is_layer
            is_block = all(map(is_layer, child.children())) if _is_row(child) else type(child) not in run.nests
            if is_block:
                yield call
            else:
                yield from _steps(run, child)


def _in_a_row(steps: list[_Call]) -> list[_Call]:
    """All but those alike that take the same tensor and give one shape: branches, while blocks follow one another."""
    times = Counter((step.kind, step.source, step.out_shape) for step in steps)
    return [step for step in steps if step.source is None or times[step.kind, step.source, step.out_shape] == 1]


def _layer_blocks(run: _Run) -> list[_Call]:
    """In a network of layers alone, the last layer before each convolution with the map of the one before it."""
    layers = [call for call in run.calls.values() if call.path and _is_layer(call.module) and run.is_map(call)]
    layers.sort(key=lambda call: call.order)
    starts = [n for n, call in enumerate(layers) if isinstance(call.module, _ConvNd)]
    blocks = []
    for start, end in pairwise([*starts, len(layers)]):
        same = [call for call in layers[start:end] if call.out_shape == layers[start].out_shape]
        blocks.append(replace(same[-1], parent=""))
    return blocks


class _Stages:
    """The stages of a network, in the order of their results.

    Args:
        run: A run of the network.
        num_axes: Number of axes besides batch and channels that the blocks take, where it is known.
        layout: Layout of the maps, where it is known.
    """

    def __init__(self, run: _Run, num_axes: int | None, layout: Layout | None) -> None:
        self._named = {level: _named_by_timm(run.model, level) for level in (_PAPERS_LEVEL - 1, _PAPERS_LEVEL)}
        blocks = self._named_alone(run, found) if (found := _blocks(run)) else []
        self.layouts = {block: layout or _layout(run, block, blocks) for block in blocks}
        told = [known for known in self.layouts.values() if known is not None]
        guess: Layout = Counter(told).most_common(1)[0][0] if told else "channels_first"
        self._levels = {block: run.level(block, self.layouts[block] or guess) for block in blocks}
        # Those of other axes may lie between, as attention on tokens does between convolutions.
        fitting = [block for block in blocks if num_axes in (None, block.num_axes)]
        others = [block for block in blocks if block not in fitting]
        self.all = sorted([*self._rows(fitting), *self._rows(others)], key=lambda stage: stage[-1].order)
        self._num_axes = num_axes

    def _rows(self, blocks: list[_Call]) -> list[list[_Call]]:
        rows = groupby(blocks, key=lambda block: (block.parent, block.num_axes, self._levels[block]))
        return [list(row) for _, row in rows]

    def _named_alone(self, run: _Run, blocks: list[_Call]) -> list[_Call]:
        """The blocks; where none lies in the stage at 1/16 that timm names, the stages themselves."""
        named = self._named[_PAPERS_LEVEL]
        if named is None or any(_overlap(block.path, named) for block in blocks):
            return blocks
        calls = [call for call in run.calls.values() if call.path in self._named.values() and run.is_map(call)]
        calls = sorted((call for call in calls if not _is_layer(call.module)), key=lambda call: call.order)
        return calls if any(call.path == named for call in calls) else blocks

    def chosen(self) -> int:
        """The stage that timm names for 1/16 of the input; else the last at 1/16; else the last but one.

        One whose maps have the right number of axes comes first, but only among those of one size.
        """
        named = self._named[_PAPERS_LEVEL]
        of_timm = [n for n, stage in enumerate(self.all) if named and any(_overlap(b.path, named) for b in stage)]
        depths = [self._levels[stage[-1]] for stage in self.all]
        # Behind the first stage whose map is larger than the one before it come decoders and heads.
        trunk = next((n for n, (one, two) in enumerate(pairwise(depths), 1) if two < one), len(depths))
        at_papers = [[n for n, depth in enumerate(depths[:end]) if depth == _PAPERS_LEVEL] for end in (trunk, None)]
        for candidates in (of_timm, *at_papers):
            if candidates:
                return max(candidates, key=lambda n: (self._num_axes in (None, self.all[n][-1].num_axes), n))
        return max(0, trunk - 2)

    def before(self, chosen: int) -> list[_Call]:
        """The stage before one, if its maps are of the same kind."""
        last = self.all[chosen][-1]
        alike = [stage for stage in self.all[:chosen] if stage[-1].num_axes == last.num_axes]
        return alike[-1] if alike and self.layouts[alike[-1][-1]] == self.layouts[last] else []


def _layout(run: _Run, block: _Call, blocks: list[_Call]) -> Layout | None:
    """The layout of a block's map; where layers do not tell, as with C = H = W, that of others of its kind."""
    own = run.layout(block.out_shape)
    others = {run.layout(other.out_shape) for other in blocks if other.kind == block.kind} - {None}
    return own or (others.pop() if len(others) == 1 else None)


def _overlap(path: str, other: str) -> bool:
    """Whether two paths are of one module, or of one inside the other."""
    return f"{path}.".startswith(f"{other}.") or f"{other}.".startswith(f"{path}.")


def _named_by_timm(model: nn.Module, level: int) -> str | None:
    """The path of the last module at a level in the ``feature_info`` of a timm network, in or around others too."""
    for path, module in model.named_modules():
        features = getattr(module, "feature_info", None)
        if isinstance(features, list):
            names = [f["module"] for f in features if f.get("reduction") == 2**level and f.get("module")]
            return f"{path}.{names[-1]}".strip(".") if names else None
    return None


def _refuse_batch_second(run: _Run, block: _Call) -> None:
    """Raise ValueError where a sequence may be [N, B, C], whose samples a block would mix."""
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


def _spread(stage: list[_Call], num_blocks: int) -> list[_Call]:
    """As in the paper: one right before the last of a stage, several at even distances, at most every other one."""
    num_blocks = min(num_blocks, max(1, len(stage) // 2), len(stage))
    if num_blocks < 2:
        return stage[-2:][:num_blocks]
    step = len(stage) // num_blocks
    return stage[step - 1 :: step][:num_blocks]


def _words(taken: list[_Call], layout: Layout) -> str:
    """The line that says where blocks were put; of several maps, whose shapes may differ, the axes alone."""
    axes = _WORDS[taken[0].num_axes, layout]
    if len(taken) == 1:
        on = f"the {axes if axes.startswith('tokens') else f'map {axes}'} = {list(taken[0].out_shape)}"
        return f"put 1 block after {taken[0].path}, on {on} ({layout})"
    on = axes if axes.startswith("tokens") else f"maps {axes}"
    return f"put {len(taken)} blocks after {', '.join(call.path for call in taken)}, on {on} ({layout})"


def _nothing_found(run: _Run, blocks: list[_Call], num_axes: int | None) -> str:
    name = type(run.model).__name__
    if blocks and num_axes is not None:
        call = blocks[-1]
        layout = run.layout(call.out_shape)
        shape = f"{_WORDS[call.num_axes, layout]} = {list(call.out_shape)}" if layout else str(list(call.out_shape))
        return (
            f"blocks: they take {num_axes} {'axis' if num_axes == 1 else 'axes'} besides batch and channels, but the "
            f"maps in {name} have {call.num_axes}, such as {shape} after {call.path!r}; "
            f"give a block like cgnl.{_BLOCK_FOR[call.num_axes]}"
        )
    maps = [call for call in run.calls.values() if call.path and 3 <= len(call.out_shape) <= 5]
    seen = ", ".join(f"{call.path} {list(call.out_shape)}" for call in maps[-8:]) or "none"
    return (
        f"blocks: no place was found in {name}; give paths, such as {{'layer3.4': cgnl.CGNL2d}} "
        f"(modules that ran once and whose output is a map: {seen})"
    )
