"""A run of the network that records the shapes of each module's input and output.

Shapes: B batch, C channels, S spatial or space-time axes, N positions of a token sequence.
"""

import math
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakIdKeyDictionary

from cgnl.insertion.hook import Layout, inserted_blocks
from cgnl.insertion.layouts import Shape, layout_of, shape_of_first
from cgnl.insertion.probe import run as run_network
from cgnl.insertion.probe import undisturbed


@dataclass(eq=False)
class Call:
    """A module's only call: its place in the order of results, and the shapes of its input and output."""

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
        """Whether it pools a map of any size to a single position, as squeeze-and-excitation does."""
        shapes = self.in_shape, self.out_shape
        first, last = ([math.prod(shape[axes]) for shape in shapes] for axes in (slice(2, None), slice(1, -1)))
        return len(self.in_shape) == len(self.out_shape) and (first[0] > first[1] == 1 or last[0] > last[1] == 1)

    @property
    def kind(self) -> object:
        """A key that similar modules share: the class, and for a Sequential also the classes of its elements."""
        return type(self.module), tuple(map(type, self.module.children())) if is_row(self.module) else ()


@dataclass
class Run:
    """A run of the network: the call of each module that ran exactly once, and how often each module ran."""

    model: nn.Module
    example_input: Any
    calls: dict[nn.Module, Call] = field(default_factory=dict)
    counts: Counter[nn.Module] = field(default_factory=Counter)
    first: tuple[bool, Shape] | None = None
    evidence: dict[Shape, set[Layout]] = field(default_factory=dict)
    nests: set[type[nn.Module]] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        num_frames = 1
        # New tensors may get the ids of tensors that are gone; these numbers are never given twice.
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
            self.calls[module] = Call(path, module, order, in_shape, out_shape, select, num_frames, parent, *ends)
            if has_one_matrix(module):
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

    def _is_nest(self, outer: Call) -> bool:
        """Tell whether modules of its own class lie inside a module, with maps of several sizes, as in a U-Net."""
        inside = (self.calls.get(module) for module in outer.module.modules() if type(module) is type(outer.module))
        shapes = {call.out_shape for call in inside if call is not None and self.is_map(call)}
        return not is_row(outer.module) and len({self.axes(shape, self.layout(shape)) for shape in shapes}) > 1

    def _learn(self, layer: nn.Module, in_shape: Shape, out_shape: Shape) -> None:
        """Note the layout that a layer reads and writes: convolutions have one, linear layers the other."""
        layout = layout_of(layer, in_shape)
        if layout is None:
            return
        for shape in (in_shape, out_shape):
            self.evidence.setdefault(shape, set()).add(layout)
        # A network may resize its input before its first convolution, as detectors do.
        if len(in_shape) > 2 and (self.first is None or isinstance(layer, _ConvNd) > self.first[0]):
            self.first = isinstance(layer, _ConvNd), in_shape

    def layout(self, shape: Shape) -> Layout | None:
        """Return the layout that layers give to maps of this shape, or None if they do not agree."""
        seen = self.evidence.get(shape, set())
        return next(iter(seen)) if len(seen) == 1 else None

    def size(self, call: Call, layout: Layout | None) -> Shape:
        """Return the sizes of a map's spatial axes: the number of tokens, or all axes of a video but time."""
        return self.axes(call.out_shape, layout)

    @staticmethod
    def axes(shape: Shape, layout: Layout | None) -> Shape:
        """Return the spatial sizes in a map's shape."""
        return (shape[2:] if layout == "channels_first" else shape[1:-1])[-2:]

    def level(self, call: Call, layout: Layout | None) -> int:
        """Return the base-2 logarithm, rounded, of the input's size over the map's size along a spatial axis."""
        assert self.first is not None
        is_convolution, shape = self.first
        axes = (shape[2:] if is_convolution else shape[1:-1])[-2:]
        positions = math.prod(self.size(call, layout))
        if call.num_axes == 1 and len(axes) == 2:
            positions = max(1, positions // call.num_frames)
        return round(math.log2(math.prod(axes) / positions) / len(axes))

    def is_layer(self, module: nn.Module) -> bool:
        """Tell whether a module is a layer, and not a block of one layer that does more than run its children."""
        call = self.calls.get(module)
        if not has_one_matrix(module) or call is None or call.in_shape != call.out_shape:
            return has_one_matrix(module)
        inner = [self.calls[child] for child in module.modules() if child is not module and child in self.calls]
        made = {call.source, *(child.result for child in inner)}
        used = {call.result, *(child.source for child in inner)}
        return is_row(module) or layout_of(module, call.in_shape) is not None or not inner or used <= made

    def is_map(self, call: Call) -> bool:
        """Tell whether a call returns a feature map of the whole batch; frames may be folded into the batch."""
        if self.first is None or not 3 <= len(call.out_shape) <= 5 or 0 in call.out_shape:
            return False
        if call.is_pooled:
            return False
        return self.first[1][0] % call.out_shape[0] == 0 and (call.num_axes != 2 or self._keeps_ratio(call.out_shape))

    def _keeps_ratio(self, shape: Shape) -> bool:
        """Tell whether height over width is that of the input, up to rounding; maps of pixels x patches differ."""
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


def has_one_matrix(module: nn.Module) -> bool:
    """Tell whether a module has at most one weight matrix, such as a convolution with its norm and activation."""
    weights = [weight for weight in module.parameters() if not is_lazy(weight) and weight.ndim > 1]
    return sum(weight.numel() > max(weight.shape) for weight in weights) < 2


def is_row(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
