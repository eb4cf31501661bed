"""Checks of shapes, and maps without positions.

Legend: B batch, C channels, C' inner channels, S one to three spatial or space-time axes, G groups.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cgnl.ops.precision import autocast_is_on


def check_features(theta: Tensor, phi: Tensor, g: Tensor, groups: int) -> None:
    """Raise ValueError unless the three are [B, C', *S] of one shape and G divides C'."""
    check_num_axes("theta", theta)
    for name, tensor in (("phi", phi), ("g", g)):
        if tensor.shape != theta.shape:
            raise ValueError(f"{name} {shape_of(tensor)} must have theta's shape {shape_of(theta)}")
    _check_groups("channels", theta.shape[1], groups)


def check_weights(
    x: Tensor, theta_weight: Tensor, phi_weight: Tensor, g_weight: Tensor, z_weight: Tensor, groups: int, z_groups: int
) -> None:
    """Raise ValueError unless x and the weights of a CGNL block fit together, in shape and type."""
    check_num_axes("x", x)
    inner = theta_weight.shape[0]
    _check_groups("inner channels", inner, groups)
    name = "groups" if groups == z_groups else "z_groups"
    _check_groups("inner channels", inner, z_groups, name)
    _check_groups("channels", x.shape[1], z_groups, name)
    ones = (1,) * (x.dim() - 2)
    for name, weight, expected in (
        ("theta_weight", theta_weight, (inner, x.shape[1], *ones)),
        ("phi_weight", phi_weight, (inner, x.shape[1], *ones)),
        ("g_weight", g_weight, (inner, x.shape[1], *ones)),
        ("z_weight", z_weight, (x.shape[1], inner // z_groups, *ones)),
    ):
        if weight.shape != expected:
            raise ValueError(f"{name} {shape_of(weight)} must have shape {expected} for x {shape_of(x)}")
        if weight.dtype != x.dtype and not autocast_is_on(x):
            raise ValueError(f"x is {x.dtype}, but {name} is {weight.dtype}")


def check_num_axes(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless the tensor has one to three axes besides batch and channels."""
    if not 3 <= tensor.dim() <= 5:
        raise ValueError(f"{name} {shape_of(tensor)} must be [batch, channels, 1 to 3 spatial or space-time axes]")


def _check_groups(name: str, channels: int, groups: int, argument: str = "groups") -> None:
    if groups < 1 or channels % groups:
        raise ValueError(f"{name} ({channels}) must be divisible by {argument} ({groups})")


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape as messages show it."""
    return tuple(tensor.shape)


def with_zeros(features: Tensor) -> Tensor:
    """Pad an empty map with zeros to one position along each empty axis.

    They add nothing to the sums, and their process takes part in all exchanges, as the others expect.
    """
    return F.pad(features, [count for size in reversed(features.shape[2:]) for count in (0, int(size == 0))])


def without_zeros(y: Tensor, sizes: torch.Size) -> Tensor:
    """Return the result at the positions that were there before `with_zeros`."""
    for axis, size in enumerate(sizes, start=2):
        y = y.narrow(axis, 0, size)
    return y
