"""The check of a network with its blocks: that they run once, can be trained, and reach an output."""

import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from cgnl.insertion.nested import tensors_in
from cgnl.insertion.probe import run, undisturbed


def check_blocks(model: nn.Module, blocks: Mapping[str, nn.Module], example_input: Any) -> None:
    """Run the network once forwards and backwards, in eval mode.

    A network that is not made to be differentiated in eval mode fails here for reasons of its own, or has no output
    with a gradient. It is not refused.

    Args:
        model: The network with its blocks.
        blocks: For each path, the block that was inserted there.
        example_input: What the network is called with.

    Raises:
        ValueError: A block runs more than once; the network works with something else in the block's place and not
            with the block; the network's output does not depend on the block.
    """
    try:
        runs, unreached = _differentiate(model, blocks, example_input)
    except Exception as error:
        runs, unreached = _run_without_gradients(model, blocks, example_input), []
        _blame(model, blocks, example_input, error)
    for path, block in blocks.items():
        if len(runs[block]) != 1:
            raise ValueError(
                f"blocks[{path!r}]: the block must run exactly once in a forward pass, but ran {len(runs[block])} times"
            )
    for path in unreached:
        if not _changes_output(model, blocks[path], example_input):
            raise ValueError(
                f"blocks[{path!r}]: the block has no effect on the network's output for example_input in eval mode; "
                "take a place, or an example_input (with labels, for one), for which it has"
            )
    if any(tensor.grad_fn is not None for module in model.modules() for tensor in tensors_in(vars(module))):
        # the host keeps maps as attributes: with the graph of this check they could not be copied
        _run_without_gradients(model, blocks, example_input)


def _run_without_gradients(
    model: nn.Module, blocks: Mapping[str, nn.Module], example_input: Any
) -> dict[nn.Module, list[Any]]:
    with undisturbed(model):
        return run(model, blocks.values(), example_input)[0]


def _differentiate(
    model: nn.Module, blocks: Mapping[str, nn.Module], example_input: Any, replaced: Iterable[nn.Module] = ()
) -> tuple[dict[nn.Module, list[Any]], list[str]]:
    """Differentiate the sum of all outputs, which leaves the parameters' ``grad`` as it is.

    Args:
        model: The network with its blocks.
        blocks: For each path, the block that was inserted there.
        example_input: What the network is called with.
        replaced: Blocks in whose place a product stands, which works before any other operation.

    Returns:
        The outputs of each block, and the paths of those that no gradient reaches, though there is one.
    """
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model, gradients=True))
        for block in replaced:
            stack.enter_context(block.register_forward_hook(_multiply))
        runs, output = run(model, blocks.values(), example_input)
        sums = [tensor.sum() for tensor in tensors_in(output) if tensor.is_floating_point() and tensor.requires_grad]
        if not sums:
            return runs, []
        results = [(path, result) for path, block in blocks.items() for result in runs[block] if result.requires_grad]
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(sums, [*(result for _, result in results), *parameters], allow_unused=True)
    return runs, [path for (path, _), gradient in zip(results, gradients, strict=False) if gradient is None]


def _multiply(block: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
    return args[0] * args[0].new_ones((), requires_grad=True)


def _blame(model: nn.Module, blocks: Mapping[str, nn.Module], example_input: Any, error: Exception) -> None:
    """Raise the error, with the path of the block that causes it, unless it is the host's own."""
    if _fails(model, blocks, example_input, blocks.values()):
        return
    for path in blocks:
        others = [block for other, block in blocks.items() if other != path]
        if _fails(model, blocks, example_input, others):
            reason = re.split(r"\.\s|\n", str(error).strip())[0] or type(error).__name__
            raise ValueError(
                f"blocks[{path!r}]: the network cannot be differentiated with a block there: {reason}"
            ) from error
    raise error


def _fails(
    model: nn.Module, blocks: Mapping[str, nn.Module], example_input: Any, replaced: Iterable[nn.Module]
) -> bool:
    try:
        _differentiate(model, blocks, example_input, replaced)
    except Exception:
        return True
    return False


def _changes_output(model: nn.Module, block: nn.Module, example_input: Any) -> bool:
    """Whether the network's output changes with the block's, also where no gradient passes, as in boxes after NMS."""
    with undisturbed(model):
        _, plain = run(model, (), example_input)
    with undisturbed(model), block.register_forward_hook(_disturb):
        _, disturbed = run(model, (), example_input)
    of_plain, of_disturbed = list(tensors_in(plain)), list(tensors_in(disturbed))
    if any(tensor.is_meta for tensor in of_plain):  # without values to compare
        return True
    return len(of_plain) != len(of_disturbed) or not all(map(torch.equal, of_plain, of_disturbed))


def _disturb(block: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
    return output + (1 + output.abs().max()) * torch.randn_like(output)
