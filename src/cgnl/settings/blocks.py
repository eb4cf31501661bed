"""The options of each kind of block. A new kind needs a dataclass here, and its name in ``OPTIONS``."""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from cgnl.settings.checks import check_choice, converted, is_dotted_name, positive, within
from cgnl.settings.marks import FREE


@dataclass(frozen=True)
class BlockOptions:
    """No options: for no block, and for a class of your own, which is called with the channel count alone."""

    public_name: ClassVar[str] = ""
    """Name of the kind's classes in ``cgnl``, without ``1d``, ``2d`` or ``3d``."""
    words: ClassVar[str] = ""
    """Description of the kind, beside its name in help texts."""


@dataclass(frozen=True)
class SizedOptions(BlockOptions):
    """The options of every block with inner channels."""

    channel_reduction: int = 2
    """Ratio of the map's channels to the block's inner channels."""
    inner_channels: int | None = None
    """Number of inner channels; overrides channel_reduction."""

    def __post_init__(self) -> None:
        within("block.channel_reduction", self.channel_reduction, 1)
        within("block.inner_channels", self.inner_channels, 1)


@dataclass(frozen=True)
class ShellOptions(SizedOptions):
    """The options of every block Z = norm(conv_z(Y)) + X."""

    norm: Literal["batch", "sync_batch", "group"] = "batch"
    """Norm at the block's end. sync_batch takes its statistics over all processes. group is for the authors' released
    checkpoints: it cancels the attention of a CGNL block, as batch does if each process has only one image."""


def _check_groups(groups: str | int) -> None:
    if isinstance(groups, str):
        check_choice("block.groups", groups, ("auto", "channels"), " or a number")
    else:
        within("block.groups", groups, 1)


@dataclass(frozen=True)
class ResidualOptions(ShellOptions):
    """The options of a residual block, which has no attention."""

    public_name: ClassVar[str] = "ResidualBlock"
    words: ClassVar[str] = "no attention"
    groups: Literal["auto"] | int = 8
    """Groups of conv_z; auto is the largest number up to 8 that divides the channels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_groups(self.groups)


@dataclass(frozen=True)
class NonLocalOptions(ShellOptions):
    """The options of a non-local block."""

    public_name: ClassVar[str] = "NonLocal"
    words: ClassVar[str] = "non-local"
    pairwise: Literal["embedded_gaussian", "gaussian", "dot_product", "dot_product_sum", "concatenation"] = (
        "embedded_gaussian"
    )
    """Pairwise function. dot_product divides by the number of positions, dot_product_sum does not."""
    scale: bool = True
    """Whether the softmax forms divide their logits by the square root of the inner channels."""
    subsample: bool = False
    """Whether phi and g are max-pooled by 2 over space."""
    bias: bool = False
    """Whether theta, phi and g have biases."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale is None:
            object.__setattr__(self, "scale", True)
        check_choice("block.scale", self.scale, (True, False), " for block 'nl'")


@dataclass(frozen=True)
class GeneralizedNonLocalOptions(ShellOptions):
    """The options of a generalized non-local block: the exact form of CGNL, at quadratic cost."""

    public_name: ClassVar[str] = "GeneralizedNonLocal"
    words: ClassVar[str] = "exact CGNL"
    groups: Literal["auto", "channels"] | int = 8
    """Channel groups; auto is the largest number up to 8 that divides the channels, channels one group for each inner
    channel."""
    kernel: Literal["dot", "embedded_gaussian", "rbf", "series"] = "dot"
    """Kernel function. series is a power series of your own, with block.coefficients."""
    order: int | None = None
    """Highest power in the series of embedded_gaussian and rbf; by default 3."""
    gamma: float | None = None
    """Width of rbf; by default 1e-4."""
    beta: Literal["constant", "normalized", "exact"] | None = None
    """How rbf treats the factors that depend on theta or phi alone; by default constant."""
    coefficients: tuple[float, ...] | None = None
    """Coefficients of (theta phi)^0, (theta phi)^1, ... for the kernel series."""
    scale: Literal["sqrt", "mean"] | None = None
    """Scale of the sums: sqrt for 1/sqrt(M), mean for 1/M, or None, which the authors found best."""
    g_std: float | None = field(default=None, metadata=FREE)
    """Standard deviation of g's initial weights; by default 0.01, or 0.2 with scale sqrt and 2 with scale mean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_groups(self.groups)
        check_choice("block.scale", self.scale, (None, "sqrt", "mean"), f" for a {self.public_name} block")
        positive("block.g_std", self.g_std)
        within("block.order", self.order, 0)
        positive("block.gamma", self.gamma)
        self._check_kernel()

    def _check_kernel(self) -> None:
        # an object of cgnl.kernel_functions brings its own settings
        name = self.kernel if isinstance(self.kernel, str) else type(self.kernel).__name__
        if isinstance(self.kernel, str):
            check_choice("block.kernel", name, KERNEL_OPTIONS)
        has = KERNEL_OPTIONS.get(name, ())
        for option in ("order", "gamma", "beta", "coefficients"):
            if getattr(self, option) is not None and option not in has:
                raise ValueError(
                    f"block.{option} ({getattr(self, option)}) is not an option of the kernel {name}, which has "
                    f"{', '.join(has) or 'none'}"
                )
        if name == "series" and self.coefficients is None:
            raise ValueError("block.coefficients is needed with the kernel series")


@dataclass(frozen=True)
class CGNLOptions(GeneralizedNonLocalOptions):
    """The options of a CGNL block."""

    public_name: ClassVar[str] = "CGNL"
    words: ClassVar[str] = ""
    z_groups: int | None = None
    """Groups of conv_z; by default the same as groups."""
    statistic: Literal["sum", "covariance", "correlation"] = "sum"
    """Number that the block computes for each group: the sum of phi times g, as published; their covariance, which is
    the sum around both means; or their correlation. The last two need the kernel dot."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within("block.z_groups", self.z_groups, 1)
        check_choice("block.statistic", self.statistic, ("sum", "covariance", "correlation"))
        name = self.kernel if isinstance(self.kernel, str) else type(self.kernel).__name__
        if self.statistic != "sum" and name not in ("dot", "DotProduct"):
            raise ValueError(
                f"block.statistic ({self.statistic}) must be sum with the kernel {name}; the others need dot"
            )
        if self.statistic == "correlation" and self.scale is not None:
            raise ValueError(f"block.scale ({self.scale}) must be left out with the statistic correlation")


@dataclass(frozen=True)
class CGNLXOptions(CGNLOptions):
    """The options of a CGNLx block: CGNL with the Gaussian RBF."""

    words: ClassVar[str] = "CGNL with the Gaussian RBF"
    kernel: Literal["rbf"] = "rbf"
    """Kernel function, which is always rbf."""
    coefficients: None = None
    """None: rbf has its own series."""

    def _check_kernel(self) -> None:
        super()._check_kernel()
        if isinstance(self.kernel, str) and self.kernel != "rbf":
            raise ValueError(f"block.kernel ({self.kernel!r}) must be 'rbf' for block 'cgnlx'")


@dataclass(frozen=True)
class CorrelationOptions(CGNLOptions):
    """The options of a CGNL block with a correlation for each inner channel."""

    words: ClassVar[str] = "CGNL with a correlation for each channel"
    groups: Literal["auto", "channels"] | int = "channels"
    """Channel groups; channels is one group for each inner channel, auto the largest number up to 8 that divides the
    channels."""
    z_groups: int | None = 1
    """Groups of conv_z; None for the same as groups."""
    statistic: Literal["sum", "covariance", "correlation"] = "correlation"
    """Number that the block computes for each group: the correlation of phi and g, their covariance, or the sum of
    their products, as published."""


@dataclass(frozen=True)
class GlobalContextOptions(SizedOptions):
    """The options of a global context block (GCNet)."""

    public_name: ClassVar[str] = "GlobalContext"
    words: ClassVar[str] = "global context"
    channel_reduction: int = 16
    """Ratio of the map's channels to the block's inner channels."""


@dataclass(frozen=True)
class SqueezeExcitationOptions(SizedOptions):
    """The options of a squeeze-and-excitation block."""

    public_name: ClassVar[str] = "SqueezeExcitation"
    words: ClassVar[str] = "squeeze-and-excitation"
    channel_reduction: int = 16
    """Ratio of the map's channels to the block's inner channels."""


KERNEL_OPTIONS: dict[str, tuple[str, ...]] = {
    "dot": (),
    "embedded_gaussian": ("order",),
    "rbf": ("order", "gamma", "beta"),
    "series": ("coefficients",),
}
"""The names of each kernel function's options, by the name of the kernel function."""

OPTIONS: dict[str, type[BlockOptions]] = {
    "none": BlockOptions,
    "nl": NonLocalOptions,
    "cgnl": CGNLOptions,
    "cgnlx": CGNLXOptions,
    "residual": ResidualOptions,
    "gnl": GeneralizedNonLocalOptions,
    "gc": GlobalContextOptions,
    "se": SqueezeExcitationOptions,
    "cgnl-correlation": CorrelationOptions,
}
"""The options of each kind of block, by its name on the command line."""

BLOCK_OPTIONS = frozenset(field.name for kind in OPTIONS.values() for field in dataclasses.fields(kind))
"""The names of the options of all kinds."""


def options_class(block: str) -> type[BlockOptions]:
    """Return the options class of a kind in ``OPTIONS`` or of a dotted name; raise ValueError for other names."""
    if block in OPTIONS:
        return OPTIONS[block]
    if is_dotted_name(block):
        return BlockOptions
    raise ValueError(
        f"block ({block!r}) must be one of {', '.join(OPTIONS)}, or a class of your own such as mypackage.MyBlock"
    )


def given_places(places: tuple[str, ...]) -> tuple[str, ...]:
    """Return the module paths that blocks follow, or none if cgnl is to find them."""
    return () if places == ("auto",) else places


def check_blocks(block: str, num_blocks: int, places: tuple[str, ...]) -> None:
    """Raise ValueError if there is no such kind of block, or if ``num_blocks`` and ``places`` do not agree."""
    options_class(block)
    within("network.num_blocks", num_blocks, 1)
    if len(set(places)) < len(places):
        raise ValueError(f"network.places ({' '.join(places)}) must name each path once")
    if places and num_blocks not in (1, len(places)):
        raise ValueError(
            f"network.num_blocks ({num_blocks}) must be left out, or be the number of network.places ({len(places)})"
        )


def default_options(block: str, defaults: Mapping[str, Any]) -> BlockOptions:
    """Return the default options of a kind of block; the task's ``defaults`` override those of the kind."""
    kind = options_class(block)
    return kind(**{name: value for name, value in defaults.items() if name in names_of(kind)})


def names_of(kind: BlockOptions | type[BlockOptions]) -> tuple[str, ...]:
    """Return the names of a kind's options."""
    return tuple(field.name for field in dataclasses.fields(kind))


def check_names(block: str, names: typing.Iterable[str], where: str = "") -> None:
    """Raise ValueError if a name is not an option of a kind of block; the message lists the kind's options."""
    has = names_of(options_class(block))
    for name in names:
        if name not in has:
            raise ValueError(f"{where}{name} is not an option of block {block}, which has: {', '.join(has) or 'none'}")


def fitting(kind: type[BlockOptions], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are options of a kind of block and have the right type."""
    hints = typing.get_type_hints(kind)
    found = {}
    for name in names_of(kind):
        if name in values:
            try:
                found[name] = converted(hints[name], values[name], name)
            except ValueError:
                continue
    return found


def carried_over(options: BlockOptions, block: str, defaults: Mapping[str, Any]) -> BlockOptions:
    """Return the options of a block whose kind changes.

    An old option that differs from its default keeps its value if the new kind has the option and the type fits.
    """
    old = type(options)(**{name: value for name, value in defaults.items() if name in names_of(options)})
    changed = {
        name: getattr(options, name) for name in names_of(options) if getattr(options, name) != getattr(old, name)
    }
    return dataclasses.replace(default_options(block, defaults), **fitting(options_class(block), changed))
