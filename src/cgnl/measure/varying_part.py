"""How much of a block's branch varies over the positions, and how exact that part is in float32?

A kernel function whose series has a constant term gives all positions of a sample the same z_0 (Eq. 12). With the
Gaussian RBF at the paper's gamma this is nearly the whole branch, and an error that is small beside the branch may be
large beside what varies.

Legend: B batch, C channels, S spatial axes.
"""

import copy
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cgnl import ops
from cgnl.blocks import CGNL2d
from cgnl.kernel_functions import EmbeddedGaussian, GaussianRBF, KernelFunction, RBFBeta
from cgnl.measure.timing import reason_of_failure, rounded

SHAPE = (8, 64, 14, 14)
SMALLEST_SHAPE = (2, 16, 3, 3)
BETAS: tuple[RBFBeta, ...] = ("constant", "normalized", "exact")
KERNELS: tuple[KernelFunction, ...] = (
    EmbeddedGaussian(),
    *(GaussianRBF(gamma=gamma, beta=beta) for gamma in (1e-4, 0.1) for beta in BETAS),
)


def varying(values: Tensor) -> Tensor:
    """Return the part that varies over the positions: a map [B, C, *S] less its mean over them."""
    return values - values.flatten(2).mean(2)[(..., *(None,) * (values.dim() - 2))]


def block_for(kernel: KernelFunction, channels: int, generator: torch.Generator) -> CGNL2d:
    """Return a block in training whose weights keep the size of what they map, and whose norm's weight is 1."""
    block = CGNL2d(channels, kernel=kernel, scale="mean")
    for parameter in block.parameters():
        if parameter.dim() > 1:
            fan_in = math.prod(parameter.shape[1:])
            parameter.data = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5
    assert block.norm is not None
    nn.init.ones_(block.norm.weight)  # type: ignore[arg-type]
    return block


def measure(device: str, *, seed: int, smallest: bool) -> list[dict[str, Any]]:
    """Measure every kernel function on the block with BatchNorm in training, in float32.

    Returns a row for each kernel function and each backend that can run: ``share``, the norm of the branch's varying
    part over that of the branch; ``share_of_result``, the same after the norm; ``error``, of the varying part of the
    block's result less x, relative to it; ``rounding``, the part of that error which rounding the exact result to
    float32 costs.
    """
    shape = SMALLEST_SHAPE if smallest else SHAPE
    rows = []
    for kernel in KERNELS:
        generator = torch.Generator().manual_seed(seed)
        block = block_for(kernel, shape[1], generator).to(device)
        x = torch.randn(shape, generator=generator).to(device)
        branch, result = _exact(block, x)
        rounding = (result + x.double()).float()
        shares = {"share": _share(branch), "share_of_result": _share(result)}
        for backend in ("eager", "fused"):
            block.backend = backend
            if reason_of_failure(partial(block, x)):
                continue
            errors = {"error": _error(block(x).detach(), x, result), "rounding": _error(rounding, x, result)}
            numbers = {key: rounded(value) for key, value in (shares | errors).items()}
            rows.append({"kernel": repr(kernel), "backend": backend} | numbers)
    return rows


def _exact(block: CGNL2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the branch, and its norm, by explicit matrices in float64."""
    block, x = copy.deepcopy(block).double(), x.double()
    weights = (block.theta.weight, block.phi.weight, block.g.weight, block.z.weight)
    assert block.norm is not None
    with torch.no_grad():
        branch = ops.cgnl_block(
            x, *weights, groups=block.groups, kernel=block.kernel, scale=block.scale, backend="naive"
        )
        return branch, block.norm(branch)


def _share(values: Tensor) -> float:
    return (varying(values).norm() / values.norm()).item()


def _error(output: Tensor, x: Tensor, result: Tensor) -> float:
    found = varying(output.double() - x.double())
    return ((found - varying(result)).norm() / varying(result).norm()).item()
