"""The shell of blocks Z = norm(conv_z(Y)) + X (Eq. 13): their norms, and their start as the identity.

Legend: B batch, C channels, C' inner channels, S spatial or space-time axes, N positions, G groups.
"""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Self, TypedDict, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import stateless

from cgnl.ops import BatchNorm
from cgnl.ops.precision import is_empty, sum_dtype, without_autocast
from cgnl.settings.checks import check_choice

NormName = Literal["batch", "sync_batch", "group"]
Norm = NormName | None | Callable[[int], nn.Module]
Groups = int | Literal["auto", "channels"]

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_PLAIN_MODULES = (*CONVOLUTIONS.values(), *BATCH_NORMS.values())
_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
# The maximum number of groups with "auto": that of the paper's main rows.
_MOST_GROUPS = 8
_AXES_IN_WORDS = {1: "[B, C, L]", 2: "[B, C, H, W]", 3: "[B, C, T, H, W]"}


class Factory(TypedDict):
    """Device and type of the parameters and buffers of a new block; None for PyTorch's defaults."""

    device: torch.device | str | int | None
    dtype: torch.dtype | None


class Block(nn.Module):
    """The shell of blocks: checks, norm, residual, and the start as the identity."""

    num_axes: int
    theta: _ConvNd
    phi: _ConvNd
    g: _ConvNd
    concat: _ConvNd
    z: _ConvNd
    norm: nn.Module | None

    def __init__(self, channels: int, inner_channels: int | None, groups: Groups, z_groups: int | None = None) -> None:
        super().__init__()
        check_positive("channels", channels)
        if inner_channels is None:
            inner_channels = max(1, channels // 2)
        check_positive("inner_channels", inner_channels)
        self.channels = channels
        self.inner_channels = inner_channels
        if z_groups is None:
            self.groups = self.z_groups = _fitting_groups(groups, channels, inner_channels)
        else:
            self.z_groups = _fitting_groups(z_groups, channels, inner_channels, "z_groups")
            # the sums see the inner channels alone
            self.groups = _fitting_groups(groups, inner_channels, inner_channels)

    def _convolution(
        self,
        in_channels: int,
        out_channels: int,
        factory: Factory,
        *,
        groups: int = 1,
        bias: bool = False,
        std: float = 0.01,
    ) -> _ConvNd:
        convolution = CONVOLUTIONS[self.num_axes](in_channels, out_channels, 1, groups=groups, bias=bias, **factory)
        nn.init.normal_(convolution.weight, std=std)
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)
        return convolution

    def _finish(self, norm: Norm, factory: Factory) -> None:
        """Make conv_z and the norm, with the zeros that turn the block into the identity."""
        self.z = self._convolution(self.inner_channels, self.channels, factory, groups=self.z_groups)
        self.norm = _make_norm(norm, self.channels, self.z_groups, self.num_axes, factory)
        weight, bias = (getattr(self.norm, name, None) for name in ("weight", "bias"))
        if isinstance(weight, nn.Parameter):
            nn.init.zeros_(weight)
            if isinstance(bias, nn.Parameter):
                nn.init.zeros_(bias)
        else:
            nn.init.zeros_(self.z.weight)

    def _operation(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """Return Y of x, [B, C', *S], by calling the convolutions as modules."""
        raise NotImplementedError

    def _branch(self, x: Tensor) -> Tensor:
        """Return conv_z(Y) of x, [B, C, *S], in the type in which the operation sums."""
        dtype = sum_dtype(x.dtype)
        y = self._operation(x, dtype)
        weight = self.z.weight.to(dtype)
        with without_autocast(x):
            bias = None if self.z.bias is None else self.z.bias.to(dtype)
            convolve = partial(_CONVOLVE[self.num_axes], weight=weight, bias=bias, groups=self.z.groups)
            return of_any_size(convolve, y.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for x [B, C, *S], in its shape, type and memory format.

        Raises ValueError if x has another number of axes or channels than the block.
        """
        if isinstance(x, fx.Proxy):
            return self._through_modules(x)
        self._check_input(x)
        run = self._through_operations if self._fits_operation() else self._through_modules
        # a process that shares its samples with others must take part in each exchange
        return run(x) if getattr(self, "process_group", None) is not None else of_any_size(run, x)

    def _fits_operation(self) -> bool:
        """Tell whether an operation on the weights gives the same result as calling the convolutions."""
        return all(is_plain(child) and _is_pointwise(child) for name, child in self.named_children() if name != "norm")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # a process group cannot be copied: the copy shares it
        process_group = getattr(self, "process_group", None)
        memo[id(process_group)] = process_group
        result = type(self).__new__(type(self))
        memo[id(self)] = result
        result.__setstate__(copy.deepcopy(self.__dict__, memo))
        return result

    def _through_modules(self, x: Tensor) -> Tensor:
        """Return Z by calling every child module: for tracers, hooks, and children that were replaced."""
        branch = of_any_size(self.z, self._operation(x))
        return (x + (branch if self.norm is None else self.norm(branch))).to(x.dtype)

    def _through_operations(self, x: Tensor) -> Tensor:
        """Return Z with conv_z and norm in the type in which the operation sums, so that half types do not overflow."""
        branch = self._branch(x)
        return (x + (branch if self.norm is None else _run_norm(self.norm, branch))).to(x.dtype)

    def _check_input(self, x: Tensor) -> None:
        check_input(self, x, self.num_axes, self.channels)

    def fuse(self) -> Self:
        """Fold the norm into conv_z in place, for inference; return the block, whose output is the same up to rounding.

        The block then has a new conv_z with a bias, and None as its norm. So its state dict differs, and it cannot be
        trained. A block without a norm stays as it is. Raises ValueError if the block is in training, its norm is
        neither BatchNorm with running statistics nor None, or conv_z or the norm was changed (another module, hooks, a
        bias).

        Example:
            >>> from cgnl import CGNL2d
            >>> sorted(CGNL2d(16).eval().fuse().state_dict())
            ['g.weight', 'phi.weight', 'theta.weight', 'z.bias', 'z.weight']
        """
        self._check_fuse()
        if self.norm is None:
            return self
        z = copy.deepcopy(self.z)  # other modules, such as a stream, may hold the old one
        with torch.no_grad():
            norm = described(self.norm)
            assert norm is not None
            scale, shift = norm.as_affine(sum_dtype(z.weight.dtype))
            z.weight.copy_(z.weight * scale.reshape(-1, *(1,) * (z.weight.dim() - 1)))
            z.bias = nn.Parameter(shift.to(z.weight.dtype))
        self.z = z
        self.norm = None
        return self.requires_grad_(False)

    def _check_fuse(self) -> None:
        name = type(self).__name__
        if self.training:
            raise ValueError(f"{name} is in training, but fuse is for inference: call eval() first")
        if self.norm is None:
            return
        if not _can_be_folded(self.norm):
            raise ValueError(
                f"norm is {type(self.norm).__name__}, but only BatchNorm with running statistics can be folded"
            )
        plain_norm = is_plain(self.norm) or (type(self.norm) is nn.SyncBatchNorm and has_no_hooks(self.norm))
        if not (plain_norm and is_plain(self.z) and _is_pointwise(self.z) and self.z.bias is None):
            raise ValueError(f"conv_z or the norm of {name} was changed or has hooks, and cannot be folded")

    def train(self, mode: bool = True) -> Self:
        if mode and self.norm is None and self.z.bias is not None:
            raise ValueError(f"{type(self).__name__} is fused for inference and cannot be trained")
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, inner_channels={self.inner_channels}, groups={self.groups}"


def _make_norm(norm: Norm, channels: int, groups: int, num_axes: int, factory: Factory) -> nn.Module | None:
    if norm is None:
        return None
    if isinstance(norm, nn.Module):
        raise ValueError(
            f"norm must be a function of the channel count that makes a module, not a {type(norm).__name__}"
        )
    if callable(norm):
        made = norm(channels)
        return made if made is None else made.to(**factory)
    check_choice("norm", norm, (*get_args(NormName), None), " or a function of the channel count")
    if norm == "group":
        return nn.GroupNorm(groups, channels, **factory)
    return (nn.SyncBatchNorm if norm == "sync_batch" else BATCH_NORMS[num_axes])(channels, **factory)


def _fitting_groups(groups: Groups, channels: int, inner_channels: int, name: str = "groups") -> int:
    """Return the number of groups, or raise ValueError if it does not divide the channels and inner channels."""
    if groups == "auto":
        return next(
            number for number in range(_MOST_GROUPS, 0, -1) if not (channels % number or inner_channels % number)
        )
    if groups == "channels":
        groups = inner_channels
    check_positive(name, groups, " or 'auto' or 'channels'" if name == "groups" else "")
    for counted, count in (("channels", channels), ("inner_channels", inner_channels)):
        if count % groups:
            common = math.gcd(channels, inner_channels)
            fitting = ", ".join(str(number) for number in range(1, common + 1) if not common % number)
            raise ValueError(
                f"{counted} ({count}) must be divisible by {name} ({groups}); {name} that fit channels={channels} and "
                f"inner_channels={inner_channels}: {fitting}"
            )
    return groups


def fuse_blocks(model: nn.Module) -> nn.Module:
    """Fold the norm of every block of a network into its conv_z, for inference; see `Block.fuse`.

    Args:
        model: A network in eval mode, changed in place. Blocks without a foldable norm stay as they are.

    Returns:
        The same ``model``.

    Raises:
        ValueError: A block is in training, or was changed so that its norm cannot be folded. Then no block is folded.

    Example:
        >>> from cgnl import CGNL2d, fuse_blocks
        >>> fuse_blocks(nn.Sequential(CGNL2d(16), nn.ReLU()).eval())[0].norm is None
        True
    """
    blocks = [module for module in model.modules() if isinstance(module, Block) and _can_be_folded(module.norm)]
    for block in blocks:
        block._check_fuse()
    for block in blocks:
        block.fuse()
    return model


def _can_be_folded(norm: nn.Module | None) -> bool:
    return isinstance(norm, _BatchNorm) and norm.running_mean is not None


def described(norm: nn.Module | None) -> BatchNorm | None:
    """Return a BatchNorm in the form that the operations take, or None for no norm."""
    if norm is None:
        return None
    assert isinstance(norm, _BatchNorm)
    # a norm that does not track its statistics leaves them unchanged in training
    is_tracked = norm.track_running_stats or not norm.training
    return BatchNorm(
        norm.weight,
        norm.bias,
        norm.running_mean if is_tracked else None,
        norm.running_var if is_tracked else None,
        norm.num_batches_tracked if is_tracked else None,
        norm.eps,
        norm.momentum,
        norm.training,
        type(norm) is nn.SyncBatchNorm,
    )


def _run_norm(norm: nn.Module, branch: Tensor) -> Tensor:
    """Run the norm in the type of ``branch``, even if its parameters have a half type."""
    branch = _in_plain_strides(branch)
    tensors = {**dict(norm.named_parameters()), **dict(norm.named_buffers())}
    converted = {
        name: tensor.to(branch.dtype)
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.dtype != branch.dtype
    }
    if not converted:
        return norm(branch)
    # as in `torch.func.functional_call`, which cannot be traced
    with stateless._reparametrize_module(norm, converted):
        out = norm(branch)
    for name, buffer in norm.named_buffers():
        if name in converted:
            buffer.copy_(converted[name])
    return out


def _in_plain_strides(branch: Tensor) -> Tensor:
    """Return the branch itself, or a copy if an axis of size 1 has an odd stride.

    For such strides, PyTorch takes the channels as last in one place and as first in another, and BatchNorm's gradients
    on a CPU are wrong.
    """
    if torch._C._are_functorch_transforms_active():
        return branch.clone(memory_format=torch.contiguous_format)  # vmap hides the strides
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(branch.dim())
    for memory_format in (last, torch.contiguous_format):
        if memory_format is not None and branch.is_contiguous(memory_format=memory_format):
            expected = torch.empty(branch.shape, device="meta", memory_format=memory_format).stride()
            return branch if branch.stride() == expected else branch.clone(memory_format=memory_format)
    return branch


def of_any_size(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run the function on a map, even on a map without positions, which PyTorch's convolutions refuse."""
    if isinstance(x, fx.Proxy) or not (is_empty(x) and 0 in x.shape[2:]):
        return function(x)
    # an empty batch of maps that are large enough to be pooled
    out = function(x.reshape(0, x.shape[1], *(2,) * (x.dim() - 2)))
    return out.reshape(x.shape[0], out.shape[1], *x.shape[2:])


def is_plain(module: nn.Module) -> bool:
    """Tell whether calling the module runs only its own operation on its own tensors."""
    return type(module) in _PLAIN_MODULES and has_no_hooks(module)


def has_no_hooks(module: nn.Module) -> bool:
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


def _is_pointwise(convolution: nn.Module) -> bool:
    return (
        isinstance(convolution, _ConvNd)
        and {*convolution.kernel_size, *convolution.stride} == {1}
        and convolution.padding in ((0,), (0, 0), (0, 0, 0))
    )


def check_input(block: nn.Module, x: Tensor, num_axes: int, channels: int) -> None:
    """Raise ValueError if x has another number of axes or channels than the block."""
    name = type(block).__name__
    if x.dim() != num_axes + 2:
        raise ValueError(f"x {tuple(x.shape)} must be {_AXES_IN_WORDS[num_axes]} for {name}")
    if x.shape[1] != channels:
        raise ValueError(f"x {tuple(x.shape)} has {x.shape[1]} channels, but the block has channels={channels}")


def check_positive(name: str, value: object, more: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} ({value!r}) must be an integer of at least 1{more}")
