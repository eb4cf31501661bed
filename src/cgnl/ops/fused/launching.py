"""Launching kernels: tile sizes, the precision of products, and how often each kernel ran.

Legend: C channels, C' inner channels, c = C'/G, N positions, G groups.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cgnl.ops.fused.series import WIDEST_GROUP
from cgnl.ops.maps import kernel_strides

# How often each kernel was launched in this process, by its name.
launches: Counter[str] = Counter()


def launch(kernel: Any, num_programs: int, *arguments: Any, **settings: Any) -> None:
    """Run a kernel on a grid of one axis, on the device of its first argument."""
    launches[kernel.fn.__name__] += 1
    with torch.cuda.device_of(arguments[0]):
        kernel[(num_programs,)](*arguments, **settings)


def arguments(tensors: Sequence[Tensor | None], maps: Sequence[Tensor | None], numbers: Sequence[Any]) -> list[Any]:
    """Return what a kernel takes: tensors, strides of those that are maps, in the first one's format, and numbers."""
    like = next(flat for flat in maps if flat is not None)
    return [*tensors, *(None if flat is None else kernel_strides(flat, like) for flat in maps), *numbers]


def elementwise_sizes(features: int, positions: int) -> dict[str, int]:
    """Return tile sizes of a kernel that only loads and stores: 16 numbers of a tile for each thread."""
    return {"BLOCK_F": _power_of_2(features, 16), "BLOCK_N": _power_of_2(positions, 128), "num_warps": 4}


def sums_sizes(channels: int, features: int, positions: int, dtype: torch.dtype) -> dict[str, int]:
    """Return tile sizes of a kernel that makes tiles of phi and g, [features, positions], at a time."""
    block_f = _power_of_2(features, 64)
    block_n = _power_of_2(positions, 64 if dtype == torch.float32 else 128)
    return {"BLOCK_F": block_f, "BLOCK_N": block_n, **_product_sizes(channels, block_f * block_n, dtype)}


def branch_sizes(
    channels: int, features: int, groups: int, positions: int, dtype: torch.dtype, backward: bool
) -> dict[str, int]:
    """Return tile sizes of a kernel that holds a tile of all features of a group: one, or in backward several.

    Wider groups get fewer positions, so that the tiles stay in registers.
    """
    block_f = _power_of_2(features, WIDEST_GROUP)
    numbers = 8192 >> (backward + (dtype == torch.float32))
    block_n = _power_of_2(positions, numbers // max(block_f, 64))
    return {
        "BLOCK_F": block_f,
        "BLOCK_N": block_n,
        "BLOCK_O": _power_of_2(channels // groups, 32 if dtype == torch.float32 else 64),
        **_product_sizes(channels, block_f * block_n, dtype),
    }


def num_tiles(size: int, block: int) -> int:
    return -(-size // block)


def product_precision(dtype: torch.dtype) -> str:
    """Return the precision of float32 products in kernels: PyTorch's own where the input is float32, else TF32.

    TF32 has the range of float32, which y needs, and no fewer digits than the half types.
    """
    return "ieee" if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32" else "tf32"


def _product_sizes(channels: int, tile: int, dtype: torch.dtype) -> dict[str, int]:
    """Keep the operands in the shared memory of the smallest device that is meant (compute capability 8.0, 163 KB)."""
    half = dtype != torch.float32
    return {
        "BLOCK_C": _power_of_2(channels, 64 if half else 32),
        "num_warps": 8 if tile >= 4096 else 4,
        "num_stages": 3 if half else 2,
    }


def _power_of_2(size: int, limit: int) -> int:
    """Return the smallest power of 2 that holds the size, from 16 (the minimum of a product) up to the limit."""
    return min(limit, max(16, 1 << (size - 1).bit_length()))
