"""The sums of a compact block: read, or others put in their place.

A compact block relates positions through the sums z_p of Eq. 12 alone; a covariance or correlation is z_1.

Legend: B batch, C channels, C' inner channels, S spatial or space-time axes, N positions, G groups, P order of the
series.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cgnl.blocks.compact import CGNL1d, CGNL2d, CGNL3d
from cgnl.blocks.kinds import features
from cgnl.blocks.shell import Block
from cgnl.ops.eager.series import power_sums, scaled_coefficients, varying_part
from cgnl.ops.precision import sum_dtype, without_autocast
from cgnl.ops.statistics import at_each_channel

CompactBlock = CGNL1d | CGNL2d | CGNL3d


def sums_of(block: CompactBlock, x: Tensor) -> Tensor:
    """Return the sums z [B, G, P + 1] of a block for its input x [B, C, *S], in the type in which they run.

    z_p has its coefficient and the scale in it. It is 0 where the coefficient is 0, and powers after the last other
    coefficient are left out.
    """
    return _theta_and_sums(block, x)[1]


@contextmanager
def replaced_sums(block: CompactBlock, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Run a block with ``replace(z)`` in place of its sums z, which are those of `sums_of`, whatever its backend."""
    # the compact blocks' own go from x to conv_z, or to Z, in one operation
    whole = {name: partial(getattr(Block, name), block) for name in ("_branch", "_through_operations")}
    with swapped(block, _operation=partial(_operation, block, replace), **whole):
        yield


@contextmanager
def swapped(module: nn.Module, **methods: Any) -> Iterator[None]:
    """Give a module other methods for a while."""
    own = vars(module)
    before = {name: own[name] for name in methods if name in own}
    own.update(methods)
    try:
        yield
    finally:
        for name in methods:
            del own[name]
        own.update(before)


def _operation(block: Any, replace: Any, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
    """Return Y of x, [B, C', *S], with other sums."""
    with without_autocast(x):
        theta, z, coefficients = _theta_and_sums(block, x)
        columns = [at_each_channel(column, theta.shape[1]) for column in replace(z).unbind(2)]
        powers = [column if a2 else None for column, a2 in zip(columns, coefficients, strict=True)]
        y = varying_part(theta, powers, block.kernel)
        y = y if powers[0] is None else y + powers[0]
    return y.unflatten(2, x.shape[2:]).to(out_dtype or x.dtype)


def _theta_and_sums(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Sequence[float]]:
    """Return theta [B, C', N], z [B, G, P + 1] and the coefficients in it."""
    if block.process_group is not None:
        raise ValueError("block must see whole samples, but its process_group splits them over processes")
    with without_autocast(x):
        found: Any = features(block, x.to(sum_dtype(x.dtype)))
        theta, phi, g = (t.flatten(2) for t in (found.theta, found.phi, found.g))
        envelope = block.kernel.envelope(phi)
        coefficients = scaled_coefficients(block.kernel, found.factor)
        powers = power_sums(phi, g if envelope is None else g * envelope, found.groups, coefficients)
        z = torch.cat([torch.zeros_like(phi[..., :1]) if z_p is None else z_p for z_p in powers], dim=2)
    return theta, z[:, :: phi.shape[1] // found.groups], coefficients
