"""What a machine can do at best: its measured rate of matrix products and bandwidth of copies, and floors from them.

Legend: B batch, C channels, C' inner channels, N positions, G groups.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from cgnl.measure.timing import rounded, side_by_side


@dataclass(frozen=True)
class Rooflines:
    """Rates of one machine in one run: multiply-adds of a square matrix product by type, and bytes of a copy."""

    multiplications_per_second: dict[str, float]
    bytes_per_second: float

    def floor(self, multiplications: float, num_bytes: float, dtype: str) -> float:
        """Return the seconds that these multiplications and bytes, read or written, take at these rates."""
        return multiplications / self.multiplications_per_second[dtype] + num_bytes / self.bytes_per_second

    def as_json(self) -> dict[str, Any]:
        """Return the rates as they stand in a record."""
        return {
            "multiplications_per_second": {
                name: rounded(rate) for name, rate in self.multiplications_per_second.items()
            },
            "bytes_per_second": rounded(self.bytes_per_second),
        }


def measure_rooflines(device: str, dtypes: Sequence[str], *, smallest: bool = False) -> Rooflines:
    """Measure the rates of a device; each is the best of several turns, because floors are made from them."""
    side, megabytes = (256, 1) if smallest else (8192, 1024) if device == "cuda" else (2048, 256)
    rates = {}
    for name in dtypes:
        matrix = torch.randn(side, side, device=device).to(getattr(torch, name))
        result = torch.empty_like(matrix)
        rates[name] = side**3 / _best_seconds(partial(torch.mm, matrix, matrix, out=result))
    source = torch.ones(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    return Rooflines(rates, 2 * source.nbytes / _best_seconds(lambda: target.copy_(source)))


def _best_seconds(run: Callable[[], object]) -> float:
    return min(side_by_side({"": run}, repeats=7, warmup=2, least_seconds=0.02)[""])


def block_work(shape: Sequence[int], groups: int, element_size: int) -> dict[str, tuple[int, int]]:
    """Return the fewest multiplications and bytes of a CGNL block on x [B, C, *S], for "forward" and "training".

    The multiplications are those of its four 1x1 convolutions, with C' = C / 2; the backward pass has twice those of
    the forward pass. The bytes are reading x and writing z, then reading x and dz and writing dx.

    >>> block_work((1, 4, 3), 2, 4)
    {'forward': (84, 96), 'training': (252, 240)}
    """
    batch, channels, *axes = shape
    positions = batch * math.prod(axes)
    inner = channels // 2
    products = positions * (3 * channels * inner + channels * inner // groups)
    size = positions * channels * element_size
    return {"forward": (products, 2 * size), "training": (3 * products, 5 * size)}
