"""The operations in plain PyTorch at the lowest cost: the form that runs on a CPU, and the fallback elsewhere.

Each operation returns the type in which it sums (`sum_dtype`); the caller casts.
"""

from cgnl.ops.eager.block import cgnl_block, cgnl_block_affine, cgnl_block_batch_norm
from cgnl.ops.eager.pairs import generalized_non_local, non_local
from cgnl.ops.eager.series import compact_generalized_non_local

__all__ = [
    "cgnl_block", "cgnl_block_affine", "cgnl_block_batch_norm", "compact_generalized_non_local",
    "generalized_non_local", "non_local",
]  # fmt: skip
