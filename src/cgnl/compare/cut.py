"""A network in two parts at its block: up to it, to compute maps, and from it on, to train on them.

Legend: B batch, C channels, S spatial or space-time axes, K classes.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from cgnl.blocks.sums import swapped
from cgnl.compare.plan import with_block
from cgnl.compare.statistics import PLAIN
from cgnl.insertion import inserted_blocks
from cgnl.networks.cost import NetworkCost, network_cost
from cgnl.settings.image import Recipe
from cgnl.settings.trust import trusting
from cgnl.tasks.registry import task_of
from cgnl.training.run import uses_channels_last
from cgnl.training.trained import default_device

# the plain network's block, which marks the place
_NO_BLOCK = "torch.nn.Identity"
_WAY_OUT = "--head new trains a new classifier in place of the layers behind the block"


class _Reached(Exception):
    """The map is known: nothing behind it has to run."""


class Front(nn.Module):
    """A network up to its block: from inputs to the block's input [B, C, *S]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._map: Tensor | None = None
        block_of(network).register_forward_pre_hook(self._catch, with_kwargs=True)

    def _catch(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._map = args[0] if args else kwargs["x"]
        raise _Reached

    def forward(self, x: Tensor) -> Tensor:
        """Return the map in front of the block."""
        try:
            self.network(x)
        except _Reached:
            assert self._map is not None
            found, self._map = self._map, None
            return found
        raise AssertionError("a network runs its block")


class Tail(nn.Module):
    """A network from its block on: from the block's input [B, C, *S] to logits [B, K].

    The network's own forward runs, so that any Python code in it does. In front of the block it computes shapes alone,
    on tensors without numbers, and the block is given the map. Parameters in front of the block stay as they are and
    want no gradient.

    Args:
        network: The network, with one inserted block; changed in place.
        input_shape: Shape of one of its inputs, without the batch axis.
        example: Maps as `forward` takes them, to try it.

    Raises:
        ValueError: Layers behind the block see more than its output, or it cannot run without numbers.
    """

    def __init__(self, network: nn.Module, input_shape: tuple[int, ...], example: Tensor) -> None:
        super().__init__()
        self.network = network.eval()
        self.input_shape = input_shape
        self.block = block_of(network)
        self._maps: Tensor | None = None
        self._shapes = FakeTensorMode(allow_non_fake_inputs=True)
        self.block.register_forward_pre_hook(self._put, with_kwargs=True)
        try:
            with torch.enable_grad():
                logits = self._leaving_out(example)
                total = logits.sum()
        except Exception as error:  # the network's own code
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"--head network cannot leave out the layers in front of the block ({reason}); {_WAY_OUT}"
            ) from error
        if isinstance(logits, FakeTensor):
            raise ValueError(
                "--head network needs layers behind the block that see its output alone, but those of this network "
                f"also see earlier maps; {_WAY_OUT}"
            )
        parameters = list(network.parameters())
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the logits of maps."""
        like = next(self.network.parameters())
        with self._shapes:
            x = torch.empty(len(maps), *self.input_shape, dtype=like.dtype, device=like.device)
        self._maps = maps
        try:
            return self.network(x)
        finally:
            self._maps = None

    def _put(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Tensor], dict]:
        assert self._maps is not None
        x: Tensor = args[0] if args else kwargs["x"]
        # in the strides of the network's own map; and a copy, since layers behind may change it in place
        return (torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(self._maps),), {}

    def _leaving_out(self, example: Tensor) -> Tensor:
        """Return the logits of maps; from then on, modules in front of the block run once for each batch size."""
        calls: dict[nn.Module, int] = {}
        behind: set[nn.Module] = set()
        reached = False

        def recorded(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                nonlocal reached
                reached = reached or module is self.block
                output = forward(*args, **kwargs)
                calls[module] = calls.get(module, 0) + 1
                if reached or not isinstance(output, FakeTensor):
                    behind.add(module)
                return output

            return run

        modules = [module for module in self.network.modules() if not isinstance(module, torch.jit.ScriptModule)]
        with ExitStack() as stack:
            for module in modules:
                stack.enter_context(swapped(module, forward=recorded(module, module.forward)))
            logits = self(example)
        in_front = [module for module, count in calls.items() if count == 1 and module not in behind]
        inside = {child for module in in_front for child in module.modules() if child is not module}
        for module in in_front:
            if module not in inside:
                vars(module)["forward"] = self._remembering(module.forward)
        return logits

    def _remembering(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        outputs: dict[int, Any] = {}

        def run(*args: Any, **kwargs: Any) -> Any:
            assert self._maps is not None
            count = len(self._maps)
            if count not in outputs:
                outputs[count] = forward(*args, **kwargs)
            return outputs[count]

        return run


def block_of(network: nn.Module) -> nn.Module:
    """Return the only inserted block of a network."""
    (block,) = inserted_blocks(network).values()
    return block


def built(recipe: Recipe, label: str, num_classes: int, seed: int = 0) -> nn.Module:
    """Build a recipe's network with a kind of block, in evaluation mode.

    The plain network has a block that returns its input. Without a seed, the network is the same every time.
    """
    task: Any = task_of(recipe)
    with trusting(_NO_BLOCK):
        recipe = with_block(recipe, _NO_BLOCK if label == PLAIN else label)
        torch.manual_seed(seed)
        network: nn.Module = task.build_network(recipe, num_classes)
    return network.eval()


def make_tail(recipe: Any, label: str, num_classes: int, seed: int, shape: tuple[int, ...]) -> Tail:
    """Return the part of a network from its block on, for maps [C, *S] of a shape.

    Its weights are those of the network that made the maps, for all kinds of blocks and all seeds. The classifier is
    new; it depends on the seed and not on the kind.
    """
    task: Any = task_of(recipe)
    if recipe.network.weights is not None:
        recipe = replace(recipe, network=replace(recipe.network, new_classifier=True))
    network = built(recipe, label, num_classes)
    block = next(path for path, module in network.named_modules() if module is block_of(network))
    new = tuple(f"{path}." for path in (block, *task.classifier(recipe, network, num_classes)))
    state = built(recipe, label, num_classes, seed).state_dict()
    network.load_state_dict({key: value for key, value in state.items() if key.startswith(new)}, strict=False)
    if uses_channels_last(recipe.trainer):
        network.to(memory_format=torch.channels_last if task.num_axes == 2 else torch.channels_last_3d)
    device = default_device()
    return Tail(network.to(device), task.input_shape(recipe)[1:], torch.zeros(2, *shape, device=device))


def tail_cost(tail: Tail, recipe: Any, label: str, num_classes: int) -> NetworkCost:
    """Count the parameters that are trained in a tail, and its multiplications for one map."""
    task: Any = task_of(recipe)
    recipe, shape = task.without_start_weights(recipe), task.input_shape(recipe)
    whole = network_cost(lambda: built(recipe, label, num_classes), shape)
    front = network_cost(lambda: Front(built(recipe, label, num_classes)), shape)
    parameters = sum(parameter.numel() for parameter in tail.parameters() if parameter.requires_grad)
    return NetworkCost(parameters, whole.multiplications - front.multiplications)
