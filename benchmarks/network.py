"""How much slower does one CGNL block make ResNet-50, in training and in inference, at 224 pixels?

The block's share of the multiplications is the measure: the network should be slower by no more. Both networks take
turns within one process, in float32. Run on a machine that does nothing else:

    python benchmarks/network.py
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cgnl.networks.image import network_cost, resnet50
from timing import common_arguments, ratios, side_by_side, spread, write_result

SIZE = 224
NUM_CLASSES = 1000
BLOCKS = {"plain": None, "with_block": "cgnl"}


def network_of(name: str) -> nn.Module:
    """ResNet-50 of that name; the block is no longer the identity, as after the first steps of training."""
    network = resnet50(BLOCKS[name])
    if BLOCKS[name]:
        nn.init.ones_(network.get_submodule("layer3.4.inserted_block.norm").weight)
    return network


def training_step(network: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], None]:
    """Forward, cross entropy, backward and a step of SGD with momentum."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        network.train()
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()

    return step


def inference(network: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward alone, in eval mode."""

    def run() -> None:
        network.eval()
        with torch.inference_mode():
            network(x)

    return run


def main() -> None:
    """Measures training and inference in both memory formats and writes the record."""
    parser = common_arguments(__doc__, default_out="network.json")
    parser.add_argument("--batch-size", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    multiplications = {
        name: network_cost(lambda name=name: network_of(name), (1, 3, SIZE, SIZE)).multiplications for name in BLOCKS
    }
    share = multiplications["with_block"] / multiplications["plain"] - 1
    rows = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(arguments.batch_size, 3, SIZE, SIZE).contiguous(memory_format=memory_format)
        labels = torch.randint(NUM_CLASSES, (arguments.batch_size,))
        networks = {name: network_of(name).to(memory_format=memory_format) for name in BLOCKS}
        runs = {
            "training": {name: training_step(network, x, labels) for name, network in networks.items()},
            "inference": {name: inference(network, x) for name, network in networks.items()},
        }
        for mode, candidates in runs.items():
            seconds = side_by_side(candidates, repeats=arguments.repeats)
            row = {
                "mode": mode,
                "memory_format": str(memory_format).removeprefix("torch."),
                "seconds": {name: spread(values) for name, values in seconds.items()},
                "with_block_over_plain": ratios(seconds["with_block"], seconds["plain"]),
                "multiplications_added": round(share, 4),
            }
            rows.append(row)
            print(
                f"{mode} {row['memory_format']}: {row['with_block_over_plain']['median']:.3f} times the plain network; "
                f"the block's share of the multiplications is {share:.1%}"
            )
    write_result(
        arguments.out,
        seed=arguments.seed,
        settings={"size": SIZE, "batch_size": arguments.batch_size, "repeats": arguments.repeats, "dtype": "float32"},
        rows=rows,
    )


if __name__ == "__main__":
    main()
