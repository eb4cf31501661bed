"""Blocks to put into a network: (compact generalized) non-local ones and the simple residual one.

Every block is Z = norm(conv_z(Y)) + X (Eq. 13) with its own operation Y. It starts as the exact identity: the
weight and bias of its norm are zero at first, or conv_z's weight where the norm has none.

Legend: B batch, C channels, C' inner channels, S spatial or space-time axes, N positions, G groups.

State dict: ``theta.weight``, ``phi.weight``, ``g.weight``, ``z.weight``, ``norm.*``, and biases where asked
for.

Source: Yue et al., "Compact Generalized Non-local Network", NeurIPS 2018.
"""

import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from cgnl.kernel_functions import KernelFunction, resolve_kernel_function
from cgnl.ops import (
    Backend,
    Pairwise,
    Scale,
    cgnl_block,
    compact_generalized_non_local,
    generalized_non_local,
    non_local,
    scale_factor,
)
from cgnl.ops.eager import (
    autocast_is_on,
    autograd_function_can_run,
    cgnl_block_batch_norm,
    sum_dtype,
    without_autocast,
)

NormName = Literal["batch", "sync_batch", "group"]
Norm = NormName | None | Callable[[int], nn.Module]

# Symbolic tracing records an operation as one call: inside they look at shapes and types.
fx.wrap("compact_generalized_non_local")
fx.wrap("generalized_non_local")
fx.wrap("non_local")

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_PLAIN_MODULES = (*_CONVOLUTIONS.values(), *_BATCH_NORMS.values())
_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_POOL_SIZE: dict[int, Any] = {1: 2, 2: 2, 3: (1, 2, 2)}
_AXES_IN_WORDS = {1: "[B, C, L]", 2: "[B, C, H, W]", 3: "[B, C, T, H, W]"}


class SingleSampleWarning(UserWarning):
    """BatchNorm sees one sample, which takes out of a CGNL block what the block adds."""


class _Block(nn.Module):
    """The shell of all blocks: checks, norm, residual, start as the identity."""

    num_axes: int
    theta: _ConvNd
    phi: _ConvNd
    g: _ConvNd
    concat: _ConvNd
    z: _ConvNd
    norm: nn.Module | None

    def __init__(self, channels: int, inner_channels: int | None, groups: int) -> None:
        super().__init__()
        _check_positive("channels", channels)
        if inner_channels is None:
            inner_channels = max(1, channels // 2)
        _check_positive("inner_channels", inner_channels)
        _check_positive("groups", groups)
        for name, count in (("channels", channels), ("inner_channels", inner_channels)):
            if count % groups:
                raise ValueError(f"{name} ({count}) must be divisible by groups ({groups})")
        self.channels = channels
        self.inner_channels = inner_channels
        self.groups = groups

    def _convolution(self, in_channels: int, out_channels: int, *, groups: int = 1, bias: bool = False) -> _ConvNd:
        convolution = _CONVOLUTIONS[self.num_axes](in_channels, out_channels, 1, groups=groups, bias=bias)
        nn.init.normal_(convolution.weight, std=0.01)
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)
        return convolution

    def _finish(self, norm: Norm, norm_groups: int) -> None:
        """Makes conv_z and the norm, with zeros where they turn the block into the identity."""
        self.z = self._convolution(self.inner_channels, self.channels, groups=self.groups)
        self.norm = _make_norm(norm, self.channels, norm_groups, self.num_axes)
        weight, bias = (getattr(self.norm, name, None) for name in ("weight", "bias"))
        if isinstance(weight, nn.Parameter):
            nn.init.zeros_(weight)
            if isinstance(bias, nn.Parameter):
                nn.init.zeros_(bias)
        else:
            nn.init.zeros_(self.z.weight)

    def _convolutions(self) -> tuple[nn.Module, ...]:
        return tuple(child for name, child in self.named_children() if name != "norm")

    def _operation(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """Y of x, [B, C', *S], through the convolutions as modules."""
        raise NotImplementedError

    def _branch(self, x: Tensor) -> Tensor:
        """conv_z(Y) of x, [B, C, *S], in the type in which the operation sums."""
        dtype = sum_dtype(x.dtype)
        y = self._operation(x, dtype)
        weight = self.z.weight.to(dtype)
        with without_autocast(x):
            return _CONVOLVE[self.num_axes](y.to(dtype), weight, groups=self.z.groups)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output.

        Args:
            x: [B, C, *S].

        Returns:
            [B, C, *S], in x's type and memory format.

        Raises:
            ValueError: x has another number of axes or channels than the block.
        """
        if isinstance(x, fx.Proxy):
            return self._through_modules(x)
        self._check_input(x)
        if all(map(_is_plain, self._convolutions())):
            return self._through_operations(x)
        return self._through_modules(x)

    def _through_modules(self, x: Tensor) -> Tensor:
        """Z by calling every child module: for tracers, hooks, and children that were replaced."""
        branch = self.z(self._operation(x))
        return (x + (branch if self.norm is None else self.norm(branch))).to(x.dtype)

    def _through_operations(self, x: Tensor) -> Tensor:
        """Z with conv_z and norm in the type in which the operation sums, so that half types do not overflow."""
        branch = self._branch(x)
        return (x + (branch if self.norm is None else _run_norm(self.norm, branch))).to(x.dtype)

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != self.num_axes + 2:
            raise ValueError(f"x {tuple(x.shape)} must be {_AXES_IN_WORDS[self.num_axes]} for {type(self).__name__}")
        if x.shape[1] != self.channels:
            raise ValueError(
                f"x {tuple(x.shape)} has {x.shape[1]} channels, but the block has channels={self.channels}"
            )

    def extra_repr(self) -> str:
        return f"channels={self.channels}, inner_channels={self.inner_channels}, groups={self.groups}"


class _GroupedBlock(_Block):
    """What the exact and the compact generalized non-local blocks share."""

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        groups: int = 8,
        kernel: str | KernelFunction = "dot",
        norm: Norm = "batch",
        scale: Scale | None = None,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(channels, inner_channels, groups)
        self.kernel = resolve_kernel_function(kernel)
        _check_choice("scale", scale, (None, *get_args(Scale)))
        _check_choice("backend", backend, get_args(Backend))
        self.scale = scale
        self.backend = backend
        self.theta = self._convolution(self.channels, self.inner_channels)
        self.phi = self._convolution(self.channels, self.inner_channels)
        self.g = self._convolution(self.channels, self.inner_channels)
        self._finish(norm, groups)

    def _check_input(self, x: Tensor) -> None:
        super()._check_input(x)
        if (
            not torch.compiler.is_compiling()
            and x.shape[0] == 1
            and isinstance(self.norm, nn.Module)
            and self.norm.training
            and _is_over_this_process(self.norm)
        ):
            _warn_of_single_sample()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kernel={self.kernel}, scale={self.scale!r}, backend={self.backend!r}"


class _CompactBlock(_GroupedBlock):
    def _operation(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        return compact_generalized_non_local(
            self.theta(x),
            self.phi(x),
            self.g(x),
            groups=self.groups,
            kernel=self.kernel,
            scale=self.scale,
            backend=self.backend,
            out_dtype=out_dtype,
        )

    def _weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.theta.weight, self.phi.weight, self.g.weight, self.z.weight

    def _branch(self, x: Tensor) -> Tensor:
        return cgnl_block(
            x,
            *self._weights(),
            groups=self.groups,
            kernel=self.kernel,
            scale=self.scale,
            backend=self.backend,
            out_dtype=sum_dtype(x.dtype),
        )

    def _through_operations(self, x: Tensor) -> Tensor:
        norm = self.norm
        if (
            self.backend == "naive"
            or not self.kernel.is_plain_series
            or not isinstance(norm, _BatchNorm)
            or not (norm.training or norm.running_mean is None)
            or not _is_plain(norm)
            or not autograd_function_can_run(x, *self._weights())
            or (x.dtype != self.theta.weight.dtype and not autocast_is_on(x))
        ):
            return super()._through_operations(x)
        if x.shape[0] * math.prod(x.shape[2:]) == 1:
            raise ValueError(f"x {tuple(x.shape)} must have more than 1 value per channel in training")
        momentum, running_mean, running_var = 0.0, None, None
        if norm.training and norm.track_running_stats:
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.add_(1)
            momentum = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            running_mean, running_var = norm.running_mean, norm.running_var
        return cgnl_block_batch_norm(
            x,
            *self._weights(),
            norm.weight,
            norm.bias,
            running_mean,
            running_var,
            groups=self.groups,
            kernel=self.kernel,
            factor=scale_factor(self.scale, self.inner_channels // self.groups * math.prod(x.shape[2:])),
            eps=norm.eps,
            momentum=momentum,
        )


class CGNL1d(_CompactBlock):
    """Compact generalized non-local block for sequences; see `CGNL2d`.

    Example:
        >>> CGNL1d(64)(torch.randn(2, 64, 20)).shape
        torch.Size([2, 64, 20])
    """

    num_axes = 1


class CGNL2d(_CompactBlock):
    """Compact generalized non-local block for images: Z = norm(conv_z(Y)) + X (Eq. 12-13, Fig. 2).

    Relates every element (position and channel) of a group with every other at a cost linear in their number.

    The paper's norm is BatchNorm. The released code has GroupNorm with the same groups as conv_z: it
    normalises each sample and group on its own and so, with the dot product, divides out the scalar phi^T g
    again except for its sign. BatchNorm in training with one sample per process does the same, hence the
    warning; use ``"sync_batch"`` in several processes then, or frozen statistics. ``"group"`` is for loading
    the released checkpoints.

    Eq. 2 prints C' = C; the default of C/2 is the released code's.

    Args:
        channels: C.
        inner_channels: C'; None for C // 2.
        groups: G, must divide C and C'.
        kernel: ``"dot"``, ``"embedded_gaussian"``, ``"rbf"`` or a kernel function.
        norm: ``"batch"``, ``"sync_batch"``, ``"group"``, None, or a function of C that makes a module.
        scale: factor on the sums: None (1, the paper's), ``"sqrt"`` (1 / sqrt(M)) or ``"mean"`` (1 / M),
            where M counts the elements of one group.
        backend: ``"auto"``, ``"eager"`` or ``"naive"``.

    Raises:
        ValueError: an argument is outside its range.

    Source: Yue et al., NeurIPS 2018.

    Example:
        >>> block = CGNL2d(64)
        >>> x = torch.randn(2, 64, 14, 14)
        >>> torch.equal(block(x), x)  # exactly the identity until it is trained
        True
    """

    num_axes = 2


class CGNL3d(_CompactBlock):
    """Compact generalized non-local block for videos, over space and time; see `CGNL2d`."""

    num_axes = 3


class _ExactBlock(_GroupedBlock):
    def _operation(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        return generalized_non_local(
            self.theta(x),
            self.phi(x),
            self.g(x),
            groups=self.groups,
            kernel=self.kernel,
            scale=self.scale,
            backend=self.backend,
            out_dtype=out_dtype,
        )


class GeneralizedNonLocal1d(_ExactBlock):
    """Generalized non-local block for sequences; see `GeneralizedNonLocal2d`."""

    num_axes = 1


class GeneralizedNonLocal2d(_ExactBlock):
    """Generalized non-local block for images: the exact kernel function over all pairs (Eq. 7-8, 13).

    What `CGNL2d` approximates: same arguments, same state dict, time that grows with the square of the input.
    Memory stays bounded.

    Args:
        channels: C.
        inner_channels: C'; None for C // 2.
        groups: G, must divide C and C'.
        kernel: as in `CGNL2d`; its exact form is taken.
        norm: as in `CGNL2d`.
        scale: as in `CGNL2d`.
        backend: ``"auto"``, ``"eager"`` or ``"naive"``.

    Raises:
        ValueError: an argument is outside its range.

    Source: Yue et al., NeurIPS 2018.

    Example:
        >>> block = GeneralizedNonLocal2d(16, groups=2)
        >>> block.load_state_dict(CGNL2d(16, groups=2).state_dict())
        <All keys matched successfully>
    """

    num_axes = 2


class GeneralizedNonLocal3d(_ExactBlock):
    """Generalized non-local block for videos; see `GeneralizedNonLocal2d`."""

    num_axes = 3


class _NonLocalBlock(_Block):
    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        pairwise: Pairwise = "embedded_gaussian",
        scale: bool = True,
        subsample: bool = False,
        norm: Norm = "batch",
        bias: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(channels, inner_channels, 1)
        _check_choice("pairwise", pairwise, get_args(Pairwise))
        _check_choice("backend", backend, get_args(Backend))
        self.pairwise = pairwise
        self.scale = scale
        self.subsample = subsample
        self.backend = backend
        if pairwise != "gaussian":
            self.theta = self._convolution(self.channels, self.inner_channels, bias=bias)
            self.phi = self._convolution(self.channels, self.inner_channels, bias=bias)
        self.g = self._convolution(self.channels, self.inner_channels, bias=bias)
        if pairwise == "concatenation":
            self.concat = self._convolution(2 * self.inner_channels, 1)
        self._finish(norm, 1)

    def _operation(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        gaussian = self.pairwise == "gaussian"
        theta, phi = (x, x) if gaussian else (self.theta(x), self.phi(x))
        g = self.g(x)
        if self.subsample:
            phi, g = (_POOL[self.num_axes](t, _POOL_SIZE[self.num_axes]) for t in (phi, g))
        return non_local(
            theta,
            phi,
            g,
            pairwise=self.pairwise,
            scale=self.scale,
            concat_weight=self.concat.weight if self.pairwise == "concatenation" else None,
            backend=self.backend,
            out_dtype=out_dtype,
        )

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, inner_channels={self.inner_channels}, pairwise={self.pairwise!r}, "
            f"scale={self.scale}, subsample={self.subsample}"
        )


class NonLocal1d(_NonLocalBlock):
    """Non-local block for sequences; see `NonLocal2d`."""

    num_axes = 1


class NonLocal2d(_NonLocalBlock):
    """Non-local block for images: Z = norm(conv_z(Y)) + X with Y over all pairs of positions (Eq. 1-4).

    conv_z is not grouped and has no bias; neither has the concatenation's projection.

    Args:
        channels: C.
        inner_channels: C'; None for C // 2.
        pairwise: ``"embedded_gaussian"``, ``"gaussian"`` (theta = phi = x), ``"dot_product"`` or
            ``"concatenation"``.
        scale: whether softmax forms divide their logits by the square root of theta's channels.
        subsample: whether phi and g are max-pooled by 2 along the spatial axes, and never along time.
        norm: ``"batch"``, ``"sync_batch"``, ``"group"`` (one group), None, or a function of C that makes a
            module.
        bias: whether theta, phi and g have biases.
        backend: ``"auto"``, ``"eager"`` or ``"naive"``.

    Raises:
        ValueError: an argument is outside its range.

    Source: Wang et al., "Non-local Neural Networks", CVPR 2018.

    Example:
        >>> NonLocal2d(64, pairwise="dot_product")(torch.randn(2, 64, 14, 14)).shape
        torch.Size([2, 64, 14, 14])
    """

    num_axes = 2


class NonLocal3d(_NonLocalBlock):
    """Non-local block for videos, over space and time; see `NonLocal2d`."""

    num_axes = 3


class _ResidualBlock(_Block):
    def __init__(
        self, channels: int, *, inner_channels: int | None = None, groups: int = 8, norm: Norm = "batch"
    ) -> None:
        super().__init__(channels, inner_channels, groups)
        self.theta = self._convolution(self.channels, self.inner_channels)
        self._finish(norm, groups)

    def _operation(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        return self.theta(x)


class ResidualBlock2d(_ResidualBlock):
    """Simple residual block for images: Z = norm(conv_z(conv_theta(X))) + X (Fig. 4).

    The comparison of Table 3, a CGNL block without attention: it has the CGNL block's conv_theta and conv_z and lacks
    phi and g. The paper does not say whether its conv_z is grouped; it is here, as the CGNL block's, so that the two
    differ by the attention alone.

    Args:
        channels: C.
        inner_channels: C'; None for C // 2.
        groups: groups of conv_z, must divide C and C'.
        norm: as in `CGNL2d`.

    Raises:
        ValueError: an argument is outside its range.

    Source: Yue et al., NeurIPS 2018.

    Example:
        >>> ResidualBlock2d(64)(torch.randn(2, 64, 14, 14)).shape
        torch.Size([2, 64, 14, 14])
    """

    num_axes = 2


class ResidualBlock3d(_ResidualBlock):
    """Simple residual block for videos; see `ResidualBlock2d`."""

    num_axes = 3


def _make_norm(norm: Norm, channels: int, groups: int, num_axes: int) -> nn.Module | None:
    if norm is None:
        return None
    if callable(norm):
        return norm(channels)
    _check_choice("norm", norm, (*get_args(NormName), None), " or a function of the channel count")
    if norm == "group":
        return nn.GroupNorm(groups, channels)
    return nn.SyncBatchNorm(channels) if norm == "sync_batch" else _BATCH_NORMS[num_axes](channels)


def _is_over_this_process(norm: nn.Module) -> bool:
    """Whether the norm takes its statistics in training over the samples of this process alone."""
    if type(norm) is nn.SyncBatchNorm:
        distributed = torch.distributed
        return not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1)
    return type(norm) in _BATCH_NORMS.values()


def _run_norm(norm: nn.Module, branch: Tensor) -> Tensor:
    """The norm in the type of ``branch``, also where its parameters are of a half type."""
    tensors = {**dict(norm.named_parameters()), **dict(norm.named_buffers())}
    converted = {
        name: tensor.to(branch.dtype)
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.dtype != branch.dtype
    }
    if not converted:
        return norm(branch)
    out = torch.func.functional_call(norm, converted, (branch,))
    for name, buffer in norm.named_buffers():
        if name in converted:
            buffer.copy_(converted[name])
    return out


def _is_plain(module: nn.Module) -> bool:
    """Whether the module's own operation on its own tensors is all that a call of it does."""
    return type(module) in _PLAIN_MODULES and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


def _check_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} ({value!r}) must be an integer of at least 1")


def _check_choice(name: str, value: object, choices: tuple[object, ...], more: str = "") -> None:
    if value not in choices:
        raise ValueError(f"{name} ({value!r}) must be one of {', '.join(map(repr, choices))}{more}")


@cache
def _warn_of_single_sample() -> None:
    warnings.warn(
        "A CGNL block with BatchNorm is in training with one sample per process: its norm then divides out "
        'the scalars that the block computes. Use a larger batch, norm="sync_batch" over several processes, or '
        "frozen statistics.",
        SingleSampleWarning,
        stacklevel=2,
    )
