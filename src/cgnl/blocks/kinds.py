"""The kinds of blocks, one entry each: classes, words for people, and the features that are explained.

Legend: B batch, C channels, C' inner channels, G groups, S spatial or space-time axes, S' the axes of phi and g.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cgnl.blocks.compact import CGNL1d, CGNL2d, CGNL3d
from cgnl.blocks.global_context import GlobalContext1d, GlobalContext2d, GlobalContext3d
from cgnl.blocks.grouped import GeneralizedNonLocal1d, GeneralizedNonLocal2d, GeneralizedNonLocal3d
from cgnl.blocks.non_local import NonLocal1d, NonLocal2d, NonLocal3d, sub_sampled
from cgnl.blocks.residual import ResidualBlock1d, ResidualBlock2d, ResidualBlock3d
from cgnl.blocks.squeeze_excitation import SqueezeExcitation1d, SqueezeExcitation2d, SqueezeExcitation3d
from cgnl.kernel_functions import KernelFunction, resolve_kernel_function
from cgnl.ops import scale_factor
from cgnl.ops.statistics import terms_of
from cgnl.settings.blocks import check_names, default_options
from cgnl.settings.trust import import_named

__all__ = [
    "CGNL1d", "CGNL2d", "CGNL3d", "GeneralizedNonLocal1d", "GeneralizedNonLocal2d", "GeneralizedNonLocal3d",
    "GlobalContext1d", "GlobalContext2d", "GlobalContext3d", "NonLocal1d", "NonLocal2d", "NonLocal3d",
    "ResidualBlock1d", "ResidualBlock2d", "ResidualBlock3d", "SqueezeExcitation1d", "SqueezeExcitation2d",
    "SqueezeExcitation3d",
]  # fmt: skip
MakeBlock = Callable[[int], nn.Module]
Form = Literal["nl", "gnl", "cgnl", "residual"]
"""How a block relates positions: by a pairwise function, a kernel function, its series, or not at all (residual)."""


class Features(NamedTuple):
    """The features that a block computes before it relates positions; ``cgnl.explain`` makes its maps from them.

    Attributes:
        theta: [B, C', *S], as the kernel function sees it; the input if a block relates no positions.
        phi: [B, C', *S'], likewise; None if a block relates no positions.
        g: [B, C', *S'], None if a block relates no positions.
        form: The equation that relates them.
        factor: Factor on the sums, or on the logits for the form "nl".
        groups: G.
        pairwise: Pairwise function of the form "nl".
        kernel: Kernel function of the other forms.
        concat: [2 C'], the weights of the pairwise function "concatenation", theta's first.
        statistic: "sum" of phi g, or another statistic that phi and g are prepared for: their products sum to it.
    """

    theta: Tensor
    phi: Tensor | None = None
    g: Tensor | None = None
    form: Form = "residual"
    factor: float = 1.0
    groups: int = 1
    pairwise: str | None = None
    kernel: KernelFunction | None = None
    concat: Tensor | None = None
    statistic: str = "sum"


class Kind(NamedTuple):
    """A kind of block; its options are in ``cgnl.settings.blocks``, under the same name.

    Attributes:
        classes: The classes for one, two and three axes.
        words: Its short name in comparisons of networks.
        features: Function that returns the features of a block for an input [B, C, *S].
        phrase: Its description, if its pairwise or kernel function does not describe it.
        relates: Whether it relates positions to each other, so that there are maps to draw.
    """

    classes: tuple[type[nn.Module], type[nn.Module], type[nn.Module]]
    words: str
    features: Callable[[Any, Tensor], Features]
    phrase: str = ""
    relates: bool = True


def _non_local(block: Any, x: Tensor) -> Features:
    if block.pairwise == "gaussian":
        theta = phi = x.clone(memory_format=torch.contiguous_format)  # the network may change x in place later
    else:
        theta, phi = _convolved(block.theta, x), _convolved(block.phi, x)
    g = _convolved(block.g, x)
    if block.subsample:
        phi, g = sub_sampled(phi), sub_sampled(g)
    factor, concat = 1.0, None
    if block.pairwise in ("dot_product", "concatenation"):
        factor = 1 / g[0, 0].numel()
    elif block.scale and block.pairwise != "dot_product_sum":
        factor = theta.shape[1] ** -0.5
    if block.pairwise == "concatenation":
        concat = block.concat.weight.detach().to(x.device, x.dtype, copy=True).flatten()
    return Features(theta, phi, g, "nl", factor, pairwise=block.pairwise, concat=concat)


def _generalized(form: Form, block: Any, x: Tensor) -> Features:
    theta, phi, g = (_convolved(convolution, x) for convolution in (block.theta, block.phi, block.g))
    factor = scale_factor(block.scale, theta[0].numel() // block.groups)
    if block.kernel.normalizes_features:
        theta, phi = (
            F.normalize(tensor.unflatten(1, (block.groups, -1)).flatten(2), dim=2).view_as(tensor)
            for tensor in (theta, phi)
        )
    statistic: Any = getattr(block, "statistic", "sum")
    if statistic != "sum":
        phi, g = (tensor.flatten(2) for tensor in (phi, g))
        phi, g = (tensor.view_as(theta) for tensor in terms_of(phi, g, block.groups, statistic))
    return Features(theta, phi, g, form, factor, block.groups, kernel=block.kernel, statistic=statistic)


def _global_context(block: Any, x: Tensor) -> Features:
    logits = _applied(block.key, x.movedim(1, -1)).movedim(-1, 1)
    g = x.clone(memory_format=torch.contiguous_format)
    # every position has the same query, so a softmax over one feature is the block's attention
    return Features(torch.ones_like(logits), logits.contiguous(), g, "nl", pairwise="embedded_gaussian")


def _relates_nothing(block: Any, x: Tensor) -> Features:
    return Features(x.clone(memory_format=torch.contiguous_format))


def _convolved(convolution: nn.Module, x: Tensor) -> Tensor:
    return _applied(convolution, x).contiguous()


def _applied(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the layer's output in x's type, on x's device."""
    parameters = {name: parameter.to(x.device, x.dtype) for name, parameter in layer.named_parameters()}
    return torch.func.functional_call(layer, parameters, (x,))


_COMPACT = (CGNL1d, CGNL2d, CGNL3d)

KINDS: dict[str, Kind] = {
    "nl": Kind((NonLocal1d, NonLocal2d, NonLocal3d), "NL", _non_local),
    "cgnl": Kind(_COMPACT, "CGNL", partial(_generalized, "cgnl")),
    "cgnlx": Kind(_COMPACT, "CGNLx", partial(_generalized, "cgnl")),
    "cgnl-correlation": Kind(_COMPACT, "CGNL-correlation", partial(_generalized, "cgnl")),
    "residual": Kind(
        (ResidualBlock1d, ResidualBlock2d, ResidualBlock3d),
        "residual",
        lambda block, x: Features(_convolved(block.theta, x), groups=block.groups),
        "residual block",
        relates=False,
    ),
    "gnl": Kind(
        (GeneralizedNonLocal1d, GeneralizedNonLocal2d, GeneralizedNonLocal3d), "GNL", partial(_generalized, "gnl")
    ),
    "gc": Kind(
        (GlobalContext1d, GlobalContext2d, GlobalContext3d), "GC", _global_context, "global context, one map for all"
    ),
    "se": Kind(
        (SqueezeExcitation1d, SqueezeExcitation2d, SqueezeExcitation3d),
        "SE",
        _relates_nothing,
        "squeeze-and-excitation block",
        relates=False,
    ),
}


def kind_of(block: nn.Module) -> str | None:
    """Return the name of a block's kind, or None for other modules."""
    return next((name for name, kind in KINDS.items() if isinstance(block, kind.classes)), None)


def features(block: nn.Module, x: Tensor) -> Features:
    """Return the features that a block computes from its input x [B, C, *S] before it relates positions.

    For a module that is not a block of ours, theta is the input.
    """
    kind = kind_of(block)
    return KINDS[kind].features(block, x) if kind else _relates_nothing(block, x)


def relates_positions(block: nn.Module) -> bool:
    """Return whether a module is a block that is known to relate positions to each other."""
    kind = kind_of(block)
    return kind is not None and KINDS[kind].relates


def phrase_of(block: nn.Module) -> str:
    """Return a block's description, or an empty string if its pairwise or kernel function describes it."""
    kind = kind_of(block)
    return KINDS[kind].phrase if kind else f"block of your own ({type(block).__name__})"


def words_of(block: str) -> str:
    """Return the short name of a network with a kind of block, which is given by its name or dotted name.

    >>> words_of("cgnlx"), words_of("none"), words_of("mypackage.MyBlock")
    ('CGNLx', 'plain', 'MyBlock')
    """
    return KINDS[block].words if block in KINDS else "plain" if block == "none" else block.rpartition(".")[2]


def block_maker(
    block: str | MakeBlock | None,
    options: Mapping[str, Any],
    *,
    num_axes: int = 2,
    defaults: Mapping[str, Any] | None = None,
    trust: Collection[str] = (),
) -> MakeBlock | None:
    """Return the function from the channel count to a new block, or None for no block.

    ``block`` is None or "none", a name in ``KINDS``, the dotted name of a class of your own in a package of ``trust``
    (see :func:`cgnl.settings.trust.import_named`), or a function, which is returned as it is. ``options`` has options
    of that kind by name (see ``cgnl.settings.blocks``). A kernel function may be an object of
    ``cgnl.kernel_functions``, and a norm may be None or a function of the channel count. ``defaults`` replace the
    kind's own defaults, for options that the kind has. ``num_axes`` is 2 for images and 3 for videos. Raises ValueError
    if there is no such kind, option or value.
    """
    if block is not None and not isinstance(block, str):
        if options:
            raise ValueError(f"{next(iter(options))} is not an option of a function that makes the block")
        return block
    block = block or "none"
    check_names(block, options)
    settings = dataclasses.replace(default_options(block, defaults or {}), **options)
    if block == "none":
        return None
    if block not in KINDS:
        return import_named(block, trust)
    arguments = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    reduction, inner_channels = arguments.pop("channel_reduction"), arguments.pop("inner_channels")
    if "kernel" in arguments:
        of_kernel = {name: arguments.pop(name) for name in ("order", "gamma", "beta", "coefficients")}
        arguments["kernel"] = resolve_kernel_function(arguments["kernel"], **of_kernel)

    def make(channels: int) -> nn.Module:
        if inner_channels is None and channels % reduction:
            raise ValueError(f"channels ({channels}) must be divisible by channel_reduction ({reduction})")
        inner = channels // reduction if inner_channels is None else inner_channels
        return KINDS[block].classes[num_axes - 1](channels, inner_channels=inner, **arguments)

    return make
