"""The compact generalized non-local operation and the CGNL block as Triton kernels behind PyTorch operators.

Forward reads x twice: pass one makes phi and g tile by tile and sums their products, pass two makes theta, applies
the polynomial and multiplies by conv_z. Backward makes the tiles again from x. Only x, the weights and P + 1 numbers
for each sample and group are kept for it.

Features are multiplied in the type of x and the weights; products, sums, powers and y are in float32. Importing this
does not import triton.

Legend: B batch, C channels, C' inner channels, S one to three spatial or space-time axes, N positions, G groups,
P order of the series.
"""

from cgnl.ops.fused.limits import envelope_width, obstacle
from cgnl.ops.fused.operations import (
    cgnl_block,
    cgnl_block_affine,
    cgnl_block_batch_norm,
    compact_generalized_non_local,
)

__all__ = [
    "cgnl_block", "cgnl_block_affine", "cgnl_block_batch_norm", "compact_generalized_non_local", "envelope_width",
    "obstacle",
]  # fmt: skip
