"""What a block related, from its trace: affinity of a reference, evidence, and the polynomial that was applied.

Legend: C' inner channels, G groups of consecutive channels, S spatial or space-time axes, S' the axes of phi and g,
N = prod(S) positions, P order of the series, z_p the sums of a group.

Every map comes from theta, phi and g directly. No matrix of all pairs is ever built.

Source: Yue et al., "Compact Generalized Non-local Network", NeurIPS 2018, Eq. 1-12 and Fig. 5.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cgnl.explain.trace import BlockTrace
from cgnl.kernel_functions import KernelFunction
from cgnl.settings.checks import within

View = Literal["row", "column"]
DOT_PRODUCTS = ("dot_product", "dot_product_sum")
"""Pairwise functions of a non-local block whose logits are its weights."""

# Entries of the pairwise matrix that are worked on together where a softmax's denominators are needed.
_ENTRIES_AT_ONCE = 2**20


def reference_channel(block: BlockTrace, position: tuple[int, ...]) -> int:
    """Return the channel c in which g is strongest at a position: the first of the largest |g_{n,c}| over all channels.

    The paper picks its reference "in the space of g" (Fig. 5). ``position`` is an index n into the axes *S. Raises
    ValueError where it lies outside the feature map, or the block has no attention.
    """
    _, g = _phi_and_g(block)
    _check_position(block, position)
    return int(_at(g, _position_of_phi(block, position)).abs().argmax())


def affinity_group(block: BlockTrace, channel: int) -> range:
    """Return the channels of the group of a channel, which are those that `affinity` has maps of.

    A non-local block has one group. Raises ValueError where the block has no such channel.
    """
    channels = (block.theta if block.g is None else block.g).shape[0]
    if not 0 <= channel < channels:
        raise ValueError(f"channel ({channel}) must be from 0 to {channels - 1}, the block's inner channels")
    size = channels // block.groups
    start = channel // size * size
    return range(start, start + size)


def affinity(
    block: BlockTrace,
    position: tuple[int, ...],
    channel: int | None = None,
    *,
    view: View = "row",
    constant: bool = False,
) -> Tensor:
    """Return the affinity of a reference element to all elements of its group, or of a position to all positions.

    - Non-local: the row f(theta_n, phi_m) over m with its normalisation (softmax, or 1 / N_phi); the same for every
      channel.
    - Generalized non-local: f(theta_{n,c}, phi_{n',c'}) for every channel c' of the group of c.
    - Compact: the same with the series in place of f, sum over p of a2_p (theta_{n,c} phi_{n',c'})^p, times the
      envelopes where the kernel function has them.

    Elements of other groups have no affinity to the reference and no maps. The scale of the sums is left out.

    Args:
        block: The trace of a block with attention.
        position: Index n into the axes *S.
        channel: c, from 0 to C' - 1; None for `reference_channel`. Has no effect on a non-local block's map.
        view: ``"row"`` for what the reference receives from; ``"column"`` for what receives from it: the reference
            stands in phi and g, and the map runs over theta. Where phi and g are sub-sampled it is the cell that the
            position fell into.
        constant: Whether the term of p = 0 is left in. It is the same (up to envelopes) for all pairs and hides the
            rest. Of the exact f it is f(t, 0) f(0, u) / f(0, 0): what f = e(t) e(u) s(t u) has where t u = 0.
            Non-local blocks have no such term.

    Returns:
        [*S'] for a non-local block ([*S] as a column), [C'/G, *S] for the others: one map for each channel of
        `affinity_group`.

    Raises:
        ValueError: The position or channel does not exist, ``view`` is unknown, or the block has no attention.

    Example:
        >>> from cgnl import CGNL2d
        >>> from cgnl.explain.trace import trace_blocks
        >>> block = trace_blocks(CGNL2d(32, groups=4), torch.randn(1, 32, 6, 7)).blocks[""]
        >>> affinity(block, (2, 3)).shape
        torch.Size([4, 6, 7])
    """
    phi, _ = _phi_and_g(block)
    _check_position(block, position)
    if view not in ("row", "column"):
        raise ValueError(f"view ({view!r}) must be 'row' or 'column'")
    if channel is None:
        channel = reference_channel(block, position)
    group = affinity_group(block, channel)
    if block.kernel is None:
        return _non_local_row(block, phi, position) if view == "row" else _non_local_column(block, phi, position)
    references, others = (block.theta, phi) if view == "row" else (phi, block.theta)
    reference = references[(channel, *position)]
    elements = others[group.start : group.stop]
    if block.kind == "cgnl":
        return _series(block.kernel, reference, elements, constant)
    return _exact(block.kernel, reference, elements, view, constant)


def strongest_channels(maps: Tensor, count: int = 5) -> list[int]:
    """Return the channels whose maps have the strongest peak, the largest absolute value; Fig. 5 shows five.

    Returned are at most ``count`` indices into ``maps`` [C'/G, *S], the strongest first and the lower among equals; add
    the start of `affinity_group` for channels of the block.

    Example:
        >>> strongest_channels(torch.tensor([[0.1, 0.2], [-3.0, 1.0], [2.0, 2.0]]), count=2)
        [1, 2]
    """
    within("count", count, 1)
    return maps.flatten(1).abs().amax(1).argsort(descending=True, stable=True)[:count].tolist()


def normalised(values: Tensor) -> Tensor:
    """Return a map, or several together, divided by the largest absolute value: from -1 to 1, with signs and zero kept.

    Example:
        >>> normalised(torch.tensor([1.0, -4.0, 0.0]))
        tensor([ 0.2500, -1.0000,  0.0000])
    """
    peak = values.abs().max()
    return values / peak if peak > 0 else torch.zeros_like(values)


def evidence(block: BlockTrace, group: int, power: int) -> Tensor:
    """Return the terms [C'/G, *S] of a group's sum z_p: a2_p phi^p g, with the scale (and the envelope of phi) in them.

    What a compact block gathered from where, whatever the reference (Eq. 12); they sum to ``sums(block)[group,
    power]``. Raises ValueError where the block has no such group or power, or is of another kind.
    """
    kernel = _series_kernel(block)
    size = _check_group(block, group)
    if not 0 <= power < len(kernel.coefficients):
        raise ValueError(f"power ({power}) must be from 0 to {len(kernel.coefficients) - 1}, the order of the series")
    phi, g = (tensor[group * size : (group + 1) * size] for tensor in _phi_and_g(block))
    envelope = kernel.envelope(phi)
    terms = kernel.coefficients[power] * block.factor * phi**power * g
    return terms if envelope is None else terms * envelope


def sums(block: BlockTrace) -> Tensor:
    """Return the sums z_p of every group, [G, P + 1]: all that a compact block knows of the other elements (Eq. 12).

    The coefficients a2_p and the scale are in them. Raises ValueError where the block is of another kind.
    """
    powers = range(len(_series_kernel(block).coefficients))
    return torch.stack(
        [torch.stack([evidence(block, group, power).sum() for power in powers]) for group in range(block.groups)]
    )


def polynomial(block: BlockTrace, group: int, theta: Tensor) -> Tensor:
    """Return the function that a group applied to its theta in this sample: y = sum over p of z_p theta^p (Eq. 12).

    ``theta`` has any shape, and values as in ``block.theta`` (normalised where the kernel function normalises); y has
    the envelope of theta in it. At the group's part of ``block.theta`` it is the operation's output. Raises ValueError
    where the block has no such group, or is of another kind.
    """
    kernel = _series_kernel(block)
    _check_group(block, group)
    z = [evidence(block, group, power).sum() for power in range(len(kernel.coefficients))]
    y = _horner(z, theta)
    envelope = kernel.envelope(theta)
    return y if envelope is None else y * envelope


def _series(kernel: KernelFunction, reference: Tensor, elements: Tensor, constant: bool) -> Tensor:
    zeroth, *others = kernel.coefficients
    coefficients = reference.new_tensor([zeroth if constant else 0.0, *others])
    values = _horner(coefficients.unbind(), reference * elements)
    ours, theirs = kernel.envelope(reference), kernel.envelope(elements)
    return values if ours is None or theirs is None else values * (ours * theirs)


def _horner(coefficients: Sequence[Tensor], base: Tensor) -> Tensor:
    *lower, highest = coefficients
    values = highest.expand_as(base)
    for coefficient in reversed(lower):
        values = values * base + coefficient
    return values


def _exact(kernel: KernelFunction, reference: Tensor, elements: Tensor, view: View, constant: bool) -> Tensor:
    theta, phi = (reference, elements) if view == "row" else (elements, reference)
    values = kernel.exact(theta, phi)
    if constant:
        return values
    zero = torch.zeros_like(reference)
    at_zero = kernel.exact(zero, zero)
    if at_zero == 0:
        return values
    return values - kernel.exact(theta, zero) * kernel.exact(zero, phi) / at_zero


def _non_local_row(block: BlockTrace, phi: Tensor, position: tuple[int, ...]) -> Tensor:
    reference = _at(block.theta, position)
    if block.concat is not None:
        ours, theirs = block.concat.chunk(2)
        return F.relu(ours @ reference + _weighted(theirs, phi)) * block.factor
    logits = _weighted(reference, phi) * block.factor
    if block.pairwise in DOT_PRODUCTS:
        return logits
    return logits.flatten().softmax(0).view_as(logits)


def _non_local_column(block: BlockTrace, phi: Tensor, position: tuple[int, ...]) -> Tensor:
    theta = block.theta
    reference = _at(phi, _position_of_phi(block, position))
    if block.concat is not None:
        theirs, ours = block.concat.chunk(2)
        return F.relu(_weighted(theirs, theta) + ours @ reference) * block.factor
    logits = _weighted(reference, theta) * block.factor
    if block.pairwise in DOT_PRODUCTS:
        return logits
    return (logits.flatten() - log_denominators(block, phi)).exp().view_as(logits)


def log_denominators(block: BlockTrace, phi: Tensor) -> Tensor:
    """Return the logarithm of every row's softmax denominator, [N], some rows at a time."""
    theta, phi = block.theta.flatten(1), phi.flatten(1)
    rows = max(1, _ENTRIES_AT_ONCE // phi.shape[1])
    return torch.cat([(part.T @ phi * block.factor).logsumexp(1) for part in theta.split(rows, dim=1)])


def _weighted(weights: Tensor, features: Tensor) -> Tensor:
    """Return the sum over channels of weights [C'] times features [C', *S]."""
    return (weights @ features.flatten(1)).view(features.shape[1:])


def _at(features: Tensor, position: tuple[int, ...]) -> Tensor:
    """All channels at one position, [C']."""
    return features.movedim(0, -1)[position]


def _phi_and_g(block: BlockTrace) -> tuple[Tensor, Tensor]:
    if block.phi is None or block.g is None:
        raise ValueError(f"block ({block.path!r}) is a {block.phrase}, which has no affinity to show")
    return block.phi, block.g


def _series_kernel(block: BlockTrace) -> KernelFunction:
    if block.kind != "cgnl" or block.kernel is None:
        raise ValueError(f"block ({block.path!r}, {block.kind}) must be a compact generalized non-local block: no sums")
    return block.kernel


def _check_group(block: BlockTrace, group: int) -> int:
    """Return the number of channels of a group, which must exist."""
    if not 0 <= group < block.groups:
        raise ValueError(f"group ({group}) must be from 0 to {block.groups - 1}")
    return block.theta.shape[0] // block.groups


def _check_position(block: BlockTrace, position: tuple[int, ...]) -> None:
    shape = block.shape
    if len(position) != len(shape) or not all(0 <= n < size for n, size in zip(position, shape, strict=True)):
        raise ValueError(f"position {tuple(position)} must be an index into the block's axes {shape}")


def _position_of_phi(block: BlockTrace, position: tuple[int, ...]) -> tuple[int, ...]:
    """Return the cell of phi and g that a position was pooled into; the last one for what pooling leaves over."""
    assert block.phi is not None
    sizes = zip(position, block.shape, block.phi.shape[1:], strict=True)
    return tuple(n if pooled == size else min(n // 2, pooled - 1) for n, size, pooled in sizes)
