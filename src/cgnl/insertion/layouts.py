"""The layout of a network's maps, inferred from its layers.

Shapes: B batch, C channels, S spatial or space-time axes, N positions of a token sequence.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import pooling
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from cgnl.insertion.hook import Layout

Shape = tuple[int, ...]

_READ_CHANNELS_FIRST = (
    *(_NormBase, nn.GroupNorm, pooling._MaxPoolNd, pooling._AvgPoolNd),
    *(pooling._AdaptiveAvgPoolNd, pooling._AdaptiveMaxPoolNd),
)


def shape_of_first(values: tuple[Any, ...]) -> Shape:
    """Return the shape of the first value if it is a floating-point tensor that is not nested, else ()."""
    first = values[0] if values else None
    if isinstance(first, Tensor) and first.is_floating_point() and not first.is_nested:
        return tuple(first.shape)
    return ()


def layout_of(layer: nn.Module, shape: Shape) -> Layout | None:
    """Return the layout in which a layer reads a map of a shape, or None if the layer does not show it."""
    if isinstance(layer, _ConvNd):
        return "channels_first" if len(shape) == layer.weight.ndim else None
    if isinstance(layer, _READ_CHANNELS_FIRST):
        return "channels_first" if len(shape) > 2 else None
    # Subclasses of LayerNorm may permute the axes before and after.
    if isinstance(layer, nn.Linear) or (type(layer) is nn.LayerNorm and len(layer.normalized_shape) == 1):
        return "channels_last" if len(shape) > 2 else None
    return None


@contextmanager
def channels_last_shapes(model: nn.Module) -> Iterator[set[Shape]]:
    """Collect, while the context is open, the shapes of maps that clearly have their channels last.

    A layer norm reads such a map with its channels last, and no layer reads it with its channels first. Linear layers
    do not count here, because some mix positions.
    """
    shapes: dict[Layout, set[Shape]] = {"channels_first": set(), "channels_last": set()}
    found: set[Shape] = set()

    def record(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        in_shape = shape_of_first(args)
        layout = layout_of(layer, in_shape)
        if layout is not None:
            shapes[layout] |= {in_shape, shape_of_first((output,))}

    with ExitStack() as stack:
        for module in model.modules():
            if type(module) is nn.LayerNorm or isinstance(module, (_ConvNd, *_READ_CHANNELS_FIRST)):
                stack.enter_context(module.register_forward_hook(record))
        yield found
    found |= {shape for shape in shapes["channels_last"] - shapes["channels_first"] if shape[1] != shape[-1]}
