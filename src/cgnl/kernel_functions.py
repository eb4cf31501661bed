"""Kernel functions f(t, u) of two numbers: the exact form, and the series that CGNL puts in its place.

A series is f(t, u) ~ sum over p = 0..P of a2_p (t u)^p (Eq. 9); ``coefficients`` holds a2_0 .. a2_P.

Source: Yue et al., "Compact Generalized Non-local Network", NeurIPS 2018, Eq. 9-11.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from cgnl.settings.checks import check_choice

# The factorial of a higher one is no float.
_HIGHEST_ORDER = 170

RBFBeta = Literal["constant", "normalized", "exact"]


class KernelFunction:
    """What the operations ask of a kernel function: `exact`, and ``coefficients``, a2_0 .. a2_P of Eq. 9."""

    if TYPE_CHECKING:  # at run time a property here would stand in the way of a dataclass field

        @property
        def coefficients(self) -> Sequence[float]: ...

    @property
    def words(self) -> str:
        """The name for people, with its settings but without the order."""
        return "kernel function of your own"

    def exact(self, t: Tensor, u: Tensor) -> Tensor:
        """Return the kernel function itself, elementwise on tensors that broadcast."""
        raise NotImplementedError

    @property
    def normalizes_features(self) -> bool:
        """Whether theta and phi are l2-normalised within each group before the kernel function sees them."""
        return False

    def envelope(self, t: Tensor) -> Tensor | None:
        """Return a factor e with f(t, u) ~ e(t) e(u) times the series, or None where there is none."""
        return None

    def envelope_less_one(self, t: Tensor) -> Tensor | None:
        """Return e(t) - 1 of the envelope e, with all its digits where e is close to 1; None where there is none."""
        envelope = self.envelope(t)
        return None if envelope is None else envelope - 1

    @property
    def is_plain_series(self) -> bool:
        """Whether the series alone is the whole approximation."""
        return not self.normalizes_features and self.envelope(torch.zeros(())) is None

    @property
    def has_constant_term(self) -> bool:
        """Whether a2_0 is not 0: a part of y is then the same at all positions of a sample."""
        return self.coefficients[0] != 0


@dataclass(frozen=True)
class DotProduct(KernelFunction):
    """The dot product f(t, u) = t u, the paper's main configuration (Eq. 3); its series is exact.

    Example:
        >>> DotProduct().coefficients
        (0.0, 1.0)
    """

    @property
    def words(self) -> str:
        return "dot product"

    @property
    def coefficients(self) -> tuple[float, ...]:
        return (0.0, 1.0)

    def exact(self, t: Tensor, u: Tensor) -> Tensor:
        return t * u


@dataclass(frozen=True)
class EmbeddedGaussian(KernelFunction):
    """The embedded Gaussian f(t, u) = exp(t u), without a softmax denominator.

    ``order`` is P, the highest power in the series, from 0 to 170 (else ValueError); the paper's is 3.

    Example:
        >>> EmbeddedGaussian(order=2).coefficients
        (1.0, 1.0, 0.5)
    """

    order: int = 3

    def __post_init__(self) -> None:
        _check_order(self.order)

    @property
    def words(self) -> str:
        return "embedded Gaussian"

    @property
    def coefficients(self) -> tuple[float, ...]:
        return tuple(1.0 / math.factorial(p) for p in range(self.order + 1))

    def exact(self, t: Tensor, u: Tensor) -> Tensor:
        return torch.exp(t * u)


@dataclass(frozen=True)
class GaussianRBF(KernelFunction):
    """The Gaussian radial basis function f(t, u) = exp(-gamma (t - u)^2) (Eq. 10).

    The series is of the cross term exp(2 gamma t u) only; ``beta`` says what becomes of the rest,
    exp(-gamma t^2) exp(-gamma u^2):

    - ``"constant"`` (the paper and its released code): replaced by exp(-2 gamma), whatever theta and phi are;
    - ``"exact"``: multiplied into the features element by element, so that only the cross term is
      approximated. The error of a pair is at most |2 gamma t u|^(P+1) / (P+1)! · exp(max(2 gamma t u, 0))
      times that factor;
    - ``"normalized"``: as ``"exact"``, with theta and phi l2-normalised within each group first. The exact operation
      normalises them too, so the series converges to it as the order grows.

    The paper derives the constant from l2-normalised vectors, whose squares sum to 1. The t and u of Eq. 10 are single
    elements, and for these exp(-gamma t^2) exp(-gamma u^2) is about 1 once they are normalised: the constant fits
    neither case, and stays the default because the paper and its code have it.

    Args:
        gamma: The width parameter, above 0.
        order: P, the highest power in the series (the paper's is 3).
        beta: ``"constant"``, ``"normalized"`` or ``"exact"``.

    Raises:
        ValueError: An argument is outside its range.

    Example:
        >>> GaussianRBF(gamma=0.5, order=2, beta="exact").coefficients
        (1.0, 1.0, 0.5)
    """

    gamma: float = 1e-4
    order: int = 3
    beta: RBFBeta = "constant"

    def __post_init__(self) -> None:
        _check_order(self.order)
        if not isinstance(self.gamma, int | float) or not 0 < self.gamma < math.inf:
            raise ValueError(f"gamma ({self.gamma!r}) must be a finite number above 0")
        check_choice("beta", self.beta, get_args(RBFBeta))

    @property
    def words(self) -> str:
        return f"Gaussian RBF (gamma {self.gamma:g}, {self.beta} beta)"

    @property
    def coefficients(self) -> tuple[float, ...]:
        factor = math.exp(-2 * self.gamma) if self.beta == "constant" else 1.0
        return tuple(factor * (2 * self.gamma) ** p / math.factorial(p) for p in range(self.order + 1))

    def exact(self, t: Tensor, u: Tensor) -> Tensor:
        return torch.exp(-self.gamma * (t - u).square())

    @property
    def normalizes_features(self) -> bool:
        return self.beta == "normalized"

    def envelope(self, t: Tensor) -> Tensor | None:
        return None if self.beta == "constant" else torch.exp(-self.gamma * t.square())

    def envelope_less_one(self, t: Tensor) -> Tensor | None:
        if type(self).envelope is not GaussianRBF.envelope:  # a subclass with an envelope of its own
            return super().envelope_less_one(t)
        return None if self.beta == "constant" else torch.expm1(-self.gamma * t.square())


@dataclass(frozen=True)
class SeriesKernel(KernelFunction):
    """A kernel function of one's own: its exact form, for checking, and its series.

    Generalized non-local blocks run ``function``, the exact f(t, u), elementwise on tensors that broadcast; compact
    ones run the series alone, whose ``coefficients`` are a2_0 .. a2_P. Raises ValueError if the function cannot be
    called, or the coefficients are none, not finite, or all zeros.

    Example:
        >>> SeriesKernel(lambda t, u: (1 + t * u) ** 2, [1, 2, 1]).coefficients
        (1.0, 2.0, 1.0)
    """

    function: Callable[[Tensor, Tensor], Tensor]
    coefficients: Sequence[float]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ValueError(f"function ({self.function!r}) must be callable as function(t, u)")
        try:
            coefficients = tuple(float(a2) for a2 in self.coefficients)
        except (TypeError, ValueError):
            raise ValueError(f"coefficients ({self.coefficients!r}) must be a sequence of numbers") from None
        if not all(map(math.isfinite, coefficients)):
            raise ValueError(f"coefficients ({list(coefficients)}) must be finite")
        if not any(coefficients):
            raise ValueError(f"coefficients ({list(coefficients)}) must hold at least one number that is not 0")
        object.__setattr__(self, "coefficients", coefficients)

    def exact(self, t: Tensor, u: Tensor) -> Tensor:
        return self.function(t, u)


def _own_series(coefficients: Sequence[float]) -> SeriesKernel:
    """Return the kernel function that is a power series of t u, exactly."""
    return SeriesKernel(partial(_power_series, coefficients), coefficients)


def _power_series(coefficients: Sequence[float], t: Tensor, u: Tensor) -> Tensor:
    product, total = t * u, torch.zeros_like(t * u)
    for a2 in reversed(coefficients):
        total = total * product + a2
    return total


_BY_NAME: dict[str, Callable[..., KernelFunction]] = {
    "dot": DotProduct,
    "embedded_gaussian": EmbeddedGaussian,
    "rbf": GaussianRBF,
    "series": _own_series,
}


def resolve_kernel_function(kernel: str | KernelFunction, **options: Any) -> KernelFunction:
    """Return the kernel function that a ``kernel`` argument means.

    It is ``"dot"``, ``"embedded_gaussian"`` or ``"rbf"`` (the paper's settings), ``"series"`` with ``coefficients``, or
    a kernel function. ``options`` are settings of one given by name, such as ``order``; None for its own. Raises
    ValueError if the name is unknown, a setting is outside its range, or ``kernel`` is neither a name nor a kernel
    function.

    Example:
        >>> resolve_kernel_function("rbf", order=2)
        GaussianRBF(gamma=0.0001, order=2, beta='constant')
    """
    if isinstance(kernel, KernelFunction):
        return kernel
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(kernel, str) and kernel in _BY_NAME and (kernel != "series" or given):
        return _BY_NAME[kernel](**given)
    names = ", ".join(repr(name) for name in _BY_NAME if name != "series")
    raise ValueError(f"kernel ({kernel!r}) must be one of {names} or a kernel function")


def _check_order(order: int) -> None:
    if not isinstance(order, int) or isinstance(order, bool) or order < 0:
        raise ValueError(f"order ({order!r}) must be an integer of at least 0")
    if order > _HIGHEST_ORDER:
        raise ValueError(f"order ({order}) must be at most {_HIGHEST_ORDER}")
