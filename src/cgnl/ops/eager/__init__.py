"""The operations in plain PyTorch at the least cost: the form that runs on a CPU, and the fallback elsewhere.

Each operation returns the type in which it sums (`sum_dtype`); the caller casts.
"""

from cgnl.ops.eager.block import cgnl_block, cgnl_block_affine, cgnl_block_batch_norm
from cgnl.ops.eager.pairs import generalized_non_local, non_local
from cgnl.ops.eager.series import (
    autocast_is_on,
    autograd_function_can_run,
    compact_generalized_non_local,
    feature_dtype,
    in_feature_dtype,
    is_empty,
    is_exporting,
    sum_dtype,
    without_autocast,
)

__all__ = [
    "autocast_is_on",
    "autograd_function_can_run",
    "cgnl_block",
    "cgnl_block_affine",
    "cgnl_block_batch_norm",
    "compact_generalized_non_local",
    "feature_dtype",
    "generalized_non_local",
    "in_feature_dtype",
    "is_empty",
    "is_exporting",
    "non_local",
    "sum_dtype",
    "without_autocast",
]
