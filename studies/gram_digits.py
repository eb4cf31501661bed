"""How many digits does each way to the dot product's sums lose in float32?

phi^T g of each sample and group, against float64 on the same numbers, in units of float32's rounding at the sum of the
products' magnitudes; the largest over samples, groups and draws:

    python studies/gram_digits.py
"""

import torch
from torch import Tensor

from cgnl.measure.timing import rounded
from cgnl.ops.eager import gram
from script import begin, study, write

BATCH, GROUPS = 2, 8
SIZES = ((256, 784), (512, 784), (1024, 784), (512, 12544))
MAPS = {
    "normal": "independent normal numbers",
    "relu": "the same, negative ones cut off",
    "one pattern": "one pattern of channels at all positions, a tenth of noise, negative ones cut off",
    "large mean": "a mean of 100 that the weights cancel",
    "large direction": "a direction without mean, of size 100, that the weights cancel",
}


def features(kind: str, channels: int, positions: int) -> tuple[Tensor, list[Tensor]]:
    """Return x, [B, C, N], and the weights of phi and g, [C/2, C]."""
    weights = [torch.randn(channels // 2, channels) * channels**-0.5 for _ in range(2)]
    x = torch.randn(BATCH, channels, positions)
    if kind == "relu":
        x = x.relu()
    if kind == "one pattern":
        x = (3 * torch.randn(BATCH, channels, 1) * torch.randn(BATCH, 1, positions) + 0.1 * x).relu()
    if kind in ("large mean", "large direction"):
        # without the part of each row that all channels share
        weights = [weight - weight.mean(1, keepdim=True) for weight in weights]
        x += 100 if kind == "large mean" else 100 * torch.randn(BATCH, 1, positions)
    return x, weights


def by_group(products: Tensor) -> Tensor:
    """Return the sums over the features of a group and all positions, [B, G], from [B, C', N]."""
    return products.unflatten(1, (GROUPS, -1)).sum((2, 3))


def ways(x: Tensor, phi_weight: Tensor, g_weight: Tensor) -> dict[str, Tensor]:
    """Return the sums of each sample and group, [B, G], one way after the other."""
    mean, zero = x.mean(-1), x.new_zeros(x.shape[:2])
    weights = [weight.unflatten(0, (GROUPS, -1)) for weight in (phi_weight, g_weight)]
    products = weights[0].transpose(1, 2) @ weights[1]
    moments = x @ x.transpose(1, 2)
    through_k = torch.stack([((phi @ moments) * g).sum((1, 2)) for phi, g in zip(*weights, strict=True)], dim=1)

    def ours(mean: Tensor) -> Tensor:
        kept = gram.second_moments(x, mean)
        return gram.sums(kept, mean, phi_weight, g_weight, GROUPS, x.shape[2])

    return {
        "phi and g": by_group((phi_weight @ x) * (g_weight @ x)),
        "<W_phi K, W_g>": through_k,
        "<K, A> as one product": moments.flatten(1) @ products.flatten(1).transpose(0, 1),
        "<K, A> by rows": ours(zero),
        "<K, A> by rows, x less its mean": ours(mean),
    }


def main() -> None:
    """Measure every way on every kind of map and write the record."""
    arguments = begin(study(__file__, __doc__, repeats_are="draws of x and weights"))
    rows = []
    for kind in MAPS:
        for channels, positions in SIZES:
            units: dict[str, float] = {}
            for _ in range(arguments.repeats):
                x, weights = features(kind, channels, positions)
                phi, g = (weight.double() @ x.double() for weight in weights)
                exact, bound = by_group(phi * g), by_group((phi * g).abs())
                for way, sums in ways(x, *weights).items():
                    lost = ((sums.double() - exact).abs() / bound).max().item() / torch.finfo(torch.float32).eps
                    units[way] = max(units.get(way, 0.0), lost)
            rows.append(
                {"maps": kind, "channels": channels, "positions": positions}
                | {"units": {way: rounded(lost) for way, lost in units.items()}}
            )
            print(kind, channels, positions, rows[-1]["units"], flush=True)
    write(arguments, rows, batch=BATCH, groups=GROUPS, draws=arguments.repeats, maps=MAPS)


if __name__ == "__main__":
    main()
