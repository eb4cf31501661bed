"""The CGNL block as ordinary differentiable operations: for tracers, transforms, gradients of gradients.

Legend: B batch, C channels, C' inner channels, S spatial or space-time axes, N positions, G groups.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cgnl.kernel_functions import KernelFunction
from cgnl.ops.eager.ending import Ending, Kind
from cgnl.ops.eager.maps import parts_of_batch
from cgnl.ops.eager.series import series, sum_dtype, without_autocast
from cgnl.ops.parallel import ProcessGroup

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


@dataclass(frozen=True)
class Settings:
    """What a block is told besides tensors; `ending` says what the norm's weight and bias are for."""

    groups: int
    kernel: KernelFunction
    coefficients: tuple[float, ...]
    feature_dtype: torch.dtype
    kind: Kind = "branch"
    eps: float = 0.0
    momentum: float = 0.0
    training: bool = True
    memory_efficient: bool = False
    process_group: ProcessGroup | None = None

    @property
    def is_dot_product(self) -> bool:
        return len(self.coefficients) == 2 and not self.coefficients[0]

    def parts(self, flat: Tensor) -> list[slice]:
        """The parts of the batch; one where processes add their sums, which they have to do equally often."""
        return [slice(None)] if self.process_group is not None else parts_of_batch(flat)

    def ending(self, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Ending:
        weight, bias = (None if t is None else t.to(dtype) for t in (weight, bias))
        return Ending(self.kind, weight, bias, self.eps, self.momentum)


def block_in_plain_operations(
    x: Tensor,
    theta_weight: Tensor,
    phi_weight: Tensor,
    g_weight: Tensor,
    z_weight: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    settings: Settings,
) -> Tensor:
    """The block as ordinary differentiable operations."""
    convolve = _CONVOLUTIONS[x.dim()]
    dtype = sum_dtype(x.dtype)
    with without_autocast(x):
        theta, phi, g = (
            convolve(x.to(settings.feature_dtype), weight.to(settings.feature_dtype)).flatten(2)
            for weight in (theta_weight, phi_weight, g_weight)
        )
        y = series(theta, phi, g, settings.groups, settings.kernel, settings.coefficients, settings.process_group)
        branch = convolve(y.to(dtype).unflatten(2, x.shape[2:]), z_weight.to(dtype), groups=settings.groups)
        ending = settings.ending(weight, bias, dtype)
        if ending.kind == "branch":
            return branch
        if ending.kind == "batch_norm":
            branch = F.batch_norm(branch, None, None, ending.weight, ending.bias, training=True, eps=ending.eps)
        else:
            for vector, apply in ((ending.weight, torch.mul), (ending.bias, torch.add)):
                if vector is not None:
                    branch = apply(branch, vector.unflatten(0, (-1, *(1,) * (x.dim() - 2))))
        return (x.to(dtype) + branch).to(x.dtype)
