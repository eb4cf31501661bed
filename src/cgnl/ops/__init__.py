"""The operations as functions on tensors: non-local, generalized non-local, and its compact form.

Legend: B batch, C channels, C' inner channels, S one to three spatial or space-time axes, N = prod(S)
positions, G groups of consecutive channels, M = (C'/G)·N elements of one group, P order of the series.

Every operation takes theta, phi and g as [B, C', *S], the outputs of the three 1x1 convolutions, and gives
[B, C', *S]. ``backend`` chooses the form that runs: ``"eager"`` (PyTorch at the lowest cost), ``"fused"`` (Triton
kernels on a CUDA device, of the compact operation alone), ``"naive"`` (explicit matrices, for checking) or ``"auto"``:
fused where it can run and has shown on the device that it agrees with eager, else eager.

Source: Yue et al., "Compact Generalized Non-local Network", NeurIPS 2018.
"""

from cgnl.ops import eager, fused, naive
from cgnl.ops.backends import Backend, PairsBackend, chosen_form
from cgnl.ops.block import cgnl_block, cgnl_block_with_norm
from cgnl.ops.compact import compact_generalized_non_local
from cgnl.ops.norm import BatchNorm
from cgnl.ops.pairs import Pairwise, generalized_non_local, non_local, read_only_non_local
from cgnl.ops.scale import Scale, scale_factor, sums_factor

__all__ = [
    "Backend", "BatchNorm", "PairsBackend", "Pairwise", "Scale", "cgnl_block", "cgnl_block_with_norm",
    "chosen_form", "compact_generalized_non_local", "eager", "fused", "generalized_non_local", "naive", "non_local",
    "read_only_non_local", "scale_factor", "sums_factor",
]  # fmt: skip
