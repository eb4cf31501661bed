"""The Triton kernels. Whoever imports this imports triton."""

from cgnl.ops.fused.kernels.branch import (
    branch_backward_kernel,
    branch_gradient_sums_kernel,
    branch_kernel,
    finish_kernel,
)
from cgnl.ops.fused.kernels.polynomial import polynomial_backward_kernel, polynomial_kernel
from cgnl.ops.fused.kernels.sums import (
    feature_sums_backward_kernel,
    feature_sums_kernel,
    moments_backward_kernel,
    moments_kernel,
    power_sums_backward_kernel,
    power_sums_kernel,
)

__all__ = [
    "branch_backward_kernel", "branch_gradient_sums_kernel", "branch_kernel", "feature_sums_backward_kernel",
    "feature_sums_kernel", "finish_kernel", "moments_backward_kernel", "moments_kernel",
    "polynomial_backward_kernel", "polynomial_kernel", "power_sums_backward_kernel", "power_sums_kernel",
]  # fmt: skip
