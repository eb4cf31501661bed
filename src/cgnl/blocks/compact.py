"""Compact generalized non-local blocks (Eq. 12-13, Fig. 2).

Legend: B batch, C channels, C' inner channels, S spatial or space-time axes, N positions, G groups.
"""

import warnings
from functools import cache
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn

from cgnl.blocks.grouped import GroupedBlock, is_over_this_process
from cgnl.blocks.shell import BATCH_NORMS, Groups, Norm, described, has_no_hooks, is_plain, of_any_size
from cgnl.kernel_functions import KernelFunction
from cgnl.ops import Backend, Scale, cgnl_block, cgnl_block_with_norm, compact_generalized_non_local
from cgnl.ops.parallel import ProcessGroup
from cgnl.ops.precision import sum_dtype
from cgnl.ops.statistics import Statistic, check_statistic

# Symbolic tracing records an operation as one call, because its code depends on shapes and types.
fx.wrap("compact_generalized_non_local")


class _CompactBlock(GroupedBlock):
    backends = get_args(Backend)
    # since version 2, beta="normalized" has its envelope
    _version = 2

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        groups: Groups = "auto",
        z_groups: int | None = None,
        statistic: Statistic = "sum",
        kernel: str | KernelFunction = "dot",
        norm: Norm = "batch",
        scale: Scale | None = None,
        g_std: float | None = None,
        backend: Backend = "auto",
        memory_efficient: bool = False,
        process_group: ProcessGroup | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            channels,
            inner_channels=inner_channels,
            groups=groups,
            z_groups=z_groups,
            kernel=kernel,
            norm=norm,
            scale=scale,
            g_std=g_std,
            backend=backend,
            device=device,
            dtype=dtype,
        )
        if process_group is not None and norm not in ("batch", "sync_batch", None):
            raise ValueError(f"norm ({norm!r}) must be 'batch', 'sync_batch' or None with a process_group")
        check_statistic(statistic, self.kernel, scale)
        self.statistic = statistic
        self.memory_efficient = memory_efficient
        self.process_group = process_group
        self._pickled_version = self._version

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.z_groups != self.groups:
            text += f", z_groups={self.z_groups}"
        if self.statistic != "sum":
            text += f", statistic={self.statistic!r}"
        if self.memory_efficient:
            text += ", memory_efficient=True"
        return text if self.process_group is None else text + f", process_group={self.process_group}"

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if self.kernel.normalizes_features and (local_metadata.get("version") or 1) < 2:
            _warn_of_normalized_features()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["kernel"].normalizes_features and "_pickled_version" not in state:
            _warn_of_normalized_features()
        # older pickles have neither
        super().__setstate__({"z_groups": state["groups"], "statistic": "sum", **state})

    def _check_input(self, x: Tensor) -> None:
        super()._check_input(x)
        norm = self.norm
        over_a_part = norm is not None and norm.training and type(norm) in BATCH_NORMS.values()
        if self.process_group is not None and over_a_part:
            raise ValueError(
                "norm 'batch' in training would see only a part of each sample: with a process_group, use "
                "norm='sync_batch' or frozen statistics (block.norm.eval())"
            )

    def _operation(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        return compact_generalized_non_local(
            *(of_any_size(convolution, x) for convolution in (self.theta, self.phi, self.g)),
            groups=self.groups,
            kernel=self.kernel,
            scale=self.scale,
            statistic=self.statistic,
            backend=self.backend,
            out_dtype=out_dtype,
            process_group=self.process_group,
        )

    def _weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.theta.weight, self.phi.weight, self.g.weight, self.z.weight

    def _fits_operation(self) -> bool:
        biases = (self.theta.bias, self.phi.bias, self.g.bias, None if self.norm is None else self.z.bias)
        return super()._fits_operation() and all(bias is None for bias in biases)

    def _branch(self, x: Tensor) -> Tensor:
        branch = cgnl_block(
            x,
            *self._weights(),
            groups=self.groups,
            kernel=self.kernel,
            scale=self.scale,
            statistic=self.statistic,
            z_groups=self.z_groups,
            backend=self.backend,
            out_dtype=sum_dtype(x.dtype),
            memory_efficient=self.memory_efficient,
            process_group=self.process_group,
        )
        if self.z.bias is None:
            return branch
        return branch + self.z.bias.to(branch.dtype).reshape(-1, *(1,) * self.num_axes)

    def _through_operations(self, x: Tensor) -> Tensor:
        """Return Z with the norm and the residual inside the operation, if the operation knows the norm."""
        out = None
        if is_known(self.norm):
            out = cgnl_block_with_norm(
                x,
                *self._weights(),
                self.z.bias,
                described(self.norm),
                groups=self.groups,
                kernel=self.kernel,
                scale=self.scale,
                statistic=self.statistic,
                z_groups=self.z_groups,
                backend=self.backend,
                memory_efficient=self.memory_efficient,
                process_group=self.process_group,
            )
        return super()._through_operations(x) if out is None else out


@cache
def _warn_of_normalized_features() -> None:
    warnings.warn(
        'The state dict of a block with beta="normalized" may come from cgnl 0.1, which had the constant exp(-2 gamma) '
        "in place of the factors exp(-gamma t^2) exp(-gamma u^2). A block trained with that version now gives other "
        "results: train it further, or multiply conv_z's weight by exp(-2 gamma).",
        stacklevel=2,
    )


def is_known(norm: nn.Module | None) -> bool:
    """Tell whether the operations have this norm."""
    if norm is None or is_plain(norm):
        return True
    if type(norm) is not nn.SyncBatchNorm or not has_no_hooks(norm):
        return False
    return not norm.training or is_over_this_process(norm)


class CGNL1d(_CompactBlock):
    """Compact generalized non-local block for sequences; see `CGNL2d`.

    Example:
        >>> CGNL1d(64)(torch.randn(2, 64, 20)).shape
        torch.Size([2, 64, 20])
    """

    num_axes = 1


class CGNL2d(_CompactBlock):
    """Compact generalized non-local block for images: Z = norm(conv_z(Y)) + X (Eq. 12-13, Fig. 2).

    It relates every element (position and channel) of a group to every other, at a cost linear in their number.

    The paper's norm is BatchNorm. The released code has GroupNorm with the same groups as conv_z. That normalises each
    sample and group on its own, and so, with the dot product, divides out the scalar phi^T g except for its sign.
    BatchNorm in training on one sample per process does the same, so the block warns; use ``"sync_batch"`` over several
    processes, or frozen statistics. ``"group"`` is for loading the released checkpoints.

    Eq. 2 prints C' = C; the default of C/2 is the released code's.

    Args:
        channels: C.
        inner_channels: C'; None for C // 2.
        groups: G, must divide C', and without ``z_groups`` also C; ``"auto"`` for the largest number up to 8 that
            divides both, ``"channels"`` for one group for each inner channel.
        z_groups: Groups of conv_z (and of GroupNorm), must divide C and C'; None for G.
        statistic: The number s of a group: the ``"sum"`` of phi g (the paper's), or of the dot product the
            ``"covariance"`` of phi and g, their sum around both means, or their ``"correlation"``, -1 to 1.
        kernel: ``"dot"``, ``"embedded_gaussian"``, ``"rbf"`` or a kernel function.
        norm: ``"batch"``, ``"sync_batch"``, ``"group"``, None, or a function of C that returns a module.
        scale: Factor on the sums: None (1, the paper's), ``"sqrt"`` (1 / sqrt(M)) or ``"mean"`` (1 / M),
            where M counts the elements of one group.
        g_std: Standard deviation of g's initial weights. None for 0.01, or 0.2 with the scale ``"sqrt"`` and 2 with
            ``"mean"``, so that a new block learns as fast with a scale as without. For theta, phi and z it is 0.01.
        backend: ``"auto"``, ``"eager"``, ``"fused"`` (Triton kernels on a CUDA device) or ``"naive"``; all compute the
            same result. ``"auto"`` takes the fused form if it can run and has passed its self-test.
        memory_efficient: Whether the eager form keeps less for the backward pass and computes the rest again there. It
            changes nothing if the dot product takes the Gram form, which needs neither phi nor g. The fused form keeps
            no map but x in any case, and compilers decide for themselves.
        process_group: Processes that each hold a part of the positions of every sample, for inputs too large for
            one process; each calls the block on its part. None if a process holds whole samples. A block with a
            process group can be copied, but not pickled: save its state dict.
        device: Device of the parameters and buffers; None for PyTorch's default.
        dtype: Their type; None for PyTorch's default.

    Raises:
        ValueError: An argument is outside its range; ``"fused"`` cannot run where the block is called.

    Source: Yue et al., NeurIPS 2018.

    Example:
        >>> block = CGNL2d(64)
        >>> x = torch.randn(2, 64, 14, 14)
        >>> torch.equal(block(x), x)  # exactly the identity until it is trained
        True
        >>> CGNL2d(64).groups, CGNL2d(24).groups, CGNL2d(30).groups
        (8, 6, 5)
    """

    num_axes = 2


class CGNL3d(_CompactBlock):
    """Compact generalized non-local block for videos, over space and time; see `CGNL2d`."""

    num_axes = 3
