"""What does the dot-product non-local operation gain from the cheaper order of its three matrices?

theta, phi and g are given; forward and backward, in turns with the way through the N x N map. And how the largest
tensor of either way grows with N, forward and backward, counted without running anything (meta tensors). Run on a
machine that does nothing else:

    python studies/non_local.py
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cgnl.measure.timing import ratios, side_by_side, spread
from cgnl.ops import non_local
from script import begin, study, write

SHAPE = (2, 512, 16, 28, 28)
FRAMES = (2, 4, 8, 16, 32)


def cheaper_order(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    """Compute the package's operation."""
    return non_local(theta, phi, g, pairwise="dot_product")


def through_the_map(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    """Compute (theta phi^T) g / N in the order in which Eq. 4 is printed."""
    rows, columns, values = (t.flatten(2) for t in (theta, phi, g))
    affinity = torch.matmul(rows.transpose(1, 2), columns) / columns.shape[2]
    return torch.matmul(values, affinity.transpose(1, 2)).view_as(g)


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return result


def training_step(operation: Callable[..., Tensor], features: list[Tensor], dy: Tensor) -> Callable[[], None]:
    """Return a function that runs forward and backward; each gradient is made again."""

    def step() -> None:
        for feature in features:
            feature.grad = None
        operation(*features).backward(dy)

    return step


def largest_bytes(operation: Callable[..., Tensor], frames: int) -> int:
    """Return the bytes of the largest tensor of one training step with so many frames."""
    shape = (*SHAPE[:2], frames, *SHAPE[3:])
    features = [torch.empty(shape, device="meta", requires_grad=True) for _ in range(3)]
    with LargestTensor() as largest:
        operation(*features).backward(torch.empty(shape, device="meta"))
    return largest.bytes


def main() -> None:
    """Measure time at the shape of the task and memory over the number of frames, and write the record."""
    arguments = begin(study(__file__, __doc__, repeats=5))
    operations = {"cheaper_order": cheaper_order, "through_the_map": through_the_map}

    features = [torch.randn(SHAPE, requires_grad=True) for _ in range(3)]
    dy = torch.randn(SHAPE)
    with torch.no_grad():
        difference = (cheaper_order(*features) - through_the_map(*features)).norm() / through_the_map(*features).norm()
    steps = {name: training_step(operation, features, dy) for name, operation in operations.items()}
    seconds = side_by_side(steps, repeats=arguments.repeats, warmup=1)
    timing = {
        "shape": SHAPE,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "map_over_cheaper_order": ratios(seconds["through_the_map"], seconds["cheaper_order"]),
        "relative_difference": float(f"{difference.item():.2g}"),
    }
    memory = [
        {
            "frames": frames,
            "positions": frames * SHAPE[3] * SHAPE[4],
            "largest_tensor_bytes": {name: largest_bytes(operation, frames) for name, operation in operations.items()},
        }
        for frames in FRAMES
    ]
    print(f"{SHAPE}: the N x N map takes {timing['map_over_cheaper_order']['median']:.1f} times as long")
    for row in memory:
        print(row)
    write(arguments, [timing, *memory], repeats=arguments.repeats, dtype="float32")


if __name__ == "__main__":
    main()
