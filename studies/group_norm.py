"""How much of the scalar phi^T g survives GroupNorm, and BatchNorm?

In a dot-product CGNL block each sample and group has one scalar s = phi^T g, and conv_z sees s·theta. This replaces
s by its sign and measures how much the normalised branch changes (relative to its size), and how large phi's weight
gradient is beside theta's, at several scales of the convolutions' weights. 0 means that the block's attention does
nothing.

    python studies/group_norm.py
"""

from typing import Any

import torch
from torch import Tensor, nn

import cgnl
from script import begin, study, write

CHANNELS, GROUPS = 512, 8
SHAPE = (8, CHANNELS, 14, 14)
WEIGHT_SCALES = (0.01, 0.05, 0.2, 1.0)
SEEDS = 5


class SignOfScalar(cgnl.CGNL2d):
    """The block with s replaced by its sign."""

    def branch(self, x: Tensor, *, sign_only: bool) -> Tensor:
        """Return the normalised branch, before the residual."""
        theta, phi, g = (
            convolution(x).unflatten(1, (self.groups, -1)) for convolution in (self.theta, self.phi, self.g)
        )
        scalars = (phi * g).sum((2, 3, 4), keepdim=True)
        y = (torch.sign(scalars) if sign_only else scalars) * theta
        assert self.norm is not None
        return self.norm(self.z(y.flatten(1, 2)))


def measure(norm: str, weight_scale: float, seed: int, *, batch: int = SHAPE[0]) -> tuple[float, float]:
    """Return the change of the branch, and the norm of phi's gradient over theta's, for one random block and input.

    Args:
        norm: ``"group"`` or ``"batch"``.
        weight_scale: Standard deviation of the four convolutions' weights.
        seed: Of weights, input and output gradient.
        batch: Number of samples.

    Returns:
        The two ratios.
    """
    torch.manual_seed(seed)
    block = SignOfScalar(CHANNELS, groups=GROUPS, norm=norm).train()
    for convolution in (block.theta, block.phi, block.g, block.z):
        nn.init.normal_(convolution.weight, std=weight_scale)
    assert block.norm is not None
    nn.init.ones_(block.norm.weight)
    x = torch.relu(torch.randn(batch, *SHAPE[1:]))
    branch = block.branch(x, sign_only=False)
    with torch.no_grad():
        change = (block.branch(x, sign_only=True) - branch).norm() / branch.norm()
    branch.backward(torch.randn_like(branch))
    gradient = block.phi.weight.grad.norm() / block.theta.weight.grad.norm()
    return change.item(), gradient.item()


def main() -> None:
    """Measure both norms, and BatchNorm with one sample, and write the record."""
    arguments = begin(study(__file__, __doc__))
    rows: list[dict[str, Any]] = []
    for name, norm, batch in (
        ("group", "group", SHAPE[0]),
        ("batch", "batch", SHAPE[0]),
        ("batch, 1 sample", "batch", 1),
    ):
        for weight_scale in WEIGHT_SCALES:
            pairs = [measure(norm, weight_scale, arguments.seed + i, batch=batch) for i in range(SEEDS)]
            changes, gradients = (sorted(values) for values in zip(*pairs, strict=True))
            row = {
                "norm": name,
                "weight_scale": weight_scale,
                "branch_change": [float(f"{changes[i]:.2g}") for i in (0, SEEDS // 2, -1)],
                "phi_gradient_over_theta": [float(f"{gradients[i]:.2g}") for i in (0, SEEDS // 2, -1)],
            }
            rows.append(row)
            print(row)
    write(arguments, rows, shape=SHAPE, groups=GROUPS, seeds=SEEDS, values="lowest, median, highest")


if __name__ == "__main__":
    main()
