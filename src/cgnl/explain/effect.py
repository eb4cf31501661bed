"""How much the output moves when a block is bypassed, or one of its groups is left out.

Legend: C channels, C' inner channels, G groups, K classes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cgnl.explain.trace import blocks_of, check_single, input_of
from cgnl.insertion import undisturbed


@dataclass(frozen=True)
class Effect:
    """A network's output for one input with a block, without it, and without each of its groups.

    The probabilities are the softmax of the logits.

    Attributes:
        path: Module path that the block stands after.
        logits: [K], with the whole block.
        logits_bypassed: [K], with the block's input in place of its output.
        logits_without: [G, K], with each group bypassed; [0, K] where groups were not asked for.
    """

    path: str
    logits: Tensor
    logits_bypassed: Tensor
    logits_without: Tensor

    @property
    def probabilities(self) -> Tensor:
        """[K], with the whole block."""
        return self.logits.softmax(-1)

    @property
    def probabilities_bypassed(self) -> Tensor:
        """[K], with the block's input in place of its output."""
        return self.logits_bypassed.softmax(-1)

    @property
    def probabilities_without(self) -> Tensor:
        """[G, K], with each group left out."""
        return self.logits_without.softmax(-1)


def effect(
    network: nn.Module,
    x: Tensor | list[Tensor],
    path: str,
    *,
    groups: bool = True,
    vector: Callable[[Any], Tensor] | None = None,
) -> Effect:
    """Run a network with a block, with the block bypassed, and with each group of it left out.

    A group is left out by bypassing it: conv_z is grouped, so each group has its own C/G of the block's channels, and
    these get the block's input in place of its output. All groups left out together are the bypass; a non-local block
    has one group, which is the bypass too. Takes 2 + G forward passes, in eval mode and without gradients; the network
    is left as it was, also after an error.

    Args:
        network: Any network with blocks, inserted or its own.
        x: One input, [1, 3, H, W] or [1, 3, T, H, W], or a list of one image [3, H, W], on the network's device.
        path: Which block, as in the keys of ``trace_blocks(...).blocks``.
        groups: Whether to leave the groups out, one after the other.
        vector: Makes a vector [K] of an output that is not logits [1, K]; the probabilities then mean little.

    Raises:
        ValueError: There is no block at ``path``, or ``x`` or the output has another shape.

    Example:
        >>> from cgnl import CGNL2d
        >>> network = nn.Sequential(nn.Conv2d(3, 16, 3), CGNL2d(16), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> effect(network, torch.randn(1, 3, 8, 9), "1").logits_without.shape
        torch.Size([8, 16])
    """
    check_single(x)
    blocks: dict[str, Any] = blocks_of(network)
    if path not in blocks:
        known = ", ".join(map(repr, blocks)) or "none"
        raise ValueError(f"path ({path!r}) must be that of a block; the network's blocks: {known}")
    block = blocks[path]
    num_groups = getattr(block, "groups", 1)

    def run() -> Tensor:
        return _logits(network(x), vector)

    def run_without(left_out: Iterable[int]) -> Tensor:
        with block.register_forward_hook(_bypass(num_groups, left_out), with_kwargs=True):
            return run()

    with undisturbed(network):
        logits = run()
        bypassed = run_without(range(num_groups))
        if not groups:
            return Effect(path, logits, bypassed, logits.new_zeros(0, len(logits)))
        without = [bypassed] if num_groups == 1 else [run_without([group]) for group in range(num_groups)]
    return Effect(path, logits, bypassed, torch.stack(without))


def _bypass(groups: int, left_out: Iterable[int]) -> Callable[..., Tensor]:
    """Return a hook that puts a block's input in place of its output in the channels of some groups."""

    def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> Tensor:
        mixed = list(output.chunk(groups, dim=1))
        before = input_of(args, kwargs).chunk(groups, dim=1)
        for group in left_out:
            mixed[group] = before[group]
        return torch.cat(mixed, dim=1)

    return hook


def _logits(output: Any, vector: Callable[[Any], Tensor] | None) -> Tensor:
    if vector is not None:
        logits = vector(output)
    elif isinstance(output, Tensor) and output.shape[:1] == (1,):
        logits = output[0]
    else:
        logits = output
    if not isinstance(logits, Tensor) or logits.dim() != 1:
        seen = str(tuple(logits.shape)) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ValueError(f"output must be logits [1, K], or a vector [K] made of it by vector=, but is {seen}")
    return logits.cpu()
