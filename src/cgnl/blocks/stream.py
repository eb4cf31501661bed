"""The compact generalized non-local block for endless video: it takes frame after frame in constant memory.

Legend: B batch, C channels, C' inner channels, c = C'/G, T frames of one call, H and W height and width, G groups,
P order of the series, F frames whose sums are kept apart, K numbers per sample and group: up to P + 1 sums and the
count of elements; for a covariance or correlation the sums of phi g, phi^2, g^2, phi, g and the count.

The positions in Eq. 12 share only the sums over phi and g. So the stream keeps the sums of past frames and drops the
frames; the polynomial in theta needs only the current frame.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cgnl.blocks.compact import CGNL3d, is_known
from cgnl.blocks.shell import Block, check_positive, described, of_any_size
from cgnl.ops.eager.series import PowerSums, power_sums, scaled_coefficients, varying_part, with_gaps
from cgnl.ops.parallel import count_over_processes, over_processes
from cgnl.ops.precision import is_exporting, sum_dtype, without_autocast
from cgnl.ops.statistics import Statistic, group_sums, statistic_of


class CGNLStream3d(Block):
    """A trained `CGNL3d` on endless video, which relates each frame to itself and to the frames before it.

    The output for frame t equals the block's output for the last frame of a clip. Without ``window`` and ``decay``, the
    clip has the frames 0..t; with ``window``, the last ``window`` frames. With ``decay``, it has the frames 0..t, and
    frame s enters every sum with the factor decay^(t - s): the sums over phi and g, and M, the count of elements, by
    which ``scale`` divides. Later frames never matter, so frames may come one by one or several in a call. Their height
    and width may change.

    From call to call, the stream keeps ``sums``, a few numbers for each sample and group, in float64 on the device of
    the frames. A window keeps ``window`` times as many and adds them up again for each frame, so that rounding errors
    do not accumulate. ``sums`` is not part of the state dict. ``reset()`` forgets it; to continue later, save ``sums``
    and set it again. A NaN or an infinity stays in its sample, until ``reset()`` or until it has left the window.

    With ``scale=None`` the sums grow with the number of frames in them. A window as long as the clips in training keeps
    their size; ``scale="mean"`` keeps it for any number of frames.

    The stream shares the block's convolutions and norm and has its state-dict keys. It runs the eager form, and no
    gradient flows through it. If the block has a process group, each process gets its part of every frame.

    Args:
        block: A `CGNL3d` in evaluation mode, with BatchNorm or without a norm.
        window: Number of frames to remember, including the current one; None for all.
        decay: Factor above 0 and below 1 by which a frame counts less with each frame after it; None for 1.

    Attributes:
        sums: [F, B, G, K], or None before the first frame: F is at most ``window``, 1 without a window.

    Raises:
        ValueError: An argument is outside its range, both ``window`` and ``decay`` are given, or the block cannot be
            run frame by frame.

    Source: Yue et al., "Compact Generalized Non-local Network", NeurIPS 2018, Eq. 12-13; the paper has clips only.

    Example:
        >>> from cgnl.blocks import CGNL3d
        >>> block = CGNL3d(16, groups=2, norm=None).eval()
        >>> clip = torch.randn(1, 16, 8, 7, 7)
        >>> stream = CGNLStream3d(block, window=4)
        >>> outputs = [stream(frame) for frame in clip.unbind(2)]  # [1, 16, 7, 7] each
        >>> torch.allclose(outputs[-1], block(clip[:, :, -4:])[:, :, -1], atol=1e-6)
        True
    """

    num_axes = 3

    def __init__(self, block: CGNL3d, *, window: int | None = None, decay: float | None = None) -> None:
        _check_block(block)
        if window is not None:
            check_positive("window", window)
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"decay ({decay!r}) must be above 0 and below 1; None keeps all frames as they are")
        if window is not None and decay is not None:
            raise ValueError(f"window ({window}) and decay ({decay}) must not both be given")
        super().__init__(block.channels, block.inner_channels, block.groups, block.z_groups)
        self.kernel = block.kernel
        self.scale = block.scale
        self.statistic = block.statistic
        self.window = window
        self.decay = decay
        self.theta, self.phi, self.g, self.z = block.theta, block.phi, block.g, block.z
        self.norm = block.norm
        self.process_group = block.process_group
        self.sums: Tensor | None = None
        self.training = False
        self._coefficients = scaled_coefficients(block.kernel, 1.0)

    def reset(self) -> None:
        """Forget all frames: the next one is the first."""
        self.sums = None

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for the next frames.

        Args:
            x: [B, C, T, H, W], or one frame as [B, C, H, W].

        Returns:
            The shape, type and memory format of x.

        Raises:
            ValueError: x has no frame, another number of axes or channels than the block, or another batch size than
                the frames before it or the other processes; the stream or its norm is in training mode; it is called
                inside a trace, an export or a transform of torch.func.
        """
        if self.training or (self.norm is not None and self.norm.training):
            raise ValueError(
                "CGNLStream3d must be in evaluation mode: gradients would have to go back through all frames, "
                "and its norm would take its statistics from the current frames alone"
            )
        transforming = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
        if transforming or torch.jit.is_tracing() or is_exporting():
            raise ValueError(
                "CGNLStream3d keeps sums from call to call, which torch.jit.trace, torch.export and the transforms of "
                "torch.func cannot: call it outside of them"
            )
        if x.dim() == 4:
            # not a view, because later modules may change the output in place
            return torch.empty_like(x).copy_(super().forward(x[:, :, None]).squeeze(2))
        return super().forward(x)

    def _check_input(self, x: Tensor) -> None:
        super()._check_input(x)
        if self.process_group is not None:
            count_over_processes(0, x, self.process_group)
        # one of several processes may hold no positions
        if 0 in (x.shape[2:3] if self.process_group is not None else x.shape[2:]):
            raise ValueError(f"x {tuple(x.shape)} must hold at least one frame of one position")
        num_kept = sum(a2 != 0 for a2 in self._coefficients) + 1 if self.statistic == "sum" else 6
        needed = (x.shape[0], self.groups, num_kept)
        if self.sums is not None and self.sums.shape[1:] != needed:
            raise ValueError(
                f"x {tuple(x.shape)} needs sums of shape [F, {', '.join(map(str, needed))}], but the stream keeps "
                f"{list(self.sums.shape)}: call reset() before frames of another batch"
            )

    def _operation(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        varying, shared = self._in_parts(x)
        return (varying + shared).to(out_dtype or x.dtype)

    def _through_operations(self, x: Tensor) -> Tensor:
        """Return Z with the shared part of y kept apart from the part that varies, so that this keeps its digits."""
        if not is_known(self.norm):
            return super()._through_operations(x)
        varying, shared = self._in_parts(x)
        with without_autocast(x):
            weight = self.z.weight.to(varying.dtype)
            convolve = partial(F.conv3d, weight=weight, groups=self.z_groups)
            varying, shared = (of_any_size(convolve, part) for part in (varying, shared))
            if self.z.bias is not None:
                shared = shared + self.z.bias.to(varying.dtype)[:, None, None, None]
            norm = described(self.norm)
            if norm is not None:
                scale, shift = (vector[:, None, None, None] for vector in norm.as_affine(varying.dtype))
                varying, shared = varying * scale, shared * scale + shift
            return (x + (varying + shared)).to(x.dtype)

    def _in_parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y of the frames as a part that varies over the positions, [B, C', T, H, W], and a shared part."""
        theta, phi, g = (of_any_size(convolution, x).flatten(3) for convolution in (self.theta, self.phi, self.g))
        dtype = sum_dtype(theta.dtype)
        varying = torch.empty_like(theta, dtype=dtype)
        shared = torch.zeros(theta.shape[:3], dtype=dtype, device=x.device)
        sums = self.sums if self.sums is None else self.sums.to(x.device)
        with without_autocast(x):
            for t, (theta_t, phi_t, g_t) in enumerate(zip(*(f.unbind(2) for f in (theta, phi, g)), strict=True)):
                sums = self._remember(sums, self._of_frame(phi_t.to(dtype), g_t.to(dtype)))
                coefficients = self._polynomial_coefficients(sums.sum(0), dtype)
                varying[:, :, t] = varying_part(theta_t.to(dtype), coefficients, self.kernel)
                if coefficients[0] is not None:
                    shared[:, :, t] = coefficients[0][..., 0]
        self.sums = sums
        return varying.unflatten(3, x.shape[3:]), shared[..., None, None]

    def _of_frame(self, phi: Tensor, g: Tensor) -> Tensor:
        """Return the numbers [B, G, K] to keep of a frame [B, C', H·W]."""
        if self.statistic != "sum":
            phi, g = phi.double(), g.double()
            terms = (phi * g, phi * phi, g * g, phi, g, torch.ones_like(g))
            sums = torch.stack([group_sums(term, self.groups) for term in terms], dim=-1)
            return over_processes(sums, self.process_group)
        envelope = self.kernel.envelope(phi)
        powers = power_sums(phi, g if envelope is None else g * envelope, self.groups, self._coefficients)
        channels = phi.shape[1] // self.groups
        of_channels = torch.cat([s for s in powers if s is not None], dim=2)
        kept = F.pad(of_channels[:, ::channels].double(), (0, 1), value=channels * phi.shape[2])
        return over_processes(kept, self.process_group)

    def _remember(self, kept: Tensor | None, of_frame: Tensor) -> Tensor:
        """Return the kept numbers, [F, B, G, K], after one more frame."""
        if kept is None:
            return of_frame[None]
        if self.window is not None:
            return torch.cat([kept, of_frame[None]])[-self.window :]
        return (kept if self.decay is None else kept * self.decay) + of_frame

    def _polynomial_coefficients(self, total: Tensor, dtype: torch.dtype) -> PowerSums:
        """Return the coefficients of the polynomial in theta, [B, C', 1] each, of sums [B, G, K] over frames."""
        if self.statistic != "sum":
            total = _with_statistic(total, self.statistic)
        *columns, count = total.unbind(2)
        factor = torch.ones_like(count) if self.scale is None else count ** (-0.5 if self.scale == "sqrt" else -1.0)
        channels = self.inner_channels // self.groups
        of_channels = [(column * factor).repeat_interleave(channels, dim=1)[..., None].to(dtype) for column in columns]
        return with_gaps(of_channels, self._coefficients)

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, kernel={self.kernel}, scale={self.scale!r}, window={self.window}, "
            f"decay={self.decay}"
        )


def _with_statistic(total: Tensor, statistic: Statistic) -> Tensor:
    """Return a statistic and the count, [B, G, 2], of the sums of phi g, phi^2, g^2, phi, g and the count."""
    products, phi_squares, g_squares, phi_sum, g_sum, count = total.unbind(2)
    phi_mean, g_mean = phi_sum / count, g_sum / count
    centred = (products - phi_sum * g_mean, phi_squares - phi_sum * phi_mean, g_squares - g_sum * g_mean)
    moments = torch.stack([centred[0], *(s.clamp_min(0) for s in centred[1:]), phi_mean, g_mean, count], dim=2)
    return torch.stack([statistic_of(moments, statistic), count], dim=2)


def _check_block(block: nn.Module) -> None:
    if not isinstance(block, CGNL3d):
        raise ValueError(f"block must be a CGNL3d, not {type(block).__name__}")
    if block.training:
        raise ValueError("block must be in evaluation mode: call block.eval() first")
    norm = block.norm
    if norm is not None and not (isinstance(norm, _BatchNorm) and norm.running_mean is not None):
        raise ValueError(
            f"block's norm ({norm}) must be BatchNorm with running statistics, or None: other norms take their "
            "statistics from the whole clip, including later frames"
        )
    if block.kernel.normalizes_features:
        raise ValueError(
            f"block's kernel function ({block.kernel}) must not normalize its features: "
            "each frame would change the norm of all frames before it"
        )
