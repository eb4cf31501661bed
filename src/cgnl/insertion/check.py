"""The check that each block in a network runs once, can be trained, and affects an output."""

import itertools
import re
import traceback
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from cgnl.insertion.nested import leaves_in, tensors_in
from cgnl.insertion.probe import run, undisturbed


def check_blocks(model: nn.Module, blocks: Mapping[str, nn.Module], example_input: Any) -> None:
    """Run the network with its blocks, by path, once forwards and backwards, in eval mode.

    The check accepts networks that cannot be differentiated in eval mode for reasons of their own, or that have no
    output with a gradient. Raises ValueError if a block does not run exactly once, the network fails with the block but
    works with another module in its place, or its output does not depend on the block.
    """
    unreached = list(blocks)
    failure = None
    try:
        unreached = _differentiate(model, blocks, example_input)
    except Exception as error:
        _free_frames(error)
        failure = error
    # Not inside the except clause, which would keep the failed run's graph in memory.
    blamed = None if failure is None else _blamed(model, blocks, example_input, failure)
    # This run comes last because a host may keep maps as attributes: those of this run hold no graph and can be copied.
    with undisturbed(model):
        runs, _ = run(model, blocks.values(), example_input)
    if blamed is not None:
        raise blamed from (None if blamed is failure else failure)
    for path, block in blocks.items():
        if len(runs[block]) != 1:
            raise ValueError(
                f"blocks[{path!r}]: the block must run exactly once in a forward pass, but ran {len(runs[block])} times"
            )
    for path in unreached:
        if not _reaches_output(model, blocks[path], example_input):
            raise ValueError(
                f"blocks[{path!r}]: the network's output for example_input in eval mode does not depend on the block; "
                "choose a place, or an example_input (with labels, say), where it does"
            )


def _free_frames(error: BaseException | None) -> None:
    """Free the tensors in the frames of an error's traceback; the traceback keeps its lines."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _differentiate(
    model: nn.Module, blocks: Mapping[str, nn.Module], example_input: Any, replaced: Iterable[nn.Module] = ()
) -> list[str]:
    """Differentiate the sum of all outputs; return the paths of the blocks that no gradient reaches.

    The parameters keep their ``grad``. A product replaces the blocks in ``replaced``; no later in-place operation can
    break it.
    """
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model, gradients=True))
        for block in replaced:
            stack.enter_context(block.register_forward_hook(_multiply))
        runs, output = run(model, blocks.values(), example_input)
        sums = [tensor.sum() for tensor in tensors_in(output) if tensor.is_floating_point() and tensor.requires_grad]
        results = {path: runs[block][0] for path, block in blocks.items() if runs[block]}
        results = {path: result for path, result in results.items() if result.requires_grad}
        parameters = [parameter for parameter in _parameters(model, blocks) if parameter.requires_grad]
        gradients: tuple[Tensor | None, ...] = ()
        if sums and (results or parameters):
            gradients = torch.autograd.grad(sums, [*results.values(), *parameters], allow_unused=True)
    reached = [path for path, gradient in zip(results, gradients, strict=False) if gradient is not None]
    return [path for path in blocks if path not in reached]


def _parameters(model: nn.Module, blocks: Mapping[str, nn.Module]) -> list[nn.Parameter]:
    """Return the blocks' parameters and the host's first: autograd walks the whole graph and keeps few gradients."""
    of_blocks = [parameter for block in blocks.values() for parameter in block.parameters()]
    known = set(map(id, of_blocks))
    of_host = (parameter for parameter in model.parameters() if id(parameter) not in known and parameter.requires_grad)
    return of_blocks + list(itertools.islice(of_host, 1))


def _multiply(block: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
    return args[0] * args[0].new_ones((), requires_grad=True)


def _blamed(
    model: nn.Module, blocks: Mapping[str, nn.Module], example_input: Any, error: Exception
) -> Exception | None:
    """Return the error with the path of the block that causes it, or None if the host causes it."""
    if _fails(model, blocks, example_input, blocks.values()):
        return None
    for path in blocks:
        others = [block for other, block in blocks.items() if other != path]
        if _fails(model, blocks, example_input, others):
            reason = re.split(r"\.\s|\n", str(error).strip())[0] or type(error).__name__
            return ValueError(f"blocks[{path!r}]: the network cannot be differentiated with a block there: {reason}")
    return error


def _fails(
    model: nn.Module, blocks: Mapping[str, nn.Module], example_input: Any, replaced: Iterable[nn.Module]
) -> bool:
    try:
        _differentiate(model, blocks, example_input, replaced)
    except Exception:
        return True
    return False


def _reaches_output(model: nn.Module, block: nn.Module, example_input: Any) -> bool:
    """Tell whether the network's output depends on the block's, even without a gradient, as boxes after NMS do."""
    flow = _Flow()

    def mark(block: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        flow.mark(output)

    try:
        with undisturbed(model), block.register_forward_hook(mark), flow, _Leaving(flow):
            _, output = run(model, (), example_input)
        leaves = list(leaves_in(output))
        if flow.left_tensors or any(flow.has(leaf) for leaf in leaves if isinstance(leaf, Tensor)):
            return True
    except Exception:  # from a host that a mode cannot look into
        return True
    # objects of other kinds may hold it
    others = [leaf for leaf in leaves if not isinstance(leaf, Tensor | bool | int | float | str | None)]
    return bool(others) or not any(isinstance(leaf, Tensor) for leaf in leaves)


class _Flow(TorchDispatchMode):
    """Marks the results of all operations on marked tensors, which it recognises by their memory: views share it."""

    def __init__(self) -> None:
        super().__init__()
        self.left_tensors = False  # a value became a number or an array, which may affect anything
        self._marked: dict[int, torch.UntypedStorage] = {}

    def mark(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._marked[storage._cdata] = storage

    def has(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._marked

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(map(self.has, tensors_in((args, kwargs)))):
            # an operation that returns no tensor may have written into its arguments
            for tensor in list(tensors_in(result)) or tensors_in((args, kwargs)):
                self.mark(tensor)
            self.left_tensors |= isinstance(result, bool | int | float)
        return result


class _Leaving(TorchFunctionMode):
    """Notices the operations that :class:`_Flow` does not see, because their results are not tensors."""

    def __init__(self, flow: _Flow) -> None:
        super().__init__()
        self.flow = flow

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__):
            self.flow.left_tensors |= self.flow.has(args[0])
        return func(*args, **(kwargs or {}))
