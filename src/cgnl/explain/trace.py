"""What the blocks of a network saw in one image or video, and what they made of it.

Legend: C channels, C' inner channels, G groups, S spatial or space-time axes, S' the axes of phi and g, which are
smaller than S where a non-local block sub-samples, N = prod(S) positions, K classes.

A trace holds theta, phi and g: memory grows with N·C', never with N^2.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cgnl.blocks.kinds import Form, features, kind_of, phrase_of
from cgnl.insertion import inserted_blocks, undisturbed
from cgnl.kernel_functions import KernelFunction


@dataclass(frozen=True)
class BlockTrace:
    """What one block saw in one sample, and what it made of it: float32 on the CPU, without gradients.

    A network in float64 is traced in float64.

    Attributes:
        path: Module path that the block stands after; its own path where it was not inserted.
        kind: How it relates positions: ``"nl"``, ``"gnl"``, ``"cgnl"``, or ``"residual"`` where it does not, or where
            nothing is known of it.
        phrase: What it is in words, where its pairwise or kernel function does not say it.
        pairwise: Pairwise function of a non-local block, None for others.
        kernel: Kernel function of a (compact) generalized non-local block, None for others.
        groups: G; 1 for a non-local block.
        factor: Scale of the sums. For a non-local block what theta_n · phi_m (or the concatenation's ReLU) is
            multiplied by: 1 / sqrt(C') or 1 for the softmax forms, 1 for the sum of dot products, 1 / N_phi for the
            others.
        theta: [C', *S], as the kernel function sees it: l2-normalised in each group where the kernel function asks
            for that, without an envelope. The input itself for a Gaussian non-local block, where C' = C.
        phi: [C', *S'], likewise; None for a residual block.
        g: [C', *S']; None for a residual block.
        concat: The 2·C' weights of a non-local block's concatenation, theta's first; None for others.
        samples: How many samples the block saw for the one input, over all its runs. Above 1 (regions of a detector,
            frames in the batch, a block that runs twice) the trace is that of the first, whose positions are not
            those of the input: figures refuse to draw it.
        phrase: What the block is in words, where its pairwise or kernel function does not say it.
        statistic: Number that a compact block computes for each group. For a covariance or correlation, phi and g are
            around their means, and the latter's are divided so that their products sum to it.
    """

    path: str
    kind: Form
    pairwise: str | None
    kernel: KernelFunction | None
    groups: int
    factor: float
    theta: Tensor
    phi: Tensor | None
    g: Tensor | None
    concat: Tensor | None
    samples: int = 1
    phrase: str = ""
    statistic: str = "sum"

    @property
    def shape(self) -> tuple[int, ...]:
        """The axes *S of the block's input, without batch and channels."""
        return tuple(self.theta.shape[1:])


@dataclass(frozen=True)
class Trace:
    """The output of a network for one input, and what its blocks did.

    Attributes:
        output: Logits [K]; the network's whole output where that is no tensor.
        blocks: The blocks by the path they stand after, in the order of ``named_modules()``.
    """

    output: Any
    blocks: dict[str, BlockTrace]


def trace_blocks(network: nn.Module, x: Tensor | list[Tensor]) -> Trace:
    """Run a network once, in eval mode and without gradients, and return its output and what its blocks saw.

    The network is left as it was, also after an error: flags, buffers, random state and hooks. Blocks that did not run
    are left out. Of a block that sees several samples for one input (the regions of a detector), in one run or several,
    the first is kept and all are counted. ``x`` is one input, [1, 3, H, W] or [1, 3, T, H, W], or a list of one image
    [3, H, W] for detectors, on the network's device; ValueError for another number of samples.

    Example:
        >>> from cgnl import CGNL2d
        >>> trace = trace_blocks(torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), CGNL2d(16)), torch.randn(1, 3, 8, 9))
        >>> trace.blocks["1"].theta.shape, trace.blocks["1"].shape
        (torch.Size([8, 6, 7]), (6, 7))
    """
    check_single(x)
    traces: dict[str, BlockTrace] = {}
    with ExitStack() as stack:
        stack.enter_context(undisturbed(network))
        blocks = blocks_of(network)
        for path, block in blocks.items():
            stack.enter_context(block.register_forward_hook(_keep_in(traces, path), with_kwargs=True))
        output = network(x)
    if isinstance(output, Tensor) and output.shape[:1] == (1,):
        output = output[0].cpu()
    return Trace(output, {path: traces[path] for path in blocks if path in traces})


def blocks_of(network: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks of a network: inserted ones, and those of ``cgnl.blocks`` among its own modules.

    Their keys are the paths they stand after (or, not inserted, their own), in the order of ``named_modules()``.
    """
    inserted = {block: path for path, block in inserted_blocks(network).items()}
    return {
        inserted.get(module, path): module
        for path, module in network.named_modules()
        if module in inserted or kind_of(module)
    }


def check_single(x: Tensor | list[Tensor]) -> None:
    """Raise ValueError where an input, a batch [B, ...] or a list of images, does not hold one sample."""
    if len(x) != 1:
        raise ValueError(f"x must hold one sample, not {len(x)}: blocks are explained for one input at a time")


def check_drawable(block: BlockTrace, name: str) -> None:
    """Raise ValueError, which says ``name``, where a trace has no affinities, or none in the image or video."""
    if block.phi is None:
        raise ValueError(f"{name}: a {block.phrase} has no affinity to show")
    if block.samples > 1:
        raise ValueError(f"{name}: a block that saw {block.samples} samples for one input has no place in it")


def input_of(args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Tensor:
    """The x that a block was called with, by position or by name."""
    return args[0] if args else kwargs["x"]


def _keep_in(traces: dict[str, BlockTrace], path: str) -> Callable[..., None]:
    def hook(block: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
        if path in traces:
            traces[path] = replace(traces[path], samples=traces[path].samples + len(output))
            return
        dtype = torch.promote_types(output.dtype, torch.float32)
        with torch.autocast("cpu", enabled=False):
            traces[path] = _trace_block(path, block, input_of(args, kwargs)[:1].to("cpu", dtype), len(output))

    return hook


def _trace_block(path: str, block: nn.Module, x: Tensor, samples: int) -> BlockTrace:
    """Return the trace of a block from the first of its samples x, [1, C, *S]."""
    found = features(block, x)
    return BlockTrace(
        path=path,
        kind=found.form,
        pairwise=found.pairwise,
        kernel=found.kernel,
        groups=found.groups,
        factor=found.factor,
        theta=found.theta[0],
        phi=None if found.phi is None else found.phi[0],
        g=None if found.g is None else found.g[0],
        concat=found.concat,
        statistic=found.statistic,
        samples=samples,
        phrase=phrase_of(block),
    )
