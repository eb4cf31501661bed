"""Inputs of the fused form and the same through the naive form in float64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF, KernelFunction, SeriesKernel
from cgnl.ops import fused, naive

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-3

KERNELS = {
    "dot": DotProduct(),
    **{f"gaussian-{order}": EmbeddedGaussian(order) for order in range(6)},
    "rbf": GaussianRBF(gamma=0.3),
    "rbf-exact": GaussianRBF(gamma=0.3, beta="exact"),
    "gaps": SeriesKernel(lambda t, u: (t * u) ** 2 + (t * u) ** 4, [0, 0, 1, 0, 1]),
}


@dataclass(frozen=True)
class Case:
    """A block's input: its shape, its inner channels, its groups, and how it lies in memory."""

    shape: tuple[int, ...]
    inner: int
    groups: int
    layout: str = "first"
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}-{self.inner}-{self.groups}-{self.layout}"


# Channels and inner channels that fill no tile, and more positions, channels, features and outputs than a tile has.
CASES = [
    Case((2, 20, 7, 9), 12, 2),
    Case((2, 20, 7, 9), 12, 2, "last"),
    Case((2, 20, 7, 9), 12, 2, "transposed"),
    Case((1, 24, 7, 7), 16, 8, "last"),
    Case((6, 72, 1), 24, 1),
    Case((3, 16, 63), 8, 1, "sliced"),
    Case((2, 16, 48), 8, 2, "padded"),
    Case((1, 16, 140), 8, 2),
    Case((1, 8, 3, 5), 70, 1, "last"),
    Case((1, 24, 2, 3, 3), 40, 8, "last"),
    Case((2, 8, 3, 2), 130, 1),
    Case((2, 8, 3, 2), 260, 2, "last"),
]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "last":
        return x.contiguous(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[x.dim()])
    if layout == "padded":
        return torch.cat([x, x[..., :1]], dim=-1)[..., :-1]
    if layout == "sliced":
        return torch.stack([x, x], dim=-1)[..., 0]
    return x.transpose(2, -1).contiguous().transpose(2, -1) if layout == "transposed" else x


def block_inputs(case: Case, with_norm: bool = False) -> list[Tensor]:
    """x, the four weights, and with a norm its scale and shift, all wanting gradients."""
    channels, ones = case.shape[1], (1,) * (len(case.shape) - 2)
    tensors = [random(*case.shape, seed=0)]
    tensors += [0.3 * random(case.inner, channels, *ones, seed=seed) for seed in (1, 2, 3)]
    tensors.append(random(channels, case.inner // case.groups, *ones, seed=4))
    typed = [t.to(DEVICE, case.dtype) for t in tensors]
    if with_norm:
        typed += [random(channels, seed=seed).to(DEVICE, torch.float32) for seed in (5, 6)]
    return [laid_out(t, case.layout if i == 0 else "first").requires_grad_() for i, t in enumerate(typed)]


def feature_inputs(case: Case) -> list[Tensor]:
    """Theta, phi and g, of which phi always has its channels first."""
    shape = (case.shape[0], case.inner, *case.shape[2:])
    typed = [random(*shape, seed=seed).to(DEVICE, case.dtype) for seed in (1, 2, 3)]
    return [laid_out(t, "first" if i == 1 else case.layout).requires_grad_() for i, t in enumerate(typed)]


def by_channel(vector: Tensor, like: Tensor) -> Tensor:
    return vector.view(-1, *(1,) * (like.dim() - 2))


def fused_block(inputs: Sequence[Tensor], groups: int, kernel: KernelFunction, factor: float) -> Tensor:
    return fused.cgnl_block(*inputs, groups=groups, kernel=kernel, factor=factor, out_dtype=torch.float32)


def naive_block(inputs: Sequence[Tensor], groups: int, kernel: KernelFunction, factor: float) -> Tensor:
    return naive.cgnl_block(*inputs, groups=groups, kernel=kernel, factor=factor)


def fused_affine(inputs: Sequence[Tensor], groups: int, kernel: KernelFunction, factor: float) -> Tensor:
    return fused.cgnl_block_affine(*inputs, groups=groups, kernel=kernel, factor=factor)


def naive_affine(inputs: Sequence[Tensor], groups: int, kernel: KernelFunction, factor: float) -> Tensor:
    x, *weights, scale, shift = inputs
    branch = naive_block((x, *weights), groups, kernel, factor)
    return x + by_channel(scale, x) * branch + by_channel(shift, x)


def fused_batch_norm(inputs: Sequence[Tensor], groups: int, kernel: KernelFunction, factor: float) -> Tensor:
    return fused.cgnl_block_batch_norm(
        *inputs, None, None, groups=groups, kernel=kernel, factor=factor, eps=EPS, momentum=0.0
    )


def naive_batch_norm(inputs: Sequence[Tensor], groups: int, kernel: KernelFunction, factor: float) -> Tensor:
    x, *weights, weight, bias = inputs
    branch = naive_block((x, *weights), groups, kernel, factor)
    return x + F.batch_norm(branch, None, None, weight, bias, training=True, eps=EPS)


def fused_features(inputs: Sequence[Tensor], groups: int, kernel: KernelFunction, factor: float) -> Tensor:
    return fused.compact_generalized_non_local(
        *inputs, groups=groups, kernel=kernel, factor=factor, out_dtype=torch.float32
    )


def naive_features(inputs: Sequence[Tensor], groups: int, kernel: KernelFunction, factor: float) -> Tensor:
    return naive.compact_generalized_non_local(*inputs, groups=groups, kernel=kernel, factor=factor)


Form = Callable[[Sequence[Tensor], int, KernelFunction, float], Tensor]
FORMS: dict[str, tuple[Form, Form]] = {
    "plain": (fused_block, naive_block),
    "affine": (fused_affine, naive_affine),
    "batch_norm": (fused_batch_norm, naive_batch_norm),
    "features": (fused_features, naive_features),
}


def inputs_of(form: str, case: Case) -> list[Tensor]:
    return feature_inputs(case) if form == "features" else block_inputs(case, with_norm=form != "plain")


def gradients_of(y: Tensor, inputs: Sequence[Tensor], layout: str = "first") -> list[Tensor]:
    dy = laid_out(random(*y.shape, seed=9).to(y.device, y.dtype), layout if y.dim() > 3 else "first")
    return [
        torch.zeros_like(t) if d is None else d
        for t, d in zip(inputs, torch.autograd.grad(y, inputs, dy, allow_unused=True), strict=True)
    ]


def results_of(form: str, case: Case, kernel: KernelFunction, factor: float) -> tuple[list[Tensor], list[Tensor]]:
    """Output and every gradient of the fused form, and of the naive one in float64 on the same numbers."""
    ours, reference = FORMS[form]
    inputs = inputs_of(form, case)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    y = ours(inputs, case.groups, kernel, factor)
    expected = reference(exact, case.groups, kernel, factor)
    # a gradient in another memory format than x's
    results = [y, *gradients_of(y, inputs, "last")]
    return results, [expected, *gradients_of(expected, exact)]


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b).norm() / b.norm()).item()


def assert_close(results: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    for result, reference in zip(results, expected, strict=True):
        assert result.shape == reference.shape
        if reference.abs().max() < 1e-12:
            assert result.abs().max() < 1e-5
        else:
            assert relative(result, reference) < tolerance
