"""What the report page carries of a block: features of 8 bits, small enough to be mailed.

The page computes its maps from them, so that one file holds every reference, group and channel.
"""

import base64
import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from cgnl.explain.maps import View, affinity, log_denominators, sums
from cgnl.explain.trace import BlockTrace
from cgnl.explain.wording import kind_in_words, statement
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF, KernelFunction

# Values of theta and of phi at which a kernel function of one's own is tabulated.
_TABLE_SIZE = 129

# What of a packed block grows with its channels or positions.
_LARGE = ("theta", "phi", "g", "concat", "logDenominators", "sums", "thetaRange", "kernel")

_AVERAGED_EVIDENCE = (
    "The maps under Evidence do not add up to the sums z here. The sums are over all positions, but the maps show "
    "fewer, averaged ones, and an average of products is not the product of the averages."
)


def pack_block(block: BlockTrace, max_bytes: int) -> dict[str, Any]:
    """Return a block's trace as the page's scripts read it: plain numbers, texts and lists, ready for JSON.

    Beyond ``max_bytes`` of text, theta, phi, g and what else grows with channels and positions are averaged over space.
    Raises ValueError for a kernel function with an envelope of its own, which the page cannot compute.

    Example:
        >>> from cgnl import CGNL2d
        >>> from cgnl.explain.trace import trace_blocks
        >>> block = trace_blocks(CGNL2d(32, groups=4), torch.randn(1, 32, 6, 7)).blocks[""]
        >>> pack_block(block, 10_000)["shape"], pack_block(block, 1_600)["shape"]
        ([6, 7], [3, 4])
    """
    features = max_bytes
    while True:
        packed = _packed(block, features)
        excess = sum(len(json.dumps(packed.get(name))) for name in _LARGE) - max_bytes
        if excess <= 0 or features <= excess:
            return packed
        features -= excess


def _packed(block: BlockTrace, max_bytes: int) -> dict[str, Any]:
    """Return a block with theta, phi and g in so many bytes of text."""
    packed: dict[str, Any] = {
        "path": block.path,
        "kind": block.kind,
        "words": kind_in_words(block),
        "statements": {view: statement(block, view) for view in get_args(View)},
        "groups": block.groups,
        "factor": block.factor,
        "channels": block.theta.shape[0],
        "shape": list(block.shape),
    }
    if block.phi is None or block.g is None:
        return packed | {"notes": []}
    small = _pooled(block, max_bytes)
    theta, phi, g = _quantised(small.theta), _quantised(small.phi), _quantised(small.g)
    rounded = dataclasses.replace(small, theta=theta[2], phi=phi[2], g=g[2])
    packed |= {
        "shape": list(small.shape),
        "shapePhi": list(small.phi.shape[1:]),
        "coverPhi": _covered(block.shape, block.phi.shape[1:]),
        "theta": _encoded(theta),
        "phi": None if torch.equal(small.theta, small.phi) else _encoded(phi),
        "g": _encoded(g),
        "pairwise": block.pairwise,
        "averagedEvidence": _AVERAGED_EVIDENCE if small is not block else None,
        "notes": _notes(block, small, rounded),
    }
    if block.concat is not None:
        packed["concat"] = block.concat.tolist()
    if block.pairwise in ("gaussian", "embedded_gaussian"):
        packed["logDenominators"] = _floats(log_denominators(rounded, rounded.phi))
    if block.kernel is not None:
        packed["kernel"] = _kernel(block)
    if block.kind == "cgnl":
        packed["sums"] = sums(block).tolist()
        packed["thetaRange"] = [[part.min().item(), part.max().item()] for part in block.theta.chunk(block.groups)]
    return packed


def _covered(shape: Sequence[int], shape_phi: Sequence[int]) -> list[float]:
    """Return the share of each axis that phi's positions cover; a pooling leaves out an incomplete last window."""
    return [(1 if small == size else 2 * small / size) for size, small in zip(shape, shape_phi, strict=True)]


def _pooled(block: BlockTrace, max_bytes: int) -> Any:
    """Return the block with features averaged over the two spatial axes until their text fits."""
    assert block.phi is not None
    assert block.g is not None
    shared = torch.equal(block.theta, block.phi)
    features = [block.theta, block.g] if shared else [block.theta, block.phi, block.g]
    text = sum(math.ceil(tensor.numel() / 3) * 4 for tensor in features)
    if text <= max_bytes:
        return block
    ratio = math.sqrt(max_bytes / text)
    axes = [max(1, int(size * ratio)) for size in block.shape[-2:]]
    strides = [size // small for size, small in zip(block.shape[-2:], block.phi.shape[-2:], strict=True)]
    axes_phi = [max(1, size // stride) for size, stride in zip(axes, strides, strict=True)]
    return dataclasses.replace(
        block, theta=_averaged(block.theta, axes), phi=_averaged(block.phi, axes_phi), g=_averaged(block.g, axes_phi)
    )


def _averaged(features: Tensor, axes: list[int]) -> Tensor:
    height, width = axes
    means = F.adaptive_avg_pool2d(features.reshape(-1, 1, *features.shape[-2:]), (height, width))
    return means.view(*features.shape[:-2], *axes)


def _quantised(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whole numbers from -127 to 127, the scale of each channel, and the features that the two stand for."""
    flat = features.flatten(1).float()
    scales = flat.abs().amax(1) / 127
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    numbers = (flat / scales[:, None]).round().to(torch.int8)
    return numbers, scales, (numbers * scales[:, None]).view(features.shape)


def _encoded(quantised: tuple[Tensor, Tensor, Tensor]) -> dict[str, str]:
    numbers, scales, _ = quantised
    return {"numbers": base64.b64encode(numbers.numpy().tobytes()).decode(), "scales": _floats(scales)}


def _floats(values: Tensor) -> str:
    return base64.b64encode(values.float().numpy().astype("<f4").tobytes()).decode()


def _kernel(block: BlockTrace) -> dict[str, Any]:
    kernel = block.kernel
    assert kernel is not None
    packed: dict[str, Any] = {"coefficients": list(kernel.coefficients), "gamma": None, "envelope": False}
    if isinstance(kernel, GaussianRBF):
        packed |= {"gamma": kernel.gamma, "envelope": kernel.beta != "constant"}
    elif kernel.envelope(torch.zeros(())) is not None:
        raise ValueError(f"kernel ({kernel!r}) has an envelope of its own, which the report page cannot draw")
    if block.kind == "gnl":
        names = {DotProduct: "dot", EmbeddedGaussian: "exp", GaussianRBF: "rbf"}
        packed["exact"] = names.get(type(kernel)) or _table(kernel, block)
    return packed


def _table(kernel: KernelFunction, block: BlockTrace) -> dict[str, Any]:
    """Return a kernel function of one's own on a grid over the ranges of theta and phi; zero lies within both."""
    assert block.phi is not None
    ranges = [(min(0.0, t.min().item()), max(0.0, t.max().item())) for t in (block.theta, block.phi)]
    theta, phi = (torch.linspace(low, high, _TABLE_SIZE) for low, high in ranges)
    values = kernel.exact(theta[:, None], phi[None, :]).expand(_TABLE_SIZE, _TABLE_SIZE)
    return {"ranges": ranges, "size": _TABLE_SIZE, "values": _floats(values.contiguous())}


def _notes(block: BlockTrace, small: BlockTrace, rounded: BlockTrace) -> list[str]:
    """Return what was rounded and pooled, with the difference that rounding makes to some maps."""
    notes = []
    if small is not block:
        before, after = ("×".join(map(str, shape)) for shape in (block.shape, small.shape))
        notes.append(
            f"To keep this file small, theta, phi and g were averaged from {before} to {after} positions; "
            "the maps are those of the averaged features."
        )
        if block.kind == "cgnl":
            notes.append(_AVERAGED_EVIDENCE)
        if block.pairwise in ("gaussian", "embedded_gaussian"):
            notes.append(
                "A row of the softmax still adds up to 1, over fewer positions: each value is larger than in the block."
            )
    differences = []
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        position = tuple(int(size * share) for size in small.shape)
        channel = None if small.kernel is None else int(share * small.theta.shape[0])
        ours, exact = (affinity(trace, position, channel) for trace in (rounded, small))
        peak = exact.abs().max().item()
        differences.append((ours - exact).abs().max().item() / peak if peak else 0.0)
    notes.append(
        "theta, phi and g are rounded to 8 bits with one scale per channel. The maps of five references differ by at "
        f"most {100 * max(differences):.2g} % of their strongest value from the unrounded maps."
    )
    if block.kernel is not None:
        notes.append(
            "Rounding affects a reference most if its theta is close to zero: all its maps are then off by a factor."
        )
    if block.kind == "cgnl":
        notes.append("The sums z and the curve are those of the unrounded features.")
    if block.kind == "gnl" and not isinstance(block.kernel, DotProduct | EmbeddedGaussian | GaussianRBF):
        notes.append(f"The kernel function is interpolated in a table of {_TABLE_SIZE} × {_TABLE_SIZE} values.")
    return notes
