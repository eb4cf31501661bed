"""The factor on a group's sums.

Legend: B batch, C' inner channels, N positions, G groups, M = (C'/G)·N elements of one group.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from cgnl.ops.parallel import ProcessGroup, count_over_processes

Scale = Literal["sqrt", "mean"]


def sums_factor(
    scale: Scale | None, elements: int, features: Tensor, process_group: ProcessGroup | None = None
) -> float:
    """Return `scale_factor` for an input that may be split over processes; ``elements`` and features are this one's.

    Raises ValueError where the processes hold different numbers of samples, or the name is unknown.
    """
    # also without a scale: what the processes exchange has to fit; a compiler is spared the check
    if process_group is not None and (scale is not None or not torch.compiler.is_compiling()):
        elements = count_over_processes(elements, features, process_group)
    return scale_factor(scale, elements)


def scale_factor(scale: Scale | None, elements: int) -> float:
    """Return the factor on the sums over M elements: 1 (None), 1 / sqrt(M) (``"sqrt"``) or 1 / M (``"mean"``).

    It is 1 where there are no elements, because their sums are zero. Raises ValueError for another name.
    """
    if scale is None:
        return 1.0
    if scale not in get_args(Scale):
        raise ValueError(f"scale ({scale!r}) must be None, {' or '.join(map(repr, get_args(Scale)))}")
    # counts are tensors in a trace, whose powers would be in float32; of no elements every sum is zero
    count: Any = elements.double() if isinstance(elements, Tensor) else torch.sym_max(elements, 1)
    return count**-0.5 if scale == "sqrt" else 1.0 / count
