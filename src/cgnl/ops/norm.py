"""A description of the norm after conv_z, for the operations that have it inside.

Legend: C channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class BatchNorm(NamedTuple):
    """BatchNorm as tensors and numbers.

    Attributes:
        weight: [C], or None for 1.
        bias: [C], or None for 0.
        running_mean: [C], or None for a norm without running statistics.
        running_var: [C], or None for a norm without running statistics.
        num_batches: Counts the batches in the running statistics; a tensor without axes, or None.
        eps: Is added to the variance.
        momentum: The part of a batch in the running statistics; None for the mean of all batches.
        training: Whether it normalises with the statistics of the batch and moves the running ones towards them.
        is_synchronized: Whether it is a norm over several processes.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches: Tensor | None
    eps: float
    momentum: float | None
    training: bool
    is_synchronized: bool

    @property
    def is_over_batch(self) -> bool:
        """Whether the statistics are those of the batch."""
        return self.training or self.running_mean is None

    def as_affine(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the scale and the shift, [C] each, that the norm is with its running statistics."""
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = (self.running_var.to(dtype) + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight.to(dtype)
        shift = -self.running_mean.to(dtype) * scale
        return scale, shift if self.bias is None else shift + self.bias.to(dtype)

    def count_batch(self) -> float:
        """Count one more batch, and return its part in the running statistics."""
        if not self.training or self.running_mean is None:
            return 0.0
        if self.num_batches is not None:
            self.num_batches.add_(1)
        if self.momentum is not None:
            return self.momentum
        return 0.0 if self.num_batches is None else 1.0 / float(self.num_batches)
